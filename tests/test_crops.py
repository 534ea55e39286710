"""Crops: exact windows without augmentation, inside the image; the content filter by cases."""

import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage

from psf.errors import InputError
from simulation.augmentation import add_grain, draw_changes, vary_intensity
from simulation.bank import Bank
from simulation.content import is_sharp_and_rich, sharpness
from simulation.crops import (
    blank_crops,
    draw_crops,
    plain_windows,
    replace_rows,
    replacements,
    sample_windows,
    turned_windows,
)
from simulation.sources import (
    Source,
    builtin_sources,
    folder_sources,
    procedural_sources,
    read_plane,
)

CROP_PX, PATCH_PX = 190, 128
STORED = 1e-4  # of source pixels in [0, 1]: kept in 16 bits, sampled at places in float32


@pytest.fixture(scope="module")
def sources():
    return [s for s in builtin_sources() if s.name in ("grass", "brick", "gravel")] + (
        procedural_sources(1, size=300)
    )


@pytest.fixture(scope="module")
def bank(sources):
    return Bank(sources, CROP_PX, PATCH_PX)


def ramp(height, width):
    """Image whose value gives the place: 0.25 + column / 2000 + row / 1000."""
    return (0.25 + np.arange(width)[None, :] / 2000 + np.arange(height)[:, None] / 1000).astype(
        np.float32
    )


def bank_of(plane, folder):
    """Bank of one image, all of whose windows count as sharp."""
    tifffile.imwrite(folder / "image.tif", plane)
    shape = (plane.shape,)
    source = Source("image", "file", path=str(folder / "image.tif"), shapes=shape)
    return Bank([source], CROP_PX, PATCH_PX)


@pytest.fixture
def everything_is_sharp(monkeypatch):
    def places(plane, patch_size):
        edges = [np.arange(patch_size // 2, side - patch_size // 2, 32) for side in plane.shape]
        return np.stack(np.meshgrid(*edges, indexing="ij"), -1).reshape(-1, 2).astype(float)

    monkeypatch.setattr("simulation.bank.sharp_places", places)


def test_plain_crops_are_exact_windows_of_their_source(sources, bank):
    crops = draw_crops(bank, 6, np.random.default_rng(0), augment=False)
    by_name = {source.name: read_plane(source) for source in sources}
    for pixels, origin in zip(crops.pixels.numpy(), crops.origins.tolist(), strict=True):
        plane = by_name[crops.names[origin]]
        windows = np.lib.stride_tricks.sliding_window_view(plane, (CROP_PX, CROP_PX))
        close = np.argwhere(np.abs(windows[:, :, 0, 0] - pixels[0, 0]) < STORED)
        assert any(np.abs(windows[row, column] - pixels).max() < STORED for row, column in close)


@pytest.mark.parametrize("height, width", [(190, 190), (191, 256), (230, 400), (700, 800)])
def test_turned_windows_stay_inside_and_only_shrink(height, width, tmp_path, everything_is_sharp):
    plane, rng = ramp(height, width) / 2, np.random.default_rng(1)
    bank = bank_of(plane, tmp_path)
    windows = turned_windows(bank, bank.draw(60, rng), rng)
    steps_px = []
    for window in sample_windows(bank, windows).double():
        assert window.min() >= plane.min() - STORED and window.max() <= plane.max() + STORED
        down, across = window.diff(dim=0), window.diff(dim=1)
        # A rotated ramp is a plane; a reflected or clamped border would break it.
        assert down.std() < STORED and across.std() < STORED
        steps_px.append(float(torch.hypot(down.mean(), across.mean())) / np.hypot(5e-4, 25e-5))
    assert min(steps_px) > 0.9995 and max(steps_px) < 2.0005
    np.testing.assert_allclose(steps_px, windows.steps, rtol=5e-4)
    if height == 700:
        assert max(steps_px) > 1.8 and min(steps_px) < 1.1
    if height == 190:
        assert max(steps_px) < 1.0005


def test_windows_reach_every_border(tmp_path, everything_is_sharp):
    plane, rng = ramp(200, 192), np.random.default_rng(2)
    bank = bank_of(plane, tmp_path)
    plain = [plain_windows(bank, bank.draw(60, rng), rng) for _ in range(10)]
    pixels = torch.cat([sample_windows(bank, windows) for windows in plain])
    assert float(pixels.min()) == pytest.approx(plane.min(), abs=STORED)
    assert float(pixels.max()) == pytest.approx(plane.max(), abs=STORED)


def test_augmented_crops_are_in_range_pass_the_filter_and_follow_the_generator(bank):
    first, again, other = (
        draw_crops(bank, 24, np.random.default_rng(seed), augment=True) for seed in (3, 3, 4)
    )
    assert torch.equal(first.pixels, again.pixels) and torch.equal(first.origins, again.origins)
    assert not torch.equal(first.pixels, other.pixels)
    assert first.pixels.dtype == torch.float32 and first.pixels.shape == (24, CROP_PX, CROP_PX)
    assert first.pixels.min() >= 0 and first.pixels.max() <= 1
    start = (CROP_PX - PATCH_PX) // 2
    centre = first.pixels[:, start : start + PATCH_PX, start : start + PATCH_PX]
    assert is_sharp_and_rich(centre).all()


def test_most_crops_around_sharp_places_pass_the_filter(bank):
    crops = draw_crops(bank, 64, np.random.default_rng(7), augment=True)
    assert len(crops.origins.unique()) > 0.8 * 64


def test_crops_that_fail_the_filter_are_replaced_by_good_ones_in_turn():
    good = torch.tensor([False, True, True, False, True, False, False, False])
    found = replacements(good)
    assert found.tolist() == [1, 1, 2, 2, 4, 4, 1, 2]
    assert replacements(torch.ones(3, dtype=torch.bool)).tolist() == [0, 1, 2]
    pixels = torch.arange(8.0)[:, None, None].expand(8, 2, 2).clone()
    replace_rows(pixels, found)
    assert pixels[:, 1, 0].tolist() == [1, 1, 2, 2, 4, 4, 1, 2]


def test_kinds_are_equally_likely_however_many_images_they_have():
    grass = [source for source in builtin_sources() if source.name == "grass"]
    leaves = [s for s in procedural_sources(4, size=200) if s.object_kind == "dead_leaves"]
    bank, rng = Bank(grass + leaves, CROP_PX, PATCH_PX), np.random.default_rng(6)
    rows = np.concatenate([bank.draw(50, rng) for _ in range(8)])
    names = [bank.occupants[row].source.name for row in rows]
    # Five standard deviations of a fair coin.
    assert abs(names.count("grass") - 200) < 50


def test_blurred_photograph_fails_the_filter_and_sharp_one_passes():
    for source in builtin_sources():
        if source.name in ("grass", "gravel"):
            plane = read_plane(source)[:256, :256]
            versions = np.stack([plane, ndimage.gaussian_filter(plane, 3.0)])
            assert is_sharp_and_rich(torch.from_numpy(versions)).tolist() == [True, False]


def test_sharpness_of_known_images():
    row = torch.arange(128.0)
    smooth = (row / 400).sin().expand(128, 128)
    edges = (row % 32 >= 16).float().expand(128, 128)
    noise = torch.rand(128, 128, generator=torch.Generator().manual_seed(0))
    values = sharpness(torch.stack([smooth, edges, noise])[None])[0]
    # d^2, d and d^0 laws of the structure function.
    assert values[0] == pytest.approx(1 / 16, rel=0.03)
    assert values[1] == pytest.approx(1 / 4, rel=0.06)
    assert values[2] == pytest.approx(1, rel=0.05)
    scaled = sharpness((0.3 - 0.2 * torch.stack([smooth, edges, noise]))[None])[0]
    assert scaled == pytest.approx(values, rel=1e-2)


def test_content_in_one_corner_or_of_low_contrast_fails():
    texture = torch.rand(128, 128, generator=torch.Generator().manual_seed(1))
    corner, half, three = torch.full((3, 128, 128), 0.5)
    corner[:64, :64] = texture[:64, :64]
    half[:64] = texture[:64]
    three[:] = texture
    three[64:, 64:] = 0.5
    patches = torch.stack([texture, three, half, corner, 0.9 + 0.05 * texture])
    assert is_sharp_and_rich(patches).tolist() == [True, True, False, False, False]


def test_blank_crops_are_nearly_even_and_fail_the_filter():
    crops = blank_crops(50, CROP_PX, np.random.default_rng(7))
    contrast = crops.std((-2, -1)) / crops.mean((-2, -1))
    assert contrast.max() <= 0.0201 and crops.min() >= 0 and crops.max() <= 1
    assert (contrast < 1e-5).any() and (contrast > 5e-3).any()
    assert not is_sharp_and_rich(crops).any()


def test_intensity_changes_are_varied_and_stay_in_range():
    pixels = torch.from_numpy(ramp(128, 128)).sub(0.25).mul(5).expand(200, -1, -1).clone()
    varied = vary_intensity(pixels.clone(), draw_changes(200, np.random.default_rng(8)))
    assert varied.min() >= 0 and varied.max() <= 1
    rising = varied[:, 100, 100] > varied[:, 20, 20]
    # 30 % are inverted, within four standard deviations.
    assert abs((~rising).float().mean() - 0.3) < 0.13


def test_images_without_sharp_content_are_refused_in_words(tmp_path):
    rng = np.random.default_rng(9)
    blurred = ndimage.gaussian_filter(rng.random((220, 220)), 6).astype(np.float32)
    tifffile.imwrite(tmp_path / "blurred.tif", (blurred - blurred.min()) / np.ptp(blurred))
    found, _ = folder_sources(tmp_path, CROP_PX)
    with pytest.raises(InputError, match=r"blurred\.tif.*in focus"):
        draw_crops(Bank(found, CROP_PX, PATCH_PX), 4, rng, augment=False)
    with pytest.raises(InputError, match="patch of 300 px in a crop of 190 px"):
        Bank(found, CROP_PX, 300)


def test_grain_is_fine_and_below_the_contrast_of_its_crop():
    smooth = torch.from_numpy(ramp(128, 128)).sub(0.25).mul(5).clamp(0, 1).expand(400, -1, -1)
    changes = draw_changes(400, np.random.default_rng(9))
    grain = add_grain(smooth.clone(), changes, torch.Generator().manual_seed(0)) - smooth
    strength = grain[:, 40:90, 40:90].std((-2, -1)) / smooth[0].std()
    assert abs((strength > 0).float().mean() - 0.4) < 0.1  # four standard deviations
    assert strength[strength > 0].min() > 0.009 and strength.max() < 0.33
    neighbours = (grain[:, 40:90, 40:89] * grain[:, 40:90, 41:90]).mean() / grain.square().mean()
    assert abs(neighbours) < 0.02  # white

"""Restorations of real stacks: scores of known errors, kept results, tables that add up."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from scipy.ndimage import gaussian_filter, shift

from benchmarks import real_restoration, restoration_methods, restored_planes
from benchmarks.plane_scores import (
    Truth,
    detail,
    gain_db,
    in_focus,
    make_truth,
    offset_px,
    score,
    squared_errors,
)
from benchmarks.real_restoration import Config, summarise, tabulate
from benchmarks.restoration_methods import INPUT, METHODS, Estimate, Method, View, blurred
from benchmarks.restored_planes import chosen_planes, kept_results
from benchmarks.tiles import bootstrap, inner, tile_sums
from models.estimator import Estimator
from models.mapping import PsfMap
from models.recording import MapOptions
from psf.errors import InputError
from psf.microscope import Microscope
from psf.model import psf_model
from restoration.variant_blur import VariantBlur

MICROSCOPE = Microscope(na=0.45, wavelength_um=0.5, pixel_size_um=0.278, refractive_index=1.33)
OPTICS = vars(MICROSCOPE)


def texture(edge: int = 200, width: float = 1.5, seed: int = 0) -> np.ndarray:
    """Smooth structure, about 100 on average."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(edge, edge)), width)
    return 100 + 20 * noise / noise.std()


def noisy(image: np.ndarray, deviation: float, seed: int) -> np.ndarray:
    return image + np.random.default_rng(seed).normal(0, deviation, image.shape)


def a_view(focus: float = 0.5, edge: int = 96) -> View:
    """A view of a texture whose map has one focus everywhere."""
    model, places = psf_model("zernike1d"), torch.tensor([0.0, edge - 1.0])
    ones = torch.ones(2, 2)
    found = PsfMap(model, MICROSCOPE, focus * ones[None], 0 * ones[None], ones, places, places)
    light = torch.from_numpy(texture(edge)).float()
    return View(light, 2.0, torch.ones(edge, edge, dtype=torch.bool), True, found)


# --- scores


def test_tiles_cover_the_field_once():
    values = np.arange(300 * 500, dtype=float).reshape(300, 500)
    sums = tile_sums(values)
    assert sums.shape == (2, 4)
    assert sums.sum() == values.sum()
    assert sums[0, 0] == values[:150, :125].sum()


def test_shift_and_grey_values_cost_nothing():
    truth = texture()
    moved = 3 * shift(truth, (2.5, -1.25), order=3, mode="nearest") + 7
    power = np.square(inner(truth) - inner(truth).mean()).sum()
    offset = offset_px(moved, truth)
    assert offset == pytest.approx([-2.5, 1.25])
    assert squared_errors(moved, offset, truth).sum() < 1e-3 * power


def test_the_shift_of_a_blurred_object_is_found_beside_the_pattern_of_the_camera():
    truth, pattern = texture(), noisy(np.zeros((200, 200)), 3.0, 1)
    plane = shift(gaussian_filter(truth, 3), (0.6, -1.25), order=3, mode="nearest")
    light = np.linspace(0, 300, 200)  # of an uneven illumination
    assert offset_px(plane + pattern + light, truth + pattern) == pytest.approx(
        [-0.6, 1.25], abs=0.25
    )


@pytest.mark.parametrize(("own", "right"), [((9.0, 9.0), (-3.0, 0.0)), ((0.0, 0.0), (0.0, 0.0))])
def test_the_better_one_of_two_shifts_is_taken(monkeypatch, own, right):
    monkeypatch.setattr("benchmarks.plane_scores.offset_px", lambda *_: np.array(own))
    truth = Truth(texture(), 1.0, np.ones((1, 1)))
    found = torch.from_numpy(shift(truth.image, np.negative(right), order=3, mode="nearest"))
    facts, _ = score(Estimate(found, found), "blind", truth, np.array([-3.0, 0.0]))
    assert facts["shift_px"] == list(right)
    assert sum(facts["errors"]["as_is"]) < 1e-3 * truth.errors_of_mean


def test_half_the_error_is_a_gain_of_six_decibels():
    truth = texture()
    before, after = (squared_errors(noisy(truth, d, 1), (0, 0), truth) for d in (2.0, 1.0))
    gain = gain_db(before.sum(), after.sum())
    assert gain == pytest.approx(20 * np.log10(2), abs=0.1)


def test_the_mean_gain_is_over_planes_and_its_interval_over_tiles():
    rng = np.random.default_rng(0)
    before = rng.uniform(1, 2, (2, 40))
    mean, low, high = bootstrap(gain_db, before, before / np.array([[10.0], [100.0]]))
    assert (mean, low, high) == pytest.approx((15, 15, 15))
    after = before * 10 ** (-rng.normal(1, 2, (1, 40)) / 10)
    mean, low, high = bootstrap(gain_db, before, after)
    wide = high - low
    assert low < mean < high
    copies = (np.tile(one, (1, 4)) for one in (before, after))
    mean_again, low, high = bootstrap(gain_db, *copies)
    assert mean_again == pytest.approx(mean)
    assert high - low == pytest.approx(wide / 2, rel=0.15)
    assert np.isnan(bootstrap(gain_db, before[:, :3], after[:, :3])[1])


def test_the_sharpest_plane_and_its_noise():
    planes = [gaussian_filter(texture(208), width) for width in (2.5, 1.0, 0.2, 1.5)]
    counts = np.random.default_rng(0).poisson(np.stack(planes)).astype(float)
    assert np.argmax([detail(plane) for plane in counts]) == 2
    truth = make_truth(counts[2], [counts[1], counts[3]], MICROSCOPE)
    assert truth.noise_variance == pytest.approx(100, rel=0.1)
    signal = inner(planes[2]).var()
    assert truth.ceiling_db == pytest.approx(10 * np.log10(signal / 100), abs=0.5)


def test_the_noise_is_bounded_by_the_difference_to_the_next_plane(monkeypatch):
    image = texture(256)
    planes = np.stack([noisy(image, 1.0, seed) for seed in range(3)])

    class TooLarge:
        offset_counts, gain_counts_per_e = 0.0, 10.0

    monkeypatch.setattr("benchmarks.plane_scores.estimate_camera", lambda _: TooLarge())
    assert make_truth(
        planes[1], [planes[0], planes[2]], MICROSCOPE
    ).noise_variance == pytest.approx(1, rel=0.15)


def test_the_object_itself_is_the_best_restoration_when_blurred_again():
    psf = make_truth(texture(), [], MICROSCOPE).focus_psf
    objects = np.random.default_rng(0).uniform(0, 1, (200, 200))
    truth = Truth(in_focus(objects, psf), 1.0, psf)
    light = torch.from_numpy(objects)
    facts, _ = score(Estimate(light, light), "ours", truth, np.zeros(2))
    in_focus_error, as_it_is = (sum(facts["errors"][kind]) for kind in ("in_focus", "as_is"))
    power = np.square(inner(truth.image) - inner(truth.image).mean()).sum()
    assert in_focus_error < 1e-6 * power
    assert as_it_is > 0.1 * power
    # the input is an image already: it is never blurred again
    image = torch.from_numpy(truth.image)
    facts, _ = score(Estimate(image, image), INPUT, truth, np.zeros(2))
    assert sum(facts["errors"]["in_focus"]) < 1e-6 * power


# --- methods


def test_an_expected_image_is_the_blurred_object():
    view = a_view(1.0)
    objects = view.light
    psf = view.blur.psf_at(48, 48)
    expected = in_focus(objects.double().numpy(), psf.double().numpy())
    assert blurred(objects, view.blur).numpy() == pytest.approx(expected, abs=1e-2)
    # with one PSF everywhere, weights before and after the convolution are the same
    found = METHODS["weights on the blurred image (2018)"](view)
    assert found.expected.numpy() == pytest.approx(
        blurred(found.objects, view.blur).numpy(), abs=1e-2 * float(found.objects.max())
    )


@pytest.mark.parametrize("name", ["blind Richardson-Lucy", "weights on the blurred image (2018)"])
def test_expected_images_explain_the_input_in_its_unit(name):
    view = a_view(0.3)
    found = METHODS[name](view)
    part = (slice(16, -16), slice(16, -16))
    error = (found.expected - view.light)[part].std() / view.light[part].std()
    assert float(found.expected.mean()) == pytest.approx(float(view.light.mean()), rel=0.02)
    assert float(error) < 0.3


def test_unusable_pixels_are_filled_in_the_input_of_every_method():
    view = a_view()
    view.light[40, 40] = 1e4
    view.usable[40, 40] = False
    assert float(METHODS[INPUT](view).objects.max()) < 200
    assert float(view.photons.max()) < 100


# --- results that are kept


def test_only_changed_methods_run_again(tmp_path):
    ran, opened = [], []

    def method(view: View, factor: float) -> Estimate:
        ran.append(factor)
        return Estimate(factor * view.light, view.light)

    def open_view() -> View:
        opened.append(1)
        return a_view()

    def value(estimate: Estimate, _: str) -> tuple[dict, np.ndarray]:
        return {"mean": float(estimate.objects.mean())}, estimate.objects.numpy()

    def results(factor: float, key: str = "a", network: str = "n") -> dict:
        methods = {
            "one": Method(method, (), {"factor": 1.0}, uses_map=False),
            "two": Method(method, (), {"factor": factor}),
        }
        return kept_results(tmp_path, {"pixels": key}, methods, network, open_view, value)

    first = results(2.0)
    again = results(2.0)
    assert (ran, len(opened)) == ([1.0, 2.0], 1)
    assert again["two"][0] == first["two"][0]
    assert np.array_equal(again["two"][1], first["two"][1])
    assert results(3.0)["two"][0]["mean"] == pytest.approx(1.5 * first["two"][0]["mean"])
    results(3.0, network="other")
    assert ran == [1.0, 2.0, 3.0, 3.0]  # the first method uses no map
    results(3.0, "b", "other")
    assert ran[4:] == [1.0, 3.0]


def test_a_key_holds_the_code_of_the_method(monkeypatch):
    keys = {name: method.key for name, method in METHODS.items() if not method.needs}
    assert len({str(key) for key in keys.values()}) == len(keys)
    assert METHODS[INPUT].key == keys[INPUT]
    changed = {"restoration": "x"}
    monkeypatch.setattr(
        restoration_methods, "_fingerprint", lambda code: [changed.get(one) for one in code]
    )
    assert "x" in METHODS["ours"].key["code"]
    assert "x" not in METHODS["blind total variation"].key["code"]


def test_planes_that_a_file_lacks_are_refused():
    assert chosen_planes(None, [1, 2], 3) == [1, 2]
    assert chosen_planes((0,), [1, 2], 3) == [0]
    with pytest.raises(InputError, match="asks for 3; the file has planes 0 to 2"):
        chosen_planes((2, 3), [], 3)


# --- tables


def facts_of(errors: list[float]) -> tuple[dict, None]:
    return {"errors": {"in_focus": errors, "as_is": errors}, "shift_px": [0.0, 0.0]}, None


def test_a_summary_counts_planes_and_ranks_methods():
    tiles = np.ones(8)
    errors = {
        INPUT: (1, 1, 1),
        "ours": (0.1, 0.1, 1.1),
        "blind": (0.5, 0.05, 0.1),
        "deep": (1, 1, 1),
    }
    results = {}
    for i, plane in enumerate((9, 8, 3)):  # 1, 2 and 7 steps from the truth
        results[plane] = {n: facts_of((one[i] * tiles).tolist()) for n, one in errors.items()}
    truth = Truth(texture(), 0.0, np.ones((1, 1)))
    table = tabulate(results, 10, truth)
    row = table[(table["method"] == "ours") & (table["plane"] == 8)].iloc[0]
    assert (row["steps"], row["worse_tiles_as_is"]) == (-2, 0)
    assert row["gain_in_focus_db"] == pytest.approx(10)
    assert table[table["plane"] == 3].set_index("method").loc["ours", "worse_tiles_as_is"] == 1
    found = summarise(results, table, truth)
    found = found[found["comparison"] == "as_is"].set_index("method")
    assert found["planes"].tolist() == [1] * 4  # only the plane 2 steps away counts
    assert found.loc["ours", "gain_db"] == pytest.approx(10)
    assert found.loc["blind", "rank"] == 1
    assert found.loc["ours", "lead_db"] == pytest.approx(10 * np.log10(0.05 / 0.1))
    assert found.loc["ours", "planes_ahead"] == 0
    assert set(found["best_rival"]) == {"blind"}


def test_noise_of_the_truth_hides_part_of_a_gain():
    truth = Truth(texture(), 1.0, np.ones((1, 1)))
    pixels = inner(truth.image).size
    before, after = ([pixels * share / 8] * 8 for share in (5.0, 2.0))
    results = {2: {name: facts_of(one) for name, one in ((INPUT, before), ("ours", after))}}
    found = summarise(results, tabulate(results, 0, truth), truth).set_index("method").loc["ours"]
    assert found["gain_db"].iloc[0] == pytest.approx(10 * np.log10(5 / 2))
    assert found["gain_without_noise_db"].iloc[0] == pytest.approx(10 * np.log10(4 / 1))


# --- the whole


@pytest.fixture
def stack(tmp_path, monkeypatch):
    """A stack whose plane 1 is sharp; its methods are the input, and one that knows the object."""
    objects = texture(224, 0.8)
    sharp = in_focus(objects, make_truth(objects, [], MICROSCOPE).focus_psf)
    planes = np.stack([gaussian_filter(sharp, 3), sharp, gaussian_filter(sharp, 2)])
    planes = np.random.default_rng(0).poisson(20 * planes)
    tifffile.imwrite(tmp_path / "flat.tif", planes.astype(np.uint16), photometric="minisblack")
    light = torch.from_numpy(objects).float()
    methods = {
        INPUT: METHODS[INPUT],
        "ours": Method(lambda view: Estimate(light, light), (), uses_map=False),
        "blind": Method(lambda view: Estimate(0.5 * view.light, view.light), (), uses_map=False),
    }
    monkeypatch.setattr(restoration_methods, "METHODS", methods)

    def open_view(options: MapOptions, _: Estimator) -> View:
        seen = torch.from_numpy(planes[options.z]).float()
        return replace(a_view(edge=224), light=seen, usable=torch.ones_like(seen).bool())

    monkeypatch.setattr(real_restoration, "open_view", open_view)
    return tmp_path / "flat.tif"


def test_a_stack_is_judged_by_its_sharpest_plane(stack, tmp_path):
    out = tmp_path / "out"
    config = Config(stack=stack, **OPTICS, out=out, scratch=tmp_path / "kept", planes=(0,))
    real_restoration.main(config)
    table = pd.read_csv(out / "real_restoration.csv").set_index(["plane", "method"])
    assert set(table["steps"]) == {-1}
    known = table.loc[(0, "ours")]
    counts = tifffile.imread(stack).astype(float)
    ceiling = make_truth(counts[1], [counts[0], counts[2]], MICROSCOPE).ceiling_db
    assert known["snr_in_focus_db"] == pytest.approx(ceiling, abs=1)
    assert known["gain_in_focus_db"] > 5
    assert known["gain_as_is_db"] < known["gain_in_focus_db"] - 3
    text = (out / "real_restoration.md").read_text("utf-8")
    assert "the truth is plane 1" in text
    assert f"| ours | {known['gain_in_focus_db']:+.2f} |" in text
    assert (out / "real_restoration.png").stat().st_size > 10_000


def test_a_stack_without_other_planes_is_refused(stack, tmp_path):
    config = Config(stack=stack, **OPTICS, out=tmp_path, planes=(1,), scratch=tmp_path / "kept")
    with pytest.raises(InputError, match="no plane is left beside the sharpest one, 1"):
        real_restoration.main(config)
    config = Config(stack=stack, **OPTICS, out=tmp_path, sharpest=3, scratch=tmp_path / "kept")
    with pytest.raises(InputError, match="--sharpest is 3; the stack has planes 0 to 2"):
        real_restoration.main(config)


def test_a_plane_is_read_as_by_the_script_that_restores(tmp_path):
    image = np.random.default_rng(0).poisson(2 * texture(160)) * 2.0 + 100
    path = tmp_path / "plane.tif"
    tifffile.imwrite(path, image.astype(np.uint16))
    options = restored_planes.PlaneOptions(**OPTICS, out=tmp_path).of_file(
        path, offset_counts=100.0, gain_counts_per_e=2.0
    )
    estimator = real_restoration.load_estimator("focus", torch.device("cpu"))
    view = restored_planes.open_view(options, estimator)
    assert view.light.numpy() == pytest.approx(image - 100)
    assert view.photons.mean() == pytest.approx((image.mean() - 100) / 2, rel=1e-4)
    assert float(view.psf_map.rows[-1]) == 159  # the map reaches the borders
    assert isinstance(view.blur, VariantBlur)


@pytest.mark.parametrize(("axes", "place"), [("ZYX", (2, 0)), ("TYX", (0, 2))])
def test_time_points_may_be_the_planes_of_a_stack(tmp_path, axes, place):
    planes = np.arange(3 * 32 * 32, dtype=np.uint16).reshape(3, 32, 32)
    path = tmp_path / "stack.ome.tif"
    tifffile.imwrite(path, planes, metadata={"axes": axes})
    options = restored_planes.PlaneOptions(**OPTICS, out=tmp_path).of_file(path, 2)
    assert (options.z, options.t) == place

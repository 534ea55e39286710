"""The NA from an image's spectrum: right within its error, and refused where it cannot be told."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from calibrate_depth import Config, next_step
from micrographs import na_estimate
from micrographs.metadata import OpticsFacts, resolve_optics
from micrographs.micrograph import open_micrograph
from micrographs.na_estimate import estimate_cutoff, estimate_na, power_beyond
from micrographs.na_source import check_na, na_of_spectrum
from micrographs.radial_spectrum import radial_spectrum
from psf import InputError, Microscope
from psf.blur import blur_valid
from psf.noise import camera_counts, to_photons
from psf.synthesis import synthesize
from simulation.objects import OBJECTS

OPTICS = {"wavelength_um": 0.5, "refractive_index": 1.33}
SIZE, PSF_PX = 320, 127


@dataclass(frozen=True)
class Image:
    """An image in memory, read by rows."""

    pixels: torch.Tensor

    @property
    def shape(self):
        return tuple(self.pixels.shape)

    def rows(self, start, stop):
        return self.pixels[start:stop]


def power_law(rng, size):
    """Gaussian texture whose power falls as f^-2."""
    line = np.fft.fftfreq(size)
    radius = np.maximum(np.hypot(line[:, None], line), 1 / size)
    texture = np.fft.ifft2(np.fft.fft2(rng.standard_normal((size, size))) / radius).real
    return (texture - texture.min()) / np.ptp(texture)


def record(kind, microscope, focus=0.0, photons=1000.0, seed=0):
    """Counts (SIZE, SIZE) of a camera."""
    rng, size = np.random.default_rng([40_000, seed]), SIZE + PSF_PX - 1
    sharp = power_law(rng, size) if kind == "power law" else OBJECTS[kind](rng, size)
    sharp = torch.from_numpy(np.asarray(sharp, np.float32))
    psf = synthesize("zernike1d", torch.tensor([[focus]]), microscope, PSF_PX)
    light = to_photons(blur_valid(sharp[None], psf).clamp(min=0), photons)
    return camera_counts(light, torch.Generator().manual_seed(seed), 1.6, 2.0, 100.0)[0].round()


def write(path, pixels):
    tifffile.imwrite(path, np.asarray(pixels, np.uint16))
    return path


def test_white_noise_has_its_variance_at_all_frequencies():
    pulls = []
    for seed in range(4):
        noise = 7 * torch.randn(384, 384, generator=torch.Generator().manual_seed(seed))
        found = radial_spectrum(Image(noise))
        assert abs(found.floor / 49 - 1) < 0.04
        # Neighbouring rings are correlated, so that the number of samples holds for their sums.
        for part in np.array_split(np.arange(len(found.power)), 4):
            mean = np.average(found.power[part], weights=found.samples[part])
            pulls.append((mean / 49 - 1) * np.sqrt(found.samples[part].sum()))
    assert 0.4 < np.square(pulls).mean() < 1.8


def test_stripes_and_saturated_areas_do_not_change_the_spectrum():
    noise = 7 * torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    striped = noise + 20 * torch.randn(512, 1, generator=torch.Generator().manual_seed(1))
    striped[:100, :100] = 500.0
    assert radial_spectrum(Image(striped)).power == pytest.approx(
        radial_spectrum(Image(noise)).power, rel=0.15
    )


@pytest.mark.parametrize(
    ("kind", "na", "pixel_um", "focus", "photons"),
    [
        ("filaments", 0.45, 0.18, 0.0, 300.0),
        ("power law", 0.5, 0.17, 0.1, 10_000.0),
        ("filaments", 0.3, 0.3, 1.0, 3000.0),
    ],
)
def test_na_is_found_within_three_standard_errors(tmp_path, kind, na, pixel_um, focus, photons):
    microscope = Microscope(na=na, pixel_size_um=pixel_um)
    path = write(tmp_path / "image.tif", record(kind, microscope, focus, photons))
    with open_micrograph(path) as image:
        found = estimate_na([image], pixel_size_um=pixel_um, **OPTICS)
    assert abs(found.na - na) < 3 * found.error
    assert found.error < 0.1 * na
    assert found.focus_waves == pytest.approx(focus, abs=0.35)


def test_sharpest_plane_of_a_stack_decides():
    microscope = Microscope(na=0.45, pixel_size_um=0.18)
    planes = [Image(record("filaments", microscope, focus)) for focus in (1.5, 0.1, 1.0)]
    assert na_estimate.sharpest(planes)[0] == 1


def test_whole_stack_of_a_file_is_used_and_named_as_the_source(tmp_path):
    microscope = Microscope(na=0.45, pixel_size_um=0.18)
    planes = [record("filaments", microscope, focus).numpy() for focus in (1.5, 0.0)]
    path = tmp_path / "stack.tif"
    pixels = np.asarray(planes, np.uint16)
    tifffile.imwrite(path, pixels, imagej=True, metadata={"axes": "ZYX"})
    with open_micrograph(path, z=0) as image:
        na, source = na_of_spectrum(image, pixel_size_um=0.18, **OPTICS)
    assert na == pytest.approx(0.45, rel=0.08)
    assert source.startswith(f"{na:g} ± 0.0") and "the sharpest of 2 planes, 1)" in source


def test_next_command_of_a_calibration_names_the_na_that_was_found():
    config = Config(stack=Path("stack.tif"), out=Path("out"), na="auto")
    command = next_step(config, Microscope(na=0.443), Path("out/depth_calibration.json"))
    assert "--na 0.443" in command and "auto" not in command.split("--na")[1]


def test_estimate_scales_with_the_optics_and_stays_below_the_index():
    spectrum = radial_spectrum(Image(record("filaments", Microscope(pixel_size_um=0.18))))
    free = estimate_cutoff(spectrum)
    assert free.cutoff == pytest.approx(0.324, rel=0.06)
    # An index that allows a cut-off of 0.3 at most: a higher one is not told.
    assert estimate_cutoff(spectrum, highest=0.3).highest < 0.3


def test_untold_na_is_refused_with_its_lower_limit(tmp_path):
    coarse = Microscope(na=0.45, pixel_size_um=0.27)
    dark = write(tmp_path / "dark.tif", record("nuclei", coarse, photons=10.0))
    blurred = record("filaments", Microscope(pixel_size_um=0.18))
    smooth = torch.nn.functional.avg_pool2d(blurred[None], 3, 1)[0]
    processed = write(tmp_path / "processed.tif", 10 * smooth)
    for path, words in ((dark, r"at least 0\.\d+ \(95 %\); give --na"), (processed, "white noise")):
        with open_micrograph(path) as image, pytest.raises(InputError, match=words):
            estimate_na([image], pixel_size_um=0.27, **OPTICS)


def test_power_beyond_the_cutoff_of_a_given_na_is_noticed():
    image = Image(record("filaments", Microscope(na=0.45, pixel_size_um=0.18)))
    spectrum = radial_spectrum(image)
    assert not power_beyond(spectrum, 2 * 0.45 * 0.18 / 0.5)
    assert not power_beyond(spectrum, 2 * 0.6 * 0.18 / 0.5)
    assert power_beyond(spectrum, 2 * 0.25 * 0.18 / 0.5)
    assert "NA is higher than given" in check_na(image, 2 * 0.25 * 0.18 / 0.5)[0]
    assert check_na(image, 2 * 0.45 * 0.18 / 0.5) == []


def test_automatic_na_is_recorded_with_its_source():
    asked = {}

    def estimate(**others):
        asked.update(others)
        return 0.4, "0.4 ± 0.02 (from the spectrum of the image)"

    facts = OpticsFacts(na=0.5, pixel_size_um=0.2, sources={"na": "OME-XML LensNA"})
    found = resolve_optics({"na": "auto", **OPTICS}, facts, estimate_na=estimate)
    assert asked == {"pixel_size_um": 0.2, **OPTICS}
    assert found.microscope.na == 0.4
    assert found.sources["na"] == "0.4 ± 0.02 (from the spectrum of the image)"
    assert "NA 0.4 ± 0.02 (from the spectrum of the image)" in found.notes
    assert "--na auto overrules 0.5 of the file (OME-XML LensNA)" in found.notes


def test_automatic_na_needs_the_other_optics():
    with pytest.raises(InputError, match="give --wavelength-um, --refractive-index"):
        resolve_optics({"na": "auto"}, OpticsFacts(pixel_size_um=0.2), estimate_na=pytest.fail)

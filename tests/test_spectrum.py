"""Spectra by value: Parseval, white noise, one wave, turns, and optics that scale away."""

import math

import numpy as np
import pytest
import torch

from models.data import normalise
from models.spectrum import (
    REACH,
    HarmonicPooling,
    polar_angles,
    polar_grid,
    polar_log_spectra,
    welch_spectrum,
)
from psf.noise import rotate

CPU = torch.device("cpu")
SIGMAS = 5  # statistical tolerance


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coordinates(size):
    line = torch.arange(size, dtype=torch.float64)
    return torch.meshgrid(line, line, indexing="ij")  # y, x


def full_mean(half):
    """Mean over the whole spectrum from its non-negative f_x: inner columns count twice."""
    weights = torch.full((half.shape[-1],), 2.0, dtype=half.dtype)
    weights[[0, -1]] = 1
    return (half * weights).sum((1, 2)) / (half.shape[1] * weights.sum())


def noise_with_power(power, count, size, seed=0):
    """Gaussian noise (N, size, size) whose spectrum is power(f_x, f_y)."""
    fy, fx = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)
    shaped = torch.fft.rfft2(random(count, size, size, seed=seed)) * power(fx, fy).sqrt()
    return torch.fft.irfft2(shaped, s=(size, size))


# --- Welch


@pytest.mark.parametrize("window", [32, 64])
def test_parseval(window):
    patches = random(3, 64, 64)
    hann = torch.hann_window(window, dtype=torch.float64)
    taper = hann[:, None] * hann / hann.square().sum()
    starts = range(0, 64 - window + 1, window // 2)
    tiles = [patches[:, a : a + window, b : b + window] for a in starts for b in starts]
    energy = torch.stack([(t * taper).square().sum((1, 2)) for t in tiles]).mean(0)
    assert torch.allclose(full_mean(welch_spectrum(patches, window)), energy, rtol=1e-12)


def test_white_noise_is_flat_at_its_variance():
    spectrum = welch_spectrum(3 * random(300, 64, 64), 32).mean(0)
    # 300 patches of about 9 half-overlapping tiles, of which some 4 are independent
    spread = SIGMAS * math.sqrt(1 / 1200)
    inner = spectrum[:, 1:-1] / 9
    assert float((inner - 1).abs().max()) < spread
    assert float(inner.mean()) == pytest.approx(1, abs=0.01)


# --- polar grid


def test_grid_points_are_the_frequencies_they_claim():
    """The spectrum of an impulse off the origin is known: 1 everywhere but for its phase."""
    # a plane a + b fx + c fy is sampled without error by bilinear interpolation
    window, cutoff = 32, torch.tensor([0.35, 0.2])
    fy = (torch.arange(32) - 16) / 32
    fx = torch.arange(17) / 32
    plane = (1 + 2 * fx + 5 * fy[:, None]).expand(2, 1, 32, 17)
    grid = polar_grid(cutoff, window, 10, 8)
    found = torch.nn.functional.grid_sample(plane, grid, align_corners=True)[:, 0]
    radius = cutoff[:, None, None] * ((torch.arange(10) + 0.5) / 10 * REACH)[:, None]
    angle = polar_angles(8, torch.device("cpu"), torch.float32)
    expected = 1 + 2 * radius * angle.cos() + 5 * radius * angle.sin()
    inside = radius < 0.45
    assert torch.allclose(*(torch.where(inside, v, 0) for v in (found, expected)), atol=1e-5)


def test_sectors_tile_the_half_circle_around_their_angles():
    """Four directions each: 180 degrees in even steps, their mean the angle of the sector."""
    window, cutoff, angles, samples = 64, torch.tensor([0.4]).double(), 8, 4
    grid = polar_grid(cutoff, window, 1, angles, samples)[0, 0]
    fx = (grid[:, 0] + 1) / 4
    fy = ((grid[:, 1] + 1) / 2 * (window - 1) - window / 2) / window
    assert torch.allclose(torch.hypot(fx, fy), 0.4 * REACH / 2 * torch.ones(32).double())
    directions = torch.atan2(fy, fx)
    steps = directions.sort().values.diff()
    assert torch.allclose(steps, torch.full((31,), math.pi / 32).double())
    doubled = torch.polar(torch.ones(32).double(), 2 * directions)  # the same half a turn on
    middles = doubled.view(angles, samples).mean(1).angle()
    expected = torch.polar(torch.ones(angles).double(), 2 * polar_angles(angles, CPU, cutoff.dtype))
    assert torch.allclose(torch.polar(torch.ones(angles).double(), middles), expected)


def test_sectors_average_power_before_the_logarithm():
    """Speckle of one window has a mean logarithm of -0.577 (Euler); averaging lifts it to 0."""
    patches, cutoff = normalise(random(60, 64, 64)), torch.full((60,), 0.4).double()
    spectra = polar_log_spectra(patches, cutoff, (64,), 20, 8)[:, 0, 12:]
    assert -0.45 < float(spectra.mean()) < 0
    single = welch_spectrum(patches, 64)[:, 1:-1, 1:-1].log().mean()
    assert float(single) == pytest.approx(-0.577, abs=0.02)


@pytest.mark.parametrize("degrees", [-67.5, -45, 0, 22.5, 45, 67.5])
@pytest.mark.parametrize("share", [0.3, 0.75])
def test_a_wave_peaks_at_its_radius_and_angle(degrees, share):
    """Angles run from +x (columns) to +y (rows): +45 degrees has crests going down to the left."""
    cutoff, radii, angles = 0.5, 40, 32
    y, x = coordinates(128)
    fx, fy = (share * cutoff * f(math.radians(degrees)) for f in (math.cos, math.sin))
    patch = torch.cos(2 * math.pi * (fx * x + fy * y))[None]
    spectrum = polar_log_spectra(patch, torch.tensor([cutoff]).double(), (64,), radii, angles)[0, 0]
    row, column = divmod(int(spectrum.argmax()), angles)
    found = math.degrees(polar_angles(angles, torch.device("cpu"), torch.float64)[column])
    step = 180 / angles
    assert abs((found - degrees + 90) % 180 - 90) < step  # modulo 180 degrees
    # one frequency step of the window is 1 / 64 cycles per px
    assert (row + 0.5) * REACH / radii == pytest.approx(share, abs=1 / 64 / cutoff)


@pytest.mark.parametrize("degrees", [45, 90])
def test_a_turned_image_is_a_shifted_polar_spectrum(degrees):
    def streaks(fx, fy):
        return torch.exp(-((fx - 0.5 * fy) ** 2) / 0.02 - (fx**2 + fy**2) / 0.08)

    images = noise_with_power(streaks, 24, 192)
    turned = rotate(images, float(degrees), 128)
    middle = images[:, 32:160, 32:160]
    cutoff = torch.full((24,), 0.5, dtype=torch.float64)
    before, after = (
        polar_log_spectra(normalise(p), cutoff, (64,), 40, 32).mean((0, 1))[4:24]
        for p in (middle, turned)
    )
    distances = [float((before.roll(s, 1) - after).abs().mean()) for s in range(32)]
    # 32 angles over 180 degrees; the object, and with it its spectrum, turns from +x to +y
    assert int(np.argmin(distances)) == round(degrees * 32 / 180)
    assert min(distances) < 0.1 * max(distances)


@pytest.mark.parametrize("factor", [2, 4])
def test_spectrum_in_units_of_the_cutoff_does_not_depend_on_the_sampling(factor):
    """The same field, band-limited by its optics, seen by cameras of two pixel sizes."""

    def through_optics(fx, fy):
        share = torch.hypot(fx, fy) / (0.5 / factor)
        return (
            (1 - share).clamp(min=0) ** 2 * (1.2 + torch.cos(9 * share + fx * 10)) / (share + 0.05)
        )

    fine = noise_with_power(through_optics, 16, 128)
    coarse = fine[:, ::factor, ::factor]  # no aliasing: the field ends at the new Nyquist
    cutoff = torch.full((16,), 0.5, dtype=torch.float64)
    of_fine = polar_log_spectra(normalise(fine), cutoff / factor, (128,), 40, 16)
    of_coarse = polar_log_spectra(normalise(coarse), cutoff, (128 // factor,), 40, 16)
    # at equal variance the power per squared cycle per px differs by a constant alone
    inside = slice(2, 28)  # 0.08 to 0.89 cut-offs
    difference = (of_fine - of_coarse)[:, :, inside].mean(0)
    assert float((difference - difference.mean()).abs().max()) < 0.05
    assert float(of_fine[:, :, inside].mean(0).std()) > 1  # there is something to agree on


@pytest.mark.parametrize("size", [33, 64, 96])
def test_windows_larger_than_the_patch_are_cut_to_it(size):
    patches, cutoff = random(2, size, size), torch.tensor([0.5, 0.4]).double()
    largest = size // 2 * 2
    found = polar_log_spectra(patches, cutoff, (128,), 20, 8)
    assert torch.equal(found, polar_log_spectra(patches, cutoff, (largest,), 20, 8))


# --- pooling


def test_pooling_gives_mean_and_second_harmonic():
    angle = polar_angles(16, torch.device("cpu"), torch.float64)
    profile = 3 + 2 * torch.cos(2 * angle) - 5 * torch.sin(2 * angle) + torch.cos(6 * angle)
    pooled = HarmonicPooling()(profile.expand(1, 1, 1, -1))[0]
    assert pooled.tolist() == pytest.approx([3, 1, -2.5])


@pytest.mark.parametrize("shift", [1, 5, 8, 13])
def test_pooling_keeps_the_mean_and_turns_the_harmonic_by_a_shift(shift):
    features = random(2, 3, 4, 16)
    pool = HarmonicPooling()
    before, after = (pool(f).view(2, 3, 12) for f in (features, features.roll(shift, 3)))
    assert torch.allclose(after[:, 0], before[:, 0], atol=1e-12)
    turn = torch.polar(torch.ones(1).double(), torch.tensor([2 * math.pi * shift / 16]).double())
    expected = torch.complex(before[:, 1], before[:, 2]) * turn
    assert torch.allclose(torch.complex(after[:, 1], after[:, 2]), expected, atol=1e-12)

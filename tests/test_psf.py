"""PSFs against closed forms, scaling laws, conservation and independent quadrature."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.special import j0, j1
from scipy.stats import norm

from benchmarks.psf_reference import focus_wavefront, hankel_profile, pixels, points, pupil_points
from psf import MODEL_NAMES, InputError, Microscope, draw_labels, psf_model, synthesize
from psf import synthesize_with_loss as with_loss
from psf.microscope import SamplingWarning
from psf.synthesis import EnergyWarning
from psf.zernike import zernike

# Differences of PSFs are given as a share of the peak of the one they are compared with.
FLOAT32 = 1e-5  # float32 rounding of phases of up to 50 radians
FLOAT64 = 1e-10  # rounding and the quadrature of the reference
PUPIL = 5e-4  # of the method for any pupil, psf/fourier.py
PIXEL = 1e-4  # of pixel integration
PIXEL_OVERFLOWING = 1e-3  # the same where most of the light lies outside the grid
SAME = 1e-6  # the same sums in another order, float32
FINE = Microscope(pixel_size_um=0.02)  # so fine that pixel integration changes nothing below

SIZES = (32, 33)
MODES = ((2, 0), (2, 2), (2, -2), (3, 1), (3, -1), (4, 0))


def model_of(name):
    return psf_model(name, modes=MODES) if name == "zernike" else psf_model(name)


def column(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)[:, None]


def coarse(pixel_size_um):
    """Return a microscope above Nyquist, of which it warns."""
    with pytest.warns(SamplingWarning):
        return Microscope(pixel_size_um=pixel_size_um)


def difference(found, expected):
    """Largest difference as a share of the peak, of arrays or tensors of any batch."""
    found, expected = (np.asarray(a, dtype=float) for a in (found, expected))
    peak = expected.max((-2, -1), keepdims=True)
    return float((np.abs(found - expected) / peak).max())


def absolute(model, labels, microscope, size, pixel_integration=True):
    """PSFs whose sum over an infinite grid would be 1."""
    psfs, lost = with_loss(model, labels, microscope, size, pixel_integration)
    return psfs * (1 - lost[:, None, None])


def at_points(model, labels, microscope, size):
    """The same at the middle of each pixel, not integrated."""
    return absolute(model, labels, microscope, size, pixel_integration=False)


def radius_px(size):
    line = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return torch.hypot(line[:, None], line)


def vertex(values, place):
    """Where the parabola through three neighbours has its vertex, samples."""
    left, middle, right = (float(values[place + k]) for k in (-1, 0, 1))
    return place + (left - right) / (2 * (left - 2 * middle + right))


def half_maximum_width(profile):
    """Full width at half maximum of a sampled peak, samples, linear between them."""
    profile = np.asarray(profile) / float(max(profile))
    above = np.flatnonzero(profile >= 0.5)
    first, last = above[0], above[-1]
    left = first - (profile[first] - 0.5) / (profile[first] - profile[first - 1])
    return last + (profile[last] - 0.5) / (profile[last] - profile[last + 1]) - left


# --- the Airy pattern


def test_first_dark_ring_at_0_61_wavelengths_over_na():
    row = with_loss("zernike1d", column(0.0), FINE, 121)[0][0, 60, 60:]
    ring_px = vertex(row, int(row[:50].argmin()))
    # a tenth of a pixel: the ring is steeper inside than outside, which no parabola is
    assert ring_px * 0.02 == pytest.approx(0.60983 * 0.5 / 0.45, abs=0.1 * 0.02)


@pytest.mark.parametrize("v", [1.0, 2.0, 3.8317, 5.5, 7.0156, 9.0])
def test_encircled_energy_is_the_closed_form_of_rayleigh(v):
    radius = v / (math.pi * FINE.cutoff_cycles_per_pixel)  # pixels
    psf = absolute("zernike1d", column(0.0), FINE, 181)[0]
    inside = (radius - radius_px(181) + 0.5).clamp(0, 1)  # share of a pixel inside the circle
    # 1e-3: the share above is that of a straight edge
    assert float((psf * inside).sum()) == pytest.approx(1 - j0(v) ** 2 - j1(v) ** 2, abs=1e-3)


def test_first_dark_ring_encircles_83_8_percent():
    psf = absolute("zernike1d", column(0.0), FINE, 181)[0]
    radius = 0.60983 * 0.5 / 0.45 / 0.02
    assert float(psf[radius_px(181) < radius].sum()) == pytest.approx(0.838, abs=1e-3)


@pytest.mark.parametrize("na", [0.225, 0.45, 0.9])
def test_width_at_half_maximum_is_inverse_to_na(na):
    psf = with_loss("zernike1d", column(0.0), Microscope(na=na, pixel_size_um=0.02), 161)[0][0]
    # 0.5 %: the pixel widens the narrowest of them by 0.2 %, linear interpolation adds the rest
    assert half_maximum_width(psf[80]) * 0.02 == pytest.approx(0.5145 * 0.5 / na, rel=5e-3)


# --- energy


def energy_in_square(size, cutoff):
    """In-focus energy inside K x K pixels: int OTF(f) K^2 sinc(K fx) sinc(K fy) d^2 f."""
    f = (np.arange(1500) + 0.5) / 1500 * cutoff
    s = np.minimum(np.hypot(f[:, None], f) / cutoff, 1)
    otf = 2 / np.pi * (np.arccos(s) - s * np.sqrt(1 - s**2))
    window = 2 * size * np.sinc(size * f) * cutoff / 1500
    return window @ otf @ window


@pytest.mark.parametrize("size", [12, 33, 64])
def test_reported_loss_in_focus_is_that_of_the_diffraction_limited_otf(size):
    lost = with_loss("zernike1d", column(0.0), Microscope(), size)[1]
    expected = 1 - energy_in_square(size, Microscope().cutoff_cycles_per_pixel)
    assert float(lost) == pytest.approx(expected, abs=1e-5)  # the midpoint rule above


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_reported_loss_is_what_a_larger_grid_finds_outside(name, size):
    model = model_of(name)
    labels = draw_labels(model, 5, np.random.default_rng(1)).double()
    lost = with_loss(model, labels, Microscope(), size)[1]
    margin = 48
    outer = absolute(model, labels, Microscope(), size + 2 * margin)
    inner = outer[:, margin:-margin, margin:-margin].sum((1, 2))
    assert (1 - lost).numpy() == pytest.approx(inner.numpy(), abs=PUPIL)


@pytest.mark.parametrize("name", ["zernike1d", "zernike2d", "astigmatic", "zernike"])
def test_a_large_grid_holds_the_energy_of_the_pupil(name):
    # 127 px lose 0.6 % of a diffraction-limited PSF, and not more with these small aberrations
    model = model_of(name)
    labels = 0.1 * draw_labels(model, 4, np.random.default_rng(2)).double()
    lost = with_loss(model, labels, Microscope(), 127)[1]
    assert lost.numpy() == pytest.approx(0.006, abs=0.002)


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize("size", [1, 2, 15, *SIZES])
def test_unit_sum_and_no_negative_light(name, size):
    model = model_of(name)
    labels = draw_labels(model, 5, np.random.default_rng(3))
    psfs, lost = with_loss(model, labels, Microscope(), size)
    assert psfs.shape == (5, size, size)
    assert psfs.sum((1, 2)).numpy() == pytest.approx(np.ones(5), abs=SAME)
    assert float(psfs.min()) >= 0
    assert float(lost.min()) > -SAME


def test_warns_if_the_psf_does_not_fit_and_says_by_how_much():
    with pytest.warns(EnergyWarning, match=r"\d\d\.\d% .* 15 x 15 pixels"):
        synthesize("gaussian1d", column(20.0), Microscope(), 15)


def test_is_silent_if_the_psf_fits():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        synthesize("gaussian1d", column(0.0, 5.0), Microscope(), 33)
        synthesize("zernike1d", column(0.0, 2.0), Microscope(), 128)


# --- the Hankel and the matrix Fourier method against independent quadrature


@pytest.mark.parametrize("focus", [0.0, 0.5, 2.0, 4.0, 8.0, -3.0])
@pytest.mark.parametrize("size", [32, 33, 96])
def test_hankel_method_agrees_with_adaptive_quadrature(focus, size):
    microscope = Microscope()
    profile = hankel_profile(focus_wavefront(focus), microscope.cutoff_cycles_per_pixel)
    expected = points(profile, size)
    for dtype, tolerance in ((torch.float32, FLOAT32), (torch.float64, FLOAT64)):
        labels = column(focus, dtype=dtype)
        found = at_points(psf_model("zernike1d"), labels, microscope, size)[0]
        assert difference(found, expected) < tolerance


def test_hankel_method_with_spherical_aberration_agrees_with_adaptive_quadrature():
    def wavefront(rho):
        return 0.4 * math.sqrt(3) * (2 * rho**2 - 1) - 0.3 * math.sqrt(5) * (
            6 * rho**4 - 6 * rho**2 + 1
        )

    model = psf_model("zernike", modes=((2, 0), (4, 0)))
    labels = torch.tensor([[0.4, -0.3]], dtype=torch.float64)
    found = at_points(model, labels, Microscope(), 33)[0]
    profile = hankel_profile(wavefront, Microscope().cutoff_cycles_per_pixel)
    assert difference(found, points(profile, 33)) < FLOAT64


def defocus_by_pupil(focus):
    """Model and labels of pure defocus that are computed by the matrix Fourier method."""
    labels = [[focus / (2 * math.sqrt(3)), 0.0]]
    return psf_model("zernike", modes=((2, 0), (2, 2))), torch.tensor(labels, dtype=torch.float64)


@pytest.mark.parametrize("focus", [0.0, 0.5, 2.0, 4.0, 8.0, -3.0])
@pytest.mark.parametrize("size", [*SIZES, 96])
def test_matrix_fourier_method_agrees_with_the_hankel_method(focus, size):
    expected = at_points(psf_model("zernike1d"), column(focus), Microscope(), size)
    found = at_points(*defocus_by_pupil(focus), Microscope(), size)
    assert difference(found, expected) < PUPIL


@pytest.mark.parametrize("name", ["zernike2d", "astigmatic", "zernike"])
def test_matrix_fourier_method_agrees_with_polar_quadrature_point_by_point(name):
    model, size = model_of(name), 32
    labels = {
        "zernike2d": [[0.8, 0.6, -0.9]],
        "astigmatic": [[-1.2]],
        "zernike": [[0.2, -0.15, 0.1, 0.25, -0.2, 0.12]],
    }[name]

    def wavefront(rho, theta):
        if name == "zernike2d":
            ast, angle = math.hypot(0.6, -0.9), math.atan2(-0.9, 0.6) / 2
            return 0.8 * rho**2 + ast * (rho * np.cos(theta - angle)) ** 2
        if name == "astigmatic":
            return -1.2 * rho**2 + (rho * np.cos(theta)) ** 2
        rho, theta = torch.from_numpy(rho), torch.from_numpy(theta)
        return sum(
            c * zernike(*mode, rho, theta) for c, mode in zip(labels[0], MODES, strict=True)
        ).numpy()

    found = at_points(model, torch.tensor(labels, dtype=torch.float64), Microscope(), size)[
        0
    ].numpy()
    rows, columns = np.random.default_rng(4).integers(0, size, (2, 60))
    rows[:4], columns[:4] = (15, 15, 16, 16), (15, 16, 15, 16)
    middle = (size - 1) / 2
    expected = pupil_points(
        wavefront, Microscope().cutoff_cycles_per_pixel, columns - middle, rows - middle
    )
    assert np.abs(found[rows, columns] - expected).max() < PUPIL * found.max()


# --- pixel integration


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("pixel_size_um", "focus", "tolerance"),
    [
        (0.278, 0.0, PIXEL),
        (0.278, 2.0, PIXEL),
        (0.15, 1.0, PIXEL),
        (0.278, 4.0, PIXEL_OVERFLOWING),
        (0.15, 4.0, PIXEL_OVERFLOWING),
    ],
)
def test_pixels_hold_the_light_that_falls_on_them(size, pixel_size_um, focus, tolerance):
    microscope = Microscope(pixel_size_um=pixel_size_um)
    profile = hankel_profile(focus_wavefront(focus), microscope.cutoff_cycles_per_pixel)
    found = absolute("zernike1d", column(focus), microscope, size)[0]
    assert difference(found, pixels(profile, size)) < tolerance


@pytest.mark.parametrize("size", (24, 25))
@pytest.mark.parametrize("focus", [0.0, 2.0])
@pytest.mark.parametrize("pixel_size_um", [0.35, 0.6, 0.9])
def test_pixels_above_nyquist_hold_the_light_that_falls_on_them(size, focus, pixel_size_um):
    microscope = coarse(pixel_size_um)
    profile = hankel_profile(focus_wavefront(focus), microscope.cutoff_cycles_per_pixel)
    found = absolute("zernike1d", column(focus), microscope, size)[0]
    assert difference(found, pixels(profile, size, nodes=10)) < PIXEL


def test_pixel_integration_lowers_the_peak_by_the_pixels_transfer_function():
    cutoff = Microscope().cutoff_cycles_per_pixel
    point = float(at_points(psf_model("zernike1d"), column(0.0), Microscope(), 1))
    pixel = float(absolute("zernike1d", column(0.0), Microscope(), 33)[0, 16, 16])
    assert point == pytest.approx(math.pi / 4 * cutoff**2, rel=FLOAT64)
    assert pixel == pytest.approx(energy_in_square(1, cutoff), rel=1e-5)
    assert pixel / point == pytest.approx(0.903, abs=1e-3)


@pytest.mark.parametrize("size", [24, 25])
@pytest.mark.parametrize("binning", [2, 3])
@pytest.mark.parametrize("name", ["zernike1d", "zernike2d", "zernike"])
def test_binned_small_pixels_are_large_pixels_on_odd_and_even_grids(name, size, binning):
    # an even grid of half-size pixels serves odd and even grids alike: all share one middle
    model = model_of(name)
    labels = 0.5 * draw_labels(model, 4, np.random.default_rng(5)).double()
    small = Microscope(pixel_size_um=0.27 / binning)
    fine = absolute(model, labels, small, binning * size)
    binned = fine.reshape(4, size, binning, size, binning).sum((2, 4))
    found = absolute(model, labels, Microscope(pixel_size_um=0.27), size)
    assert difference(found, binned) < (PIXEL if name == "zernike1d" else PUPIL)


@pytest.mark.parametrize("size", [1, 2, *SIZES])
@pytest.mark.parametrize("name", ["gaussian2d", "zernike1d", "zernike2d", "astigmatic"])
def test_even_pupils_give_psfs_centred_on_the_middle_of_the_grid(name, size):
    labels = draw_labels(model_of(name), 5, np.random.default_rng(6)).double()
    psfs = with_loss(name, labels, Microscope(), size)[0]
    assert difference(psfs.flip(1, 2), psfs) < FLOAT64
    place = torch.arange(size, dtype=torch.float64)
    for axis in (1, 2):
        centroid = (psfs.sum(3 - axis) * place).sum(1).numpy()
        assert centroid == pytest.approx(np.full(5, (size - 1) / 2), abs=1e-9)


# --- scaling laws


@pytest.mark.parametrize("name", ["zernike1d", "zernike2d", "zernike"])
@pytest.mark.parametrize(
    "optics",
    [
        {"na": 0.45, "wavelength_um": 1.0, "pixel_size_um": 0.5},
        {"na": 0.9, "wavelength_um": 0.5, "pixel_size_um": 0.125},
        {"na": 0.9, "wavelength_um": 1.0, "pixel_size_um": 0.25, "refractive_index": 1.5},
    ],
)
def test_psf_depends_on_na_times_pixel_over_wavelength_only(name, optics):
    model = model_of(name)
    labels = draw_labels(model, 4, np.random.default_rng(7))
    expected = with_loss(model, labels, Microscope(pixel_size_um=0.25), 33)[0]
    assert difference(with_loss(model, labels, Microscope(**optics), 33)[0], expected) < SAME


def in_focus_width_px(**optics):
    microscope = Microscope(**{"na": 0.15, **optics})
    return half_maximum_width(with_loss("zernike1d", column(0.0), microscope, 65)[0][0, 32])


@pytest.mark.parametrize(
    "optics", [{"na": 0.1}, {"wavelength_um": 0.75}, {"pixel_size_um": 0.278 / 1.5}]
)
def test_na_wavelength_and_pixel_each_widen_the_psf_by_the_same_law(optics):
    # 1 %: the pixel adds to the narrower width, and the sampled peak is interpolated
    assert in_focus_width_px(**optics) / in_focus_width_px() == pytest.approx(1.5, rel=0.01)


def exact_defocus(microscope, z_um):
    """W(rho) = z / lambda (n - sqrt(n^2 - NA^2 rho^2)), in waves."""
    n, na = microscope.refractive_index, microscope.na

    def wavefront(rho):
        return z_um / microscope.wavelength_um * (n - math.sqrt(n**2 - (na * rho) ** 2))

    return wavefront


@pytest.mark.parametrize("waves", [1.0, 2.0, -1.5])
def test_focus_in_waves_is_exact_defocus_at_low_na(waves):
    microscope = Microscope(na=0.05, pixel_size_um=2.4)
    wavefront = exact_defocus(microscope, waves * microscope.um_per_wave)
    assert wavefront(1.0) == pytest.approx(waves, rel=1e-3)  # the next term is (NA / 2n)^2
    expected = points(hankel_profile(wavefront, microscope.cutoff_cycles_per_pixel), 33)
    found = at_points(psf_model("zernike1d"), column(waves), microscope, 33)[0]
    assert difference(found, expected) < 5e-3  # 2 pi times that term, for two waves


def test_the_paraxial_error_of_focus_falls_with_the_square_of_na():
    errors = []
    for na in (0.05, 0.1, 0.2):
        microscope = Microscope(na=na, pixel_size_um=0.12 / na)
        wavefront = exact_defocus(microscope, microscope.um_per_wave)
        expected = points(hankel_profile(wavefront, microscope.cutoff_cycles_per_pixel), 33)
        found = at_points(psf_model("zernike1d"), column(1.0), microscope, 33)[0]
        errors.append(difference(found, expected))
    assert errors[1] / errors[0] == pytest.approx(4, rel=0.1)
    assert errors[2] / errors[1] == pytest.approx(4, rel=0.1)


# --- batches


@pytest.mark.parametrize("name", ["zernike1d", "zernike2d", "zernike"])
def test_one_microscope_is_a_sequence_of_equal_ones(name):
    model = model_of(name)
    labels = draw_labels(model, 6, np.random.default_rng(8))
    expected = with_loss(model, labels, Microscope(), 33)[0]
    found = with_loss(model, labels, [Microscope()] * 6, 33)[0]
    assert (
        difference(found, expected) < 1e-5
    )  # interpolation in the Bessel table: 2e-6 of the field


VARIED = ({}, {"na": 0.3}, {"na": 0.8, "pixel_size_um": 0.1}, {"wavelength_um": 0.6})


def differences_from_alone(name, optics, size):
    """Each PSF of a batch of varied optics against the one computed alone."""
    model = model_of(name)
    labels = draw_labels(model, len(optics), np.random.default_rng(9))
    together = absolute(model, labels, optics, size)
    for i, microscope in enumerate(optics):
        yield difference(together[i], absolute(model, labels[i : i + 1], microscope, size)[0])


@pytest.mark.parametrize(
    ("name", "tolerance"), [("zernike1d", FLOAT32), ("zernike2d", PUPIL), ("zernike", PUPIL)]
)
@pytest.mark.parametrize("size", SIZES)
def test_varied_optics_give_the_psfs_of_each_microscope_alone(name, tolerance, size):
    optics = [Microscope(**numbers) for numbers in VARIED]
    assert max(differences_from_alone(name, optics, size)) < tolerance


@pytest.mark.parametrize("name", ["zernike1d", "zernike2d", "zernike"])
def test_one_coarse_microscope_does_not_disturb_the_others(name):
    # it makes the whole batch oversampled, which changes how pixels are integrated
    optics = [*(Microscope(**numbers) for numbers in VARIED), coarse(0.4)]
    assert max(differences_from_alone(name, optics, 33)) < PIXEL_OVERFLOWING


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_a_psf_does_not_depend_on_its_neighbours_in_the_batch(name):
    model = model_of(name)
    labels = draw_labels(model, 130, np.random.default_rng(10))  # three chunks
    together = with_loss(model, labels, Microscope(), 21)[0]
    for i in (0, 63, 64, 129):
        alone = with_loss(model, labels[i : i + 1], Microscope(), 21)[0][0]
        # 1e-5 where the neighbours set the number of quadrature nodes: float32 rounding
        assert difference(together[i], alone) < FLOAT32


def test_an_empty_batch_gives_an_empty_batch():
    assert synthesize("zernike1d", torch.zeros(0, 1), Microscope(), 9).shape == (0, 9, 9)
    assert synthesize("gaussian1d", torch.zeros(0, 1), Microscope(), 9).shape == (0, 9, 9)


# --- Gaussians


@pytest.mark.parametrize("size", SIZES)
def test_gaussian_is_the_erf_over_each_pixel(size):
    fwhm = np.array([[3.0, 5.5], [8.0, 1.2]])
    sigma = fwhm / (2 * math.sqrt(2 * math.log(2)))
    edges = np.arange(size + 1) - size / 2
    x, y = (np.diff(norm.cdf(edges / sigma[:, i : i + 1])) for i in (0, 1))
    found = absolute("gaussian2d", torch.from_numpy(fwhm), Microscope(), size)
    assert difference(found, y[:, :, None] * x[:, None, :]) < FLOAT64


def test_gaussian1d_is_gaussian2d_of_equal_widths():
    one = with_loss("gaussian1d", column(3.0, 7.0), Microscope(), 33)[0]
    two = with_loss("gaussian2d", column(3.0, 7.0).expand(2, 2), Microscope(), 33)[0]
    assert torch.equal(one, two)


@pytest.mark.parametrize("fwhm", [2.0, 4.0, 10.0])
@pytest.mark.parametrize("size", [64, 65])
def test_second_moments_are_those_of_the_gaussian_and_of_the_pixel(fwhm, size):
    psf = with_loss("gaussian1d", column(fwhm), Microscope(), size)[0][0]
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    sigma = fwhm / (2 * math.sqrt(2 * math.log(2)))
    for axis in (0, 1):
        moment = float((psf.sum(axis) * place**2).sum())
        # 1e-5: what Poisson's summation formula leaves at FWHM 2
        assert moment == pytest.approx(sigma**2 + 1 / 12, abs=1e-5)


def test_measured_width_of_a_gaussian_is_its_fwhm():
    psf = with_loss("gaussian1d", column(15.0), Microscope(), 65)[0][0]
    # the pixel adds 8 ln 2 / 12 in square, 0.1 %; as much for linear interpolation
    assert half_maximum_width(psf[32]) == pytest.approx(15.0, rel=2e-3)


def test_a_gaussian_of_no_width_is_one_pixel_or_the_shared_corner_of_four():
    odd = with_loss("gaussian1d", column(0.0), Microscope(), 5)[0][0]
    assert float(odd[2, 2]) == 1
    even = with_loss("gaussian1d", column(0.0), Microscope(), 4)[0][0]
    assert even[1:3, 1:3].tolist() == [[0.25, 0.25], [0.25, 0.25]]


# --- refusals and gradients


@pytest.mark.parametrize(
    ("name", "labels", "size", "message"),
    [
        ("zernike1d", [[math.nan]], 9, "NaN"),
        ("zernike1d", [[math.inf]], 9, "infinite"),
        ("zernike1d", [[1.0, 2.0]], 9, "focus"),
        ("zernike1d", [1.0], 9, "focus"),
        ("zernike2d", [[1.0]], 9, "ast_cos2"),
        ("gaussian2d", [[1.0]], 9, "fwhm_x, fwhm_y"),
        ("zernike1d", [[1.0]], 0, "at least 1"),
    ],
)
def test_refuses_labels_and_sizes_that_make_no_sense(name, labels, size, message):
    with pytest.raises(InputError, match=message):
        synthesize(name, torch.tensor(labels), Microscope(), size)


def test_refuses_a_number_of_microscopes_that_is_not_that_of_the_labels():
    with pytest.raises(InputError, match="2 microscopes for 3 labels"):
        synthesize("zernike1d", torch.zeros(3, 1), [Microscope()] * 2, 9)


@pytest.mark.parametrize("varied", [False, True])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_gradient_with_respect_to_the_labels_is_that_of_finite_differences(name, varied):
    model = model_of(name)
    labels = draw_labels(model, 2, np.random.default_rng(11)).double() + 0.1  # not at ast = 0
    optics = [Microscope(), Microscope(na=0.4)] if varied else Microscope()

    def psfs(values):
        return with_loss(model, values, optics, 6)[0]

    assert torch.autograd.gradcheck(psfs, labels.requires_grad_(), atol=1e-6)


def test_gradient_without_astigmatism_is_that_of_central_differences():
    # ast is a square root with a cusp at 0; central differences cancel its even part
    labels, step = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64), 1e-6

    def pixel(values):  # two columns right of and one row below the middle: no axis of symmetry
        return with_loss("zernike2d", values, Microscope(), 9)[0][0, 5, 6]

    shifts = step * torch.eye(3, dtype=torch.float64)
    expected = [float(pixel(labels + s) - pixel(labels - s)) / (2 * step) for s in shifts]
    assert min(abs(slope) for slope in expected) > 1e-4
    found = torch.autograd.functional.jacobian(pixel, labels)[0].tolist()
    assert found == pytest.approx(expected, rel=1e-4)

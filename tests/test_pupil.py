"""Pixels, grids, sampled pupils, the number of nodes, and transfer functions."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import psf.fourier
import psf.hankel
from benchmarks.psf_reference import dense_profile, difference, pixels, pupil_on_lines
from psf import InputError, Layers, Microscope, psf_model, synthesize_with_loss
from psf.blur import blur_valid, transfer_functions
from psf.fourier import assemble, fourier_psfs
from psf.microscope import Optics, SamplingWarning
from psf.pupil import sampled_pupil
from psf.synthesis import EnergyWarning, synthesize_pupil
from psf.zernike import nm_to_noll, noll_to_nm, zernike

# Differences of PSFs are given as a share of the peak of the one they are compared with.
PIXEL = {torch.float32: 1e-4, torch.float64: 1e-10}  # 8e-6 and 5e-12 measured
ORDER = 0.05  # relative, of the power with which a rule converges
PARITY = 1e-10  # of two quadratures in float64
SAMPLES, COARSE = 2e-4, 5e-3  # of bicubic interpolation between 257 samples, and 33
TILT = 1e-6  # of 33 samples of a plane
ENERGY = 1e-4  # light that the joints of 65 bicubic samples scatter far away: 6.5e-5
UNCHANGED = {torch.float32: 3e-6, torch.float64: 1e-12}  # of the same sums over other nodes
HARM = 1e-10  # a hundred times what other nodes may change in float64
FFT = 1e-12  # rounding, for values of order one
CUT = 2e-5  # of the contrast: PSFs cut before or after their pixels are integrated


def scope(pixel_size_um):
    """Return the reference optics in these pixels; above Nyquist they warn."""
    if pixel_size_um <= 0.28:
        return Microscope(pixel_size_um=pixel_size_um)
    with pytest.warns(SamplingWarning):
        return Microscope(pixel_size_um=pixel_size_um)


def tensor(*rows, dtype=torch.float64):
    return torch.tensor(rows, dtype=dtype)


def absolute(model, labels, microscope, size, pixel_integration=True):
    """PSFs whose sum over an infinite grid would be 1."""
    psfs, lost = synthesize_with_loss(model, labels, microscope, size, pixel_integration)
    return psfs * (1 - lost[:, None, None])


# --- pixel integration


def midpoints(profile, size, parts):
    """Mean over parts x parts midpoints in each pixel (K, K)."""
    offset = (np.arange(parts) + 0.5) / parts - 0.5
    line = (np.arange(size)[:, None] - (size - 1) / 2 + offset).ravel()
    squares, place = np.unique(np.round(line[:, None] ** 2 + line**2, 12), return_inverse=True)
    inside = profile(np.sqrt(squares))[place].reshape(size, parts, size, parts)
    return inside.mean((1, 3))


@pytest.mark.parametrize("size", [15, 16])
@pytest.mark.parametrize("focus", [0.0, 2.0, 4.0, 8.0])  # 15 px lose 5 % to 99.7 % of the light
@pytest.mark.parametrize("pixel_size_um", [0.1, 0.15, 0.278, 0.35, 0.6])
def test_a_pixel_holds_the_mean_over_9_x_9_gauss_points(pixel_size_um, focus, size):
    microscope = scope(pixel_size_um)
    profile = dense_profile(lambda r: focus * r**2, microscope.cutoff_cycles_per_pixel, 200)
    expected = pixels(profile, size, nodes=9)[None]
    for dtype, tolerance in PIXEL.items():
        found = absolute("zernike1d", tensor([focus], dtype=dtype), microscope, size)
        assert difference(found, expected) < tolerance


@pytest.mark.parametrize("size", [15, 16])
@pytest.mark.parametrize("focus", [0.0, 4.0])
@pytest.mark.parametrize("pixel_size_um", [0.1, 0.278])
def test_midpoints_converge_on_our_pixels_with_the_square_of_their_number(
    pixel_size_um, focus, size
):
    # 9 x 9 midpoints are wrong by up to 1.2e-3 of the peak themselves, 0.1e-3 in fine pixels
    microscope = scope(pixel_size_um)
    profile = dense_profile(lambda r: focus * r**2, microscope.cutoff_cycles_per_pixel, 200)
    found = absolute("zernike1d", tensor([focus]), microscope, size)
    errors = [difference(midpoints(profile, size, parts)[None], found) for parts in (9, 27)]
    assert errors[0] / errors[1] == pytest.approx(9, rel=ORDER)


ABERRATED = ((1, 1), (2, 0), (2, -2), (3, 1), (3, -3), (4, 0))
COEFFICIENTS = (0.3, 0.4, -0.2, 0.15, -0.1, 0.1)


def aberrated_waves(rho, theta, modes=ABERRATED, coefficients=COEFFICIENTS):
    """The Zernike sum in waves, of arrays."""
    rho, theta = torch.as_tensor(rho), torch.as_tensor(theta)
    terms = zip(coefficients, modes, strict=True)
    return sum(c * zernike(*mode, rho, theta) for c, mode in terms)


@pytest.mark.parametrize("size", [9, 10])
@pytest.mark.parametrize("pixel_size_um", [0.15, 0.278, 0.6])
def test_pixels_of_any_pupil_hold_the_mean_over_9_x_9_gauss_points(pixel_size_um, size):
    microscope = scope(pixel_size_um)
    offset, weight = np.polynomial.legendre.leggauss(9)
    line = (np.arange(size)[:, None] - (size - 1) / 2 + offset / 2).ravel()
    inside = pupil_on_lines(
        lambda rho, theta: aberrated_waves(rho, theta).numpy(),
        microscope.cutoff_cycles_per_pixel,
        line,
    ).reshape(size, 9, size, 9)
    expected = np.einsum("iajb,a,b->ij", inside, weight / 2, weight / 2)
    model = psf_model("zernike", modes=ABERRATED)
    for dtype, tolerance in PIXEL.items():
        found = absolute(model, tensor(COEFFICIENTS, dtype=dtype), microscope, size)
        assert difference(found, expected[None]) < tolerance


# --- the grid


@pytest.mark.parametrize("pixel_integration", [True, False])
@pytest.mark.parametrize("modes", [((2, 0), (4, 0)), ((2, 0), (3, -1))])
def test_an_even_grid_shows_what_an_odd_one_shows_half_a_pixel_aside(modes, pixel_integration):
    # noll2 and noll3 move the PSF by -4 c / cutoff px
    microscope, half = Microscope(), Microscope().cutoff_cycles_per_pixel / 8
    model = psf_model("zernike", modes=((1, 1), (1, -1), *modes))
    odd = tensor([half, half, 0.3, 0.1])
    even = tensor([0.0, 0.0, 0.3, 0.1])
    expected = absolute(model, even, microscope, 32, pixel_integration)
    found = absolute(model, odd, microscope, 33, pixel_integration)[:, :32, :32]
    assert difference(found, expected) < PARITY
    # the same with the axisymmetric method on one side
    bare = absolute(
        psf_model("zernike", modes=modes), even[:, 2:], microscope, 32, pixel_integration
    )
    assert difference(bare, expected) < PARITY


@pytest.mark.parametrize(("noll", "axis"), [(2, 2), (3, 1)])
def test_a_tilt_moves_the_psf_by_whole_pixels_and_changes_nothing(noll, axis):
    microscope, model = Microscope(), psf_model("zernike", modes=(noll_to_nm(noll), (3, 1), (2, 2)))
    step = microscope.cutoff_cycles_per_pixel / 4  # one pixel
    straight, moved = (
        absolute(model, tensor([c, 0.1, 0.2]), microscope, 33) for c in (0.0, -3 * step)
    )
    assert difference(moved.narrow(axis, 3, 30), straight.narrow(axis, 0, 30)) < PARITY


# --- sampled pupils


def square(samples, dtype=torch.float64):
    """Radius and angle of the samples of a pupil, rows y, columns x."""
    line = torch.linspace(-1, 1, samples, dtype=dtype)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.hypot(x, y), torch.atan2(y, x)


SMOOTH, WAVES = ((1, 1), (2, 0), (2, 2), (3, -1), (4, 0)), (0.1, 0.15, -0.1, 0.08, 0.06)


def sampled_waves(samples):
    return aberrated_waves(*square(samples), SMOOTH, WAVES)[None]


@pytest.mark.parametrize("light", ["scalar", "vectorial"])
def test_sampled_pupils_give_the_psf_of_their_modes_as_samples_get_denser(light):
    model = psf_model("zernike", modes=SMOOTH, light=light)
    expected = synthesize_with_loss(model, tensor(WAVES), Microscope(), 111)[0]
    if light == "scalar":
        assert difference(synthesize_pupil(sampled_waves(33), Microscope(), 111), expected) < COARSE
    errors = [
        difference(synthesize_pupil(sampled_waves(p), Microscope(), 111, light=light), expected)
        for p in (17, 33, 65, 129, 257)
    ]
    assert all(finer < coarser for coarser, finer in pairwise(errors))
    assert errors[-1] < SAMPLES


def test_a_sampled_plane_is_a_tilt():
    # cubic convolution is exact for a plane if its parameter is -1/2 (R. G. Keys, IEEE TASSP 29,
    # 1153 (1981))
    model = psf_model("zernike", modes=((1, 1), (2, 2)))
    expected = synthesize_with_loss(model, tensor([0.5, 0.0]), Microscope(), 111)[0]
    plane = aberrated_waves(*square(33), ((1, 1),), (0.5,))[None]
    assert difference(synthesize_pupil(plane, Microscope(), 111), expected) < TILT


def test_orientation_of_samples_is_that_of_the_psf():
    waves = aberrated_waves(*square(65), ((3, -1),), (0.2,))[None]  # tail towards -y
    found = synthesize_pupil(waves, Microscope(), 111)[0]
    place = torch.arange(111, dtype=torch.float64) - 55
    assert float(found.sum(1) @ place) < -0.5
    assert float(found.sum(0) @ place) == pytest.approx(0, abs=FFT)


def test_a_smooth_annulus_keeps_its_energy():
    rho, _ = square(65)
    # bright at half the radius, dark at the rim and in the middle: no edge, no far rings
    amplitude = torch.exp(-(((rho - 0.5) / 0.12) ** 2))[None]
    pupil = sampled_pupil(
        0 * amplitude, amplitude, Optics.of(Microscope(pixel_size_um=0.2)), "scalar", torch.float64
    )
    energy = float(assemble(fourier_psfs(pupil, 161), 161).sum())
    assert energy == pytest.approx(1, abs=ENERGY)


def test_the_scale_of_the_amplitude_does_not_matter_and_its_shape_does():
    waves, (rho, _) = sampled_waves(65), square(65)
    annulus = torch.exp(-(((rho - 0.6) / 0.2) ** 2))[None]
    with pytest.warns(EnergyWarning):  # an annulus has bright rings
        plain, tenfold = (
            synthesize_pupil(waves, Microscope(), 41, factor * annulus) for factor in (1, 10)
        )
        bare = synthesize_pupil(waves, Microscope(), 41)
    assert difference(tenfold, plain) < FFT
    assert difference(bare, plain) > 0.1


@pytest.mark.parametrize(
    ("waves", "amplitude", "message"),
    [
        (torch.zeros(16, 16), None, r"waves has shape \(16, 16\)"),
        (torch.zeros(1, 16, 17), None, r"waves has shape \(1, 16, 17\)"),
        (torch.zeros(1, 15, 15), None, "at least 16"),
        (torch.zeros(1, 16, 16), torch.ones(1, 17, 17), "amplitude has shape"),
        (torch.zeros(1, 16, 16), torch.ones(16, 16), "amplitude has shape"),
        (torch.full((1, 16, 16), math.nan), None, "waves contains NaN"),
        (
            torch.zeros(1, 16, 16),
            torch.full((1, 16, 16), math.inf),
            "amplitude contains NaN or inf",
        ),
    ],
)
def test_refuses_samples_of_the_wrong_shape_or_not_finite(waves, amplitude, message):
    with pytest.raises(InputError, match=message):
        synthesize_pupil(waves, Microscope(), 9, amplitude)


def test_refuses_a_light_and_a_size_that_make_no_sense_for_samples():
    with pytest.raises(InputError, match="unknown light"):
        synthesize_pupil(torch.zeros(1, 16, 16), Microscope(), 9, light="laser")
    with pytest.raises(InputError, match="at least 1"):
        synthesize_pupil(torch.zeros(1, 16, 16), Microscope(), 0)


# --- the number of nodes


def use_nodes(monkeypatch, factor):
    """Let both methods use this multiple of the nodes that they choose."""
    for module in (psf.fourier, psf.hankel):
        asked = NODE_COUNTS[module.__name__]
        monkeypatch.setattr(module, "node_count", lambda *a, n=asked: 2 * round(n(*a) * factor / 2))


NODE_COUNTS = {module.__name__: module.node_count for module in (psf.fourier, psf.hankel)}
OIL_INTO_WATER = psf_model("gibson_lanni", layers=Layers(1.515), depth_um=10.0)
PUPILS = {
    "in focus": ("zernike1d", [0.0], Microscope()),
    "4 waves": ("zernike1d", [4.0], Microscope()),
    "20 waves": ("zernike1d", [20.0], Microscope()),
    "40 waves": ("zernike1d", [40.0], Microscope()),
    "astigmatism, 20 waves": ("zernike2d", [20.0, 2.0, 0.0], Microscope()),
    "astigmatism": ("zernike2d", [2.0, 1.0, 0.5], Microscope()),
    "coma": (psf_model("zernike", modes=((3, 1), (4, 0))), [0.5, 0.5], Microscope()),
    "mismatch": (OIL_INTO_WATER, [1.0], Microscope(1.2, 0.5, 0.1, 1.33)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PUPILS)
def test_twice_the_nodes_change_nothing(name, dtype, monkeypatch):
    model, labels, microscope = PUPILS[name]
    labels = tensor(labels, dtype=dtype)
    expected = absolute(model, labels, microscope, 41)
    use_nodes(monkeypatch, 2)
    found = absolute(model, labels, microscope, 41)
    assert difference(found, expected) < UNCHANGED[dtype]


@pytest.mark.parametrize(
    ("name", "size", "factor"),
    [
        ("20 waves", 127, 0.75),
        ("40 waves", 41, 0.75),
        ("astigmatism, 20 waves", 41, 0.75),
        ("in focus", 41, 0.5),
        ("4 waves", 41, 0.5),
        ("astigmatism", 41, 0.5),
        ("coma", 41, 0.5),
    ],
)
def test_a_quarter_fewer_nodes_harm_hard_cases_and_half_as_many_harm_all(
    name, size, factor, monkeypatch
):
    # the bound adds the tails of two functions, which dominate for small and mild PSFs
    model, labels, microscope = PUPILS[name]
    expected = absolute(model, tensor(labels), microscope, size)
    use_nodes(monkeypatch, factor)
    assert difference(absolute(model, tensor(labels), microscope, size), expected) > HARM


# --- transfer functions


def hopkins(frequency, cutoff, focus):
    """OTF of points under W = focus rho^2 (H. H. Hopkins, Proc. R. Soc. A 231, 91 (1955)).

    The overlap of two pupils a shift 2 s apart, over which their wavefronts differ by
    4 focus s x.
    """
    s = np.minimum(frequency / cutoff, 1)
    node, weight = np.polynomial.legendre.leggauss(400)
    angle = (node + 1) * np.pi / 4  # x = (1 - s) sin(angle): no root at the end
    x = (1 - s)[..., None] * np.sin(angle)
    height = np.sqrt(np.maximum(1 - (x + s[..., None]) ** 2, 0))
    area = weight * np.pi / 4 * (1 - s)[..., None] * np.cos(angle)
    return 4 / np.pi * (area * height * np.cos(8 * np.pi * focus * s[..., None] * x)).sum(-1)


def frequencies(shape):
    return np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])


SHAPES = [(96, 96), (97, 97), (96, 111), (97, 110)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pixel_size_um", [0.15, 0.2, 0.277, 0.278])
def test_in_focus_it_is_the_closed_form_times_that_of_the_pixel(pixel_size_um, shape):
    microscope = Microscope(pixel_size_um=pixel_size_um)
    y, x = frequencies(shape)
    v = np.minimum(np.hypot(y, x) / microscope.cutoff_cycles_per_pixel, 1)
    expected = 2 / np.pi * (np.arccos(v) - v * np.sqrt(1 - v**2)) * np.sinc(y) * np.sinc(x)
    otf = transfer_functions("zernike1d", tensor([0.0]), microscope, shape)[0].numpy()
    # what is outside can add no more than its light
    lost = float(synthesize_with_loss("zernike1d", tensor([0.0]), microscope, min(shape) - 1)[1])
    assert np.abs(otf - expected).max() < lost + FFT < 0.02


@pytest.mark.parametrize("focus", [0.5, 1.0, 2.0, -2.0])
def test_out_of_focus_it_is_hopkins_integral_and_negative_where_contrast_is_reversed(focus):
    microscope, shape = Microscope(pixel_size_um=0.25), (128, 129)
    y, x = frequencies(shape)
    ideal = hopkins(np.hypot(y, x), microscope.cutoff_cycles_per_pixel, focus)
    otf = transfer_functions("zernike1d", tensor([focus]), microscope, shape)[0].numpy()
    lost = float(synthesize_with_loss("zernike1d", tensor([focus]), microscope, 127)[1])
    assert np.abs(otf - ideal * np.sinc(y) * np.sinc(x)).max() < lost + FFT < 0.02
    assert (otf.real.min() < -2 * lost) == (
        abs(focus) > 0.6
    )  # the first zero appears at 0.64 waves


@pytest.mark.parametrize("pixel_size_um", [0.2, 0.278, 0.5])
@pytest.mark.parametrize("shape", [(65, 65), (33, 47)])
def test_value_at_frequency_0_is_the_light_within_half_the_shape(pixel_size_um, shape):
    microscope, labels = scope(pixel_size_um), tensor([0.0], [1.0])
    points = pixel_size_um < 0.278  # below Nyquist: 0.2778 um
    otf = transfer_functions("zernike1d", labels, microscope, shape)
    psfs = absolute("zernike1d", labels, microscope, max(shape), not points)
    rows = slice((max(shape) - shape[0]) // 2, (max(shape) + shape[0]) // 2)
    inside = psfs[:, rows].sum((1, 2))
    assert otf[:, 0, 0].real.tolist() == pytest.approx(inside.tolist(), abs=FFT)
    assert otf[:, 0, 0].imag.tolist() == [0, 0]
    if shape[0] == shape[1]:
        lost = synthesize_with_loss("zernike1d", labels, microscope, shape[0], not points)[1]
        assert otf[:, 0, 0].real.tolist() == pytest.approx((1 - lost).tolist(), abs=FFT)


MODELS = {
    "gaussian2d": ("gaussian2d", [3.0, 5.0]),
    "zernike1d": ("zernike1d", [0.7]),
    "zernike": (psf_model("zernike", modes=((2, 0), (3, 1), (3, -1))), [0.1, 0.08, -0.05]),
}


@pytest.mark.parametrize("pixel_size_um", [0.25, 0.35])
@pytest.mark.parametrize("shape", [(100, 120), (101, 120), (120, 101), (101, 119)])
@pytest.mark.parametrize("name", MODELS)
def test_blur_by_it_is_blur_with_the_psf_away_from_the_borders(name, shape, pixel_size_um):
    model, labels = MODELS[name]
    labels, microscope = tensor(labels), scope(pixel_size_um)
    images = torch.zeros(1, *shape, dtype=torch.float64)
    middle = slice(40, 60), slice(40, 60)
    images[:, *middle] = torch.from_numpy(np.random.default_rng(0).uniform(size=(1, 20, 20)))
    otf = transfer_functions(model, labels, microscope, shape)
    blurred = torch.fft.irfft2(torch.fft.rfft2(images) * otf, s=shape)
    kernel = absolute(model, labels, microscope, 61)
    expected = blur_valid(images, kernel)  # content 40 px from the border, 30 px are cut off
    found = blurred[:, 30:-30, 30:-30]
    near = slice(10, 30), slice(10, 30)  # farther out the kernel of 61 px ends
    assert difference(found[:, *near], expected[:, *near]) < CUT


@pytest.mark.parametrize("shape", [(32, 47), (33, 48), (33, 47), (32, 48)])
@pytest.mark.parametrize("name", ["gaussian2d", "zernike1d"])
def test_even_psfs_have_real_transfer_functions_that_shift_no_image_of_any_shape(name, shape):
    model, labels = MODELS[name]
    otf = transfer_functions(model, tensor(labels), Microscope(pixel_size_um=0.25), shape)
    assert float(otf.imag.abs().max()) < FFT
    point = torch.zeros(1, *shape, dtype=torch.float64)
    point[0, 9, 20] = 1
    blurred = torch.fft.irfft2(torch.fft.rfft2(point) * otf, s=shape)[0]
    assert divmod(int(blurred.argmax()), shape[1]) == (9, 20)


def test_a_point_becomes_the_psf_and_not_its_mirror_image():
    model, labels = MODELS["zernike"]
    microscope, shape = scope(0.3), (61, 70)  # above Nyquist: the very same pixels
    otf = transfer_functions(model, tensor(labels), microscope, shape)
    point = torch.zeros(1, *shape, dtype=torch.float64)
    point[0, 30, 40] = 1
    blurred = torch.fft.irfft2(torch.fft.rfft2(point) * otf, s=shape)
    expected = absolute(model, tensor(labels), microscope, 21)
    assert difference(blurred[:, 20:41, 30:51], expected) < FFT


def test_one_transfer_function_per_label_and_microscope():
    scopes = [Microscope(pixel_size_um=0.2), Microscope(na=0.3)]
    labels = tensor([0.5], [1.0])
    both = transfer_functions("zernike1d", labels, scopes, (40, 41))
    for i, microscope in enumerate(scopes):
        alone = transfer_functions("zernike1d", labels[i : i + 1], microscope, (40, 41))[0]
        assert float((both[i] - alone).abs().max()) < PARITY


@pytest.mark.parametrize("shape", [(1, 20), (20, 1)])
def test_refuses_an_image_of_a_single_row_or_column(shape):
    with pytest.raises(InputError, match="too small"):
        transfer_functions("zernike1d", tensor([0.0]), Microscope(), shape)


def test_modes_of_the_tilts_are_noll_2_and_3():
    assert (nm_to_noll(1, 1), nm_to_noll(1, -1)) == (2, 3)

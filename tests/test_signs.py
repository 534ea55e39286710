"""Signs and orientations, all in one place.

+x is columns to the right, +y is rows downwards, angles run from +x to +y. The pupil function
is exp(2 pi i W) and the kernel exp(+2 pi i x f), so that the light of a pupil point lands at
x = -(2 / cutoff) dW/d(rho_x), in pixels, with W in waves and the pupil radius 1: a wavefront that
grows to the right sends the light to the left.
"""

import math

import numpy as np
import pytest
import torch

from psf import Microscope, draw_labels, psf_model, synthesize_with_loss
from psf.model import wavefront
from psf.noise import rotate

MICROSCOPE = Microscope()
CUTOFF = MICROSCOPE.cutoff_cycles_per_pixel
SIZE = 41
# share of the peak; equal PSFs differ by float64 rounding, different ones by more than DIFFERENT
EQUAL, DIFFERENT = 1e-9, 0.1

EVEN = ((2, 0), (2, 2), (2, -2), (4, 0), (4, 2))
ODD = ((3, 1), (3, -1), (3, 3), (3, -3))


def psfs(name, *labels, modes=(), size=SIZE, microscope=MICROSCOPE):
    model = psf_model(name, modes=modes)
    values = torch.tensor(labels, dtype=torch.float64)
    return synthesize_with_loss(model, values, microscope, size)[0]


def difference(found, expected):
    return float((found - expected).abs().max() / expected.max())


def centroid(psf):
    """Centre (x, y) in pixels from the middle of the grid."""
    place = torch.arange(len(psf), dtype=psf.dtype) - (len(psf) - 1) / 2
    return float((psf.sum(0) * place).sum()), float((psf.sum(1) * place).sum())


def peak(psf):
    row, column = divmod(int(psf.argmax()), len(psf))
    return column - len(psf) // 2, row - len(psf) // 2


def long_axis_degrees(psf):
    """Direction of greatest spread, from +x to +y, modulo 180 (from second moments)."""
    place = torch.arange(len(psf), dtype=psf.dtype) - (len(psf) - 1) / 2
    y, x = torch.meshgrid(place, place, indexing="ij")
    xx, yy, xy = ((psf * product).sum() for product in (x * x, y * y, x * y))
    return math.degrees(float(torch.atan2(2 * xy, xx - yy)) / 2) % 180


def ramp_object(size=41):
    """A bright spot to the right of the middle and a fainter one below it."""
    image = torch.zeros(1, size, size)
    image[0, size // 2, size // 2 + 8] = 2
    image[0, size // 2 + 8, size // 2] = 1
    return image


# --- axes


def test_fwhm_x_is_the_width_along_columns():
    psf = psfs("gaussian2d", [8.0, 2.0])[0]
    middle = SIZE // 2
    assert float(psf[middle, middle + 4]) > 100 * float(psf[middle + 4, middle])
    assert long_axis_degrees(psf) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("mode", "axis"), [((1, 1), 0), ((1, -1), 1)])
@pytest.mark.parametrize("tilt", [0.5, -0.5])
def test_tilt_moves_the_psf_against_the_slope_of_the_wavefront(mode, axis, tilt):
    psf = psfs("zernike", [tilt], modes=(mode,))[0]
    # W = 2 tilt rho_x: x = -4 tilt / cutoff = -4 px for tilt = 0.5; the peak is on a whole pixel
    expected = [0, 0]
    expected[axis] = round(-4 * tilt / CUTOFF)
    assert peak(psf) == tuple(expected)
    assert abs(expected[axis]) == 4


def test_tilt_moves_the_psf_and_does_not_change_it():
    # a tilt of `cutoff` is a shift of exactly 4 px; each PSF has its own unit sum
    straight, tilted = psfs("zernike", [0.0, 0.3], [CUTOFF, 0.3], modes=((1, 1), (2, 0)))
    found, expected = tilted[:, :-4], straight[:, 4:]
    assert difference(found / found.sum(), expected / expected.sum()) < 1e-3  # of quadrature


# --- coma


@pytest.mark.parametrize(("mode", "axis"), [((3, 1), 0), ((3, -1), 1)])
@pytest.mark.parametrize("coma", [0.15, -0.15])
def test_tail_of_positive_coma_points_to_minus_x_and_minus_y(mode, axis, coma):
    psf = psfs("zernike", [coma], modes=(mode,), size=121)[0]
    # mean slope of sqrt(8) (3 rho^3 - 2 rho) cos(theta) over the pupil is sqrt(8)
    expected = -2 * math.sqrt(8) * coma / CUTOFF
    assert centroid(psf)[axis] == pytest.approx(expected, rel=0.05)  # light outside the grid
    assert centroid(psf)[1 - axis] == pytest.approx(0, abs=1e-9)
    assert abs(peak(psf)[axis]) <= 1  # the bright tip stays, the tail carries the light away


# --- the sign twin: W(rho) and -W(-rho) give one PSF


def random_labels(modes, seed=0):
    return draw_labels(psf_model("zernike", modes=modes), 5, np.random.default_rng(seed)).double()


def test_even_aberrations_together_may_change_sign_and_coma_does_not_break_it():
    modes = EVEN + ODD
    labels = random_labels(modes)
    parity = torch.tensor([(-1.0) ** n for n, _ in modes], dtype=torch.float64)
    twins = torch.where(parity > 0, -labels, labels)
    original, twin = (psfs("zernike", *values.tolist(), modes=modes) for values in (labels, twins))
    assert difference(twin, original) < EQUAL


def test_odd_aberrations_changed_in_sign_turn_the_psf_by_180_degrees():
    modes = EVEN + ODD
    labels = random_labels(modes)
    parity = torch.tensor([(-1.0) ** n for n, _ in modes], dtype=torch.float64)
    original, turned = (
        psfs("zernike", *values.tolist(), modes=modes) for values in (labels, labels * parity)
    )
    assert difference(turned, original.flip(1, 2)) < EQUAL
    assert difference(turned, original) > DIFFERENT


def test_coma_alone_shows_its_sign():
    positive, negative = psfs("zernike", [0.15], [-0.15], modes=((3, 1),))
    assert difference(negative, positive) > DIFFERENT
    assert difference(negative, positive.flip(1)) < EQUAL


@pytest.mark.parametrize("focus", [0.5, 1.0, 3.0])
def test_defocus_alone_hides_its_sign(focus):
    near, far = psfs("zernike1d", [-focus], [focus])
    assert difference(near, far) < EQUAL


def test_zernike2d_hides_the_common_sign_of_focus_and_astigmatism_only():
    # W = (f + a / 2) rho^2 + (a / 2) rho^2 cos(2 (theta - angle)): the twin has f' = -f - a, and
    # its astigmatism, a positive number, lies across the original one
    focus, ast, angle = 0.6, 0.9, 0.4
    components = ast * math.cos(2 * angle), ast * math.sin(2 * angle)
    original, twin, other = psfs(
        "zernike2d",
        [focus, *components],
        [-focus - ast, -components[0], -components[1]],
        [-focus, *components],
    )
    assert difference(twin, original) < EQUAL
    assert difference(other, original) > DIFFERENT


@pytest.mark.parametrize("focus", [0.5, 1.0, 2.0])
def test_known_astigmatism_shows_the_sign_of_focus(focus):
    near, far = psfs("astigmatic", [-focus], [focus])
    assert difference(near, far) > DIFFERENT


@pytest.mark.parametrize("focus", [0.0, 0.5, 1.0, 2.0])
def test_astigmatic_psf_beyond_the_other_line_focus_is_turned_by_90_degrees(focus):
    # cylinder along x of 1 wave: focus f and -1 - f differ only by the axis of the astigmatism
    original, twin = psfs("astigmatic", [focus], [-1 - focus])
    assert difference(twin, torch.rot90(original)) < EQUAL
    assert difference(twin, original) > DIFFERENT


@pytest.mark.parametrize(("focus", "degrees"), [(0.5, 0), (0.0, 0), (-1.0, 90), (-1.5, 90)])
def test_astigmatic_psf_is_long_along_x_at_positive_focus_and_along_y_below_minus_one(
    focus, degrees
):
    # slopes 2 (f + 1) along x and 2 f along y
    psf = psfs("astigmatic", [focus], size=61)[0]
    assert (long_axis_degrees(psf) - degrees + 90) % 180 - 90 == pytest.approx(0, abs=1e-6)


# --- angles


@pytest.mark.parametrize("degrees", [0, 30, 45, 90, 120, 170])
def test_psf_of_zernike2d_is_long_along_the_angle(degrees):
    # at focus 0 the wavefront varies along the angle only, which spreads the light along it
    angle = 2 * math.radians(degrees)
    psf = psfs("zernike2d", [0.0, 1.5 * math.cos(angle), 1.5 * math.sin(angle)], size=61)[0]
    # one degree of tolerance: the square grid favours its own axes
    assert (long_axis_degrees(psf) - degrees + 90) % 180 - 90 == pytest.approx(0, abs=1)


def test_angle_45_points_to_the_right_and_down():
    psf = psfs("zernike2d", [0.0, 0.0, 1.5])[0]
    middle = SIZE // 2
    assert float(psf[middle + 4, middle + 4]) > 3 * float(psf[middle - 4, middle + 4])


@pytest.mark.parametrize("degrees", [20, 90, 160])
def test_psf_turns_with_its_angle(degrees):
    # `rotate` turns by degrees from +x to +y, see below
    angle = 2 * math.radians(degrees)
    straight, turned = psfs(
        "zernike2d",
        [0.4, 0.8, 0.0],
        [0.4, 0.8 * math.cos(angle), 0.8 * math.sin(angle)],
        size=101,
        microscope=Microscope(pixel_size_um=0.1),
    )
    found = rotate(straight[None], degrees, 61)[0]
    # 2 %: bicubic interpolation, with pixels of a third of Nyquist
    assert difference(turned[20:-20, 20:-20], found) < 0.02


def test_rotate_turns_from_x_to_y():
    # the bright spot goes from the right to the bottom, the faint one from the bottom to the left
    turned = rotate(ramp_object(), 90.0, 25)[0]
    assert float(turned[12 + 8, 12]) == pytest.approx(2, abs=1e-4)
    assert float(turned[12, 12 - 8]) == pytest.approx(1, abs=1e-4)


# --- depth


@pytest.mark.parametrize("name", ["zernike1d", "astigmatic", "zernike2d"])
def test_positive_focus_is_a_wavefront_that_grows_towards_the_rim(name):
    model = psf_model(name)
    rho = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    labels = torch.zeros(2, len(model.label_names), dtype=torch.float64)
    labels[1, 0] = 1
    at_zero, at_one = wavefront(model, labels, rho, torch.full_like(rho, math.pi / 2))
    assert (at_one - at_zero).tolist() == pytest.approx([0, 0.25, 1])


def test_positive_focus_has_the_sign_of_positive_depth():
    # W = z / lambda (n - sqrt(n^2 - NA^2 rho^2)) grows with rho for z > 0, as focus rho^2 does
    z_um, n, na = MICROSCOPE.um_per_wave, MICROSCOPE.refractive_index, MICROSCOPE.na
    exact = z_um / MICROSCOPE.wavelength_um * (n - math.sqrt(n**2 - na**2))
    assert exact == pytest.approx(1, abs=0.04)  # the paraxial error at NA 0.45 in water, 3 %


def test_known_cylinder_lies_along_x():
    model = psf_model("astigmatic", known_ast_waves=0.7)
    theta = torch.tensor([0.0, math.pi / 4, math.pi / 2], dtype=torch.float64)
    none = torch.zeros(1, 1, dtype=torch.float64)
    found = wavefront(model, none, torch.ones_like(theta), theta)[0]
    assert found.tolist() == pytest.approx([0.7, 0.35, 0])

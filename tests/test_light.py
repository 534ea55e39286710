"""Scalar, aplanatic and vectorial light against dipoles ray by ray, limits, and the rule."""

import math
import warnings

import numpy as np
import pytest
import torch

from benchmarks.psf_reference import dense_profile, difference, dipole_points, points
from psf import LIGHTS, InputError, Layers, Microscope, psf_model, synthesize, synthesize_with_loss
from psf.light import SCALAR_LIMIT, ScalarWarning, components, scalar_deviation
from psf.microscope import Optics
from psf.synthesis import synthesize_pupil

# Differences of PSFs are given as a share of the peak of the one they are compared with.
FLOAT32 = 1e-5  # rounding
FLOAT64 = 1e-10  # rounding and the quadrature of the reference
METHODS = 1e-10  # of two quadratures in float64
CLOSED_FORM = 1e-9  # of Gauss-Legendre quadrature of a smooth function
SMALL_NA = 1e-3  # of the peak at NA / n = 0.05, of which the square is 2.5e-3
FIGURE = 1e-4  # the rule and the PSF are sampled at radii 0.03 apart
POWER = 0.05  # relative, of a power law without its next term
TWO_DIGITS = 5e-4  # of the limit, as a difference of PSFs
TAIL = 0.01  # of the energy, outside 60 and more wavelengths

AIR, WATER, OIL = 1.0, 1.33, 1.515


def scope(na, index=OIL, points_per_nyquist=1.0):
    return Microscope(na, 0.6, 0.6 / (4 * na) / points_per_nyquist, index)


def at_points(model, labels, microscope, size):
    """PSFs at the middle of each pixel, whose sum over an infinite grid would be 1."""
    psfs, lost = synthesize_with_loss(model, labels, microscope, size, False)
    return psfs * (1 - lost[:, None, None])


def plain(light, modes=(), index=OIL, **settings):
    """Defocus in a homogeneous medium."""
    layers = Layers(n_coverslip=index)
    return psf_model("gibson_lanni", modes=modes, layers=layers, light=light, **settings)


def labels_of(*z_um, modes=0, dtype=torch.float64):
    labels = torch.zeros(len(z_um), 1 + modes, dtype=dtype)
    labels[:, 0] = torch.tensor(z_um, dtype=dtype)
    return labels


def grid_line(size):
    return np.arange(size) - (size - 1) / 2


def exact_defocus(microscope, z_um):
    index, na = microscope.refractive_index, microscope.na
    return lambda rho: (
        z_um / microscope.wavelength_um * (index - np.sqrt(index**2 - (na * rho) ** 2))
    )


# --- against dipoles, ray by ray


@pytest.mark.parametrize("size", [24, 25])
@pytest.mark.parametrize(("na", "index"), [(0.5, AIR), (1.2, WATER), (1.3, OIL), (1.45, OIL)])
def test_vectorial_psf_is_that_of_dipoles_along_three_axes(na, index, size):
    microscope, z_um = scope(na, index, 1.2), (-1.0, 0.0, 0.7)
    expected = np.stack(
        [
            dipole_points(
                exact_defocus(microscope, z),
                microscope.cutoff_cycles_per_pixel,
                na,
                (index,),
                grid_line(size),
            )
            for z in z_um
        ]
    )
    model = plain("vectorial", index=index)
    for dtype, tolerance in ((torch.float32, FLOAT32), (torch.float64, FLOAT64)):
        found = at_points(model, labels_of(*z_um, dtype=dtype), microscope, size)
        assert difference(found, expected) < tolerance


@pytest.mark.parametrize(
    ("na", "index", "layers"),
    [
        (0.8, WATER, Layers(AIR, n_coverslip=1.52)),
        (1.2, WATER, Layers(OIL, n_coverslip=1.523)),
        (1.3, 1.4, Layers(OIL, n_coverslip=1.46)),
    ],
)
@pytest.mark.parametrize("modes", [(), ((2, 2),)])
def test_vectorial_psf_through_layers_has_fresnels_transmission(na, index, layers, modes):
    microscope, depth_um, size = scope(na, index, 1.2), 3.0, 21
    model = psf_model(
        "gibson_lanni", layers=layers, depth_um=depth_um, modes=modes, light="vectorial"
    )
    moved_um = (
        0.5 - layers.n_immersion * depth_um / index
    )  # of the immersion, as rays near the axis

    def wavefront(rho):
        sine2 = (na * rho) ** 2
        sample = depth_um * (index - np.sqrt(index**2 - sine2))
        immersion = moved_um * (layers.n_immersion - np.sqrt(layers.n_immersion**2 - sine2))
        return (sample + immersion) / microscope.wavelength_um

    expected = dipole_points(
        wavefront,
        microscope.cutoff_cycles_per_pixel,
        na,
        (index, layers.n_coverslip, layers.n_immersion),
        grid_line(size),
    )
    found = at_points(model, labels_of(0.5, modes=len(modes)), microscope, size)
    assert difference(found, expected[None]) < FLOAT64


@pytest.mark.parametrize("na", [0.5, 1.3])
def test_aplanatic_psf_has_the_amplitude_of_equal_light_per_solid_angle(na):
    microscope, size = scope(na), 25
    cutoff = microscope.cutoff_cycles_per_pixel
    # energy: int (cos)^-1 2 rho d rho = 2 (1 - cos(limit)) / sin(limit)^2, a solid angle
    limit = math.asin(na / OIL)
    energy = 2 * (1 - math.cos(limit)) / math.sin(limit) ** 2

    # the complex wavefront carries the amplitude: exp(2 pi i W) = cos^-1/2
    def wavefront(rho):
        cosine = np.sqrt(1 - (na * rho / OIL) ** 2)
        return exact_defocus(microscope, 0.8)(rho) - 1j * np.log(cosine**-0.5) / (2 * np.pi)

    expected = points(dense_profile(wavefront, cutoff), size) / energy
    found = at_points(plain("aplanatic"), labels_of(0.8), microscope, size)
    assert difference(found, expected[None]) < FLOAT64


# --- the two methods


@pytest.mark.parametrize("light", LIGHTS)
@pytest.mark.parametrize("size", [20, 21])
@pytest.mark.parametrize("pixel_integration", [True, False])
def test_the_road_for_any_pupil_agrees_with_the_axisymmetric_one(light, size, pixel_integration):
    labels = (labels_of(-0.8, 0.0, 1.5), labels_of(-0.8, 0.0, 1.5, modes=1))
    models = (plain(light), plain(light, ((2, 2),)))
    found, expected = (
        synthesize_with_loss(model, values, scope(1.3), size, pixel_integration)[0]
        for model, values in zip(models, labels, strict=True)
    )
    assert difference(found, expected) < METHODS


@pytest.mark.parametrize("light", LIGHTS)
def test_both_roads_agree_through_layers_and_in_varied_optics(light):
    scopes = [Microscope(1.0, 0.6, 0.12, WATER), Microscope(1.25, 0.5, 0.08, 1.36)]
    layers, modes = Layers(OIL, n_coverslip=1.53), ((3, -1),)
    found, expected = (
        at_points(
            psf_model("gibson_lanni", layers=layers, depth_um=2.0, modes=m, light=light),
            labels_of(-0.4, 0.9, modes=len(m)),
            scopes,
            20,
        )
        for m in (modes, ())
    )
    assert difference(found, expected) < METHODS


# --- limits and conservation


@pytest.mark.parametrize("light", ["aplanatic", "vectorial"])
@pytest.mark.parametrize("modes", [(), ((3, 1),)])
def test_all_lights_are_one_in_the_limit_of_small_na(light, modes):
    differences = []
    for na in (0.1, 0.05):
        microscope = scope(na, AIR)
        z_um = microscope.um_per_wave
        labels = labels_of(0.0, z_um, modes=len(modes))
        labels[:, 1:] = 0.1
        scalar, other = (
            at_points(plain(kind, modes, AIR), labels, microscope, 24) for kind in ("scalar", light)
        )
        differences.append(difference(other, scalar))
    assert differences[1] < SMALL_NA
    assert differences[0] / differences[1] == pytest.approx(4, rel=POWER)  # with the square of NA


@pytest.mark.parametrize("light", LIGHTS)
@pytest.mark.parametrize("modes", [(), ((2, 2), (3, 1))])
def test_a_large_grid_holds_all_the_light(light, modes):
    labels = labels_of(0.0, 0.5, modes=len(modes))
    labels[:, 1:] = 0.05
    losses = [
        synthesize_with_loss(plain(light, modes), labels, scope(1.3), size)[1] for size in (63, 127)
    ]
    assert float(losses[1].max()) < TAIL
    assert float(losses[1].min()) > 0
    # light outside a disc of v falls as 1 / v (Rayleigh)
    assert (losses[0] / losses[1]).tolist() == pytest.approx([95 / 47] * 2, rel=POWER)


@pytest.mark.parametrize("degrees", [20, 60, 85])
def test_each_component_has_the_light_of_its_dipoles_within_the_cone(degrees):
    limit = math.radians(degrees)
    optics = Optics.of(scope(OIL * math.sin(limit)))
    node, weight = np.polynomial.legendre.leggauss(200)
    angle = (node + 1) / 2 * limit
    # area of the pupil, 2 rho d rho, that takes the rays between two angles
    area = torch.from_numpy(weight * limit / 2 * 2 * np.sin(angle) * np.cos(angle))
    rho = torch.from_numpy(np.sin(angle) / math.sin(limit))
    found = [
        part.weight * float(part.amplitude[0].square() @ area)
        for part in components("vectorial", optics, None, rho)
    ]
    # int sin(angle) d angle of (1 + cos)^2 / 2, sin^2 and (1 - cos)^2 / 2
    c = math.cos(limit)
    expected = [(8 - (1 + c) ** 3) / 6, 1 - c - (1 - c**3) / 3, (1 - c) ** 3 / 6]
    assert found == pytest.approx(expected, rel=CLOSED_FORM)


@pytest.mark.parametrize("modes", [(), ((2, 2),)])
def test_layers_of_equal_index_are_no_layers(modes):
    microscope, index = scope(1.3), OIL
    bare = psf_model("zernike", modes=((4, 0), *modes), light="vectorial")
    layers = Layers(index, n_coverslip=index, coverslip_um=50.0)
    layered = psf_model("gibson_lanni", modes=bare.modes, layers=layers, light="vectorial")
    aberrations = torch.full((1, len(bare.modes)), 0.1, dtype=torch.float64)
    at_focus = torch.cat([torch.zeros(1, 1, dtype=torch.float64), aberrations], 1)
    expected = at_points(bare, aberrations, microscope, 21)
    assert difference(at_points(layered, at_focus, microscope, 21), expected) < METHODS


def test_the_reflection_of_layers_dims_the_rim_of_the_pupil():
    microscope = scope(1.25, WATER)
    rho = torch.tensor([0.0, 1.0], dtype=torch.float64)
    bare, layered = (
        sum(
            part.weight * part.amplitude[0] ** 2
            for part in components("vectorial", Optics.of(microscope), layers, rho)
        )
        for layers in (None, Layers(WATER, n_coverslip=1.7))
    )
    share = layered / bare
    # t t' = 1 - r^2 at each of two interfaces, r = (n - n') / (n + n') at right angles
    normal = (1 - ((1.7 - WATER) / (1.7 + WATER)) ** 2) ** 2
    assert float(share[0]) == pytest.approx(normal, rel=CLOSED_FORM)
    assert float(share[1]) < float(share[0])


def half_width_px(psf):
    """Radius at half maximum along the middle row, pixels, linear between them."""
    row = psf[len(psf) // 2, len(psf) // 2 :] / psf.max()
    place = int((row < 0.5).double().argmax())
    return place - float((0.5 - row[place]) / (row[place - 1] - row[place]))


def test_vectorial_psf_of_high_na_is_wider_than_the_scalar_one():
    microscope = scope(1.4, points_per_nyquist=10)
    widths = {
        light: half_width_px(at_points(plain(light), labels_of(0.0), microscope, 41)[0])
        for light in LIGHTS
    }
    # a bright rim narrows the scalar PSF; polarisation along the axis widens by more
    assert widths["aplanatic"] < 0.97 * widths["scalar"]
    assert widths["vectorial"] > 1.05 * widths["scalar"]


# --- the rule


def deviation_of_psfs(na_over_n, waves=0.0):
    """Largest difference of scalar and vectorial PSFs in fine pixels, points of peak 1."""
    fine, size = (16, 101) if waves == 0 else (6, 481)  # the rings of 4 waves lie further out
    microscope = scope(na_over_n, AIR, fine)
    labels = labels_of(waves * microscope.um_per_wave)
    scalar, vectorial = (
        synthesize_with_loss(plain(light, index=AIR), labels, microscope, size, False)[0][0]
        for light in ("scalar", "vectorial")
    )
    return float((scalar / scalar.max() - vectorial / vectorial.max()).abs().max())


@pytest.mark.parametrize("na_over_n", [0.2, SCALAR_LIMIT, 0.7, 0.95])
def test_the_rules_figure_is_that_of_the_psfs(na_over_n):
    assert scalar_deviation(na_over_n) == pytest.approx(deviation_of_psfs(na_over_n), abs=FIGURE)


def test_scalar_light_is_off_by_one_percent_at_the_limit():
    assert scalar_deviation(SCALAR_LIMIT) == pytest.approx(0.01, abs=TWO_DIGITS)
    assert scalar_deviation(SCALAR_LIMIT - 0.01) < 0.01 < scalar_deviation(SCALAR_LIMIT + 0.01)


def test_scalar_light_is_off_by_more_out_of_focus():
    assert deviation_of_psfs(SCALAR_LIMIT, 4.0) > 2 * deviation_of_psfs(SCALAR_LIMIT)
    assert deviation_of_psfs(0.19, 4.0) < 0.01 < deviation_of_psfs(0.23, 4.0)


def warned(light, na, name="zernike1d", index=AIR):
    """Warnings about a PSF at this NA."""
    microscope = Microscope(na, 0.5, 0.5 / (4 * na), index)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        synthesize(psf_model(name, light=light), torch.zeros(1, 1), microscope, 79)
    return [str(w.message) for w in said if w.category is ScalarWarning]


@pytest.mark.parametrize("light", ["scalar", "aplanatic"])
@pytest.mark.parametrize("name", ["zernike1d", "gibson_lanni"])
def test_warns_above_the_limit_and_not_below(light, name):
    assert not warned(light, 0.375, name)
    assert len(warned(light, 0.385, name)) == 1
    assert not warned(light, 0.385, name, WATER)  # the rule depends on NA / n, not on NA


def test_the_warning_gives_na_over_n_and_the_rules_figure():
    (message,) = warned("scalar", 0.8)
    assert f"NA / n = 0.80 scalar light is off by {scalar_deviation(0.8):.1%}" in message


def test_vectorial_light_never_warns_nor_does_a_gaussian():
    assert not warned("vectorial", 0.95)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        synthesize("gaussian1d", torch.ones(1, 1), Microscope(0.9, 0.5, 0.1, AIR), 21)


def test_one_high_na_of_many_warns_and_sampled_pupils_too():
    scopes = [Microscope(0.3, 0.5, 0.3, AIR), Microscope(0.6, 0.5, 0.2, AIR)]
    with pytest.warns(ScalarWarning, match=r"0\.60"):
        synthesize("zernike1d", torch.zeros(2, 1), scopes, 111)
    with pytest.warns(ScalarWarning, match=r"0\.60"):
        synthesize_pupil(torch.zeros(1, 16, 16), scopes[1], 111)


def test_refuses_a_light_that_does_not_exist_or_does_not_apply():
    with pytest.raises(InputError, match="unknown light 'polarised'; choose one of scalar"):
        psf_model("zernike1d", light="polarised")
    with pytest.raises(InputError, match="has no pupil"):
        psf_model("gaussian1d", light="vectorial")

"""Gibson-Lanni and plain defocus against quadrature by rays, limits, signs, labels, refusals."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from benchmarks.psf_reference import (
    dense_profile,
    difference,
    hankel_profile,
    layered_waves,
    points,
    vertex_of_parabola,
)
from psf import InputError, Layers, Microscope, draw_labels, psf_model, synthesize_with_loss
from psf.gibson_lanni import layered_wavefront
from psf.microscope import Optics
from psf.model import from_config
from psf.pupil import pupil_of

# Differences of PSFs are given as a share of the peak of the one they are compared with.
FLOAT32 = 1e-5  # rounding, and the interpolation for varied optics: 3e-6 measured
FLOAT64 = 1e-9  # rounding of phases of up to 230 radians in both programs: 3e-11 measured
RULES = 1e-9  # of the dense rule against the adaptive one, which is asked for 1e-10
WAVES = 1e-10  # rounding in rays of 1000 waves; float64
CLOSED_FORM = 1e-12  # the same wavefront by another formula, relative
NANOMETRE = 1e-3  # um; the parabola through steps of 2 nm is 0.1 nm off
BEST_FOCUS_UM = 0.02  # the value compared with has two digits
QUARTIC = 1e-2  # the term after rho^4 at a radius of 0.05, relative
ALIKE, UNLIKE = 0.2, 0.5  # the exact wavefront is 3 % steeper at the rim; the wrong sign does more
DEGREES = 16  # the degree at which coefficients vanish in rounding is uncertain by so much
SAME = 1e-12  # the same numbers by the same method

OIL = 1.515
WATER = 1.33
AIR = 1.0
# (NA, index around the particle, layers, depth in um): dry, water and oil objectives, plain
# defocus and mismatch of each layer
CASES = {
    "dry, plain": (0.3, AIR, Layers(), 0.0),
    "dry, into water": (0.3, WATER, Layers(AIR), 40.0),
    "dry, wrong coverslip": (
        0.8,
        WATER,
        Layers(AIR, n_coverslip_design=1.5, coverslip_um_design=160.0, immersion_um_design=500.0),
        12.0,
    ),
    "water, plain": (1.2, WATER, Layers(n_coverslip=WATER), 0.0),
    "oil, into water": (1.2, WATER, Layers(OIL), 10.0),
    "oil, all layers wrong": (
        1.3,
        1.4,
        Layers(1.518, OIL, 1.52, 1.523, coverslip_um=174.0, coverslip_um_design=170.0),
        3.0,
    ),
    "oil, plain": (1.4, OIL, Layers(), 0.0),
}
Z_UM = (-20.0, -7.3, -1.0, 0.0, 0.6, 5.0, 20.0)


def scene(name, cutoff=0.44):
    """Microscope, layers and depth of a case; pixels as fine as the NA needs."""
    na, index, layers, depth_um = CASES[name]
    return Microscope(na, 0.5, cutoff * 0.5 / (2 * na), index), layers, depth_um


def waves_by_rays(microscope, layers, z_um, depth_um):
    """W(rho) by rays, with the default of every number that the layers do not give."""
    immersion = layers.n_immersion or microscope.refractive_index
    return lambda rho: layered_waves(
        rho,
        z_um,
        depth_um,
        microscope.na,
        microscope.wavelength_um,
        microscope.refractive_index,
        immersion,
        layers.n_immersion_design or immersion,
        layers.n_coverslip,
        layers.n_coverslip_design or layers.n_coverslip,
        layers.coverslip_um,
        layers.coverslip_um_design or layers.coverslip_um,
        layers.immersion_um_design,
    )


def psfs_by_rays(microscope, layers, depth_um, size, z_um=Z_UM):
    cutoff = microscope.cutoff_cycles_per_pixel
    waves = (waves_by_rays(microscope, layers, z, depth_um) for z in z_um)
    return np.stack([points(dense_profile(w, cutoff), size) for w in waves])


def column(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)[:, None]


def at_points(model, labels, microscope, size):
    """PSFs at the middle of each pixel, whose sum over an infinite grid would be 1."""
    psfs, lost = synthesize_with_loss(model, labels, microscope, size, False)
    return psfs * (1 - lost[:, None, None])


def our_waves(microscope, layers, z_um, depth_um, rho):
    z_um, depth_um = (torch.tensor([v], dtype=torch.float64) for v in (z_um, depth_um))
    return layered_wavefront(layers, Optics.of(microscope), z_um, depth_um, rho)[0]


# --- accuracy


def test_the_dense_rule_of_the_reference_agrees_with_adaptive_quadrature():
    microscope, layers, depth_um = scene("oil, plain")  # 35 waves, the steepest of all
    waves = waves_by_rays(microscope, layers, 20.0, depth_um)
    radii, cutoff = np.array([0.0, 3.5, 17.0, 34.0]), microscope.cutoff_cycles_per_pixel
    expected = hankel_profile(waves, cutoff)(radii)
    assert difference(dense_profile(waves, cutoff)(radii)[None], expected[None]) < RULES


@pytest.mark.parametrize("size", [40, 41])
@pytest.mark.parametrize("name", CASES)
def test_psfs_agree_with_quadrature_by_rays_from_minus_20_to_20_um(name, size):
    microscope, layers, depth_um = scene(name)
    expected = psfs_by_rays(microscope, layers, depth_um, size)
    model = psf_model("gibson_lanni", layers=layers, depth_um=depth_um)
    for dtype, tolerance in ((torch.float32, FLOAT32), (torch.float64, FLOAT64)):
        labels = column(*Z_UM, dtype=dtype)
        assert difference(at_points(model, labels, microscope, size), expected) < tolerance
        varied = at_points(model, labels, [microscope] * len(Z_UM), size)
        assert difference(varied, expected) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [32, 33])
def test_psfs_of_varied_optics_agree_with_quadrature_one_by_one(size, dtype):
    layers = Layers(1.45, n_coverslip=1.5)
    scopes = [
        Microscope(0.3, 0.5, 0.4, WATER),
        Microscope(0.9, 0.7, 0.15, 1.0),
        Microscope(1.1, 0.45, 0.06, 1.36),
        Microscope(1.3, 0.6, 0.11, 1.4),
    ]
    labels = torch.tensor([[20.0, 0.0], [-4.0, 6.0], [-1.5, 9.0], [12.0, 3.0]], dtype=dtype)
    expected = [
        psfs_by_rays(scope, layers, float(depth), size, [float(z)])[0]
        for scope, (z, depth) in zip(scopes, labels, strict=True)
    ]
    model = psf_model("gibson_lanni", {"depth_um": (0.0, 10.0)}, layers=layers)
    found = at_points(model, labels, scopes, size)
    tolerance = FLOAT32 if dtype == torch.float32 else FLOAT64
    assert difference(found, np.stack(expected)) < tolerance


@pytest.mark.parametrize("name", CASES)
def test_wavefront_is_that_of_rays_through_the_layers(name):
    microscope, layers, depth_um = scene(name)
    rho = torch.linspace(0, 1, 33, dtype=torch.float64)
    for z_um in Z_UM:
        found = our_waves(microscope, layers, z_um, depth_um, rho)
        expected = waves_by_rays(microscope, layers, z_um, depth_um)(rho.numpy())
        assert found.numpy() == pytest.approx(expected, abs=WAVES)


@pytest.mark.parametrize("modes", [(), ((2, 2),)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance_um", [150.0, 2000.0, 20000.0])
def test_a_long_working_distance_costs_no_more_than_a_short_one(distance_um, dtype, modes):
    # in focus its thickness cancels from the wavefront, up to the rounding of 20 mm
    microscope = Microscope(0.8, 0.5, 0.15, WATER)
    degrees = []
    for immersion_um in (100.0, distance_um):
        layers = Layers(AIR, immersion_um_design=immersion_um)
        model = psf_model("gibson_lanni", layers=layers, depth_um=5.0, modes=modes)
        labels = torch.zeros(1, 1 + len(modes), dtype=torch.float64)
        pupil = pupil_of(model, labels, Optics.of(microscope), dtype)
        degrees.append(len(pupil.spectrum()))
    assert degrees[1] <= degrees[0] + DEGREES


# --- limits of the formula


@pytest.mark.parametrize(("na", "index"), [(0.3, AIR), (1.2, WATER), (1.4, OIL)])
@pytest.mark.parametrize("z_um", [-20.0, 0.3, 20.0])
def test_layers_of_equal_index_leave_exact_defocus_at_any_depth(na, index, z_um):
    microscope = Microscope(na, 0.5, 0.05, index)
    rho = torch.linspace(0, 1, 33, dtype=torch.float64)
    expected = z_um / 0.5 * (index - torch.sqrt(index**2 - (na * rho) ** 2))
    layers = Layers(n_coverslip=index)
    for depth_um in (0.0, 30.0):
        found = our_waves(microscope, layers, z_um, depth_um, rho)
        assert found.tolist() == pytest.approx(expected.tolist(), rel=CLOSED_FORM, abs=WAVES)


@pytest.mark.parametrize("name", ["dry, into water", "oil, into water", "oil, plain"])
def test_a_coverslip_as_designed_has_no_effect(name):
    microscope, layers, depth_um = scene(name)
    rho = torch.linspace(0, 1, 33, dtype=torch.float64)
    expected = our_waves(microscope, layers, 2.0, depth_um, rho)
    for index, thickness_um in ((1.46, 170.0), (1.515, 1000.0)):
        other = replace(layers, n_coverslip=index, coverslip_um=thickness_um)
        found = our_waves(microscope, other, 2.0, depth_um, rho)
        assert found.tolist() == pytest.approx(expected.tolist(), abs=WAVES)


def test_a_coverslip_of_the_immersions_index_may_have_any_thickness():
    # oil takes the place of the missing glass
    microscope, _, depth_um = scene("oil, into water")
    rho = torch.linspace(0, 1, 33, dtype=torch.float64)
    expected = our_waves(microscope, Layers(OIL), 2.0, depth_um, rho)
    thin = Layers(OIL, n_coverslip=OIL, coverslip_um=120.0, coverslip_um_design=170.0)
    found = our_waves(microscope, thin, 2.0, depth_um, rho)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=WAVES)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("deeper_um", [0.0, 25.0])
def test_z_0_is_paraxial_focus_at_any_depth_through_any_layers(name, deeper_um):
    # W = a rho^2 + b rho^4 + ..: its second derivative on the axis is 2 a
    microscope, layers, depth_um = scene(name)
    for z_um in (0.0, 1.0):
        rho = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        waves = our_waves(microscope, layers, z_um, depth_um + deeper_um, rho)
        (slope,) = torch.autograd.grad(waves.sum(), rho, create_graph=True)
        (twice,) = torch.autograd.grad(slope.sum(), rho)
        index = layers.n_immersion or microscope.refractive_index
        paraxial = z_um * microscope.na**2 / (2 * index * microscope.wavelength_um)
        assert float(twice) / 2 == pytest.approx(paraxial, abs=WAVES)


# --- signs


def best_focus_um(depth_um):
    """z of the brightest PSF, by the parabola through the three brightest in steps of 10 nm."""
    z_um = torch.linspace(-2, 2, 401, dtype=torch.float64)
    model = psf_model("gibson_lanni", layers=Layers(OIL), depth_um=depth_um)
    microscope = Microscope(1.2, 0.55, 0.1, WATER)
    bright = at_points(model, z_um[:, None], microscope, 1)[:, 0, 0]
    return vertex_of_parabola(bright, int(bright.argmax())) * 0.01 - 2


def test_a_deep_particle_in_water_under_oil_is_brightest_at_negative_z():
    assert best_focus_um(0.0) == pytest.approx(0, abs=NANOMETRE)
    assert best_focus_um(5.0) < -0.3
    assert best_focus_um(10.0) == pytest.approx(-0.95, abs=BEST_FOCUS_UM)


def test_a_particle_in_a_denser_medium_is_brightest_at_positive_z():
    microscope = Microscope(1.2, 0.55, 0.1, 1.47)  # glycerol under water
    model = psf_model("gibson_lanni", layers=Layers(WATER), depth_um=10.0)
    z_um = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
    assert float(z_um[at_points(model, z_um, microscope, 1).argmax()]) > 0.3


def test_spherical_aberration_of_a_deep_particle_in_water_under_oil_is_positive():
    # P(n) = n - s/2n - s^2/8n^3, s = (NA rho)^2: with the rho^2 term gone by refocusing, OPD has
    # the rho^4 term -NA^4/8 (d/n_s^3 - d n_i/n_s/n_i^3), negative for n_s < n_i, and W = -OPD
    microscope, rho = Microscope(1.2, 0.55, 0.1, WATER), torch.tensor([0.05], dtype=torch.float64)
    found = float(our_waves(microscope, Layers(OIL), 0.0, 10.0, rho))
    quartic = 1.2**4 / 8 * (10 / WATER**3 - 10 / WATER / OIL**2) / 0.55
    assert quartic > 0
    assert found == pytest.approx(quartic * 0.05**4, rel=QUARTIC)


def test_positive_z_is_positive_focus():
    microscope, one = Microscope(), torch.ones(1, dtype=torch.float64)
    assert float(our_waves(microscope, Layers(), 2.0, 0.0, one)) > 0
    lens = psf_model("gibson_lanni", modes=((2, 0), (2, 2)))
    labels = torch.tensor([[microscope.um_per_wave, 0.0, 0.2]], dtype=torch.float64)
    same = torch.tensor([[0.0, 1 / (2 * math.sqrt(3)), 0.2]], dtype=torch.float64)
    opposite = same * torch.tensor([1.0, -1.0, 1.0])
    found, like, unlike = (
        synthesize_with_loss(lens, values, microscope, 41)[0] for values in (labels, same, opposite)
    )
    assert difference(found, like) < ALIKE
    assert difference(found, unlike) > UNLIKE  # astigmatism distinguishes the signs


# --- the dark ring in focus does not depend on the immersion


def first_dark_ring_um(layers, depth_um):
    """First minimum of ours on a grid of 2 nm, by a parabola, and of the quadrature's."""
    step_um, size = 0.002, 401
    microscope = Microscope(0.95, 0.55, step_um, WATER)
    model = psf_model("gibson_lanni", layers=layers, depth_um=depth_um)
    row = at_points(model, column(0.0), microscope, size)[0, size // 2, size // 2 :]
    place = int((row.diff() > 0).double().argmax())
    waves = waves_by_rays(microscope, layers, 0.0, depth_um)
    profile = dense_profile(waves, microscope.cutoff_cycles_per_pixel)
    around_px = (place - 20, place + 20)
    by_quadrature = minimize_scalar(
        lambda r: profile(np.array([r]))[0], bounds=around_px, method="bounded"
    )
    return step_um * vertex_of_parabola(row, place), step_um * by_quadrature.x


@pytest.mark.parametrize("n_immersion", [AIR, OIL])
def test_first_dark_ring_in_focus_at_the_coverslip_does_not_know_the_immersion(n_immersion):
    ours, by_quadrature = first_dark_ring_um(Layers(n_immersion), 0.0)
    assert ours == pytest.approx(0.609835 * 0.55 / 0.95, abs=NANOMETRE)
    assert ours == pytest.approx(by_quadrature, abs=NANOMETRE)


def test_first_dark_ring_of_a_deep_particle_is_that_of_quadrature():
    ours, by_quadrature = first_dark_ring_um(Layers(OIL), 6.0)
    assert ours == pytest.approx(by_quadrature, abs=NANOMETRE)
    assert abs(ours - 0.609835 * 0.55 / 0.95) > 5 * NANOMETRE  # spherical aberration moves it


# --- depth


@pytest.mark.parametrize("modes", [(), ((2, 2), (3, -1))])
def test_depth_as_a_label_is_a_known_depth(modes):
    microscope, layers, _ = scene("oil, into water")
    z_um = {"z_um": (-2.0, 2.0)}
    drawn = psf_model("gibson_lanni", {**z_um, "depth_um": (0.0, 9.0)}, modes=modes, layers=layers)
    known = psf_model("gibson_lanni", z_um, modes=modes, layers=layers, depth_um=7.5)
    labels = draw_labels(known, 3, np.random.default_rng(0)).double()
    depths = torch.full_like(labels[:, :1], 7.5)
    both = torch.cat([labels[:, :1], depths, labels[:, 1:]], 1)
    found, expected = (
        synthesize_with_loss(model, values, microscope, 15)[0]
        for model, values in ((drawn, both), (known, labels))
    )
    assert difference(found, expected) < SAME


def test_labels_are_z_then_depth_then_modes_however_the_ranges_are_ordered():
    modes = ((2, 2), (4, 0))
    ranges = {"noll11": (-0.1, 0.1), "depth_um": (1.0, 9.0), "z_um": (-2.0, 3.0)}
    model = psf_model("gibson_lanni", ranges, modes=modes)
    assert model.label_names == ("z_um", "depth_um", "noll6", "noll11")
    assert model.label_ranges == ((-2.0, 3.0), (1.0, 9.0), (-0.25, 0.25), (-0.1, 0.1))
    assert psf_model("gibson_lanni").label_names == ("z_um",)
    assert psf_model("gibson_lanni", modes=modes).label_names == ("z_um", "noll6", "noll11")


def test_labels_are_drawn_in_their_own_ranges():
    ranges = {"depth_um": (11.0, 19.0), "z_um": (-2.0, 3.0)}
    model = psf_model("gibson_lanni", ranges, modes=((2, 2),))
    low, high = (
        v.tolist() for v in draw_labels(model, 500, np.random.default_rng(0)).aminmax(dim=0)
    )
    for lowest, highest, (start, end) in zip(low, high, model.label_ranges, strict=True):
        assert start <= lowest < start + 0.1 * (end - start)
        assert end - 0.1 * (end - start) < highest <= end


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"depth_um": 4.0, "layers": Layers(OIL, 1.518, 1.52, 1.523, WATER, 140.0, 172.0, 170.0)},
        {"ranges": {"depth_um": (0.0, 9.0)}, "layers": Layers(OIL), "modes": ((3, 1), (2, 2))},
        {"layers": Layers(OIL), "light": "vectorial"},
    ],
)
def test_a_model_read_back_from_its_config_gives_the_same_psfs(settings):
    model = psf_model("gibson_lanni", **settings)
    read = from_config(json.loads(json.dumps(model.as_config())))
    assert read == model
    labels = draw_labels(model, 2, np.random.default_rng(0))
    microscope = Microscope(0.9, 0.5, 0.1, WATER)
    found, expected = (synthesize_with_loss(m, labels, microscope, 15)[0] for m in (read, model))
    assert torch.equal(found, expected)


# --- refusals


def refusal(message, layers=None, z_um=0.0, na=1.2, **settings):
    model = psf_model("gibson_lanni", layers=layers, **settings)
    labels = torch.zeros(1, len(model.label_names))
    labels[0, 0] = z_um
    with pytest.raises(InputError, match=message):
        synthesize_with_loss(model, labels, Microscope(na, 0.5, 0.1, 1.33), 9)


@pytest.mark.parametrize(
    ("layers", "name"),
    [
        (Layers(1.1), "n_immersion"),
        (Layers(OIL, n_immersion_design=1.1), "n_immersion_design"),
        (Layers(n_coverslip=1.1), "n_coverslip"),
        (Layers(n_coverslip_design=1.1), "n_coverslip_design"),
    ],
)
def test_refuses_an_na_above_an_index_and_names_which(layers, name):
    refusal(rf"NA 1\.2 is not below {name} 1\.1", layers)


def test_refuses_an_na_above_the_samples_index_like_any_microscope():
    with pytest.raises(InputError, match=r"NA 1\.4 is not below the refractive index 1\.33"):
        Microscope(1.4, 0.5, 0.1, 1.33)


def test_refuses_a_sample_index_that_contradicts_the_microscope():
    refusal(r"n_sample 1\.4 is not the microscope's refractive index 1\.33", Layers(n_sample=1.4))
    model = psf_model("gibson_lanni", layers=Layers(n_sample=1.33))
    synthesize_with_loss(model, torch.zeros(1, 1), Microscope(), 9)  # the same index is fine


def test_refuses_a_particle_inside_the_coverslip():
    for depth_um in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match=f"depth_um is {depth_um}"):
            psf_model("gibson_lanni", depth_um=depth_um)
    with pytest.raises(InputError, match="depth_um range starts at -1"):
        psf_model("gibson_lanni", {"depth_um": (-1.0, 3.0)})
    model = psf_model("gibson_lanni", {"depth_um": (0.0, 3.0)})
    with pytest.raises(InputError, match=r"depth_um -0\.5 is negative"):
        synthesize_with_loss(model, torch.tensor([[0.0, -0.5]]), Microscope(), 9)


def test_refuses_what_lies_beyond_the_working_distance():
    # 150 um of oil leave 150 n_s / n_i = 131.7 um of water
    refusal("140 um deep is beyond the working distance", Layers(OIL), depth_um=140.0)
    refusal("beyond the working distance", Layers(OIL), depth_um=125.0, z_um=-10.0)
    deep = psf_model("gibson_lanni", layers=Layers(OIL), depth_um=131.0)
    synthesize_with_loss(deep, torch.zeros(1, 1), Microscope(), 9)  # just within


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0])
@pytest.mark.parametrize("name", Layers.__dataclass_fields__)
def test_refuses_layers_that_are_not_positive_and_finite_and_names_them(name, value):
    with pytest.raises(InputError, match=f"{name} is {value}"):
        Layers(**{name: value})


@pytest.mark.parametrize("settings", [{"layers": Layers()}, {"depth_um": 1.0}])
@pytest.mark.parametrize("name", ["zernike1d", "zernike2d", "astigmatic", "gaussian1d"])
def test_refuses_layers_and_depth_for_other_models(name, settings):
    with pytest.raises(InputError, match="'gibson_lanni' only"):
        psf_model(name, **settings)


def test_refuses_a_depth_both_known_and_drawn():
    with pytest.raises(InputError, match="either known or drawn"):
        psf_model("gibson_lanni", {"depth_um": (0.0, 3.0)}, depth_um=1.0)


@pytest.mark.parametrize("label", [math.nan, math.inf])
def test_refuses_a_stage_position_that_is_not_finite(label):
    with pytest.raises(InputError, match="NaN or infinite"):
        synthesize_with_loss("gibson_lanni", torch.tensor([[label]]), Microscope(), 9)

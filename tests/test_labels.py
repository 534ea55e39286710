"""Labels of the PSF models: names, ranges, draws, and what a turned image does to them."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from psf import (
    MODEL_NAMES,
    InputError,
    Microscope,
    draw_labels,
    psf_model,
    synthesize_with_loss,
    turn_labels,
)
from psf.model import angle_radians, extreme_labels, from_config, um_per_label, wavefront
from psf.zernike import seidel_to_zernike, zernike

# share of the peak; the two PSFs differ by float32 rounding (about 1e-6), a wrong sign by 1e-1
SAME_PSF = 1e-5
UNLIKELY = 1e-3  # p-value below which a fixed-seed draw counts as not uniform

PAIRS = ((2, 0), (1, 1), (1, -1), (2, 2), (2, -2), (3, 1), (3, -1), (3, 3), (3, -3), (4, 0))
HIGHER_PAIRS = ((4, 2), (4, -2), (4, 4), (4, -4), (5, 5), (5, -5), (5, 1), (5, -1))
LONE_EVEN = ((2, 0), (2, 2), (4, -4))  # quarter turns need no partner of these
LONE_COMA = ((2, 0), (3, 1))


def model_of(name):
    return psf_model(name, modes=PAIRS) if name == "zernike" else psf_model(name)


TURNED = {
    **{name: model_of(name) for name in MODEL_NAMES},
    "zernike, higher": psf_model("zernike", modes=HIGHER_PAIRS),
    "zernike, lone even": psf_model("zernike", modes=LONE_EVEN),
    "zernike, lone coma": psf_model("zernike", modes=LONE_COMA),
}


@pytest.mark.parametrize(
    ("name", "names", "ranges", "unit"),
    [
        ("gaussian1d", ("fwhm",), ((0, 20),), "px"),
        ("gaussian2d", ("fwhm_x", "fwhm_y"), ((0, 20), (0, 20)), "px"),
        ("zernike1d", ("focus",), ((0, 4),), "waves"),
        ("zernike2d", ("focus", "ast_cos2", "ast_sin2"), ((0, 2), (-2, 2), (-2, 2)), "waves"),
        ("astigmatic", ("focus",), ((-3, 3),), "waves"),
    ],
)
def test_names_ranges_and_units_of_the_paper(name, names, ranges, unit):
    model = psf_model(name)
    assert (model.label_names, model.label_ranges, model.unit) == (names, ranges, unit)


def test_zernike_labels_are_named_by_noll_index_in_the_order_given():
    model = psf_model("zernike", modes=((3, 1), (2, 0), (2, -2)))
    assert model.label_names == ("noll8", "noll4", "noll5")
    assert model.label_ranges == ((-0.25, 0.25),) * 3


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_same_seed_same_labels(name):
    first, again, other = (
        draw_labels(model_of(name), 50, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_labels_stay_in_their_ranges_and_reach_both_ends(name):
    model = model_of(name)
    labels = draw_labels(model, 20_000, np.random.default_rng(5)).numpy()
    low, high = np.array(model.label_ranges).T
    assert (labels >= low).all()
    assert (labels <= high).all()
    close = 0.02 * (high - low)  # 20,000 draws leave no such gap, nor do the discs' rims
    assert (labels.min(0) < low + close).all()
    assert (labels.max(0) > high - close).all()


def drawn_quantities(model, labels):
    """The uniform quantities (N, P) behind the labels."""
    if model.name != "zernike2d":
        return labels.numpy()
    ast = torch.hypot(labels[:, 1], labels[:, 2])
    return torch.stack([labels[:, 0], ast], 1).numpy()


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_drawn_quantities_are_uniform(name):
    model = model_of(name)
    drawn = drawn_quantities(model, draw_labels(model, 5_000, np.random.default_rng(6)))
    for values, (low, high) in zip(drawn.T, model.ranges.values(), strict=True):
        assert kstest(values, "uniform", (low, high - low)).pvalue > UNLIKELY


def test_angles_of_zernike2d_are_uniform_over_half_a_turn():
    labels = draw_labels(psf_model("zernike2d"), 5_000, np.random.default_rng(7))
    assert kstest(angle_radians(labels).numpy(), "uniform", (0, math.pi)).pvalue > UNLIKELY


@pytest.mark.parametrize("degrees", [0, 30, 90, 135, 179])
def test_periodic_components_give_back_the_angle(degrees):
    angle = math.radians(degrees)
    labels = torch.tensor([[0.5, 1.5 * math.cos(2 * angle), 1.5 * math.sin(2 * angle)]])
    assert math.degrees(float(angle_radians(labels))) == pytest.approx(degrees, abs=1e-3)


@pytest.mark.parametrize("degrees", [0, 30, 90, 135, 179])
def test_zernike2d_wavefront_is_the_seidel_form(degrees):
    angle = math.radians(degrees)
    rng = np.random.default_rng(8)
    rho, theta = torch.from_numpy(rng.uniform([[0], [-3]], [[1], [3]], (2, 100)))
    values = [[0.7, 1.3 * math.cos(2 * angle), 1.3 * math.sin(2 * angle)]]
    labels = torch.tensor(values, dtype=torch.float64)
    expected = 0.7 * rho**2 + 1.3 * (rho * torch.cos(theta - angle)) ** 2
    found = wavefront(psf_model("zernike2d"), labels, rho, theta)[0]
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-12)
    seidel = seidel_to_zernike(*torch.tensor([0.7, 1.3, angle], dtype=torch.float64))
    modes = sum(c * zernike(*mode, rho, theta) for mode, c in seidel.items())
    assert found.numpy() == pytest.approx(modes.numpy(), abs=1e-12)


def test_ranges_are_settable_one_by_one():
    model = psf_model("zernike2d", ranges={"focus": (0.5, 1.0)})
    assert dict(model.ranges) == {"focus": (0.5, 1.0), "ast": (0.0, 2.0)}
    labels = draw_labels(model, 1_000, np.random.default_rng(9))
    assert float(labels[:, 0].min()) >= 0.5
    assert float(labels[:, 0].max()) <= 1.0
    assert psf_model("zernike2d").ranges["focus"] == (0.0, 2.0)  # the default is untouched


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "airy"}, "airy"),
        ({"name": "zernike1d", "ranges": {"ast": (0, 1)}}, "ast"),
        ({"name": "zernike1d", "ranges": {"focus": (2, 1)}}, "focus"),
        ({"name": "zernike1d", "ranges": {"focus": (1, 1)}}, "focus"),
        ({"name": "zernike1d", "ranges": {"focus": (0, math.nan)}}, "focus"),
        ({"name": "zernike1d", "ranges": {"focus": (0, math.inf)}}, "focus"),
        ({"name": "gaussian1d", "ranges": {"fwhm": (-1, 5)}}, "fwhm"),
        ({"name": "zernike2d", "ranges": {"ast": (-1, 1)}}, "ast"),
        ({"name": "zernike1d", "known_ast_waves": 1.0}, "astigmatic"),
        ({"name": "astigmatic", "known_ast_waves": math.nan}, "known_ast_waves"),
        ({"name": "zernike1d", "modes": ((2, 0),)}, "modes"),
        ({"name": "zernike"}, "modes"),
        ({"name": "zernike", "modes": ((2, 1),)}, "2, 1"),
        ({"name": "zernike", "modes": ((2, 0), (3, 1), (2, 0))}, "twice"),
    ],
)
def test_refuses_models_that_make_no_sense_and_says_what(arguments, message):
    with pytest.raises(InputError, match=message):
        psf_model(**arguments)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_config_survives_json(name):
    range_of = {q: (low, 0.5 * (low + high)) for q, (low, high) in model_of(name).ranges.items()}
    known = 0.75 if name == "astigmatic" else None
    model = psf_model(name, range_of, known, PAIRS if name == "zernike" else ())
    again = from_config(json.loads(json.dumps(model.as_config())))
    assert again == model
    assert again.label_names == model.label_names


@pytest.mark.parametrize(
    ("name", "corners"),
    [
        ("gaussian1d", {(0, ), (20, )}),
        ("gaussian2d", {(0, 0), (0, 20), (20, 0), (20, 20)}),
        ("astigmatic", {(-3, ), (3, )}),
        ("zernike2d", {(0, 0, 0), (0, 2, 0), (2, 0, 0), (2, 2, 0)}),
    ],
)  # fmt: skip
def test_extreme_labels_are_the_corners_of_the_ranges(name, corners):
    assert {tuple(row) for row in extreme_labels(psf_model(name)).tolist()} == corners


def turned_image(image, quarter_turns, mirror):
    image = torch.rot90(image, quarter_turns, (-2, -1))
    return image.flip(-1) if mirror else image


def allowed(key):
    return (0, 1, 2, 3) if TURNED[key].allows_quarter_turns else (0, 2)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("key", "turns"), [(key, k) for key in TURNED for k in allowed(key)])
def test_psf_of_turned_labels_is_the_turned_psf(key, turns, mirror):
    model = TURNED[key]
    labels = draw_labels(model, 4, np.random.default_rng(10))
    turned = turn_labels(model, labels, turns, mirror)
    for size in (20, 21):
        psfs, _ = synthesize_with_loss(model, labels, Microscope(), size)
        found, _ = synthesize_with_loss(model, turned, Microscope(), size)
        difference = (found - turned_image(psfs, turns, mirror)).abs().amax((1, 2))
        assert float((difference / psfs.amax((1, 2))).max()) < SAME_PSF


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_a_turn_is_no_identity_where_the_psf_has_a_direction(turns, mirror):
    # guards the test above: an image without direction would pass with any labels
    labels = draw_labels(TURNED["zernike"], 1, np.random.default_rng(10))
    psf, _ = synthesize_with_loss(TURNED["zernike"], labels, Microscope(), 21)
    difference = (turned_image(psf, turns, mirror) - psf).abs().max() / psf.max()
    assert (float(difference) > 0.05) == bool(turns or mirror)


@pytest.mark.parametrize("key", TURNED)
def test_turns_compose(key):
    model = TURNED[key]
    labels = draw_labels(model, 6, np.random.default_rng(11))
    half = turn_labels(model, labels, 2)
    assert torch.equal(turn_labels(model, half, 2), labels)
    mirrored = turn_labels(model, labels, 0, mirror=True)
    assert torch.equal(turn_labels(model, mirrored, 0, mirror=True), labels)
    if model.allows_quarter_turns:
        assert torch.equal(turn_labels(model, turn_labels(model, labels, 1), 1), half)


@pytest.mark.parametrize("key", ["astigmatic", "zernike, lone coma"])
@pytest.mark.parametrize("turns", [1, 3])
def test_refuses_quarter_turns_that_no_label_describes(key, turns):
    model = TURNED[key]
    with pytest.raises(InputError, match="90 degrees"):
        turn_labels(model, draw_labels(model, 2, np.random.default_rng(12)), turns)


# --- labels that are lengths


@pytest.mark.parametrize(
    ("model", "label"),
    [
        (psf_model("zernike1d"), [1.0]),
        (psf_model("zernike2d"), [1.0, 0.0, 0.0]),
        (psf_model("astigmatic", known_ast_waves=0.0), [1.0]),
        (psf_model("zernike", modes=((2, 2), (2, 0))), [0.0, 1.0]),
    ],
)
def test_one_unit_of_defocus_is_as_deep_as_um_per_label_says(model, label):
    """At low NA the wavefront of that depth, without piston, is the wavefront of the label."""
    microscope = Microscope(na=0.05, pixel_size_um=2.4)
    rho = torch.linspace(0, 1, 50, dtype=torch.float64)
    name = "noll4" if model.name == "zernike" else "focus"
    z_um = um_per_label(model, microscope)[name]
    labels = torch.tensor([label], dtype=torch.float64)
    found = wavefront(model, labels, rho, torch.zeros_like(rho))[0]
    n, na = microscope.refractive_index, microscope.na
    exact = z_um / microscope.wavelength_um * (n - (n**2 - (na * rho) ** 2).sqrt())
    # the next term of the square root is (na / n)^2 / 4 of the first one
    assert torch.allclose(found - found[0], exact, atol=2e-3)


def test_labels_that_are_no_length_have_no_um():
    microscope = Microscope()
    assert set(um_per_label(psf_model("zernike2d"), microscope)) == {"focus"}
    assert um_per_label(psf_model("zernike", modes=((3, 1), (4, 0))), microscope) == {}
    widths = um_per_label(psf_model("gaussian2d"), microscope)
    assert widths == {"fwhm_x": 0.278, "fwhm_y": 0.278}
    layered = psf_model("gibson_lanni", {"depth_um": (0.0, 5.0)}, modes=((2, 2),))
    assert um_per_label(layered, microscope) == {"z_um": 1.0, "depth_um": 1.0}

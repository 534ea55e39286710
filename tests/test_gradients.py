"""Derivatives with respect to every input number, by both methods, backward and forward."""

import warnings

import pytest
import torch
from torch.autograd import forward_ad, gradcheck

from psf import Layers, Microscope, psf_model, synthesize_with_loss
from psf.blur import transfer_functions
from psf.synthesis import synthesize_pupil

# Central differences in steps of 1e-6: rounding of 1e-13 leaves 1e-7, curvature less.
STEP, ABSOLUTE, RELATIVE = 1e-6, 1e-6, 1e-4
FELT = 1e-4  # a smaller derivative of a PSF of unit sum would test nothing
SAME = 1e-12  # forward against backward mode: the same products in another order
INTERPOLATION = 1e-5  # of varied optics in float32, share of the peak
SIZE = 4  # pixels: small, so that derivatives of every pixel are checked
STEPS, FOUND = 6, 1e-6  # of Gauss-Newton, and their relative error at the end

# PyTorch compiles its own derivatives for forward mode with a function that it deprecates
FORWARD = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")

ROUND, TURNED = ((4, 0),), ((2, 2), (3, -1), (4, 0))  # axisymmetric, and not
OPTICS = {"na": 1.1, "wavelength_um": 0.55, "pixel_size_um": 0.1, "refractive_index": 1.36}
LAYERS = {
    "n_immersion": 1.5,
    "n_immersion_design": 1.515,
    "n_coverslip": 1.53,
    "n_coverslip_design": 1.47,
    "immersion_um_design": 60.0,
    "coverslip_um": 22.0,
    "coverslip_um_design": 20.0,
}


def tensors(numbers):
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in numbers]


def layered(light="scalar", modes=ROUND, pixel_integration=True):
    """Function of all numbers of Gibson-Lanni and their values: z, depth, modes, optics, layers."""
    numbers = [0.4, 2.0, *(0.1, -0.07, 0.05)[: len(modes)], *OPTICS.values(), *LAYERS.values()]

    def psfs(*values):
        labels = torch.stack(values[: 2 + len(modes)])[None]
        optics, layers = values[2 + len(modes) :][:4], values[-len(LAYERS) :]
        model = psf_model(
            "gibson_lanni",
            {"depth_um": (0.0, 9.0)},
            modes=modes,
            layers=Layers(**dict(zip(LAYERS, layers, strict=True))),
            light=light,
        )
        return synthesize_with_loss(model, labels, Microscope(*optics), SIZE, pixel_integration)[0]

    return psfs, tensors(numbers)


def check(function, values, **more):
    assert gradcheck(function, values, eps=STEP, atol=ABSOLUTE, rtol=RELATIVE, **more)


# --- every number


@pytest.mark.parametrize("pixel_integration", [True, False])
@pytest.mark.parametrize("light", ["scalar", "vectorial"])
@pytest.mark.parametrize("modes", [ROUND, TURNED])
def test_derivatives_of_gibson_lanni_are_those_of_finite_differences(
    modes, light, pixel_integration
):
    check(*layered(light, modes, pixel_integration))


@pytest.mark.parametrize("modes", [ROUND, TURNED])
def test_every_number_of_gibson_lanni_is_felt(modes):
    psfs, values = layered("scalar", modes)
    names = ["z", "depth", *modes, *OPTICS, *LAYERS]
    jacobian = torch.autograd.functional.jacobian(psfs, tuple(values))
    weak = [n for n, j in zip(names, jacobian, strict=True) if float(j.abs().max()) < FELT]
    assert not weak


@pytest.mark.parametrize("light", ["scalar", "aplanatic", "vectorial"])
@pytest.mark.parametrize("modes", [((2, 0), (4, 0), (6, 0)), ((1, 1), (2, -2), (3, 1), (4, -4))])
def test_derivatives_by_zernike_coefficients_and_optics_are_those_of_finite_differences(
    modes, light
):
    model = psf_model("zernike", modes=modes, light=light)

    def psfs(coefficients, *optics):
        return synthesize_with_loss(model, coefficients, Microscope(*optics), SIZE)[0]

    coefficients = torch.tensor([[0.2, -0.15, 0.1, 0.07][: len(modes)]], dtype=torch.float64)
    check(psfs, [coefficients.requires_grad_(), *tensors(OPTICS.values())])


@pytest.mark.parametrize("name", ["zernike1d", "zernike2d", "astigmatic"])
def test_derivatives_of_the_papers_models_by_labels_and_optics_are_those_of_finite_differences(
    name,
):
    def psfs(labels, *optics):
        return synthesize_with_loss(name, labels, Microscope(*optics), SIZE)[0]

    labels = torch.tensor([[0.8, 0.4, -0.3], [-1.2, 0.2, 0.5]], dtype=torch.float64)
    labels = labels[:, : 3 if name == "zernike2d" else 1].clone().requires_grad_()
    check(psfs, [labels, *tensors(OPTICS.values())])


def test_derivatives_of_the_lost_light_are_those_of_finite_differences():
    def lost(*optics):
        labels = torch.full((1, 1), 0.7, dtype=torch.float64)
        return synthesize_with_loss("zernike1d", labels, Microscope(*optics), SIZE)[1]

    check(lost, tensors(OPTICS.values()))


# --- varied optics


@pytest.mark.parametrize("light", ["scalar", "vectorial"])
@pytest.mark.parametrize("modes", [ROUND, ((2, 2),)])
def test_derivatives_in_a_batch_of_varied_optics_are_those_of_finite_differences(modes, light):
    layers = Layers(1.515, n_coverslip=1.53)
    model = psf_model("gibson_lanni", modes=modes, layers=layers, depth_um=2.0, light=light)

    def psfs(labels, *numbers):
        scopes = [Microscope(*numbers[:4]), Microscope(*numbers[4:])]
        return synthesize_with_loss(model, labels, scopes, SIZE)[0]

    labels = torch.tensor([[0.4, 0.1], [-0.6, 0.05]], dtype=torch.float64, requires_grad=True)
    check(psfs, [labels, *tensors([*OPTICS.values(), 0.9, 0.6, 0.12, 1.33])])


@pytest.mark.parametrize("modes", [(), ((2, 2),)])
def test_a_psf_does_not_change_because_derivatives_are_asked_for(modes):
    # in float32, varied optics are interpolated unless derivatives are asked for
    model = psf_model("gibson_lanni", modes=modes)
    labels = torch.full((2, 1 + len(modes)), 0.3)
    numbers = [[0.9, 0.5, 0.1, 1.33], [0.7, 0.6, 0.14, 1.33]]
    bare = synthesize_with_loss(model, labels, [Microscope(*n) for n in numbers], 16)[0]
    tracked = synthesize_with_loss(model, labels, [Microscope(*tensors(n)) for n in numbers], 16)[0]
    assert tracked.requires_grad
    assert tracked.dtype == torch.float32
    assert float((tracked - bare).detach().abs().max()) < INTERPOLATION * float(bare.max())


# --- sampled pupils and transfer functions


@pytest.mark.parametrize("light", ["scalar", "vectorial"])
def test_derivatives_by_samples_of_a_pupil_are_those_of_finite_differences(light):
    line = torch.linspace(-1, 1, 16, dtype=torch.float64)
    y, x = torch.meshgrid(line, line, indexing="ij")
    waves = (0.3 * x**2 - 0.2 * x * y + 0.1 * y)[None].requires_grad_()
    amplitude = (1 - 0.3 * (x**2 + y**2))[None].requires_grad_()

    def psfs(waves, amplitude):
        with warnings.catch_warnings(action="ignore"):  # the grid is small, the NA high
            return synthesize_pupil(waves, Microscope(**OPTICS), SIZE, amplitude, light)

    check(psfs, [waves, amplitude], fast_mode=True)  # along one random direction of 512


def test_derivatives_of_transfer_functions_are_those_of_finite_differences():
    def functions(z_um, *optics):
        labels = z_um.reshape(1, 1)
        otf = transfer_functions("gibson_lanni", labels, Microscope(*optics), (5, 6))
        return torch.view_as_real(otf)

    check(functions, tensors([0.4, *OPTICS.values()]))


# --- forward mode


@FORWARD
@pytest.mark.parametrize("light", ["scalar", "vectorial"])
@pytest.mark.parametrize("modes", [ROUND, TURNED])
def test_forward_mode_gives_the_jacobian_of_backward_mode(modes, light):
    psfs, values = layered(light, modes)
    backward = torch.autograd.functional.jacobian(psfs, tuple(values))
    for i, expected in enumerate(backward):
        with forward_ad.dual_level():
            duals = [v.detach() for v in values]
            duals[i] = forward_ad.make_dual(duals[i], torch.ones_like(duals[i]))
            found = forward_ad.unpack_dual(psfs(*duals)).tangent
        assert float((found - expected).abs().max()) < SAME * max(1, float(expected.abs().max()))


# --- use


@pytest.mark.parametrize("modes", [(), ((2, 2),)])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_step_against_the_gradient_lowers_the_loss_and_nears_the_truth(place, modes):
    # z, depth or NA is wrong by a little, the others are known
    truth = [0.8, 3.0, 1.1]

    def psf(z_um, depth_um, na):
        model = psf_model(
            "gibson_lanni", {"depth_um": (0.0, 9.0)}, modes=modes, layers=Layers(1.515)
        )
        labels = torch.cat([torch.stack([z_um, depth_um]), torch.full((len(modes),), 0.1)])[None]
        microscope = Microscope(na, 0.55, 0.1, 1.33)
        return synthesize_with_loss(model, labels.double(), microscope, 21)[0]

    target = psf(*tensors(truth)).detach()
    guess = tensors(truth)
    guess[place] = (guess[place] * 0.95).detach().requires_grad_()
    loss = (psf(*guess) - target).square().sum()
    (slope,) = torch.autograd.grad(loss, guess[place])
    assert slope * (guess[place] - truth[place]) > 0
    step = 1e-2 * abs(truth[place] - guess[place].detach())
    guess[place] = (guess[place] - step * slope.sign()).detach()
    assert (psf(*guess) - target).square().sum() < loss


def test_gradients_find_the_stage_position_and_the_index_of_the_sample():
    def psf(z_um, index):
        model = psf_model("gibson_lanni", layers=Layers(1.515), depth_um=8.0)
        microscope = Microscope(1.1, 0.55, 0.1, index)
        return synthesize_with_loss(model, z_um.reshape(1, 1), microscope, 13)[0]

    truth, values = (0.3, 1.37), tensors([0.1, 1.36])
    target = psf(*tensors(truth)).detach()
    for _ in range(STEPS):  # of Gauss and Newton
        jacobian = torch.autograd.functional.jacobian(psf, tuple(values))
        columns = torch.stack([j.flatten() for j in jacobian], 1)
        error = (target - psf(*values)).detach().flatten()
        move = torch.linalg.lstsq(columns, error[:, None]).solution[:, 0]
        values = [(v + m).detach().requires_grad_() for v, m in zip(values, move, strict=True)]
    assert [v.item() for v in values] == pytest.approx(truth, rel=FOUND)

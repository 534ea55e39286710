"""Calls that must give the same on every device: one list for the posing devices and for a GPU.

Each case makes its inputs on the CPU from fixed numbers, computes on the device that it is given,
and returns one tensor. `tests/test_devices.py` and `tests/test_gpu.py` compare it with the CPU's.
"""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from skimage import data as skimage_data

from models.checkpoint import load_estimator
from models.data import Batch, Exposure, expose, normalise, turn
from models.loss import Scaler, estimation_loss, output_count
from models.mapping import PsfMap, predict_map
from models.networks import build, exact_float32
from models.trainer import Settings, Trainer, build_optimizer
from psf import Microscope, psf_model
from psf.blur import (
    blur_by_column,
    blur_valid,
    blur_varying,
    interpolation_weights,
    transfer_functions,
)
from psf.noise import (
    axial_illumination,
    camera_counts,
    fast_poisson_noise,
    global_illumination,
    quantise,
    rotate,
    to_photons,
)
from psf.synthesis import synthesize, synthesize_pupil, synthesize_with_loss
from restoration import with_map
from restoration.blur_map import blur_of_map, continue_to_borders
from restoration.richardson_lucy import richardson_lucy
from simulation.patches import Patches
from simulation.stream import PatchStream

CPU = torch.device("cpu")
LABELS = {
    "gaussian1d": [[2.0], [3.5]],
    "gaussian2d": [[2.0, 4.0], [3.0, 1.0]],
    "zernike1d": [[0.0], [1.0]],
    "zernike2d": [[1.0, 0.3, -0.2], [0.5, 0.0, 0.1]],
    "astigmatic": [[-1.0], [0.7]],
    "gibson_lanni": [[0.5], [-1.0]],
}
OPTICS = Microscope()
SIZE = 95  # px, holds 99 % of the light of all of them

# Largest difference between a GPU and the CPU, as a share of the largest value. The numbers in
# brackets come from inputs disturbed by 3e-7 and other algorithms for convolutions, on a CPU.
ROUNDED = 1e-5  # float32 sums of a few hundred terms, in another order (1e-6)
CONVOLVED = 1e-3  # of predictions: twenty layers (9e-6), and on a GPU Winograd's convolutions
STEPPED = 1e-2  # of gradients: batch statistics of six patches amplify rounding (5e-4)
SAMPLED = 1e-4  # of patches: places in a tile of 512 px are rounded in another way (3e-6)
ITERATED = 1e-3  # Richardson-Lucy with a few iterations (3e-6)
SEARCHED = 0.02  # a rule that compares sums may stop an iteration earlier or later (2e-3)
DRAWN = 0.03  # mean and deviation of 74,000 random numbers: five standard errors and more

CASES: dict[str, "Case"] = {}
Compute = Callable[[torch.device], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A call and the largest difference allowed between a GPU and the CPU."""

    compute: Compute
    tolerance: float
    stays: bool = True  # whether the result lies on the device; estimates come back to the CPU
    # A GPU draws other random numbers, so that only mean and standard deviation are compared.
    drawn: bool = False


def case(name: str, tolerance: float, stays: bool = True, drawn: bool = False) -> Callable:
    """Enter a function into the list."""

    def enter(compute: Compute) -> Compute:
        CASES[name] = Case(compute, tolerance, stays, drawn)
        return compute

    return enter


@cache
def picture() -> torch.Tensor:
    """Photons (96, 96) of a photograph."""
    return torch.from_numpy(skimage_data.camera()[100:196, 200:296].astype(np.float32))


@cache
def patches() -> torch.Tensor:
    """Patches (6, 128, 128) of a photograph."""
    image = torch.from_numpy(skimage_data.camera()[:160, :192].astype(np.float32))
    return image.unfold(0, 128, 32).unfold(1, 128, 32).flatten(0, 1)


# --- light: PSFs, blur, noise

for one in LABELS:

    def psfs_of_model(device: torch.device, name: str = one) -> torch.Tensor:
        return synthesize(name, torch.tensor(LABELS[name], device=device), OPTICS, SIZE)

    case(f"PSFs of {one}", ROUNDED)(psfs_of_model)

for kind in ("scalar", "aplanatic", "vectorial"):

    def psfs_of_light(device: torch.device, light: str = kind) -> torch.Tensor:
        labels = torch.tensor(LABELS["zernike2d"], device=device)
        return synthesize(psf_model("zernike2d", light=light), labels, OPTICS, SIZE)

    case(f"PSFs of {kind} light", ROUNDED)(psfs_of_light)


for one in ("zernike1d", "zernike2d"):

    def psfs_of_varied_optics(device: torch.device, name: str = one) -> torch.Tensor:
        labels = torch.tensor(LABELS[name], device=device)
        return synthesize(name, labels, [OPTICS, replace(OPTICS, na=0.4)], SIZE)

    case(f"PSFs of {one} of several microscopes", ROUNDED)(psfs_of_varied_optics)

    def psfs_of_labels_on_the_cpu(device: torch.device, name: str = one) -> torch.Tensor:
        labels = torch.tensor(LABELS[name])
        return synthesize_with_loss(name, labels, OPTICS, SIZE, device=device)[0]

    case(f"PSFs of {one} from labels on the CPU", ROUNDED)(psfs_of_labels_on_the_cpu)


@case("PSFs of sampled pupils", ROUNDED)
def psfs_of_samples(device: torch.device) -> torch.Tensor:
    waves = torch.linspace(0, 1, 32).expand(1, 32, 32).to(device)
    return synthesize_pupil(waves, OPTICS, SIZE)


@case("transfer functions", ROUNDED)
def otfs(device: torch.device) -> torch.Tensor:
    labels = torch.tensor(LABELS["zernike1d"], device=device)
    return transfer_functions("zernike1d", labels, OPTICS, (64, 72))


def narrow_psfs(device: torch.device) -> torch.Tensor:
    labels = torch.tensor(LABELS["gaussian1d"], device=device)
    return synthesize("gaussian1d", labels, OPTICS, 15)


@case("blur by one PSF", ROUNDED)
def blurred(device: torch.device) -> torch.Tensor:
    return blur_valid(picture().to(device).expand(2, -1, -1), narrow_psfs(device))


@case("blur by a PSF that varies", ROUNDED)
def blurred_varying(device: torch.device) -> torch.Tensor:
    values = torch.arange(96.0).expand(96, 96).to(device)
    weights = interpolation_weights(values, torch.tensor([0.0, 95.0], device=device))
    return blur_varying(picture().to(device), narrow_psfs(device), weights)


@case("blur by columns", ROUNDED)
def blurred_columns(device: torch.device) -> torch.Tensor:
    psfs = narrow_psfs(device)
    return blur_by_column(picture().to(device), lambda at: psfs[at % 2])


@case("illumination and rotation", ROUNDED)
def lit(device: torch.device) -> torch.Tensor:
    photons = to_photons(picture()[None].to(device), 50.0)
    return rotate(global_illumination(axial_illumination(photons, 0.3), 2.0), 30.0, 60)


@case("rounding to 8 bits", 1 / 255)  # one level, where a value lies between two of them
def rounded(device: torch.device) -> torch.Tensor:
    return quantise(picture()[None].to(device))


for draw in (camera_counts, fast_poisson_noise):

    def noise(device: torch.device, draw: Callable[..., torch.Tensor] = draw) -> torch.Tensor:
        photons = torch.full((8, 96, 96), 50.0, device=device)
        return draw(photons, torch.Generator(device).manual_seed(4))

    case(draw.__name__, DRAWN, drawn=True)(noise)


# --- networks: training, prediction, map


@case("turned and exposed patches", DRAWN, drawn=True)
def prepared(device: torch.device) -> torch.Tensor:
    rng = torch.Generator(device).manual_seed(5)
    flat = picture()[:32, :32].expand(256, -1, -1).to(device)
    labels = torch.tensor(LABELS["zernike2d"], device=device).repeat(128, 1)
    batch = Batch(flat, labels, flat[:, 0, 0] > 0, torch.ones(256, 4, device=device))
    batch = turn(batch, psf_model("zernike2d"), rng)
    exposed = normalise(expose(batch.patches, Exposure(), rng))
    return torch.cat([exposed.flatten(1), batch.labels, batch.cutoff[:, None]], 1)


@case("normalised patches", ROUNDED)
def normalised(device: torch.device) -> torch.Tensor:
    return normalise(patches().to(device))


def loss_of(network: torch.nn.Module, device: torch.device) -> torch.Tensor:
    """Loss on six patches, half of them without content."""
    targets = torch.linspace(0, 4, 6)[:, None].to(device)
    content = (torch.arange(6) % 2 == 0).to(device)
    outputs = network(normalise(patches().to(device)), torch.full((6,), 0.5, device=device))
    scaler = Scaler.from_ranges([[0.0, 4.0]])
    return estimation_loss(outputs.float(), scaler.scale(targets), content)


def new_network(name: str, device: torch.device) -> torch.nn.Module:
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        return build(name, output_count(1)).to(device).train()


for one in ("spectral_resnet", "resnet18"):

    def loss_and_gradient(device: torch.device, name: str = one) -> torch.Tensor:
        network = new_network(name, device)
        with exact_float32(device):
            loss = loss_of(network, device)
            loss.backward()
        squares = [p.grad.square().sum() for p in network.parameters()]
        return torch.stack([loss.detach(), torch.stack(squares).sum().sqrt()])

    case(f"loss and gradient of {one}", STEPPED)(loss_and_gradient)


@case("losses of training steps", STEPPED)
def losses(device: torch.device) -> torch.Tensor:
    network = new_network("spectral_resnet", device)
    optimizer = build_optimizer(network, 1e-4, 0.02)
    found = []
    with exact_float32(device):
        for _ in range(3):
            loss = loss_of(network, device)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            found.append(loss.detach())
    return torch.stack(found)


def validation(device: torch.device, data: Path) -> torch.Tensor:
    """Validation loss and R^2 by condition of a new network, on the CPU."""
    trainer = Trainer(Settings(data=data, batch_size=40, device=str(device), bf16=False), 0, 1)
    loss, scores = trainer.validate()
    return torch.tensor([loss, *(value for values in scores.values() for value in values)])


def simulated(device: torch.device, data: Path) -> Patches:
    """The first patches of a stream; few enough that a CPU simulates them in one part, too."""
    config = json.loads((data / "config.json").read_text("utf-8"))
    with closing(PatchStream(data, config, device, seed=3)) as stream:
        (only,) = stream.draw(0, 24)
        return only


for away in (False, True):

    def predicted(device: torch.device, on_cpu: bool = away) -> torch.Tensor:
        given = patches() if on_cpu else patches().to(device)
        found = load_estimator("zernike1d", device).predict(given, OPTICS)
        columns = (found.values, found.standard_deviations, found.half_widths_95)
        return torch.cat([*columns, found.content_probability[:, None]], 1)

    place = "the CPU" if away else "the device"
    case(f"prediction of patches on {place}", CONVOLVED, stays=False)(predicted)

    def mapped(device: torch.device, on_cpu: bool = away) -> torch.Tensor:
        image = torch.from_numpy(skimage_data.camera()[:160, :192].astype(np.float32))
        image = image / image.mean()  # so that brightness and values are about equal
        image = image if on_cpu else image.to(device)
        found = predict_map(load_estimator("zernike1d", device), image, OPTICS, 32)
        maps = (found.values, found.standard_deviations)
        return torch.cat([*maps, found.content[None], found.brightness[None]])

    case(f"map of an image on {place}", CONVOLVED, stays=False)(mapped)


# --- restoration


def sloped_map(device: torch.device) -> PsfMap:
    """FWHM from 1 to 4 px along x in an image of 96 x 96 px, without content in one corner."""
    width = torch.linspace(1, 4, 4, device=device).expand(1, 3, 4)
    places = torch.linspace(0, 95, 3, device=device), torch.linspace(0, 95, 4, device=device)
    content = torch.ones(3, 4, device=device)
    content[0, 0] = 0
    return PsfMap(psf_model("gaussian1d"), OPTICS, width, 0.1 + 0 * width, content, *places)


for count, acceleration in (("auto", "momentum"), (6, "biggs"), (6, None)):

    def restored(
        device: torch.device,
        iterations: int | str = count,
        acceleration: str | None = acceleration,
    ) -> torch.Tensor:
        blur = blur_of_map(sloped_map(device), (96, 96))
        background = torch.linspace(0, 2, 96).expand(96, 96)
        options = {"acceleration": acceleration, "background": background}
        return richardson_lucy(picture().to(device), blur, iterations, **options).image

    tolerance = SEARCHED if count == "auto" else ITERATED
    case(f"Richardson-Lucy, {count} iterations, {acceleration}", tolerance)(restored)


def restored_with_map(device: torch.device, refined: bool, map_device: torch.device | None = None):
    psf_map = sloped_map(map_device or device)
    image = picture().to(device)
    return with_map.restore_with_map(image, psf_map, 4, refined=refined)[0].image


@case("restoration with a map", ITERATED)
def restored_plainly(device: torch.device) -> torch.Tensor:
    return restored_with_map(device, refined=False)


@case("restoration with a scaled map", SEARCHED)
def restored_refined(device: torch.device) -> torch.Tensor:
    return restored_with_map(device, refined=True)


@case("restoration with a map from the CPU", SEARCHED)  # as read from a folder, or predicted
def restored_from_cpu(device: torch.device) -> torch.Tensor:
    return restored_with_map(device, refined=True, map_device=CPU)


@case("map continued to the borders", ROUNDED)
def continued(device: torch.device) -> torch.Tensor:
    values = torch.linspace(0, 2, 12).reshape(1, 3, 4).to(device)
    psf_map = replace(sloped_map(device), values=values)
    return continue_to_borders(psf_map, [1.0], 32.0, (128, 128)).values

"""Training of the network of the unrolled restoration: its loss, its steps and its validation."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from restoration.problems import CROP_PX, IMAGE_PX, Exercise, draw_exercises
from restoration.step_network import StepNetwork
from restoration.unrolled import Design, Problem, start, unrolled
from restoration.variant_blur import VariantBlur
from simulation.bank import Bank
from simulation.sources import Source, load_sources, split_sources

EARLIER = 0.2  # weight of the loss of each step but the last
SMALLEST_ERROR = 1e-4  # mean square, in that of the truth: bounds the gain that is rewarded
VALIDATION = 16  # batches, each of one light, PSF model and support
PARTS = ((10, 100), (100, 1000), (1000, 10_000))  # photons per pixel, for the table of gains


def sources_of(images: str, seed: int) -> dict[str, list[Source]]:
    """Source images by split."""
    sources, _ = load_sources(images, CROP_PX, seed)
    return split_sources(sources, seed)


def on_device(exercise: Exercise, device: torch.device) -> Exercise:
    """The exercise with all its tensors on a device."""
    if device.type == "cpu":
        return exercise
    problem, blur = exercise.problem, exercise.problem.blur
    tensors = (blur.eigen_psfs, blur.coefficients, blur.rows, blur.columns)
    moved = VariantBlur(*(tensor.to(device) for tensor in tensors), blur.shape)
    background, uncertainty = problem.settings.background, problem.settings.uncertainty
    settings = replace(
        problem.settings, background=background.to(device), uncertainty=uncertainty.to(device)
    )
    problem = Problem(problem.photons.to(device), moved, settings)
    return Exercise(problem, exercise.truth.to(device))


def log_errors(objects: torch.Tensor, exercises: Sequence[Exercise]) -> torch.Tensor:
    """Logarithm (N,) of the mean square error of objects (N, field) over that of the image."""
    part = exercises[0].problem.blur.image_part
    truth = torch.stack([one.truth for one in exercises])
    seen = torch.stack([one.problem.photons for one in exercises])
    power = SMALLEST_ERROR * truth.square().mean((1, 2))
    found = (objects[:, *part] - truth).square().mean((1, 2))
    before = (seen - truth).square().mean((1, 2))
    return ((found + power) / (before + power)).log()


def loss_of(network: StepNetwork, exercises: Sequence[Exercise], design: Design) -> torch.Tensor:
    """Mean logarithm of the error after the last step, and part of that after earlier ones."""
    problems = [one.problem for one in exercises]
    losses = [log_errors(found, exercises).mean() for found in unrolled(problems, network, design)]
    return losses[-1] + EARLIER * sum(losses[:-1])


def average_gradients(network: nn.Module, world: int) -> None:
    """Make the gradients of all processes their mean."""
    if world == 1:
        return
    flat = torch.cat([p.grad.flatten() for p in network.parameters()])
    torch.distributed.all_reduce(flat)
    flat /= world
    parts = flat.split([p.numel() for p in network.parameters()])
    for parameter, part in zip(network.parameters(), parts, strict=True):
        parameter.grad.copy_(part.view_as(parameter))


def validation_exercises(sources: list[Source], batch: int, seed: int) -> list[list[Exercise]]:
    """The exercises of the validation, the same in each run."""
    bank = Bank(sources, CROP_PX, IMAGE_PX)
    return [
        draw_exercises(bank, batch, np.random.default_rng([seed, number]))
        for number in range(VALIDATION)
    ]


@torch.no_grad()
def validate(
    network: StepNetwork, batches: Sequence[Sequence[Exercise]], design: Design
) -> tuple[float, dict[str, dict[str, float]]]:
    """Mean gain in dB, and gains of the start and of the network by photons per pixel."""
    rows = []
    for exercises in batches:
        problems = [one.problem for one in exercises]
        begun = log_errors(torch.stack([start(problem) for problem in problems]), exercises)
        *_, last = unrolled(problems, network, design)
        light = [float(problem.photons.mean()) for problem in problems]
        rows += zip(light, begun.tolist(), log_errors(last, exercises).tolist(), strict=True)
    light, begun, last = np.array(rows).T
    in_db = -10 / np.log(10)
    gains = {}
    for low, high in PARTS:
        part = (light >= low) & (light < high)
        if part.any():
            found = {"start": in_db * begun[part].mean(), "learned": in_db * last[part].mean()}
            gains[f"{low} to {high}"] = {k: round(float(v), 3) for k, v in found.items()}
    return float(in_db * last.mean()), gains

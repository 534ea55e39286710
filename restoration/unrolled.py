"""Unrolled restoration: Richardson-Lucy steps that a small network corrects.

After a few steps with total variation, each further step is one of Richardson-Lucy times
exp(correction). The correction comes from a network that has seen microscope objects in training,
as in RLN (Li et al., Nature Methods 19, 1427 (2022)). It sees the object, the factor of the
likelihood, the light, the noise, the width of the local PSF and the uncertainty of that PSF. All
steps share one network. Brightness stays positive, since each step multiplies. The light that the
result sends into the image is that of the image.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Literal

import torch
from torch.nn import functional

from common.progress import tell_progress
from psf.blur import interpolate_grid
from restoration.iteration import (
    SMALLEST_IMAGE,
    UNSEEN,
    Restored,
    Settings,
    deviance_per_pixel,
    local_light,
    steps,
)
from restoration.step_network import StepNetwork
from restoration.variant_blur import VariantBlur

Design = Literal["image", "ratio"]
# Steps of Richardson-Lucy with total variation before the network, binned and at full resolution
COARSE_STEPS, START_STEPS = 40, 6
STEPS = 6  # with the network
CHANNELS = 9  # images that the network sees
DIM = 0.05  # share of the mean brightness below which brightness counts as dark
LOG_LIGHT, LOG_LIGHT_RANGE = math.log(300), 3.0  # 10 to 10,000 photons per pixel become -1 to 1
SMALLEST_POWER = 1e-9  # sum of h^2 of a PSF, which rounding makes no smaller
LARGEST_LOG = 3.0  # largest logarithm of a step's factor
LARGEST_NOISE = 10.0  # standard deviations of photon noise at which a residual is cut off


@dataclass(frozen=True)
class Problem:
    """One image to restore."""

    photons: torch.Tensor  # (H, W)
    blur: VariantBlur
    settings: Settings

    @cached_property
    def seen(self) -> torch.Tensor:
        """Share (field) of each point's light that reaches usable pixels."""
        usable = self.settings.usable
        return self.blur.seen if usable is None else self.blur.seen_by(usable)

    def expected(self, objects: torch.Tensor) -> torch.Tensor:
        """Image (H, W) of an object (field), with the background."""
        settings = self.settings
        found = self.blur.forward(objects[None])[0] + settings.background
        return found.clamp(min=SMALLEST_IMAGE * settings.level)

    def factor(self, ratio: torch.Tensor) -> torch.Tensor:
        """Factor (field) of Richardson-Lucy for ratios (H, W) of the image to the expected one."""
        if self.settings.usable is not None:
            ratio = ratio * self.settings.usable
        unseen = (UNSEEN - self.seen).clamp(min=0)
        back = self.blur.adjoint(ratio[None])[0] + unseen
        return back.clamp(min=0) / (self.seen + unseen)

    def in_proportion(self, objects: torch.Tensor) -> torch.Tensor:
        """The object (field) times the number with which its image has the light of the image."""
        settings = self.settings
        light, found = self.photons - settings.background, self.blur.forward(objects[None])[0]
        if settings.usable is not None:
            light, found = light[settings.usable], found[settings.usable]
        total = light.sum() / found.sum().clamp(min=SMALLEST_IMAGE)
        return objects * total.clamp(min=0)


def start(problem: Problem) -> torch.Tensor:
    """Object (field) after the first steps, with total variation.

    Most steps are those of the binned image, which cost a fifth and bring wide PSFs as far.
    """
    blur, photons, settings = problem.blur, problem.photons, problem.settings
    coarse_blur = blur.binned()
    counts, coarse = binned(photons, settings)
    iteration = steps(counts[None], coarse_blur, coarse)
    objects, _ = next(islice(iteration, COARSE_STEPS, None))
    begun = refined(objects[0], coarse_blur, blur) / 4
    iteration = steps(photons[None], blur, settings, begun[None])
    objects, _ = next(islice(iteration, START_STEPS, None))
    return objects[0]


def binned(photons: torch.Tensor, settings: Settings) -> tuple[torch.Tensor, Settings]:
    """Photons (H // 2, W // 2), summed over 2 x 2 pixels, and settings for them."""

    def summed(image: torch.Tensor) -> torch.Tensor:
        return 4 * functional.avg_pool2d(image[None].to(photons), 2)[0]

    background, usable = settings.background, settings.usable
    changed = replace(
        settings,
        background=summed(background) if background.ndim else 4 * background,
        tv=settings.tv / 2,  # it follows 1 / sqrt(photons)
        mean=4 * settings.mean,
        level=4 * settings.level,
        usable=None if usable is None else summed(usable) == 4,
    )
    return summed(photons), changed


def refined(objects: torch.Tensor, coarse: VariantBlur, blur: VariantBlur) -> torch.Tensor:
    """An object (coarse field), interpolated to the field of the blur that was binned."""
    places, targets = [], []
    for axis in (0, 1):
        first = coarse.image_part[axis].start
        line = torch.arange(coarse.field_shape[axis], device=objects.device) - first
        places.append(2.0 * line + 0.5)
        line = torch.arange(blur.field_shape[axis], device=objects.device)
        targets.append(line - blur.image_part[axis].start)
    return interpolate_grid(objects, *places, *targets)


def psf_radius_px(blur: VariantBlur) -> torch.Tensor:
    """Radius (H, W) of a disc as concentrated as the PSF of each pixel, pi r^2 = 1 / sum h^2."""
    gram = torch.einsum("kyx,lyx->kl", blur.eigen_psfs, blur.eigen_psfs)
    power = torch.einsum("krc,kl,lrc->rc", blur.coefficients, gram, blur.coefficients)
    radius = (1 / (math.pi * power.clamp(min=SMALLEST_POWER))).sqrt()
    y, x = (torch.arange(edge, device=radius.device) for edge in blur.shape)
    return interpolate_grid(radius, blur.rows, blur.columns, y, x)


def known_images(problem: Problem, begun: torch.Tensor) -> torch.Tensor:
    """What stays the same in all steps, (6, H, W), for a start (field)."""
    settings, level = problem.settings, problem.settings.level
    inside = problem.blur.image_part
    light = local_light(problem.photons[None], problem.blur, settings)[0, *inside]
    object_light = (light - (settings.mean - level)).clamp(min=0) / level
    image = (problem.photons - settings.background).clamp(min=0) / level
    return torch.stack(
        [
            (begun[inside] / level + DIM).log(),
            (object_light + DIM).log(),
            (image + DIM).log(),
            (light.log() - LOG_LIGHT) / LOG_LIGHT_RANGE,
            psf_radius_px(problem.blur).log() - 1,
            torch.zeros_like(light) if settings.uncertainty is None else settings.uncertainty,
        ]
    )


def unrolled(
    problems: Sequence[Problem],
    network: StepNetwork,
    design: Design = "image",
) -> Iterator[torch.Tensor]:
    """Objects (N, field) after each corrected step; all problems have fields of one shape."""
    with torch.no_grad():
        objects = torch.stack([start(problem) for problem in problems])
        known = [known_images(*pair) for pair in zip(problems, objects, strict=True)]
        known = torch.stack(known)
        light = (LOG_LIGHT_RANGE * known[:, 3] + LOG_LIGHT).exp().sqrt()
        level = known.new_tensor([p.settings.level for p in problems])[:, None, None]
    step = image_step if design == "image" else ratio_step
    memory, before = None, objects
    for count, extrapolation in enumerate(network.extrapolation):
        tell_progress("restore", count, len(network.extrapolation))
        ahead = objects * (objects / before.clamp(min=1e-20)).clamp(0.1, 10.0) ** extrapolation
        before = objects
        objects, memory = step(problems, network, ahead, known, (light, level), memory)
        yield objects


def restore_unrolled(problem: Problem, network: StepNetwork, design: Design = "image") -> Restored:
    """Restoration of one image after all steps."""
    photons, settings = problem.photons, problem.settings
    with torch.no_grad():
        *_, objects = unrolled([problem], network, design)
        objects = problem.in_proportion(objects[0])
        expected = problem.expected(objects)
    deviance = deviance_per_pixel(photons, expected, settings.usable)
    image = objects[problem.blur.image_part].clone()
    return Restored(image, START_STEPS + STEPS, settings.tv, deviance, expected, prior="learned")


def image_step(problems, network, objects, known, scales, memory):
    """A step whose correction is an image of the object."""
    light, level = scales
    factors = []
    for problem, one in zip(problems, objects, strict=True):
        factors.append(problem.factor(problem.photons / problem.expected(one)))
    factor, inside = torch.stack(factors), problems[0].blur.image_part
    shown = [(objects[:, *inside] / level + DIM).log(), *changes(factor[:, *inside], light)]
    correction, memory = network(torch.cat([torch.stack(shown, 1), known], 1), memory)
    correction = correction[:, 0].float().clamp(-LARGEST_LOG, LARGEST_LOG).exp()
    return objects * factor * extended(correction, problems[0].blur), memory


def extended(images: torch.Tensor, blur: VariantBlur) -> torch.Tensor:
    """Factors (N, H, W) on the image, continued to the field (N, field) by 1."""
    (top, left), (height, width) = (part.start for part in blur.image_part), blur.field_shape
    margins = (left, width - left - images.shape[2], top, height - top - images.shape[1])
    return functional.pad(images, margins, value=1.0)


def ratio_step(problems, network, objects, known, scales, memory):
    """A step whose correction belongs to the logarithm of the ratio of image to expected image."""
    light, level = scales
    expected = torch.stack([p.expected(one) for p, one in zip(problems, objects, strict=True)])
    photons = torch.stack([p.photons for p in problems])
    shown = torch.stack([(expected / level + DIM).log(), *changes(photons / expected, light)], 1)
    correction, memory = network(torch.cat([shown, known], 1), memory)
    ratio = (shown[:, 1] + correction[:, 0].float()).clamp(-LARGEST_LOG, LARGEST_LOG).exp()
    factors = [p.factor(one) for p, one in zip(problems, ratio, strict=True)]
    return objects * torch.stack(factors), memory


def changes(factor: torch.Tensor, light: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithm of a factor, and its difference from 1 in units of photon noise, (N, H, W) each."""
    logarithm = factor.clamp(math.exp(-LARGEST_LOG), math.exp(LARGEST_LOG)).log()
    return logarithm, ((factor - 1) * light).clamp(-LARGEST_NOISE, LARGEST_NOISE) / 3

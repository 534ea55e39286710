"""Every restoration that the benchmarks on real images compare, and what their results depend on.

A new method is a new line of `METHODS`. A result is computed again if the code of its method has
changed, and only then: a change of ours leaves the results of the other programs as they are.
"""

import functools
import hashlib
import inspect
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.signal import fftconvolve

from common.files import code_fingerprint
from micrographs.neighbours import fill_outliers
from models.mapping import PsfMap
from restoration import rivals
from restoration.blur_map import blur_of_map
from restoration.peers import deepinv_richardson_lucy, is_installed
from restoration.variant_blur import VariantBlur
from restoration.with_map import restore_with_map

ROOT = Path(__file__).parents[1]
# Code that every method depends on: it turns a file into the light and the usable pixels.
READING = ("micrographs", "common/files.py")
# Code of the map and of the operator that is made of it.
MAPPING = ("psf", "models", "restoration/blur_map.py", "restoration/variant_blur.py")
DEEPINV_ITERATIONS = 20  # as in benchmarks/deconvolution.py and figure_deconvolution.py


@dataclass(frozen=True)
class View:
    """One blurred image, and what its file and the network tell of it."""

    light: torch.Tensor  # (H, W) counts above the camera's offset, not negative
    gain: float  # counts per photon
    usable: torch.Tensor  # (H, W) bool
    white_noise: bool  # False: the image was registered, denoised or compressed
    psf_map: PsfMap  # estimated from this image

    @cached_property
    def photons(self) -> torch.Tensor:
        """Light (H, W) in photons, with the median of neighbours in pixels that are not usable."""
        return fill_outliers(self.light, self.usable) / self.gain

    @cached_property
    def blur(self) -> VariantBlur:
        """Operator of the map as it was estimated."""
        return blur_of_map(self.psf_map, tuple(self.light.shape))


@dataclass(frozen=True)
class Estimate:
    """What a method finds."""

    objects: torch.Tensor  # (H, W), in the unit of the light
    expected: torch.Tensor  # (H, W), the objects blurred by the PSFs of the method
    facts: dict[str, Any] = field(default_factory=dict)  # settings that the method chose


@dataclass(frozen=True)
class Method:
    """A restoration, and the code that decides its result."""

    restore: Callable[..., Estimate]  # takes a View and the options
    code: tuple[str, ...]  # files and folders, from the root
    options: Mapping[str, Any] = field(default_factory=dict)
    uses_map: bool = True
    needs: str = ""  # optional package

    def __call__(self, view: View) -> Estimate:
        """The estimate, with the CPU seconds that it took among its facts."""
        started = time.process_time()
        found = self.restore(view, **self.options)
        found.facts["cpu_seconds"] = round(time.process_time() - started, 2)
        return found

    @property
    def key(self) -> dict[str, Any]:
        """What decides the result, apart from the image: plain values."""
        code = (*READING, *(MAPPING if self.uses_map else ()), *self.code)
        return {
            "code": _fingerprint(code),
            "function": hashlib.sha256(inspect.getsource(self.restore).encode()).hexdigest(),
            "options": dict(self.options),
            "package": version(self.needs) if self.needs else None,
        }


@functools.cache
def _fingerprint(code: tuple[str, ...]) -> str:
    return code_fingerprint(*(ROOT / name for name in code))


def unchanged(view: View) -> Estimate:
    """The input itself, as an image and as an object."""
    light = fill_outliers(view.light, view.usable)
    return Estimate(light, light)


def with_map(view: View, **options: Any) -> Estimate:
    """Our restoration, by default as `deconvolve.py` makes it; options of `restore_with_map`."""
    restored, blur = restore_with_map(
        view.light,
        view.psf_map,
        gain=view.gain,
        usable=None if view.usable.all() else view.usable,
        white_noise=view.white_noise,
        **options,
    )
    facts = {"iterations": restored.iterations, "tv": restored.tv, "note": restored.note}
    return Estimate(restored.image, blurred(restored.image, blur), facts)


def blind(view: View, function: str, **options: Any) -> Estimate:
    """Restoration by a blind function of `restoration.rivals`, with the PSF that it found."""
    objects, psf = getattr(rivals, function)(view.photons, **options)
    objects = objects * view.gain
    blur = VariantBlur.from_psf(psf.clamp(min=0), tuple(objects.shape))
    return Estimate(objects, blurred(objects, blur))


def scheme_2018(view: View) -> Estimate:
    """The scheme of 2018 with our map. Its forward model weights the image, not the object."""
    objects = rivals.weights_after_blur(view.photons, view.blur) * view.gain
    margin = view.blur.psf_size // 2
    padded = np.pad(objects.double().numpy(), margin, mode="edge")
    weights = view.blur.weights[:, *view.blur.image_part].double().numpy()
    psfs = view.blur.eigen_psfs.double().numpy()
    pairs = zip(weights, psfs, strict=True)
    expected = sum(w * fftconvolve(padded, psf, mode="valid") for w, psf in pairs)
    return Estimate(objects, torch.from_numpy(expected).to(objects))


def with_deepinv(view: View, iterations: int) -> Estimate:
    """Richardson-Lucy of deepinv with our map, on our eigen-PSFs."""
    psfs, weights = view.blur.eigen_psfs, view.blur.weights
    objects = deepinv_richardson_lucy(view.photons, psfs, weights, iterations) * view.gain
    return Estimate(objects, blurred(objects, view.blur))


def blurred(objects: torch.Tensor, blur: VariantBlur) -> torch.Tensor:
    """Image (H, W) of objects (H, W) that go on outside the image as at its border.

    It is computed from the objects as they are delivered. So it judges all that a method does to
    them after its last iteration, too.
    """
    (top, left), (height, width) = (part.start for part in blur.image_part), blur.field_shape
    margins = (left, width - left - blur.shape[1], top, height - top - blur.shape[0])
    field_of_objects = torch.nn.functional.pad(objects[None, None], margins, mode="replicate")[0]
    return blur.forward(field_of_objects.to(blur.eigen_psfs))[0]


INPUT, OURS = "blurred input", "ours"
RIVALS = ("restoration/rivals.py", "restoration/variant_blur.py")
# The learned prior that comes with the project decides the result as the code does.
PRIOR = sorted(
    str(path.relative_to(ROOT))
    for path in ROOT.glob("checkpoints/restoration/*")
    if path.suffix in (".safetensors", ".json")
)
METHODS: dict[str, Method] = {
    INPUT: Method(unchanged, (), uses_map=False),
    # without a learned prior, ours is that with total variation
    OURS: Method(with_map, ("restoration", *PRIOR), {} if PRIOR else {"prior": "tv"}),
    "blind Richardson-Lucy": Method(
        blind, RIVALS, {"function": "blind_richardson_lucy"}, uses_map=False
    ),
    "blind total variation": Method(
        blind, RIVALS, {"function": "blind_total_variation"}, uses_map=False
    ),
    "weights on the blurred image (2018)": Method(scheme_2018, RIVALS),
    "deepinv Richardson-Lucy": Method(
        with_deepinv,
        ("restoration/peers.py",),
        {"iterations": DEEPINV_ITERATIONS},
        needs="deepinv",
    ),
}
if PRIOR:
    METHODS |= {
        f"{OURS}, total variation": Method(with_map, ("restoration",), {"prior": "tv"}),
        f"{OURS}, learned": Method(with_map, ("restoration", *PRIOR), {"prior": "learned"}),
    }


def available_methods() -> dict[str, Method]:
    """The methods whose packages are installed; a note names those left out."""
    found = {}
    for name, method in METHODS.items():
        if method.needs and not is_installed(method.needs):
            print(f"note: {name} is left out; pip install {method.needs}")
        else:
            found[name] = method
    return found


def is_ours(name: str) -> bool:
    """Whether a method is one of this project, and no rival."""
    return name.startswith(OURS)


def rivals_of(names: list[str]) -> list[str]:
    """The methods that ours are compared with."""
    return [name for name in names if name != INPUT and not is_ours(name)]


def file_name(method: str) -> str:
    """Name of a method for files."""
    return re.sub(r"[^a-z0-9]+", "_", method.lower()).strip("_")

"""Simulated images of known truth, to measure restorations with."""

from dataclasses import dataclass

import numpy as np
import torch

from models.mapping import PsfMap
from psf.microscope import Microscope
from psf.model import PsfModel, psf_model
from restoration.real_objects import MICROGRAPHS, read_micrograph
from restoration.variant_blur import VariantBlur, psf_grid_from_map
from simulation.objects import OBJECTS
from simulation.sources import Source, read_plane

# PSF supports, px: each loses little light at the largest label below
SUPPORTS_PX = {"zernike1d": 127, "zernike2d": 95, "gaussian2d": 47}
# label ranges that a map spans, in the order of the model's labels: waves, or px of width
RANGES = {
    "zernike1d": ((0.0, 2.5),),
    "zernike2d": ((0.0, 1.5), (-0.7, 0.7), (-0.7, 0.7)),
    "gaussian2d": ((0.5, 9.0), (0.5, 9.0)),
}
GRID = 33  # PSFs along an edge of the true blur
DARK_LEVEL = 0.02  # added to objects of brightness 0 to 1, so that no place is without light
SHARP = 0.15  # share of the largest label below which a place counts as sharp
PROCEDURAL_SEED = {"test": 70_001, "validation": 70_002}  # far from those of training sets
SECOND_EXPOSURE = 500_000  # added to the seed of the noise
PHOTOGRAPHED_MICROGRAPH = "immunohistochemistry"  # the photograph that shows a microscope image


@dataclass(frozen=True)
class Case:
    """One object, one map, one exposure."""

    index: int
    name: str  # of a photograph, a micrograph or a kind of procedural objects
    model: str  # PSF model
    map_kind: str  # "tilted plane" or "random map"
    photons: float  # mean per pixel
    size: int  # px, edge of the image
    seed: int
    split: str = "test"  # or "validation"

    @property
    def key(self) -> str:
        """Name of its folder."""
        name = f"{self.index:03d}_{self.name}_{self.model}"
        return f"{self.split}_{name}_{self.photons:g}_{self.size}_{self.seed}"

    @property
    def objects(self) -> str:
        """Kind of its object: photograph, micrograph or procedural."""
        if self.name in OBJECTS:
            return "procedural"
        real = (*MICROGRAPHS, PHOTOGRAPHED_MICROGRAPH)
        return "micrograph" if self.name in real else "photograph"


@dataclass(frozen=True)
class Scene:
    """An image to restore, and the truth."""

    image: torch.Tensor  # (H, W) photons
    second: torch.Tensor  # (H, W) photons: another exposure of the same
    truth: torch.Tensor  # (H, W) photons
    labels: PsfMap  # true
    blur: VariantBlur  # true
    sharp: torch.Tensor  # (H, W) bool: places with a small PSF


def make_scene(case: Case) -> Scene:
    """Image, truth and true map of a case, with Poisson noise."""
    model = psf_model(case.model)
    values = smooth_labels(case, np.random.default_rng([case.seed, case.index]))
    places, shape = torch.linspace(0, case.size - 1, GRID), (case.size, case.size)
    size = SUPPORTS_PX[case.model]
    psfs = psf_grid_from_map(model, values, Microscope(), size)
    blur = VariantBlur.from_psfs(psfs, places, places, shape, 1e-3)
    objects = load_object(case, case.size + size - 1)
    objects = objects * case.photons / objects[blur.image_part].mean()
    clean = blur.forward(objects[None])[0].clamp(min=0)
    seeds = (start + 1000 * case.seed + case.index for start in (0, SECOND_EXPOSURE))
    exposures = [torch.poisson(clean, torch.Generator().manual_seed(seed)) for seed in seeds]
    ones = torch.ones(GRID, GRID)
    labels = PsfMap(model, Microscope(), values, torch.zeros_like(values), ones, places, places)
    truth, sharp = objects[blur.image_part], sharp_places(values, model, case)
    return Scene(*exposures, truth, labels, blur, sharp)


def smooth_labels(case: Case, rng: np.random.Generator) -> torch.Tensor:
    """Labels (P, GRID, GRID) of a smooth map: a plane along x, or low-order polynomials."""
    line = np.linspace(-1, 1, GRID)
    y, x = np.meshgrid(line, line, indexing="ij")
    channels = []
    for low, high in RANGES[case.model]:
        if case.map_kind == "tilted plane":
            field = x * rng.choice([-1, 1])
        else:
            a = rng.normal(size=5)
            field = a[0] * x + a[1] * y + a[2] * x * y + a[3] * (x**2) + a[4] * (y**2)
        field = (field - field.min()) / (field.max() - field.min())
        channels.append(low + (high - low) * field)
    return torch.from_numpy(np.stack(channels)).float()


def sharp_places(values: torch.Tensor, model: PsfModel, case: Case) -> torch.Tensor:
    """Pixels (H, W) bool whose labels (P, GRID, GRID) are small."""
    blurredness = values.abs().amax(0) / max(abs(v) for r in model.label_ranges for v in r)
    nearest = (torch.arange(case.size) * (GRID - 1) / (case.size - 1)).round().long()
    return (blurredness < SHARP)[nearest[:, None], nearest]


def largest_size(name: str) -> int | None:
    """Edge in px of the largest square that a real object fills; None for a procedural one."""
    return None if name in OBJECTS else min(_read_real(name).shape)


def load_object(case: Case, edge: int) -> torch.Tensor:
    """Sharp object (edge, edge), positive; a real one that is too small is mirrored outwards."""
    if case.name not in OBJECTS:
        plane = _read_real(case.name)
        top, left = (max(0, (length - edge) // 2) for length in plane.shape)
        plane = plane[top : top + edge, left : left + edge]
        missing = [edge - length for length in plane.shape]
        plane = np.pad(plane, [(m // 2, m - m // 2) for m in missing], mode="symmetric")
    else:
        rng = np.random.default_rng([PROCEDURAL_SEED[case.split], case.seed, case.index])
        plane = OBJECTS[case.name](rng, edge)
    return torch.from_numpy(plane.astype(np.float32)) + DARK_LEVEL


def _read_real(name: str) -> np.ndarray:
    if name in MICROGRAPHS:
        return read_micrograph(name)
    return np.asarray(read_plane(Source(name, "builtin")), np.float32)


def mean_psf(scene: Scene) -> torch.Tensor:
    """Mean (K, K) of the true PSFs."""
    mean = torch.einsum("krc,kyx->yx", scene.blur.coefficients, scene.blur.eigen_psfs)
    mean = mean.clamp(min=0)
    return mean / mean.sum()

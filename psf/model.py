"""PSF models by name: their parameters with units, how labels are drawn, what they mean.

Every model answers to the same verbs: `draw_labels`, `wavefront` (waves over the pupil; none for
the Gaussians) and `turn_labels` (what a flip or quarter turn of the image does to the labels).
Default ranges are those of Shajkofci & Liebling, IEEE TIP 29 (2020).

Wavefront W in waves; the pupil function is exp(2 pi i W). Positive focus is positive z, the
emitter farther from the objective than the focal plane: W = z/lambda (n - sqrt(n^2 - NA^2 rho^2)),
the phase of defocus up to piston and the sign of time. Angles run from +x (columns) to +y (rows).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch

from psf.errors import InputError
from psf.zernike import Mode, nm_to_noll, zernike

Range = tuple[float, float]


@dataclass(frozen=True)
class PsfModel:
    """A PSF model and the ranges its labels are drawn from.

    `ranges` names the drawn quantities. They are the labels themselves, except for `zernike2d`:
    there (focus, ast) are drawn with a uniform angle, and the labels are the periodic components
    (focus, ast cos 2 angle, ast sin 2 angle), since a raw angle jumps at 180 degrees.
    """

    name: str
    ranges: Mapping[str, Range]
    unit: str  # "px" or "waves", of every label
    known_ast_waves: float = 0.0  # cylindrical lens along x that `astigmatic` adds
    modes: tuple[Mode, ...] = ()  # of `zernike`

    def __post_init__(self) -> None:
        for quantity, (low, high) in self.ranges.items():
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise InputError(f"{quantity} range {low} to {high}: give two rising numbers.")
            if quantity.startswith(("fwhm", "ast")) and low < 0:
                raise InputError(f"{quantity} range starts at {low}; it cannot be negative.")

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the label columns."""
        if self.name == "zernike2d":
            return ("focus", "ast_cos2", "ast_sin2")
        return tuple(self.ranges)

    @property
    def label_ranges(self) -> tuple[Range, ...]:
        """Lowest and highest value of each label."""
        if self.name == "zernike2d":
            ast = self.ranges["ast"][1]
            return (self.ranges["focus"], (-ast, ast), (-ast, ast))
        return tuple(self.ranges.values())

    @property
    def is_gaussian(self) -> bool:
        """Whether the PSF is a Gaussian blur, not made from a pupil."""
        return self.name.startswith("gaussian")

    @property
    def is_axisymmetric(self) -> bool:
        """Whether the wavefront depends on the pupil radius only."""
        return self.name == "zernike1d" or (
            self.name == "zernike" and all(m == 0 for _, m in self.modes)
        )

    @property
    def allows_quarter_turns(self) -> bool:
        """Whether labels exist for the image turned by 90 degrees."""
        if self.name == "zernike":
            return all(m % 2 == 0 or (n, -m) in self.modes for n, m in self.modes)
        return self.name != "astigmatic"  # the lens keeps its axis

    def as_config(self) -> dict[str, Any]:
        """Plain values from which `from_config` rebuilds the model."""
        return {
            "name": self.name,
            "ranges": {k: list(v) for k, v in self.ranges.items()},
            "known_ast_waves": self.known_ast_waves,
            "modes": [list(mode) for mode in self.modes],
        }


def _zernike_names(modes: tuple[Mode, ...]) -> tuple[str, ...]:
    return tuple(f"noll{nm_to_noll(n, m)}" for n, m in modes)


_MODELS = {
    "gaussian1d": PsfModel("gaussian1d", {"fwhm": (0.0, 20.0)}, "px"),
    "gaussian2d": PsfModel("gaussian2d", {"fwhm_x": (0.0, 20.0), "fwhm_y": (0.0, 20.0)}, "px"),
    "zernike1d": PsfModel("zernike1d", {"focus": (0.0, 4.0)}, "waves"),
    "zernike2d": PsfModel("zernike2d", {"focus": (0.0, 2.0), "ast": (0.0, 2.0)}, "waves"),
    "astigmatic": PsfModel("astigmatic", {"focus": (-3.0, 3.0)}, "waves", known_ast_waves=1.0),
    "zernike": PsfModel("zernike", {}, "waves"),
}
MODEL_NAMES = tuple(_MODELS)
DEFAULT_ZERNIKE_RANGE = (-0.25, 0.25)  # waves rms, each mode


def psf_model(
    name: str,
    ranges: Mapping[str, Range] | None = None,
    known_ast_waves: float | None = None,
    modes: tuple[Mode, ...] = (),
) -> PsfModel:
    """Build a PSF model by name, with the paper's ranges unless others are given.

    Parameters
    ----------
    name : one of MODEL_NAMES
    ranges : mapping from quantity to (low, high), px or waves; those not named keep the default
    known_ast_waves : strength of the cylindrical lens of `astigmatic`
    modes : (n, m) of the modes of `zernike`; see `noll_to_nm` and `ansi_to_nm`

    Raises
    ------
    InputError
        For an unknown name or quantity, an empty range, or modes that do not fit the model.
    """
    if name not in _MODELS:
        raise InputError(f"unknown PSF model '{name}'; choose one of {', '.join(_MODELS)}.")
    if bool(modes) != (name == "zernike"):
        raise InputError(
            "give modes (--modes-noll 4 5 6) for the PSF model 'zernike', and for no other."
        )
    if len(set(modes)) < len(modes):
        raise InputError(f"modes {', '.join(map(str, modes))}: one of them is given twice.")
    model = replace(_MODELS[name], modes=tuple(modes))
    if modes:
        model = replace(model, ranges={k: DEFAULT_ZERNIKE_RANGE for k in _zernike_names(modes)})
    for quantity in ranges or {}:
        if quantity not in model.ranges:
            raise InputError(
                f"{name} has no quantity '{quantity}'; it has {', '.join(model.ranges)}."
            )
    if known_ast_waves is not None:
        if name != "astigmatic":
            raise InputError("a known astigmatism belongs to the PSF model 'astigmatic' only.")
        if not math.isfinite(known_ast_waves):
            raise InputError(f"known_ast_waves is {known_ast_waves}; give a finite number.")
        model = replace(model, known_ast_waves=known_ast_waves)
    return replace(model, ranges={**model.ranges, **(ranges or {})})


def from_config(config: Mapping[str, Any]) -> PsfModel:
    """Rebuild a model from `PsfModel.as_config`."""
    known = config["known_ast_waves"] if config["name"] == "astigmatic" else None
    ranges = {k: (float(v[0]), float(v[1])) for k, v in config["ranges"].items()}
    modes = tuple((int(n), int(m)) for n, m in config["modes"])
    return psf_model(config["name"], ranges, known, modes)


def draw_labels(model: PsfModel, count: int, rng: np.random.Generator) -> torch.Tensor:
    """Labels (count, P), float32, each quantity uniform in its range."""
    low, high = np.array(list(model.ranges.values())).T
    labels = rng.uniform(low, high, (count, len(low)))
    if model.name == "zernike2d":
        angle = rng.uniform(0, math.pi, count)
        labels = _periodic_components(labels[:, 0], labels[:, 1], angle)
    return torch.from_numpy(labels.astype(np.float32))


def extreme_labels(model: PsfModel) -> torch.Tensor:
    """Labels (C, P) at the corners of the ranges, where the PSF is widest; ten modes at most."""
    limits = list(model.ranges.values())
    corners = np.array(list(product(*limits[:10])))
    if len(limits) > 10:
        corners = np.stack([np.array(limits)[:, 0], np.array(limits)[:, 1]])
    if model.name == "zernike2d":
        corners = _periodic_components(corners[:, 0], corners[:, 1], np.zeros(len(corners)))
    return torch.from_numpy(corners.astype(np.float32))


def wavefront(
    model: PsfModel, labels: torch.Tensor, rho: torch.Tensor, theta: torch.Tensor
) -> torch.Tensor:
    """Wavefront in waves, (N, *S), of labels (N, P) at pupil points rho, theta of shape S."""
    columns = [c.reshape(-1, *[1] * rho.ndim) for c in labels.unbind(1)]  # each (N, 1, ..)
    if model.name == "zernike":
        terms = (
            c * zernike(n, m, rho, theta) for c, (n, m) in zip(columns, model.modes, strict=True)
        )
        return sum(terms)
    if model.name == "zernike2d":
        focus, ast_cos2, ast_sin2 = columns
        ast = torch.sqrt(ast_cos2**2 + ast_sin2**2 + 1e-24)  # the square root's slope at 0
        twisted = ast_cos2 * torch.cos(2 * theta) + ast_sin2 * torch.sin(2 * theta)
        return rho**2 * (focus + (ast + twisted) / 2)
    if model.is_gaussian:
        raise InputError(f"{model.name} is not made from a pupil and has no wavefront.")
    return columns[0] * rho**2 + model.known_ast_waves * (rho * torch.cos(theta)) ** 2


def turn_labels(
    model: PsfModel, labels: torch.Tensor, quarter_turns: int = 0, mirror: bool = False
) -> torch.Tensor:
    """Labels (N, P) of images turned by `torch.rot90(image, quarter_turns)`, then mirrored in x.

    Raises
    ------
    InputError
        If the model has no labels for the turned image (see `allows_quarter_turns`).
    """
    if quarter_turns % 2 and not model.allows_quarter_turns:
        raise InputError(f"{model.name} has no labels for an image turned by 90 degrees.")
    if model.name == "gaussian2d":
        return labels.flip(1) if quarter_turns % 2 else labels
    if model.name == "zernike2d":
        sign_cos = -1 if quarter_turns % 2 else 1
        sign_sin = -sign_cos if mirror else sign_cos
        return labels * labels.new_tensor([1, sign_cos, sign_sin])
    if model.name == "zernike":
        return _turn_modes(model.modes, labels, quarter_turns, mirror)
    return labels


def angle_radians(labels: torch.Tensor) -> torch.Tensor:
    """Angle of `zernike2d` labels (N, 3) in [0, pi), radians from +x to +y."""
    return (torch.atan2(labels[:, 2], labels[:, 1]) / 2) % math.pi


def _periodic_components(focus: np.ndarray, ast: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return np.stack([focus, ast * np.cos(2 * angle), ast * np.sin(2 * angle)], axis=1)


def _turn_modes(
    modes: tuple[Mode, ...], labels: torch.Tensor, quarter_turns: int, mirror: bool
) -> torch.Tensor:
    """Coefficients of the rotated, then mirrored wavefront.

    W(theta - angle) mixes the cosine and sine mode of one |m|; theta -> pi - theta is the mirror.
    """
    angle = -quarter_turns * math.pi / 2  # rot90 turns from +y (down) to +x
    column = {mode: labels[:, i] for i, mode in enumerate(modes)}
    zero = torch.zeros_like(labels[:, 0])
    turned = []
    for n, m in modes:
        cos, sin = round(math.cos(m * angle)), round(math.sin(m * angle))
        value = cos * column[n, m] - sin * column.get((n, -m), zero)
        if mirror:
            value = value * ((-1) ** m if m >= 0 else -((-1) ** m))
        turned.append(value)
    return torch.stack(turned, 1)

"""PSF models by name: their parameters with units, the drawing of labels, and wavefronts.

The same functions serve every model: `draw_labels`, `wavefront` (waves over the pupil; the Gaussian
models have none) and `turn_labels` (labels of a flipped or turned image). The default ranges are
those of Shajkofci & Liebling, IEEE TIP 29 (2020); `gibson_lanni` has ranges in um.

The wavefront W is in waves and the pupil function is exp(2 pi i W). Positive focus is positive z:
the emitter is farther from the objective than the focal plane. Then
W = z/lambda (n - sqrt(n^2 - NA^2 rho^2)), the phase of defocus up to piston and the sign of time.
Angles run from +x (columns) to +y (rows).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch

from psf.defocus import exact_shape, um_per_exact_wave
from psf.errors import InputError
from psf.gibson_lanni import Layers, layered_wavefront
from psf.microscope import Microscope, Optics
from psf.zernike import Mode, nm_to_noll, zernike

Range = tuple[float, float]


@dataclass(frozen=True)
class PsfModel:
    """A PSF model and the ranges from which its labels are drawn.

    `ranges` names the drawn quantities. They are the labels, except for `zernike2d`. There focus
    and ast are drawn with a uniform angle, and the labels are focus, ast cos 2 angle and
    ast sin 2 angle, since an angle itself jumps at 180 degrees.
    """

    name: str
    ranges: Mapping[str, Range]
    unit: str  # "px", "waves" or "um", of every label (the modes of `gibson_lanni`: waves)
    known_ast_waves: float = 0.0  # cylindrical lens along x that `astigmatic` adds
    modes: tuple[Mode, ...] = ()  # of `zernike`, or added to `gibson_lanni`
    layers: Layers | None = None  # of `gibson_lanni`
    known_depth_um: float = 0.0  # of the particle of `gibson_lanni` if depth_um is not a label
    light: str = "scalar"  # one of LIGHTS
    defocus: str = "seidel"  # one of DEFOCUS: the shape of `focus` over the pupil

    def __post_init__(self) -> None:
        for quantity, (low, high) in self.ranges.items():
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise InputError(f"{quantity} range {low} to {high}: give two rising numbers.")
            if quantity.startswith(("fwhm", "ast", "depth")) and low < 0:
                raise InputError(f"{quantity} range starts at {low}; give at least 0.")

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
        """Whether the PSF is a Gaussian, which has no pupil."""
        return self.name.startswith("gaussian")

    @property
    def is_axisymmetric(self) -> bool:
        """Whether the wavefront depends on the pupil radius only."""
        layered_or_modes = self.name in ("gibson_lanni", "zernike")
        return self.name == "zernike1d" or (layered_or_modes and all(m == 0 for _, m in self.modes))

    @property
    def allows_quarter_turns(self) -> bool:
        """Whether labels exist for the image turned by 90 degrees."""
        if self.modes:
            return all(m % 2 == 0 or (n, -m) in self.modes for n, m in self.modes)
        return self.name != "astigmatic"  # the lens keeps its axis

    def as_config(self) -> dict[str, Any]:
        """Values for a JSON file, from which `from_config` rebuilds the model."""
        return {
            "name": self.name,
            "ranges": {k: list(v) for k, v in self.ranges.items()},
            "known_ast_waves": self.known_ast_waves,
            "modes": [list(mode) for mode in self.modes],
            "layers": asdict(self.layers) if self.layers else None,
            "known_depth_um": self.known_depth_um,
            "light": self.light,
            "defocus": self.defocus,
        }


def _zernike_names(modes: tuple[Mode, ...]) -> tuple[str, ...]:
    return tuple(f"noll{nm_to_noll(n, m)}" for n, m in modes)


_MODELS = {
    "gaussian1d": PsfModel("gaussian1d", {"fwhm": (0.0, 20.0)}, "px"),
    "gaussian2d": PsfModel("gaussian2d", {"fwhm_x": (0.0, 20.0), "fwhm_y": (0.0, 20.0)}, "px"),
    "zernike1d": PsfModel("zernike1d", {"focus": (0.0, 4.0)}, "waves"),
    "zernike2d": PsfModel("zernike2d", {"focus": (0.0, 2.0), "ast": (0.0, 2.0)}, "waves"),
    "astigmatic": PsfModel("astigmatic", {"focus": (-3.0, 3.0)}, "waves", known_ast_waves=1.0),
    "gibson_lanni": PsfModel("gibson_lanni", {"z_um": (0.0, 20.0)}, "um", layers=Layers()),
    "zernike": PsfModel("zernike", {}, "waves"),
}
MODEL_NAMES = tuple(_MODELS)
LIGHTS = ("scalar", "aplanatic", "vectorial")  # see `psf.pupil`
DEFOCUS = ("seidel", "exact")  # rho^2, or the path of steep rays; see `psf.defocus`
ZERNIKE_RANGE = (-0.25, 0.25)  # waves rms, default of each mode


def psf_model(
    name: str,
    ranges: Mapping[str, Range] | None = None,
    known_ast_waves: float | None = None,
    modes: tuple[Mode, ...] = (),
    layers: Layers | None = None,
    depth_um: float | None = None,
    light: str = "scalar",
    defocus: str = "seidel",
) -> PsfModel:
    """PSF model by name, with the paper's ranges unless others are given.

    Parameters
    ----------
    name : one of MODEL_NAMES
    ranges : mapping from quantity to (low, high), px, waves or um; other quantities keep their
        default range; a range of depth_um makes it a label of `gibson_lanni`
    known_ast_waves : strength of the cylindrical lens of `astigmatic`
    modes : (n, m) of the modes of `zernike`, or of modes that are added to `gibson_lanni`; see
        `noll_to_nm` and `ansi_to_nm`
    layers : refractive indices and thicknesses of `gibson_lanni`; by default all indices are the
        microscope's, which gives defocus without aberration
    depth_um : known depth of the particle of `gibson_lanni` below the coverslip
    light : "scalar", "aplanatic" (scalar, with the objective's apodisation) or "vectorial"
    defocus : "seidel" for focus rho^2, or "exact" for the path of steep rays

    Raises
    ------
    InputError
        For an unknown name or quantity, an empty range, or settings that do not fit the model.
    """
    if name not in _MODELS:
        raise InputError(f"unknown PSF model '{name}'; choose one of {', '.join(_MODELS)}.")
    _check_settings(name, known_ast_waves, modes, layers, depth_um, light)
    if defocus not in DEFOCUS or (defocus == "exact" and "focus" not in _MODELS[name].ranges):
        raise InputError(f"defocus '{defocus}' for {name}; 'exact' is for models with a focus.")
    if depth_um is not None and "depth_um" in (ranges or {}):
        raise InputError("depth_um is either known or drawn from a range; give one of them.")
    plain = _MODELS[name]
    return replace(
        plain,
        ranges=_complete_ranges(name, ranges or {}, modes),
        modes=tuple(modes),
        known_ast_waves=plain.known_ast_waves if known_ast_waves is None else known_ast_waves,
        layers=layers or plain.layers,
        known_depth_um=depth_um or 0.0,
        light=light,
        defocus=defocus,
    )


def _complete_ranges(
    name: str, asked: Mapping[str, Range], modes: tuple[Mode, ...]
) -> dict[str, Range]:
    """Ranges of all quantities of a model, in the order of the labels."""
    defaults = {**_MODELS[name].ranges, **dict.fromkeys(_zernike_names(modes), ZERNIKE_RANGE)}
    optional = ("depth_um",) if name == "gibson_lanni" else ()
    for quantity in asked:
        if quantity not in (*defaults, *optional):
            names = ", ".join((*defaults, *optional))
            raise InputError(f"{name} has no quantity '{quantity}'; choose from {names}.")
    # z_um and depth_um come before the modes
    first = {q: asked[q] for q in ("z_um", "depth_um") if q in asked}
    return {**_MODELS[name].ranges, **first, **defaults, **asked}


def _check_settings(
    name: str,
    known_ast_waves: float | None,
    modes: tuple[Mode, ...],
    layers: Layers | None,
    depth_um: float | None,
    light: str,
) -> None:
    if (name == "zernike" and not modes) or (modes and name not in ("zernike", "gibson_lanni")):
        raise InputError(
            f"{len(modes)} modes for the PSF model '{name}'; give modes (--modes-noll 4 5 6) with "
            "'zernike', and with 'gibson_lanni' if wanted, but with no other model."
        )
    if len(set(modes)) < len(modes):
        raise InputError(f"modes {', '.join(map(str, modes))}: one is given twice.")
    if known_ast_waves is not None:
        if name != "astigmatic":
            raise InputError("a known astigmatism belongs to the PSF model 'astigmatic' only.")
        if not math.isfinite(known_ast_waves):
            raise InputError(f"known_ast_waves is {known_ast_waves}; give a finite number.")
    if name != "gibson_lanni" and (layers is not None or depth_um is not None):
        raise InputError("layers and a depth belong to the PSF model 'gibson_lanni' only.")
    if depth_um is not None and not (math.isfinite(depth_um) and depth_um >= 0):
        raise InputError(f"depth_um is {depth_um}; give 0 or more um.")
    if light not in LIGHTS:
        raise InputError(f"unknown light '{light}'; choose one of {', '.join(LIGHTS)}.")
    if light != "scalar" and name.startswith("gaussian"):
        raise InputError(f"{name} has no pupil; leave its light 'scalar'.")


def from_config(config: Mapping[str, Any]) -> PsfModel:
    """PSF model from the values of `PsfModel.as_config`."""
    name = config["name"]
    layered = name == "gibson_lanni"
    ranges = {k: (float(v[0]), float(v[1])) for k, v in config["ranges"].items()}
    return psf_model(
        name,
        ranges,
        known_ast_waves=config["known_ast_waves"] if name == "astigmatic" else None,
        modes=tuple((int(n), int(m)) for n, m in config["modes"]),
        layers=Layers(**config["layers"]) if layered else None,
        depth_um=config["known_depth_um"] if layered and "depth_um" not in ranges else None,
        light=config.get("light", "scalar"),
        defocus=config.get("defocus", "seidel"),
    )


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
    model: PsfModel,
    labels: torch.Tensor,
    rho: torch.Tensor,
    theta: torch.Tensor,
    optics: Optics | None = None,
) -> torch.Tensor:
    """Wavefront in waves, (N, *S), of labels (N, P) at pupil points rho, theta of shape S.

    `gibson_lanni` needs the optics of one microscope or of N.
    """
    columns = [c.reshape(-1, *[1] * rho.ndim) for c in labels.unbind(1)]  # each (N, 1, ..)
    if model.is_gaussian:
        raise InputError(f"{model.name} has no pupil and no wavefront; choose another PSF model.")
    if model.modes or model.name == "gibson_lanni":
        coefficients = columns[len(columns) - len(model.modes) :]
        terms = [
            c * zernike(n, m, rho, theta)
            for c, (n, m) in zip(coefficients, model.modes, strict=True)
        ]
        if model.name == "gibson_lanni":
            terms.append(_layered(model, labels, rho, optics))
        return sum(terms)
    shape = rho**2
    if model.defocus == "exact":
        if optics is None:
            raise InputError("exact defocus depends on the optics; give optics.")
        shape = exact_shape(rho, optics.na / optics.refractive_index)
    if model.name == "zernike2d":
        focus, ast_cos2, ast_sin2 = columns
        ast = torch.sqrt(ast_cos2**2 + ast_sin2**2 + 1e-24)  # 1e-24: a finite slope at ast = 0
        twisted = ast_cos2 * torch.cos(2 * theta) + ast_sin2 * torch.sin(2 * theta)
        return focus * shape + rho**2 * (ast + twisted) / 2
    return columns[0] * shape + model.known_ast_waves * (rho * torch.cos(theta)) ** 2


def _layered(
    model: PsfModel, labels: torch.Tensor, rho: torch.Tensor, optics: Optics | None
) -> torch.Tensor:
    if optics is None:
        raise InputError("gibson_lanni needs the optics to compute a wavefront; give optics.")
    if "depth_um" in model.ranges:
        depth_um = labels[:, 1]
    else:
        depth_um = torch.full_like(labels[:, 0], model.known_depth_um)
    return layered_wavefront(model.layers, optics, labels[:, 0], depth_um, rho)


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
        focus, ast_cos2, ast_sin2 = labels.unbind(1)
        return torch.stack([focus, sign_cos * ast_cos2, sign_sin * ast_sin2], 1)
    if model.modes:
        first = labels.shape[1] - len(model.modes)
        turned = _turn_modes(model.modes, labels[:, first:], quarter_turns, mirror)
        return torch.cat([labels[:, :first], turned], 1)
    return labels


def angle_radians(labels: torch.Tensor) -> torch.Tensor:
    """Angle of `zernike2d` labels (N, 3) in [0, pi), radians from +x to +y."""
    return (torch.atan2(labels[:, 2], labels[:, 1]) / 2) % math.pi


def um_per_label(model: PsfModel, microscope: Microscope) -> dict[str, float]:
    """Length in um of one unit of each label that is a length; the other labels are left out.

    Gaussian widths are pixels. One wave of Seidel focus is 2 n lambda / NA^2 of defocus; a wave of
    exact defocus is shorter at high NA, see `um_per_exact_wave`. Noll 4 is
    defocus in waves rms, W = c sqrt(3) (2 rho^2 - 1), hence 2 sqrt(3) c waves of Seidel focus.
    Astigmatism and the other Zernike modes are no lengths.
    """
    if model.is_gaussian:
        return dict.fromkeys(model.label_names, microscope.pixel_size_um)
    um_per_wave = microscope.um_per_wave
    lengths = {"z_um": 1.0, "depth_um": 1.0}
    um_of_focus = um_per_exact_wave(microscope) if model.defocus == "exact" else um_per_wave
    lengths |= {"focus": um_of_focus, "noll4": 2 * math.sqrt(3) * um_per_wave}
    return {name: lengths[name] for name in model.label_names if name in lengths}


def _periodic_components(focus: np.ndarray, ast: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return np.stack([focus, ast * np.cos(2 * angle), ast * np.sin(2 * angle)], axis=1)


def _turn_modes(
    modes: tuple[Mode, ...], labels: torch.Tensor, quarter_turns: int, mirror: bool
) -> torch.Tensor:
    """Coefficients of the rotated, then mirrored wavefront.

    W(theta - angle) mixes the cosine and the sine mode of one |m|. A mirror in x replaces theta by
    pi - theta.
    """
    angle = -quarter_turns * math.pi / 2  # rot90 turns +y (down) into +x
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

"""Depth from an estimated PSF parameter, by the optics or by a calibration with a focal stack.

z > 0 means that the emitter lies farther from the objective than the focal plane; lengths are um
in object space. A signed parameter (`is_signed`) gives z, an unsigned one the distance |z|.

The calibration is a monotone curve of the parameter against z, which `models.depth_fit` fits to a
stack of known z.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from common.files import read_json, write_json
from models.depth_curve import monotone_curve
from models.mapping import PsfMap
from psf.errors import InputError
from psf.microscope import Microscope
from psf.model import PsfModel, um_per_label

KIND = "depth calibration"  # marks the JSON file, so that no other file is read as one
DEPTH_LABELS = ("focus", "z_um", "noll4")  # labels that defocus alone changes, so z follows them
# Depth follows n lambda / NA^2: 1 % of each number is at most 4 % of depth, and rounded metadata
# of the same microscope differ by less.
OPTICS_TOLERANCE = 0.01
# Part of the range of values over which the curve is extrapolated at each end. Noise takes values
# a little out of range in focus and at the ends of the stack.
EXTRAPOLATED_PART = 0.05


class Depth(NamedTuple):
    """Depth at the places of a map, um."""

    values: np.ndarray  # (R, C); NaN out of the range of a calibration
    standard_deviations: np.ndarray  # (R, C)
    name: str  # with the unit


def depth_of_map(psf_map: PsfMap, calibration: "DepthCalibration | None" = None) -> Depth | None:
    """Depth at each place of a map, or None if no label of the map gives depth.

    Without a calibration depth comes from the optics, by the first label in DEPTH_LABELS.

    Raises
    ------
    InputError
        If the map has no label of the calibration's name.
    """
    if calibration is not None:
        values, deviations = _label(psf_map, calibration.parameter)
        depth_um = calibration.depth_um(values)
        deviations_um = calibration.deviation_um(values, deviations)
        return Depth(depth_um, deviations_um, _depth_name(calibration.signed))
    label = next((name for name in DEPTH_LABELS if name in psf_map.names), None)
    if label is None:
        return None
    values, deviations = _label(psf_map, label)
    um = um_per_label(psf_map.model, psf_map.microscope)[label]
    signed = is_signed(psf_map.model, label)
    if not signed and _range(psf_map.model, label)[0] < 0:
        values = np.abs(values)  # both signs stand for the same PSF
    return Depth(depth_from_optics(values, um, signed), deviations * um, _depth_name(signed))


def depth_from_optics(values: ArrayLike, um_per_unit: float, signed: bool) -> np.ndarray:
    """Depth (...) in um of label values (...): z, or the distance from focus if not signed.

    `um_per_unit` is the depth of one unit of the label (`psf.model.um_per_label`). A distance is at
    least 0, even if noise makes the value negative.
    """
    depth = np.asarray(values, float) * um_per_unit
    return depth if signed else np.maximum(depth, 0)


def is_signed(model: PsfModel, parameter: str) -> bool:
    """Whether an image tells positive from negative values of a parameter.

    The range must reach both sides of zero. That alone is not enough: the wavefronts W(r) and
    -W(-r) give the same PSF. The second one has all even terms (defocus, astigmatism, spherical
    aberration) with the opposite sign, and the same odd terms (coma). So the sign of an even term
    shows only beside another even term whose sign is known.
    """
    low, high = _range(model, parameter)
    if not low < 0 < high:
        return False
    return not _is_even(model, parameter) or _has_known_even_term(model, parameter)


def _has_known_even_term(model: PsfModel, parameter: str) -> bool:
    """Whether the wavefront has an even term of known sign besides this parameter."""
    if model.known_ast_waves != 0 or _layers_aberrate(model):
        return True
    # Training turns images by 90 degrees, which flips the sign of astigmatism: the sign of a term
    # is known only if the term is round and its range lies on one side of zero.
    round_terms = {"focus", "z_um", *_mode_labels(model, lambda m: m == 0)} & set(model.label_names)
    ranges = [_range(model, name) for name in round_terms - {parameter}]
    return any(low >= 0 or high <= 0 for low, high in ranges)


def _layers_aberrate(model: PsfModel) -> bool:
    """Whether the layers of `gibson_lanni` add spherical aberration, whose sign is then known."""
    layers = model.layers
    if layers is None:
        return False
    pairs = (
        (layers.n_immersion, layers.n_immersion_design),
        (layers.n_coverslip, layers.n_coverslip_design),
        (layers.coverslip_um, layers.coverslip_um_design),
    )
    if any(design is not None and design != actual for actual, design in pairs):
        return True
    is_deep = model.known_depth_um > 0 or "depth_um" in model.label_names
    return is_deep and layers.n_immersion != layers.n_sample


def _is_even(model: PsfModel, parameter: str) -> bool:
    """Whether a parameter's term of the wavefront is the same at r and -r."""
    return parameter not in _mode_labels(model, lambda m: m % 2 == 1)


def _mode_labels(model: PsfModel, chosen: Callable[[int], bool]) -> set[str]:
    """Labels of the Zernike modes (n, m) whose m is chosen."""
    names = model.label_names[len(model.label_names) - len(model.modes) :]
    return {name for name, (_, m) in zip(names, model.modes, strict=True) if chosen(m)}


def _range(model: PsfModel, parameter: str) -> tuple[float, float]:
    return dict(zip(model.label_names, model.label_ranges, strict=True))[parameter]


def _label(psf_map: PsfMap, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard deviations (R, C) of one label."""
    if name not in psf_map.names:
        raise InputError(
            f"the depth calibration was made for {name}, but the map has "
            f"{', '.join(psf_map.names)}; make a calibration for one of them with "
            "calibrate_depth.py."
        )
    p = psf_map.names.index(name)
    return psf_map.values[p].numpy(), psf_map.standard_deviations[p].numpy()


def _depth_name(signed: bool) -> str:
    return "depth (um)" if signed else "distance from focus (um)"


@dataclass(frozen=True)
class DepthCalibration:
    """Curve from a PSF parameter to z in um; `models.depth_fit.fit_depth` makes one."""

    parameter: str  # label of the PSF model
    unit: str  # of the values
    microscope: Microscope
    checkpoint: str  # name of the network that estimated the values
    signed: bool  # True: z with its sign; False: distance from the focal plane
    focus_z_um: float  # z of the focal plane in the stack
    values: tuple[float, ...]  # (K,) knots, rising
    z_um: tuple[float, ...]  # (K,) from the focal plane; rising, or falling if signed
    usable_um: tuple[float, float]  # range of depth in which left-out planes are within limit_um
    limit_um: float  # largest error in the usable range
    rms_um: float  # error of the means of left-out planes, in the usable range
    patch_rms_um: float  # error of single patches of left-out planes, in the usable range

    def depth_um(self, values: ArrayLike) -> np.ndarray:
        """Depth of values (...), float64 (...); NaN where the calibration does not reach.

        The curve is extrapolated by 5 % of the range of values, with the slopes of its ends.
        """
        values = np.asarray(values, float)
        reach = EXTRAPOLATED_PART * (self.values[-1] - self.values[0])
        inside = (values >= self.values[0] - reach) & (values <= self.values[-1] + reach)
        depth = np.where(inside, self._curve(values), np.nan)
        return depth if self.signed else np.maximum(depth, 0)

    def deviation_um(self, values: ArrayLike, standard_deviations: ArrayLike) -> np.ndarray:
        """Standard deviation of `depth_um`, um, from that of the values.

        It is half the change of depth from one standard deviation below to one above. The error
        of the curve itself comes on top of it and is `rms_um`.
        """
        values, deviations = np.asarray(values, float), np.asarray(standard_deviations, float)
        change = self._curve(values + deviations) - self._curve(values - deviations)
        return np.where(np.isnan(self.depth_um(values)), np.nan, np.abs(change) / 2)

    def is_usable(self, depth_um: np.ndarray) -> np.ndarray:
        """Whether depths (...) lie in the usable range."""
        return (depth_um >= self.usable_um[0]) & (depth_um <= self.usable_um[1])

    def check_matches(
        self, microscope: Microscope, parameter: str, checkpoint: str | None = None
    ) -> None:
        """Refuse other optics, another parameter or another network than the calibration's own.

        Raises
        ------
        InputError
            If anything differs; it says what.
        """
        here, there = asdict(microscope), asdict(self.microscope)
        different = [
            f"{name} {there[name]:g}, here {value:g}"
            for name, value in here.items()
            if abs(value / there[name] - 1) > OPTICS_TOLERANCE
        ]
        if parameter != self.parameter:
            different.append(f"parameter {self.parameter}, here {parameter}")
        if checkpoint is not None and checkpoint != self.checkpoint:
            different.append(f"checkpoint {self.checkpoint}, here {checkpoint}")
        if different:
            raise InputError(
                f"the depth calibration was made for {'; '.join(different)}. Make one for these "
                "settings with calibrate_depth.py."
            )

    def to_json(self, path: Path, **facts: Any) -> None:
        """Write the calibration, and further facts for people to read."""
        write_json(path, {"kind": KIND, **asdict(self), **facts})

    @classmethod
    def from_json(cls, path: Path) -> "DepthCalibration":
        """Calibration in a file that `to_json` wrote.

        Raises
        ------
        InputError
            If the file is missing, damaged or of another kind.
        """
        content = read_json(path, f"folder of a {KIND}")
        if content.get("kind") != KIND:
            raise InputError(f"{path} is not a {KIND}; make one with calibrate_depth.py.")
        try:
            found = cls(**_fields(content))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"{path} is damaged ({type(error).__name__}: {error}); run calibrate_depth.py "
                "again."
            ) from error
        if not _is_monotone(found):
            raise InputError(
                f"{path} is damaged: its curve is not monotone; run calibrate_depth.py again."
            )
        return found

    def _curve(self, values: np.ndarray) -> np.ndarray:
        return monotone_curve(self.values, self.z_um)(values)


def _fields(content: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `DepthCalibration` from the content of its file."""
    numbers = ("focus_z_um", "limit_um", "rms_um", "patch_rms_um")
    return {
        **{name: str(content[name]) for name in ("parameter", "unit", "checkpoint")},
        **{name: float(content[name]) for name in numbers},
        **{name: tuple(map(float, content[name])) for name in ("values", "z_um")},
        "usable_um": (float(content["usable_um"][0]), float(content["usable_um"][1])),
        "microscope": Microscope(**content["microscope"]),
        "signed": bool(content["signed"]),
    }


def _is_monotone(calibration: DepthCalibration) -> bool:
    """Whether the knots rise, and z rises or falls with them."""
    values, z_um = calibration.values, calibration.z_um
    if not (len(values) == len(z_um) >= 2 and np.isfinite(z_um).all()):
        return False
    rises = np.diff(z_um) > 0
    return bool((np.diff(values) > 0).all() and rises.all() == rises.any())

"""Depth from an estimated PSF parameter: by the optics, or by a calibration with a focal stack.

z > 0 is an emitter farther from the objective than the focal plane; um in object space. A signed
label (`is_signed`) gives z, an unsigned one only the distance |z| from the focal plane.

The calibration is a monotone curve of the parameter against z, through the means of the planes of
a stack whose z is known. Its error is that of planes left out: each plane's depth comes from a
curve, and a focal plane, that the other planes alone have made.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from common.files import read_json, write_json
from psf.errors import InputError
from psf.microscope import Microscope
from psf.model import PsfModel

KIND = "depth calibration"
OPTICS_TOLERANCE = 0.01  # relative difference of optics that a calibration still serves
BEYOND = 0.05  # part of the range of values by which the curve is carried on at its ends


@dataclass(frozen=True)
class DepthCalibration:
    """Curve from a PSF parameter to z, um; see `fit_depth`."""

    parameter: str
    unit: str  # of the values
    microscope: Microscope
    checkpoint: str  # label of the network that estimated the values
    signed: bool  # z with its sign, or the distance from the focal plane
    focus_z_um: float  # z of the focal plane in the stack
    values: tuple[float, ...]  # (K,) knots, rising
    z_um: tuple[float, ...]  # (K,) from the focal plane; rising, or falling if signed
    usable_um: tuple[float, float]  # where planes left out are found within limit_um
    limit_um: float
    rms_um: float  # error of the means of planes left out, in the usable range
    patch_rms_um: float  # of single patches of planes left out, that are found in the range

    def depth_um(self, values: Any) -> np.ndarray:
        """Depth of values (...), float64 (...).

        Beyond the knots the curve goes on with the slope of its end, for 5 % of the range of
        values; farther out depth is NaN.
        """
        values = np.asarray(values, float)
        reach = BEYOND * (self.values[-1] - self.values[0])
        inside = (values >= self.values[0] - reach) & (values <= self.values[-1] + reach)
        depth = np.where(inside, self._curve(values), np.nan)
        return depth if self.signed else np.maximum(depth, 0)

    def deviation_um(self, values: Any, standard_deviations: Any) -> np.ndarray:
        """Standard deviation of `depth_um`, um: half of what one deviation either way changes.

        That of the values alone; what the curve itself adds is `rms_um`.
        """
        values, deviations = np.asarray(values, float), np.asarray(standard_deviations, float)
        change = self._curve(values + deviations) - self._curve(values - deviations)
        return np.where(np.isnan(self.depth_um(values)), np.nan, np.abs(change) / 2)

    def is_usable(self, depth_um: Any) -> np.ndarray:
        """Whether depths (...) lie in the usable range."""
        return (depth_um >= self.usable_um[0]) & (depth_um <= self.usable_um[1])

    def check(self, microscope: Microscope, parameter: str, checkpoint: str | None = None) -> None:
        """Refuse to serve other optics, another parameter or another network.

        Raises
        ------
        InputError
            That says what differs.
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
                f"the depth calibration was made for {'; '.join(different)}. Make one for this "
                "with calibrate_depth.py."
            )

    def to_json(self, path: Path, **facts: Any) -> None:
        """Write the calibration, and facts for people beside it."""
        write_json(path, {"kind": KIND, **asdict(self), **facts})

    @classmethod
    def from_json(cls, path: Path) -> "DepthCalibration":
        """Read what `to_json` wrote.

        Raises
        ------
        InputError
            If the file is missing, damaged or something else.
        """
        content = read_json(path, f"folder of a {KIND}")
        if content.get("kind") != KIND:
            raise InputError(f"{path} is no {KIND}; make one with calibrate_depth.py.")
        try:
            found = cls(
                parameter=str(content["parameter"]),
                unit=str(content["unit"]),
                microscope=Microscope(**content["microscope"]),
                checkpoint=str(content["checkpoint"]),
                signed=bool(content["signed"]),
                values=tuple(map(float, content["values"])),
                z_um=tuple(map(float, content["z_um"])),
                usable_um=(float(content["usable_um"][0]), float(content["usable_um"][1])),
                **{
                    name: float(content[name])
                    for name in ("focus_z_um", "limit_um", "rms_um", "patch_rms_um")
                },
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"{path} is damaged ({type(error).__name__}: {error}); calibrate again."
            ) from error
        rises = np.diff(found.values) > 0
        turns = np.diff(found.z_um) > 0
        is_whole = len(found.values) == len(found.z_um) >= 2 and rises.all()
        if not (is_whole and turns.all() == turns.any() and np.isfinite(found.z_um).all()):
            raise InputError(f"{path} is damaged: its curve is not monotone; calibrate again.")
        return found

    def _curve(self, values: np.ndarray) -> np.ndarray:
        return _through(self.values, self.z_um)(values)


def is_signed(model: PsfModel, parameter: str) -> bool:
    """Whether a label tells the two sides of the focal plane apart: its range reaches both."""
    low, high = dict(zip(model.label_names, model.label_ranges, strict=True))[parameter]
    return low < 0 < high


def depth_from_optics(values: Any, um_per_unit: float, signed: bool) -> np.ndarray:
    """Depth (...) of values (...) as the optics have it, um: z, or the distance if not signed.

    `um_per_unit` is `Estimator.um_per_unit`; 1 wave of focus is 2 n lambda / NA^2.
    """
    depth = np.asarray(values, float) * um_per_unit
    return depth if signed else np.maximum(depth, 0)


def _through(values: Any, x: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Monotone cubic through rising knots, straight on beyond them with the slope of the end."""
    values, x = np.asarray(values, float), np.asarray(x, float)
    inner = PchipInterpolator(values, x)
    first, last = np.diff(x)[[0, -1]] / np.diff(values)[[0, -1]]

    def curve(at: np.ndarray) -> np.ndarray:
        inside = inner(np.clip(at, values[0], values[-1]))
        below, above = np.minimum(at - values[0], 0), np.maximum(at - values[-1], 0)
        return inside + first * below + last * above

    return curve

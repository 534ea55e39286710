"""Numbers of metadata as um or seconds, or None if they are no fact: zero, NaN, absurd, no unit."""

import json
import math
from typing import Any

UM_PER_UNIT = {"um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0}
UM_PER_UNIT |= {"nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "Å": 1e-4, "pm": 1e-6}
UM_PER_UNIT |= {"inch": 25400.0, "in": 25400.0, "nanometer": 1e-3, "millimeter": 1e3}
UM_PER_UNIT |= {"meter": 1e6, "angstrom": 1e-4, "picometer": 1e-6, "centimeter": 1e4}
SECONDS_PER_UNIT = {"s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3}
SECONDS_PER_UNIT |= {"µs": 1e-6, "us": 1e-6, "min": 60.0, "h": 3600.0, "hour": 3600.0}
SECONDS_PER_UNIT |= {"millisecond": 1e-3, "microsecond": 1e-6, "minute": 60.0}
# Values outside these ranges were never set by the program that wrote them, or are in another
# unit. Pixels: from single-molecule cameras to macro lenses. Wavelengths: ultraviolet to infrared.
PLAUSIBLE = {
    "pixel_size_um": (1e-3, 1e3),
    "pixel_height_um": (1e-3, 1e3),
    "z_step_um": (1e-3, 1e3),
    "na": (0.01, 1.7),
    "wavelength_um": (0.15, 20.0),
    "refractive_index": (1.0, 2.0),
    "frame_interval_s": (1e-9, 1e9),
}

Found = dict[str, tuple[float, str]]  # name of a fact -> value, where it was found


def add(found: Found, name: str, value: float | None, where: str) -> None:
    """Keep a plausible value that was not found before."""
    low, high = PLAUSIBLE[name]
    if value is not None and low <= value <= high and name not in found:
        found[name] = (value, where)


def converted(name: str, value: Any, unit: str) -> float | None:
    """A number of metadata in the unit that the name of the fact ends in."""
    if name.endswith("_um"):
        return length_um(value, unit)
    return seconds(value, unit) if name.endswith("_s") else positive(value)


def length_um(length: Any, unit: str) -> float | None:
    """A length in um."""
    value, factor = positive(length), um_per_unit(unit)
    return None if value is None or factor is None else value * factor


def seconds(interval: Any, unit: str) -> float | None:
    """A time in seconds."""
    value, factor = positive(interval), SECONDS_PER_UNIT.get(unit)
    return None if value is None or factor is None else value * factor


def um_per_unit(unit: str) -> float | None:
    r"""Size of a unit in um; ImageJ writes the unit with escapes, as \u00B5m."""
    try:
        return UM_PER_UNIT.get(json.loads(f'"{unit}"') if "\\u" in unit else unit)
    except json.JSONDecodeError:
        return None


def positive(value: Any) -> float | None:
    """The value as a positive finite number, None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None

"""The optics of an image: read from its metadata, and overruled by flags.

Every number carries its source, the field of the metadata or the flag.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from xml.etree import ElementTree

import tifffile

from psf.errors import InputError
from psf.microscope import OPTICS_NAMES, Microscope

UM_PER_UNIT = {"um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0}
UM_PER_UNIT |= {"nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "Å": 1e-4, "pm": 1e-6}
UM_PER_UNIT |= {"inch": 25400.0, "in": 25400.0}
# With these units Fiji writes the resolution of a screen or a printer (72, 96, 300 dpi). A
# microscope's pixel, in um, lies in this range.
PLAUSIBLE_PIXEL_UM = (0.01, 20.0)
DOUBTFUL_UNITS = ("inch", "in", "cm")
# Indices at 589 nm of the immersions that OME-XML names; "Multi" and "Other" have none.
INDEX_OF_IMMERSION = {"air": 1.0, "water": 1.33, "waterdipping": 1.33, "glycerol": 1.47}
INDEX_OF_IMMERSION |= {"oil": 1.518}
SECONDS_PER_UNIT = {"s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3}
SECONDS_PER_UNIT |= {"µs": 1e-6, "us": 1e-6, "min": 60.0, "h": 3600.0, "hour": 3600.0}
SQUARE = 1.01  # largest ratio of the sides of a square pixel: metadata are rounded
SAME = 0.01  # relative difference between a flag and the metadata that needs no note
NOT_NEEDED = "not needed"  # source of a number on which the result does not depend


@dataclass(frozen=True)
class OpticsFacts:
    """Optics as the file states them; None where it states nothing."""

    pixel_size_um: float | None = None  # along x
    na: float | None = None  # numerical aperture of the objective
    wavelength_um: float | None = None  # emission wavelength of the chosen channel
    refractive_index: float | None = None  # of the immersion
    z_step_um: float | None = None  # between the planes of a stack
    sources: dict[str, str] = field(default_factory=dict)  # field name -> where it was found
    notes: tuple[str, ...] = ()  # what is unusual about them


@dataclass(frozen=True)
class Calibration:
    """Scale and names of all planes of a file, for a result that keeps them; None: not stated."""

    z_step_um: float | None = None
    frame_interval_s: float | None = None
    channel_names: tuple[str, ...] = ()  # one for each channel, or none at all
    kind: Literal["ome", "imagej", ""] = ""  # "": any other file


def calibration_of(tiff: tifffile.TiffFile, channels: int) -> Calibration:
    """Calibration of a TIFF with so many channels."""
    names = tuple(channel_names(tiff))
    names = names if len(names) == channels and all(names) else ()
    step = optics_facts(tiff, 0).z_step_um
    root = ome_root(tiff)
    if root is not None:
        pixels = next(_elements(root, "Pixels"), None)
        stated = {} if pixels is None else pixels.attrib
        unit = stated.get("TimeIncrementUnit", "s")
        interval = _seconds(stated.get("TimeIncrement"), unit)
        return Calibration(step, interval, names, "ome")
    described = _description(tiff)
    interval = _seconds(described.get("finterval"), str(described.get("tunit", "s")))
    return Calibration(step, interval, names, "imagej" if tiff.is_imagej else "")


def optics_facts(tiff: tifffile.TiffFile, channel: int) -> OpticsFacts:
    """Facts of a TIFF: from OME-XML, or else from ImageJ, tifffile or the resolution tags."""
    root = ome_root(tiff)
    found = _ome_facts(root, channel) if root is not None else {}
    if "pixel_size_um" not in found:
        found |= _tag_facts(tiff)
    height = found.pop("pixel_height_um", None)
    notes: tuple[str, ...] = ()
    if height and found.get("pixel_size_um"):
        width = found["pixel_size_um"][0]
        if max(height[0] / width, width / height[0]) > SQUARE:
            notes = (
                f"the pixels are not square ({width:.4g} um along x, {height[0]:.4g} um along y); "
                "the size along x is used",
            )
    values = {name: value for name, (value, _) in found.items()}
    return OpticsFacts(**values, sources={k: where for k, (_, where) in found.items()}, notes=notes)


def channel_names(tiff: tifffile.TiffFile) -> list[str]:
    """Names of the channels in OME-XML, or their labels in ImageJ; some may be missing."""
    root = ome_root(tiff)
    if root is not None:
        pixels = next(_elements(root, "Pixels"), None)
        return [] if pixels is None else [c.get("Name", "") for c in _elements(pixels, "Channel")]
    described = _description(tiff)
    labels = [str(label) for label in described.get("Labels") or []]
    channels = int(_positive(described.get("channels")) or 1)
    # ImageJ has a label for each plane, and the channel changes fastest. Labels that differ
    # between planes of one channel are no names of channels.
    is_periodic = all(label == labels[i % channels] for i, label in enumerate(labels))
    return labels[:channels] if len(labels) >= channels and is_periodic else []


def ome_root(tiff: tifffile.TiffFile) -> ElementTree.Element | None:
    """Root of the OME-XML, None without it or if it is broken."""
    if not tiff.is_ome:
        return None
    try:
        return ElementTree.fromstring(tiff.ome_metadata or "")
    except ElementTree.ParseError:
        return None


def significant_bits(tiff: tifffile.TiffFile) -> int | None:
    """Bits that the camera used, as OME-XML says."""
    root = ome_root(tiff)
    pixels = None if root is None else next(_elements(root, "Pixels"), None)
    bits = None if pixels is None else _positive(pixels.get("SignificantBits"))
    return None if bits is None else int(bits)


Found = dict[str, tuple[float, str]]  # field name -> value, where it was found


def _ome_facts(root: ElementTree.Element, channel: int) -> Found:
    image = next(_elements(root, "Image"), None)
    pixels = None if image is None else next(_elements(image, "Pixels"), None)
    if image is None or pixels is None:
        return {}
    found: Found = {}
    for name, axis in (("pixel_size_um", "X"), ("pixel_height_um", "Y"), ("z_step_um", "Z")):
        key = f"PhysicalSize{axis}"
        _add(found, name, _um(pixels.get(key), pixels.get(f"{key}Unit", "µm")), f"OME-XML {key}")
    objective, settings = _ome_objective(root, image)
    _add(found, "na", _positive(objective.get("LensNA")), "OME-XML LensNA")
    immersion = objective.get("Immersion", "")
    _add(
        found,
        "refractive_index",
        INDEX_OF_IMMERSION.get(immersion.lower()),
        f"OME-XML Immersion {immersion}",
    )
    index = _positive(settings.get("RefractiveIndex"))
    _add(found, "refractive_index", index, "OME-XML RefractiveIndex")
    channels = list(_elements(pixels, "Channel"))
    if channel < len(channels):
        emission = channels[channel].get("EmissionWavelength")
        unit = channels[channel].get("EmissionWavelengthUnit", "nm")
        _add(found, "wavelength_um", _um(emission, unit), "OME-XML EmissionWavelength")
    return found


def _ome_objective(
    root: ElementTree.Element, image: ElementTree.Element
) -> tuple[dict[str, str], dict[str, str]]:
    """Attributes of the image's objective, or of the only one, and of its settings."""
    objectives = list(_elements(root, "Objective"))
    settings = next(_elements(image, "ObjectiveSettings"), None)
    if settings is not None:
        named = [o for o in objectives if o.get("ID") == settings.get("ID")]
        return (dict(named[0].attrib) if named else {}), dict(settings.attrib)
    return (dict(objectives[0].attrib) if len(objectives) == 1 else {}), {}


def _elements(parent: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    """All descendants of this name in any version of the OME name space."""
    return (e for e in parent.iter() if e.tag == name or e.tag.endswith("}" + name))


def _tag_facts(tiff: tifffile.TiffFile) -> Found:
    """ImageJ's and tifffile's calibration, or a resolution per cm that a microscope could have."""
    page = tiff.pages.first
    pixels_per_unit = [_rational(page.tags.valueof(tag)) for tag in (282, 283)]  # along x, along y
    described = _description(tiff)
    unit = str(described.get("unit", ""))
    found: Found = {}
    if _factor(unit) is not None:
        kind = "ImageJ" if tiff.is_imagej else "TIFF"
        where = f"{kind} resolution and unit"
        z_unit = str(described.get("zunit") or unit)
        _add(found, "z_step_um", _um(described.get("spacing"), z_unit), f"{kind} spacing and unit")
        doubtful = unit in DOUBTFUL_UNITS
    elif page.tags.valueof(296) == tifffile.RESUNIT.CENTIMETER:
        unit, where, doubtful = "cm", "TIFF resolution per cm", True
    else:
        return {}
    for name, resolution in zip(("pixel_size_um", "pixel_height_um"), pixels_per_unit, strict=True):
        size = _um(1 / resolution, unit) if resolution else None
        low, high = PLAUSIBLE_PIXEL_UM
        if size is not None and (not doubtful or low <= size <= high):
            _add(found, name, size, where)
    return found


def _description(tiff: tifffile.TiffFile) -> dict[str, Any]:
    """ImageJ's or tifffile's own metadata; tifffile writes one dictionary per series."""
    described = tiff.imagej_metadata or tiff.shaped_metadata or {}
    if isinstance(described, (list, tuple)):
        described = described[0] if described else {}
    return dict(described)


def _add(found: Found, name: str, value: float | None, where: str) -> None:
    if value is not None:
        found[name] = (value, where)


def _rational(value: Any) -> float | None:
    if not isinstance(value, tuple) or len(value) != 2 or not value[1]:
        return None
    return _positive(value[0] / value[1])


def _um(length: Any, unit: str) -> float | None:
    value, factor = _positive(length), _factor(unit)
    return None if value is None or factor is None else value * factor


def _seconds(interval: Any, unit: str) -> float | None:
    value, factor = _positive(interval), SECONDS_PER_UNIT.get(unit)
    return None if value is None or factor is None else value * factor


def _factor(unit: str) -> float | None:
    r"""Size of a unit in um; ImageJ writes the unit with escapes, as \u00B5m."""
    try:
        return UM_PER_UNIT.get(json.loads(f'"{unit}"') if "\\u" in unit else unit)
    except json.JSONDecodeError:
        return None


def _positive(value: Any) -> float | None:
    """The value as a positive finite number, None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None


@dataclass(frozen=True)
class KnownOptics:
    """A microscope, and where each of its numbers came from."""

    microscope: Microscope
    sources: Mapping[str, str]  # by name: "--na", or the field of the metadata
    notes: tuple[str, ...]  # on numbers of the file and on flags that overrule them


def resolve_optics(
    flags: Mapping[str, float | None],
    facts: OpticsFacts,
    not_needed: Mapping[str, float] | None = None,
) -> KnownOptics:
    """Optics whose numbers come from their flags, or else from the file.

    Parameters
    ----------
    flags : values by name, None where not given
    not_needed : values of numbers on which the result does not depend, taken if nothing is known

    Raises
    ------
    InputError
        If neither a flag nor the file tells a number; it names the flags.
    """
    values: dict[str, float] = {}
    sources: dict[str, str] = {}
    notes: list[str] = []
    for name in OPTICS_NAMES:
        found = flag_or_file(name, flags.get(name), facts, notes)
        if found is not None:
            values[name], sources[name] = found
        elif not_needed is not None and name in not_needed:
            values[name], sources[name] = not_needed[name], NOT_NEEDED
    missing = [flag_of(name) for name in OPTICS_NAMES if name not in values]
    if missing:
        raise InputError(f"the file does not tell its optics; give {', '.join(missing)}.")
    return KnownOptics(Microscope(**values), sources, tuple(notes))


def flag_or_file(
    name: str, given: float | None, facts: OpticsFacts, notes: list[str]
) -> tuple[float, str] | None:
    """A number and its source: the flag, or else the file; None where neither tells it.

    A note is added on a number of the file, and on a flag that contradicts the file. The sign of
    a flag says a direction, which no file tells.
    """
    read, source = getattr(facts, name), facts.sources.get(name, "metadata")
    if given is not None:
        if read is not None and abs(abs(given) - read) > SAME * read:
            notes.append(f"{flag_of(name)} {given:g} overrules {read:g} of the file ({source})")
        return given, flag_of(name)
    if read is None:
        return None
    notes.append(f"{name} is {read:.4g}, from the file ({source})")
    return read, source


def flag_of(name: str) -> str:
    """The command-line flag of a number."""
    return f"--{name.replace('_', '-')}"

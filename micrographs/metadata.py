"""The optics of an image: read from its metadata, and overruled by flags.

Every number carries its source, the field of the metadata or the flag.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from micrographs.units import Found
from psf.errors import InputError
from psf.microscope import OPTICS_NAMES, Microscope

SQUARE = 1.01  # largest ratio of the sides of a square pixel: metadata are rounded
SAME = 0.01  # relative difference between a flag and the metadata that needs no note
AUTO_NA = "auto"  # flag of an NA that is estimated from the image
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


def facts_of(*places: Found) -> OpticsFacts:
    """The optics in several places of a file's metadata, of which the first is trusted most."""
    found: Found = {}
    for place in places:
        if "pixel_size_um" in found:  # a height belongs to the width of the same place
            place = {name: fact for name, fact in place.items() if name != "pixel_height_um"}
        found = place | found
    found.pop("frame_interval_s", None)
    height, width = (found.get(name) for name in ("pixel_height_um", "pixel_size_um"))
    found.pop("pixel_height_um", None)
    notes: tuple[str, ...] = ()
    if height and width and max(height[0] / width[0], width[0] / height[0]) > SQUARE:
        notes = (
            f"the pixels are not square ({width[0]:.4g} um along x, {height[0]:.4g} um along y); "
            "the size along x is used",
        )
    values = {name: value for name, (value, _) in found.items()}
    return OpticsFacts(**values, sources={k: where for k, (_, where) in found.items()}, notes=notes)


# From wavelength_um, pixel_size_um and refractive_index to the NA and its source in words.
NaEstimator = Callable[..., tuple[float, str]]


@dataclass(frozen=True)
class KnownOptics:
    """A microscope, and where each of its numbers came from."""

    microscope: Microscope
    sources: Mapping[str, str]  # by name: "--na", or the field of the metadata
    notes: tuple[str, ...]  # on numbers of the file and on flags that overrule them


def resolve_optics(
    flags: Mapping[str, float | Literal["auto"] | None],
    facts: OpticsFacts,
    not_needed: Mapping[str, float] | None = None,
    estimate_na: NaEstimator | None = None,
) -> KnownOptics:
    """Optics whose numbers come from their flags, or else from the file.

    Parameters
    ----------
    flags : values by name, None where not given; the NA may be "auto"
    not_needed : values of numbers on which the result does not depend, taken if nothing is known
    estimate_na : estimates the NA if its flag is "auto"

    Raises
    ------
    InputError
        If neither a flag nor the file tells a number; it names the flags.
    """
    automatic = flags.get("na") == AUTO_NA
    values: dict[str, float] = {}
    sources: dict[str, str] = {}
    notes: list[str] = []
    for name in OPTICS_NAMES:
        if name == "na" and automatic and estimate_na:
            continue
        given = None if flags.get(name) == AUTO_NA else flags.get(name)
        found = flag_or_file(name, given, facts, notes)
        if found is not None:
            values[name], sources[name] = found
        elif not_needed is not None and name in not_needed:
            values[name], sources[name] = not_needed[name], NOT_NEEDED
    if automatic and estimate_na and len(values) == len(OPTICS_NAMES) - 1:
        values["na"], sources["na"] = estimate_na(**values)
        notes.append(f"NA {sources['na']}")
        if facts.na is not None and abs(values["na"] - facts.na) > SAME * facts.na:
            place = facts.sources.get("na", "metadata")
            notes.append(f"--na auto overrules {facts.na:g} of the file ({place})")
    missing = [flag_of(name) for name in OPTICS_NAMES if name not in values]
    if automatic and estimate_na and len(missing) > 1:  # the NA itself was asked for
        missing.remove(flag_of("na"))
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

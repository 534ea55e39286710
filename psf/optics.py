"""The optics of an image: what its metadata say, what flags say, and who is right."""

from collections.abc import Mapping
from dataclasses import dataclass

from psf.errors import InputError
from psf.microscope import Microscope

NAMES = ("na", "wavelength_um", "pixel_size_um", "refractive_index")
SAME = 0.01  # relative; a larger difference between flag and metadata is told


@dataclass(frozen=True)
class KnownOptics:
    """A microscope, and where each of its numbers came from."""

    microscope: Microscope
    sources: Mapping[str, str]  # by name: "--na", or the field of the metadata
    notes: tuple[str, ...]  # of flags that overrule metadata


def resolve_optics(
    flags: Mapping[str, float | None],
    metadata: Mapping[str, float | None],
    metadata_sources: Mapping[str, str],
    not_needed: Mapping[str, float] | None = None,
) -> KnownOptics:
    """Take each number from its flag, else from the metadata.

    Parameters
    ----------
    flags, metadata : values by name, None where not given
    metadata_sources : by name, the field that a value of the metadata was read from
    not_needed : values for numbers that the result does not depend on, used if nothing is known

    Raises
    ------
    InputError
        If a number is known from neither, naming its flag.
    """
    values: dict[str, float] = {}
    sources: dict[str, str] = {}
    notes = []
    for name in NAMES:
        flag = f"--{name.replace('_', '-')}"
        given, read = flags.get(name), metadata.get(name)
        if given is not None:
            values[name], sources[name] = given, flag
            if read is not None and abs(given - read) > SAME * abs(read):
                notes.append(
                    f"{flag} {given:g} overrules {read:g} of the file "
                    f"({metadata_sources.get(name, 'metadata')})"
                )
        elif read is not None:
            values[name], sources[name] = read, metadata_sources.get(name, "metadata")
        elif not_needed is not None and name in not_needed:
            values[name], sources[name] = not_needed[name], "not needed"
    missing = [f"--{name.replace('_', '-')}" for name in NAMES if name not in values]
    if missing:
        raise InputError(f"the image does not tell its optics; give {', '.join(missing)}.")
    return KnownOptics(Microscope(**values), sources, tuple(notes))

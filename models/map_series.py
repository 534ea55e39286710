"""Maps of all channels, planes in z and time points of a file, on one grid of patches.

with open_channels(options, estimator) as channels:
    kept = kept_maps(options.out, channels, options)
    map_planes(channels, options, kept)

The planes in z of a time point are a focal stack: with --context stack their patches are seen
together. Time points are seen one by one, since the specimen moves between them. Optics, camera
and sampling belong to a channel. A plane that cannot be mapped gets a note instead of a map.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.addresses import stamp_of
from common.progress import tell_progress
from micrographs.cleaned import survey
from micrographs.metadata import AUTO_NA, SAME
from micrographs.micrograph import Micrograph, open_micrograph
from models.bands import finite
from models.camera_of_image import check_survey
from models.estimator import Estimator
from models.kept_maps import KeptMaps, Place, PlaneMap
from models.map_files import pixels_hash
from models.map_image import NO_CONTENT, map_stack, smoothed
from models.recording import (
    BAND_ROWS,
    MapOptions,
    Recording,
    check_negative,
    choose_resampling,
    file_cutoff,
    known_optics,
    open_recording,
    outside_training,
)
from models.resampling import Resampling
from psf.errors import InputError

TRIED = 5  # time points that are tried for the camera: the first one may be dark


@dataclass(frozen=True)
class Channels:
    """The opened channels of a file; the first recording is that of the chosen plane."""

    recordings: dict[int | None, Recording]  # by channel, in the order of the file
    failed: dict[int | None, str]  # why a channel has no recording
    places: tuple[Place, ...]  # of all planes, in the order T, Z, C

    @property
    def any(self) -> Recording:
        """A recording, for what all channels share: sizes, calibration, network, sampling."""
        return next(iter(self.recordings.values()))

    def __len__(self) -> int:
        return len(self.recordings) + len(self.failed)


# --- channels


@contextmanager
def open_channels(options: MapOptions, estimator: Estimator) -> Iterator[Channels]:
    """Open every channel of a file for a network, all with the same grid of patches.

    The camera of a channel is found in its plane --z, --t (default: the middle one of the first
    time point), or else in other time points.

    Raises
    ------
    InputError
        As `open_recording`, if no channel can be mapped, or if the options do not suit all.
    """
    with open_micrograph(options.image, options.channel, options.z, options.t, options.series) as m:
        places, chosen, sizes = tuple(m.places), m.channel, m.sizes
        names = list(dict.fromkeys(place["channel"] for place in places))
        planes = [m.select(channel=name) for name in names]
        check_wavelengths(options, planes)
        sampling = None if options.na == AUTO_NA else common_sampling(options, planes, estimator)
    z = sizes["Z"] // 2 if options.z is None else options.z
    options, first = replace(options, z=z), options.t or 0
    others = np.linspace(0, sizes["T"] - 1, min(TRIED, sizes["T"])).round().astype(int).tolist()
    times = list(dict.fromkeys((first, *others)))
    recordings: dict[int | None, Recording] = {}
    failed: dict[int | None, str] = {}
    with ExitStack() as stack:
        for name in sorted(names, key=lambda name: name != chosen):  # the chosen one first
            try:
                found = stack.enter_context(_open_channel(options, name, times, estimator))
            except InputError as error:
                if options.na == AUTO_NA or len(failed) + 1 == len(names):
                    raise
                failed[name] = str(error)
                continue
            if options.na == AUTO_NA:  # the channels share the objective
                options = replace(options, na=found.microscope.na)
                sampling = common_sampling(options, planes, estimator)
            recordings[name] = _resampled(found, sampling, options.stride)
        yield Channels({n: recordings[n] for n in names if n in recordings}, failed, places)


@contextmanager
def _open_channel(
    options: MapOptions, channel: int | None, times: Sequence[int], estimator: Estimator
) -> Iterator[Recording]:
    """The recording of a channel, at the first of several time points that can be used."""
    with ExitStack() as stack:
        errors = []
        for t in times:
            chosen = replace(options, channel=channel, t=t)
            opened = open_recording(options.image, chosen, estimator, options.z)
            try:
                found = stack.enter_context(opened)
                break
            except InputError as error:
                errors.append(error)
        else:
            raise errors[0]
        yield found


def check_wavelengths(options: MapOptions, planes: Sequence[Micrograph]) -> None:
    """Refuse one --wavelength-um for channels that the file says to have several."""
    told = [plane.facts.wavelength_um for plane in planes]
    known = [one for one in told if one is not None]
    if options.wavelength_um is None or not known or max(known) <= (1 + SAME) * min(known):
        return
    listed = ", ".join("unknown" if one is None else f"{one:g}" for one in told)
    raise InputError(
        f"--wavelength-um is {options.wavelength_um:g}, but the channels of {options.image} have "
        f"{listed} um; leave the flag out, or map one channel with --channel, without --all-planes."
    )


def common_sampling(
    options: MapOptions, planes: Sequence[Micrograph], estimator: Estimator
) -> Resampling:
    """The binning that suits all channels, so that their maps have the same places.

    Raises
    ------
    InputError
        If the optics of a channel are unknown, or no binning suits all.
    """
    optics = [known_optics(options, plane, estimator.psf_model).microscope for plane in planes]
    shape, allowed = planes[0].shape, options.allow_other_optics
    found = [choose_resampling(estimator, one, allowed, shape) for one in optics]
    for sampling in sorted(set(found), key=lambda one: one.factor):
        if len(set(found)) == 1 or not any(
            outside_training(estimator, one, sampling) for one in optics
        ):
            return sampling
    listed = "; ".join(one.describe() for one in found)
    raise InputError(
        f"no binning suits all channels ({listed}); map each one with --channel, without "
        "--all-planes."
    )


def _resampled(recording: Recording, sampling: Resampling, stride: int) -> Recording:
    """The recording with the sampling of all channels."""
    stride_px = max(1, round(stride / sampling.factor)) if stride > 0 else stride
    return replace(recording, resampling=sampling, stride_px=stride_px)


def series_notes(channels: Channels, options: MapOptions) -> list[str]:
    """What was found or chosen for the series, for the user; each note once."""
    several = len(channels) > 1
    notes = [
        f"channel {name}: {note}" if several else note
        for name, one in channels.recordings.items()
        for note in one.notes
    ]
    # The channels share most notes, e.g. the optics of the objective.
    shared = [note for note in channels.any.notes if all_have(note, channels)]
    if several:
        own = [note for note in notes if note.partition(": ")[2] not in shared]
        notes = [*shared, *own]
    notes += [f"channel {name} cannot be mapped: {why}" for name, why in channels.failed.items()]
    if several and options.wavelength_um is not None:
        notes.append(f"--wavelength-um counts for all {len(channels)} channels")
    sizes = channels.any.micrograph.sizes
    if sizes["Z"] > 1 and is_stack(channels, options):
        notes.append(f"the {sizes['Z']} planes in z of a time point are seen together")
    if sizes["T"] > 1:
        notes.append(f"the {sizes['T']} time points are seen one by one")
    return notes


def all_have(note: str, channels: Channels) -> bool:
    """Whether every channel has this note."""
    return all(note in one.notes for one in channels.recordings.values())


def is_stack(channels: Channels, options: MapOptions) -> bool:
    """Whether the planes in z are seen together."""
    return options.context == "stack" and channels.any.estimator.context is not None


# --- planes


def map_planes(channels: Channels, options: MapOptions, kept: KeptMaps) -> None:
    """Map all planes that are not kept yet.

    Raises
    ------
    InputError
        If no plane can be mapped.
    """
    groups = seen_together(channels, options)
    done = sum(len(group) for group in groups if all(map(kept.holds, group)))
    bar = tqdm(total=len(channels.places), initial=done, desc="planes", unit="plane")
    with bar:
        for group in groups:
            if all(map(kept.holds, group)):
                continue
            for one in map_group(channels, group, options):
                kept.keep(one)
            bar.update(len(group))
            tell_progress("planes", bar.n, bar.total)
    notes = [kept.note(place) for place in channels.places]
    if all(notes):
        kept.forget()
        raise InputError(f"no plane of {options.image} can be mapped: {notes[0]}")


def seen_together(channels: Channels, options: MapOptions) -> list[list[Place]]:
    """Groups of planes whose patches are seen together, in the order in which they are mapped.

    They are the focal stacks of each time point and channel, or single planes.
    """
    groups: dict[tuple, list[Place]] = {}
    for place in channels.places:
        z = None if is_stack(channels, options) else place["z"]
        key = (place["t"], place["channel"], z)
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def map_group(channels: Channels, group: Sequence[Place], options: MapOptions) -> list[PlaneMap]:
    """Maps of planes that are seen together."""
    channel = group[0]["channel"]
    if channel in channels.failed:
        return [PlaneMap(place, None, {}, "", channels.failed[channel]) for place in group]
    recording = channels.recordings[channel]
    done, good = [], []
    for place in group:
        plane, known = None, ({}, "")
        try:
            plane = recording.micrograph.select(**place)
            known = look_at_plane(plane, recording, options)
        except InputError as error:
            done.append(PlaneMap(place, None, *known, str(error)))
        else:
            good.append((place, plane, known))
    if not good:
        return done
    try:
        planes = tuple(plane for _, plane, _ in good)
        maps = map_stack(replace(recording, planes=planes), show=False)
    except InputError as error:
        note = str(error).removeprefix("plane 0: ") if len(good) == 1 else str(error)
        return done + [PlaneMap(place, None, *known, note) for place, _, known in good]
    for (place, _, known), patches in zip(good, maps, strict=True):
        if patches.has_content.any():
            found = smoothed(recording, patches, options.smooth)
            done.append(PlaneMap(place, found, *known, ""))
        else:
            done.append(PlaneMap(place, None, *known, NO_CONTENT))
    return done


def look_at_plane(
    plane: Micrograph, recording: Recording, options: MapOptions
) -> tuple[dict[str, float], str]:
    """Shares of outliers and hash of a plane.

    Raises
    ------
    InputError
        If the plane cannot be mapped: constant, mostly saturated, NaN or negative.
    """
    digest, height = pixels_hash(plane), plane.shape[0]
    ends = []
    for start in range(0, height, BAND_ROWS):
        band = finite(plane.rows(start, min(start + BAND_ROWS, height)))
        ends += [float(band.min()), float(band.max())]
    if min(ends) == max(ends):
        raise InputError(f"all pixels of the image are {ends[0]:g}; there is nothing to see.")
    check_negative(plane, options.offset_counts)
    found = survey(plane, file_cutoff(recording.microscope, recording.estimator.psf_model))
    check_survey(found, options.offset_counts)
    return found.shares, digest


def kept_maps(out: Path, channels: Channels, options: MapOptions) -> KeptMaps:
    """The finished maps of this series in --out; those of another one are deleted."""
    key = {
        **stamp_of(options.image),
        "series": channels.any.micrograph.series,
        "network": channels.any.estimator.fingerprint,
        "stride": channels.any.stride_px,
        "smooth": options.smooth,
        "context": options.context,
        "offset_counts": options.offset_counts,
        "sampling": asdict(channels.any.resampling),
        "optics": [astuple(one.microscope) for one in channels.recordings.values()],
        "failed": list(channels.failed.values()),
    }
    return KeptMaps.of(out, key)

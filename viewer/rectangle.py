"""Restoration of a rectangle of an image, which looks as in the restoration of the whole field."""

from dataclasses import dataclass, replace

import torch

from micrographs.camera import Camera
from micrographs.micrograph import Micrograph
from models.mapping import PsfMap
from psf.blur import interpolate_grid
from psf.errors import InputError
from restoration.blur_map import support_px
from restoration.outcome import Outcome, RestorationOptions, restore_plane

Part = tuple[slice, slice]  # rows and columns of the image
LEAST_MARGIN_PX = 64  # around the rectangle, as around the tiles of a large image
LEAST_EDGE_PX = 16  # of a rectangle: a smaller one is a slip of the mouse


@dataclass(frozen=True)
class PlanePart:
    """A part of a plane, which can be restored as a plane can."""

    whole: Micrograph
    part: Part

    @property
    def channel(self) -> int | None:
        """Channel of the plane."""
        return self.whole.channel

    @property
    def z(self) -> int:
        """Number of the plane in z."""
        return self.whole.z

    @property
    def t(self) -> int:
        """Number of the time point."""
        return self.whole.t

    @property
    def full_scale(self) -> float | None:
        """Largest count that the camera or the file can hold."""
        return self.whole.full_scale

    def plane(self) -> torch.Tensor:
        """Pixels of the part, (H, W) float32 counts."""
        rows, columns = self.part
        return self.whole.rows(rows.start, rows.stop)[:, columns]


def restore_rectangle(
    options: RestorationOptions,
    micrograph: Micrograph,
    psf_map: PsfMap,
    camera: Camera,
    part: Part,
) -> Outcome:
    """Restore a rectangle with a margin of the image around it, which is cut off afterwards.

    Raises
    ------
    InputError
        As `restore_plane`, and if the rectangle is smaller than LEAST_EDGE_PX.
    """
    edges = [line.stop - line.start for line in part]
    if min(edges) < LEAST_EDGE_PX:
        raise InputError(
            f"the rectangle has {edges[0]} x {edges[1]} px inside the image; draw one of at least "
            f"{LEAST_EDGE_PX} px a side."
        )
    margin = max(support_px(psf_map, min(micrograph.shape)), LEAST_MARGIN_PX)
    grown = tuple(
        slice(max(0, line.start - margin), min(length, line.stop + margin))
        for line, length in zip(part, micrograph.shape, strict=True)
    )
    outcome = restore_plane(
        options, PlanePart(micrograph, grown), map_of_part(psf_map, grown), camera
    )
    return _cut(outcome, part, grown)


def map_of_part(psf_map: PsfMap, part: Part) -> PsfMap:
    """The map of a part of the image: the same values between its borders.

    The places at the borders are interpolated, so bilinear values inside stay as they were.
    """
    places = []
    for at, line in zip((psf_map.rows, psf_map.columns), part, strict=True):
        ends = at.new_tensor([line.start, line.stop - 1])
        places.append(torch.cat([at[(at > ends[0]) & (at < ends[1])], ends]).sort().values)
    grid = (psf_map.rows, psf_map.columns, *places)
    return PsfMap(
        psf_map.model,
        psf_map.microscope,
        interpolate_grid(psf_map.values, *grid),
        interpolate_grid(psf_map.standard_deviations, *grid),
        interpolate_grid(psf_map.content, *grid),
        places[0] - part[0].start,
        places[1] - part[1].start,
    )


def _cut(outcome: Outcome, part: Part, grown: Part) -> Outcome:
    """The outcome of a part without its margin; it is named by its rows and columns."""
    inside = tuple(
        slice(p.start - g.start, p.stop - g.start) for p, g in zip(part, grown, strict=True)
    )
    restored = outcome.restored
    fit = restored.fit and replace(restored.fit, misfit=restored.fit.misfit[inside])
    named = {k: f"{p.start}:{p.stop}" for k, p in zip(("rows", "columns"), part, strict=True)}
    return replace(
        outcome,
        before=outcome.before[inside],
        after=outcome.after[inside],
        restored=replace(
            restored, image=restored.image[inside], expected=restored.expected[inside], fit=fit
        ),
        plane={**outcome.plane, **named},
        outliers=replace(outcome.outliers, usable=outcome.outliers.usable[inside]),
    )

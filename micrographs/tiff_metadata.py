"""Optics, scale and names in the metadata of a TIFF, whatever program wrote it."""

from typing import Any

import tifffile

from micrographs.files import complaints_of_tifffile
from micrographs.metadata import Calibration, OpticsFacts, facts_of
from micrographs.ome import (
    ome_channel_names,
    ome_facts,
    ome_image,
    ome_root,
    ome_significant_bits,
)
from micrographs.units import Found, add, length_um, positive, seconds, um_per_unit
from micrographs.vendors import vendor_channel_names, vendor_facts

# With these units Fiji writes the resolution of a screen or a printer (72, 96, 300 dpi). A
# microscope's pixel, in um, lies in this range.
PLAUSIBLE_PIXEL_UM = (0.01, 20.0)
DOUBTFUL_UNITS = ("inch", "in", "cm")


def optics_facts(tiff: tifffile.TiffFile, series: int, channel: int) -> OpticsFacts:
    """Optics of one channel of a series: from OME-XML, else private tags, else plain TIFF tags."""
    return facts_of(*_found(tiff, series, channel))


def calibration_of(tiff: tifffile.TiffFile, series: int, channels: int) -> Calibration:
    """Calibration of a series with so many channels."""
    names = tuple(channel_names(tiff, series))
    names = names if len(names) == channels and all(names) else ()
    found = {name: fact for one in reversed(_found(tiff, series, 0)) for name, fact in one.items()}
    step, interval = (found.get(name, (None,))[0] for name in ("z_step_um", "frame_interval_s"))
    is_ome = ome_root(tiff) is not None
    kind = "ome" if is_ome else "imagej" if tiff.is_imagej else ""
    return Calibration(step, interval, names, kind)


def channel_names(tiff: tifffile.TiffFile, series: int) -> list[str]:
    """Names of the channels in OME-XML, or their labels in ImageJ; some may be missing."""
    image = _image(tiff, series)
    if image is not None:
        return ome_channel_names(image)
    described = _description(tiff, series)
    labels = described.get("Labels") or []
    labels = [labels] if isinstance(labels, str) else [str(label) for label in labels]
    channels = int(positive(described.get("channels")) or 1)
    # ImageJ has a label for each plane, and the channel changes fastest. Labels that differ
    # between planes of one channel are no names of channels.
    is_periodic = all(label == labels[i % channels] for i, label in enumerate(labels))
    if len(labels) >= channels and is_periodic:
        return labels[:channels]
    with complaints_of_tifffile():
        return vendor_channel_names(tiff)


def significant_bits(tiff: tifffile.TiffFile, series: int) -> int | None:
    """Bits that the camera used, as OME-XML says."""
    image = _image(tiff, series)
    return None if image is None else ome_significant_bits(image)


def _image(tiff: tifffile.TiffFile, series: int) -> Any:
    """Image in the OME-XML that describes a series."""
    root = ome_root(tiff)
    if root is None:
        return None
    one = tiff.series[series]
    page = one.keyframe
    shape = (page.imagelength, page.imagewidth)
    return ome_image(root, series, one.name if one.kind == "ome" else "", shape)


def _found(tiff: tifffile.TiffFile, series: int, channel: int) -> list[Found]:
    """Facts by where they stand, the most trusted first."""
    root, image = ome_root(tiff), _image(tiff, series)
    ome = {} if image is None else ome_facts(root, image, channel)
    with complaints_of_tifffile():  # about private tags, of which none is needed
        return [ome, vendor_facts(tiff), _tag_facts(tiff, series)]


def _tag_facts(tiff: tifffile.TiffFile, series: int) -> Found:
    """ImageJ's and tifffile's calibration, or a resolution per cm that a microscope could have."""
    page = tiff.series[series].keyframe
    described = _description(tiff, series)
    unit = str(described.get("unit", ""))
    found: Found = {}
    interval = seconds(described.get("finterval"), str(described.get("tunit", "s")))
    add(found, "frame_interval_s", interval, "ImageJ finterval")
    if um_per_unit(unit) is not None:
        kind = "ImageJ" if tiff.is_imagej else "TIFF"
        where = f"{kind} resolution and unit"
        step = length_um(described.get("spacing"), str(described.get("zunit") or unit))
        add(found, "z_step_um", step, f"{kind} spacing and unit")
        units = (unit, str(described.get("yunit") or unit))
    elif page.tags.valueof(296) == tifffile.RESUNIT.CENTIMETER:
        units, where = ("cm", "cm"), "TIFF resolution per cm"
    else:
        return found
    for name, tag, unit in zip(
        ("pixel_size_um", "pixel_height_um"), (282, 283), units, strict=True
    ):
        resolution = _rational(page.tags.valueof(tag))
        size = length_um(1 / resolution, unit) if resolution else None
        low, high = PLAUSIBLE_PIXEL_UM
        if size is not None and (unit not in DOUBTFUL_UNITS or low <= size <= high):
            add(found, name, size, where)
    return found


def _description(tiff: tifffile.TiffFile, series: int) -> dict[str, Any]:
    """ImageJ's or tifffile's own metadata; tifffile writes one dictionary per series."""
    described = tiff.imagej_metadata or tiff.shaped_metadata or {}
    if isinstance(described, (list, tuple)):
        described = described[series] if series < len(described) else {}
    return dict(described)


def _rational(value: Any) -> float | None:
    if not isinstance(value, tuple) or len(value) != 2 or not value[1]:
        return None
    return positive(value[0] / value[1])

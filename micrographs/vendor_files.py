"""Nikon ND2, Zeiss CZI and Leica LIF, each through an optional package that reads it."""

import math
from itertools import chain
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from micrographs.files import LUMINANCE
from micrographs.formats import foreign_errors, reading_package
from micrographs.ome import INDEX_OF_IMMERSION
from micrographs.plane_source import PlaneSource, WholePlaneSource
from micrographs.units import Found, add, converted, length_um, positive
from micrographs.vendors import flat

ND2_STARTS = (b"\xda\xce\xbe\x0a", b"\x00\x00\x00\x0cjP")  # since 2007, and before
CZI_START = b"ZISRAWFILE"
LIF_START = b"\x70\x00\x00\x00"
CZI_ENTRY_BYTES = 32  # at least, of the directory of a CZI for each plane
CZI_CACHE_BYTES = 2**28  # of decoded tiles, which neighbouring bands of rows share


class Nd2Source(WholePlaneSource):
    """A Nikon ND2; its positions are the images of the file."""

    def __init__(self, path: Path, series: int | None = None):
        package = reading_package("nd2", path)
        with foreign_errors():
            self._file = package.ND2File(path)
        try:
            with foreign_errors():
                sizes = dict(self._file.sizes)
                size = (sizes["Y"], sizes["X"])
                super().__init__(path, [("", size)] * sizes.pop("P", 1), series)
                samples = sizes.get("S", 1)
                attributes = self._file.attributes
                bits = attributes.bitsPerComponentSignificant
                self.set_up(sizes, np.dtype(self._file.dtype), bits, samples)
                self._stored = (-1, *size, samples)
                self._frames = {
                    tuple(place.get(axis, 0) for axis in "PZT"): number
                    for number, place in enumerate(self._file.loop_indices)
                }
                channels = getattr(self._file.metadata, "channels", None) or []
                self.names = [str(one.channel.name or "") for one in channels]
        except BaseException:
            self._file.close()
            raise

    def decode(self, channel: int, z: int, t: int) -> np.ndarray:
        """One plane; a frame of the file holds all channels."""
        frame = self._file.read_frame(self._frames[self.series, z, t])
        plane = np.asarray(frame).reshape(self._stored)[channel]
        return plane if self.is_colour else plane[..., 0]

    def find_facts(self, channel: int) -> Found:
        """Facts in the metadata of the channel and of the loops over z and time."""
        found: Found = {}
        one = self._file.metadata.channels[channel]
        for name, number in (
            ("na", one.microscope.objectiveNumericalAperture),
            ("refractive_index", one.microscope.immersionRefractiveIndex),
        ):
            add(found, name, positive(number), "ND2 objective")
        wavelength = length_um(one.channel.emissionLambdaNm, "nm")
        add(found, "wavelength_um", wavelength, "ND2 emission wavelength")
        for loop in self._file.experiment:
            if loop.type == "TimeLoop":
                period = converted("frame_interval_s", loop.parameters.periodMs, "ms")
                add(found, "frame_interval_s", period, "ND2 period")
        names = ("pixel_size_um", "pixel_height_um", "z_step_um")
        calibrated = one.volume.axesCalibrated
        for name, size, is_known in zip(names, self._file.voxel_size(), calibrated, strict=True):
            add(found, name, positive(size) if is_known else None, "ND2 calibration")
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class CziSource(PlaneSource):
    """A Zeiss CZI, row by row; its scenes are the images of the file."""

    def __init__(self, path: Path, series: int | None = None):
        package = reading_package("pylibCZIrw.czi", path)
        with foreign_errors():
            cache = package.CacheOptions(
                package.CacheType.Standard, max_memory_usage=CZI_CACHE_BYTES, max_sub_block_count=0
            )
            self._file = package.CziReader(str(path), cache_options=cache)
        try:
            with foreign_errors():
                scenes = dict(sorted(self._file.scenes_bounding_rectangle_no_pyramid.items()))
                scenes = scenes or {None: self._file.total_bounding_rectangle_no_pyramid}
                images = [("", (place.h, place.w)) for place in scenes.values()]
                super().__init__(path, images, series)
                self._scene, self._place = list(scenes.items())[self.series]
                box = self._file.total_bounding_box
                self._first = {axis: first for axis, (first, _) in box.items()}
                sizes = {a: size for a, (_, size) in box.items() if a not in "XYS"}
                if CZI_ENTRY_BYTES * math.prod(sizes.values()) > path.stat().st_size:
                    raise ValueError(f"the file is too small for the axes {sizes}")
                kinds = set(self._file.pixel_types.values())
                self._xml = ElementTree.fromstring(self._file.raw_metadata)
                self.set_up(sizes, *_czi_pixels(kinds, self._xml))
                names = self._xml.iterfind(".//Information/Image/Dimensions/Channels/Channel")
                self.names = [channel.get("Name", "") for channel in names]
        except BaseException:
            self._file.close()
            raise

    def read_plane(self, channel: int, z: int, t: int, start: int, stop: int) -> np.ndarray:
        """Rows of one plane; where the file holds no tile they are 0."""
        at = {"C": channel, "Z": z, "T": t}
        plane = {axis: self._first[axis] + at[axis] for axis in at if axis in self._first}
        x, y, width, _ = self._place
        roi = (x, y + start, width, stop - start)
        pixels = self._file.read(roi=roi, plane=plane, scene=self._scene)
        return pixels[..., ::-1] if self.is_colour else pixels[..., 0]  # stored blue first

    def find_facts(self, channel: int) -> Found:
        """Facts in the XML."""
        found: Found = {}
        for name, axis in (("pixel_size_um", "X"), ("pixel_height_um", "Y"), ("z_step_um", "Z")):
            value = self._xml.findtext(f".//Scaling/Items/Distance[@Id='{axis}']/Value")
            add(found, name, length_um(value, "m"), "CZI scaling")
        image = self._xml.find(".//Information/Image")
        objective = self._xml.find(".//Information/Instrument/Objectives/Objective")
        if objective is not None:
            add(found, "na", positive(objective.findtext("LensNA")), "CZI LensNA")
        if image is None:
            return found
        index = positive(image.findtext("ObjectiveSettings/RefractiveIndex"))
        add(found, "refractive_index", index, "CZI RefractiveIndex")
        immersion = "" if objective is None else objective.findtext("Immersion", "")
        index = INDEX_OF_IMMERSION.get(immersion.lower())
        add(found, "refractive_index", index, f"CZI Immersion {immersion}")
        channels = image.findall("Dimensions/Channels/Channel")
        if channel < len(channels):
            wavelength = length_um(channels[channel].findtext("EmissionWavelength"), "nm")
            add(found, "wavelength_um", wavelength, "CZI EmissionWavelength")
        interval = positive(image.findtext("Dimensions/T/Positions/Interval/Increment"))
        add(found, "frame_interval_s", interval, "CZI interval")
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _czi_pixels(kinds: set[str], xml: ElementTree.Element) -> tuple[np.dtype, int, int]:
    """Type of the pixels, bits that the camera used, and samples of a pixel."""
    if len(kinds) != 1:
        raise ValueError(f"its channels have pixels of different types ({', '.join(kinds)})")
    (kind,) = kinds
    dtype = {"8": "uint8", "24": "uint8", "16": "uint16", "48": "uint16"}.get(
        "".join(filter(str.isdigit, kind)), "float32"
    )
    stated = positive(xml.findtext(".//Information/Image/ComponentBitCount"))
    bits = 8 * np.dtype(dtype).itemsize
    samples = len(LUMINANCE) if kind.startswith("Bgr") else 1
    return np.dtype(dtype), int(stated) if stated and 1 <= stated <= bits else bits, samples


class LifSource(WholePlaneSource):
    """A Leica LIF, which holds any number of images."""

    def __init__(self, path: Path, series: int | None = None):
        package = reading_package("liffile", path)
        with foreign_errors():
            self._file = package.LifFile(path)
        try:
            with foreign_errors():
                held = [one for one in self._file.images if {"Y", "X"} <= one.sizes.keys()]
                images = [(one.name, (one.sizes["Y"], one.sizes["X"])) for one in held]
                super().__init__(path, images, series)
                self._image = held[self.series]
                sizes, dtype = dict(self._image.sizes), np.dtype(self._image.dtype)
                bits = self._image.xml_element.find(".//ChannelDescription").get("Resolution")
                self.set_up(sizes, dtype, int(bits or 8 * dtype.itemsize), sizes.get("S", 1))
        except BaseException:
            self._file.close()
            raise

    def decode(self, channel: int, z: int, t: int) -> np.ndarray:
        """One plane."""
        at = {"C": channel, "Z": z, "T": t}
        place = {axis: at[axis] for axis in at if axis in self._image.sizes}
        return np.asarray(self._image.frame(**place))

    def find_facts(self, channel: int) -> Found:
        """Facts in the dimensions, and in the settings of the microscope."""
        found: Found = {}
        names = {"pixel_size_um": "X", "pixel_height_um": "Y", "z_step_um": "Z"}
        for name, axis in chain(names.items(), [("frame_interval_s", "T")]):
            places = self._image.coords.get(axis)
            if places is not None and len(places) > 1:
                step = converted(name, abs(places[1] - places[0]), "s" if axis == "T" else "m")
                add(found, name, step, f"LIF dimension {axis}")
        settings: dict[str, Any] = flat(self._image.attrs)
        add(found, "na", positive(settings.get("NumericalAperture")), "LIF NumericalAperture")
        index = positive(settings.get("RefractionIndex"))
        add(found, "refractive_index", index, "LIF RefractionIndex")
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()

"""Optics and scale in OME-XML, of TIFFs and of formats whose readers give OME-XML."""

from collections.abc import Iterator
from xml.etree import ElementTree

import tifffile

from micrographs.units import Found, add, converted, length_um, positive

# Indices at 589 nm of the immersions that OME-XML names; "Multi" and "Other" have none.
INDEX_OF_IMMERSION = {"air": 1.0, "water": 1.33, "waterdipping": 1.33, "glycerol": 1.47}
INDEX_OF_IMMERSION |= {"oil": 1.518}
# Name of a fact -> attribute of Pixels, and its unit where none is given.
OF_PIXELS = {
    "pixel_size_um": ("PhysicalSizeX", "µm"),
    "pixel_height_um": ("PhysicalSizeY", "µm"),
    "z_step_um": ("PhysicalSizeZ", "µm"),
    "frame_interval_s": ("TimeIncrement", "s"),
}


def ome_root(tiff: tifffile.TiffFile) -> ElementTree.Element | None:
    """Root of the OME-XML, None without it or if it is broken."""
    if not tiff.is_ome:
        return None
    try:
        return ElementTree.fromstring(tiff.ome_metadata or "")
    except ElementTree.ParseError:
        return None


def ome_image(
    root: ElementTree.Element, number: int, name: str = "", shape: tuple[int, int] | None = None
) -> ElementTree.Element | None:
    """The Image of this number, if it has this name and size, or else the first one that does."""
    images = list(elements(root, "Image"))

    def fits(image: ElementTree.Element) -> bool:
        pixels = next(elements(image, "Pixels"), None)
        if pixels is None:
            return False
        if shape is not None and (pixels.get("SizeY"), pixels.get("SizeX")) != tuple(
            str(size) for size in shape
        ):
            return False
        return image.get("Name", "") == name or not name

    candidates = [*images[number : number + 1], *images]
    return next((image for image in candidates if fits(image)), None)


def ome_facts(root: ElementTree.Element, image: ElementTree.Element, channel: int) -> Found:
    """Facts of one channel of an Image."""
    pixels = next(elements(image, "Pixels"))
    found: Found = {}
    for name, (key, default_unit) in OF_PIXELS.items():
        unit = pixels.get(f"{key}Unit", default_unit)
        add(found, name, converted(name, pixels.get(key), unit), f"OME-XML {key}")
    objective, settings = _objective(root, image)
    add(found, "na", positive(objective.get("LensNA")), "OME-XML LensNA")
    index = positive(settings.get("RefractiveIndex"))
    add(found, "refractive_index", index, "OME-XML RefractiveIndex")
    immersion = objective.get("Immersion", "")
    index = INDEX_OF_IMMERSION.get(immersion.lower())
    add(found, "refractive_index", index, f"OME-XML Immersion {immersion}")
    channels = list(elements(pixels, "Channel"))
    if channel < len(channels):
        emission = channels[channel].get("EmissionWavelength")
        unit = channels[channel].get("EmissionWavelengthUnit", "nm")
        add(found, "wavelength_um", length_um(emission, unit), "OME-XML EmissionWavelength")
    return found


def ome_channel_names(image: ElementTree.Element) -> list[str]:
    """Names of the channels of an Image; "" for a channel without one."""
    return [channel.get("Name", "") for channel in elements(image, "Channel")]


def ome_significant_bits(image: ElementTree.Element) -> int | None:
    """Bits that the camera used."""
    bits = positive(next(elements(image, "Pixels")).get("SignificantBits"))
    return None if bits is None or not 1 <= bits <= 64 else int(bits)


def _objective(
    root: ElementTree.Element, image: ElementTree.Element
) -> tuple[dict[str, str], dict[str, str]]:
    """Attributes of the image's objective, or of the only one, and of its settings."""
    objectives = list(elements(root, "Objective"))
    settings = next(elements(image, "ObjectiveSettings"), None)
    if settings is not None:
        named = [o for o in objectives if o.get("ID") == settings.get("ID")]
        return (dict(named[0].attrib) if named else {}), dict(settings.attrib)
    return (dict(objectives[0].attrib) if len(objectives) == 1 else {}), {}


def elements(parent: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    """All descendants of this name in any version of the OME name space."""
    return (e for e in parent.iter() if e.tag == name or e.tag.endswith("}" + name))

"""The NA of an image: estimated where the user asks for it, and checked where it is given."""

from micrographs.micrograph import Micrograph
from micrographs.na_estimate import estimate_na, power_beyond
from micrographs.radial_spectrum import radial_spectrum


def na_of_spectrum(micrograph: Micrograph, **others: float) -> tuple[float, str]:
    """The NA by the spectrum of an image, or of its focal stack, and its source in words."""
    planes, _ = micrograph.focal_planes()
    found = estimate_na(planes, **others)
    which = f"the sharpest of {len(planes)} planes, {found.plane}" if planes[1:] else "the image"
    return found.na, f"{found.na:g} ± {found.error:.2g} (from the spectrum of {which})"


def check_na(plane: Micrograph, cutoff: float) -> list[str]:
    """A note if the image holds detail that the given optics do not transmit."""
    spectrum = radial_spectrum(plane)
    if spectrum is None or not power_beyond(spectrum, cutoff):
        return []
    return [
        "the image holds detail beyond the cut-off of these optics: the NA is higher than given, "
        "or the pixel larger; check them, or try --na auto"
    ]

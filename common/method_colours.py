"""Colour of each restoration method, the same in every figure."""

from common.pictures import COLOURS

UNRESTORED = "0.45"  # grey of images that no method has restored
OURS_COLOUR = COLOURS[0]
METHOD_COLOURS = {
    "ours": OURS_COLOUR,
    "deepinv Richardson-Lucy": COLOURS[1],
    "ours, true map": COLOURS[2],
    "blind total variation": COLOURS[3],
    "blind Richardson-Lucy": COLOURS[4],
    "weights on the blurred image (2018)": COLOURS[5],
    # of Paul Tol's "muted" palette (personal.sron.nl/~pault), since Okabe and Ito have no more
    "scikit-image Richardson-Lucy": "#999933",
    "scikit-image unsupervised Wiener": "#882255",
    "deepinv plug-and-play": "#332288",
    "blurred input": UNRESTORED,
    "first half as it is": UNRESTORED,
    "first half, smoothed": UNRESTORED,
}
# What stands after the name of a method that is given a map, a PSF or the best setting
GIVEN = (", estimated map", ", mean of the true PSFs", ", best setting (oracle)")


def short_name(method: str) -> str:
    """Name of a method without the map, PSF or setting that it is given; the true map stays."""
    for given in GIVEN:
        method = method.removesuffix(given)
    return method


def method_colour(method: str) -> str:
    """Colour of a method by its name in a table: one for ours with any prior, black for others."""
    name = short_name(method)
    if name not in METHOD_COLOURS and name.startswith("ours, "):
        return OURS_COLOUR
    return METHOD_COLOURS.get(name, "black")

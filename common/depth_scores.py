"""Scores of the tilted planes: errors, usable range and refused patches, from depth.csv."""

import math

import numpy as np
import pandas as pd

from psf.microscope import Microscope

PAPER_UM = 2.0  # precision of depth in Shajkofci & Liebling 2020
# Wrong signs are counted from this distance on, in depths of field. Nearer to focus a small error
# of depth changes the sign.
SIGN_DEPTHS_OF_FIELD = 1.0
# Distances that are scored without the lens, um. Nearer, the PSF hardly changes with depth; 20 um
# is about the end of the range with the lens, 3 waves.
UNSIGNED_UM = (2.0, 20.0)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Scores by PSF model, photons and tilt, over all textures; `table` is depth.csv.

    A depth is in range if it lies in the usable range of the calibration. Errors and wrong signs
    are those of patches that were not refused.
    """
    keys = ["model", "photons", "degrees"]
    rows = [
        dict(zip(keys, names, strict=True)) | _scores(group, signed=names[0] == "astigmatic")
        for names, group in table.groupby(keys)
    ]
    return pd.DataFrame(rows)


def _scores(group: pd.DataFrame, signed: bool) -> dict[str, float]:
    """Scores of the planes of one tilt."""
    scored = group[group["usable"]]
    if not signed:
        scored = scored[scored["truth_um"].between(*UNSIGNED_UM)]
    # Without the lens a distance near zero is below the usable range, but not out of range.
    outside = group[~group["usable"] & (group["truth_um"].abs() > UNSIGNED_UM[0])]
    sign_um = SIGN_DEPTHS_OF_FIELD * Microscope().depth_of_field_um
    far = scored[scored["truth_um"].abs() > sign_um]
    errors = (scored["depth_um"] - scored["truth_um"]) ** 2
    by_texture = errors.groupby(scored["texture"]).mean().pow(0.5)
    start_um, stop_um = usable_range_um(scored)
    return {
        "profile_rms_um": math.sqrt(errors.mean()),
        "best_texture_um": by_texture.min(),
        "worst_texture_um": by_texture.max(),
        "patch_rms_um": math.sqrt(_share(scored["patch_square_error_um2"], _accepted(scored))),
        "usable_from_um": start_um,
        "usable_to_um": stop_um,
        "usable_span_um": stop_um - start_um,
        "wrong_signs_share": _share(far["wrong_signs"], _accepted(far)),
        "refused_share_in_range": _share(scored["refused"], scored["patches"]),
        "refused_share_out_of_range": _share(outside["refused"], outside["patches"]),
    }


def usable_range_um(scored: pd.DataFrame) -> tuple[float, float]:
    """Lowest and highest depth of the longest run of columns with errors up to 2 um.

    The error of a column is the rms over the textures of the error of its profile. A column in
    which a texture has no depth ends the run. NaN if no column is good.
    """
    squares = (scored["depth_um"] - scored["truth_um"]) ** 2
    by_depth = squares.groupby(scored["truth_um"]).agg(lambda column: column.to_numpy().mean())
    good = (by_depth <= PAPER_UM**2).to_numpy()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(int), [0]])))
    runs = zip(edges[::2], edges[1::2], strict=True)
    depths = by_depth.index.to_numpy()
    ends = [(float(depths[start]), float(depths[stop - 1])) for start, stop in runs]
    return max(ends, key=lambda run: run[1] - run[0], default=(math.nan, math.nan))


def _accepted(rows: pd.DataFrame) -> pd.Series:
    """Patches of each column whose depth passes as usable."""
    return rows["patches"] - rows["refused"]


def _share(part: pd.Series, whole: pd.Series) -> float:
    """Ratio of two sums; NaN if the second is 0."""
    total = whole.sum()
    return float(part.sum() / total) if total else math.nan

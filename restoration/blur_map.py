"""Maps of PSF parameters: read from files, continued to the borders, and turned into a blur."""

import contextlib
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.files import naming_damage, read_json
from micrographs.micrograph import Micrograph, open_micrograph
from models.map_files import pixels_hash
from models.mapping import PsfMap
from models.smoothing import smooth_map
from psf.blur import interpolate_grid
from psf.errors import InputError
from psf.microscope import OPTICS_NAMES, simulated_microscopes
from psf.model import from_config
from psf.synthesis import ENERGY_TOLERANCE, synthesize_with_loss
from restoration.series_maps import facts_of_plane, is_series, rows_of_plane
from restoration.variant_blur import VariantBlur, finer_grid, psf_grid_from_map

TOLERANCE = 0.01  # error of a PSF by the eigen-PSFs: far below the uncertainty of any map
# Largest change of a label between neighbouring PSFs of the grid, in units of the label: PSFs
# between grid points are mixed linearly
LARGEST_STEP = 0.2
LARGEST_FACTOR = 16  # by which the grid is made finer
MOST_PSFS = 6000  # of the finer grid: 400 MB at 127 px
SUPPORT_STEP = 16  # px between the supports that are tried
WIDEST = 16  # labels whose PSFs decide on the support
LARGEST_PSF = 255  # px: a wider support makes each transform slower for less than 1 % of the light
AXIS_OF = {"channel": "C", "z": "Z", "t": "T"}  # axes of a file by the flag of their index
PLACE = ("series", *AXIS_OF)  # flags that choose a plane of a file
# what config.json must hold to read a map
CONFIG_KEYS = {
    *("psf_model", "optics", "label_names", "label_unit", "image_shape"),
    *("smoothing_strength", "patch_size_px"),
}


def map_on(psf_map: PsfMap, device: torch.device) -> PsfMap:
    """The map with all its tensors on a device."""
    tensors = {k: v for k, v in vars(psf_map).items() if isinstance(v, torch.Tensor)}
    return replace(psf_map, **{name: tensor.to(device) for name, tensor in tensors.items()})


def support_px(psf_map: PsfMap, largest: int) -> int:
    """Smallest odd PSF support, at most `largest` px, that keeps 99 % of each PSF's energy."""
    model = psf_map.model
    low, high = psf_map.values.new_tensor(model.label_ranges).T
    labels = psf_map.values.flatten(1).T.clamp(low, high)
    # the largest labels, of either sign, give the widest PSFs
    largest_labels = labels.abs().sum(1).topk(min(WIDEST, len(labels))).indices
    extremes = labels[torch.cat([largest_labels, labels.argmax(0), labels.argmin(0)])]
    largest = min(largest, LARGEST_PSF)
    largest -= 1 - largest % 2
    for size in (*range(SUPPORT_STEP - 1, largest, SUPPORT_STEP), largest):
        _, lost = synthesize_with_loss(model, extremes, psf_map.microscope, size)
        if float(lost.max()) <= ENERGY_TOLERANCE:
            break
    return size


def blur_of_map(psf_map: PsfMap, shape: tuple[int, int], size: int | None = None) -> VariantBlur:
    """Blur of an image (H, W) by the PSFs of its map, each on a support of `size` px.

    The grid is made finer until neighbouring PSFs differ little, see
    `restoration.variant_blur.finer_grid`.
    """
    values = psf_map.values
    steps = [values.diff(dim=axis).abs().max() for axis in (1, 2) if values.shape[axis] > 1]
    step = float(max(steps)) if steps else 0.0
    most = math.isqrt(max(1, MOST_PSFS // values[0].numel()))
    factor = min(LARGEST_FACTOR, most, max(1, -int(-step // LARGEST_STEP)))
    fine, rows, columns = finer_grid(values, psf_map.rows, psf_map.columns, factor)
    size = size or support_px(psf_map, min(shape))
    psfs = psf_grid_from_map(psf_map.model, fine, psf_map.microscope, size)
    return VariantBlur.from_psfs(psfs, rows, columns, shape, TOLERANCE)


def at_pixels(values: torch.Tensor, psf_map: PsfMap, shape: tuple[int, int]) -> torch.Tensor:
    """Values (R, C) on the grid of a map, interpolated to every pixel (H, W) of its image."""
    y, x = (torch.arange(length, device=values.device) for length in shape)
    return interpolate_grid(values, psf_map.rows.to(values), psf_map.columns.to(values), y, x)


def continue_to_borders(
    raw: PsfMap, strengths: Sequence[float], patch_px: float, shape: tuple[int, int]
) -> PsfMap:
    """Map (P, R, C) of single patches, smoothed and continued to the borders of its image (H, W).

    The centres of the outermost patches lie half a patch inside the borders, but the PSF changes up
    to the borders. So the smoothing, which bends as little as the patches allow, is solved on a
    grid that reaches the borders. Its outer places count as blank; their standard deviations grow.

    Parameters
    ----------
    strengths : of the smoothing, one for each of the P parameters
    patch_px : edge of a patch, pixels of the image
    """
    (rows, above, below), (columns, left, right) = (
        _continued(places, length)
        for places, length in zip((raw.rows, raw.columns), shape, strict=True)
    )
    margins = (above, below), (left, right)
    steps = [float(places.diff().min()) for places in (raw.rows, raw.columns) if len(places) > 1]
    overlap = max(1.0, patch_px / min(steps)) if steps else 1.0

    def padded(array: torch.Tensor, **how: Any) -> np.ndarray:
        return np.pad(array.cpu().numpy(), margins, **how)

    known = padded(raw.has_content, mode="constant")
    found = [
        smooth_map(padded(v, mode="edge"), padded(s, mode="edge"), known, overlap, strength)
        for v, s, strength in zip(raw.values, raw.standard_deviations, strengths, strict=True)
    ]
    values, deviations = (
        torch.from_numpy(np.stack([getattr(one, name) for one in found])).to(raw.values)
        for name in ("values", "standard_deviations")
    )
    # Patches with many outliers have content 0. What is usable of them may show an object, which is
    # restored with the PSFs of the neighbours.
    masked = raw.content == 0
    content = torch.where(masked, 1.0, raw.content)
    content = torch.from_numpy(padded(content, mode="edge")).to(raw.content)
    return PsfMap(raw.model, raw.microscope, values, deviations, content, rows, columns)


def _continued(places: torch.Tensor, length: int) -> tuple[torch.Tensor, int, int]:
    """Places (R,) continued at equal distance to 0 and length - 1; numbers added before, after."""
    if len(places) == 1:
        return places, 0, 0
    step = float(places[1] - places[0])
    before = max(0, math.ceil(float(places[0]) / step))
    after = max(0, math.ceil((length - 1 - float(places[-1])) / step))
    first = places[0] - step * torch.arange(before, 0, -1, device=places.device)
    last = places[-1] + step * torch.arange(1, after + 1, device=places.device)
    # the outermost places lie outside the image by less than a step
    return torch.cat([first, places, last]).clamp(0, length - 1), before, after


def read_map(
    folder: Path, place: Mapping[str, int | None] | None = None, pixels_sha256: str = ""
) -> tuple[PsfMap, dict[str, Any]]:
    """Map and config.json of a folder that estimate_psf_map.py wrote.

    If the map was smoothed, it comes back smooth and reaches the borders of the image, see
    `continue_to_borders`. Of the maps of all planes of a file it is the one of `place` or of the
    pixels, see `restoration.series_maps`.

    Raises
    ------
    InputError
        If the folder holds no map, or a table that does not fit its configuration.
    """
    if lost := [name for name in ("config.json", "map.csv") if not (folder / name).is_file()]:
        raise InputError(
            f"{folder} holds no map: {lost[0]} is missing. Make the map with: "
            f"{_map_command(folder)}"
        )
    config = read_json(folder / "config.json", "map")
    if missing := CONFIG_KEYS - set(config):
        raise InputError(
            f"{folder} holds no map: its config.json lacks {', '.join(sorted(missing))}; give the "
            "folder of estimate_psf_map.py."
        )
    with naming_damage(folder, "map"):
        if is_series(config):
            config = facts_of_plane(folder, config, place or {}, pixels_sha256)
        found = _patches(folder / "map.csv", config)
        shape, patch_px = tuple(map(int, config["image_shape"])), float(config["patch_size_px"])
        _check_places(found, shape, patch_px)
        if strengths := config["smoothing_strength"]:
            found = continue_to_borders(found, strengths, patch_px, shape)
    return found, config


def _check_places(psf_map: PsfMap, shape: tuple[int, int], patch_px: float) -> None:
    """Refuse patches that cannot be those of an image (H, W): a number in a file is damaged."""
    for places, length in zip((psf_map.rows, psf_map.columns), shape, strict=True):
        step = float(places[1] - places[0]) if len(places) > 1 else patch_px
        # Patches of an image begin at its border, and less than a patch is left at its end.
        last = float(places[-1])
        if not (1 <= step and 0 <= float(places[0]) <= last < length <= last + patch_px + step):
            raise ValueError(f"patches up to {last:g} px do not fit an image of {length} px")


def _map_command(folder: Path) -> str:
    """Command that made the map of a folder, or a command that would make one."""
    try:
        command = read_json(folder / "config.json", "map")["command"]
    except (InputError, KeyError):
        command = f"estimate_psf_map.py IMAGE --checkpoint NAME --out {shlex.quote(str(folder))}"
    return f"python {command}"


def _patches(path: Path, config: Mapping[str, Any]) -> PsfMap:
    """Map of single patches from its table; missing standard deviations count as 0."""
    names, unit = config["label_names"], config["label_unit"]
    labels, spreads = (
        [f"{name}{kind}_{unit}" for name in names] for kind in ("", "_standard_deviation")
    )
    try:
        table = rows_of_plane(path, config).sort_values(["y_px", "x_px"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    needed = {*labels, *spreads, "content_probability", "y_px", "x_px"}
    if missing := needed - set(table.columns):
        raise InputError(f"{path} lacks columns {', '.join(sorted(missing))}.")
    rows, columns = (np.unique(table[axis]) for axis in ("y_px", "x_px"))
    if len(rows) * len(columns) != len(table):
        raise InputError(f"{path} is incomplete; make the map again.")

    def grid(wanted: list[str]) -> torch.Tensor:
        channels = np.stack([table[name].to_numpy(np.float64) for name in wanted])
        return torch.from_numpy(channels).float().reshape(-1, len(rows), len(columns))

    values = grid(labels)
    if not torch.isfinite(values).all():
        raise InputError(f"{path} holds NaN or infinite values; make the map again.")
    return PsfMap(
        from_config(config["psf_model"]),
        simulated_microscopes([[config["optics"][name] for name in OPTICS_NAMES]])[0],
        values,
        grid(spreads).nan_to_num(0.0),
        grid(["content_probability"])[0],
        torch.from_numpy(rows).float(),
        torch.from_numpy(columns).float(),
    )


def choose_plane(
    path: Path, given: Mapping[str, int | None], config: Mapping[str, Any]
) -> tuple[dict[str, int], str]:
    """Plane of a file to restore: by flags, or else that of the map where the file has it.

    Parameters
    ----------
    given : values of the flags PLACE
    config : config.json of the map

    Returns
    -------
    place : arguments of `open_micrograph`
    note : which plane of the map is taken without a flag; empty if none is
    """
    # Maps of earlier versions hold the flags instead.
    mapped = config.get("plane") or {name: config.get(name) for name in PLACE}
    asked = {name: index for name, index in given.items() if index is not None}
    if "series" not in asked and mapped.get("series") is not None:
        # A copy of the plane may be the only image of its file.
        with contextlib.suppress(InputError), open_micrograph(path, series=mapped["series"]):
            asked["series"] = mapped["series"]
    with open_micrograph(path, series=asked.get("series")) as micrograph:
        sizes = micrograph.sizes
    taken = {
        name: mapped[name]
        for name, axis in AXIS_OF.items()
        if name not in asked and mapped.get(name) is not None and 1 < sizes[axis] > mapped[name]
    }
    note = f"as for the map: {_named_plane(taken)}" if taken else ""
    return taken | asked, note


def check_belongs(
    config: Mapping[str, Any], micrograph: Micrograph, use_other_image: bool = False
) -> str:
    """Note on a map that was not made of this plane; empty if it was.

    The pixels decide, not the name of the file. A map may be used for other planes of its file.

    Parameters
    ----------
    config : config.json of the map
    micrograph : the plane to restore
    use_other_image : accept the map of another image of the same size

    Raises
    ------
    InputError
        If the map was made of another image.
    """
    here, made_of = micrograph.path.name, Path(config.get("image", "another image")).name
    (height, width), shape = config["image_shape"], micrograph.shape
    if (height, width) != tuple(shape):
        raise InputError(
            f"the map is of an image of {height} x {width} px, this one has {shape[0]} x "
            f"{shape[1]} px; give the map of this image."
        )
    expected = config.get("pixels_sha256")
    if expected is None:
        return (
            f"an earlier version made this map, without a record of the pixels of its image; check "
            f"that it was made of {here}"
        )
    if pixels_hash(micrograph) == expected:
        return ""
    if _holds_plane(micrograph.path, config, expected):
        plane = _named_plane(config["plane"])
        return f"the map was made of another plane of {here} ({plane})"
    if use_other_image:
        return f"the map was made of {made_of}; it is used for {here} (--other-image)"
    other = f"the map was made of {made_of}; {here} has other pixels"
    if here == made_of:
        other = f"{here} has other pixels than the file of this name of which the map was made"
    raise InputError(
        f"{other}. Make a map of this image with estimate_psf_map.py, or give --other-image to use "
        "the map all the same."
    )


def _holds_plane(path: Path, config: Mapping[str, Any], expected: str) -> bool:
    """Whether the file has the plane of which the map was made."""
    place = {name: config.get("plane", {}).get(name) for name in PLACE}
    try:
        with open_micrograph(path, **place) as other:
            return pixels_hash(other) == expected
    except InputError:
        return False


def _named_plane(place: Mapping[str, int | None]) -> str:
    named = {k: v for k, v in place.items() if v is not None and (k, v) != ("series", 0)}
    return ", ".join(f"{k} {v}" for k, v in named.items())

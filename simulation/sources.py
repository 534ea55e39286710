"""Source images: built in, procedural or from the user's folder, as (H, W) float32 in [0, 1].

A `Source` only says where an image comes from. Its pixels are loaded when a crop needs them and
stay in a cache of limited size, so a folder of any size needs a limited amount of memory.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from skimage import data, transform
from tqdm import tqdm

from micrographs.files import DECODE_ERRORS
from psf.errors import InputError
from simulation.decode import decode_planes, image_files, to_luminance
from simulation.objects import OBJECTS

# Built-in images for the tests of a network; no network is trained on them.
TEST_IMAGES = ("camera", "coins", "gravel", "immunohistochemistry")
# Fixed, since two images drawn at random from so few are seldom typical: fur and smooth objects.
VALIDATION_IMAGES = ("chelsea", "coffee")
SPLITS = ("train", "validation", "test")  # the order is part of the seed of every shard
# Shares of train, validation and test; most images train, since variety of content limits accuracy.
PROCEDURAL_SPLIT = (0.7, 0.1, 0.2)
FILE_SPLIT = (0.7, 0.15, 0.15)
MAX_UNREADABLE_SHARE = 0.2  # of a folder's files; with more the folder or a codec is at fault
PROCEDURAL_COUNT_PER_KIND = 32  # of a stored training set; fresh patches add new ones

_CACHE_LIMIT_BYTES = 128 * 2**20  # of each process that simulates
_cache: OrderedDict[tuple["Source", int], np.ndarray] = OrderedDict()


@dataclass(frozen=True)
class Source:
    """Where one source image comes from; small, hashable and picklable.

    Its name is unique and is the unit of the split into train, validation and test.
    """

    name: str
    kind: Literal["builtin", "procedural", "file"]
    pages: tuple[int, ...] = (0,)  # usable pages of a multi-page TIFF; otherwise only 0
    path: str = ""  # file
    shapes: tuple[tuple[int, int], ...] = ()  # file: height and width of each usable page, px
    object_kind: str = ""  # procedural: a key of OBJECTS
    seed: int = 0  # procedural
    index: int = 0  # procedural: running number within its kind
    size: int = 0  # procedural: side in px


def _matplotlib_portrait() -> np.ndarray:
    from matplotlib import cbook

    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        return np.asarray(image)


def _sklearn_photograph(name: str) -> np.ndarray:
    from sklearn.datasets import load_sample_image

    return load_sample_image(name)


def _half_size(image: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 px in [0, 1] of a uint8 image, for images that are not sharp at full size."""
    factors = (2, 2, 1)[: image.ndim]
    rows, columns = (side - side % 2 for side in image.shape[:2])
    return transform.downscale_local_mean(image[:rows, :columns] / 255.0, factors)


_BUILTIN: dict[str, Callable[[], np.ndarray]] = {
    "astronaut": data.astronaut,
    "brick": lambda: _half_size(data.brick()),
    "camera": data.camera,
    "chelsea": data.chelsea,
    "china": lambda: _sklearn_photograph("china.jpg"),
    "coffee": data.coffee,
    "coins": data.coins,
    "flower": lambda: _sklearn_photograph("flower.jpg"),
    "grace_hopper": _matplotlib_portrait,
    "grass": data.grass,
    "gravel": data.gravel,
    "hubble_deep_field": data.hubble_deep_field,
    "immunohistochemistry": data.immunohistochemistry,
    "moon": data.moon,
    "page": data.page,
    "retina": lambda: _half_size(data.retina()),
    "rocket": data.rocket,
    "stereo_motorcycle": lambda: data.stereo_motorcycle()[0],
    "text": data.text,
}


def builtin_sources() -> list[Source]:
    """Images that scikit-image, scikit-learn and matplotlib install; nothing is downloaded."""
    return [Source(name, "builtin") for name in _BUILTIN]


def procedural_sources(count_per_kind: int, size: int = 512, seed: int = 0) -> list[Source]:
    """`count_per_kind` images of `size` px of each kind in OBJECTS: beads_000, beads_001, ..."""
    return [
        Source(
            f"{kind}_{index:03d}", "procedural", object_kind=kind, seed=seed, index=index, size=size
        )
        for kind in OBJECTS
        for index in range(count_per_kind)
    ]


def folder_sources(folder: str | Path, min_side: int) -> tuple[list[Source], list[str]]:
    """Usable images below `folder`, in the order of their relative paths.

    Each file is decoded once. Hidden files are left out. A TIFF with several pages is one source
    with its usable pages.

    Returns
    -------
    sources, skipped
        The second list names each image or page that cannot be used, with the reason.

    Raises
    ------
    InputError
        If there is no such folder, no image in it, none large enough or none usable, or if more
        than a fifth of the files cannot be decoded.
    """
    folder = Path(folder)
    files = image_files(folder)
    sources, skipped, unreadable, too_small = [], [], [], 0
    for path in tqdm(files, desc="checking images", leave=False):
        name = path.relative_to(folder).as_posix()
        try:
            shapes, flaws = _usable_pages(path, name, min_side)
        except DECODE_ERRORS as error:
            unreadable.append(name)
            skipped.append(f"{name}: cannot be decoded ({error})")
            continue
        too_small += not shapes and all(why.startswith("too small") for why in flaws.values())
        skipped += [f"{page}: {why}" for page, why in flaws.items()]
        if shapes:
            pages, sizes = tuple(shapes), tuple(shapes.values())
            sources.append(Source(name, "file", pages, str(path.resolve()), sizes))
    images = f"{len(files)} images in {folder}"
    if too_small == len(files):
        raise InputError(
            f"All {images} are too small: both sides must be at least {min_side} px, the crop "
            "size. Use larger images or smaller patches."
        )
    if not sources:
        raise InputError(
            f"None of the {images} can be used: {_some(skipped)}. Give a folder with sharp images "
            f"of at least {min_side} x {min_side} px."
        )
    if len(unreadable) > MAX_UNREADABLE_SHARE * len(files):
        raise InputError(
            f"{len(unreadable)} of {images} cannot be decoded ({_some(unreadable)}). Repair or "
            "remove them."
        )
    return sources, skipped


def _usable_pages(
    path: Path, name: str, min_side: int
) -> tuple[dict[int, tuple[int, int]], dict[str, str]]:
    """Shapes of the usable pages of a file, and the flaws of the others (`stack.tif page 1`)."""
    planes = [(plane.shape, _flaw(plane, min_side)) for plane in decode_planes(path)]
    names = [f"{name} page {page}" if len(planes) > 1 else name for page in range(len(planes))]
    usable = {page: shape for page, (shape, flaw) in enumerate(planes) if flaw is None}
    flaws = zip(names, (flaw for _, flaw in planes), strict=True)
    return usable, {n: flaw for n, flaw in flaws if flaw is not None}


def load_sources(images: str, min_side: int, seed: int) -> tuple[list[Source], list[str]]:
    """Sources of a script's `--images`: `builtin`, `procedural`, `mixed` or a folder.

    The second list names the images that are left out, such as those below `min_side` px. The
    procedural images are drawn with `seed`.
    """
    if images not in ("builtin", "procedural", "mixed"):
        if not Path(images).exists():
            raise InputError(
                f"There is no folder {images}. Give --images builtin, procedural, mixed or the "
                "path of a folder with images."
            )
        return folder_sources(images, min_side)
    sources, skipped = [], []
    for source in builtin_sources() if images != "procedural" else []:
        flaw = _flaw(read_plane(source), min_side)
        if flaw is None:
            sources.append(source)
        else:
            skipped.append(f"{source.name}: {flaw}")
    if images != "builtin":
        sources += procedural_sources(PROCEDURAL_COUNT_PER_KIND, max(512, min_side), seed)
    if not sources:
        raise InputError(
            f"No built-in image is as large as the crop of {min_side} px. Use smaller "
            "patches, --images procedural, or a folder of larger images."
        )
    return sources, skipped


def split_sources(sources: list[Source], seed: int) -> dict[str, list[Source]]:
    """Sources of train, validation and test; the same names and seed give the same split.

    Built-in images are divided by TEST_IMAGES and VALIDATION_IMAGES, procedural images by their
    number within each kind, files by a seeded shuffle.
    """
    split: dict[str, list[Source]] = {key: [] for key in SPLITS}
    by_name = sorted(sources, key=lambda source: source.name)
    builtin = [source for source in by_name if source.kind == "builtin"]
    split["test"] += [source for source in builtin if source.name in TEST_IMAGES]
    split["validation"] += [source for source in builtin if source.name in VALIDATION_IMAGES]
    rest = TEST_IMAGES + VALIDATION_IMAGES
    split["train"] += [source for source in builtin if source.name not in rest]
    for kind in OBJECTS:
        one_kind = [source for source in by_name if source.object_kind == kind]
        _divide(
            split,
            sorted(one_kind, key=lambda source: source.index),
            PROCEDURAL_SPLIT,
            f"images of {kind}",
        )
    files = [source for source in by_name if source.kind == "file"]
    _divide(split, _shuffled(files, seed), FILE_SPLIT, "usable image files")
    empty = [key for key in SPLITS if not split[key]]
    if empty:
        raise InputError(
            f"No source image is left for {' and '.join(empty)}. Use smaller patches, or more "
            "and larger images."
        )
    return split


def read_plane(source: Source, page: int = 0) -> np.ndarray:
    """Luminance of one plane, (H, W) float32 in [0, 1]; `page` is one of its `pages`.

    The array belongs to the cache: do not write into it.

    Integers are divided by the range of their type. Floats are kept if they lie within [0, 1];
    otherwise they are scaled from their minimum to their maximum. Colour becomes Rec. 709
    luminance.
    """
    key = (source, page)
    if key in _cache:
        _cache.move_to_end(key)
        return _cache[key]
    plane = _load_plane(source, page)
    _cache[key] = plane
    # The newest plane is kept, even if it is larger than the limit.
    while len(_cache) > 1 and sum(kept.nbytes for kept in _cache.values()) > _CACHE_LIMIT_BYTES:
        _cache.popitem(last=False)
    return plane


def limit_cache(limit_bytes: int) -> None:
    """Keep fewer planes in this process: `limit_bytes` of them, and at least the newest."""
    global _CACHE_LIMIT_BYTES
    _CACHE_LIMIT_BYTES = limit_bytes


def plane_shape(source: Source, page: int = 0) -> tuple[int, int]:
    """Height and width of one plane, px."""
    if source.shapes:
        return source.shapes[source.pages.index(page)]
    return (source.size, source.size) if source.size else read_plane(source, page).shape


def source_hash(source: Source) -> str:
    """SHA-256 of an image file, or of the pixels of a built-in image; "" for a procedural one.

    Raises
    ------
    InputError
        If the file is gone.
    """
    if source.kind == "procedural":
        return ""
    if source.kind == "builtin":
        return hashlib.sha256(read_plane(source).tobytes()).hexdigest()
    try:
        with open(source.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            f"{source.path} can no longer be read ({error.strerror}). Put the image back."
        ) from error


def _load_plane(source: Source, page: int) -> np.ndarray:
    if source.kind == "builtin":
        return to_luminance(_BUILTIN[source.name]())
    if source.kind == "procedural":
        # The kind is part of the seed; otherwise beads_007 and nuclei_007 would share their layout.
        kind_number = list(OBJECTS).index(source.object_kind)
        rng = np.random.default_rng((source.seed, kind_number, source.index))
        return OBJECTS[source.object_kind](rng, source.size)
    try:
        return next(decode_planes(Path(source.path), page))
    except DECODE_ERRORS as error:
        raise InputError(
            f"{source.path} can no longer be decoded ({error}). Leave the images in place while "
            "the program runs."
        ) from error


def _flaw(plane: np.ndarray, min_side: int) -> str | None:
    """Reason why a plane cannot be used; None if it can."""
    height, width = plane.shape
    if min(height, width) < min_side:
        return f"too small ({width} x {height} px, {min_side} px needed)"
    if not np.isfinite(plane).all():
        return "holds NaN or infinite values"
    if plane.min() == plane.max():
        return "constant"
    return None


def _shuffled(sources: list[Source], seed: int) -> list[Source]:
    return [sources[i] for i in np.random.default_rng(seed).permutation(len(sources))]


def _divide(
    split: dict[str, list[Source]], ordered: list[Source], shares: tuple[float, ...], what: str
) -> None:
    """Append consecutive parts of `ordered` to train, validation and test, one image at least."""
    if not ordered:
        return
    if len(ordered) < len(shares):
        raise InputError(
            f"{len(ordered)} {what} cannot be divided into {', '.join(SPLITS)}. Give at least "
            f"{len(shares)}: no image may be in two splits."
        )
    later = [max(1, round(share * len(ordered))) for share in shares[1:]]
    start = 0
    for key, size in zip(SPLITS, [len(ordered) - sum(later), *later], strict=False):
        split[key] += ordered[start : start + size]
        start += size


def _some(items: list[str]) -> str:
    return "; ".join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")

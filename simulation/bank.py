"""A bank of source images on one device, from which batches of crops are sampled.

A source image is cut into tiles of the size of a row of the bank, so that one call samples crops of
many images. A tile is loaded when it is drawn. If the bank is full, the tile that was not drawn for
the longest time makes room, so a folder of any size needs a limited amount of memory.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from psf.errors import InputError
from simulation.content import MIN_PATCH_PX, sharp_places
from simulation.sources import Source, plane_shape, read_plane

LEAST_SIDE_PX = 512  # of a tile: that of most built-in and of all procedural images
WHITE = 32767  # stored value of a pixel of 1; int16 is half as large as float32, and faster to read
LIMIT_BYTES = 512 * 2**20  # of the pixels of a bank that loads its tiles when they are drawn
# If fewer of the tiles that were drawn have sharp content, the images are unsuitable.
MIN_SHARP_SHARE = 0.01
TILES_BEFORE_GIVING_UP = 500  # drawn before that share is judged
MOST_DRAWN = 64  # tiles in one draw; the bank has room for all of them


@dataclass(frozen=True)
class Tile:
    """Where one tile lies: the page of a source image, and its first row and column."""

    source: Source
    page: int
    row: int
    column: int


@dataclass(frozen=True)
class Pixels:
    """A loaded tile."""

    values: np.ndarray  # (h, w) int16, white at WHITE
    places: np.ndarray  # (M, 2) centres of its windows with sharp content, row and column in px


def tile_side(crop_size: int) -> int:
    """Side of the tiles for crops of this size, px."""
    return max(LEAST_SIDE_PX, crop_size)


def tiles_of(source: Source, crop_size: int) -> list[Tile]:
    """Tiles of all pages of a source for crops of this size, px.

    In a larger image they overlap by about a half.
    """
    side, tiles = tile_side(crop_size), []
    for page in source.pages:
        starts = []
        for edge in plane_shape(source, page):
            count = 1 + max(0, -(-2 * (edge - side) // side))
            starts.append(np.linspace(0, max(0, edge - side), count).round().astype(int).tolist())
        tiles += [Tile(source, page, row, column) for row in starts[0] for column in starts[1]]
    return tiles


def load_tile(tile: Tile, side: int, patch_size: int) -> Pixels:
    """Pixels of a tile of at most `side` px, and its windows of `patch_size` px with content."""
    plane = read_plane(tile.source, tile.page)
    part = plane[tile.row : tile.row + side, tile.column : tile.column + side]
    return Pixels(np.rint(part * WHITE).astype(np.int16), sharp_places(part, patch_size))


class Bank:
    """Tiles of source images on a device, with the places of their sharp content.

    `pixels` is (rows, side, side) int16. `shapes` (rows, 2) are the sizes of the tiles in it.
    `places` (rows, M, 2) are the centres of their sharp windows, NaN after the last one.

    Raises
    ------
    InputError
        If there is no source, or the sizes do not fit.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        crop_size: int,
        patch_size: int,
        device: torch.device | str = "cpu",
        rows: int | None = None,
    ) -> None:
        if not MIN_PATCH_PX <= patch_size <= crop_size:
            raise InputError(
                f"A patch of {patch_size} px in a crop of {crop_size} px is not possible. Give a "
                f"patch of at least {MIN_PATCH_PX} px that fits into its crop."
            )
        if not sources:
            raise InputError("There is no source image to draw crops from; give at least one.")
        self.crop_size, self.patch_size, self.side = crop_size, patch_size, tile_side(crop_size)
        self.choose_from(tile for source in sources for tile in tiles_of(source, crop_size))
        self.device = torch.device(device)
        count = sum(len(tiles) for group in self.tiles.values() for tiles in group)
        rows = rows or min(count, max(MOST_DRAWN, LIMIT_BYTES // (2 * self.side**2)))
        # not filled: the system gives memory to a row when a tile is written into it
        self.pixels = torch.empty(rows, self.side, self.side, dtype=torch.int16, device=device)
        self.shapes = np.zeros((rows, 2), np.int64)
        self.places = np.full((rows, 1, 2), np.nan)
        self.occupants: list[Tile | None] = [None] * rows
        self._row_of: OrderedDict[Tile, int] = OrderedDict()  # last drawn last
        self._without_content: set[Tile] = set()

    def choose_from(self, tiles: Iterable[Tile]) -> None:
        """Draw only these tiles from now on.

        Kinds of sources are equally likely, the sources of a kind, and the tiles of a source.
        """
        by_source: dict[Source, list[Tile]] = {}
        for tile in tiles:
            by_source.setdefault(tile.source, []).append(tile)
        self.tiles: dict[str, list[list[Tile]]] = {}
        for source, some in by_source.items():
            self.tiles.setdefault(source.kind, []).append(some)

    def put(self, row: int, tile: Tile, pixels: Pixels) -> None:
        """Write a loaded tile into a row, in place of the one that is there."""
        height, width = pixels.values.shape
        # A window ends at the last pixel; the pixel after it has a weight of 0 or of rounding.
        padding = tuple((0, min(1, self.side - edge)) for edge in (height, width))
        padded = torch.from_numpy(np.pad(pixels.values, padding, mode="edge"))
        self.pixels[row, : padded.shape[0], : padded.shape[1]] = padded.to(self.device)
        self.shapes[row] = height, width
        missing = len(pixels.places) - self.places.shape[1]
        if missing > 0:
            self.places = np.pad(
                self.places, ((0, 0), (0, missing), (0, 0)), constant_values=np.nan
            )
        self.places[row] = np.nan
        self.places[row, : len(pixels.places)] = pixels.places
        self.clear(row)
        self.occupants[row], self._row_of[tile] = tile, row

    def clear(self, row: int) -> None:
        """Forget the tile in a row."""
        if self.occupants[row] is not None:
            del self._row_of[self.occupants[row]]
        self.occupants[row] = None

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Rows (count,) of random tiles with sharp content, which are loaded if necessary.

        A bank that does not hold all tiles may draw at most MOST_DRAWN.

        Raises
        ------
        InputError
            If hardly any tile has sharp content.
        """
        kinds = sorted(self.tiles)
        rows: list[int] = []
        proposed = 0
        while len(rows) < count:
            if proposed >= TILES_BEFORE_GIVING_UP and len(rows) < MIN_SHARP_SHARE * proposed:
                raise InputError(self._nothing_sharp())
            picks = rng.random((count - len(rows), 3))
            proposed += len(picks)
            for kind, source, tile in picks:
                group = self.tiles[kinds[int(kind * len(kinds))]]
                tiles = group[int(source * len(group))]
                row = self._loaded(tiles[int(tile * len(tiles))], rows)
                if row is not None:
                    rows.append(row)
        return np.array(rows, np.int64)

    def draw_source(self, rng: np.random.Generator, most: int) -> np.ndarray:
        """Rows of the tiles with sharp content, at most `most`, of one random source.

        The bank must have room for the tiles of all draws whose rows are used together.
        """
        kinds = sorted(self.tiles)
        for _ in range(TILES_BEFORE_GIVING_UP):
            group = self.tiles[kinds[rng.integers(len(kinds))]]
            tiles = group[rng.integers(len(group))]
            first = rng.integers(max(1, len(tiles) - most + 1))
            rows = [self._loaded(tile, []) for tile in tiles[first : first + most]]
            if found := [row for row in rows if row is not None]:
                return np.array(found, np.int64)
        raise InputError(self._nothing_sharp())

    def _loaded(self, tile: Tile, in_use: list[int]) -> int | None:
        """Row of a tile, which is loaded if it is not in the bank; None if it has no content."""
        if tile in self._row_of:
            self._row_of.move_to_end(tile)
            return self._row_of[tile]
        if tile in self._without_content:
            return None
        pixels = load_tile(tile, self.side, self.patch_size)
        if not len(pixels.places):
            self._without_content.add(tile)
            return None
        self.put(self._free_row(in_use), tile, pixels)
        return self._row_of[tile]

    def _free_row(self, in_use: list[int]) -> int:
        """An empty row, or that of the tile that was not drawn for the longest time."""
        if len(self._row_of) < len(self.occupants):
            return self.occupants.index(None)
        return next(row for row in self._row_of.values() if row not in in_use)

    def _nothing_sharp(self) -> str:
        names = [tiles[0].source.name for group in self.tiles.values() for tiles in group]
        some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        return (
            f"Hardly any part of {len(names)} images ({some}) is sharp and has enough contrast and "
            "detail. Give images in focus with detail all over the field; leave out blurred, empty "
            "or enlarged ones, and subtract a background that takes most of the contrast."
        )

"""Draws the slides of `digit_slides`: canvases of tiles with handwritten digits and clutter.

    options = Options(slides=40, seed=0)
    for slide in draw_slides(options):
        slide.tiles, slide.coords, slide.labels     # [n, 32, 32], [n, 2], [n]

A slide is a grid of 16 to 64 tiles a side. Part of it is paper: a blob of grey, with noise, strokes and
pieces of digits, and in every third tile a whole digit; the rest is empty glass, whose tiles are left out. A
slide is positive where some of its digits, in few tiles, are the target.

Several slides are by one writer. Who wrote the digits of scikit-learn is not known, so these writers are
drawn: each has originals that no other has, and a size, slant, stroke and ink of their own.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from lossattn_jax.data import digit_rendering
from lossattn_jax.data.digit_rendering import Glyph
from lossattn_jax.data.legible_digits import Digits, load_legible
from lossattn_jax.errors import UserError

TILE = digit_rendering.SIZE  # pixels per side
NEGATIVE, POSITIVE = "negative", "positive"
SLIDES_PER_WRITER = 4
WRITERS = 40  # at most; each has four originals of a digit
GLASS = 255  # grey level of what is empty

_WRITER_KEY, _ORIGINALS_KEY, _SLIDE_KEY = 0x3217, 0x0419, 0x511D  # keep draws of one seed apart
# Of five writers three are to train on, one to validate, one to test.
_SPLITS = ("train", "train", "train", "validation", "test")
_MIN_COVERED = 0.25  # of a tile that is no background
_PAPER = (0.25, 0.4)  # share of a slide's tiles
_DIGITS = 0.35  # of the tiles that are paper all over have a digit
_TARGETS = (0.12, 0.25)  # of them have the target, in a positive slide
_SHIFT = 1.5  # pixels that a digit is off the middle of its tile
_PIECES, _STROKES = 0.25, 0.2  # of the tiles have one


@dataclasses.dataclass(frozen=True)
class Options:
    """What the slides follow from.

    Attributes:
      slides: how many; `SLIDES_PER_WRITER` by each writer.
      seed: of all draws, 0 or more.
      target: the digit that makes a slide positive.
      sides: smallest and largest number of tiles of a side.

    Raises:
      UserError: a value is impossible.
    """

    slides: int = 120
    seed: int = 0
    target: int = 3
    sides: tuple[int, int] = (16, 64)

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("slides", self.slides, 1, WRITERS * SLIDES_PER_WRITER),
            ("seed", self.seed, 0, math.inf),
            ("target", self.target, 0, 9),
            ("sides", self.sides[0], 8, self.sides[1]),
        ):
            if not low <= value <= high:
                raise UserError(
                    f"{name} of digit_slides is {value}, but must be a number from {low} to {high}"
                )


@dataclasses.dataclass(frozen=True, eq=False)
class Slide:
    """A slide without its empty tiles.

    Attributes:
      name: of the slide.
      writer: of its digits.
      split: "train", "validation" or "test", the same for all slides of a writer.
      label: `POSITIVE` where the target is on it, else `NEGATIVE`.
      grid: rows and columns of the whole canvas, in tiles.
      tiles: uint8 `[n, TILE, TILE]`, row by row.
      coords: int64 `[n, 2]`, x and y of a tile's upper left corner in pixels of the canvas.
      labels: uint8 `[n]`, 1 for a tile with the target.
      digits: int8 `[n]`, the digit in a tile; -1 where there is none.
    """

    name: str
    writer: str
    split: str
    label: str
    grid: tuple[int, int]
    tiles: np.ndarray
    coords: np.ndarray
    labels: np.ndarray
    digits: np.ndarray

    def thumbnail(self, shrink: int) -> np.ndarray:
        """Makes a small picture of the whole canvas.

        Args:
          shrink: pixels per side of which one becomes the mean; divides `TILE`.

        Returns:
          uint8 `[rows * TILE / shrink, columns * TILE / shrink]`.
        """
        side = TILE // shrink
        small = self.tiles.reshape(-1, side, shrink, side, shrink).sum((2, 4), dtype=np.int64)
        canvas = np.full((self.grid[0], side, self.grid[1], side), GLASS, np.uint8)
        column, row = self.coords.T // TILE
        canvas[row, :, column] = small // shrink**2
        return canvas.reshape(self.grid[0] * side, -1)


@dataclasses.dataclass(frozen=True)
class _Writer:
    """A writer's digits and style; lengths in pixels, grey levels from 0 (black) to 1."""

    digits: Digits
    height: float
    aspect: float
    slant: float
    boldness: float
    paper: float
    ink: float
    noise: float


def draw_slides(options: Options) -> Iterator[Slide]:
    """Draws the slides; slide i depends on the options but for their number, and on i."""
    writers = _share_digits(options)
    for index in range(options.slides):
        number = index // SLIDES_PER_WRITER
        rng = _generator(options.seed, _WRITER_KEY, number)
        writer = _draw_writer(rng, writers[number])
        # Two of four slides are positive, in any order.
        positive = rng.permutation(SLIDES_PER_WRITER) % 2 == 1
        yield _draw_slide(options, index, writer, bool(positive[index % SLIDES_PER_WRITER]))


def _generator(*entropy: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))


def _share_digits(options: Options) -> list[Digits]:
    """Gives each writer originals of all digits that no other has."""
    digits = load_legible()
    order = _generator(options.seed, _ORIGINALS_KEY).permutation(len(digits.labels))
    ranks = np.empty(len(order), np.int64)  # of a digit among those of its label, in this order
    for label in range(10):
        rows = order[digits.labels[order] == label]
        ranks[rows] = np.arange(len(rows))
    # Of as many writers as there may be, so that more slides do not change the first ones.
    return [digits.select(np.flatnonzero(ranks % WRITERS == number)) for number in range(WRITERS)]


def _draw_writer(rng: np.random.Generator, digits: Digits) -> _Writer:
    paper = rng.uniform(0.6, 0.9)
    return _Writer(
        digits,
        height=rng.uniform(19, 22),
        aspect=rng.uniform(0.9, 1.1),
        slant=rng.uniform(0, 0.25),
        boldness=rng.uniform(-0.08, 0.08),
        paper=paper,
        ink=paper - rng.uniform(0.35, 0.5),
        noise=rng.uniform(0.01, 0.03),
    )


def _draw_slide(options: Options, index: int, writer: _Writer, positive: bool) -> Slide:
    rng = _generator(options.seed, _SLIDE_KEY, index)
    low, high = np.log(options.sides)
    rows, columns = (int(side) for side in np.rint(np.exp(rng.uniform(low, high, 2))))
    covered = _draw_paper(rng, rows, columns)
    share = covered.mean((1, 3)).reshape(-1)
    place = np.flatnonzero(share >= _MIN_COVERED)
    row, column = np.divmod(place, columns)
    tiles = _draw_ground(rng, writer, row, column, (rows, columns))
    _draw_clutter(rng, writer, tiles)
    digits = _choose_digits(rng, options.target, share[place] == 1, positive)
    for number in np.flatnonzero(digits >= 0):
        _draw_digit(rng, writer, tiles[number], int(digits[number]))
    tiles += rng.standard_normal(tiles.shape, np.float32) * np.float32(writer.noise)
    grey = np.rint(np.clip(tiles, 0, 1) * 255).astype(np.uint8)
    grey[~covered[row, :, column]] = GLASS
    writer_number = index // SLIDES_PER_WRITER
    return Slide(
        name=f"slide_{index:03d}",
        writer=f"writer_{writer_number:02d}",
        split=_SPLITS[writer_number % len(_SPLITS)],
        label=POSITIVE if positive else NEGATIVE,
        grid=(rows, columns),
        tiles=grey,
        coords=TILE * np.stack([column, row], axis=1).astype(np.int64),
        labels=(digits == options.target).astype(np.uint8),
        digits=digits,
    )


def _draw_paper(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Draws where a canvas is paper, bool `[rows, TILE, columns, TILE]`."""
    corners = rng.standard_normal((rows + 1, columns + 1))
    smooth = ndimage.gaussian_filter(corners, 0.09 * max(rows, columns), mode="nearest")
    y, x = np.linspace(-1, 1, rows + 1)[:, None], np.linspace(-1, 1, columns + 1)
    # Paper rarely touches the canvas' edges.
    field = smooth / smooth.std() - 2 * np.maximum(np.abs(x), np.abs(y)) ** 4
    pixels = _interpolate(field.astype(np.float32), rows, columns)
    return pixels > np.quantile(field, 1 - rng.uniform(*_PAPER))


def _interpolate(corners: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Interpolates values at tiles' corners `[rows + 1, columns + 1]` over their pixels."""
    along = ((np.arange(TILE) + 0.5) / TILE).astype(np.float32)
    top = corners[:-1, None] + along[None, :, None] * (corners[1:, None] - corners[:-1, None])
    left, right = top[..., :-1, None], top[..., 1:, None]
    return left + along * (right - left)


def _draw_ground(
    rng: np.random.Generator,
    writer: _Writer,
    row: np.ndarray,
    column: np.ndarray,
    grid: tuple[int, int],
) -> np.ndarray:
    """Draws tiles of paper, whose shade changes from place to place: float32 `[n, TILE, TILE]`."""
    shade = rng.uniform(-0.06, 0.06, (grid[0] + 1, grid[1] + 1)).astype(np.float32)
    return _interpolate(shade, *grid)[row, :, column] + np.float32(writer.paper)


def _draw_clutter(rng: np.random.Generator, writer: _Writer, tiles: np.ndarray) -> None:
    """Draws strokes and pieces of digits, too small to be read, over some tiles."""
    for number in np.flatnonzero(rng.random(len(tiles)) < _STROKES):
        _blend(tiles[number], digit_rendering.draw_strokes(rng, 1)[0], _draw_ink(rng, writer))
    for number in np.flatnonzero(rng.random(len(tiles)) < _PIECES):
        glyph = writer.digits.glyphs[rng.integers(len(writer.digits.glyphs))]
        row, column, size = (int(rng.integers(*ends)) for ends in ((1, 5), (1, 5), (3, 5)))
        piece = glyph.piece(row, column, size)
        shift = rng.uniform(-TILE / 2, TILE / 2, 2)
        ink = piece.coverage(
            writer.height, writer.aspect, rng.uniform(-np.pi, np.pi), shift=(shift[0], shift[1])
        )
        _blend(tiles[number], ink, _draw_ink(rng, writer))


def _draw_ink(rng: np.random.Generator, writer: _Writer) -> np.float32:
    return np.float32(writer.ink + rng.uniform(-0.08, 0.08))


def _choose_digits(
    rng: np.random.Generator, target: int, whole: np.ndarray, positive: bool
) -> np.ndarray:
    """Chooses the digit of each tile, int8 `[n]`; -1: none."""
    digits = np.full(len(whole), -1, np.int8)
    places = rng.permutation(np.flatnonzero(whole))
    places = places[: max(2, round(_DIGITS * len(places)))]
    others = np.delete(np.arange(10), target)
    digits[places] = rng.choice(others, len(places))
    if positive:
        count = max(2, round(rng.uniform(*_TARGETS) * len(places)))
        digits[places[:count]] = target
    return digits


def _draw_digit(rng: np.random.Generator, writer: _Writer, tile: np.ndarray, label: int) -> None:
    """Draws a whole digit about the middle of a tile."""
    own = np.flatnonzero(writer.digits.labels == label)
    glyph = writer.digits.glyphs[rng.choice(own)]
    shift = rng.uniform(-_SHIFT, _SHIFT, 2)
    ink = Glyph(glyph.ink, glyph.rim + writer.boldness).coverage(
        writer.height * rng.uniform(0.95, 1.05),
        writer.aspect,
        turn=rng.uniform(-0.1, 0.1),
        slant=writer.slant,
        shift=(shift[0], shift[1]),
    )
    _blend(tile, ink, _draw_ink(rng, writer))


def _blend(tile: np.ndarray, ink: np.ndarray, level: np.float32) -> None:
    tile += ink * (level - tile)

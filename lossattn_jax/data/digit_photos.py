"""Draws the photographs of `digit_photos`: a folder of image files of many sizes and modes.

    FOLDER/train/3/photo_0013.png, FOLDER/test/...
    FOLDER/images.csv           path,label,split,ymin,xmin,ymax,xmax (pixels of the upright picture)

A picture is a cluttered ground, as those of `digit_scenes`, with one whole handwritten digit that is its
class. Files are JPEG, PNG, TIFF, WebP and BMP: in colour, grey, with a palette, with transparency, in CMYK,
with 16 bits a sample, and on their side with an orientation in EXIF. The folder is like one of a user's own.
"""

import csv
import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from lossattn_jax import files
from lossattn_jax.data import digit_rendering
from lossattn_jax.data.digit_rendering import Glyph
from lossattn_jax.data.legible_digits import Digits, split_digits
from lossattn_jax.errors import UserError

TABLE_NAME = "images.csv"
_PHOTO_KEY = 0xF070
_SPLIT_KEYS = {"train": 0, "test": 1}
_PIECES = 4  # of other digits in a picture
_SHARES = (0.3, 0.5)  # of the shorter side that a digit is high
_NOISE = 0.02  # of white
_ON_ITS_SIDE = 6  # EXIF: turned clockwise by a quarter to be upright
_ORIENTATION = 0x0112  # of EXIF


@dataclasses.dataclass(frozen=True)
class Options:
    """What the photographs follow from.

    Attributes:
      train: how many training photographs; the ten classes take turns.
      test: how many test photographs.
      sides: smallest and largest height and width, in pixels.
      seed: of all draws, 0 or more.

    Raises:
      UserError: a value is impossible.
    """

    train: int = 600
    test: int = 200
    sides: tuple[int, int] = (160, 260)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, low in (
            ("train", self.train, 10),
            ("test", self.test, 10),
            ("seed", self.seed, 0),
            ("the smallest side", self.sides[0], 48),
            ("the largest side", self.sides[1], self.sides[0]),
        ):
            if value < low:
                raise UserError(f"{name} of digit_photos is {value}, but must be {low} or more")


@dataclasses.dataclass(frozen=True, eq=False)
class Photo:
    """A photograph before it is a file.

    Attributes:
      split: "train" or "test".
      number: in its split.
      label: the digit on it.
      image: `[H, W, 3]` uint8.
      box: of the digit: ymin, xmin, ymax, xmax in pixels.
    """

    split: str
    number: int
    label: int
    image: np.ndarray
    box: tuple[int, int, int, int]


def draw_photos(options: Options) -> Iterator[Photo]:
    """Draws the photographs; one depends on seed and sides, its split and its number."""
    digits = split_digits(options.seed)
    for split, count in (("train", options.train), ("test", options.test)):
        for number in range(count):
            entropy = np.random.SeedSequence([options.seed, _PHOTO_KEY, _SPLIT_KEYS[split], number])
            rng = np.random.Generator(np.random.Philox(entropy))
            label = number % 10
            image, box = _draw(rng, digits[split], label, options.sides)
            yield Photo(split, number, label, image, box)


def write_photos(folder: pathlib.Path, options: Options) -> list[str]:
    """Writes the photographs and their table.

    Args:
      folder: that exists, and is empty.
      options: of the photographs.

    Returns:
      The files' paths in the folder.

    Raises:
      OSError: it cannot be written.
    """
    rows: list[tuple[Any, ...]] = []
    for photo in draw_photos(options):
        ending, encode = _FORMATS[photo.number // 10 % len(_FORMATS)]  # each class has all of them
        path = f"{photo.split}/{photo.label}/photo_{photo.number:04d}.{ending}"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        files.write(folder / path, encode(Image.fromarray(photo.image)))
        rows.append((path, photo.label, photo.split, *photo.box))
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("path", "label", "split", "ymin", "xmin", "ymax", "xmax"))
    writer.writerows(rows)
    files.write(folder / TABLE_NAME, table.getvalue().encode())
    return [os.fspath(row[0]) for row in rows]


def _draw(
    rng: np.random.Generator, digits: Digits, label: int, sides: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Draws a picture `[H, W, 3]` uint8 and its digit's box in pixels."""
    height, width = (int(side) for side in rng.integers(sides[0], sides[1] + 1, 2))
    pieces = [_cut_piece(rng, digits.glyphs) for _ in range(_PIECES)]
    small = Image.fromarray(_to_levels(digit_rendering.background(rng, pieces)))
    ground = small.resize((width, height), Image.Resampling.BICUBIC)
    scene = np.asarray(ground).astype(np.float32) / 255
    glyph = digits.glyphs[int(rng.choice(np.flatnonzero(digits.labels == label)))]
    size = min(height, width)
    ink = glyph.coverage(
        size * rng.uniform(*_SHARES),
        aspect=rng.uniform(0.85, 1.15),
        turn=rng.uniform(-0.22, 0.22),
        slant=rng.uniform(-0.1, 0.3),
        size=size,
    )
    canvas, box = digit_rendering.place(rng, ink, (height, width))
    colour = digit_rendering.choose_colour(rng, scene, box)
    scene += canvas[..., None] * (colour - scene)
    scene += rng.standard_normal(scene.shape, np.float32) * np.float32(_NOISE)
    return _to_levels(scene), box


def _cut_piece(rng: np.random.Generator, glyphs: list[Glyph]) -> Glyph:
    glyph = glyphs[int(rng.integers(len(glyphs)))]
    row, column = (int(place) for place in rng.integers((0, 1), 5))
    return glyph.piece(row, column, int(rng.integers(3, 5)))


def _to_levels(scene: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(scene, 0, 1) * 255).astype(np.uint8)


def _encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _encode_16_bits(picture: Image.Image) -> bytes:
    grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    return _encode(Image.fromarray(grey), "PNG")


def _encode_transparent(picture: Image.Image) -> bytes:
    opaque = picture.convert("RGBA")
    alpha = np.full(picture.size[::-1], 255, np.uint8)
    alpha[:4] = alpha[-4:] = 0  # a rim, which becomes white
    opaque.putalpha(Image.fromarray(alpha))
    return _encode(opaque, "PNG")


def _encode_on_its_side(picture: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[_ORIENTATION] = _ON_ITS_SIDE
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    return _encode(turned, "JPEG", quality=90, exif=exif)


# Endings of names, and what encodes a picture of mode RGB.
_FORMATS: tuple[tuple[str, Callable[[Image.Image], bytes]], ...] = (
    ("jpg", lambda picture: _encode(picture, "JPEG", quality=90)),
    ("png", lambda picture: _encode(picture, "PNG")),
    ("jpeg", lambda picture: _encode(picture.convert("L"), "JPEG", quality=90)),
    ("png", lambda picture: _encode(picture.convert("P", palette=Image.Palette.ADAPTIVE), "PNG")),
    ("JPG", _encode_on_its_side),
    ("tif", lambda picture: _encode(picture.convert("CMYK"), "TIFF")),
    ("png", _encode_transparent),
    ("webp", lambda picture: _encode(picture, "WEBP", quality=90)),
    ("png", _encode_16_bits),
    ("bmp", lambda picture: _encode(picture, "BMP")),
)

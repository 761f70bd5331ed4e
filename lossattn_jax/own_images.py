"""The user's own image files, of any size and mode, brought to a network's size."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from lossattn_jax.errors import UserError

# Files of a folder that are taken for images, in small letters.
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
FITS = ("resize", "tile")
# Pillow's names of these formats; it knows others, of which EPS runs Ghostscript on what is in the file.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


@dataclasses.dataclass(frozen=True)
class OwnImages:
    """Images that could be read, and files that could not.

    Attributes:
      names: `N`: the file's name, with tiles also their place.
      images: `[N, H, W, 3]` uint8.
      places: of each image its file's place in `files`, and its tile's row and column.
      files: names of the files that could be read.
      refused: a sentence for each file that could not.
    """

    names: tuple[str, ...]
    images: np.ndarray
    places: tuple[tuple[int, int, int], ...]
    files: tuple[str, ...]
    refused: tuple[str, ...]


def find(paths: Sequence[str | pathlib.Path]) -> list[pathlib.Path]:
    """Files as they are named, and of a folder its image files (`SUFFIXES`) by name, without its folders.

    Raises:
      UserError: a folder has no image file.
    """
    files: list[pathlib.Path] = []
    for path in map(pathlib.Path, paths):
        if not os.path.isdir(path):  # pathlib's raises where a name is too long
            files.append(path)
            continue
        inside = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not inside:
            raise UserError(f"the folder {path} has no image file ({', '.join(SUFFIXES)})")
        files += inside
    return files


def read(
    paths: Sequence[str | pathlib.Path],
    shape: tuple[int, int, int],
    fit: str = "resize",
    most: int = 1000,
) -> OwnImages:
    """Reads files and folders; a file that cannot be read is left out and named.

    Args:
      paths: files and folders.
      shape: (height, width, 3) of the network's images.
      fit: "resize", as data sets of images of any size are for training; or "tile": cut into images of
        the network's size, pixel for pixel. Where they do not fill a side, the last one is moved back so
        that it ends with the image; a smaller image is padded with its edge.
      most: images, or tiles, that may come out.

    Raises:
      UserError: a folder without images, an unknown `fit`, no file that can be read, or too many images.
    """
    if fit not in FITS:
        raise UserError(f"fit is {fit!r}, but must be one of: {', '.join(FITS)}")
    names: list[str] = []
    images: list[np.ndarray] = []
    places: list[tuple[int, int, int]] = []
    files: list[str] = []
    refused: list[str] = []
    for path in find(paths):
        try:
            whole = read_image(path, shape if fit == "resize" else None)
        except UserError as error:
            refused.append(str(error))
            continue
        # Counted before anything is cut: a file of some kB may have millions of rows.
        rows, columns = (
            len(_starts(max(n, s), s)) for n, s in zip(whole.shape[:2], shape[:2], strict=True)
        )
        if len(images) + rows * columns > most:
            what = f"{rows}x{columns} tiles of {path}" if fit == "tile" else str(path)
            raise UserError(
                f"{what} would make more than {most} images; name fewer files, or resize them"
            )
        grid = [[whole]] if fit == "resize" else tiles(whole, shape[:2])
        for row, column in np.ndindex(len(grid), len(grid[0])):
            one = len(grid) * len(grid[0]) == 1
            names.append(path.name if one else f"{path.name}, tile {row + 1}, {column + 1}")
            images.append(grid[row][column])
            places.append((len(files), row, column))
        files.append(path.name)
    if not images:
        raise UserError("no image could be read: " + "; ".join(refused))
    return OwnImages(tuple(names), np.stack(images), tuple(places), tuple(files), tuple(refused))


def tiles(image: np.ndarray, size: tuple[int, int]) -> list[list[np.ndarray]]:
    """Rows of tiles `[size, C]` that together hold every pixel of an image `[H, W, C]`."""
    (height, width), (high, wide) = image.shape[:2], size
    missing = ((0, max(high - height, 0)), (0, max(wide - width, 0)), (0, 0))
    image = np.pad(image, missing, mode="edge")
    return [
        [image[top : top + high, left : left + wide] for left in _starts(image.shape[1], wide)]
        for top in _starts(image.shape[0], high)
    ]


def _starts(length: int, size: int) -> list[int]:
    return [min(number * size, length - size) for number in range(math.ceil(length / size))]


def read_image(path: str | pathlib.Path, shape: tuple[int, int, int] | None) -> np.ndarray:
    """Reads an image file of any size and mode as uint8 `shape` (height, width, 3), or its own with None.

    It is turned upright and resized; one of another shape is squeezed. Transparent parts become white.

    Raises:
      UserError: there is no such file, or it is not an image of one of the formats of `SUFFIXES`.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=_FORMATS) as image:
            upright = ImageOps.exif_transpose(image)
            # 16 bits of grey, which `convert` would cut off at 255
            if upright.mode.startswith("I"):
                upright = Image.fromarray(
                    (np.asarray(upright) // 256).clip(0, 255).astype(np.uint8)
                )
            if upright.has_transparency_data:
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright.convert("RGBA"))
            rgb = upright.convert("RGB")
            if shape is not None:
                rgb = rgb.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
            return np.asarray(rgb)
    except FileNotFoundError:
        raise UserError(f"the image {path} does not exist") from None
    except Exception as error:  # decoders fail in many ways on damaged files
        raise UserError(f"{path} cannot be read as an image: {error}") from None

"""A user's own image files, resized for a network."""

import collections
import contextlib
import dataclasses
import logging
import math
import os
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from lossattn_jax.data import picture_depth
from lossattn_jax.data.views import DRAFT, View
from lossattn_jax.errors import UserError
from lossattn_jax.files import LACKS, open_regular, refuse_url

log = logging.getLogger(__name__)

# Files of a folder that are taken for images, in small letters.
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
FITS = ("resize", "tile")
ARRAY_BANDS = (1, 3, 4)  # channels that an array may have
# Pillow's names of these formats; it knows others, of which EPS runs Ghostscript on what is in the file.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_SIDES = (256, 257)  # tags of a TIFF: width and height
_ON_THEIR_SIDE = (5, 6, 7, 8)  # orientations of EXIF


class TooManyImages(UserError):
    """There are more images or tiles than may be."""


@dataclasses.dataclass(frozen=True)
class OwnImages:
    """Images that were read, and reasons for those that were not.

    Attributes:
      names: `N`: the file's name, with tiles also their place; see `short_names`.
      images: `[N, H, W, 3]` uint8.
      places: of each image its file's place in `files`, and its tile's row and column.
      files: names of the files that could be read.
      refusals: a sentence for each file that could not.
    """

    names: tuple[str, ...]
    images: np.ndarray
    places: tuple[tuple[int, int, int], ...]
    files: tuple[str, ...]
    refusals: tuple[str, ...]


def find(paths: Sequence[str | pathlib.Path]) -> list[pathlib.Path]:
    """Finds files by name, and image files (`SUFFIXES`) within folders.

    Those of a folder are in the order of their paths. Folders in it that are symbolic links are left out,
    which is said. A file that is named or found several times is there once.

    Raises:
      UserError: a folder has no image file, or cannot be read; or a path is an address of the network.
    """
    files: dict[str, pathlib.Path] = {}
    for name in paths:
        refuse_url(name, "the image")
        path = pathlib.Path(name)
        inside = [path]
        if os.path.isdir(path):  # pathlib's raises where a name is too long
            inside = list_files(path)
        if not inside:
            raise UserError(f"the folder {path} has no image file ({', '.join(SUFFIXES)})")
        for file in inside:
            files.setdefault(os.path.abspath(file), file)
    return list(files.values())


def list_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists image files in a folder and its subfolders, sorted.

    Raises:
      UserError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}")

    files = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        place = pathlib.Path(root)
        links = [name for name in folders if (place / name).is_symlink()]
        if links:
            log.info("not looked into, as links to folders: %s", ", ".join(sorted(links)))
        image_names = [name for name in folders if _is_named_image(place / name)]
        # A folder with an image's name that holds nothing is refused as an image.
        empty = [name for name in image_names if not any(os.scandir(place / name))]
        files += [place / name for name in names + empty if _is_named_image(place / name)]
    return sorted(files)


def _is_named_image(path: pathlib.Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def short_names(files: Sequence[pathlib.Path]) -> list[str]:
    """Names files by the shortest ends of paths that differ.

    Args:
      files: different ones.
    """
    parts = [pathlib.Path(os.path.abspath(file)).parts for file in files]
    names: dict[int, str] = {}
    length = 1
    while len(names) < len(files) and length <= max(map(len, parts)):
        ends = collections.Counter(part[-length:] for part in parts)
        for place, part in enumerate(parts):
            if place not in names and ends[part[-length:]] == 1:
                names[place] = pathlib.PurePath(*part[-length:]).as_posix()
        length += 1
    return [names[place] for place in range(len(files))]


def read(
    paths: Sequence[str | pathlib.Path],
    view: View,
    fit: str = "resize",
    most: int = 1000,
) -> OwnImages:
    """Reads files and folders; leaves unreadable files out, by name.

    Args:
      paths: files and folders.
      view: of the network's images.
      fit: "resize", as data sets of images of any size are for testing; or "tile": cut into images of
        the network's size, pixel for pixel. Where they do not fill a side, the last one is moved back so
        that it ends with the image; a smaller image is padded with its edge.
      most: images, or tiles, that may come out.

    Raises:
      UserError: a folder without images, an unknown `fit`, no file that can be read, or too many images.
    """
    if fit not in FITS:
        raise UserError(f"fit is {fit!r}, but must be one of: {', '.join(FITS)}")
    shape = view.shape
    names: list[str] = []
    images: list[np.ndarray] = []
    places: list[tuple[int, int, int]] = []
    files: list[str] = []
    refusals: list[str] = []
    sources = find(paths)
    for path, name in zip(sources, short_names(sources), strict=True):
        try:
            size = shape[:2] if fit == "resize" else read_size(path)
            # Counted before anything is decoded or cut: a file of some kB may have millions of rows.
            rows, columns = (len(_starts(max(n, s), s)) for n, s in zip(size, shape, strict=False))
            if len(images) + rows * columns > most:
                what = f"{rows}x{columns} tiles of {path}" if fit == "tile" else str(path)
                raise TooManyImages(
                    f"{what} would make more than {most} images; name fewer files, or resize them"
                )
            whole = read_image(path, view if fit == "resize" else None)
        except TooManyImages:
            raise
        except UserError as error:
            refusals.append(str(error))
            continue
        grid = [[whole]] if fit == "resize" else tiles(whole, shape[:2])
        for row, column in np.ndindex(len(grid), len(grid[0])):
            one = len(grid) * len(grid[0]) == 1
            names.append(name if one else f"{name}, tile {row + 1}, {column + 1}")
            images.append(grid[row][column])
            places.append((len(files), row, column))
        files.append(name)
    if not images:
        raise UserError("no image could be read: " + "; ".join(refusals))
    return OwnImages(tuple(names), np.stack(images), tuple(places), tuple(files), tuple(refusals))


def tiles(image: np.ndarray, size: tuple[int, int]) -> list[list[np.ndarray]]:
    """Cuts an image `[H, W, C]` into rows of tiles `[size, C]`.

    Together they hold every pixel.
    """
    (height, width), (high, wide) = image.shape[:2], size
    missing = ((0, max(high - height, 0)), (0, max(wide - width, 0)), (0, 0))
    image = np.pad(image, missing, mode="edge")
    return [
        [image[top : top + high, left : left + wide] for left in _starts(image.shape[1], wide)]
        for top in _starts(image.shape[0], high)
    ]


def _starts(length: int, size: int) -> list[int]:
    return [min(number * size, length - size) for number in range(math.ceil(length / size))]


def read_size(path: str | pathlib.Path) -> tuple[int, int]:
    """Reads height and width of an image file alone.

    Raises:
      UserError: as of `read_image`.
    """
    from PIL import Image

    with _open(path, shrink=False) as (image, _):
        # The base class's, since for one that may come after a PNG's pixels Pillow would decode these.
        exif = Image.Image.getexif(image)
        on_its_side = exif.get(picture_depth.ORIENTATION, 1) in _ON_THEIR_SIDE
        # Pillow's own size of a TIFF is that of the picture turned upright already.
        tags = getattr(image, "tag_v2", {})
        width, height = (tags.get(tag, side) for tag, side in zip(_SIDES, image.size, strict=True))
        return (width, height) if on_its_side else (height, width)


def read_image(path: str | pathlib.Path, view: View | None) -> np.ndarray:
    """Reads an image file of any size and mode as uint8.

    `[H, W, 3]` as a network takes it in testing, or of its own size with None.

    It is turned upright and brought to the view's size. Transparent parts become white. More than 8 bits a
    sample are brought to 8 by `picture_depth`. Of several frames it is the first.

    Raises:
      UserError: there is no such file, it is not an image of one of the formats of `SUFFIXES`, it would take
        too much memory, or it is not known what its values mean.
    """
    stored = read_stored(path, view)
    return stored if view is None else view.cut_centre(stored)


def read_stored(path: str | pathlib.Path, view: View | None) -> np.ndarray:
    """Reads an image file as `[*view.stored_shape]` uint8; see `read_image`."""
    with _open(path, shrink=view is not None) as (image, file):
        if view is not None:
            side = DRAFT * max(view.stored_shape[:2])  # also where it is on its side
            image.draft(None, (side, side))
        rgb = _to_rgb(picture_depth.to_8_bits(image, file, path))
        return np.asarray(rgb if view is None else view.resize(rgb))


def take_array(array: np.ndarray, view: View, name: str) -> np.ndarray:
    """Makes an array a network's image, as `read_image` does a file.

    Args:
      array: `[H, W]` or `[H, W, C]` of any size, C being 1, 3 or, with transparency, 4; see
        `picture_depth.array_to_8_bits` for its values.
      view: of the network's images.
      name: of the picture, for the sentences.

    Returns:
      `[*view.shape]` uint8.

    Raises:
      UserError: it has another shape, or it is not known what its values mean.
    """
    from PIL import Image

    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in ARRAY_BANDS):
        raise UserError(
            f"{name} has the shape {array.shape}, but must be [H, W], or [H, W, C] with 1, 3 or 4 channels"
        )
    if not array.size:
        raise UserError(f"{name} has the shape {array.shape}, in which there is no pixel")
    levels = picture_depth.array_to_8_bits(array.reshape(*array.shape[:2], -1), name)
    bands = levels[..., 0] if levels.shape[2] == 1 else levels
    picture = _to_rgb(Image.fromarray(np.ascontiguousarray(bands)))
    return view.cut_centre(np.asarray(view.resize(picture)))


def take_picture(picture: Any, view: View, name: str) -> np.ndarray:
    """Makes a picture of Pillow a network's image, as `read_image` does a file.

    One of more than 8 bits a sample is taken as an array, unless it was opened from a file and not loaded
    yet. The picture itself stays as it is.

    Args:
      picture: a `PIL.Image.Image` of any mode and size.
      view: of the network's images.
      name: of the picture, for the sentences.

    Returns:
      `[*view.shape]` uint8.

    Raises:
      UserError: it cannot be decoded, or it is not known what its values mean.
    """
    path = getattr(picture, "filename", "")
    if path and getattr(picture, "tile", None) and os.path.isfile(path):
        return read_image(path, view)  # Pillow itself may read 16 bits as 8
    from PIL import ImageOps

    try:
        picture.load()
        upright = ImageOps.exif_transpose(picture)  # a copy
    except Exception as error:  # decoders fail in many ways on damaged files
        raise UserError(
            f"{name} cannot be read as an image: {error or type(error).__name__}"
        ) from None
    if upright.mode[0] in "IF":
        return take_array(np.asarray(upright), view, name)
    return view.cut_centre(np.asarray(view.resize(_to_rgb(upright))))


def _to_rgb(picture: Any) -> Any:
    """Converts a picture of 8 bits to RGB; transparent parts become white."""
    from PIL import Image

    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


@contextlib.contextmanager
def _open(path: str | pathlib.Path, shrink: bool) -> Iterator[tuple[Any, BinaryIO]]:
    """Opens an image file with Pillow; turns its errors into a sentence.

    Args:
      path: of the file.
      shrink: as of `picture_depth.refuse_large`.

    Yields:
      The image, not yet loaded, and the file.

    Raises:
      UserError: as of `read_image`.
      OSError: this process may not open more files.
    """
    from PIL import Image

    try:
        with open_regular(path) as file, warnings.catch_warnings():
            # What is too large is refused here, also where warnings are no errors.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                picture_depth.refuse_large(image, path, shrink)
                yield image, file
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"the image {path} does not exist") from None
    except Exception as error:  # decoders fail in many ways on damaged files
        if isinstance(error, OSError) and error.errno in LACKS:
            raise
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = reason.split(" <")[0]  # Pillow's way of naming an opened file
        raise UserError(f"{path} cannot be read as an image: {reason}") from None

"""Pictures of more than 8 bits a sample, brought to 8 bits.

16 bits are divided by what the file declares (PNG: sBIT; TIFF: 12 bits a sample; PPM: its maxval), else by
65,535, unless all values fit in 10 or 12 bits: cameras and microscopes write such files and declare nothing.
Of 32 bits, floats in [0, 1] and integers in [0, 255] have a meaning, and the others are refused.
"""

import logging
import pathlib
import struct
import sys
from typing import Any, BinaryIO

import numpy as np

from lossattn_jax.errors import UserError

log = logging.getLogger(__name__)

_FULL = 65535
_GUESSES = (10, 12)  # bits
_BITS, _PHOTOMETRIC, _PLANES = 258, 262, 284  # tags of a TIFF
_TILE = (322, 323)  # likewise: width and height
ORIENTATION = 0x0112  # of EXIF
# Colours of 16 bits a sample, as Pillow names them in files, by how many bands they have.
_BANDS = {"LA": 2, "RGB": 3, "RGBX": 3, "RGBA": 4, "CMYK": 4}
_MODES = {1: "L", 2: "LA", 3: "RGB"}
# Where the high byte of a sample stands: first in "B", last in "L"; "N" is the machine's, as of libtiff.
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
# Memory that a picture may take, and what one of a kind takes a pixel at its peak: measured, and rounded up.
MOST_BYTES = 1 << 30
_RESIZED_BYTES, _PLAIN_BYTES, _BLENDED_BYTES, _LONG_BYTES = 8, 12, 20, 16
_WIDE_BYTES = 6  # times the number of bands and one
_AT_ONCE = 1 << 20  # values that are floats at once
_REMEDY = "save it with 8 bits a sample"
_ARRAY_REMEDY = "scale them to floats in [0, 1]"


def refuse_large(image: Any, path: str | pathlib.Path, shrink: bool) -> None:
    """Refuses a picture that would take too much memory, by its header.

    Args:
      image: of Pillow, opened and not yet loaded.
      path: of the file, for the sentence.
      shrink: whether it becomes small right after it is decoded.

    Raises:
      UserError: it would.
    """
    tags = getattr(image, "tag_v2", {})
    width, height = image.size
    # A tile is unpacked as a whole, however little of it is in the picture.
    sides = [tags.get(tag, 0) for tag in _TILE]
    tile = sides[0] * sides[1] if all(isinstance(side, int) for side in sides) else 0
    colours, _ = _find_wide_colours(image, tags, path)
    if colours:
        each = _WIDE_BYTES * (len(colours) + 1)
    elif image.mode[0] in "IF":
        each = _LONG_BYTES
    elif image.has_transparency_data:
        each = _BLENDED_BYTES
    else:
        each = _RESIZED_BYTES if shrink else _PLAIN_BYTES
    num_bytes = each * max(width * height, tile)
    if num_bytes > MOST_BYTES:
        raise UserError(
            f"{path} has {width}x{height} pixels, for which {num_bytes / 2**30:.2f} GiB of memory are "
            f"needed, of which it may take {MOST_BYTES / 2**30:g}: resize it"
        )


def to_8_bits(image: Any, file: BinaryIO, path: str | pathlib.Path) -> Any:
    """Converts a picture to 8 bits a sample, upright.

    One that has no more stays as it is.

    Args:
      image: of Pillow, opened and not yet loaded.
      file: that it was opened from.
      path: of the file, for the sentences.

    Returns:
      An image of Pillow in one of its modes of 8 bits.

    Raises:
      UserError: it is not known what the values mean.
    """
    from PIL import Image, ImageOps

    tags = getattr(image, "tag_v2", {})
    colours, order = _find_wide_colours(image, tags, path)
    if not colours and image.mode[0] not in "IF":
        ImageOps.exif_transpose(image, in_place=True)  # a copy could be gigabytes
        return image
    # The values before `image` is loaded, which then says how it is turned, if it still is.
    values = _read_colours(image, file, colours, order) if colours else np.asarray(image)
    values = values.reshape(*values.shape[:2], -1)
    tones = values.shape[-1] - (colours in ("LA", "RGBA"))  # without the transparency
    if image.mode == "F":
        levels = _scale_floats(values, path, _REMEDY)
    elif image.mode == "I" and image.format == "TIFF":
        signed_16 = tags.get(_BITS) == (16,)
        levels = (
            _scale_signed_16_bits(values, path)
            if signed_16
            else _take_integers(values, path, _REMEDY)
        )
    else:
        full = _read_white(image, file, tags, values[..., :tones])
        levels = _scale_16_bits(values, tones, full or _guess_white(values[..., :tones], path))
    if not colours and tags.get(_PHOTOMETRIC) == 0:  # white is 0, which Pillow minds up to 8 bits
        levels = 255 - levels
    bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(levels, -1, 0)]
    flat = Image.merge(_MODES.get(len(bands), colours), bands)
    transparent = image.info.get("transparency")
    if transparent is not None:
        visible = (values != np.asarray(transparent)).any(axis=-1)
        flat.putalpha(Image.fromarray((255 * visible).astype(np.uint8)))
    if orientation := image.getexif().get(ORIENTATION):
        flat.getexif()[ORIENTATION] = orientation
    return ImageOps.exif_transpose(flat)


def array_to_8_bits(values: np.ndarray, name: str) -> np.ndarray:
    """Brings the values of an array to 8 bits, as those of a file.

    Floats within [0, 1] are multiplied by 255, whole numbers within [0, 255] stay as they are, and True is
    white. An array does not declare its depth: 16 bits without a sign are refused whatever they hold.

    Args:
      values: `[H, W, bands]`.
      name: of the picture, for the sentences.

    Returns:
      `[H, W, bands]` uint8.

    Raises:
      UserError: it is not known what the values mean.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return np.where(values, np.uint8(255), np.uint8(0))
    if np.issubdtype(values.dtype, np.floating):
        return _scale_floats(values, name, _ARRAY_REMEDY)
    if not np.issubdtype(values.dtype, np.integer):
        raise UserError(
            f"{name} has the dtype {values.dtype}, but must hold uint8, or floats in [0, 1]"
        )
    if values.dtype == np.uint16:
        raise UserError(
            f"{name} has integers of 16 bits, whose white is not known: {_ARRAY_REMEDY}"
        )
    return _take_integers(values, name, _ARRAY_REMEDY)


def _find_wide_colours(image: Any, tags: Any, path: str | pathlib.Path) -> tuple[str, str]:
    """Finds name and byte order of colours with 16 bits a sample.

    Pillow has no mode for them and leaves the low bytes out without a word.
    """
    name, wide, order = (
        _name_raw_mode(image.tile[0]).partition(";16") if image.tile else ("", "", "")
    )
    bits = tags.get(_BITS, ())
    if tags.get(_PLANES) == 2 and len(bits) > 1 and max(bits) > 8:
        raise UserError(f"{path} has its colours in planes of {max(bits)} bits: {_REMEDY}")
    if not wide or name == "I":
        return "", ""
    if name not in _BANDS or order not in _OTHER_ORDER:
        raise UserError(f"{path} has colours of 16 bits of the kind {name}: {_REMEDY}")
    return name, order


def _name_raw_mode(tile: Any) -> str:
    arguments = tile[3]
    return arguments if isinstance(arguments, str) else str(arguments[0])


def _read_colours(image: Any, file: BinaryIO, colours: str, order: str) -> np.ndarray:
    """Reads `[H, W, bands]` uint16.

    It reads the file once for each of a sample's two bytes.
    """
    if colours == "LA":  # a pixel's four bytes, in a PNG's order
        pixels = _read_as(image, file, "RGBA").astype(np.uint16)
        return pixels[..., ::2] << 8 | pixels[..., 1::2]
    values = _read_as(image, file, f"{colours};16{order}").astype(np.uint16)
    values <<= 8
    values |= _read_as(image, file, f"{colours};16{_OTHER_ORDER[order]}")
    return values


def _read_as(image: Any, file: BinaryIO, raw_mode: str) -> np.ndarray:
    """Reads pixels with Pillow as samples of another kind."""
    from PIL import Image

    file.seek(0)
    again: Any = Image.open(file, formats=[image.format])
    if again.mode == "LA":
        again._mode = "RGBA"
    again.tile = [
        (*tile[:3], raw_mode if isinstance(tile[3], str) else (raw_mode, *tile[3][1:]))
        for tile in again.tile
    ]
    pixels = np.asarray(again)
    # Pillow turns TIFFs by itself, when it loads them; `image` is to know.
    image.getexif().update({ORIENTATION: again.getexif().get(ORIENTATION, 1)})
    return pixels


def _read_white(image: Any, file: BinaryIO, tags: Any, tones: np.ndarray) -> int | None:
    """Finds the value of white that a file declares, or None."""
    if image.format == "PPM":
        return _FULL  # Pillow divides by the maxval
    if tags.get(_BITS) == (12,):
        return 2**12 - 1
    bits = _read_significant_bits(file) if image.format == "PNG" else None
    if bits is None:
        return None
    # PNG wants samples multiplied up to 16 bits whatever sBIT says, but not all programs do it.
    return 2**bits - 1 if tones.max() < 2**bits else _FULL


def _read_significant_bits(file: BinaryIO) -> int | None:
    """Reads the highest value of a PNG's sBIT chunk, or None."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"sBIT":
            return max((bits for bits in file.read(min(length, 3)) if 0 < bits <= 16), default=None)
        if kind == b"IDAT":
            return None
        file.seek(length + 4, 1)
    return None


def _guess_white(tones: np.ndarray, path: str | pathlib.Path) -> int:
    """Guesses the value of white; logs it if not 65,535."""
    highest = int(tones.max())
    for bits in _GUESSES:
        if 0 < highest < 2**bits:
            log.warning(
                "%s has 16 bits a sample and no value above %d: read as one of %d bits, white being %d",
                path,
                highest,
                bits,
                2**bits - 1,
            )
            return 2**bits - 1
    return _FULL


def _scale_16_bits(values: np.ndarray, tones: int, full: int) -> np.ndarray:
    """Scales bands to 8 bits.

    The last of them may be transparency.
    """
    whole = [
        full if band < tones or values[..., band].max() <= full else _FULL
        for band in range(values.shape[-1])
    ]
    return _to_levels(values, np.array(whole, np.float64))


def _scale_signed_16_bits(values: np.ndarray, path: str | pathlib.Path) -> np.ndarray:
    if values.min() < 0:
        raise UserError(f"{path} has negative values, down to {values.min()}: {_REMEDY}")
    return _to_levels(values, np.float64(min(_guess_white(values, path), 2**15 - 1)))


def _take_integers(values: np.ndarray, path: str | pathlib.Path, remedy: str) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 255:
        raise UserError(
            f"{path} has integers of {8 * values.itemsize} bits from {low} to {high}, of which only 0 to 255 "
            f"have a known meaning: {remedy}"
        )
    return values.astype(np.uint8)


def _scale_floats(values: np.ndarray, path: str | pathlib.Path, remedy: str) -> np.ndarray:
    if wrong := int((~np.isfinite(values)).sum()):
        raise UserError(f"{path} has {wrong} of {values.size} values that are not finite")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise UserError(
            f"{path} has floats from {low:g} to {high:g}, of which only 0 to 1 have a known meaning: "
            f"{remedy}"
        )
    return _to_levels(values, np.float64(1))


def _to_levels(values: np.ndarray, white: np.ndarray | np.float64) -> np.ndarray:
    """Scales values `[H, W, bands]` in [0, white] to uint8."""
    levels = np.empty(values.shape, np.uint8)
    step = max(1, _AT_ONCE // values[0].size)
    for row in range(0, len(values), step):
        levels[row : row + step] = (255 * (values[row : row + step] / white)).round()
    return levels

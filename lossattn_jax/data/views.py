"""Views of pictures of any size, as a network takes them.

A picture is first brought to the size in which a data set stores it. Where that is larger than the network's,
training cuts random parts of it (`augmentation`), and everything else its centre.
"""

import dataclasses
from typing import Any

import numpy as np

from lossattn_jax.data.boxes import pixels_to_fractions

SQUEEZE, CROP = "squeeze", "crop"
FITS = (SQUEEZE, CROP)
# Sides in pixels up to which training moves whole pictures by some pixels. Of larger ones it cuts random
# parts, out of squares that are larger by this ratio, as is usual for photographs.
LARGEST_WHOLE = 64
_CANVAS = 256 / 224
# JPEG can be decoded at 1/2, 1/4 or 1/8 of its size. At twice the size wanted or more, what comes
# out hardly differs from resizing the whole image, in a third of the time.
DRAFT = 2


def canvas_of(side: int) -> int:
    """Side in pixels of the square to store for a network's; 0: its own."""
    return 0 if side <= LARGEST_WHOLE else round(side * _CANVAS)


@dataclasses.dataclass(frozen=True)
class View:
    """How pictures of any size become those of a network.

    Attributes:
      shape: (height, width, channels) that the network takes.
      fit: `SQUEEZE` resizes without regard to a picture's proportions; `CROP` resizes its shorter side and
        cuts the centre.
      canvas: side in pixels of the square that is stored, of which training cuts random parts; 0: what is
        stored has the network's size.
    """

    shape: tuple[int, int, int]
    fit: str = SQUEEZE
    canvas: int = 0

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a stored picture."""
        height, width, channels = self.shape
        return (self.canvas or height, self.canvas or width, channels)

    def resize(self, picture: Any) -> Any:
        """Resizes a picture of Pillow, of mode RGB, to `stored_shape`."""
        from PIL import Image

        height, width, _ = self.stored_shape
        # Pillow's filters widen with the reduction, so that nothing is aliased.
        bilinear = Image.Resampling.BILINEAR
        box = None
        if self.fit == CROP:
            box = _centre_box(picture.size, width / height)
        return picture.resize((width, height), bilinear, box=box)

    def find_visible(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Finds the part of a picture that a network sees in testing.

        Args:
          size: (height, width) of the picture.

        Returns:
          (top, left, height, width) of the part, in pixels of the picture, not rounded.
        """
        (height, width, _), (high, wide, _) = self.shape, self.stored_shape
        left, top, right, bottom = 0.0, 0.0, float(size[1]), float(size[0])
        if self.fit == CROP:
            left, top, right, bottom = _centre_box((size[1], size[0]), wide / high)
        row, column = (
            (bottom - top) / high,
            (right - left) / wide,
        )  # pixels of the picture in a stored one
        return (
            top + (high - height) // 2 * row,
            left + (wide - width) // 2 * column,
            height * row,
            width * column,
        )

    def place_box(
        self, corners: tuple[float, float, float, float], size: tuple[int, int]
    ) -> tuple[float, float, float, float]:
        """Converts a box from a picture's pixels to fractions of what a network sees.

        Args:
          corners: (ymin, xmin, ymax, xmax), the far corner just behind the last pixel.
          size: (height, width) of the picture.

        Returns:
          (ymin, xmin, ymax, xmax) in [0, 1], or `boxes.NO_BOX` where nothing of the box is seen.
        """
        top, left, height, width = self.find_visible(size)
        ymin, xmin, ymax, xmax = corners
        return pixels_to_fractions(
            (ymin - top, xmin - left, ymax - top, xmax - left), height, width
        )

    def cut_centre(self, images: np.ndarray) -> np.ndarray:
        """Cuts `shape` out of the middle of stored pictures.

        Args:
          images: `[..., H, W, C]` of `stored_shape`.

        Returns:
          `[..., h, w, C]`, a view of the same memory.
        """
        return cut_centre(images, self.shape[:2])


def cut_centre(images: Any, size: tuple[int, int]) -> Any:
    """Cuts (height, width) out of the middle of images `[..., H, W, C]`."""
    (height, width), (high, wide) = size, images.shape[-3:-1]
    top, left = (high - height) // 2, (wide - width) // 2
    return images[..., top : top + height, left : left + width, :]


def _centre_box(size: tuple[int, int], proportion: float) -> tuple[float, float, float, float]:
    """The largest box of a proportion in the middle of a picture.

    Args:
      size: (width, height) of the picture.
      proportion: width by height of the box.

    Returns:
      (left, top, right, bottom) in pixels, not rounded.
    """
    width, height = size
    wide, high = min(width, height * proportion), min(height, width / proportion)
    left, top = (width - wide) / 2, (height - high) / 2
    return (left, top, left + wide, top + high)

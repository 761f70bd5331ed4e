"""Views of pictures of any size, as a network takes them.

A picture is first brought to the size in which a data set stores it. Where that is larger than the network's,
training cuts random parts of it (`augmentation`), and everything else its centre.
"""

import dataclasses
from typing import Any

import numpy as np

SQUEEZE, CROP = "squeeze", "crop"
FITS = (SQUEEZE, CROP)


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

    def cut_centre(self, images: np.ndarray) -> np.ndarray:
        """Cuts `shape` out of the middle of stored pictures.

        Args:
          images: `[..., H, W, C]` of `stored_shape`.

        Returns:
          `[..., h, w, C]`, a view of the same memory.
        """
        (height, width, _), (high, wide) = self.shape, images.shape[-3:-1]
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

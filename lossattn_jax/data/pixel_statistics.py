"""Mean and deviation of a training set's pixels."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

_LEVELS = 256
# Of ImageNet's training set, as most published networks for photographs have them.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclasses.dataclass(frozen=True)
class PixelSums:
    """Sums of pixels by channel, exact in any order.

    Attributes:
      pixels: how many.
      sums: C of their values, 0 ... 255.
      squares: C of the squares of these.
    """

    pixels: int
    sums: tuple[int, ...]
    squares: tuple[int, ...]

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns mean and standard deviation of pixels / 255, C of each.

        A channel of one value alone has the deviation of one level, so that it can be divided by.
        """
        means, deviations = [], []
        for total, squares in zip(self.sums, self.squares, strict=True):
            means.append(total / self.pixels / (_LEVELS - 1))
            # Whole numbers, so that nothing is lost where the deviation is small beside the mean.
            variance = (self.pixels * squares - total * total) / self.pixels**2
            deviations.append(max(math.sqrt(variance), 1.0) / (_LEVELS - 1))
        return tuple(means), tuple(deviations)


def of_images(images: np.ndarray) -> PixelSums:
    """Sums the pixels of images uint8 `[..., C]`."""
    channels = images.shape[-1]
    values = np.arange(_LEVELS)
    counts = [np.bincount(images[..., c].ravel(), minlength=_LEVELS) for c in range(channels)]
    return PixelSums(
        images.size // channels,
        tuple(int(count @ values) for count in counts),
        tuple(int(count @ values**2) for count in counts),
    )


def add(parts: Iterable[PixelSums]) -> PixelSums:
    """Adds the sums of parts, of which there is one at least."""
    every = list(parts)
    return PixelSums(
        sum(part.pixels for part in every),
        tuple(map(sum, zip(*(part.sums for part in every), strict=True))),
        tuple(map(sum, zip(*(part.squares for part in every), strict=True))),
    )

"""Places of a network's patches in the image."""

import dataclasses

import numpy as np

from lossattn_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PatchGrid:
    """Places of patches: the windows of the patch convolution.

    The windows are given in fractions of the image's sides. A patch sees more than its window, since
    the backbone's own convolutions widen what reaches it.

    Attributes:
      rows: patches from top to bottom.
      cols: patches from left to right.
      map_size: (height, width) of the backbone's map.
      kernel: side of a window, in map positions.
      stride: step between windows, in map positions.
    """

    rows: int
    cols: int
    map_size: tuple[int, int]
    kernel: int
    stride: int

    @property
    def patches(self) -> int:
        """P, their number."""
        return self.rows * self.cols

    def boxes(self) -> np.ndarray:
        """Returns patches' boxes as fractions of the image, row-major.

        `[rows * cols, 4]` float32 (ymin, xmin, ymax, xmax).
        """
        top = np.arange(self.rows)[:, None] * self.stride / self.map_size[0]
        left = np.arange(self.cols)[None, :] * self.stride / self.map_size[1]
        top, left = np.broadcast_arrays(top, left)
        height, width = self.kernel / self.map_size[0], self.kernel / self.map_size[1]
        corners = np.stack([top, left, top + height, left + width], axis=-1)
        return corners.reshape(-1, 4).astype(np.float32)

    def coverage(self, size: tuple[int, int]) -> np.ndarray:
        """Finds the pixels of an image in each window.

        `size` is (height, width).

        Returns:
          `[rows * cols, height, width]` bool: the pixel's centre is in the window.
        """
        in_y, in_x = self.line_coverage(size)
        windows = in_y[:, None, :, None] & in_x[None, :, None, :]
        return windows.reshape(self.patches, *size)

    def line_coverage(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Finds the lines of pixels in each row and column of windows.

        A pixel is in a window where its line is in the window's row, and its column in that one's.

        Args:
          size: (height, width) of the image, in pixels.

        Returns:
          `[rows, height]` and `[cols, width]` bool.
        """
        ys = (np.arange(size[0]) + 0.5) / size[0]
        xs = (np.arange(size[1]) + 0.5) / size[1]
        boxes = self.boxes().astype(np.float64).reshape(self.rows, self.cols, 4)
        of_rows, of_cols = boxes[:, :1], boxes[0]
        in_y = (ys >= of_rows[..., 0]) & (ys < of_rows[..., 2])
        in_x = (xs >= of_cols[:, 1:2]) & (xs < of_cols[:, 3:])
        return in_y, in_x

    def centres(self) -> np.ndarray:
        """`[rows * cols, 2]` float32 (y, x), fractions of the image, row-major."""
        boxes = self.boxes()
        return (boxes[:, :2] + boxes[:, 2:]) / 2


def sliding_grid(map_size: tuple[int, int], kernel: int, stride: int) -> PatchGrid:
    """Makes the grid of windows that fit on a map.

    Of side `kernel`, `stride` apart, on a map of `map_size`.

    Raises:
      UserError: none fits.
    """
    if min(map_size) < kernel:
        raise UserError(
            f"the backbone's map has {map_size[0]}x{map_size[1]} positions, but the head's windows have "
            f"{kernel}x{kernel}: the images are too small for this network"
        )
    height, width = map_size
    return PatchGrid(
        rows=(height - kernel) // stride + 1,
        cols=(width - kernel) // stride + 1,
        map_size=map_size,
        kernel=kernel,
        stride=stride,
    )

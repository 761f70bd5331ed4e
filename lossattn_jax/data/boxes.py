"""Boxes of objects, a fixed number for every image.

A box is (ymin, xmin, ymax, xmax) in fractions of the image.
"""

import numpy as np

# Stands for a box that is not there: it ends before it begins, so that no point lies in it, and what it
# has in common with any other box is empty. Outside of the image on both ends, so that neither rounding
# nor a comparison of one end alone finds anything either.
NO_BOX = (2.0, 2.0, -1.0, -1.0)
NO_LABEL = -1


def fixed_number(boxes: np.ndarray, labels: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads or cuts an image's boxes to a fixed number.

    Args:
      boxes: float [n, 4].
      labels: int [n], the class of each.
      most: M, how many there are to be. Of more boxes the M largest are kept (of equal ones the first).

    Returns:
      float32 [M, 4], in the order they came in and then `NO_BOX`; int32 [M], then `NO_LABEL`.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    largest = np.sort(np.argsort(-sides.prod(axis=1), kind="stable")[:most])
    all_boxes = np.tile(np.array(NO_BOX, np.float32), (most, 1))
    all_labels = np.full(most, NO_LABEL, np.int32)
    all_boxes[: len(largest)] = boxes[largest]
    all_labels[: len(largest)] = np.asarray(labels)[largest]
    return all_boxes, all_labels


def pixels_to_fractions(
    corners: tuple[float, float, float, float], height: float, width: float
) -> tuple[float, float, float, float]:
    """Converts a box from pixels to fractions, cut at the edges.

    Args:
      corners: (ymin, xmin, ymax, xmax), the far corner just behind the last pixel.
      height: of the image, in pixels.
      width: likewise.

    Returns:
      (ymin, xmin, ymax, xmax) in [0, 1], or `NO_BOX` where nothing of the box is in the image.
    """
    sides = (height, width, height, width)
    ymin, xmin, ymax, xmax = (
        min(max(corner / side, 0.0), 1.0) for corner, side in zip(corners, sides, strict=True)
    )
    if ymin >= ymax or xmin >= xmax:
        return NO_BOX
    return ymin, xmin, ymax, xmax

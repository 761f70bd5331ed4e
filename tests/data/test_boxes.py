"""A fixed number of boxes for every image, and boxes as fractions of it."""

import numpy as np
import pytest

from lossattn_jax.data.boxes import NO_BOX, NO_LABEL, fixed_number, pixels_to_fractions


def test_fewer_boxes_are_filled_up():
    boxes, labels = fixed_number(np.array([[0.1, 0.2, 0.3, 0.4]]), np.array([7]), 3)
    assert (boxes.dtype, labels.dtype) == (np.float32, np.int32)
    expected = np.array([[0.1, 0.2, 0.3, 0.4], NO_BOX, NO_BOX], np.float32)
    np.testing.assert_array_equal(boxes, expected)
    assert labels.tolist() == [7, NO_LABEL, NO_LABEL]
    boxes, labels = fixed_number(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), 2)
    assert boxes.tolist() == [list(NO_BOX)] * 2 and labels.tolist() == [NO_LABEL] * 2


def test_of_more_boxes_the_largest_are_kept_in_their_order():
    sides = np.array([0.25, 0.5, 0.125, 0.5, 0.25, 0.75])
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    kept, labels = fixed_number(boxes, np.arange(6), 4)
    assert labels.tolist() == [0, 1, 3, 5]  # of the two equal ones the first
    np.testing.assert_array_equal(kept, boxes[[0, 1, 3, 5]])
    # A box with both sides the wrong way round is no large one.
    kept, labels = fixed_number(np.array([NO_BOX, boxes[2]]), np.arange(2), 1)
    assert labels.tolist() == [1]


@pytest.mark.parametrize(
    ("corners", "expected"),
    [
        ((0, 0, 10, 20), (0, 0, 1, 1)),
        ((1, 2, 3, 4), (0.1, 0.1, 0.3, 0.2)),
        ((-5, -1, 3, 40), (0, 0, 0.3, 1)),
        ((2, 20, 3, 30), NO_BOX),  # right of the image
        ((-4, 0, 0, 20), NO_BOX),  # above it
        ((5, 5, 5, 6), NO_BOX),  # without height
    ],
)
def test_fractions_of_the_image(corners, expected):
    assert pixels_to_fractions(corners, 10, 20) == pytest.approx(expected)

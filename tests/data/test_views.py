"""Views of pictures of any size."""

import numpy as np
import pytest
from PIL import Image

from lossattn_jax.data.boxes import NO_BOX
from lossattn_jax.data.views import CROP, SQUEEZE, View, canvas_of


def _picture(width: int, height: int) -> Image.Image:
    """Columns of 10 x their number in red, rows of 10 x theirs in green."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = 10 * np.arange(width)
    pixels[..., 1] = 10 * np.arange(height)[:, None]
    return Image.fromarray(pixels)


def test_a_crop_keeps_proportions_and_the_centre():
    stored = np.asarray(View((4, 4, 3), CROP).resize(_picture(8, 4)))
    assert stored.shape == (4, 4, 3)
    np.testing.assert_array_equal(stored[0, :, 0], [20, 30, 40, 50])
    np.testing.assert_array_equal(stored[:, 0, 1], [0, 10, 20, 30])


def test_a_crop_of_a_tall_picture():
    stored = np.asarray(View((2, 2, 3), CROP).resize(_picture(2, 6)))
    np.testing.assert_array_equal(stored[:, 0, 1], [20, 30])


def test_a_squeezed_picture_has_all_columns():
    stored = np.asarray(View((4, 8, 3), SQUEEZE).resize(_picture(8, 4)))
    np.testing.assert_array_equal(stored, np.asarray(_picture(8, 4)))


@pytest.mark.parametrize("leading", [(), (5,), (2, 5)])
def test_the_centre_of_a_canvas(leading):
    view = View((2, 3, 1), CROP, canvas=7)
    assert view.stored_shape == (7, 7, 1)
    images = np.broadcast_to(np.arange(49).reshape(7, 7, 1), (*leading, 7, 7, 1))
    expected = np.arange(49).reshape(7, 7, 1)[2:4, 2:5]
    np.testing.assert_array_equal(
        view.cut_centre(images), np.broadcast_to(expected, (*leading, 2, 3, 1))
    )


def test_without_a_canvas_the_centre_is_the_whole():
    view = View((4, 6, 3))
    images = np.arange(72).reshape(4, 6, 3)
    np.testing.assert_array_equal(view.cut_centre(images), images)


def test_what_is_seen_of_a_picture():
    # Of 400x200 pixels the crop is the 200 in the middle, stored as 8x8, of which 6x6 are seen.
    view = View((6, 6, 3), CROP, canvas=8)
    assert view.find_visible((200, 400)) == (25.0, 125.0, 150.0, 150.0)
    assert view.place_box((25, 200, 100, 500), (200, 400)) == (0.0, 0.5, 0.5, 1.0)
    assert view.place_box((0, 0, 20, 20), (200, 400)) == NO_BOX
    assert View((4, 8, 3)).find_visible((20, 30)) == (0.0, 0.0, 20.0, 30.0)


def test_which_pictures_are_stored_with_a_border():
    assert [canvas_of(side) for side in (32, 64, 65, 128, 224)] == [0, 0, 74, 146, 256]

"""Pictures to predict for: arrays, pictures of Pillow, files and folders."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lossattn_jax.data import own_images
from lossattn_jax.data.views import View
from lossattn_jax.errors import UserError

_ONE = "image"  # what a single picture without a name is called


@dataclasses.dataclass(frozen=True)
class Input:
    """A picture that is not read yet.

    Attributes:
      name: its path, or its place among the pictures, such as "images[3]".
      read: makes it the network's image, `[H, W, 3]` uint8; raises `UserError` where that cannot be.
      is_file: whether it is left out, and named, where it cannot be read.
    """

    name: str
    read: Callable[[], np.ndarray]
    is_file: bool = False


def list_inputs(images: Any, view: View) -> list[Input]:
    """Lists the pictures that a user gives.

    Args:
      images: an array `[H, W]`, `[H, W, C]` or `[N, H, W, C]`, C being 1, 3 or 4; a picture of Pillow; a path
        of a file or folder, whose subfolders count too; or a list of any of them, with arrays of one picture.
      view: of the network's images.

    Raises:
      UserError: there is none, or something else among them; or as of `own_images.find`.
    """
    if isinstance(images, list | tuple):
        inputs = [
            input
            for place, image in enumerate(images)
            for input in _of_one(image, view, f"images[{place}]")
        ]
    elif getattr(images, "ndim", None) == 4:
        pictures = np.asarray(images)
        inputs = [_of_array(picture, view, f"images[{n}]") for n, picture in enumerate(pictures)]
    else:
        inputs = _of_one(images, view, _ONE)
    if not inputs:
        raise UserError("images is empty, but must have a picture")
    return inputs


def of_files(paths: Sequence[str], view: View) -> list[Input]:
    """Makes inputs of files."""
    return [_of_file(path, view) for path in paths]


def _of_one(image: Any, view: View, name: str) -> list[Input]:
    from PIL import Image

    if isinstance(image, str | os.PathLike):
        paths = own_images.find([os.fspath(image)])
        return [_of_file(str(path), view) for path in paths]
    if isinstance(image, Image.Image):
        name = getattr(image, "filename", "") or name
        return [Input(name, lambda: own_images.take_picture(image, view, name))]
    if hasattr(image, "shape") and hasattr(image, "dtype"):
        return [_of_array(np.asarray(image), view, name)]
    raise UserError(
        f"{name} is of type {type(image).__name__}, but must be an array, a picture of Pillow, or the path "
        "of a file or folder"
    )


def _of_array(array: np.ndarray, view: View, name: str) -> Input:
    return Input(name, lambda: own_images.take_array(array, view, name))


def _of_file(path: str, view: View) -> Input:
    return Input(path, lambda: own_images.read_image(path, view), is_file=True)

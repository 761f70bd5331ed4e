"""Occlusion: falls of a class's score when squares are covered."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax.arguments import check_number
from lossattn_jax.explain.explainers.subject import Relevance, Subject

_LEAST_STRIDE, _STEPS = 4, 16  # in pixels, and of the strides along an image's shorter side


def occlusion(
    subject: Subject,
    variables: Any,
    images: jax.Array,
    classes: jax.Array,
    keys: jax.Array,
    size: int | None = None,
    *,
    stride: int | None = None,
) -> Relevance:
    """Averages falls of the score over squares that cover a pixel.

    Zeiler & Fergus 2014.

    Squares of the mean colour, `size` pixels wide and `stride` apart, also beyond the edges so that every
    pixel is covered as often as the others where `stride` divides `size`. By default they grow with the
    image, an eighth of its shorter side and 8 pixels at least, and are half of their size apart: as many
    squares for 224 pixels as for 64, 289, which hide as much of what is to be seen.
    """
    del keys
    size = 2 * max(_LEAST_STRIDE, min(images.shape[1:3]) // _STEPS) if size is None else size
    check_number("size", size, 1, whole=True, static=True)
    stride = max(1, size // 2) if stride is None else stride
    check_number("stride", stride, 1, whole=True, static=True)
    squares = jnp.asarray(_squares(images.shape[1:3], size, stride))
    score = subject.score(variables, images, classes)

    def score_covered(square: jax.Array) -> jax.Array:
        visible = jnp.where(square[None, :, :, None], 0.0, images)
        return score - subject.score(variables, visible, classes)

    falls = jax.lax.map(score_covered, squares)
    total = jnp.einsum("sb,shw->bhw", falls, squares.astype(jnp.float32), precision="highest")
    return subject.from_pixels(total / jnp.sum(squares, axis=0).astype(jnp.float32)[None])


def _squares(shape: tuple[int, ...], size: int, stride: int) -> np.ndarray:
    """`[squares, H, W]` bool."""
    rows, columns = (_intervals(length, size, stride) for length in shape)
    return (rows[:, None, :, None] & columns[None, :, None, :]).reshape(-1, *shape)


def _intervals(length: int, size: int, stride: int) -> np.ndarray:
    starts = np.arange(stride - size, length, stride)
    places = np.arange(length)
    return (places >= starts[:, None]) & (places < starts[:, None] + size)

"""Parts of a batch whose intermediate values fit into a number of bytes."""

import jax


def images_at_a_time(batch: int, image_bytes: int, most_bytes: int) -> int:
    """The largest number of images that divides a batch and fits, at least 1.

    Args:
      batch: number of images.
      image_bytes: of the intermediate values of one of them.
      most_bytes: of those of a part.
    """
    most = min(batch, max(1, most_bytes // image_bytes))
    return max(n for n in range(1, most + 1) if batch % n == 0)


def split(x: jax.Array, images: int) -> jax.Array:
    """Splits `[B, ...]` into parts, `[B // images, images, ...]`."""
    return x.reshape(-1, images, *x.shape[1:])

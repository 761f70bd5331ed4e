"""Views of an image whose logits are averaged when it is evaluated; by default the image alone.

To add some, write a function of images and put it into a tuple of `VIEWS`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lossattn_jax.models import Outputs
from lossattn_jax.registry import Registry

View = Callable[[jax.Array], jax.Array]  # of images `[B, H, W, C]`, of the same shape and dtype
Views = tuple[View, ...]

ONE = "one"


def keep(images: jax.Array) -> jax.Array:
    """The images as they are."""
    return images


def mirror(images: jax.Array) -> jax.Array:
    """Exchanges left and right."""
    return images[:, :, ::-1]


def move(images: jax.Array, pixels: int) -> jax.Array:
    """Moves images down and to the right, with their own mirror image at the edge.

    Args:
      images: `[B, H, W, C]`.
      pixels: less than H and W; negative: up and to the left.
    """
    sides = (max(pixels, 0), max(-pixels, 0))
    padded = jnp.pad(images, ((0, 0), sides, sides, (0, 0)), mode="reflect")
    height, width = images.shape[1:3]
    return padded[:, sides[1] : sides[1] + height, sides[1] : sides[1] + width]


def _moved(pixels: int, *, mirrored: bool) -> View:
    return lambda images: move(mirror(images) if mirrored else images, pixels)


# The last is that of Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.5.
VIEWS: Registry[Views] = Registry(
    "views",
    tuple,
    {
        ONE: (keep,),
        "mirror": (keep, mirror),
        "mirror_and_move": (
            keep,
            mirror,
            *(_moved(pixels, mirrored=m) for pixels in (-1, 1) for m in (False, True)),
        ),
    },
)


def average_logits(
    predict: Callable[[jax.Array], Outputs], images: jax.Array, views: Views
) -> Outputs:
    """Predicts for all views of images, one view after the other.

    Args:
      predict: the network, of images `[B, H, W, C]`.
      images: what it is given.
      views: the first has to be the images as they are.

    Returns:
      The outputs for the images, with the mean over the views of the logits.
    """
    if len(views) == 1:
        return predict(images)
    outputs = jax.lax.map(predict, jnp.stack([view(images) for view in views]))
    first = jax.tree.map(lambda leaf: leaf[0], outputs)
    return first.replace(logits=jnp.mean(outputs.logits, axis=0))


def file_words(views: str) -> list[str]:
    """Names views in a file's name: no word for the image alone."""
    return [] if views == ONE else [views if views in VIEWS else "own_views"]

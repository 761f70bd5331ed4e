"""Explainers behind one interface: the network's own attention, and others to compare it with.

explain = explainers.make("attention", model, image_shape)
relevance = explain(variables, images, classes, keys)    # Relevance: patches [B, P], pixels [B, H, W]
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from lossattn_jax.arguments import NUMBERS, WHOLE, check_arrays
from lossattn_jax.errors import UserError
from lossattn_jax.explain.explainers.attention import attention, contribution
from lossattn_jax.explain.explainers.grad_cam import grad_cam
from lossattn_jax.explain.explainers.gradients import (
    gradient_x_input,
    integrated_gradients,
    smooth_grad,
)
from lossattn_jax.explain.explainers.occlusion import occlusion
from lossattn_jax.explain.explainers.subject import Relevance, Subject
from lossattn_jax.models import ImageNetwork

__all__ = ["EXPLAINERS", "NAMES", "Explainer", "Relevance", "Subject", "make"]

Explainer = Callable[[Any, jax.Array, jax.Array, jax.Array], Relevance]

EXPLAINERS: dict[str, Callable[..., Relevance]] = {
    "attention": attention,
    "contribution": contribution,
    "gradient_x_input": gradient_x_input,
    "integrated_gradients": integrated_gradients,
    "smooth_grad": smooth_grad,
    "grad_cam": grad_cam,
    "occlusion": occlusion,
}
NAMES = tuple(EXPLAINERS)


def make(
    name: str, model: ImageNetwork, image_shape: tuple[int, int, int], **options: Any
) -> Explainer:
    """An explainer of a network.

    Args:
      name: one of `NAMES`.
      model: the network.
      image_shape: (height, width, channels) of its images.
      **options: of the explainer, beyond its defaults.

    Returns:
      A pure function of variables, images `[B, H, W, C]` (float, normalised), classes `[B]` int and random
      keys `[B]`, which only "smooth_grad" uses. Each image is explained as if it were alone, so that
      padding or splitting a batch changes nothing.

      It raises a `ValueError` with a sentence where images or classes are of another shape or dtype.

    Raises:
      UserError: there is no such explainer.
    """
    if name not in EXPLAINERS:
        raise UserError(f"the explainer {name!r} is not known; allowed are {', '.join(NAMES)}")
    explain = functools.partial(EXPLAINERS[name], Subject(model, image_shape), **options)
    layout = " ".join(("B", *(str(size) for size in image_shape)))

    def explain_images(
        variables: Any, images: jax.Array, classes: jax.Array, keys: jax.Array
    ) -> Relevance:
        check_arrays(images=(images, layout, NUMBERS), classes=(classes, "B", WHOLE))
        return explain(variables, images, classes, keys)

    return explain_images

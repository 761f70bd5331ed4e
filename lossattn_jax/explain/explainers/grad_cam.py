"""Grad-CAM on the backbone's map."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lossattn_jax.explain.explainers.subject import Relevance, Subject


def grad_cam(
    subject: Subject, variables: Any, images: jax.Array, classes: jax.Array, keys: jax.Array
) -> Relevance:
    """Computes Grad-CAM (Selvaraju et al. 2017).

    `relu(sum_c w_c A_c)`, w_c being the mean over the map of d score / d A_c.

    A is the backbone's map, the last that has the image's layout in all of our networks; it is resized to
    the image's size bilinearly.
    """
    del keys
    backbone_map = subject.backbone_map(variables, images)
    gradient = jax.grad(lambda a: jnp.sum(subject.score_of_map(variables, images, classes, a)))(
        backbone_map
    )
    weights = jnp.mean(gradient, axis=(1, 2), keepdims=True)
    cam = nn.relu(jnp.sum((weights * backbone_map).astype(jnp.float32), axis=-1))
    return subject.from_pixels(jax.image.resize(cam, images.shape[:3], "bilinear"))

"""Explanations by the network's own attention: one forward pass."""

from typing import Any

import jax
import jax.numpy as jnp

from lossattn_jax.explain.explainers.subject import Relevance, Subject, pick_class


def attention(
    subject: Subject, variables: Any, images: jax.Array, classes: jax.Array, keys: jax.Array
) -> Relevance:
    """Explains by the patches' weights, the same for all classes.

    TIP 2021, AAAI 2020.

    With dynamic routing they are the couplings to the predicted class, all three iterations of which are
    one layer here: a rollout over layers has nothing to multiply (Sabour et al. 2017).
    """
    del classes, keys
    return subject.from_patches(subject.outputs(variables, images).attention)


def contribution(
    subject: Subject, variables: Any, images: jax.Array, classes: jax.Array, keys: jax.Array
) -> Relevance:
    """Explains by each patch's part in the class's logit.

    `a_p z_pc - mean_k a_p z_pk`.

    The image's logits are W sum_p a_p h_p + b = sum_p a_p z_p, since attention sums to 1, so that a
    patch's part is exact. The mean over classes is taken off, which adds the same to all classes.
    """
    del keys
    outputs = subject.outputs(variables, images)
    parts = outputs.attention[..., None] * outputs.patch_logits
    return subject.from_patches(pick_class(parts, classes) - jnp.mean(parts, axis=-1))

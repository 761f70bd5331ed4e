"""Receptive fields of patches, measured on the network, and pixel maps.

A patch's window (`PatchGrid`) is only where the last convolution looks on the backbone's map: the layers
below it see further, and most of it weakly. How much the patch's logits move when a pixel does is the
effective receptive field of Luo et al. 2016 ("Understanding the Effective Receptive Field in Deep CNNs");
where it is not 0 is all that the patch can see.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax import data
from lossattn_jax.models import ImageNetwork

PROBES = 32  # images that sensitivities are averaged over; fewer leave the signs' noise in maps


def receptive_fields(
    model: ImageNetwork, variables: Any, images: jax.Array, seed: int = 0
) -> np.ndarray:
    """Computes how strongly each patch's logits depend on each pixel.

    The root of the mean over N images of the squared Frobenius norm of d z_p / d pixel. The norm is not
    summed over classes but estimated without bias from one product with random signs for each image, so
    that a patch costs one backward pass however many classes there are.

    Args:
      model: the network.
      variables: its "params" and "batch_stats".
      images: `[N, H, W, C]` float, normalised; `PROBES` of a data set will do.
      seed: of the signs.

    Returns:
      `[P, H, W]` float32 on the host, each patch's sum 1; 0 exactly at the pixels that a patch cannot see. A
      patch that depends on nothing is 0 everywhere.
    """

    def energies(variables: Any, images: jax.Array, key: jax.Array) -> jax.Array:
        def patch_logits(x: jax.Array) -> jax.Array:
            outputs: Any = model.apply(variables, x, train=False)
            return outputs.patch_logits.astype(jnp.float32)

        logits, pull = jax.vjp(patch_logits, images)
        signs = jax.random.rademacher(key, logits.shape, jnp.float32)

        def energy(patch: jax.Array) -> jax.Array:
            one_hot = (jnp.arange(logits.shape[1]) == patch).astype(jnp.float32)
            (gradient,) = pull(signs * one_hot[None, :, None])
            return jnp.mean(jnp.sum(jnp.square(gradient.astype(jnp.float32)), axis=-1), axis=0)

        # One patch after the other: all at once would hold P gradients of every layer.
        return jax.lax.map(energy, jnp.arange(logits.shape[1]))

    energy = jax.jit(energies)(variables, images, jax.random.key(seed))
    fields = np.sqrt(np.asarray(energy, np.float64))
    totals = fields.sum(axis=(1, 2), keepdims=True)
    return (fields / np.where(totals > 0, totals, 1.0)).astype(np.float32)


def on_images(
    model: ImageNetwork, variables: Any, images: np.ndarray, spec: data.DatasetSpec
) -> np.ndarray:
    """Computes `receptive_fields` on images of a run's data set.

    `[N, H, W, C]` uint8.
    """
    pixels = data.normalise(jnp.asarray(images), spec.mean, spec.std, model.dtype)
    return receptive_fields(model, variables, pixels)


def pixel_map(values: np.ndarray, fields: np.ndarray) -> np.ndarray:
    """Spreads patches' values over the pixels that they see.

    A pixel has their mean, by how strongly they see it.

    Equal values give an even map, whatever the patches see.

    Args:
      values: `[..., P]`.
      fields: `[P, H, W]` from `receptive_fields`.

    Returns:
      `[..., H, W]` float64; 0 at a pixel that no patch sees.
    """
    weights = np.asarray(fields, np.float64)
    total = weights.sum(axis=0)
    mean = np.tensordot(np.asarray(values, np.float64), weights, axes=1)
    return mean / np.where(total > 0, total, 1.0)


def extents(fields: np.ndarray, share: float = 0.95) -> tuple[float, float]:
    """Computes the share of the image that patches see.

    Args:
      fields: `[P, H, W]` from `receptive_fields`.
      share: of the dependence.

    Returns:
      The part that a patch can see at all, and the smallest part that holds `share` of its dependence.
    """
    flat = -np.sort(-np.asarray(fields, np.float64).reshape(len(fields), -1), axis=1)
    is_below = np.cumsum(flat, axis=1) < share * flat.sum(axis=1, keepdims=True)
    alive = flat.sum(axis=1) > 0
    return float(np.mean(flat > 0)), float(np.mean((is_below.sum(axis=1) + alive) / flat.shape[1]))

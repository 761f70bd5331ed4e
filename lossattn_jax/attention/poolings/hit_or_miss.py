"""Distances of class capsules from a centre (HitNet, Deliege et al. 2018, arXiv 1806.06519)."""

import jax.numpy as jnp
import optax

from lossattn_jax.attention import pooling
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.attention.poolings.entry import CLASS_CAPSULES, Patches, Pooling

CENTRE = 0.5  # every coordinate of the capsule that is to be hit


def _measure_distances(patches: Patches) -> Outputs:
    """Predicts 1 minus the distance of each class capsule from the centre.

    The capsule of the image's class is to hit the centre, those of the others are to miss it. Of capsules in
    [0, 1]^E the predictions are in [1 - sqrt(E) / 2, 1]. There are no couplings and no weights of places: the
    whole image is one patch, of weight 1.
    """
    distances = optax.safe_norm(patches.features - CENTRE, 0.0, axis=-1)
    patch_logits = 1 - distances
    attention = pooling.uniform_attention(patch_logits, patches.mask)
    logits = jnp.einsum("bp,bpk->bk", attention, patch_logits)
    return Outputs(logits, patch_logits, attention)


HIT_OR_MISS = Pooling(_measure_distances, takes=(CLASS_CAPSULES,), loss="centripetal")

"""Dynamic routing from primary to class capsules (Sabour et al. 2017)."""

import jax.numpy as jnp
import optax
from flax import linen as nn

from lossattn_jax.attention import pooling
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.attention.poolings.entry import UNITS, Patches, Pooling
from lossattn_jax.attention.routing import dynamic_routing, squash

CLASS_DIMENSION = 16  # of the class capsules


def _route(patches: Patches) -> Outputs:
    """Predicts the lengths of class capsules, in [0, 1).

    The attention is the share of the coupling coefficients to the predicted class that a patch has. A patch's
    prediction is what it adds to the class capsules before they are squashed, along the direction of each;
    over the patches it sums to that capsule's length before squashing.
    """
    units = patches.features
    batch, count, dimension, channels = units.shape
    primary = squash(units.transpose(0, 1, 3, 2)).reshape(batch, -1, dimension)
    transform = patches.network.param(
        "transform",
        nn.initializers.normal(0.1),
        (count * channels, patches.num_classes, dimension, patches.hidden),
        jnp.float32,
    )
    votes = jnp.einsum("bnd,nkde->bnke", primary, transform)
    if patches.mask is not None:  # a capsule that votes for nothing takes no part
        real = jnp.repeat(patches.mask.astype(bool), channels, axis=1)
        votes = jnp.where(real[:, :, None, None], votes, 0.0)
    routing = dynamic_routing(votes)
    lengths = optax.safe_norm(routing.capsules, 0.0, axis=-1)
    attention = pooling.coupling_attention(
        routing.couplings.reshape(batch, count, channels, -1),
        jnp.argmax(lengths, axis=-1),
        patches.mask,
    )
    directions = routing.capsules / jnp.where(lengths > 0, lengths, 1.0)[:, :, None]
    parts = jnp.einsum("bnk,bnke,bke->bnk", routing.couplings, votes, directions)
    patch_logits = jnp.sum(parts.reshape(batch, count, channels, -1), axis=2)
    return Outputs(lengths, patch_logits, attention)


DYNAMIC_ROUTING = Pooling(
    _route,
    takes=(UNITS,),
    hidden=CLASS_DIMENSION,
    loss="margin",
    torch_names={"transform": "routing.weight"},
)

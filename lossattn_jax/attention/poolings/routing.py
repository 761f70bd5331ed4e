"""Dynamic routing from primary to class capsules (Sabour et al. 2017), and DeepCaps' variant of it."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.typing import Initializer

from lossattn_jax.attention import pooling
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.attention.poolings.entry import SQUASHED, UNITS, Patches, Pooling
from lossattn_jax.attention.routing import dynamic_routing, squash

CLASS_DIMENSION = 16  # of the class capsules
DEEP_CLASS_DIMENSION = 32  # of DeepCaps'


def _route_units(patches: Patches) -> Outputs:
    """Squashes the primary capsules, and routes them to the classes.

    See `_route`.
    """
    units = patches.features.transpose(0, 1, 3, 2)
    return _route(patches, squash(units), nn.initializers.normal(0.1))


def _route_with_bias(patches: Patches) -> Outputs:
    """Routes as DeepCaps' last layer does.

    The primary capsules are squashed already, and each class capsule has a bias, which is added before it is
    squashed. Weights and bias begin as in the published code (github.com/brjathu/deepcaps). See `_route`.
    """
    initial = nn.initializers.glorot_uniform()
    bias = patches.network.param(
        "bias", initial, (patches.num_classes, patches.hidden), jnp.float32
    )
    return _route(patches, patches.features.transpose(0, 1, 3, 2), initial, bias)


def _route(
    patches: Patches, primary: jax.Array, initial: Initializer, bias: jax.Array | None = None
) -> Outputs:
    """Predicts the lengths of class capsules, in [0, 1).

    The attention is the share of the coupling coefficients to the predicted class that a patch has. A patch's
    prediction is what it adds to the class capsules before they are squashed, along the direction of each;
    over the patches it sums to that capsule's length before squashing, less the part of the bias.

    Args:
      patches: as every pooling has them.
      primary: `[B, P, C, D]` squashed capsules.
      initial: of the weights `[P * C, K, D, E]` that make votes of them.
      bias: `[K, E]` of the class capsules, or None.
    """
    batch, count, channels, dimension = primary.shape
    primary = primary.reshape(batch, -1, dimension)
    transform = patches.network.param(
        "transform",
        initial,
        (count * channels, patches.num_classes, dimension, patches.hidden),
        jnp.float32,
    )
    votes = jnp.einsum("bnd,nkde->bnke", primary, transform)
    if patches.mask is not None:  # a capsule that votes for nothing takes no part
        real = jnp.repeat(patches.mask.astype(bool), channels, axis=1)
        votes = jnp.where(real[:, :, None, None], votes, 0.0)
    routing = dynamic_routing(votes, bias=bias)
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
    _route_units,
    takes=(UNITS,),
    hidden=CLASS_DIMENSION,
    loss="margin",
    torch_names={"transform": "routing.weight"},
)
BIASED_ROUTING = Pooling(
    _route_with_bias,
    takes=(SQUASHED,),
    hidden=DEEP_CLASS_DIMENSION,
    loss="margin",
    torch_names={"transform": "routing.weight", "bias": "routing.bias"},
)

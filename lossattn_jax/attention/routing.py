"""Dynamic routing between capsules, as pure functions.

Sabour et al. 2017, and between maps of capsules as in DeepCaps (Rajasegaran et al. 2019).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lossattn_jax.arguments import NUMBERS, check_arrays, check_number
from lossattn_jax.commands import imports

__getattr__ = imports.former_names(__name__, {"Routed": "Routing"})

ITERATIONS = 3  # Sabour et al. 2017, section 4
_BIAS = dataclasses.replace(NUMBERS, optional=True)


class Routing(NamedTuple):
    """Capsules and couplings of a routing, float32.

    Attributes:
      capsules: `[B, K, E]` class capsules v_k, shorter than 1; of `map_routing` `[B, H, W, K, E]`.
      couplings: `[B, N, K]` coefficients c_nk of the last iteration; of `map_routing` `[B, N, H, W, K]`. Each
        `[b, n]` sums to 1.
    """

    capsules: jax.Array
    couplings: jax.Array


def squash(vectors: jax.Array) -> jax.Array:
    """Squashes vectors to lengths below 1; keeps their directions.

    `|s|^2 / (1 + |s|^2) * s / |s|` over the last axis (equation 1).

    Args:
      vectors: `[..., E]` float.

    Returns:
      The same shape; 0 with a finite gradient where a vector is 0.

    Raises:
      ValueError: there is no last axis, or it holds no real numbers.
    """
    check_arrays(vectors=(vectors, "... E", NUMBERS))
    # With s = m u the formula is u |u| / (1 / m^2 + |u|^2): the squares stay in range for any m.
    largest = jnp.max(jnp.abs(vectors), axis=-1, keepdims=True)
    scale = jax.lax.stop_gradient(jnp.maximum(largest, 1.0))
    relative = vectors / scale
    length = optax.safe_norm(relative, 0.0, axis=-1, keepdims=True)
    return relative * (length / (jnp.square(1 / scale) + jnp.square(length)))


def dynamic_routing(
    votes: jax.Array, iterations: int = ITERATIONS, bias: jax.Array | None = None
) -> Routing:
    """Routes capsules by agreement (procedure 1).

    Gradients flow through every iteration.

    Args:
      votes: `[B, N, K, E]`, what each of N capsules predicts for each of K class capsules.
      iterations: at least 1.
      bias: `[K, E]`, added to each class capsule before it is squashed, as DeepCaps does. None: nothing is.

    Raises:
      ValueError: arrays of other shapes, or a number of iterations that is no such number.
    """
    check_arrays(votes=(votes, "B N K E", NUMBERS), bias=(bias, "K E", _BIAS))
    check_number("iterations", iterations, 1, whole=True, static=True)
    votes = votes.astype(jnp.float32)
    shift = 0.0 if bias is None else bias.astype(jnp.float32)[None]
    agreement = jnp.zeros(votes.shape[:3], jnp.float32)
    for iteration in range(iterations):
        couplings = jax.nn.softmax(agreement, axis=-1)
        capsules = squash(jnp.einsum("bnk,bnke->bke", couplings, votes) + shift)
        if iteration + 1 < iterations:
            agreement += jnp.einsum("bnke,bke->bnk", votes, capsules)
    return Routing(capsules, couplings)


def map_routing(votes: jax.Array, bias: jax.Array, iterations: int = ITERATIONS) -> Routing:
    """Routes kinds of capsules to maps of capsules (Rajasegaran et al. 2019, DeepCaps).

    Each kind of capsule has one vote for each kind and place of the map above it, which a convolution makes
    of its own map, and its couplings share 1 among all of these: the softmax goes over places and kinds at
    once. Then it is `dynamic_routing` to the map's H * W * K capsules.

    Args:
      votes: `[B, N, H, W, K, E]`, of N kinds of capsules for K kinds at H x W places.
      bias: `[K, E]`, added before squashing, the same at every place.
      iterations: at least 1.

    Raises:
      ValueError: arrays of other shapes, or a number of iterations that is no such number.
    """
    check_arrays(votes=(votes, "B N H W K E", NUMBERS), bias=(bias, "K E", NUMBERS))
    batch, count, height, width, kinds, dimension = votes.shape
    to_all = votes.reshape(batch, count, height * width * kinds, dimension)
    routing = dynamic_routing(to_all, iterations, jnp.tile(bias, (height * width, 1)))
    return Routing(
        routing.capsules.reshape(batch, height, width, kinds, dimension),
        routing.couplings.reshape(batch, count, height, width, kinds),
    )

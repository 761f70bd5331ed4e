"""Dynamic routing between capsules (Sabour et al. 2017), as pure functions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lossattn_jax.arguments import NUMBERS, check_arrays, check_number
from lossattn_jax.commands import imports

__getattr__ = imports.former_names(__name__, {"Routed": "Routing"})

ITERATIONS = 3  # Sabour et al. 2017, section 4


class Routing(NamedTuple):
    """Capsules and couplings of `dynamic_routing`, float32.

    Attributes:
      capsules: `[B, K, E]` class capsules v_k, shorter than 1.
      couplings: `[B, N, K]` coefficients c_nk of the last iteration; each `[b, n]` sums to 1.
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


def dynamic_routing(votes: jax.Array, iterations: int = ITERATIONS) -> Routing:
    """Routes capsules by agreement (procedure 1).

    Gradients flow through every iteration.

    Args:
      votes: `[B, N, K, E]`, what each of N capsules predicts for each of K class capsules.
      iterations: at least 1.

    Raises:
      ValueError: votes of another number of axes, or a number of iterations that is no such number.
    """
    check_arrays(votes=(votes, "B N K E", NUMBERS))
    check_number("iterations", iterations, 1, whole=True, static=True)
    votes = votes.astype(jnp.float32)
    agreement = jnp.zeros(votes.shape[:3], jnp.float32)
    for iteration in range(iterations):
        couplings = jax.nn.softmax(agreement, axis=-1)
        capsules = squash(jnp.einsum("bnk,bnke->bke", couplings, votes))
        if iteration + 1 < iterations:
            agreement += jnp.einsum("bnke,bke->bnk", votes, capsules)
    return Routing(capsules, couplings)

"""Initialisers of layers, as PyTorch has them."""

import jax
import jax.numpy as jnp
from flax.typing import Initializer


def torch_bias_init(fan_in: int) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as PyTorch's layers draw their biases."""
    limit = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init

"""Shapes of a network's variables, which nothing has to be computed for."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

_NETWORKS = 16  # whose shapes are remembered: tracing a deep one takes a second


@functools.lru_cache(_NETWORKS)
def variable_shapes(model: nn.Module, input_shape: tuple[int, ...]) -> Mapping[str, Any]:
    """Shapes and dtypes of the variables that `model.init` makes; runs nothing.

    Args:
      model: the network.
      input_shape: of one input, without the batch.

    Returns:
      The tree of `model.init` with a `jax.ShapeDtypeStruct` for each array. All calls for the same network
      get the same tree: it is not to be changed.
    """
    inputs = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), inputs)

"""The promotion of dtypes under which optax computes."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

F = TypeVar("F", bound=Callable[..., Any])


def with_usual_promotion(function: F) -> F:
    """Puts a function under JAX's usual promotion of dtypes.

    optax's schedules and bias corrections mix counts with floats, which JAX refuses where
    `jax_numpy_dtype_promotion` is "strict". Elsewhere this changes nothing.

    Args:
      function: of optax.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]

"""The fastest matrix product of a device, a ceiling for networks."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine

# Sides of the square matrices that are tried.
_ACCELERATOR_SIDES = (2048, 4096, 8192, 16384)
_CPU_SIDES = (512, 1024, 2048)
# Relative errors of a product of float32 matrices below which its factors were not rounded further, or
# to the 10 bits of TF32 and no further.
_FLOAT32_ERROR, _TF32_ERROR = 1e-5, 1e-3


def ceiling(dtype: str, sides: Sequence[int] | None = None, repeats: int = 5) -> dict[str, Any]:
    """Measures large square products on the first device.

    At JAX's precision for products.

    Args:
      dtype: of the matrices, "float32" or "bfloat16".
      sides: of the matrices; None: as suits the platform.
      repeats: of which each side's median is taken.

    Returns:
      `tflops_per_second` of the fastest side, that `side`, the rates of `all` sides, `precision_setting`
      (jax_default_matmul_precision), and for float32 `error` of a product relative to that in float64, and
      `precision`, what the factors were rounded to by that.
    """
    if sides is None:
        sides = _CPU_SIDES if jax.default_backend() == "cpu" else _ACCELERATOR_SIDES
    rates = {side: _rate(side, dtype, repeats) for side in sides}
    fastest = max(rates, key=lambda side: rates[side])
    record: dict[str, Any] = {
        "tflops_per_second": rates[fastest] / 1e12,
        "side": fastest,
        "all": {str(side): rate / 1e12 for side, rate in rates.items()},
        "precision_setting": _precision_setting(),
    }
    if dtype == "float32":
        error = product_error()
        record |= {"error": error, "precision": precision(error)}
    return record


def product_error(side: int = 512) -> float:
    """Relative error of a float32 product on the first device."""
    random = np.random.default_rng(0)
    left, right = (random.standard_normal((side, side), np.float32) for _ in range(2))
    exact = left.astype(np.float64) @ right.astype(np.float64)
    error = np.asarray(jax.jit(jnp.dot)(left, right), np.float64) - exact
    return float(np.linalg.norm(error) / np.linalg.norm(exact))


def precision(error: float) -> str:
    """What the factors of a float32 product were rounded to, by `product_error`."""
    if error < _FLOAT32_ERROR:
        return "float32"
    return "TF32" if error < _TF32_ERROR else "bfloat16"


def _precision_setting() -> str:
    config: Any = jax.config  # its options are not known to type checkers
    return config.jax_default_matmul_precision or "default"


def _rate(side: int, dtype: str, repeats: int) -> float:
    keys = jax.random.split(jax.random.key(0))
    left, right = (jax.random.normal(key, (side, side), dtype) for key in keys)
    product = functools.partial(jax.jit(jnp.dot), left, right)
    seconds = machine.seconds_per_call(
        lambda: jax.block_until_ready(product()), at_least=0.1, repeats=repeats
    )
    return 2 * side**3 / seconds

"""What every comparison with PyTorch begins with: both are there, and both compute the same."""

import importlib.util

import jax

from lossattn_jax.errors import UserError


class DisagreementError(Exception):
    """The two do not compute the same, so that their times may not be compared."""


def check_sides() -> None:
    """Refuses to compare with PyTorch where there is none, or where JAX computes on an accelerator.

    Raises:
      UserError: either.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is needed for what is measured against: pip install torch==2.13.0")
    if jax.default_backend() != "cpu":
        raise UserError(
            f"JAX computes on {jax.default_backend()}, but this compares what a CPU does: set "
            "JAX_PLATFORMS=cpu"
        )

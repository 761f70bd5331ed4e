"""What every comparison with PyTorch begins with."""

import importlib.util

import jax

from lossattn_jax.errors import UserError


class DisagreementError(Exception):
    """Both sides do not compute the same, so times say nothing."""


def check_sides() -> None:
    """Checks that PyTorch is installed and JAX computes on the CPU.

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

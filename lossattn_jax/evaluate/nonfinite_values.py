"""Reports of non-finite values, in replayed updates and outputs."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax.checkpoint.tree_names import name_leaves

_MOST_LISTED = 16  # of a batch's images or bags, or of parameters, in a sentence


def list_first(names: Sequence[object]) -> str:
    """Lists the first names; counts them where there are more."""
    first = ", ".join(map(str, names[:_MOST_LISTED]))
    return first if len(names) <= _MOST_LISTED else f"{first}, ... ({len(names)} in all)"


def of_state(tree: Any, what: str) -> str:
    """Reports non-finite values of the state before an update.

    Args:
      tree: arrays on the host.
      what: what they are, as the beginning of a clause in the plural.
    """
    names = names_of(tree)
    if names:
        return f"Already before it, these were not finite: {list_first(names)}."
    return f"Before it, {what} were finite."


def of_losses(losses: np.ndarray, names: Sequence[object], what: str, clause: str = "") -> str:
    """Reports non-finite losses by name.

    Args:
      losses: `[n]`.
      names: n, of what they belong to.
      what: what that is, in the plural.
      clause: how they are named, as a clause that begins with a comma.
    """
    wrong = [
        f"{name} ({loss})"
        for name, loss in zip(names, losses.tolist(), strict=True)
        if not np.isfinite(loss)
    ]
    if not wrong:
        return (
            f"The losses of all {what} are finite, {losses.mean(dtype=np.float64):.6g} on average."
        )
    return f"The losses of {len(wrong)} of {len(losses)} {what} are not finite{clause}: {list_first(wrong)}."


def of_outputs(count: int, total: int, of: str) -> str:
    """Reports images with non-finite outputs or losses.

    Args:
      count: of them.
      total: of all images that were looked at.
      of: what these are, such as "images of test".
    """
    return (
        f"the network has non-finite outputs (logits, patch logits, attention or their loss) for {count} of "
        f"{total} {of}"
    )


def of_gradient(gradient: Any) -> str:
    """Reports non-finite gradients, and a norm that overflows."""
    names, count = names_of(gradient), len(jax.tree.leaves(gradient))
    if names:
        return f"The gradients of {len(names)} of {count} parameters are not finite: {list_first(names)}."
    squares = {
        name: float(np.sum(np.square(np.asarray(leaf, np.float64))))
        for name, leaf in name_leaves(gradient)
    }
    norm = float(np.sqrt(sum(squares.values())))
    if norm**2 > float(jnp.finfo(jnp.float32).max):
        largest = max(squares, key=lambda name: squares[name])
        return (
            f"The gradient is finite, but its norm of {norm:.3g} is not in float32, whose squares end at "
            f"{jnp.finfo(jnp.float32).max:.3g}; most of it comes from {largest}."
        )
    return f"The gradient is finite, with a norm of {norm:.6g}."


def names_of(tree: Any) -> list[str]:
    """Names the leaves with non-finite values."""
    return [name for name, leaf in name_leaves(tree) if not np.isfinite(np.asarray(leaf)).all()]

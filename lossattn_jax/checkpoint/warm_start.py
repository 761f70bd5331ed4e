"""Parameters of another run, taken over where they fit.

A network for other classes has another classifier; a new head or pooling has other layers. These begin
afresh, and the backbone is taken over as a whole.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from lossattn_jax.checkpoint.tree_names import name_leaves
from lossattn_jax.errors import UserError, name_first
from lossattn_jax.models.network import BACKBONE, HEAD

_MOST_NAMED = 3


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """Variables of a new run, and which of them begin afresh.

    Attributes:
      variables: "params" and "batch_stats".
      afresh: a clause for each array of the new run that the other one does not have in this shape.
      unused: names of the other run's arrays that the new one has no place for.
    """

    variables: dict[str, Any]
    afresh: tuple[str, ...]
    unused: tuple[str, ...]


def take_over(own: dict[str, Any], other: dict[str, Any], same_classes: bool = True) -> WarmStart:
    """Takes over the arrays of another run that have the same name and shape.

    Args:
      own: "params" and "batch_stats" of the new run.
      other: likewise, of the run to start from.
      same_classes: whether both runs have the same classes in the same order; else what is behind backbone
        and head begins afresh, also where it has the same shape.

    Raises:
      UserError: an array of the backbone does not fit.
    """
    theirs = dict(name_leaves(other))
    names = [name for name, _ in name_leaves(own)]
    clauses = {
        name: clause
        for name, array in name_leaves(own)
        if (clause := _describe_misfit(name, array, theirs, same_classes)) is not None
    }
    of_backbone = [clause for name, clause in clauses.items() if name.split("/")[1] == BACKBONE]
    if of_backbone:
        raise UserError(
            f"the network of that run has another backbone: {name_first(of_backbone, _MOST_NAMED)}"
        )
    leaves = [array if name in clauses else theirs[name] for name, array in name_leaves(own)]
    return WarmStart(
        variables=jax.tree.unflatten(jax.tree.structure(own), leaves),
        afresh=tuple(clauses.values()),
        unused=tuple(name for name in theirs if name not in names),
    )


def refuse_misfits(start: WarmStart) -> None:
    """Refuses a start of which not all fits.

    Raises:
      UserError: a parameter begins afresh, or one of the other run has no place.
    """
    misfits = [*start.afresh, *(f"{name} only there" for name in start.unused)]
    if misfits:
        raise UserError(
            "the network of that run has other parameters than this one: "
            f"{name_first(misfits, _MOST_NAMED)}; "
            "--config.init_strict=false lets those behind the backbone begin afresh"
        )


def _describe_misfit(
    name: str, array: Any, theirs: dict[str, Any], same_classes: bool
) -> str | None:
    """Says how another run's array does not fit; None where it does."""
    if name not in theirs:
        return f"{name} only here"
    here, there = np.shape(array), np.shape(theirs[name])
    if here != there:
        return f"{name} {list(there)} there and {list(here)} here"
    if same_classes or name.split("/")[1] in (BACKBONE, HEAD):
        return None
    return f"{name} of other classes"

"""Items of training checkpoints: the state, and sums for the log.

With the sums a resumed run writes the lines of an uninterrupted one, also where the checkpoint lies between
two lines. They are an item of their own, which checkpoints from before there was one lack.
"""

import dataclasses
from typing import Any

from lossattn_jax.checkpoint.store import Checkpoints
from lossattn_jax.train.images.step import Metrics
from lossattn_jax.train.state import TrainState

SUMS = "sums"


def of_training(state: TrainState, totals: Metrics) -> dict[str, Any]:
    """The items of a checkpoint, by name.

    Args:
      state: on the host.
      totals: the metrics since the last log line, on the host.
    """
    return {**state.items(), SUMS: {"metrics": totals, "skipped": state.skipped}}


def restore(
    checkpoints: Checkpoints, step: int, fresh: TrainState, zero: Metrics
) -> tuple[TrainState, Metrics]:
    """Reads what `of_training` gave.

    Args:
      checkpoints: of the run.
      step: of the checkpoint.
      fresh: a state, or the shapes of one.
      zero: `step.zero_metrics`; they are returned where the checkpoint has no sums, or other ones.

    Raises:
      DamagedCheckpoint: the arrays cannot be read, or are not as they were saved.
      UserError: the stored arrays are others.
    """
    like = fresh.items()
    sums = of_training(fresh, zero)[SUMS]
    if not checkpoints.fits(step, SUMS, sums):
        return TrainState.from_items(checkpoints.restore(step, like)), zero
    items = checkpoints.restore(step, {**like, SUMS: sums})
    sums = items.pop(SUMS)
    state = dataclasses.replace(TrainState.from_items(items), skipped=sums["skipped"])
    return state, sums["metrics"]

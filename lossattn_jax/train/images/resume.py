"""Resuming a run at its newest intact checkpoint."""

from collections.abc import Callable
from typing import TypeVar

from lossattn_jax import devices
from lossattn_jax.checkpoint.store import Checkpoints
from lossattn_jax.errors import DamagedCheckpoint
from lossattn_jax.train.images import reporting

T = TypeVar("T")


def newest_intact(checkpoints: Checkpoints, read: Callable[[int], T]) -> T | None:
    """Reads the newest intact checkpoint; moves damaged ones aside.

    All processes have to come here, and to see the same newest checkpoint (`Checkpoints.latest_step` says if
    not); one that is damaged for one of them is for all.

    Args:
      checkpoints: of the run.
      read: takes a step; raises DamagedCheckpoint.

    Returns:
      None where no checkpoint is intact.

    Raises:
      UserError: of `read`, or a damaged checkpoint cannot be moved.
    """
    any_damaged = False
    # Damage of older ones too, and folders that are no checkpoint, would be in the way of the next save.
    for step in checkpoints.steps_with_folder():
        any_damaged |= _try(checkpoints, step, checkpoints.look)[1]
    while (newest := checkpoints.latest_step()) is not None:
        result, is_damaged = _try(checkpoints, newest, read)
        if not is_damaged:
            if any_damaged:
                reporting.warn("warning: going on from the checkpoint of step %d", newest)
            return result
        any_damaged = True
    if any_damaged:
        reporting.warn("warning: no checkpoint is intact: the run starts from the beginning")
    return None


def _try(checkpoints: Checkpoints, step: int, read: Callable[[int], T]) -> tuple[T | None, bool]:
    """Reads a checkpoint, or moves a damaged one aside.

    Returns what was read, and whether it was damaged.
    """
    result, failure = None, None
    try:
        result = read(step)
    except DamagedCheckpoint as error:
        failure = error
    if not devices.anywhere(failure is not None):
        return result, False
    target = checkpoints.move_aside(step)
    reason = failure or f"checkpoint {step} cannot be read by another process"
    reporting.warn("warning: %s; it was moved to %s", reason, target)
    return None, True

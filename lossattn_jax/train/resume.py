"""Where a run goes on: at its newest checkpoint that is as it was saved, and in no workdir twice at once."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import filelock
import jax

from lossattn_jax import devices
from lossattn_jax.checkpoint import Checkpoints
from lossattn_jax.errors import DamagedCheckpoint, UserError
from lossattn_jax.train import reporting

LOCK_NAME = "training.lock"

T = TypeVar("T")


@contextlib.contextmanager
def alone(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other trainings out of a workdir, by a lock that ends with the process, however it ends.

    Raises:
      UserError: another training has it, or the folder cannot be written.
    """
    lock = filelock.FileLock(workdir / LOCK_NAME)
    taken, failure = False, None
    if jax.process_index() == 0:
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            taken = True
        except (OSError, NotImplementedError) as error:
            failure = error
    try:
        if devices.anywhere(taken):
            raise UserError(
                f"the workdir {workdir} is being trained in already: wait for that run to end, or use "
                "another workdir"
            )
        if failure is not None:
            reporting.warn(
                "warning: %s cannot be locked (%s): take care that no second training uses it",
                workdir,
                failure,
            )
        yield
    finally:
        lock.release()


def newest_intact(checkpoints: Checkpoints, read: Callable[[int], T]) -> T | None:
    """What `read` makes of the newest checkpoint that is intact; damaged ones are moved aside.

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
    moved = False
    # Damage of older ones too, and folders that are no checkpoint, would be in the way of the next save.
    for step in checkpoints.named():
        moved |= _try(checkpoints, step, checkpoints.look)[1]
    while (newest := checkpoints.latest_step()) is not None:
        found, damaged = _try(checkpoints, newest, read)
        if not damaged:
            if moved:
                reporting.warn("warning: going on from the checkpoint of step %d", newest)
            return found
        moved = True
    if moved:
        reporting.warn("warning: no checkpoint is intact: the run starts from the beginning")
    return None


def _try(checkpoints: Checkpoints, step: int, read: Callable[[int], T]) -> tuple[T | None, bool]:
    """What was read, and whether the checkpoint was damaged; then it is moved aside."""
    found, failure = None, None
    try:
        found = read(step)
    except DamagedCheckpoint as error:
        failure = error
    if not devices.anywhere(failure is not None):
        return found, False
    target = checkpoints.move_aside(step)
    reason = failure or f"checkpoint {step} cannot be read by another process"
    reporting.warn("warning: %s; it was moved to %s", reason, target)
    return None, True

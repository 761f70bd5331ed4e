"""Saving of a run's state, after epochs and at the end."""

from collections.abc import Callable
from typing import Any

from lossattn_jax import devices
from lossattn_jax.checkpoint.store import Checkpoints
from lossattn_jax.train.images import checkpoint_items
from lossattn_jax.train.images.job import Job
from lossattn_jax.train.images.step import Metrics
from lossattn_jax.train.state import TrainState


class Saver:
    """Saves the newest state of a run, on the devices until then."""

    def __init__(self, job: Job, checkpoints: Checkpoints):
        """Starts with a saved state, or none."""
        self._job, self._checkpoints = job, checkpoints
        self._pending_save: Callable[[], None] | None = None

    def hold(
        self,
        step: int,
        device_state: TrainState,
        totals: Metrics,
        test_metrics: dict[str, float] | None = None,
    ) -> None:
        """Takes note of the newest state.

        Args:
          step: updates done.
          device_state: the state on the devices.
          totals: the metrics since the last log line, on the devices.
          test_metrics: of the state, where it was tested.
        """

        def save() -> None:
            items = _items(device_state, totals)
            self._checkpoints.save(step, items, test_metrics)

        self._pending_save = save

    def save(self) -> None:
        """Starts to save the newest state, unless it is."""
        if self._pending_save is not None:
            self._pending_save()
            self._pending_save = None

    def save_and_describe(self) -> str:
        """Saves the newest state and says what there is of the run."""
        self.save()
        return self.describe()

    def describe(self) -> str:
        """Describes what is saved, once a pending save has ended."""
        self._checkpoints.wait()
        steps, total = self._checkpoints.steps(), self._job.total_steps
        state_text = (
            f"step {steps[-1]} of {total} is saved in" if steps else "nothing is saved yet in"
        )
        return f"{state_text} {self._job.workdir}; the same command goes on"


def _items(device_state: TrainState, totals: Metrics) -> dict[str, Any]:
    """Items of a checkpoint from state and metrics on the devices."""
    return checkpoint_items.of_training(*devices.unreplicate((device_state, totals)))

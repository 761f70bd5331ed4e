"""The state of a run of images, saved at the ends of epochs and where the run ends."""

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
        """Starts with a state that is saved already, or that nothing was done for."""
        self._job, self._checkpoints = job, checkpoints
        self._unsaved: Callable[[], None] | None = None

    def hold(
        self,
        step: int,
        replicated: TrainState,
        totals: Metrics,
        test_metrics: dict[str, float] | None = None,
    ) -> None:
        """Takes note of the newest state.

        Args:
          step: updates done.
          replicated: the state on the devices.
          totals: the metrics since the last log line, on the devices.
          test_metrics: of the state, where it was tested.
        """

        def save() -> None:
            items = _items(replicated, totals)
            self._checkpoints.save(step, items, test_metrics)

        self._unsaved = save

    def save(self) -> None:
        """Starts to save the newest state, unless it is."""
        if self._unsaved is not None:
            self._unsaved()
            self._unsaved = None

    def save_and_describe(self) -> str:
        """Saves the newest state and says what there is of the run."""
        self.save()
        return self.describe()

    def describe(self) -> str:
        """What there is of the run, once the save that is under way has ended."""
        self._checkpoints.wait()
        steps, total = self._checkpoints.steps(), self._job.total_steps
        saved = f"step {steps[-1]} of {total} is saved in" if steps else "nothing is saved yet in"
        return f"{saved} {self._job.workdir}; the same command goes on"


def _items(replicated: TrainState, totals: Metrics) -> dict[str, Any]:
    """Items of a checkpoint from state and metrics on the devices."""
    return checkpoint_items.of_training(*devices.unreplicate((replicated, totals)))

"""Checkpoints: the only module that knows about Orbax.

A workdir holds `config.json` (the resolved config) and `checkpoints/STEP/` (state and metrics). Saving
is asynchronous; a step's folder gets its name only when everything in it is written, so that a killed
run leaves nothing half-written behind that could be mistaken for a checkpoint.
"""

import pathlib
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lossattn_jax import config as config_lib
from lossattn_jax.errors import UserError

CONFIG_NAME = "config.json"
CHECKPOINTS_NAME = "checkpoints"
BEST_BY = "accuracy"

Tree = TypeVar("Tree")


class Checkpoints:
    """The checkpoints of one workdir. Use as a context manager: leaving it waits for pending saves."""

    def __init__(self, workdir: str | pathlib.Path, keep: int = 2, read_only: bool = False):
        """Opens the checkpoints of `workdir`.

        Args:
          workdir: folder of the run.
          keep: number of newest checkpoints to keep; the best one (by test accuracy) stays besides.
          read_only: for evaluation: writes and removes nothing.
        """
        self.workdir = pathlib.Path(workdir)
        folder = self.workdir.absolute() / CHECKPOINTS_NAME
        policies = [
            preservation_policy.LatestN(keep),
            preservation_policy.BestN(
                get_metric_fn=lambda saved: saved[BEST_BY],
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            best_fn=lambda saved: saved[BEST_BY],
            create=not read_only,
            read_only=read_only,
            enable_async_checkpointing=not read_only,
        )
        self._manager = ocp.CheckpointManager(folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits until what was handed to `save` is on disk, and ends."""
        self._manager.wait_until_finished()
        self._manager.close()

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; None where there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, rising."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Step of the checkpoint with the best test accuracy; None where there is none."""
        return self._manager.best_step()

    def save(self, step: int, state: Any, metrics: dict[str, float] | None) -> None:
        """Starts to write a checkpoint and returns; at most one save is under way.

        Args:
          step: updates done.
          state: pytree of host arrays.
          metrics: stored beside it; checkpoints with metrics compete for the best by `accuracy`.
        """
        if step != self._manager.latest_step():
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics, force=True)

    def restore(self, step: int, like: Tree) -> Tree:
        """Reads a checkpoint into host arrays of the structure, shapes and dtypes of `like`.

        Raises:
          UserError: the stored arrays are others.
        """

        def shape_of(leaf):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_one_device())

        try:
            return self._manager.restore(
                step, args=ocp.args.StandardRestore(jax.tree.map(shape_of, like))
            )
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"checkpoint {step} in {self.workdir} does not fit this model: {reason}"
            ) from error


def _one_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def write_config(config: ConfigDict, workdir: str | pathlib.Path) -> None:
    """Stores the resolved config beside the checkpoints.

    Raises:
      UserError: the folder cannot be made or written.
    """
    folder = pathlib.Path(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config_lib.write(config, folder / CONFIG_NAME)
    except OSError as error:
        raise UserError(f"the workdir {workdir} cannot be written: {error.strerror}") from None


def stored_config(workdir: str | pathlib.Path) -> ConfigDict | None:
    """The config of the run in `workdir`; None where no run has begun."""
    path = pathlib.Path(workdir) / CONFIG_NAME
    return config_lib.read(path) if path.exists() else None

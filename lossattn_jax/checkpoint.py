"""Checkpoints: the only module that knows about Orbax.

A workdir holds `config.json` (the resolved config) and `checkpoints/STEP/`, with an item each for the
network's variables, the rest of the training state, and the metrics. Saving is asynchronous; a step's
folder gets its name only when everything in it is written, so that a killed run leaves nothing
half-written behind that could be mistaken for a checkpoint.

Where several processes train, all call `save` and `restore` with the same host arrays: the first process
writes them, once, and Orbax lets none go on to the next save, or close, before the folder has its name.
Each restores all of them. So a checkpoint says nothing of how many processes or devices made it.
"""

import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lossattn_jax import config_json, devices
from lossattn_jax.errors import UserError

CONFIG_NAME = "config.json"
CHECKPOINTS_NAME = "checkpoints"
# The best checkpoint has the highest of the first of these that its metrics hold.
BEST_BY = ("accuracy", "map_all_point")

# So long a file that another host has written may be unseen: NFS remembers for a minute what was not there.
_UNSEEN_SECONDS = 90.0


class Checkpoints:
    """The checkpoints of one workdir. Use as a context manager: leaving it waits for pending saves."""

    def __init__(self, workdir: str | pathlib.Path, keep: int = 2, read_only: bool = False):
        """Opens the checkpoints of `workdir`.

        Args:
          workdir: folder of the run.
          keep: number of newest checkpoints to keep; the best one (see `BEST_BY`) stays besides.
          read_only: for evaluation: writes and removes nothing.
        """
        self.workdir = pathlib.Path(workdir)
        self._folder = self.workdir.absolute() / CHECKPOINTS_NAME
        policies = [
            preservation_policy.LatestN(keep),
            preservation_policy.BestN(
                get_metric_fn=_score,
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            best_fn=_score,
            create=not read_only,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,
            enable_async_checkpointing=not read_only,
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits until what was handed to `save` is on disk, and ends."""
        self._manager.wait_until_finished()
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, rising."""
        found = self._manager.all_steps()
        # Orbax takes any folder with a number for a name; a checkpoint has its metadata.
        return sorted(s for s in found if (self._folder / str(s) / "_CHECKPOINT_METADATA").exists())

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint; None where there is none.

        Raises:
          UserError: another process sees another one.
        """
        steps = self.steps()
        newest = steps[-1] if steps else None
        if not devices.same_everywhere(-1 if newest is None else newest):
            raise UserError(
                f"the workdir {self.workdir} holds other checkpoints for other processes, but must be one "
                "folder, on a file system that all hosts share"
            )
        return newest

    def holds(self, step: int, item: str) -> bool:
        """Whether the checkpoint of `step` has the item: converted weights have no "training"."""
        return (self._folder / str(step) / item).exists()

    def best_step(self) -> int | None:
        """Step of the checkpoint with the best test accuracy; None where none was tested."""
        return self._manager.best_step()

    def save(
        self, step: int, items: Mapping[str, Any], metrics: Mapping[str, float] | None
    ) -> None:
        """Starts to write a checkpoint and returns; at most one save is under way.

        Args:
          step: updates done.
          items: pytrees of host arrays, by name; each can be restored without the others.
          metrics: stored beside them; checkpoints with metrics compete for the best, see `BEST_BY`.
        """
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        self._manager.save(step, args=ocp.args.Composite(**args), metrics=metrics, force=True)

    def restore(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """Reads items of a checkpoint.

        Args:
          step: one of `steps()`.
          like: by name, trees with the shapes and dtypes that are expected.

        Returns:
          By name, the trees, their leaves on the first local device.

        Raises:
          UserError: the stored arrays are others, or cannot be read.
        """
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def shape_of(leaf):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)

        args = {
            name: ocp.args.StandardRestore(jax.tree.map(shape_of, tree))
            for name, tree in like.items()
        }
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        except (ValueError, KeyError, TypeError, OSError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(
                f"checkpoint {step} in {self.workdir} is damaged or of another model: {reason}"
            ) from error
        return {name: restored[name] for name in like}


def _score(saved: Mapping[str, float]) -> float:
    score = next(saved[name] for name in BEST_BY if name in saved)
    return score if math.isfinite(score) else -math.inf


def write_config(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Stores the resolved config in the folder of a run; the first process writes, the others wait for it.

    Raises:
      UserError: the folder cannot be written, or another process' folder is another one.
    """
    path = workdir / CONFIG_NAME
    if jax.process_index() == 0:
        try:
            config_json.write(config, path)
        except OSError as error:
            raise UserError(f"the workdir {workdir} cannot be written: {error.strerror}") from None
    devices.barrier("config written")
    until = time.monotonic() + _UNSEEN_SECONDS
    while not (seen := path.exists()) and time.monotonic() < until:
        time.sleep(0.5)
    if not seen:
        raise UserError(
            f"the workdir {workdir} has no {CONFIG_NAME} here, which process 0 has written: it must be one "
            "folder, on a file system that all hosts share"
        )


def make_workdir(workdir: str | pathlib.Path) -> pathlib.Path:
    """The folder of a run, made where it is absent.

    Raises:
      UserError: it cannot be made.
    """
    folder = pathlib.Path(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the workdir {workdir} cannot be written: {error.strerror}") from None
    return folder


def stored_config(workdir: str | pathlib.Path) -> ConfigDict:
    """The config that a run stored beside its checkpoints.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    return config_json.read(pathlib.Path(workdir) / CONFIG_NAME)

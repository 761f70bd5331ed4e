"""Checkpoints: the only module, with `integrity` and `writer`, that knows about Orbax.

A workdir holds `config.json` (the resolved config) and `checkpoints/STEP/`, with an item each for the
network's variables, the rest of the training state, the metrics, and digests of all of it. Saving is
asynchronous; a step's folder gets its name only when everything in it is written, and loses it before
anything in it is removed, so that a killed run leaves nothing half-written behind that could be mistaken
for a checkpoint. What a disk does to it afterwards the digests show.

Where several processes train, all call `save` and `restore` with the same host arrays: the first process
writes them, once, and Orbax lets none go on to the next save, or close, before the folder has its name.
Each restores all of them. So a checkpoint says nothing of how many processes or devices made it.
"""

import contextlib
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lossattn_jax import devices, files
from lossattn_jax.checkpoint import event_loops, integrity
from lossattn_jax.checkpoint.writer import Writer
from lossattn_jax.errors import DamagedCheckpoint, UserError
from lossattn_jax.evaluate.metric_registry import EVALUATION_METRICS

CHECKPOINTS_NAME = "checkpoints"
DAMAGED_NAME = "damaged_checkpoints"

# The best checkpoint has the highest of the first of these that its metrics hold.
BEST_BY = tuple(name for name, metric in EVALUATION_METRICS.items() if metric.chooses_checkpoint)


def folder(workdir: str | pathlib.Path, step: int) -> pathlib.Path:
    """Returns the absolute path of a step's checkpoint."""
    return pathlib.Path(workdir).absolute() / CHECKPOINTS_NAME / str(step)


class Checkpoints:
    """The checkpoints of one workdir, as a context manager.

    Leaving it waits for pending saves.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        keep: int = 2,
        read_only: bool = False,
        has_metrics: bool = True,
    ):
        """Opens the checkpoints of `workdir`.

        Args:
          workdir: folder of the run.
          keep: number of newest checkpoints to keep; the best one (see `BEST_BY`) stays besides.
          read_only: for evaluation, where to save is a mistake.
          has_metrics: whether some are saved with metrics, so that there can be a best one.

        Raises:
          UserError: a symbolic link is in the place of the folder that would be written to.
        """
        self.workdir = pathlib.Path(workdir)
        self._folder = self.workdir.absolute() / CHECKPOINTS_NAME
        if not read_only and self._folder.is_symlink():
            raise UserError(
                f"{self.workdir / CHECKPOINTS_NAME} is a symbolic link, which is not followed on writing: "
                "put the whole workdir where the checkpoints shall be"
            )
        # Of this process alone: the others must not wait where one alone finds damage.
        here = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=here, active_processes={here}, barrier_sync_key_prefix=f"reader{here}"
        )
        self._writer = (
            None if read_only else Writer(self._folder, keep, _score if has_metrics else None)
        )
        self._reader = ocp.StandardCheckpointer(multiprocessing_options=alone)

    def __enter__(self) -> "Checkpoints":
        self._loops = event_loops.ending_tasks()
        self._loops.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.close()
        finally:
            self._loops.__exit__(None, None, None)

    def close(self) -> None:
        """Waits until saved checkpoints are on disk, and ends.

        Raises:
          UserError: it cannot be written.
        """
        self.wait()
        self._reader.close()
        if self._writer is not None:
            self._writer.close()

    def wait(self) -> None:
        """Waits until saved checkpoints are on disk.

        Raises:
          UserError: it cannot be written.
        """
        if self._writer is not None:
            self._writer.wait()

    def check_there(self, step: int) -> None:
        """Refuses to go on where a written checkpoint is gone.

        Raises:
          UserError: it is not, or the workdir was moved or removed.
        """
        if self._writer is None:
            raise ValueError("opened to be read only")
        self._writer.check_there(step)

    def steps(self) -> list[int]:
        """Lists the steps of complete checkpoints, rising.

        Those that were damaged since are among them.
        """
        return [
            step
            for step in self.steps_with_folder()
            if integrity.is_checkpoint(self._folder / str(step))
        ]

    def steps_with_folder(self) -> list[int]:
        """Lists the steps with a folder, rising.

        None of them can be saved again.
        """
        if not self._folder.is_dir():
            return []
        return sorted(
            int(folder.name)
            for folder in self._folder.iterdir()
            if folder.name.isdecimal() and folder.name == str(int(folder.name)) and folder.is_dir()
        )

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None.

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
        """Whether a step's checkpoint has the item.

        Converted weights have no "training".

        Raises:
          DamagedCheckpoint: that cannot be read.
        """
        return item in self.look(step).items

    def fits(self, step: int, item: str, like: Any) -> bool:
        """Whether a checkpoint has an item of a tree's shapes and dtypes.

        Raises:
          DamagedCheckpoint: that cannot be read.
        """
        shapes = self.look(step).shapes
        return shapes is not None and shapes.get(item) == integrity.shapes_of(like)

    def look(self, step: int) -> integrity.Record:
        """Reads a checkpoint's record.

        Raises:
          DamagedCheckpoint: that is not as it was saved.
        """
        with self._naming(step):
            record = integrity.read(self._folder / str(step))
            if record.metrics is not None and not set(BEST_BY) & set(record.metrics):
                raise DamagedCheckpoint("its metrics hold neither " + " nor ".join(BEST_BY))
            return record

    def best_step(self) -> int | None:
        """Returns the step of the best test accuracy.

        None where none has a finite one.

        Raises:
          DamagedCheckpoint: the metrics of one are not as they were saved.
        """
        metrics = {step: self.look(step).metrics for step in self.steps()}
        scores = [(_score(values), step) for step, values in metrics.items() if values is not None]
        # The score of a network with non-finite outputs is no score, and it is never the best.
        finite = [(score, step) for score, step in scores if math.isfinite(score)]
        return max(finite)[1] if finite else None

    def save(
        self, step: int, items: Mapping[str, Any], metrics: Mapping[str, float] | None
    ) -> None:
        """Starts to write a checkpoint; at most one is under way.

        Args:
          step: updates done.
          items: pytrees of host arrays, by name; each can be restored without the others.
          metrics: stored beside them; checkpoints with metrics compete for the best, see `BEST_BY`.

        Raises:
          UserError: it, or the one before, cannot be written.
        """
        if self._writer is None:
            raise ValueError("opened to be read only")
        args = {
            name: ocp.args.PyTreeSave(jax.tree.map(np.asarray, tree))
            for name, tree in items.items()
        }
        args[integrity.DIGESTS] = ocp.args.JsonSave(integrity.describe(items, metrics))
        self._writer.save(step, args, metrics)

    def restore(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """Reads items of a checkpoint.

        Args:
          step: one of `steps()`.
          like: by name, trees with the shapes and dtypes that are expected.

        Returns:
          By name, the trees, their leaves on the first local device.

        Raises:
          DamagedCheckpoint: the arrays cannot be read, or are not as they were saved.
          UserError: the stored arrays are others.
        """
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def shape_of(leaf):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)

        record = self.look(step)
        trees = {}
        with self._naming(step):
            for name, tree in like.items():
                path = self._folder / str(step) / name
                if files.find_irregular(path) is not None:  # Orbax would wait for a FIFO for ever
                    raise DamagedCheckpoint(f"{name} has what is not a regular file")
                shapes = record.shapes[name] if record.shapes else self._stored_shapes(path)
                self._refuse_other(step, shapes, integrity.shapes_of(tree))
                try:
                    trees[name] = self._reader.restore(path, jax.tree.map(shape_of, tree))
                except (MemoryError, jax.errors.JaxRuntimeError):
                    raise  # no sign of damage
                except Exception as error:  # damaged files make Orbax raise exceptions of any kind
                    raise DamagedCheckpoint(f"{name} cannot be read: {_short(error)}") from error
                if record.digests:
                    integrity.verify(trees[name], record.digests[name])
        return trees

    def move_aside(self, step: int) -> pathlib.Path:
        """Moves a damaged checkpoint away.

        The first process does, the others wait for it.

        Returns:
          Where it is now, a folder in `DAMAGED_NAME` of the workdir.

        Raises:
          UserError: it cannot be moved.
        """
        folder = self.workdir / DAMAGED_NAME
        target = folder / str(step)
        if jax.process_index() == 0:
            try:
                folder.mkdir(exist_ok=True)
                number = 2
                while target.exists():  # the same step's, from an earlier time
                    target = folder / f"{step}_{number}"
                    number += 1
                (self._folder / str(step)).rename(target)
            except OSError as error:
                raise UserError(f"{target} cannot be written: {error.strerror}") from None
        devices.barrier(f"checkpoint {step} moved aside")
        return target

    @contextlib.contextmanager
    def _naming(self, step: int) -> Iterator[None]:
        """Names the checkpoint in errors of damage."""
        try:
            yield
        except DamagedCheckpoint as error:
            raise DamagedCheckpoint(
                f"checkpoint {step} in {self.workdir} is damaged: {error}"
            ) from error.__cause__

    def _stored_shapes(self, path: pathlib.Path) -> integrity.Shapes:
        """Returns shapes of an item without digests, as Orbax knows them."""
        try:
            return integrity.shapes_of(self._reader.metadata(path).item_metadata.tree)
        except Exception as error:
            raise DamagedCheckpoint(f"{path.name} cannot be read: {_short(error)}") from error

    def _refuse_other(
        self, step: int, shapes_there: integrity.Shapes, like: integrity.Shapes
    ) -> None:
        if shapes_there == like:
            return
        path = min(
            path
            for path in shapes_there.keys() | like.keys()
            if shapes_there.get(path) != like.get(path)
        )
        raise UserError(
            f"checkpoint {step} in {self.workdir} is of another model: its array {path} is "
            f"{shapes_there.get(path, 'absent')}, but must be {like.get(path, 'absent')}"
        )


def _score(values: Mapping[str, float]) -> float:
    score = next(values[name] for name in BEST_BY if name in values)
    return score if math.isfinite(score) else -math.inf


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

"""Asynchronous writing of checkpoints with Orbax.

A checkpoint has its folder's name only when it is whole.
"""

import asyncio
import contextlib
import errno
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint import type_handlers
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lossattn_jax import files
from lossattn_jax.errors import UserError

# Where a checkpoint goes, at once, before its files are removed one by one.
_REMOVED_NAME = "removed"

_MOVE_TEXT = "the workdir was moved or removed since the command began"

# How errors of TensorStore and Orbax begin where a file they wrote is gone.
_ABSENT_TEXTS = ("NOT_FOUND:", "Checkpoint directory does not exist")

Metrics = Mapping[str, float]
Spec = dict[str, Any]


class Writer:
    """Writes a folder's checkpoints, and removes superfluous ones.

    Orbax looks at the whole folder when it is opened, and stumbles over damage: that is to be out of the way
    by the first save, which opens it.
    """

    def __init__(self, folder: pathlib.Path, keep: int, score: Callable[[Metrics], float] | None):
        """Plans to write.

        Args:
          folder: absolute; the workdir around it has to stay the folder that it is now.
          keep: number of newest checkpoints to keep; the best one stays besides.
          score: of a checkpoint's metrics, the best having the highest; None: none has metrics.
        """
        self._folder = folder
        self._workdir: files.HeldFolder | None = None
        with contextlib.suppress(FileNotFoundError):  # Orbax makes it
            self._workdir = files.HeldFolder(folder.parent)
        self._keep = keep
        self._score = score
        self._manager: ocp.CheckpointManager | None = None
        self._saving: int | None = None
        self._lock = (
            threading.RLock()
        )  # another thread may wait for what this one is about to write

    def save(self, step: int, args: Mapping[str, Any], metrics: Metrics | None) -> None:
        """Starts to write a checkpoint, once the one before is written.

        Args:
          step: its number.
          args: Orbax' description of what to save, by item.
          metrics: saved besides.

        Raises:
          UserError: it, or the one before, cannot be written.
        """
        with self._lock:
            self.wait()
            self._saving = step
            with self._writing():
                self._refuse_moved()
                self._sweep()
                if self._manager is None:
                    self._manager = self._open()
                composite = ocp.args.Composite(**args)
                self._manager.save(step, args=composite, metrics=metrics, force=True)

    def wait(self) -> None:
        """Waits until saved checkpoints are on disk, of any thread.

        Raises:
          UserError: it cannot be written.
        """
        with self._lock:
            if self._manager is not None:
                with self._writing():
                    self._manager.wait_until_finished()
                    if self._saving is not None:
                        self._refuse_moved(self._saving)
                self._saving = None

    def check_there(self, step: int) -> None:
        """Refuses to go on where a written checkpoint is gone.

        Raises:
          UserError: it is not, or the workdir was moved or removed.
        """
        try:
            self._refuse_moved(step)
        except OSError as error:
            raise UserError(
                f"checkpoint {step} is gone from {self._folder}: {error.strerror}"
            ) from None

    def close(self) -> None:
        """Ends, after `wait`."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None
            self._sweep()
        if self._workdir is not None:
            self._workdir.close()
            self._workdir = None

    def _refuse_moved(self, step: int | None = None) -> None:
        """Refuses a workdir that is another; Orbax would make a new one.

        Args:
          step: of a checkpoint that has to be in it.

        Raises:
          OSError: it was moved or removed.
        """
        if self._is_moved():
            raise OSError(errno.ENOENT, _MOVE_TEXT)
        if step is not None and not (self._folder / str(step)).is_dir():
            raise OSError(errno.ENOENT, "something else has moved or removed it")

    def _is_moved(self) -> bool:
        return self._workdir is not None and not self._workdir.is_there()

    def _open(self) -> ocp.CheckpointManager:
        policies: list[preservation_policy.PreservationPolicy] = [
            preservation_policy.LatestN(self._keep)
        ]
        if self._score is not None:  # or Orbax warns of each checkpoint without metrics
            best = preservation_policy.BestN(
                get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False
            )
            policies.append(best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            best_fn=self._score,
            cleanup_tmp_directories=True,
            todelete_subdir=_REMOVED_NAME,
        )
        by_type = type_handlers.create_type_handler_registry(
            (np.ndarray, _ArrayWriter()),
            (jax.Array, type_handlers.get_type_handler(jax.Array)),  # or Orbax warns
        )
        trees = ocp.PyTreeCheckpointHandler(type_handler_registry=by_type)
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        handlers.add(None, ocp.args.PyTreeSave, trees)
        return ocp.CheckpointManager(self._folder, options=options, handler_registry=handlers)

    def _sweep(self) -> None:
        """Removes what is no checkpoint any more."""
        if jax.process_index() == 0:
            shutil.rmtree(self._folder / _REMOVED_NAME, ignore_errors=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Tells in a sentence why a checkpoint cannot be written.

        After that nothing more is written.
        """
        try:
            yield
        except Exception as error:
            manager, self._manager = self._manager, None
            if manager is not None:
                with contextlib.suppress(Exception):  # it ends with the same error
                    manager.close()
            reason = _MOVE_TEXT if self._is_moved() else _disk_error(error)
            if reason is None:
                raise
            raise UserError(
                f"checkpoint {self._saving} cannot be written to {self._folder}: {reason}; earlier ones are "
                "as they were, and when that is mended the same command goes on from the newest"
            ) from error


def _disk_error(error: BaseException | None) -> str | None:
    """Finds the operating system's message in an error, or None."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        if match := re.search(r"os_error_code='(\d+)'", str(error)):  # TensorStore's
            return os.strerror(int(match[1]))
        if str(error).startswith(_ABSENT_TEXTS):
            return "something else has moved or removed its files"
        error = error.__cause__ or error.__context__
    return None


class _ArrayWriter(type_handlers.NumpyHandler):
    """Writes NumPy arrays as Orbax does, with one folder description.

    Orbax asks for it once for each array.

    Orbax asks TensorStore for it with every array of every checkpoint, and TensorStore (0.1.86 and earlier)
    never frees the keys and values of a dict that its `to_json` makes: some 300 bytes each time, for as long
    as the process runs.
    """

    async def serialize(
        self,
        values: Sequence[np.ndarray],
        infos: Sequence[type_handlers.ParamInfo],
        args: Sequence[type_handlers.SaveArgs] | None = None,
    ) -> Sequence[ocp.future.Future]:
        """Starts to write arrays of one item, after copying them."""
        write = _write_arrays([np.array(value) for value in values], infos)
        return [ocp.future.CommitFutureAwaitingContractedSignals(write, name="arrays")]


async def _write_arrays(
    values: Sequence[np.ndarray], infos: Sequence[type_handlers.ParamInfo]
) -> None:
    await asyncio.gather(*(info.await_path_creation() for info in infos))
    if jax.process_index() == 0:
        first = _describe(values[0], infos[0])
        writes = (_write_array(*pair, first) for pair in zip(values, infos, strict=True))
        await asyncio.gather(*writes)


async def _write_array(value: np.ndarray, info: type_handlers.ParamInfo, other: Spec) -> None:
    """Writes an array, given the description of another one of its folder."""
    folder = other["kvstore"]
    if value.nbytes > folder["target_data_file_size"]:  # Orbax divides it
        spec = _describe(value, info)
    else:
        spec = {
            **other,
            "dtype": value.dtype.name,
            "kvstore": {**folder, "path": info.name},
            "metadata": {**other["metadata"], "shape": value.shape, "chunks": value.shape},
        }
    store = await ts.open(ts.Spec(spec), create=True, open=True, context=info.ts_context)
    await store.write(value, can_reference_source_data_indefinitely=True)


def _describe(value: np.ndarray, info: type_handlers.ParamInfo) -> Spec:
    """Describes an array for TensorStore, as Orbax does."""
    shape, process = value.shape, jax.process_index()
    return type_handlers.get_json_tspec_write(
        info, True, shape, shape, value.dtype, process_index=process
    )

"""Updates that were skipped because they were not finite: what a run tells of them, and where it ends.

`step.make_train_step` skips and counts them on the devices. Here the host looks at the count, whenever it
fetches metrics anyway or is about to evaluate or save. When it is full, the batch and the state of before
the first of the row go to `WORKDIR/nonfinite/step_S/`, a workdir of its own with one checkpoint, of the
state after S updates, and the batch of the update after these. `lossattn_jax.replay` makes it again, after
it has seen by the digests in `dump.json`, which is written last, that all of that belongs together.
"""

import dataclasses
import functools
import math
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, BinaryIO

import jax
import numpy as np

from lossattn_jax import data, devices, files
from lossattn_jax.checkpoint import provenance, run_folder
from lossattn_jax.checkpoint import store as checkpoint_lib
from lossattn_jax.config.options import ImageOptions
from lossattn_jax.data.pipeline import Batch
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import metrics
from lossattn_jax.evaluate.nonfinite_values import DUMPS_NAME, list_first, write_dump
from lossattn_jax.files import digests, npz_headers, records
from lossattn_jax.train.images import reporting
from lossattn_jax.train.images.job import Job
from lossattn_jax.train.images.step import Metrics
from lossattn_jax.train.optimizer import at_step
from lossattn_jax.train.state import TrainState

BATCH_NAME = "batch.npz"
RECORD_NAME = "dump.json"


def means(totals: Metrics, step: int) -> dict[str, float]:
    """The means of the updates since the last log line; warns if some of them were skipped.

    Args:
      totals: on the host, of `step.make_train_step`.
      step: updates done by then, the skipped ones among them.

    Returns:
      By name the means of the updates that were made, NaN where none was, and as `skipped` how many were not.
    """
    skipped, updates = int(totals["skipped"].total), int(totals["skipped"].count)
    told = metrics.compute(totals)
    first = step - updates + int(told.pop("first_skipped"))
    if skipped == updates:
        told = dict.fromkeys(told, math.nan)
    if skipped:
        reporting.warn(
            "warning: %d of the last %d updates were skipped because loss or gradient was not finite "
            "(first after step %d)",
            skipped,
            updates,
            first,
        )
    return {**told, "skipped": skipped}


def stop_if_stuck(job: Job, replicated: TrainState) -> None:
    """Ends a run whose last `config.train.max_skipped` updates, or more, were all skipped, with a dump.

    All processes have to come here with the same state; the first one writes.

    Args:
      job: the run.
      replicated: its state on the devices.

    Raises:
      UserError: the run has to end.
    """
    # A copy of this process alone, so that a run in which all is well waits for nothing but this scalar.
    skipped = int(devices.unreplicate(replicated.skipped))
    if skipped < job.options.train.max_skipped:
        return
    state = devices.unreplicate(replicated)
    step = int(state.step) - skipped
    batch = _batch(job, step)
    folder = job.workdir / DUMPS_NAME / f"step_{step}"
    write = functools.partial(_dump, job, step, state, batch)
    replay = write_dump(write, folder, "lossattn_jax.replay")
    options, places = job.options.optimizer, batch["index"]
    raise UserError(
        f"the loss or its gradient was not finite in {skipped} updates in a row, the first after step {step} "
        f"on the images {list_first(places.tolist())} of the training set: {replay}, and a lower "
        f"config.optimizer.learning_rate than {options.learning_rate} or a longer "
        f"config.optimizer.warmup_epochs than {options.warmup_epochs} may help; the last checkpoint is from "
        "before"
    )


def _batch(job: Job, step: int) -> Batch:
    """The batch of all processes for the update after `step`, and how large the training set is."""
    size = len(job.train_set)
    places = data.train_indices(job.options.seed, step, size, job.options.train.batch_size)
    return {**job.train_set.read(places), "training_examples": np.array(size)}


def _dump(job: Job, step: int, state: TrainState, batch: Batch, folder: pathlib.Path) -> None:
    """Writes the folder of a dump; one of an earlier attempt at the same update goes.

    Raises:
      UserError: it cannot be written.
    """
    step_array: Any = np.array(step, np.int32)
    before = dataclasses.replace(
        state, step=step_array, opt_state=at_step(state.opt_state, step_array)
    )
    first = jax.process_index() == 0
    arrays = {name: np.asarray(array) for name, array in batch.items()}
    try:
        if first and folder.exists():
            shutil.rmtree(folder)
        devices.barrier("room for a dump")
        run_folder.make_workdir(folder)
        run_folder.write_config(job.options, folder)
        if first:
            records.write_arrays(folder / BATCH_NAME, arrays)
    except OSError as error:
        raise UserError(f"the dump {folder} cannot be written: {error.strerror}") from None
    with checkpoint_lib.Checkpoints(folder) as checkpoints:
        checkpoints.save(step, before.items(), None)
    if first:
        made_from = {
            **parts_of(job.options, arrays),
            **part_of(before),
            "data": job.train_set.digest(),
        }
        try:
            records.write(folder / RECORD_NAME, {"step": step}, made_from, indent=1)
        except OSError as error:
            raise UserError(f"the dump {folder} cannot be written: {error.strerror}") from None


def parts_of(options: ImageOptions, batch: Batch) -> dict[str, Any]:
    """What a dump has besides a state, for its record; JSON."""
    return {**provenance.of_config(options, ("",)), "batch": digests.of_arrays(batch)}


def part_of(state: TrainState) -> dict[str, Any]:
    """What a dump has as its state, for its record; JSON."""
    return {"state": provenance.of_variables(state.items())}


def refuse_mixed(dump: pathlib.Path, parts: Mapping[str, Any]) -> None:
    """Stops a replay of parts that were not written together.

    Args:
      dump: its folder.
      parts: `parts_of` or `part_of` what was read there.

    Raises:
      UserError: they are not those of the dump, or that cannot be seen.
    """
    remedy = "the same training writes it anew"
    try:
        record = records.read(dump / RECORD_NAME)
    except FileNotFoundError:
        raise UserError(
            f"the dump {dump} has no {RECORD_NAME}: it was not written to its end, or before dumps carried "
            f"digests; {remedy}"
        ) from None
    except records.DamagedRecord as error:
        raise UserError(f"the dump {dump} is damaged: {error}; {remedy}") from None
    stored = record.made_from or {}
    # Keys of the config that came later than the dump have their defaults.
    here = {
        key: value for key, value in parts.items() if key in stored or not key.startswith("config.")
    }
    before = {key: stored.get(key) for key in here}
    if (reason := records.difference(before, here)) is not None:
        raise UserError(
            f"the dump {dump} is damaged: its parts were not written together ({reason}); {remedy}"
        )


def read_batch(dump: pathlib.Path) -> Batch:
    """The batch of a dump.

    Returns:
      `image`, `label` and `index` as in training, of all processes together, and `training_examples`, a
      scalar: how many images there were to train on.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    path = dump / BATCH_NAME
    try:
        with files.open_regular(path) as file:
            _refuse_packed(file)
            stored = np.load(file, allow_pickle=False)
            return {name: stored[name] for name in ("image", "label", "index", "training_examples")}
    except FileNotFoundError:
        raise UserError(
            f"{dump} is not a dump of a skipped update: it has no {BATCH_NAME}"
        ) from None
    except Exception as error:  # NumPy and zipfile fail in many ways on a damaged file
        raise UserError(f"{path} cannot be read as a batch: {error}") from None


def _refuse_packed(file: BinaryIO) -> None:
    """Refuses a compressed archive: a dump is not.

    Raises:
      ValueError: it is one, or it is damaged.
    """
    headers = npz_headers.read_headers(file).values()
    unpacked = sum(math.prod(shape) * dtype.itemsize for shape, dtype in headers)
    size = os.fstat(file.fileno()).st_size
    if unpacked > size:
        raise ValueError(f"it has {size} bytes and would unpack to {unpacked}")
    file.seek(0)

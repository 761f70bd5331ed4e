"""Non-finite updates of networks for images: reports, dumps and the run's end.

`step.make_train_step` skips and counts them on the devices. Here the host looks at the count, whenever it
fetches metrics anyway or is about to evaluate or save. When it is full, the batch and the state of before
the first of the row go to `WORKDIR/nonfinite/step_S/` (see `train.dumps`), and `lossattn_jax.replay` computes
the update again.

The content of a dump: `step`, updates before it; `examples`, the images of the training set; `config`, the
options by dotted keys; `data_set`, as of `checkpoint.data_set_record`. Its
state has the items of a checkpoint, its batch is that of all processes.
"""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax
import numpy as np

from lossattn_jax import data, devices
from lossattn_jax.checkpoint import data_set_record
from lossattn_jax.config.options import leaves
from lossattn_jax.data.pipeline import Batch
from lossattn_jax.evaluate import metrics
from lossattn_jax.evaluate.nonfinite_values import list_first
from lossattn_jax.train import dumps
from lossattn_jax.train.images.job import Job
from lossattn_jax.train.images.step import Metrics
from lossattn_jax.train.optimizer import at_step
from lossattn_jax.train.skips import Skips
from lossattn_jax.train.state import TrainState


def compute_means(totals: Metrics, step: int, skips: Skips[str]) -> dict[str, float]:
    """Computes the means since the last log line; warns of skips.

    Args:
      totals: on the host, of `step.make_train_step`.
      step: updates done by then, the skipped ones among them.
      skips: of the run.

    Returns:
      By name the means of the updates that were applied, NaN where none was, and as `skipped` how many were
      not.
    """
    num_skipped, updates = int(totals["skipped"].total), int(totals["skipped"].count)
    means = metrics.compute(totals)
    first = step - updates + int(means.pop("first_skipped"))
    if num_skipped == updates:
        means = dict.fromkeys(means, math.nan)
    if num_skipped:
        skips.warn(num_skipped, f"of the last {updates} updates", f"after step {first}")
    return {**means, "skipped": num_skipped}


def stop_if_stuck(job: Job, device_state: TrainState, skips: Skips[str]) -> None:
    """Ends a run after too many skipped updates, with a dump.

    `config.train.max_skipped` in a row, or more.

    All processes have to come here with the same state; the first one writes.

    Args:
      job: the run.
      device_state: its state on the devices.
      skips: of the run.

    Raises:
      UserError: the run has to end.
    """
    # A copy of this process alone, so that a run in which all is well waits for nothing but this scalar.
    in_a_row = int(devices.unreplicate(device_state.skipped))
    skips.set_row(0, in_a_row, "")
    if skips.stuck_model() is None:
        return
    state = devices.unreplicate(device_state)
    step = int(state.step) - in_a_row
    options = job.options
    places = data.train_indices(
        options.seed,
        step,
        len(job.train_set),
        options.train.batch_size,
        drop_last=options.data.drop_last,
    )
    images = f"on the images {list_first(places.tolist())} of the training set"
    skips.set_row(0, in_a_row, f"after step {step} {images}")
    raise skips.error(
        0,
        f"a lower config.optimizer.learning_rate than {options.optimizer.learning_rate} or a longer "
        f"config.optimizer.warmup_epochs than {options.optimizer.warmup_epochs} may help; the last "
        "checkpoint is from before",
        functools.partial(_write_dump, job, step, state, job.train_set.read(places, stored=True)),
        job.workdir / dumps.FOLDER_NAME / f"step_{step}",
    )


def _write_dump(job: Job, step: int, state: TrainState, batch: Batch, folder: pathlib.Path) -> None:
    """Writes the folder of a dump, in the first process.

    Raises:
      UserError: it cannot be written.
    """
    if jax.process_index() != 0:
        return
    step_array: Any = np.array(step, np.int32)
    before = dataclasses.replace(
        state, step=step_array, opt_state=at_step(state.opt_state, step_array)
    )
    # That of the pictures, also where the job's is of a frozen backbone's maps.
    spec = data_set_record.read(job.workdir) or job.spec
    content = {
        "step": step,
        "examples": len(job.train_set),
        "config": dict(leaves(job.options)),
        "data_set": data_set_record.to_json(spec),
    }
    trees = {"state": before.items(), "batch": batch}
    dumps.write(folder, "images", content, trees, job.train_set.digest())

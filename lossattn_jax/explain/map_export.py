"""Export of a split's outputs and maps as a Zarr store.

The numbers come from the forward pass that evaluation runs. The same command goes on where it was stopped.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np

from lossattn_jax import data, devices
from lossattn_jax.attention import losses
from lossattn_jax.checkpoint import provenance, run_folder, runs
from lossattn_jax.commands.progress import LogClock, Progress
from lossattn_jax.errors import Incomplete, UserError
from lossattn_jax.evaluate import metrics, nonfinite_values
from lossattn_jax.evaluate.evaluation import EvalStep, forward_batches, make_eval_step
from lossattn_jax.explain import receptive_field
from lossattn_jax.explain.map_store import FORMAT, MapStore, make_group
from lossattn_jax.models import Outputs

log = logging.getLogger(__name__)

_LOG_SECONDS = 10.0
_NO_PREDICTION = -1  # of an image with non-finite outputs


def export(
    run: runs.Run,
    eval_step: EvalStep,
    dataset: data.Dataset,
    output: str | pathlib.Path,
    workdir: str | pathlib.Path,
    num: int | None = None,
    *,
    batch_size: int | None = None,
) -> pathlib.Path:
    """Writes outputs of a split's first `num` images as Zarr.

    A Zarr v3 group.

    It holds `ARRAYS`: `label` is uint8 `[N, K]` where images have several, `prediction` the highest logit
    (-1 for an image with non-finite outputs, whose probabilities and maps are NaN),
    `pixels` the attention over pixels (`receptive_field.pixel_map`), `receptive_field` that of the split's
    first images, and `done` says that the rest of a row is there. What they were made from is in the
    group's attributes.

    Args:
      run: a checkpoint.
      eval_step: from `make_eval_step`.
      dataset: the split.
      output: folder of the store. One that is there has to be of the same export: network, checkpoint and
        images by content, and sizes. It is gone on with from the first batch that is not done, or, with a
        warning, not as it was written.
      workdir: folder of the run, for the attributes.
      num: number of images; None: all. A smaller split gives fewer.
      batch_size: images per batch over all devices, rounded up to a multiple of their number; None: as in
        the run's config, with which the numbers are those of evaluation to the bit.

    Returns:
      The folder.

    Raises:
      UserError: the folder is something else, of other inputs, or damaged beyond its chunks, is being written
        by another command or cannot be written; or the images differ between processes.
      Incomplete: the store is complete, and the network has non-finite outputs for some of the images.
    """
    folder = pathlib.Path(output)
    try:
        pathlib.Path(os.path.abspath(folder)).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the store {folder} cannot be written: {error.strerror}") from None
    size = devices.round_up(batch_size or run.options.eval.batch_size)
    num = min(num or len(dataset), len(dataset))
    with run_folder.lock_workdir(folder, beside=True):  # in it Zarr has files alone
        store = _open_store(run, dataset, folder, workdir, num, size)
        _fill(run, eval_step, dataset, store, num, size)
    return folder


def _fill(
    run: runs.Run,
    eval_step: EvalStep,
    dataset: data.Dataset,
    store: MapStore,
    num: int,
    size: int,
) -> None:
    """Writes what a store lacks of `num` images, in batches of `size`.

    Raises:
      UserError: it cannot be written.
      Incomplete: the network has non-finite outputs for some of the images.
    """
    total = data.eval_steps(num, size)
    first_undone = store.first_undone()
    mine = np.array([total if first_undone is None else first_undone // size])
    # A process that sees an older state of the folder would run other batches than the rest.
    first = int(devices.concatenate_processes(mine).min())
    if first == total:
        log.info("%s was complete: %d images", store.folder, num)
        _refuse_nonfinite(store, num)
        return
    if first:
        log.info("going on after %d of %d images", first * size, num)
    fields = _receptive_fields(run, dataset, store, anew=first == 0)
    kind = run.loss
    began, clock = time.monotonic(), LogClock(_LOG_SECONDS)
    progress = Progress(first * size, num)
    # A generator. A failure is to leave no thread that reads ahead, and to lose little of what was done.
    variables = devices.replicate(run.variables)
    forward: Any = forward_batches(eval_step, variables, dataset, size, first)
    with contextlib.closing(forward), contextlib.closing(store):
        steps = enumerate(itertools.islice(forward, total - first), first)
        end: list[Any] = [None]
        # In pairs, so that the devices are busy with the next batch while this one is written.
        for (place, (batch, _, outputs)), _ in itertools.pairwise(itertools.chain(steps, end)):
            start = place * size + jax.process_index() * store.rows
            store.write(start, _rows(batch, outputs, fields, kind), fields)
            if clock.is_due():
                num_done = min((place + 1) * size, num)
                rate, remaining = progress.measure(num_done), progress.time_left(num_done)
                log.info("%d of %d images  %.0f images/s  %s left", num_done, num, rate, remaining)
    devices.barrier("maps written")
    rate = (num - first * size) / (time.monotonic() - began)
    log.info("%.0f images/s, compilation included", rate)
    num_bytes = sum(path.stat().st_size for path in store.folder.rglob("*") if path.is_file())
    log.info("written: %s, %d images, %.1f MB", store.folder, num, num_bytes / 1e6)
    _refuse_nonfinite(store, num)


def _rows(
    batch: dict[str, np.ndarray], outputs: Outputs, fields: np.ndarray, kind: str
) -> dict[str, np.ndarray]:
    """Returns the store's rows of a batch, by array, with padding."""
    host_outputs = devices.gather(outputs)
    local = host_outputs._asdict()
    finite = np.asarray(metrics.outputs_finite(host_outputs))
    # For NaN pooling gives even weights and argmax class 0, which are no outputs of the network.
    attention = np.where(finite[:, None], local["attention"], np.nan)
    predictions = np.where(finite, local["logits"].argmax(axis=-1), _NO_PREDICTION)
    probabilities = np.asarray(losses.probabilities(kind, local["logits"]))
    return {
        **local,
        "index": batch["index"],
        "label": batch["label"],
        "prediction": predictions.astype(np.int32),
        "probabilities": np.where(finite[:, None], probabilities, np.nan),
        "pixels": receptive_field.pixel_map(attention, fields).astype(np.float32),
        "attention": attention,
    }


def _refuse_nonfinite(store: MapStore, num: int) -> None:
    """Counts the images with non-finite outputs in a store that is complete.

    Raises:
      Incomplete: there are some.
    """
    count = int((store.read("prediction") == _NO_PREDICTION).sum())
    if count:
        raise Incomplete(
            f"{nonfinite_values.of_outputs(count, num, 'images')}: in {store.folder} their prediction is "
            f"{_NO_PREDICTION}, and their probabilities, attention and pixels are NaN"
        )


def _receptive_fields(
    run: runs.Run, dataset: data.Dataset, store: MapStore, anew: bool
) -> np.ndarray:
    """Reads or measures receptive fields, `[P, H, W]` float32."""
    if anew and jax.process_index() == 0:
        log.info("measuring what each patch sees of an image")
        images = receptive_field.read_probes(run.model, dataset)
        fields = receptive_field.on_images(run.model, run.variables, images, run.spec)
        store.wait(store.arrays["receptive_field"].write(fields))
    devices.barrier("receptive fields written")
    return store.read("receptive_field")


def _open_store(
    run: runs.Run,
    dataset: data.Dataset,
    folder: pathlib.Path,
    workdir: str | pathlib.Path,
    num: int,
    batch_size: int,
) -> MapStore:
    """Opens an export's store, which the first process may make."""
    grid = run.model.patch_grid(run.spec.image_shape)
    rows = batch_size // jax.process_count()
    height, width, _ = run.spec.image_shape
    sizes = {"image": num, "patch": grid.patches, "class": run.spec.num_classes}
    sizes |= {"y": height, "x": width}
    outputs = provenance.of_outputs(run, dataset)
    if jax.process_index() == 0:
        made_from = {
            "format": FORMAT,
            **outputs,
            "num_images": num,
            "batch_size": batch_size,
            "chunk_rows": rows,
            "patch_grid": {**dataclasses.asdict(grid), "map_size": list(grid.map_size)},
            "probes": receptive_field.count_probes(grid.patches),
        }
        make_group(folder, made_from, {"workdir": str(workdir)})
        MapStore(folder, run.spec, sizes, rows)
    devices.barrier("store made")
    return MapStore(folder, run.spec, sizes, rows)


def export_run(
    workdir: str,
    output: str,
    split: str = "test",
    num: int | None = None,
    checkpoint: str = "latest",
    batch_size: int | None = None,
    *,
    data_dir: str | None = None,
    trust_code: bool = False,
) -> pathlib.Path:
    """Writes the maps of a run's checkpoint; see `export`.

    Images are read as they are wanted, whatever the run's config says: memory does not grow with them.

    Args:
      workdir: folder of the run.
      output, num, batch_size: as of `export`.
      split: "train", "test", or "held_out" of `config.data.held_out`.
      checkpoint: "latest", "best" or a step.
      data_dir: folder of the data sets; None: as in the run's config.
      trust_code: whether code that the run's config names by reference is imported.

    Returns:
      The folder of the store.

    Raises:
      UserError: there is no such run, checkpoint or data set, or as of `export`.
    """
    run = runs.load(workdir, checkpoint, trust_code=trust_code)
    dataset = runs.open_dataset(run, split, data_dir, mode="stream")
    log.info("devices: %s", devices.describe())
    eval_step = make_eval_step(run.model, run.spec, run.loss)
    return export(run, eval_step, dataset, output, workdir, num, batch_size=batch_size)

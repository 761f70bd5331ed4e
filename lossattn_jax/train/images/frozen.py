"""Training behind a frozen backbone, on maps that are computed once.

The maps of both splits are in the workdir, in `maps/`, with digests of the backbone and of the images: a
resumed run reads them, and one whose maps are gone or of something else computes them again.
"""

import contextlib
import dataclasses
import logging
import math
import pathlib
import shutil
from typing import Any

import jax
import numpy as np

from lossattn_jax import data, devices, files, models
from lossattn_jax.checkpoint import provenance, run_folder
from lossattn_jax.commands.progress import LogClock, Progress
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate.backbone_maps import compute_maps
from lossattn_jax.files import digests, npz, records
from lossattn_jax.models.network import backbone_variables, without_backbone
from lossattn_jax.train.images import memory
from lossattn_jax.train.images.job import Job
from lossattn_jax.train.state import TrainState

log = logging.getLogger(__name__)

FOLDER_NAME = "maps"
_MAPS, _EXAMPLES = ".npy", ".npz"  # ends of the names of a split's files
_LOG_SECONDS = 10.0


def behind_backbone(
    model: models.ImageNetwork, spec: data.DatasetSpec
) -> tuple[models.ImageNetwork, data.DatasetSpec]:
    """Returns what is trained behind a frozen backbone: a network of maps, and their data set.

    Args:
      model: the whole network.
      spec: of its images.
    """
    shape = model.map_shape(spec.image_shape)
    of_maps = dataclasses.replace(spec, image_shape=shape, canvas=0, is_network_input=True)
    return without_backbone(model), of_maps


def use_maps(job: Job, state: TrainState) -> Job:
    """Replaces a job's images and network by maps and what is behind them.

    All processes have to come here.

    Args:
      job: with a frozen backbone.
      state: with the backbone's parameters, on the host.

    Raises:
      UserError: the workdir cannot be written, or the disk is too small.
    """
    model, spec = behind_backbone(job.model, job.spec)
    network = {
        "backbone": provenance.of_variables(backbone_variables(state.variables)),
        "network": provenance.of_network(job.model.make_backbone()),
        "dtype": job.options.model.dtype,
        "mean": list(job.spec.mean),
        "std": list(job.spec.std),
    }
    train_set, test_set = (
        _open_maps(job, spec, dataset, state.variables, network)
        for dataset in (job.train_set, job.test_set)
    )
    return dataclasses.replace(job, model=model, spec=spec, train_set=train_set, test_set=test_set)


def _open_maps(
    job: Job,
    spec: data.DatasetSpec,
    dataset: data.Dataset,
    variables: Any,
    network: dict[str, Any],
) -> data.ArrayDataset:
    """Opens the maps of a split, computed where they are not there."""
    folder = job.workdir / FOLDER_NAME
    record_path = folder / f"{dataset.split}.json"
    paths = {name: folder / f"{dataset.split}{name}" for name in (_MAPS, _EXAMPLES)}
    made_from = {**network, "images": dataset.digest()}
    if devices.anywhere(not _is_current(record_path, paths, made_from)):
        with run_folder.writing(job.workdir):
            _compute(job, dataset, variables, paths, (len(dataset), *spec.image_shape))
            if jax.process_index() == 0:
                content = {name: digests.of_file(path) for name, path in paths.items()}
                records.write(record_path, content, made_from)
        devices.barrier(f"maps of {dataset.split}")
    with files.open_regular(paths[_EXAMPLES]) as file:
        examples = npz.load_arrays(file, npz.read_headers(file))
    return data.ArrayDataset(
        spec,
        dataset.split,
        np.load(paths[_MAPS], mmap_mode="r", allow_pickle=False),
        examples["label"],
        examples.get("box"),
        examples.get("box_label"),
    )


def _is_current(
    record_path: pathlib.Path, paths: dict[str, pathlib.Path], made_from: dict[str, Any]
) -> bool:
    """Whether maps are those of this backbone and these images, and whole."""
    try:
        record = records.read(record_path)
    except FileNotFoundError:
        return False
    except records.DamagedRecord as error:
        log.warning("warning: %s; the maps are computed again", error)
        return False
    if (reason := records.difference(record.made_from, made_from)) is not None:
        log.info("%s was made from other inputs (%s); computed again", record_path, reason)
        return False
    if record.content != {name: digests.of_file(path) for name, path in paths.items()}:
        log.warning("warning: the maps beside %s are not as written; computed again", record_path)
        return False
    return True


def _compute(
    job: Job,
    dataset: data.Dataset,
    variables: Any,
    paths: dict[str, pathlib.Path],
    shape: tuple[int, ...],
) -> None:
    """Computes a split's maps; the first process writes them.

    Raises:
      UserError: the disk is too small.
      OSError: it cannot be written to.
    """
    first = jax.process_index() == 0
    log.info(
        "computing the maps of %d images of %s, %s", shape[0], dataset.split, _name_size(shape)
    )
    batches = compute_maps(job.model, variables, dataset, job.options.eval.batch_size)
    parts: dict[str, list[np.ndarray]] = {}
    progress, clock = Progress(0, shape[0]), LogClock(_LOG_SECONDS)
    done = 0
    with contextlib.ExitStack() as stack:
        file = None
        if first:
            paths[_MAPS].parent.mkdir(exist_ok=True)
            _refuse_small_disk(paths[_MAPS].parent, shape)
            file = stack.enter_context(files.replacing(paths[_MAPS]))
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(file, header)
        for batch in batches:
            maps = batch.pop("map")
            if file is not None:
                file.write(np.ascontiguousarray(maps, "<f4").data)
            for name, array in batch.items():
                parts.setdefault(name, []).append(array)
            done += len(maps)
            if done == shape[0] or clock.is_due():
                rate = progress.measure(done)
                log.info(
                    "%d of %d maps, %.0f images/s, %s left",
                    done,
                    shape[0],
                    rate,
                    progress.time_left(done),
                )
    if first:
        arrays = {name: np.concatenate(each) for name, each in parts.items() if name != "index"}
        records.write_arrays(paths[_EXAMPLES], arrays)


def _refuse_small_disk(folder: pathlib.Path, shape: tuple[int, ...]) -> None:
    free = shutil.disk_usage(folder).free
    if _count_bytes(shape) > free:
        raise UserError(
            f"the maps of {shape[0]} images take {_name_size(shape)}, but {folder} has {memory.size(free)} "
            "left: use a disk with more, smaller images or another backbone, or train without "
            "config.train.freeze"
        )


def _count_bytes(shape: tuple[int, ...]) -> int:
    return math.prod(shape) * np.dtype(np.float32).itemsize


def _name_size(shape: tuple[int, ...]) -> str:
    return memory.size(_count_bytes(shape))

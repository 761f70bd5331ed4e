"""A folder of bags whose instances are the positions of a backbone's map.

    OUT/features/SPLIT_NUMBER.h5    features [N, C], coords [N, 2] in pixels of the network's image
    OUT/labels.csv                  bag,label,split
    OUT/tokens.json                 what the bags were made from

`--bags=OUT/features --labels=OUT/labels.csv` is what the commands on bags take.
"""

import csv
import io
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lossattn_jax import data, devices, files
from lossattn_jax.checkpoint import provenance, run_folder, runs
from lossattn_jax.commands.progress import LogClock, Progress
from lossattn_jax.data.bags import label_sets
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate.backbone_maps import compute_maps
from lossattn_jax.files import records
from lossattn_jax.models.geometry import sliding_grid

log = logging.getLogger(__name__)

FEATURES_NAME, TABLE_NAME, RECORD_NAME = "features", "labels.csv", "tokens.json"
SPLITS = ("train", "test")
DTYPES = ("float32", "float16")
_LOG_SECONDS = 10.0


def export_tokens(
    workdir: str | pathlib.Path,
    out: str | pathlib.Path,
    splits: Sequence[str] = SPLITS,
    *,
    dtype: str = "float32",
    checkpoint: str = "latest",
    data_dir: str | None = None,
    trust_code: bool = False,
) -> pathlib.Path:
    """Writes the tokens of a run's backbone, a bag for each image.

    The backbone runs as in testing. The same command goes on where it was stopped.

    Args:
      workdir: folder of the run.
      out: folder of the bags; made where absent.
      splits: of the run's data set.
      dtype: of `DTYPES`, of the numbers in the files.
      checkpoint: "latest", "best" or a step.
      data_dir: folder of the data sets; None: as in the run's config.
      trust_code: whether code that the run's config names by reference is imported.

    Returns:
      The table of labels.

    Raises:
      UserError: there is no such run, checkpoint or data set, values are too large for `dtype`, or the folder
        holds other bags, is being written by another command or cannot be written.
    """
    run = runs.load(workdir, checkpoint, trust_code=trust_code)
    datasets = [runs.open_dataset(run, split, data_dir) for split in dict.fromkeys(splits)]
    folder = pathlib.Path(out)
    try:
        with run_folder.make_and_lock(folder):
            _write(run, datasets, folder, dtype)
    except OSError as error:
        raise UserError(f"the bags {folder} cannot be written: {error.strerror or error}") from None
    log.info("written: %s of %s, for --bags and --labels", TABLE_NAME, folder)
    return folder / TABLE_NAME


def _write(
    run: runs.Run, datasets: Sequence[data.Dataset], folder: pathlib.Path, dtype: str
) -> None:
    digests = provenance.of_data(*datasets)
    images = {dataset.split: digest for dataset, digest in zip(datasets, digests, strict=True)}
    made_from = {**provenance.of_run(run), "dtype": dtype, "images": images}
    record_path = folder / RECORD_NAME
    before = records.find(record_path, made_from)
    if before is not None and before.content["complete"]:
        log.info("%s was complete", folder)
        return
    first = jax.process_index() == 0
    resumes = before is not None
    if first:
        (folder / FEATURES_NAME).mkdir(exist_ok=True)
        records.write(record_path, {"complete": False}, made_from)
    rows: list[tuple[str, str, str]] = []
    total, done = sum(map(len, datasets)), 0
    progress, clock = Progress(0, total), LogClock(_LOG_SECONDS)
    for dataset in datasets:
        log.info("tokens of %d images of %s", len(dataset), dataset.split)
        for bags in _make_bags(run, dataset, dtype):
            for name, label, content in bags:
                path = folder / FEATURES_NAME / f"{name}.h5"
                if first and not (resumes and path.exists()):  # a file is there as a whole or not
                    files.write(path, _hdf5(content))
                rows.append((name, label, dataset.split))
            done += len(bags)
            if clock.is_due():
                rate, remaining = progress.measure(done), progress.time_left(done)
                log.info("%d of %d images  %.0f images/s  %s left", done, total, rate, remaining)
    if first:
        files.write(folder / TABLE_NAME, _csv([("bag", "label", "split"), *rows]))
        records.write(record_path, {"complete": True, "bags": len(rows)}, made_from)
    devices.barrier("tokens written")


def _make_bags(
    run: runs.Run, dataset: data.Dataset, dtype: str
) -> Iterator[list[tuple[str, str, Mapping[str, Any]]]]:
    """Yields the bags of a batch of images: name, label and content of the file."""
    height, width, _ = run.model.map_shape(run.spec.image_shape)
    high, wide, _ = run.spec.image_shape
    corners = sliding_grid((height, width), 1, 1).boxes()[:, [1, 0]].astype(np.float64)
    coords = corners * (wide, high)
    digits = len(str(len(dataset) - 1))
    batches = compute_maps(run.model, run.variables, dataset, run.options.eval.batch_size)
    for batch in batches:
        features = batch["map"].reshape(len(batch["map"]), height * width, -1)
        _refuse_overflow(features, dtype)
        yield [
            (
                f"{dataset.split}_{place:0{digits}d}",
                str(label_sets.name(label, run.spec.class_names)),
                {
                    "features": tokens.astype(dtype),
                    "coords": coords,
                    "patch_size": wide / width,
                },
            )
            for place, label, tokens in zip(
                batch["index"].tolist(), batch["label"], features, strict=True
            )
        ]


def _refuse_overflow(features: np.ndarray, dtype: str) -> None:
    largest = float(np.abs(features).max())
    if not largest <= float(np.finfo(dtype).max):  # also where it is not a number
        raise UserError(
            f"the backbone's outputs reach {largest:g}, which {dtype} does not hold"
            + ("; --dtype=float32 does" if np.isfinite(largest) else "; the run has diverged")
        )


def _hdf5(content: Mapping[str, Any]) -> bytes:
    """Makes a feature file, with the names that TRIDENT has."""
    import h5py  # when a file is written, not with the command

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["features"], file["coords"] = content["features"], content["coords"]
        file["coords"].attrs["patch_size_level0"] = content["patch_size"]
    return buffer.getvalue()


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows(rows)
    return table.getvalue().encode(errors="backslashreplace")

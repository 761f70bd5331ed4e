"""Trainings on image files and on the TFDS data set of the same pictures, to the bit.

    python -m benchmarks.files_against_tfds --files_dir=cifar10_files --data_dir=data --out=cifar10.json

`--files_dir` is a folder with the pictures of CIFAR-10 in `train/CLASS/` and `test/CLASS/`, `--data_dir` has
TFDS' `cifar10` made of them. Each record of TFDS is looked for among the files by its class and its pixels. A
table in the folder then lists the files in the order of TFDS, since the order of the examples decides what an
update sees. Of both all pixels and labels are compared, the losses of the first updates of
`configs/cifar10_small.py`, the parameters after them, and what the evaluation of all test images says.
"""

import csv
import io
import logging
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from benchmarks import flag_values, machine, shipped_configs
from lossattn_jax import data, files
from lossattn_jax.checkpoint import runs
from lossattn_jax.commands import command
from lossattn_jax.config.options import DataOptions
from lossattn_jax.data import file_source
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate.evaluation import evaluate_run
from lossattn_jax.train import preemption
from lossattn_jax.train.images import loop, reporting

log = logging.getLogger("lossattn_jax.benchmarks")

PACKAGES = ("jax", "jaxlib", "numpy", "pillow", "tensorflow-datasets")
TABLE_NAME = "tfds_order.csv"
CONFIG = "cifar10_small.py"
_SPLITS = ("train", "test")
_SIDE = 32


class _EndAfter(preemption.Stop):
    """Asks a training to end after some updates."""

    def __init__(self, updates: int):
        super().__init__()
        self._left = updates

    def check(self) -> None:
        """Ends the training where it was asked to; called before each update."""
        if self._left == 0:
            self.ask()
        self._left -= 1
        super().check()


def data_options(files_dir: str, data_dir: str) -> dict[str, DataOptions]:
    """Options of both data sets, "files" and "tfds", with statistics computed alike."""
    alike: dict[str, Any] = {"normalisation": "training", "mode": "memory"}
    return {
        "tfds": DataOptions(name="cifar10", dir=data_dir, **alike),
        "files": DataOptions(
            name="folder", dir=files_dir, table=TABLE_NAME, image_size=_SIDE, **alike
        ),
    }


def _load(options: DataOptions, spec: data.DatasetSpec, split: str) -> data.ArrayDataset:
    dataset = runs.open_split(options, spec, split)
    assert isinstance(dataset, data.ArrayDataset)  # as `data_options` asks for
    return dataset


def write_table(files_dir: str, data_dir: str) -> dict[str, int]:
    """Writes the table of the files in the order of TFDS.

    Returns:
      Of each split the number of images whose pixels and class another image has too.

    Raises:
      UserError: a record of TFDS has no file with its class and its pixels, or files are left over.
    """
    of_tfds = data_options(files_dir, data_dir)["tfds"]
    of_files = DataOptions(name="folder", dir=files_dir, image_size=_SIDE, mode="memory")
    rows: list[tuple[str, str, str]] = []
    doubles = {}
    for split in _SPLITS:
        spec = runs.spec_of(of_files)
        plain = _load(of_files, spec, split)
        names = file_source.open_files(spec, split, files_dir).files.names
        paths: dict[tuple[str, bytes], list[str]] = {}
        for name, image, label in zip(names, plain.images, plain.labels, strict=True):
            paths.setdefault((spec.class_names[label], image.tobytes()), []).append(name)
        doubles[split] = sum(len(same) for same in paths.values() if len(same) > 1)
        tfds_spec = runs.spec_of(of_tfds)
        prepared = _load(of_tfds, tfds_spec, split)
        for place, (image, label) in enumerate(zip(prepared.images, prepared.labels, strict=True)):
            name = tfds_spec.class_names[label]
            if not (same := paths.get((name, image.tobytes()))):
                raise UserError(
                    f"image {place} of {split} in {data_dir}, of the class {name}, has no file left with "
                    f"its pixels in {files_dir}: both must be made of the same pictures"
                )
            rows.append((same.pop(0), name, split))
        if over := sum(map(len, paths.values())):
            raise UserError(f"{over} files of {split} in {files_dir} are not in {data_dir}")
    table = io.StringIO(newline="")
    csv.writer(table, lineterminator="\n").writerows([("path", "label", "split"), *rows])
    files.write(pathlib.Path(files_dir) / TABLE_NAME, table.getvalue().encode())
    return doubles


def compare_images(options: dict[str, DataOptions]) -> dict[str, Any]:
    """Counts the images, labels and statistics that differ."""
    specs = {name: runs.spec_of(one) for name, one in options.items()}
    result: dict[str, Any] = {
        "class_names_equal": specs["tfds"].class_names == specs["files"].class_names,
        "mean": {name: list(spec.mean) for name, spec in specs.items()},
        "std": {name: list(spec.std) for name, spec in specs.items()},
    }
    for split in _SPLITS:
        one, other = (_load(options[name], specs[name], split) for name in options)
        result[split] = {
            "images": len(one),
            "images_that_differ": int((one.images != other.images).any(axis=(1, 2, 3)).sum()),
            "labels_that_differ": int((one.labels != other.labels).sum()),
        }
    return result


def train(
    options: DataOptions, updates: int, workdir: pathlib.Path
) -> tuple[list[float], dict[str, float], Any]:
    """Makes the first updates of the config, and evaluates.

    Returns:
      The updates' losses, the test metrics after the last one, and the variables.
    """
    config: ConfigDict = shipped_configs.load(CONFIG).get_config()
    keys = ("name", "dir", "table", "image_size", "mode", "normalisation")
    config.data.update({key: getattr(options, key) for key in keys})
    config.log.every_steps = 1
    loop.train(config, workdir, _EndAfter(updates))
    lines = reporting.read_metrics(workdir)
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    measured = evaluate_run(str(workdir))
    names = [name for name, value in measured.items() if isinstance(value, float)]
    return losses, {name: measured[name] for name in names}, runs.load(workdir).variables


def run(out: str, files_dir: str, data_dir: str, updates: int = 20) -> dict[str, Any]:
    """Compares both data sets.

    Args:
      out: JSON file for the results.
      files_dir: folder of the files.
      data_dir: folder with TFDS' data set.
      updates: to make.

    Returns:
      What is in the file.

    Raises:
      UserError: the data sets are not of the same pictures, or a file cannot be read or written.
    """
    path = machine.prepare(out)
    record = machine.header("benchmarks.files_against_tfds", PACKAGES)
    record["images_with_a_double"] = write_table(files_dir, data_dir)
    options = data_options(files_dir, data_dir)
    record |= compare_images(options)
    with tempfile.TemporaryDirectory() as root:
        results = {
            name: train(one, updates, pathlib.Path(root, name)) for name, one in options.items()
        }
    losses, measured, variables = zip(*results.values(), strict=True)
    equal = jax.tree.map(np.array_equal, *variables)
    record |= {
        "config": CONFIG,
        "losses": dict(zip(results, losses, strict=True)),
        "losses_equal": losses[0] == losses[1] and len(losses[0]) == updates,
        "variables_equal": all(jax.tree.leaves(equal)),
        "evaluation": dict(zip(results, measured, strict=True)),
        "evaluation_equal": measured[0] == measured[1],
    }
    machine.write(record, path)
    print(
        "losses, variables, evaluation equal:",
        *(record[f"{name}_equal"] for name in ("losses", "variables", "evaluation")),
    )
    return record


def main() -> None:
    """The command; see the flags."""
    run(**flag_values.arguments(run))


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "file for the results (JSON)", required=True)
    flags.DEFINE_string("files_dir", None, "folder of the image files", required=True)
    flags.DEFINE_string("data_dir", None, "folder with TFDS' data set", required=True)
    flags.DEFINE_integer("updates", 20, "updates to make", lower_bound=1)
    command.run(main)

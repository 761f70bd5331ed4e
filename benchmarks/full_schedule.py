"""The whole schedule of a row of the TIP paper's table, in resumable slices.

    python -m benchmarks.full_schedule --row=resnet18_loss_attention --data_dir=data --minutes=9 \\
        --workdir=runs/resnet18_loss_attention --out=results/full_schedule/resnet18_loss_attention.json

For accelerators that can be had for some minutes at a time. The config is that of `configs/tip.py`, in
bfloat16 by default. Each slice measures the rate of its updates and, before them, the fastest matrix product
of the device. The same command again trains the next slice; after the last one it says the test accuracy.
"""

import json
import logging
import pathlib
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from benchmarks import (
    flag_values,
    machine,
    network_flops,
    product_ceiling,
    shipped_configs,
    short_schedule,
)
from lossattn_jax import data, devices
from lossattn_jax.commands import command
from lossattn_jax.config import images as config_lib
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import metrics
from lossattn_jax.models import table
from lossattn_jax.train import preemption
from lossattn_jax.train.images import loop, reporting

# Below the package's logger, which is the one that commands show.
log = logging.getLogger("lossattn_jax.benchmarks")

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
TARGET = 0.5  # of the fastest matrix product

Train = Callable[[ConfigDict, pathlib.Path, preemption.Stop], Mapping[str, float]]


def row_config(
    row: str, dataset: str, data_dir: str, *, dtype: str = "bfloat16", epochs: int | None = None
) -> ConfigDict:
    """The paper's training of a row, tested every tenth of its epochs.

    Args:
      row: of `models.table.NAMES`.
      dataset: to train on.
      data_dir: folder of the data sets.
      dtype: compute dtype.
      epochs: of the schedule; None: the paper's.

    Raises:
      UserError: an unknown row, or an impossible number of epochs.
    """
    config: ConfigDict = shipped_configs.load("tip.py").get_config(f"{row},{dataset}")
    config.data.dir = data_dir
    config.model.dtype = dtype
    config.train.epochs = epochs or config.train.epochs
    config.eval.every_epochs = max(1, config.train.epochs // 10)
    config.log.pictures = 0
    config_lib.check(config)
    return config


def run(
    config: ConfigDict,
    workdir: str,
    out: str,
    *,
    minutes: float | None = None,
    train: Train = loop.train,
) -> dict[str, Any]:
    """Trains one slice and adds it to the record.

    Args:
      config: of the run.
      workdir: its folder.
      out: JSON file of all slices.
      minutes: after which the training is stopped, with its state saved; None: at its end.
      train: what trains until it is asked to stop.

    Returns:
      The record: `slices`, each as of `describe_slice` with `seconds` of the whole slice and `ceiling`; and
      `test`, the metrics after the last step, once there.

    Raises:
      UserError: as of `train.loop.train`, or the record is of another run or cannot be written.
    """
    if minutes is not None and not minutes > 0:
        raise UserError(f"--minutes is {minutes}, but must be above 0")
    path = machine.prepare(out)
    record = _open_record(path, config, workdir)
    if "test" in record:
        print(text(record), end="")
        return record
    flop = network_flops.per_image(config)["training"]
    ceiling = product_ceiling.ceiling(config.model.dtype)
    log.info("%s; %.3g TFLOP/s at most", devices.describe(), ceiling["tflops_per_second"])
    first_step = record["slices"][-1]["last_step"] if record["slices"] else 0
    header = machine.header("benchmarks.full_schedule", PACKAGES)
    began = time.monotonic()
    results = _train_for(config, pathlib.Path(workdir), minutes, train)
    lines = (pathlib.Path(workdir) / reporting.METRICS_NAME).read_text().splitlines()
    piece = describe_slice(
        map(json.loads, lines), first_step, flop, ceiling["tflops_per_second"] * jax.device_count()
    )
    record["slices"].append(
        {
            **header,
            "device": devices.describe(),
            "seconds": time.monotonic() - began,
            "ceiling": ceiling,
            **piece,
        }
    )
    if results:
        record["test"] = metrics.finite(results)
    machine.write(record, path)
    print(text(record), end="")
    return record


def describe_slice(
    lines: Iterable[Mapping[str, Any]], first_step: int, flop: float, ceiling: float
) -> dict[str, Any]:
    """What the lines of a run's log say of the steps after one.

    Args:
      lines: of `metrics.jsonl`.
      first_step: the last step of the slice before.
      flop: operations of an update for one image.
      ceiling: TFLOP/s of all devices.

    Returns:
      `first_step`, `last_step`, `images_per_second` (median of the lines; the first one holds the
      compilation), `tflops_per_second` and `ceiling_share`; the last three None of a slice without lines.
    """
    train = [line for line in lines if line["kind"] == "train" and line["step"] > first_step]
    rates = [line["images_per_second"] for line in train[1:] or train]
    rate = statistics.median(rates) if rates else None
    tflops = None if rate is None else rate * flop / 1e12
    return {
        "first_step": first_step,
        "last_step": train[-1]["step"] if train else first_step,
        "images_per_second": rate,
        "tflops_per_second": tflops,
        "ceiling_share": None if tflops is None else tflops / ceiling,
    }


def text(record: Mapping[str, Any]) -> str:
    """The slices, and the end, as text."""
    lines = []
    for number, piece in enumerate(record["slices"], start=1):
        line = f"slice {number}: steps {piece['first_step']} to {piece['last_step']}"
        if piece["ceiling_share"] is not None:
            line += (
                f", {piece['images_per_second']:,.0f} images/s, {piece['tflops_per_second']:.3g} TFLOP/s, "
                f"{piece['ceiling_share']:.0%} of the fastest product (target {TARGET:.0%})"
            )
        lines.append(line)
    end = record.get("test")
    lines.append(
        "not at its end: the same command goes on"
        if end is None
        else f"finished: test accuracy {end['accuracy']:.4f}"
    )
    return "\n".join(lines) + "\n"


def _train_for(
    config: ConfigDict, workdir: pathlib.Path, minutes: float | None, train: Train
) -> Mapping[str, float]:
    stop = preemption.Stop()
    if minutes is None:
        return train(config, workdir, stop)
    timer = threading.Timer(60 * minutes, stop.ask)
    timer.daemon = True
    timer.start()
    try:
        return train(config, workdir, stop)
    finally:
        timer.cancel()


def _open_record(path: pathlib.Path, config: ConfigDict, workdir: str) -> dict[str, Any]:
    new_config = json.loads(json.dumps(config.to_dict()))
    if not path.exists():
        return {"workdir": workdir, "config": new_config, "slices": []}
    record: dict[str, Any] = json.loads(path.read_text())
    difference = short_schedule.find_difference(
        ConfigDict(record["config"]), ConfigDict(new_config)
    )
    if difference is not None:
        raise UserError(f"{path} is of a run with {difference}: name another file with --out")
    return record


def main() -> None:
    """The command; see the flags."""
    values = flags.FLAGS
    config = row_config(**flag_values.arguments(row_config))
    run(config, values.workdir, values.out, minutes=values.minutes)


if __name__ == "__main__":
    flags.DEFINE_enum("row", "resnet18_loss_attention", table.NAMES, "of the paper's table")
    single = sorted(name for name, spec in data.DATASETS.items() if not spec.multi_label)
    flags.DEFINE_enum("dataset", "cifar10", single, "to train on")
    flags.DEFINE_string("data_dir", "", "folder of the data sets; empty: TFDS' default")
    flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "of the computation")
    flags.DEFINE_integer("epochs", None, "of the schedule; default: the paper's", lower_bound=1)
    flags.DEFINE_string("workdir", None, "folder of the run", required=True)
    flags.DEFINE_string("out", None, "JSON file of all slices", required=True)
    flags.DEFINE_float("minutes", None, "of a slice; default: to the end", 0.0)
    command.run(main)

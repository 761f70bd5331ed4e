"""Loss attention against other poolings in short trainings on CIFAR-10.

    python -m benchmarks.short_schedule --out=runs/short --data_dir=data --epochs=20
    python -m benchmarks.short_schedule --out=runs/short_cpu --data_dir=data --backbone=small --width=0.5 \
        --epochs=6

Everything is as in the shipped configs of these systems but for what `run_config` names. The same command
again goes on where it was stopped, and leaves finished runs alone.
"""

import dataclasses
import json
import logging
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from benchmarks import flag_values, machine, pooling_results, shipped_configs
from lossattn_jax import data, devices, models
from lossattn_jax.checkpoint import run_folder
from lossattn_jax.commands import command
from lossattn_jax.config import images as config_lib
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import metrics
from lossattn_jax.train.images import loop, reporting

# Below the package's logger, which is the one that commands show.
log = logging.getLogger("lossattn_jax.benchmarks")

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
POOLINGS = ("loss_attention", "mean", "attention", "gated_attention")  # those with a shipped config
RESULTS_NAME = "short_schedule.json"
_RUN_NAME = "result.json"
# Lambda's ramp in the paper: 80 of 200 epochs.
_RAMP_SHARE = 80 / 200

Train = Callable[[ConfigDict, pathlib.Path], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What differs from the shipped configs, alike in all runs.

    Attributes:
      data_dir: folder of the data sets.
      dataset: name of the data set.
      epochs: of the one cycle.
      learning_rate: the highest of it.
      warmup_share: of the epochs, in which it rises.
      batch_size: over all devices.
      backbone: of the network.
      width: of the network.
      dtype: its compute dtype; None: bfloat16 on accelerators, float32 on CPUs.
      steps_per_dispatch: updates in a call of the compiled program.
    """

    data_dir: str
    dataset: str = "cifar10"
    epochs: int = 20
    learning_rate: float = 0.1
    warmup_share: float = 0.2
    batch_size: int = 128
    backbone: str = "resnet18"
    width: float = 1.0
    dtype: str | None = None
    steps_per_dispatch: int = 1


def run_config(recipe: Recipe, pooling: str, seed: int) -> ConfigDict:
    """The shipped ResNet18 with a pooling, under the recipe's schedule.

    Args:
      recipe: of all runs.
      pooling: one of `POOLINGS`.
      seed: of the run.

    Raises:
      UserError: there is no such config.
    """
    if pooling not in POOLINGS:
        raise UserError(f"--poolings has {pooling!r}, but may have: {', '.join(POOLINGS)}")
    rows = shipped_configs.load("tip.py")
    config: ConfigDict = rows.get_config(f"resnet18_{pooling},{recipe.dataset}")
    config.seed = seed
    config.data.dir = recipe.data_dir
    config.model.update(backbone=recipe.backbone, width=recipe.width)
    config.model.dtype = recipe.dtype or (
        "float32" if jax.default_backend() == "cpu" else "bfloat16"
    )
    config.loss.patch_ramp_epochs = max(1, round(_RAMP_SHARE * recipe.epochs))
    config.optimizer.schedule = "one_cycle"
    config.optimizer.learning_rate = recipe.learning_rate
    config.optimizer.warmup_epochs = recipe.warmup_share * recipe.epochs
    config.train.epochs = recipe.epochs
    config.train.batch_size = recipe.batch_size
    config.train.steps_per_dispatch = recipe.steps_per_dispatch
    config.eval.every_epochs = recipe.epochs  # once, at the end
    config.log.pictures = 0
    config.checkpoint.keep = 1
    return config


def check_minutes(minutes: float | None) -> None:
    """Refuses a limit that is no number."""
    if minutes is not None and math.isnan(minutes):
        raise UserError("--minutes is nan, but must be a number, at least 0")


def is_finished(workdir: pathlib.Path) -> bool:
    """Whether a folder has the result of a run."""
    return (workdir / _RUN_NAME).exists()


def train_once(config: ConfigDict, workdir: pathlib.Path, train: Train) -> dict[str, Any]:
    """A run, or the result of one that is finished.

    Args:
      config: of the run.
      workdir: its folder, where `result.json` marks the end.
      train: `train.loop.train`, or what stands for it.

    Returns:
      `test_accuracy` and `test_loss` after the last step, and as `test` all metrics;
      `training_seconds`, in which all steps were made,
      compilation included, evaluations and checkpoints not; `images_per_second` over the lines of
      `metrics.jsonl`; when, where and with what it ended.

    Raises:
      UserError: as of `train.loop.train`, or the folder has a run with another config, or the result cannot
        be written.
    """
    _refuse_other(config, workdir)
    path = workdir / _RUN_NAME
    if path.exists():
        return json.loads(path.read_text())
    test_results = train(config, workdir)
    lines = (workdir / reporting.METRICS_NAME).read_text().splitlines()
    result = {
        "pooling": config.model.pooling,
        "seed": config.seed,
        "test_accuracy": test_results["accuracy"],
        "test_loss": test_results["loss"],
        "test": metrics.finite(test_results),
        "evaluation_seconds": test_results["seconds"],
        **pooling_results.speed(lines, config.train.batch_size),
        **machine.header("benchmarks.short_schedule", PACKAGES),
        "device": devices.describe(),
        "config": config.to_dict(),
    }
    machine.write(result, path)
    return result


def run(
    out: str,
    recipe: Recipe,
    *,
    poolings: Sequence[str] = ("loss_attention", "mean"),
    seeds: Sequence[int] = (0, 1, 2),
    minutes: float | None = None,
    train: Train = loop.train,
) -> dict[str, Any]:
    """Trains each pooling with each seed and prints a table.

    All poolings of a seed come before the next seed.

    Args:
      out: folder of all runs; `short_schedule.json` there is written after each of them.
      recipe: of all runs.
      poolings: at most `POOLINGS`; the others are held against the first.
      seeds: of the runs.
      minutes: after which no other run is started; None: there is no limit.
      train: what makes a run.

    Returns:
      What is in the file: `runs` as of `train_once`, and `summary` as of `pooling_results.summary`.

    Raises:
      UserError: as of `train_once`.
    """
    began = time.monotonic()
    folder = pathlib.Path(out)
    configs = [run_config(recipe, pooling, seed) for seed in seeds for pooling in poolings]
    if not configs:
        raise UserError(f"--poolings names none, but may have: {', '.join(POOLINGS)}")
    check_minutes(minutes)
    for config in configs:  # complains before anything is made
        config_lib.check(config)
    path = machine.prepare(folder / RESULTS_NAME)
    log.info("%s", devices.describe())
    record: dict[str, Any] = {
        **machine.header("benchmarks.short_schedule", PACKAGES),
        "device": devices.describe(),
        "recipe": dataclasses.asdict(recipe),
        "poolings": list(poolings),
        "seeds": list(seeds),
        "runs": [],
    }
    runs_left = 0
    for number, config in enumerate(configs, start=1):
        pooling = config.model.pooling
        workdir = folder / f"{pooling}_seed{config.seed}"
        late = minutes is not None and time.monotonic() - began > 60 * minutes
        if late and not is_finished(workdir):
            runs_left += 1
            continue
        log.info("run %d of %d: %s, seed %d", number, len(configs), pooling, config.seed)
        record["runs"].append(train_once(config, workdir, train))
        record["summary"] = pooling_results.summary(record["runs"], poolings)
        machine.write(record, path)
    if runs_left:
        log.info(
            "%g minutes have passed: the same command goes on with %d more runs", minutes, runs_left
        )
    if record["runs"]:
        print(pooling_results.table(record))
    log.info("results: %s", path)
    return record


def find_difference(before: ConfigDict, config: ConfigDict) -> str | None:
    """Describes the first value of a config that was another before; None: there is none."""
    values_before = dict(config_lib.leaves(before))
    for key, value in config_lib.leaves(config):
        if key != "data.dir" and values_before.get(key) != value:  # the data may have been moved
            return f"{key} {values_before.get(key)!r}, but now it is {value!r}"
    return None


def _refuse_other(config: ConfigDict, workdir: pathlib.Path) -> None:
    if not (workdir / run_folder.CONFIG_NAME).exists():
        return
    difference = find_difference(run_folder.stored_config(workdir), config)
    if difference is not None:
        raise UserError(f"{workdir} has a run with {difference}: name another folder with --out")


def main() -> None:
    """The command; see the flags."""
    values = flags.FLAGS
    run(
        values.out,
        Recipe(**flag_values.arguments(Recipe)),
        poolings=values.poolings,
        seeds=flag_values.parse_numbers("seeds", values.seeds, int, zero=True),
        minutes=values.minutes,
    )


if __name__ == "__main__":
    # Not where tests import several benchmarks, whose flags have the same names.
    flags.DEFINE_string("out", None, "folder for all runs and the results", required=True)
    flags.DEFINE_string("data_dir", "", "folder of the data sets; empty: TFDS' default")
    single = sorted(name for name, spec in data.DATASETS.items() if not spec.multi_label)
    flags.DEFINE_enum("dataset", "cifar10", single, "to train on")
    flags.DEFINE_list("poolings", ["loss_attention", "mean"], f"of: {', '.join(POOLINGS)}")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "of the runs")
    flags.DEFINE_integer("epochs", 20, "of the one cycle", lower_bound=1)
    flags.DEFINE_float("learning_rate", 0.1, "the highest")
    flags.DEFINE_float("warmup_share", 0.2, "of the epochs, in which it rises", 0.0, 0.99)
    flags.DEFINE_integer("batch_size", 128, "over all devices", lower_bound=1)
    flags.DEFINE_enum("backbone", "resnet18", models.BACKBONES, "of the network; small for CPUs")
    flags.DEFINE_float("width", 1.0, "of the network; less for CPUs", 0.0)
    flags.DEFINE_enum(
        "dtype", None, ["float32", "bfloat16"], "default: bfloat16 on accelerators, else float32"
    )
    flags.DEFINE_integer("steps_per_dispatch", 1, "updates in a call of the program", lower_bound=1)
    flags.DEFINE_float("minutes", None, "after which no other run is started", 0.0)
    command.run(main)

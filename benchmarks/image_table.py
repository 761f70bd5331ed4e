"""The systems of the TIP paper's table under one budget: one backbone, schedule and set of seeds.

    python -m benchmarks.image_table --config=cifar10_small --config.data.dir=data --out=runs/image_table \\
        --seeds=0,1,2 --extra_systems=mean,attention,loss_attention --extra_seeds=3,4,5

Each run is the given config with another head and pooling, and another seed; nothing is tuned for one of
them. Runs of a seed share its order of images and their augmentation, so that systems are compared by the
differences of runs with the same seed. The same command goes on where it was stopped.
"""

import dataclasses
import logging
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from scipy import stats

from benchmarks import flag_values, machine, pooling_results, short_schedule
from lossattn_jax import devices
from lossattn_jax.commands import command
from lossattn_jax.config import images as config_lib
from lossattn_jax.errors import UserError
from lossattn_jax.registry import lookup
from lossattn_jax.train.images import loop

# Below the package's logger, which is the one that commands show.
log = logging.getLogger("lossattn_jax.benchmarks")

NAME = "image_table"
CONFIDENCE = 0.95
METRICS = {
    "accuracy": "accuracy",
    "calibration_error": "calibration error",
    "patch_accuracy": "patch accuracy",
}
OURS = "loss_attention"  # what the others are held against


@dataclasses.dataclass(frozen=True)
class System:
    """A head and a pooling on the backbone of all.

    Attributes:
      title: in the table.
      head, pooling: of the config.
    """

    title: str
    head: str
    pooling: str


SYSTEMS = {
    "plain": System("plain network", "none", "none"),
    "mean": System("mean pooling", "conv", "mean"),
    "max": System("max pooling", "conv", "max"),
    "attention": System("attention", "conv", "attention"),
    "gated_attention": System("gated attention", "conv", "gated_attention"),
    OURS: System("loss attention", "conv", "loss_attention"),
    "capsule_routing": System("capsules, dynamic routing", "capsule", "dynamic_routing"),
    "capsule_loss_attention": System("capsules, loss attention", "capsule", "loss_attention"),
}


def run_config(base: ConfigDict, name: str, seed: int) -> ConfigDict:
    """Makes the config of a run, which is tested once, at its end.

    Args:
      base: of all runs.
      name: of `SYSTEMS`.
      seed: of the run.

    Raises:
      UserError: there is no such system, or the config is impossible.
    """
    system = lookup("--systems", name, SYSTEMS)
    config = base.copy_and_resolve_references()
    config.seed = seed
    config.model.head, config.model.pooling = system.head, system.pooling
    config.eval.every_epochs = config.train.epochs
    config.log.pictures = 0
    config.checkpoint.keep = 1
    config_lib.check(config)
    return config


def run(
    base: ConfigDict,
    out: str,
    *,
    systems: Sequence[str] = tuple(SYSTEMS),
    seeds: Sequence[int] = (0, 1, 2),
    extra_systems: Sequence[str] = (),
    extra_seeds: Sequence[int] = (),
    minutes: float | None = None,
    train: Callable[[ConfigDict, pathlib.Path], Mapping[str, Any]] = loop.train,
) -> dict[str, Any]:
    """Trains all systems with one seed after the other.

    Record and table are written after each run.

    Args:
      base: the config of all runs.
      out: folder of runs, `image_table.json` and `image_table.md`.
      systems: of `SYSTEMS`.
      seeds: of all of them.
      extra_systems: those that have `extra_seeds` too.
      extra_seeds: none of `seeds`.
      minutes: after which no other run is started; None: there is no limit.
      train: what makes a run.

    Returns:
      The record: `runs` as of `short_schedule.train_once`, with their `system`, and `summary`.

    Raises:
      UserError: an unknown system, an impossible config or seed, or a folder has another run.
    """
    began = time.monotonic()
    if twice := set(seeds) & set(extra_seeds):
        raise UserError(f"--extra_seeds has {min(twice)}, which --seeds has too")
    short_schedule.check_minutes(minutes)
    if strange := [name for name in extra_systems if name not in systems]:
        raise UserError(
            f"--extra_systems has {strange[0]!r}, but must be of --systems: {','.join(systems)}"
        )
    plan = [(seed, name) for seed in seeds for name in systems]
    plan += [(seed, name) for seed in extra_seeds for name in extra_systems]
    configs = [run_config(base, name, seed) for seed, name in plan]
    folder = pathlib.Path(out)
    path = machine.prepare(folder / f"{NAME}.json")
    record: dict[str, Any] = {
        **machine.header(f"benchmarks.{NAME}", short_schedule.PACKAGES),
        "commit": machine.commit(),
        "device": devices.describe(),
        "plan": [{"system": name, "seed": seed} for seed, name in plan],
        "runs": [],
    }
    for number, ((seed, name), config) in enumerate(zip(plan, configs, strict=True), start=1):
        workdir = folder / f"{name}_seed{seed}"
        late = minutes is not None and time.monotonic() - began > 60 * minutes
        if late and not short_schedule.is_finished(workdir):
            continue
        log.info("run %d of %d: %s, seed %d", number, len(plan), name, seed)
        result = short_schedule.train_once(config, workdir, train)
        record["runs"].append({"system": name, **result})
        record["summary"] = summarise(record["runs"], systems)
        machine.write(record, path)
        path.with_suffix(".md").write_text(table(record))
    if record["runs"]:
        print(table(record), end="")
    log.info("results: %s", path)
    return record


def summarise(runs: Sequence[Mapping[str, Any]], systems: Sequence[str]) -> dict[str, Any]:
    """Means over seeds, and differences of runs with the same seed.

    Args:
      runs: each with `system`, `seed` and `test`, its metrics; NaN or None of one that has no such number.
      systems: in the order of the table.

    Returns:
      For each of `METRICS` the `mean`, `deviation` (of a sample) and `runs` of each system that has some,
      and as `less_ours` those of its differences to loss attention, with `low` and `high`, the ends of
      Student's 95 % interval of their mean; None of fewer than two.
    """
    summary: dict[str, Any] = {}
    for metric in METRICS:
        values: dict[str, dict[int, float]] = {name: {} for name in systems}
        for each in runs:
            value = each["test"].get(metric)
            if value is not None and math.isfinite(value):
                values[each["system"]][each["seed"]] = value
        ours = values.get(OURS, {})
        summary[metric] = {}
        for name, own in values.items():
            if not own:
                continue
            pairs = [own[seed] - ours[seed] for seed in own if seed in ours]
            summary[metric][name] = _describe(list(own.values()))
            if pairs and name != OURS:
                summary[metric][name]["less_ours"] = {**_describe(pairs), **interval(pairs)}
    return summary


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Student's 95 % interval of a mean: `low` and `high`, None of fewer than two values."""
    if len(values) < 2:
        return {"low": None, "high": None}
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * statistics.stdev(values)
    half /= math.sqrt(len(values))
    mean = statistics.fmean(values)
    return {"low": mean - half, "high": mean + half}


def _describe(values: list[float]) -> dict[str, Any]:
    return {**pooling_results.mean_and_deviation(values), "runs": values}


def table(record: Mapping[str, Any]) -> str:
    """The table, in Markdown; the first line says so where runs are missing."""
    plan, runs = record["plan"], record["runs"]
    lines = []
    if len(runs) < len(plan):
        lines += [f"**{len(runs)} of {len(plan)} runs: not finished.**", ""]
    heads = [f"{title} (less loss attention)" for title in METRICS.values()]
    lines.append("| " + " | ".join(["system", "seeds", *heads, "minutes"]) + " |")
    lines.append("| " + " | ".join(["---"] * (len(heads) + 3)) + " |")
    for name in dict.fromkeys(each["system"] for each in plan):
        own = [each for each in runs if each["system"] == name]
        if not own:
            continue
        seeds_of_plan = sum(each["system"] == name for each in plan)
        seeds = f"{len(own)}" if len(own) == seeds_of_plan else f"{len(own)} of {seeds_of_plan}"
        cells = [SYSTEMS[name].title, seeds]
        cells += [_cell(record["summary"][metric].get(name)) for metric in METRICS]
        minutes = statistics.fmean(each["training_seconds"] for each in own) / 60
        lines.append("| " + " | ".join([*cells, f"{minutes:.1f}"]) + " |")
    return "\n".join(lines) + "\n"


def _cell(own: Mapping[str, Any] | None) -> str:
    if own is None:
        return "-"
    text = f"{own['mean']:.4f}"
    if own["deviation"] is not None:
        text += f" ± {own['deviation']:.4f}"
    if "less_ours" in own:
        less = own["less_ours"]
        text += f" ({less['mean']:+.4f}"
        if less["low"] is not None:
            text += f", {less['low']:+.4f} to {less['high']:+.4f}"
        text += ")"
    return text


def main() -> None:
    """The command; see the flags."""
    values = flags.FLAGS
    run(
        values.config,
        values.out,
        systems=values.systems,
        seeds=flag_values.parse_numbers("seeds", values.seeds, int, zero=True),
        extra_systems=values.extra_systems,
        extra_seeds=flag_values.parse_numbers("extra_seeds", values.extra_seeds, int, zero=True)
        if values.extra_seeds
        else (),
        minutes=values.minutes,
    )


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, command.CONFIG_HELP, lock_config=True)
    flags.mark_flag_as_required("config")
    flags.DEFINE_string("out", None, "folder for all runs and the results", required=True)
    flags.DEFINE_list("systems", list(SYSTEMS), f"of: {', '.join(SYSTEMS)}")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "of all systems")
    flags.DEFINE_list("extra_systems", [], "systems that have --extra_seeds too")
    flags.DEFINE_list("extra_seeds", [], "of the systems of --extra_systems")
    flags.DEFINE_float("minutes", None, "after which no other run is started", 0.0)
    command.run(main)

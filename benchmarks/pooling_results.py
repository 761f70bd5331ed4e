"""What runs of `benchmarks.short_schedule` say together: means, paired differences, speed, a table."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks import machine


def speed(metrics: Iterable[str], batch_size: int) -> dict[str, Any]:
    """Time and rate of a whole run, its parts before interruptions included.

    Args:
      metrics: the lines of its `metrics.jsonl`.
      batch_size: over all devices.

    Returns:
      `training_seconds`, in which the steps were made, compilation included, evaluations and checkpoints
      not; and `images_per_second`: median, min and max over the lines.
    """
    lines = [line for line in map(json.loads, metrics) if line["kind"] == "train"]
    rates = [line["images_per_second"] for line in lines]
    ends = [line["step"] for line in lines]
    steps = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    spread = machine.spread(rates)
    return {
        "training_seconds": sum(n * batch_size / r for n, r in zip(steps, rates, strict=True)),
        "images_per_second": {key: spread[key] for key in ("median", "min", "max")},
    }


def summary(results: Sequence[Mapping[str, Any]], poolings: Sequence[str]) -> dict[str, Any]:
    """Means over seeds, and differences of runs with the same seed.

    Args:
      results: as of `short_schedule.train_once`.
      poolings: the first one is held against each of the others.

    Returns:
      `accuracy` of each pooling that has runs, and `differences` of the first one's accuracy from each
      other's, both as `mean`, `deviation` (of a sample; None of a single one) and `all`, in the order of the
      seeds.
    """
    accuracy: dict[str, dict[int, float]] = {pooling: {} for pooling in poolings}
    for result in results:
        accuracy[result["pooling"]][result["seed"]] = result["test_accuracy"]
    first = accuracy[poolings[0]]
    differences = {
        other: [first[seed] - own for seed, own in accuracy[other].items() if seed in first]
        for other in poolings[1:]
    }
    return {
        "accuracy": {name: _mean(list(own.values())) for name, own in accuracy.items() if own},
        "differences": {name: _mean(own) for name, own in differences.items() if own},
    }


def table(record: dict[str, Any]) -> str:
    """The results of `short_schedule.run`, as text."""
    lines = [f"{'pooling':<17}{'seed':>5}{'accuracy':>10}{'loss':>8}{'minutes':>9}{'images/s':>10}"]
    for each in record["runs"]:
        lines.append(
            f"{each['pooling']:<17}{each['seed']:>5}{each['test_accuracy']:>10.4f}"
            f"{each['test_loss']:>8.4f}{each['training_seconds'] / 60:>9.1f}"
            f"{each['images_per_second']['median']:>10,.0f}"
        )
    totals = record["summary"]
    for name, own in totals["accuracy"].items():
        lines.append(f"{name}: {_text(own)}")
    for name, own in totals["differences"].items():
        lines.append(f"{record['poolings'][0]} less {name}, same seed: {_text(own, '+')}")
    return "\n".join(lines)


def _text(own: dict[str, Any], sign: str = "") -> str:
    spread = "" if own["deviation"] is None else f" ± {own['deviation']:.4f}"
    return f"{own['mean']:{sign}.4f}{spread} ({len(own['all'])} seed(s))"


def mean_and_deviation(values: Sequence[float]) -> dict[str, float | None]:
    """The `mean` of values and their `deviation` as of a sample, None of a single one."""
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
    }


def _mean(values: list[float]) -> dict[str, Any]:
    return {**mean_and_deviation(values), "all": values}

"""Growth of a training's process and workdir, by samples of `process_watch`."""

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from lossattn_jax.train.images import reporting
from reliability import event_files, process_watch, trend

Sample = dict[str, float]

MEMORY = ("rss", "private", "anonymous")  # in bytes, reported in MB
_PER = 1000.0  # epochs of a slope that is reported
_MB = 1e6
_PICTURES = "attention"  # tag of the pictures


def drop_start(samples: Sequence[Sample], epochs: float) -> list[Sample]:
    """The samples of one process after so many epochs of its own.

    Args:
      samples: in their order, with `epoch`; before the first line of metrics that of the process before.
      epochs: what compiling, the first tests and the first checkpoints take.
    """
    if not samples:
        return []
    began = min(sample["epoch"] for sample in samples)
    return [sample for sample in samples if sample["epoch"] >= began + epochs]


def levels(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Least, median and largest of `process_watch.PROCESS_FIELDS`.

    Memory is in MB of 10^6 bytes.

    Args:
      samples: settled ones.
    """
    facts = {}
    for name in process_watch.PROCESS_FIELDS if samples else ():
        values = [sample[name] / _scale(name) for sample in samples]
        facts[name] = [min(values), statistics.median(values), max(values)]
    return facts


def slopes(samples: Sequence[Sample]) -> dict[str, dict[str, Any]] | None:
    """Growth in 1,000 epochs of what `levels` has; see `trend.fit`.

    Args:
      samples: settled ones.

    Returns:
      None where there are too few of them.
    """
    epochs = [sample["epoch"] for sample in samples]
    facts = {}
    for name in process_watch.PROCESS_FIELDS:
        slope = trend.fit(epochs, [sample[name] / _scale(name) for sample in samples])
        if slope is None:
            return None
        facts[name] = slope.facts(_PER)
    return facts


def workdir(samples: Sequence[Sample]) -> dict[str, Any]:
    """How a workdir grew over all processes of a run.

    Args:
      samples: of the whole run.

    Returns:
      Of checkpoints the most at once, their largest bytes in the run's first half and in its second half; the
      last bytes of everything else, and for metrics and TensorBoard those for an epoch, by halves as well.
    """
    half = samples[-1]["epoch"] / 2
    halves = [[s for s in samples if (s["epoch"] > half) == late] for late in (False, True)]
    facts: dict[str, Any] = {
        "checkpoints_at_once": max(sample["checkpoint_steps"] for sample in samples),
        "checkpoint_bytes": [max(sample["checkpoints"] for sample in each) for each in halves],
        "other_bytes": [max(sample["others"] for sample in each) for each in halves],
        "event_files": samples[-1]["event_files"],
    }
    for name in ("metrics", "tensorboard"):
        facts[f"{name}_bytes"] = samples[-1][name]
        facts[f"{name}_bytes_per_epoch"] = [
            (each[-1][name] - each[0][name]) / (each[-1]["epoch"] - each[0]["epoch"])
            for each in halves
        ]
    return facts


def tests(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The tests of a finished run, without their seconds."""
    lines = [line for line in reporting.read_metrics(folder) if line["kind"] == "test"]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def events(folder: pathlib.Path) -> dict[str, Any]:
    """What TensorBoard shows of a finished run, beside its metrics.

    Returns:
      `rising`: whether the steps of every tag do; `missing`: of each kind of metrics, how many of their steps
      TensorBoard has not, and how many tests are without pictures; mean `bytes` of a line's points and of a
      test's pictures.
    """
    steps_by_kind: dict[str, set[int]] = {kind: set() for kind in ("train", "test")}
    for line in reporting.read_metrics(folder):
        steps_by_kind[line["kind"]].add(line["step"])
    points_by_tag = event_files.points(folder / reporting.TENSORBOARD_NAME)
    pictures = points_by_tag.get(_PICTURES, [])
    missing: dict[str, int] = {}
    size: dict[str, float] = {}
    for kind, steps in steps_by_kind.items():
        points = {tag: p for tag, p in points_by_tag.items() if tag.startswith(f"{kind}/")}
        missing[kind] = max(len(steps - {step for step, _ in p}) for p in points.values())
        size[kind] = sum(b for p in points.values() for _, b in p) / len(steps)
    missing["pictures"] = len(steps_by_kind["test"] - {step for step, _ in pictures})
    size["pictures"] = sum(b for _, b in pictures) / max(1, len(pictures))
    return {
        "rising": all(_rising([step for step, _ in each]) for each in points_by_tag.values()),
        "missing": missing,
        "bytes": size,
    }


def thin_out(samples: Sequence[Sample], most: int) -> dict[str, list[float]]:
    """At most so many samples, evenly spaced, as columns."""
    every = max(1, -(-len(samples) // most))
    rows = samples[::every]
    return {name: [sample[name] for sample in rows] for name in rows[0]} if rows else {}


def in_words(slope: Mapping[str, Any], unit: str) -> str:
    """One of `slopes`."""
    return "{slope:+.3f} ({low:+.3f} to {high:+.3f}) {unit}: {verdict}".format(unit=unit, **slope)


def _scale(name: str) -> float:
    return _MB if name in MEMORY else 1.0


def _rising(steps: Sequence[int]) -> bool:
    return all(before < after for before, after in zip(steps, steps[1:], strict=False))

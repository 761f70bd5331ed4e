"""Tables of a comparison of runs: Markdown for screens, CSV with all digits."""

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lossattn_jax.compare_runs import disagreements
from lossattn_jax.compare_runs.predictions import Predictions
from lossattn_jax.evaluate.metric_registry import EVALUATION_METRICS
from lossattn_jax.explain.metrics.metric_registry import arrow
from lossattn_jax.files.escaping import for_markdown, for_spreadsheet


@dataclasses.dataclass(frozen=True)
class Disagreements:
    """The D images on which R runs predict different classes, the strongest first.

    Attributes:
      runs: names of those with finite outputs.
      index: `[D]` int64, places in the split.
      strength: `[D]` float64; see `disagreements.strengths`.
      labels: of each image in words.
      predicted: of each image the classes' names, by run.
      probabilities: `[D, R]` float64, of each run for the class that it predicts.
      right: `[D, R]` bool.
    """

    runs: tuple[str, ...] = ()
    index: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    strength: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    labels: tuple[str, ...] = ()
    predicted: tuple[tuple[str, ...], ...] = ()
    probabilities: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))
    right: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), bool))

    @classmethod
    def of(
        cls, predictions: Mapping[str, Predictions], class_names: Sequence[str]
    ) -> "Disagreements":
        """Ranks the images; none where fewer than two runs have finite outputs."""
        finite = {name: one for name, one in predictions.items() if one.finite}
        if len(finite) < 2:
            return cls()
        members = list(finite.values())
        classes = [one.predicted for one in members]
        chances = [one.probabilities for one in members]
        index = disagreements.rank(classes, chances)
        own = [
            one[index, chosen[index]].astype(np.float64)
            for one, chosen in zip(chances, classes, strict=True)
        ]
        return cls(
            runs=tuple(finite),
            index=index,
            strength=disagreements.strengths(classes, chances)[index],
            labels=tuple(_words(members[0].labels[place], class_names) for place in index),
            predicted=tuple(
                tuple(class_names[chosen[place]] for chosen in classes) for place in index
            ),
            probabilities=np.stack(own, axis=1),
            right=np.stack([one.right[index] for one in members], axis=1),
        )

    def to_csv(self) -> str:
        """Makes a row for each image, with all digits."""
        head = ["index", "label", "strength"]
        head += [f"{what} {run}" for run in self.runs for what in ("predicted", "probability")]
        rows = (
            [
                int(self.index[row]),
                self.labels[row],
                float(self.strength[row]),
                *(
                    cell
                    for run in range(len(self.runs))
                    for cell in (self.predicted[row][run], float(self.probabilities[row, run]))
                ),
            ]
            for row in range(len(self.index))
        )
        return _to_csv([head, *rows])


def list_metrics(result: Mapping[str, Any]) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """Yields metrics with the runs' values and their differences to the first.

    Args:
      result: of `comparison.compare`.

    Yields:
      Name, a value for each run and a difference for each but the first; None for what is not there or not
      finite.
    """
    values = [run["metrics"] for run in result["runs"] if "metrics" in run]
    differences = result.get("differences", {}).values()
    there = dict.fromkeys(name for own in values for name in own)
    for name in sorted(there, key=_order):
        yield name, [own.get(name) for own in values], [own.get(name) for own in differences]


def metrics_csv(result: Mapping[str, Any]) -> str:
    """Makes a row for each metric, with all digits; see `list_metrics`."""
    names = [run["name"] for run in result["runs"]]
    head = ["metric", *names, *(f"{name} less {names[0]}" for name in names[1:])]
    return _to_csv([head, *([name, *own, *less] for name, own, less in list_metrics(result))])


def config_csv(result: Mapping[str, Any]) -> str:
    """Makes a row for each key of the config whose values differ."""
    head = ["key", *(run["name"] for run in result["runs"])]
    return _to_csv([head, *([key, *map(word, row)] for key, row in result["config"].items())])


def to_markdown(result: Mapping[str, Any]) -> str:
    """Formats what a screen shows: metrics, sentences on pairs, and the config.

    Args:
      result: of `comparison.compare`.
    """
    names = [for_markdown(run["name"]) for run in result["runs"]]
    lines = []
    if "pairs" in result:
        less = [f"{name} less {names[0]}" for name in names[1:]]
        lines += _head("metric", [*names, *less])
        for name, own, differences in list_metrics(result):
            cells = [*map(number, own), *(number(value, sign=True) for value in differences)]
            lines.append(f"| {for_markdown(title(name))} | {' | '.join(cells)} |")
        lines += ["", *(f"- {for_markdown(sentence)}" for sentence in describe_pairs(result)), ""]
    if result["config"]:
        lines += _head("config", names)
        for key, row in result["config"].items():
            lines.append(
                f"| {for_markdown(key)} | {' | '.join(for_markdown(word(v)) for v in row)} |"
            )
    else:
        lines.append("The configs are the same.")
    return "\n".join(lines) + "\n"


def describe_pairs(result: Mapping[str, Any]) -> list[str]:
    """Says of each run but the first, in a sentence, how its predictions differ."""
    first = result["runs"][0]["name"]
    sentences = []
    for name, pair in result["pairs"].items():
        if pair is None:
            sentences.append(f"{name} beside {first}: outputs are not finite, nothing is compared.")
            continue
        interval = "no interval"
        if pair["low"] is not None:
            interval = f"95 % interval {pair['low']:+.4f} to {pair['high']:+.4f}"
        sentences.append(
            f"{name} less {first}, share of images that are right: {pair['difference']:+.4f} ({interval}); "
            f"{first} alone has {pair['right']['first']} right and {name} alone {pair['right']['other']}, "
            f"McNemar's exact p = {pair['p_value']:.3g}; predictions differ on "
            f"{pair['differing_predictions']} of {result['images']} images."
        )
    return sentences


def title(metric: str) -> str:
    """A metric's name with an arrow to where it is better."""
    return metric + (
        arrow(EVALUATION_METRICS[metric].higher) if metric in EVALUATION_METRICS else ""
    )


def number(value: float | None, sign: bool = False) -> str:
    """Formats a number for people: four digits, whole numbers as they are."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    return f"{value:+.4f}" if sign else f"{value:.4f}"


def word(value: Any) -> str:
    """Formats a value of a config as it is written on a command line."""
    return value if isinstance(value, str) and value else json.dumps(value)


def _order(metric: str) -> int:
    """Place of a metric in the registry; others come last."""
    names = list(EVALUATION_METRICS)
    return names.index(metric) if metric in names else len(names)


def _words(label: np.ndarray, class_names: Sequence[str]) -> str:
    """Names the classes of a label, int or multi-hot."""
    places = np.flatnonzero(label).tolist() if label.ndim else [int(label)]
    return ", ".join(class_names[place] for place in places) or "nothing"


def _head(corner: str, names: Sequence[str]) -> list[str]:
    return [f"| {corner} | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]


def _to_csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    for row in rows:
        writer.writerow([for_spreadsheet("" if cell is None else cell) for cell in row])
    return text.getvalue()

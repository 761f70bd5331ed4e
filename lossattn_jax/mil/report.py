"""What an experiment gave: summaries of folds, tables beside the paper's numbers, instance weights."""

import csv
import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from lossattn_jax.metrics import finite
from lossattn_jax.mil import methods
from lossattn_jax.mil.selection import BEST_TEST, RULES

Records = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Summary:
    """The folds of one method on one data set under one rule.

    Attributes:
      dataset, method, rule: which.
      folds: how many, over all repeats.
      accuracy: mean over folds.
      over_folds: standard deviation over all folds.
      over_repeats: standard deviation of the repeats' means; NaN for one repeat.
      auc: area under the ROC curve, pooled over a repeat's folds, mean over repeats (more than two classes:
        one against the rest, mean over classes); NaN where a class is missing.
      seconds: of wall time for all folds.
      accuracies: `[folds]` in the order of repeat and fold.
      settings, epochs: how often each was chosen.
      positive: the positive one of two classes, as text; None where it is not known.
    """

    dataset: str
    method: str
    rule: str
    folds: int
    accuracy: float
    over_folds: float
    over_repeats: float
    auc: float
    seconds: float
    accuracies: tuple[float, ...]
    settings: Mapping[str, int]
    epochs: Mapping[str, int]
    positive: str | None = None

    @property
    def standard_error(self) -> float:
        """Of the mean: over_folds / sqrt(folds), as if folds were independent."""
        return self.over_folds / math.sqrt(self.folds)


def summarise(records: Records) -> Summary:
    """Sums the folds of one method, data set and rule up.

    Args:
      records: of `fold_results.read`, at least one.
    """
    accuracies = [float(record["accuracy"]) for record in records]
    repeats = sorted({record["repeat"] for record in records})
    means = [
        np.mean([a for a, r in zip(accuracies, records, strict=True) if r["repeat"] == repeat])
        for repeat in repeats
    ]
    first = records[0]
    return Summary(
        dataset=first["dataset"],
        method=first["method"],
        rule=first["rule"],
        folds=len(records),
        accuracy=float(np.mean(accuracies)),
        over_folds=_spread(accuracies),
        over_repeats=_spread(means),
        auc=float(np.mean([_auc([r for r in records if r["repeat"] == n]) for n in repeats])),
        seconds=float(sum(record["seconds"] for record in records)),
        accuracies=tuple(accuracies),
        settings=_counts(json.dumps(record["settings"], sort_keys=True) for record in records),
        epochs=_counts(str(r["epoch"]) for r in records if r["epoch"] is not None),
        positive=_text_or_none(first.get("positive")),
    )


def write_summary(summary: Summary, path: pathlib.Path) -> None:
    """Writes a summary's record as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(as_record(summary), indent=1) + "\n")


def as_record(summary: Summary) -> dict[str, Any]:
    """A summary for JSON, with the paper's accuracy and whether the rule is optimistic; NaN is None."""
    values = dataclasses.asdict(summary)
    numbers = ("accuracy", "over_folds", "over_repeats", "auc", "seconds")
    values |= finite({name: round(values[name], 6) for name in numbers})
    values["accuracies"] = [round(value, 6) for value in summary.accuracies]
    values["standard_error"] = finite({"": round(summary.standard_error, 6)})[""]
    values["optimistic"] = summary.rule == BEST_TEST
    values["paper"] = methods.get(summary.method).printed(summary.dataset)
    return values


def from_record(record: Mapping[str, Any]) -> Summary:
    """The summary that `as_record` made a record of.

    Raises:
      KeyError: a value is missing.
      ValueError: its method or its rule is none.
    """
    # Records from before the positive class was named have none.
    complete = {"positive": None, **record}
    values = {field.name: complete[field.name] for field in dataclasses.fields(Summary)}
    positive = _text_or_none(values.pop("positive"))
    if values["method"] not in methods.NAMES or values["rule"] not in RULES:
        raise ValueError(f"there is no method {values['method']!r}, or no rule {values['rule']!r}")
    values |= {name: math.nan for name, value in values.items() if value is None}
    return Summary(**values | {"accuracies": tuple(values["accuracies"]), "positive": positive})


def table(summaries: Sequence[Summary]) -> str:
    """Markdown: for each rule a table with a row for each method and data set, and what the rule does."""
    lines = []
    for rule in RULES:
        own = [summary for summary in summaries if summary.rule == rule]
        if not own:
            continue
        lines += [
            f"Rule {rule}: {RULES[rule]}.",
            "",
            "| data set | method | accuracy | sd folds | sd repeats | AUC | paper | time |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *(_row(summary) for summary in own),
            "",
            *_positive_lines(own),
        ]
    return "\n".join(lines)


def write_weights(records: Records, path: pathlib.Path) -> None:
    """Writes every instance's weight as CSV: one row for each instance of each bag that was tested."""
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("repeat", "fold", "bag_id", "bag_label", "prediction", "instance", "weight"))
        for record in records:
            names = record["classes"]
            for bag in record["bags"]:
                known = (names[bag["label"]], names[bag["prediction"]])
                rows.writerows(
                    (record["repeat"], record["fold"], bag["id"], *known, place, weight)
                    for place, weight in enumerate(bag["weights"])
                )
    part.replace(path)


def _row(summary: Summary) -> str:
    method = methods.get(summary.method)
    printed = method.printed(summary.dataset)
    marked = " (optimistic)" if summary.rule == BEST_TEST else ""
    cells = (
        summary.dataset,
        method.title,
        f"{summary.accuracy:.3f}{marked}",
        _number(summary.over_folds),
        _number(summary.over_repeats),
        _number(summary.auc),
        "-" if printed is None else f"{printed:.3f}",
        f"{summary.seconds:.0f} s",
    )
    return f"| {' | '.join(cells)} |"


def _positive_lines(summaries: Sequence[Summary]) -> list[str]:
    known = {one.dataset: one.positive for one in summaries if one.positive is not None}
    if not known:
        return []
    return [f"Positive class: {', '.join(f'{p} of {d}' for d, p in known.items())}.", ""]


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _spread(values: Sequence[Any]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _auc(records: Records) -> float:
    bags = [bag for record in records for bag in record["bags"]]
    labels = np.array([bag["label"] for bag in bags])
    probabilities = np.array([bag["probabilities"] for bag in bags])
    if len(np.unique(labels)) < probabilities.shape[1]:
        return math.nan
    if probabilities.shape[1] == 2:
        return float(roc_auc_score(labels, probabilities[:, 1]))
    # The files' rounding may have moved the sum of a row from 1.
    normalised = probabilities / probabilities.sum(axis=1, keepdims=True)
    return float(roc_auc_score(labels, normalised, multi_class="ovr"))


def _counts(values: Any) -> dict[str, int]:
    counted: dict[str, int] = {}
    for value in values:
        counted[value] = counted.get(value, 0) + 1
    return dict(sorted(counted.items(), key=lambda item: -item[1]))

"""Reports of experiments: summaries, tables beside the paper's, instance weights."""

import csv
import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lossattn_jax import files
from lossattn_jax.data.bags import label_sets
from lossattn_jax.errors import Incomplete
from lossattn_jax.evaluate import nonfinite_values
from lossattn_jax.files import records
from lossattn_jax.files.escaping import for_markdown, for_spreadsheet
from lossattn_jax.mil import methods
from lossattn_jax.mil.bag_metrics import BAG_METRICS, mean_auroc
from lossattn_jax.mil.selection import BEST_TEST, RULES
from lossattn_jax.registry import is_reference

SUMMARY_NAME = "summary.json"

Folds = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Summary:
    """The folds of one method on one data set under one rule.

    Attributes:
      dataset, method, rule: which.
      folds: how many, over all repeats.
      accuracy: mean over folds. It and all that follows of accuracies and probabilities is NaN where one
        of them is not finite.
      over_folds: standard deviation over all folds.
      over_repeats: standard deviation of the repeats' means; NaN for one repeat.
      auc: area under the ROC curve, pooled over a repeat's folds, mean over repeats (more than two classes:
        one against the rest, mean over classes); NaN where a class is missing.
      seconds: of wall time for all folds.
      accuracies: `[folds]` in the order of repeat and fold.
      settings, epochs: how often each was chosen.
      benchmark: as `sources.Experiment` has it.
      positive: the class that counts as positive, as text; None where none does.
      class_weight: by what losses of bags were weighed; None: they were not.
      nonfinite: how many tested bags have a probability or weight that is not finite.
      nonfinite_folds: the folds with such a bag, by `Split.name`.
      title: of the method, as tables have it; of those of the package it is known.
      paper: the paper's accuracy; None where the bags are no benchmark of it. Likewise.
      out_of_fold: what `metric_files.measure` gives; empty where that is not known. It is not in the record,
        and not compared.
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
    benchmark: str | None = None
    positive: str | None = None
    class_weight: str | None = None
    nonfinite: int = 0
    nonfinite_folds: tuple[str, ...] = ()
    title: str = ""
    paper: float | None = None
    out_of_fold: Mapping[str, Any] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        """Looks up title and paper's accuracy of the package's methods.

        Those of a user's method, whose code is not imported for tables, stay.
        """
        entry = methods.METHODS.get(self.method)
        if entry is not None:
            paper = None if self.benchmark is None else entry.paper_accuracy(self.benchmark)
            object.__setattr__(self, "title", entry.title)
            object.__setattr__(self, "paper", paper)

    @property
    def standard_error(self) -> float:
        """Standard error of the mean: over_folds / sqrt(folds), as if independent."""
        return self.over_folds / math.sqrt(self.folds)


def summarise(folds: Folds) -> Summary:
    """Summarises the folds of one method, data set and rule.

    Args:
      folds: contents of folds' records, at least one.
    """
    accuracies = [_number(fold["accuracy"]) for fold in folds]
    repeats = sorted({fold["repeat"] for fold in folds})
    means = [
        np.mean([a for a, fold in zip(accuracies, folds, strict=True) if fold["repeat"] == repeat])
        for repeat in repeats
    ]
    first = folds[0]
    entry, benchmark = methods.get(first["method"]), first["benchmark"]
    return Summary(
        dataset=first["dataset"],
        method=first["method"],
        rule=first["rule"],
        folds=len(folds),
        accuracy=float(np.mean(accuracies)),
        over_folds=_spread(accuracies),
        over_repeats=_spread(means),
        auc=float(np.mean([_auc([f for f in folds if f["repeat"] == n]) for n in repeats])),
        seconds=float(sum(fold["seconds"] for fold in folds)),
        accuracies=tuple(accuracies),
        settings=_counts(json.dumps(fold["settings"], sort_keys=True) for fold in folds),
        epochs=_counts(str(fold["epoch"]) for fold in folds if fold["epoch"] is not None),
        benchmark=benchmark,
        title=entry.title,
        paper=None if benchmark is None else entry.paper_accuracy(benchmark),
        positive=first["positive"],
        class_weight=first.get("class_weight"),
        nonfinite=sum(fold["nonfinite"] for fold in folds),
        nonfinite_folds=tuple(
            f"repeat{fold['repeat']}_fold{fold['fold']}" for fold in folds if fold["nonfinite"]
        ),
    )


def write_summary(summary: Summary, path: pathlib.Path, made_from: Mapping[str, Any]) -> None:
    """Writes a summary as a record (`lossattn_jax.files.records`).

    Args:
      summary: what to write.
      path: of the file, whose folder exists.
      made_from: digests of the bags and of the folds' files.

    Raises:
      OSError: the file cannot be written.
    """
    records.write(path, as_record(summary), made_from, indent=1)


def as_record(summary: Summary) -> dict[str, Any]:
    """Turns a summary into a record for JSON; NaN becomes None."""
    values = dataclasses.asdict(dataclasses.replace(summary, out_of_fold={}))
    del values["out_of_fold"]  # has a file of its own
    values["standard_error"] = summary.standard_error
    values["optimistic"] = summary.rule == BEST_TEST
    content: dict[str, Any] = records.without_nonfinite(values)[0]
    return content


# Of a summary, what may be NaN; and what summaries of before these had digests lack.
_NUMBERS = ("accuracy", "over_folds", "over_repeats", "auc", "seconds")
_LATER = (
    "positive",
    "class_weight",
    "nonfinite",
    "nonfinite_folds",
    "title",
    "paper",
    "out_of_fold",
)


def from_record(record: Mapping[str, Any]) -> Summary:
    """Makes a summary of its record.

    One that does not say which benchmark it is of, since it was written before that was asked, is of the one
    of its name.

    Raises:
      KeyError: a value is missing.
      ValueError: its method or its rule is none.
    """
    names = [field.name for field in dataclasses.fields(Summary)]
    name = record["dataset"]
    old: dict[str, Any] = {"benchmark": name if name in methods.PAPER_BENCHMARKS else None}
    values: dict[str, Any] = {
        name: record[name] for name in names if name in record or name not in (*_LATER, "benchmark")
    }
    method = values["method"]
    if not (method in methods.METHODS or is_reference(method)) or values["rule"] not in RULES:
        raise ValueError(f"there is no method {method!r}, or no rule {values['rule']!r}")
    values |= {name: _number(values[name]) for name in _NUMBERS}
    values["accuracies"] = tuple(map(_number, values["accuracies"]))
    values["title"] = str(values.get("title") or method)
    values["nonfinite_folds"] = tuple(values.get("nonfinite_folds", ()))
    return Summary(**old | values)


def refuse_nonfinite(summaries: Sequence[Summary]) -> None:
    """Ends a command whose summaries have non-finite outputs.

    Raises:
      Incomplete: a summary has such outputs; the text names method, data set, rule and folds.
    """
    wrong = [summary for summary in summaries if summary.nonfinite]
    if wrong:
        parts = [
            f"{summary.title} on {summary.dataset} under the rule {summary.rule}, "
            f"{nonfinite_values.list_first(summary.nonfinite_folds)} ({_bags(summary.nonfinite)})"
            for summary in wrong
        ]
        raise Incomplete(
            f"outputs are not finite, and what depends on them is null in JSON: {'; '.join(parts)}"
        )


def table(summaries: Sequence[Summary]) -> str:
    """Formats Markdown tables for each rule.

    They have a row for each method and data set, and what the rule does; the second one, of metrics of
    out-of-fold predictions, is there where these are known.
    """
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
            *_weight_lines(own),
            *_out_of_fold_lines([one for one in own if one.out_of_fold]),
        ]
    return "\n".join(lines)


def write_weights(folds: Folds, path: pathlib.Path) -> None:
    """Writes a CSV row for every instance of every test bag.

    Ids of bags and classes that a spreadsheet would take for formulas have an apostrophe before them.

    Args:
      folds: contents of folds' records. A weight that is not finite, or a prediction that there is none
        of, is empty.
      path: of the file.

    Raises:
      OSError: the file cannot be written.
    """
    header = ("repeat", "fold", "bag_id", "bag_label", "prediction", "instance", "weight")
    with files.replacing(path) as file:
        file.write(_csv([header]))
        for fold in folds:
            classes = fold["classes"]
            for bag in fold["bags"]:
                label, prediction = (
                    "" if own is None else for_spreadsheet(label_sets.name(own, classes))
                    for own in (bag["label"], bag["prediction"])
                )
                bag_id = for_spreadsheet(bag["id"])
                fields = (fold["repeat"], fold["fold"], bag_id, label, prediction)
                file.write(_csv([(*fields, place, w) for place, w in enumerate(bag["weights"])]))


def _csv(rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")


def _row(summary: Summary) -> str:
    mark = " (optimistic)" if summary.rule == BEST_TEST else ""
    cells = (
        for_markdown(summary.dataset),
        for_markdown(summary.title),
        f"{as_text(summary.accuracy)}{mark}",
        as_text(summary.over_folds),
        as_text(summary.over_repeats),
        as_text(summary.auc),
        as_text(summary.paper),
        f"{summary.seconds:.0f} s",
    )
    return f"| {' | '.join(cells)} |"


def _out_of_fold_lines(summaries: Sequence[Summary]) -> list[str]:
    """Formats the table of metrics of out-of-fold predictions."""
    if not summaries:
        return []
    columns = [name for name, metric in BAG_METRICS.items() if metric.in_table]
    mark = " (OPTIMISTIC)" if summaries[0].rule == BEST_TEST else ""
    resamples = max(one.out_of_fold["bootstrap"]["resamples"] for one in summaries)
    drawn = " or ".join(sorted({one.out_of_fold["bootstrap"]["of"] for one in summaries}))
    intervals = (
        f", with 95 % intervals from {resamples:,} resamples of {drawn}" if resamples else ""
    )
    return [
        f"Out-of-fold{mark}: all predictions of a repeat together, mean over repeats{intervals}.",
        "",
        f"| data set | method | {' | '.join(BAG_METRICS[name].title for name in columns)} |",
        f"| --- | --- |{' --- |' * len(columns)}",
        *(_out_of_fold_row(summary, columns) for summary in summaries),
        "",
        *_left_out_lines(summaries, columns),
    ]


def _out_of_fold_row(summary: Summary, columns: Sequence[str]) -> str:
    cells = [for_markdown(summary.dataset), for_markdown(summary.title)]
    for name in columns:
        cells.append(with_interval(summary.out_of_fold["metrics"][name]))
    return f"| {' | '.join(cells)} |"


def _left_out_lines(summaries: Sequence[Summary], columns: Sequence[str]) -> list[str]:
    """Says of how many resamples intervals are made without, for each data set."""
    most: dict[str, int] = {}
    for one in summaries:
        counts = [one.out_of_fold["metrics"][name]["left_out"] or 0 for name in columns]
        most[one.dataset] = max(most.get(one.dataset, 0), *counts)
    parts = [f"up to {count:,} of {for_markdown(name)}" for name, count in most.items() if count]
    if not parts:
        return []
    return [f"Resamples left out, in which a metric is not defined: {', '.join(parts)}.", ""]


def with_interval(metric: Mapping[str, Any]) -> str:
    """Formats a metric of `metrics.json`, and its interval where it has one."""
    text = as_text(metric["value"])
    if metric["interval"] is None:
        return text
    low, high = map(as_text, metric["interval"])
    return f"{text} ({low} to {high})"


def as_text(value: float | None) -> str:
    """Formats a number with three digits; a dash where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _positive_lines(summaries: Sequence[Summary]) -> list[str]:
    positives = {one.dataset: one.positive for one in summaries if one.positive is not None}
    if not positives:
        return []
    classes = [f"{for_markdown(p)} of {for_markdown(d)}" for d, p in positives.items()]
    return [f"Positive class: {', '.join(classes)}.", ""]


def _weight_lines(summaries: Sequence[Summary]) -> list[str]:
    weighed = {one.title: one.class_weight for one in summaries if one.class_weight is not None}
    if not weighed:
        return []
    parts = [f"{weight} in {for_markdown(title)}" for title, weight in weighed.items()]
    return [f"Weights of classes in training: {', '.join(parts)}.", ""]


def _bags(count: int) -> str:
    return f"{count} bag{'s' * (count != 1)}"


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _spread(values: Sequence[Any]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _auc(folds: Folds) -> float:
    bags = [bag for fold in folds for bag in fold["bags"]]
    labels = np.array([bag["label"] for bag in bags])
    probabilities = np.array([bag["probabilities"] for bag in bags], np.float64)  # None is NaN
    return mean_auroc(labels, probabilities)


def _counts(values: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))

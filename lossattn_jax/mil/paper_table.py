"""Tables of many runs beside the AAAI 2020 paper's Table 1."""

import collections
import dataclasses
import json
import logging
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lossattn_jax import files
from lossattn_jax.errors import UserError
from lossattn_jax.files import records
from lossattn_jax.files.escaping import for_markdown
from lossattn_jax.mil import methods, report
from lossattn_jax.mil.metric_files import METRICS_NAME
from lossattn_jax.mil.report import SUMMARY_NAME, Summary
from lossattn_jax.mil.selection import BEST_TEST, RULES

log = logging.getLogger(__name__)

# Key of summaries from before there were digests: probabilities were rounded to 6 decimals before their AUC.
AUC_ROUNDED = "auc_of_rounded_probabilities"
_OUT_OF_FOLD = "out_of_fold"
# Standard errors by which an accuracy has to differ from the paper's to be listed.
ERRORS = 2.0

_digits_or_text = re.compile(r"\d+|\D+").findall


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A summary and its inputs; None where these are not known."""

    summary: Summary
    made_from: Mapping[str, Any] | None


def write(runs: Sequence[str], table: str, record: str) -> list[Summary]:
    """Writes the runs' table in Markdown, and their records in JSON.

    Args:
      runs: as `collect` takes them; `record` itself may be one.
      table: the Markdown file.
      record: the JSON file.

    Returns:
      The summaries, in the order of the table.

    Raises:
      UserError: as of `collect`, or a file cannot be written.
    """
    entries = _collect(runs)
    summaries = [entry.summary for entry in entries]
    lines = ",\n".join(json.dumps(_as_json(entry), allow_nan=False) for entry in entries)
    for path, text in ((table, markdown(summaries)), (record, f"[\n{lines}\n]\n")):
        try:
            pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
            files.write(path, text.encode())
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None
    return summaries


def collect(runs: Sequence[str]) -> list[Summary]:
    """Collects the runs' summaries, in the paper's order.

    They are sorted by data set, method and rule.

    Other bags of the same name, such as a benchmark's and one's own, get `NAME-` and 8 digits of their
    digests as their data set. A warning tells of summaries that were written before there were digests.

    Args:
      runs: workdirs of `python -m lossattn_jax.mil`, or JSON files that `write` wrote.

    Raises:
      UserError: a run has no summary, a file is none of ours or damaged, or the same method, data set and
        rule is there twice.
    """
    return [entry.summary for entry in _collect(runs)]


def _collect(runs: Sequence[str]) -> list[_Entry]:
    pairs: list[tuple[str, _Entry]] = []
    for run in runs:
        entries = _of_run(pathlib.Path(run))
        if not entries:
            raise UserError(f"{run} has no {SUMMARY_NAME}; it is not a workdir of lossattn_jax.mil")
        pairs += [(run, entry) for entry in entries]
    names = _names([entry for _, entry in pairs])
    by_key: dict[tuple[str, str, str], _Entry] = {}
    for (run, entry), name in zip(pairs, names, strict=True):
        summary = dataclasses.replace(entry.summary, dataset=name)
        key = (name, summary.method, summary.rule)
        if key in by_key:
            raise UserError(
                f"{run} has {summary.method} on {name} under the rule {summary.rule}, which another run "
                "has too"
            )
        by_key[key] = dataclasses.replace(entry, summary=summary)
    rules = list(RULES)
    order = _methods([entry.summary for entry in by_key.values()])
    datasets = _datasets([entry.summary for entry in by_key.values()])
    return [
        by_key[key]
        for key in sorted(
            by_key, key=lambda k: (datasets.index(k[0]), order.index(k[1]), rules.index(k[2]))
        )
    ]


def _names(entries: Sequence[_Entry]) -> list[str]:
    """Names the entries' data sets, different bags differently.

    Bags that are not known are others than those that are known where only one of them are a benchmark's.
    """
    bags_by_name = [
        (entry.summary.dataset, (entry.made_from or {}).get("bags")) for entry in entries
    ]
    bags_of: dict[str, set[str]] = collections.defaultdict(set)
    benchmarks_of: dict[str, set[str | None]] = collections.defaultdict(set)
    for entry, (name, bags) in zip(entries, bags_by_name, strict=True):
        benchmarks_of[name].add(entry.summary.benchmark)
        if bags is not None:
            bags_of[name].add(bags)
    ambiguous = {name for name in bags_of if max(len(bags_of[name]), len(benchmarks_of[name])) > 1}
    return [
        f"{name}-{bags[:8]}" if bags is not None and name in ambiguous else name
        for name, bags in bags_by_name
    ]


def markdown(summaries: Sequence[Summary]) -> str:
    """Formats tables for each rule, and differences from the paper.

    A table has a row for each method and a column for each data set. Baselines of the package that the paper
    has not are in a table of their own, and so are areas of out-of-fold predictions, where any are known.
    """
    parts = []
    for rule, meaning in RULES.items():
        own = [summary for summary in summaries if summary.rule == rule]
        if own:
            parts += [f"## Rule `{rule}`: {meaning}\n", *_tables(own), *_areas(own)]
            parts.append(_differences(own, summaries))
    return "\n".join(parts)


def _as_json(entry: _Entry) -> dict[str, Any]:
    content = report.as_record(entry.summary)
    if entry.summary.out_of_fold:
        content[_OUT_OF_FOLD] = _shorten(entry.summary.out_of_fold)
    # A record without a digest gets none now, which would vouch for what nobody checked.
    if entry.made_from is None:
        return {**content, AUC_ROUNDED: True}
    return records.complete(content, entry.made_from)


def _shorten(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves repeats and classes of metrics to their own file."""
    return {
        "bootstrap": metrics["bootstrap"],
        "metrics": {
            name: {key: metric[key] for key in ("value", "undefined", "interval", "left_out")}
            for name, metric in metrics["metrics"].items()
        },
    }


def _of_run(path: pathlib.Path) -> list[_Entry]:
    try:
        if path.is_dir():
            _warn_of_missing(path)
            entries = [_of_folder(file.parent) for file in sorted(path.rglob(SUMMARY_NAME))]
        else:
            there = [
                records.from_json(value, f"a summary in {path}")
                for value in json.loads(files.read(path))
            ]
            entries = [_Entry(report.from_record(one.content), one.made_from) for one in there]
    except records.DamagedRecord as error:
        raise UserError(
            f"{error}, so that its numbers cannot be relied on; run lossattn_jax.mil again, which makes it "
            "again"
        ) from None
    except FileNotFoundError:
        raise UserError(f"the run {path} does not exist") from None
    except OSError as error:
        raise UserError(f"the run {path} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} holds a summary that cannot be read ({error!r})") from None
    old = sum(entry.made_from is None for entry in entries)
    if old:
        log.warning(
            "%s has %d of %d summaries from before there were digests: whether they are as they were "
            "written, and of which data, is not known, and their AUC is of rounded probabilities",
            path,
            old,
            len(entries),
        )
    return entries


def _of_folder(folder: pathlib.Path) -> _Entry:
    """Reads a summary, with the metrics beside it where they are of the same folds."""
    record = records.read(folder / SUMMARY_NAME)
    entry = _Entry(report.from_record(record.content), record.made_from)
    try:
        metrics = records.read(folder / METRICS_NAME)
    except FileNotFoundError:
        return entry  # of a release before there were any
    except records.DamagedRecord as error:
        log.warning(
            "warning: %s; the table has no intervals of it: run lossattn_jax.mil again, which makes it again",
            error,
        )
        return entry
    own, others = entry.made_from or {}, metrics.made_from or {}
    if not own or any(others.get(key) != value for key, value in own.items()):
        log.warning(
            "warning: %s is of other folds than %s beside it; the table has no intervals of it: run "
            "lossattn_jax.mil again, which makes it again",
            folder / METRICS_NAME,
            SUMMARY_NAME,
        )
        return entry
    summary = dataclasses.replace(entry.summary, out_of_fold=metrics.content)
    return dataclasses.replace(entry, summary=summary)


def _warn_of_missing(workdir: pathlib.Path) -> None:
    """Warns of folders with folds, but without a summary."""
    folders = sorted({path.parent for path in workdir.rglob("repeat*_fold*.json")})
    for folder in folders:
        if not (folder / SUMMARY_NAME).exists():
            log.warning(
                "warning: %s has folds, but no %s: it is not in the table; run lossattn_jax.mil again, which "
                "makes it",
                folder,
                SUMMARY_NAME,
            )


def _datasets(summaries: Sequence[Summary]) -> list[str]:
    """Sorts data sets: the paper's first, then others by name.

    Numbers in names are sorted by size.
    """
    benchmark = {summary.dataset: summary.benchmark for summary in summaries}

    def place(name: str) -> tuple[int, list[Any]]:
        own = benchmark[name]
        rank = (
            methods.PAPER_BENCHMARKS.index(own)
            if own in methods.PAPER_BENCHMARKS
            else len(methods.PAPER_BENCHMARKS)
        )
        parts = _digits_or_text(name)
        return rank, [(not p.isdigit(), int(p) if p.isdigit() else p) for p in parts]

    return sorted(benchmark, key=place)


def _methods(summaries: Sequence[Summary]) -> list[str]:
    """Sorts methods: the paper's first, then a user's own by name."""
    order = list(methods.METHODS)
    return sorted(
        {summary.method for summary in summaries},
        key=lambda name: (order.index(name) if name in order else len(order), name),
    )


def _tables(summaries: Sequence[Summary]) -> list[str]:
    """The paper's rows, and those of the user's own, and behind them the baselines of others."""
    later = [name for name in methods.METHODS if name not in methods.PAPER_NAMES]
    rows = [summary for summary in summaries if summary.method not in later]
    others = [summary for summary in summaries if summary.method in later]
    return [
        *([_table(rows)] if rows else []),
        *(["Baselines that are no rows of the paper:\n", _table(others)] if others else []),
    ]


def _table(summaries: Sequence[Summary]) -> str:
    datasets = _datasets(summaries)
    benchmark = {summary.dataset: summary.benchmark for summary in summaries}
    cells = {(summary.method, summary.dataset): summary for summary in summaries}
    lines = [
        f"| method | {' | '.join(for_markdown(name.upper()) for name in datasets)} |",
        f"| --- |{' --- |' * len(datasets)}",
    ]
    for name in _methods(summaries):
        row = [cells.get((name, dataset)) for dataset in datasets]
        if any(row):
            title = next(cell.title for cell in row if cell)
            owners = [benchmark[dataset] for dataset in datasets]
            paper_accuracies = [
                _paper_accuracy(name, *pair) for pair in zip(row, owners, strict=True)
            ]
            texts = [
                _cell(cell, paper, owner is not None)
                for cell, paper, owner in zip(row, paper_accuracies, owners, strict=True)
            ]
            lines.append(f"| {for_markdown(title)} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def _areas(summaries: Sequence[Summary]) -> list[str]:
    """Formats the areas under the ROC curve of out-of-fold predictions, with intervals."""
    known = [summary for summary in summaries if summary.out_of_fold]
    if not known:
        return []
    datasets = _datasets(known)
    cells = {(one.method, one.dataset): one for one in known}
    drawn = " or ".join(sorted({one.out_of_fold["bootstrap"]["of"] for one in known}))
    lines = [
        f"AUROC of out-of-fold predictions, mean over repeats (95 % interval of a bootstrap over {drawn}):\n",
        f"| method | {' | '.join(for_markdown(name.upper()) for name in datasets)} |",
        f"| --- |{' --- |' * len(datasets)}",
    ]
    for name in _methods(known):
        row = [cells.get((name, dataset)) for dataset in datasets]
        title = next(cell.title for cell in row if cell)
        metrics = [None if one is None else one.out_of_fold["metrics"]["auroc"] for one in row]
        texts = ["-" if metric is None else report.with_interval(metric) for metric in metrics]
        lines.append(f"| {for_markdown(title)} | {' | '.join(texts)} |")
    return ["\n".join(lines) + "\n"]


def _paper_accuracy(method: str, summary: Summary | None, benchmark: str | None) -> float | None:
    """Looks up the paper's accuracy.

    Of a method on a benchmark; of a user's method what its summary has.
    """
    if benchmark is not None and method in methods.METHODS:
        return methods.METHODS[method].paper_accuracy(benchmark)
    return None if summary is None else summary.paper


def _cell(summary: Summary | None, paper: float | None, in_paper: bool) -> str:
    """Formats our accuracy, and the paper's where it has one."""
    ours = "-"
    if summary is not None and not math.isnan(summary.accuracy):
        ours = f"{summary.accuracy:.3f} ({report.as_text(summary.over_repeats)})"
    return f"{ours} / {report.as_text(paper)}" if in_paper else ours


def _differences(own: Sequence[Summary], everything: Sequence[Summary]) -> str:
    """Lists cells far from the paper's, with other rules' results.

    Far is more than `ERRORS` standard errors.

    Of the optimistic rule only how many there are: it is not what the others are to be held against.
    """
    far = [summary for summary in own if _is_far(summary)]
    above = sum(_gap(summary) > 0 for summary in far)
    heading = (
        f"Cells further than {ERRORS:g} standard errors from the paper: {len(far)}, "
        f"{above} of them above.\n"
    )
    if not far or own[0].rule == BEST_TEST:
        return heading
    return "\n".join([heading, *(_sentence(summary, everything) for summary in far)]) + "\n"


def _sentence(summary: Summary, everything: Sequence[Summary]) -> str:
    others = [
        f"{report.as_text(other.accuracy)} under `{other.rule}`"
        + (" (optimistic)" * (other.rule == BEST_TEST))
        for other in everything
        if (other.dataset, other.method) == (summary.dataset, summary.method)
        and other.rule != summary.rule
    ]
    dataset = for_markdown(summary.dataset.upper())
    return (
        f"- {for_markdown(summary.title)} on {dataset}: {_gap(summary):+.3f}, "
        f"{summary.accuracy:.3f} with a standard error of {summary.standard_error:.3f}"
        f"{''.join('; ' + other for other in others)}."
    )


def _gap(summary: Summary) -> float:
    """Ours minus the paper's; NaN where it has none."""
    return math.nan if summary.paper is None else summary.accuracy - summary.paper


def _is_far(summary: Summary) -> bool:
    return abs(_gap(summary)) > ERRORS * summary.standard_error

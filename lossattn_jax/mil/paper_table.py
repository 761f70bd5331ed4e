"""Summaries of many runs in the layout of the AAAI 2020 paper's Table 1, beside the paper's numbers."""

import json
import math
import pathlib
import re
from collections.abc import Sequence

from lossattn_jax.errors import UserError
from lossattn_jax.mil import methods, report
from lossattn_jax.mil.experiment import SUMMARY_NAME
from lossattn_jax.mil.report import Summary
from lossattn_jax.mil.selection import BEST_TEST, RULES

# Standard errors by which an accuracy has to differ from the paper's to be listed.
ERRORS = 2.0

_digits_or_text = re.compile(r"\d+|\D+").findall


def write(runs: Sequence[str], table: str, record: str) -> list[Summary]:
    """Writes the table of some runs as Markdown and their records as one JSON list.

    Args:
      runs: as `collect` takes them; `record` itself may be one.
      table: the Markdown file.
      record: the JSON file.

    Returns:
      The summaries, in the order of the table.

    Raises:
      UserError: as of `collect`, or a file cannot be written.
    """
    summaries = collect(runs)
    lines = ",\n".join(json.dumps(report.as_record(summary)) for summary in summaries)
    for path, text in ((table, markdown(summaries)), (record, f"[\n{lines}\n]\n")):
        try:
            pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
            pathlib.Path(path).write_text(text)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None
    return summaries


def collect(runs: Sequence[str]) -> list[Summary]:
    """The summaries of some runs, sorted by data set, method and rule as the paper has them.

    Args:
      runs: workdirs of `python -m lossattn_jax.mil`, or JSON files that `write` wrote.

    Raises:
      UserError: a run has no summary, a file is none of ours, or the same method, data set and rule is
        there twice.
    """
    found: dict[tuple[str, str, str], Summary] = {}
    for run in runs:
        summaries = _of_run(pathlib.Path(run))
        if not summaries:
            raise UserError(f"{run} has no {SUMMARY_NAME}; it is not a workdir of lossattn_jax.mil")
        for summary in summaries:
            key = (summary.dataset, summary.method, summary.rule)
            if key in found:
                raise UserError(
                    f"{run} has {summary.method} on {summary.dataset} under the rule {summary.rule}, "
                    "which another run has too"
                )
            found[key] = summary
    names, rules = list(methods.NAMES), list(RULES)
    datasets = _datasets(list(found.values()))
    return sorted(
        found.values(),
        key=lambda s: (datasets.index(s.dataset), names.index(s.method), rules.index(s.rule)),
    )


def markdown(summaries: Sequence[Summary]) -> str:
    """For each rule a table with a row for each method and a column for each data set, and what differs."""
    parts = []
    for rule, meaning in RULES.items():
        own = [summary for summary in summaries if summary.rule == rule]
        if own:
            parts += [f"## Rule `{rule}`: {meaning}\n", _table(own), _differences(own, summaries)]
    return "\n".join(parts)


def _of_run(path: pathlib.Path) -> list[Summary]:
    try:
        if path.is_dir():
            records = [json.loads(file.read_text()) for file in sorted(path.rglob(SUMMARY_NAME))]
        else:
            records = json.loads(path.read_text())
        return [report.from_record(record) for record in records]
    except FileNotFoundError:
        raise UserError(f"the run {path} does not exist") from None
    except OSError as error:
        raise UserError(f"the run {path} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} holds a summary that cannot be read ({error!r})") from None


def _datasets(summaries: Sequence[Summary]) -> list[str]:
    """The paper's data sets in its order, and others behind them by name, numbers in it by size."""
    there = {summary.dataset for summary in summaries}
    others = sorted(
        there - set(methods.DATASETS),
        key=lambda name: [
            (not p.isdigit(), int(p) if p.isdigit() else p) for p in _digits_or_text(name)
        ],
    )
    return [name for name in methods.DATASETS if name in there] + others


def _table(summaries: Sequence[Summary]) -> str:
    datasets = _datasets(summaries)
    cells = {(summary.method, summary.dataset): summary for summary in summaries}
    lines = [
        f"| method | {' | '.join(name.upper() for name in datasets)} |",
        f"| --- |{' --- |' * len(datasets)}",
    ]
    for name in methods.NAMES:
        row = [cells.get((name, dataset)) for dataset in datasets]
        if any(row):
            printed = [methods.get(name).printed(dataset) for dataset in datasets]
            texts = [
                _cell(cell, paper, dataset in methods.DATASETS)
                for cell, paper, dataset in zip(row, printed, datasets, strict=True)
            ]
            lines.append(f"| {methods.get(name).title} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def _cell(summary: Summary | None, paper: float | None, in_paper: bool) -> str:
    """Ours (standard deviation over repeats) / the paper's, or ours alone of a data set not in the paper."""
    ours = "-" if summary is None else f"{summary.accuracy:.3f} ({summary.over_repeats:.3f})"
    if not in_paper:
        return ours
    return f"{ours} / {'-' if paper is None else f'{paper:.3f}'}"


def _differences(own: Sequence[Summary], everything: Sequence[Summary]) -> str:
    """What is further from the paper than `ERRORS` standard errors, and what other rules gave there.

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
        f"{other.accuracy:.3f} under `{other.rule}`" + (" (optimistic)" * (other.rule == BEST_TEST))
        for other in everything
        if (other.dataset, other.method) == (summary.dataset, summary.method)
        and other.rule != summary.rule
    ]
    return (
        f"- {methods.get(summary.method).title} on {summary.dataset.upper()}: {_gap(summary):+.3f}, "
        f"{summary.accuracy:.3f} with a standard error of {summary.standard_error:.3f}"
        f"{''.join('; ' + other for other in others)}."
    )


def _gap(summary: Summary) -> float:
    """Ours minus the paper's; NaN where it has none."""
    paper = methods.get(summary.method).printed(summary.dataset)
    return math.nan if paper is None else summary.accuracy - paper


def _is_far(summary: Summary) -> bool:
    return abs(_gap(summary)) > ERRORS * summary.standard_error

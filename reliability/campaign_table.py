"""Puts the table of `campaign` into a Markdown file.

It stands between two lines that the file has for it.

    python -m reliability.campaign_table --record=results/reliability/campaign.json \\
        --file=results/reliability/README.md
"""

import collections
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from absl import flags

from lossattn_jax import files
from lossattn_jax.commands import command
from lossattn_jax.errors import UserError
from reliability import outcomes
from reliability.subject import Subject
from reliability.trials import Trial

BEGIN, END = "<!-- campaign -->", "<!-- end of campaign -->"


def rows_of(trials: Iterable[tuple[Subject, Trial]]) -> list[dict[str, Any]]:
    """Counts the outcomes of each command and kind."""
    counters: dict[tuple[str, str], collections.Counter[str]] = {}
    for subject, trial in trials:
        key = (subject.command, trial.kind)
        counters.setdefault(key, collections.Counter())[trial.outcome] += 1
    return [
        {
            "command": name,
            "kind": kind,
            "tried": counter.total(),
            "survived": sum(counter[outcome] for outcome in outcomes.GOOD),
            "silently_wrong": counter[outcomes.WRONG],
            "outcomes": dict(sorted(counter.items())),
        }
        for (name, kind), counter in counters.items()
    ]


def markdown(record: Mapping[str, Any]) -> str:
    """The table of a record, for people."""
    columns = ("tried", "survived", "silently_wrong")
    lines = [
        "| command | kind | tried | survived | silently wrong |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in record["table"]:
        numbers = " | ".join(str(row[name]) for name in columns)
        lines.append(f"| {row['command']} | {row['kind']} | {numbers} |")
    totals = " | ".join(str(sum(row[name] for row in record["table"])) for name in columns)
    return "\n".join([*lines, f"| all | | {totals} |", ""])


def section(record: Mapping[str, Any]) -> str:
    """The text on a record: origin, table, and what was not tried."""
    cpu, cores = record["machine"]["cpu"], record["machine"]["cores"]
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    load = record["machine"]["load_before"]
    lines = [
        f"    {record['command']}",
        "",
        f"{record['date'][:10]}, commit {record['commit']}, {cores} cores of {cpu}, load {load:.1f} before; "
        f"{packages}; {record['seconds'] / 60:.0f} minutes.",
        "",
        markdown(record),
        "Not tried:",
        "",
    ]
    for each in record["out_of_scope"]:
        lines.append(
            f"- {each['command']}, `{each['files']}` {', '.join(each['ways'])}: {each['why']}"
        )
    lines += [f"- not possible there: {line}" for line in record["not_possible_here"]]
    return "\n".join(lines) + "\n"


def fill(file: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Replaces what a Markdown file has between `BEGIN` and `END`.

    Raises:
      UserError: it cannot be read or written, or does not have these lines.
    """
    try:
        before, begin, rest = file.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise UserError(f"{file} has no lines {BEGIN} and {END}")
        files.write(file, f"{before}{begin}\n\n{section(record)}\n{end}{after}".encode())
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from None


def main() -> None:
    """The command; see the flags."""
    path = pathlib.Path(flags.FLAGS.record)
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    fill(pathlib.Path(flags.FLAGS.file), record)


if __name__ == "__main__":
    flags.DEFINE_string("record", None, "what campaign wrote (JSON)", required=True)
    flags.DEFINE_string("file", None, "Markdown file to fill", required=True)
    command.run(main)

"""Methods for bags on one data set, each in a process of its own.

    python -m benchmarks.bag_methods --data_dir=data --minutes=20 --workdir=runs/methods \\
        --overrides=config.train.epochs=40,config.optimizer.learning_rate=5e-4 \\
        --out=results/mil/digit_slides.json --table=results/mil/digit_slides.md

A method is cross-validated by `lossattn mil cv` under the rule `final`, and its process measured from its
start to its end: wall time, processor time, largest memory. Metrics are those of `metrics.json`, with their
intervals. A method that is refused, or takes longer than `--minutes`, has the reason in the place of
numbers. The same command goes on where it was stopped.
"""

import dataclasses
import logging
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from benchmarks import flag_values, machine
from lossattn_jax.commands import command
from lossattn_jax.files import records
from lossattn_jax.mil import methods, report
from lossattn_jax.mil.metric_files import METRICS_NAME

# Below the package's logger, which is the one that commands show.
log = logging.getLogger("lossattn_jax.benchmarks")

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scikit-learn")
AREA = "auroc"
_INSTANCES = ("bag_auc", "pointing")
_KILLED = -9


@dataclasses.dataclass(frozen=True)
class Measured:
    """A process that has ended.

    Attributes:
      code: exit code; negative: the signal that ended it.
      seconds, cpu_seconds: from its start to its end.
      peak_bytes: largest resident memory, and that of the process which starts it at least.
      last_line: of stderr.
    """

    code: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    last_line: str


def run(
    dataset: str,
    method: Sequence[str],
    workdir: str,
    out: str,
    *,
    data_dir: str = "data",
    folds: int = 2,
    repeats: int = 5,
    minutes: float = 20.0,
    overrides: Sequence[str] = (),
    table: str | None = None,
) -> dict[str, Any]:
    """Measures methods one after the other; the record is written after each.

    Args:
      dataset: as of `lossattn mil cv`.
      method: names, or "all" or "paper".
      workdir: folder for a workdir of each method.
      out: JSON file for the results. Methods that it has of the same inputs are not run again.
      data_dir: folder of the data set.
      folds, repeats: of the cross-validation; the repeats are the seeds.
      minutes: that a method may take.
      overrides: of the config, `config.KEY=VALUE`.
      table: Markdown file for the table; None: it is printed only.

    Raises:
      UserError: an unknown method, or a file cannot be written.
    """
    path = machine.prepare(out)
    names = methods.expand_names(method)
    for name in names:
        methods.get(name)  # which refuses an unknown one
    inputs = {
        "dataset": dataset,
        "folds": folds,
        "repeats": repeats,
        "minutes": minutes,
        "overrides": list(overrides),
    }
    record = _earlier(path, inputs) or {
        **machine.header("benchmarks.bag_methods", PACKAGES),
        "commit": machine.commit(),
        "inputs": inputs,
        "methods": {},
    }
    shared: tuple[str, ...] = (f"--dataset={dataset}", f"--data_dir={data_dir}", f"--folds={folds}")
    shared += (f"--repeats={repeats}", *(f"--{override}" for override in overrides))
    for name in names:
        if name in record["methods"]:
            continue
        own = pathlib.Path(workdir, name)
        log.info("%s", name)
        flags_of = (*shared, f"--method={name}", f"--workdir={own}")
        row = describe(measure(("-m", "lossattn_jax.mil", *flags_of), 60 * minutes), own, minutes)
        record["methods"][name] = row
        machine.write(record, path)
    text = markdown(record["methods"])
    if table is not None:
        pathlib.Path(table).write_text(text)
    print(text, end="")
    return record


def measure(arguments: Sequence[str], seconds: float) -> Measured:
    """Runs Python with arguments, and measures its process.

    Args:
      arguments: of Python.
      seconds: after which it is killed.
    """
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    last = ""
    assert process.stderr is not None
    with process.stderr as lines:
        for line in lines:
            last = line.strip() or last
    _, status, usage = os.wait4(process.pid, 0)
    timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    return Measured(
        process.returncode,
        time.monotonic() - began,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024,
        last,
    )


def describe(process: Measured, workdir: pathlib.Path, minutes: float) -> dict[str, Any]:
    """Describes a method's run: measurements, and metrics or why there are none.

    Args:
      process: of its cross-validation.
      workdir: of the same.
      minutes: that it might have taken.
    """
    row = dataclasses.asdict(process)
    del row["last_line"]
    if process.code:
        killed = process.code == _KILLED
        row["reason"] = f"not done in {minutes:g} minutes" if killed else process.last_line
        return row
    (path,) = workdir.rglob(METRICS_NAME)
    content = records.read(path).content
    row["metrics"] = {
        name: {key: metric[key] for key in ("value", "interval", "per_repeat")}
        for name, metric in content["metrics"].items()
    }
    row["bootstrap"] = content["bootstrap"]
    row["instances"] = content["instances"] and content["instances"]["over_repeats"]
    return row


def markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats a table with a row for each method.

    Args:
      rows: what `describe` gives, by method.
    """
    lines = [
        "| method | AUROC (95 % interval) | accuracy | AUROC of instances | pointing | wall time | "
        "processor time | memory |",
        f"|{' --- |' * 8}",
    ]
    for name, row in rows.items():
        cells = [methods.get(name).title, *_cells(row)]
        cells += [f"{row['seconds']:.0f} s", f"{row['cpu_seconds']:.0f} s"]
        cells.append(f"{row['peak_bytes'] / 2**30:.2f} GiB")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    if "reason" in row:
        return [row["reason"].replace("|", "/"), "-", "-", "-"]
    area, accuracy = row["metrics"][AREA], row["metrics"]["accuracy"]
    instances = row["instances"] or {}
    ranks = [instances.get(name, {}).get("mean") for name in _INSTANCES]
    return [
        report.with_interval(area),
        report.as_text(accuracy["value"]),
        *map(report.as_text, ranks),
    ]


def _earlier(path: pathlib.Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of an earlier call with the same inputs; None where there is none."""
    try:
        record = records.read(path).content
    except (FileNotFoundError, records.DamagedRecord):
        return None
    return record if record.get("inputs") == inputs else None


def main() -> None:
    """The command; see the flags."""
    run(**flag_values.arguments(run))


if __name__ == "__main__":
    flags.DEFINE_string("dataset", "digit_slides", "as of lossattn mil cv")
    flags.DEFINE_list("method", [methods.ALL], "names, all or paper")
    flags.DEFINE_string("workdir", None, "folder for a workdir of each method", required=True)
    flags.DEFINE_string("out", None, "file for the results (JSON)", required=True)
    flags.DEFINE_string("table", None, "Markdown file for the table")
    flags.DEFINE_string("data_dir", "data", "folder of the data set")
    flags.DEFINE_integer("folds", 2, "of the cross-validation", lower_bound=2)
    flags.DEFINE_integer("repeats", 5, "of the cross-validation, its seeds", lower_bound=1)
    flags.DEFINE_float("minutes", 20.0, "that a method may take", lower_bound=0.01)
    flags.DEFINE_list("overrides", [], "of the config, config.KEY=VALUE")
    command.run(main)

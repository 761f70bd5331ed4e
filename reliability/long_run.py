"""A training of thousands of epochs, in which nothing may grow.

    python -m reliability.long_run --data_dir=data --out=results/reliability/long_run.json

The data folder holds a digit_scenes of any size. The same run is made twice by the real command: in one
process, and in many, each ended by SIGTERM (every fifth by SIGKILL) and followed by the same command. What
the processes hold and write is sampled from outside: memory, descriptors, threads, mappings, and the
bytes of the workdir. In the end both have to have the same bits and the same metrics.
"""

import logging
import pathlib
import random
import signal
import tempfile
import time
from typing import Any

from absl import flags

from benchmarks import flag_values, machine
from lossattn_jax.commands import command
from lossattn_jax.errors import UserError
from lossattn_jax.train.images import reporting
from reliability import process_watch, run_growth, small_training

log = logging.getLogger("lossattn_jax.reliability")

PACKAGES = (*small_training.PACKAGES, "numpy", "tensorboardX", "matplotlib")
EVERY = 10  # epochs between two tests, and between two checkpoints
OVERRIDES: dict[str, Any] = {
    **small_training.OVERRIDES,
    "eval.batch_size": 60,
    "eval.every_epochs": EVERY,
    "checkpoint.every_epochs": EVERY,
    "log.every_steps": 6,
    "log.pictures": 2,
}
# Epochs of a process that are left out: of levels, and of slopes, which take so many that only a long
# stretch has them.
_FIRST_TESTS, _WARM, _STRETCH = 2 * EVERY, 10 * EVERY, 50 * EVERY
_LONG = 1 / 3  # of the epochs, in one process in the middle
_SAMPLE_SECONDS = 0.5
_LOOK_SECONDS = 0.02
_KEPT_LONG, _KEPT_SHORT = 100, 5  # samples of a process in the record


def ends(epochs: int, resumes: int, seed: int) -> list[tuple[float, signal.Signals]]:
    """Draws where a run is ended, and by which signal.

    At random places of equal stretches, around one long stretch.

    Args:
      epochs: of the run.
      resumes: so many times.
      seed: of the places.

    Returns:
      Epoch and signal, rising.
    """
    draw = random.Random(seed)
    short = epochs * (1 - _LONG) / max(1, resumes)
    plan = []
    for number in range(resumes):
        stretches = (number + 1) * short + (epochs * _LONG if number >= resumes // 2 else 0)
        how = signal.SIGKILL if number % 5 == 4 else signal.SIGTERM
        plan.append((stretches - draw.uniform(0.1, 0.6) * short, how))
    return plan


class Run:
    """A run in a workdir, by one process after the other."""

    def __init__(self, workdir: pathlib.Path, data_dir: str, epochs: int):
        """Plans it.

        Args:
          workdir: of the run.
          data_dir: holds a digit_scenes.
          epochs: of the run.
        """
        self.overrides = {**OVERRIDES, "train.epochs": epochs}
        self.workdir = workdir
        self.samples: list[run_growth.Sample] = []
        self.processes: list[dict[str, Any]] = []
        self._data_dir = data_dir

    def process(self, until: float = float("inf"), how: signal.Signals | None = None) -> None:
        """Runs the command once.

        Args:
          until: epoch at which it is ended.
          how: by what; None: by itself.

        Raises:
          UserError: it ends otherwise than it has to.
        """
        number = len(self.processes)
        log_file = self.workdir.with_name(f"{self.workdir.name}_{number}.log")
        training = small_training.Training(self.workdir, self._data_dir, log_file, self.overrides)
        samples = _watch(training, until)
        if how is not None:
            if not training.runs():
                raise UserError(
                    f"a training ended before epoch {until}: {training.end().last_line}"
                )
            training.send(how)
        sent_at = time.monotonic()
        end = training.end()
        exit_seconds = time.monotonic() - sent_at
        if end.returncode != (-signal.SIGKILL if how == signal.SIGKILL else 0):
            raise UserError(f"a training ended with {end.returncode}: {end.last_line}")
        self.samples += samples
        span = samples[-1]["epoch"] - min(sample["epoch"] for sample in samples)
        long = span >= _STRETCH
        self.processes.append(
            {
                "ended_by": how.name if how else "itself",
                "until_epoch": samples[-1]["epoch"],
                "seconds": samples[-1]["seconds"],
                "seconds_until_exit": exit_seconds if how else None,
                **small_training.facts(end),
                "levels": run_growth.levels(run_growth.drop_start(samples, _FIRST_TESTS)),
                "slopes": run_growth.slopes(run_growth.drop_start(samples, _WARM))
                if long
                else None,
                "samples": run_growth.thin_out(samples, _KEPT_LONG if long else _KEPT_SHORT),
            }
        )
        log.info(
            "%s: process %d ended at epoch %.0f", self.workdir.name, number, samples[-1]["epoch"]
        )


def _watch(training: small_training.Training, until: float) -> list[run_growth.Sample]:
    """Samples a process until its end, or up to an epoch."""
    samples: list[run_growth.Sample] = []
    due = time.monotonic()
    while training.runs():
        epoch = process_watch.last_epoch(training.workdir)
        now = time.monotonic()
        if now >= due and (sizes := process_watch.measure_process(training.pid)) is not None:
            place = {"seconds": now - training.start_time, "epoch": epoch}
            samples.append(place | sizes | process_watch.measure_workdir(training.workdir))
            due = now + _SAMPLE_SECONDS
        if epoch >= until:
            break
        time.sleep(_LOOK_SECONDS)
    return samples


def run(out: str, data_dir: str, epochs: int, resumes: int, seed: int = 0) -> dict[str, Any]:
    """Makes both runs, and writes and prints the results.

    Args:
      out: JSON file for the results.
      data_dir: folder of the data sets.
      epochs: of the run.
      resumes: how many times one of the two is ended before.
      seed: of the places where.

    Raises:
      UserError: a training ends otherwise than it has to, or the file cannot be written.
    """
    path = machine.prepare(out)
    record = machine.header("reliability.long_run", PACKAGES)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        whole, parts = (
            Run(pathlib.Path(name) / kind, data_dir, epochs) for kind in ("whole", "parts")
        )
        whole.process()
        for place, how in ends(epochs, resumes, seed):
            parts.process(place, how)
        parts.process()
        results = {kind: _judge(each) for kind, each in (("whole", whole), ("parts", parts))}
        same = {
            "bits": results["whole"].pop("bits") == results["parts"].pop("bits"),
            "tests": run_growth.tests(whole.workdir) == run_growth.tests(parts.workdir),
        }
    record |= {
        "seconds": time.monotonic() - start,
        "overrides": whole.overrides,
        "summary": summary(whole, parts, results, same),
        "same": same,
        "whole": {**results["whole"], "processes": whole.processes},
        "parts": {**results["parts"], "processes": parts.processes},
    }
    machine.write(record, path)
    for what, value in record["summary"].items():
        print(f"{what}: {value}")
    log.info("results: %s", path)
    return record


def _judge(run: Run) -> dict[str, Any]:
    """What is left of a run."""
    bits = small_training.bits(run.workdir)
    total = int(bits["step"])
    return {
        "bits": bits,
        "steps": total,
        "metrics_whole": small_training.metrics_are_whole(run.workdir, run.overrides, total),
        "metrics_lines": len(reporting.read_metrics(run.workdir)),
        "tensorboard": run_growth.events(run.workdir),
        "workdir": run_growth.workdir(run.samples),
    }


def summary(
    whole: Run, parts: Run, results: dict[str, dict[str, Any]], same: dict[str, bool]
) -> dict[str, Any]:
    """What it came to, in short.

    Args:
      whole: the run of one process.
      parts: the run of many.
      results: what is left of them.
      same: what of both is the same.
    """
    lines: dict[str, Any] = {
        "processes": len(parts.processes),
        "ended by SIGTERM": sum(p["ended_by"] == "SIGTERM" for p in parts.processes),
        "ended by SIGKILL": sum(p["ended_by"] == "SIGKILL" for p in parts.processes),
        "same bits": same["bits"],
        "same tests": same["tests"],
        "tracebacks": sum(p["traceback"] for p in (*whole.processes, *parts.processes)),
    }
    for kind, run in (("whole", whole), ("parts", parts)):
        for each in run.processes:
            for name, slope in (each["slopes"] or {}).items():
                unit = "MB" if name in run_growth.MEMORY else "each"
                what = f"{kind}, until epoch {each['until_epoch']:.0f}, {name} in 1,000 epochs"
                lines[what] = run_growth.in_words(slope, unit)
    for name in ("anonymous", "descriptors", "threads", "mappings"):
        medians = [each["levels"][name][1] for each in parts.processes if each["levels"]]
        if medians:
            lines[f"parts, median {name}, least and most of a process"] = [
                min(medians),
                max(medians),
            ]
    for kind, result in results.items():
        lines |= {
            f"{kind}, metrics whole": result["metrics_whole"],
            f"{kind}, TensorBoard's steps rise": result["tensorboard"]["rising"],
            f"{kind}, steps that TensorBoard lacks": result["tensorboard"]["missing"],
            **{f"{kind}, {name}": value for name, value in result["workdir"].items()},
        }
    return lines


def main() -> None:
    """The command; see the flags."""
    run(**flag_values.arguments(run))


if __name__ == "__main__":
    # Not where tests import several benchmarks, whose flags have the same names.
    flags.DEFINE_string("out", None, "file for the results (JSON)", required=True)
    flags.DEFINE_string("data_dir", "data", "folder of the data sets, with digit_scenes in it")
    flags.DEFINE_integer("epochs", 3000, "of the run", lower_bound=3)
    flags.DEFINE_integer(
        "resumes", 20, "how many times it is ended and gone on with", lower_bound=1
    )
    flags.DEFINE_integer("seed", 0, "of the places where it is ended")
    command.run(main)

"""Kills a small training, damages its checkpoints, and compares the bits.

    python -m reliability.crash_campaign --data_dir=data --out=results/reliability/crash_campaign.json

The data folder holds a digit_scenes of any size. Runs are killed by SIGKILL at random moments, a third of
them while a checkpoint is being written; after half of the kills a random file of the newest checkpoint gets
a bit flipped, is cut, or removed. Then the same command runs again. SIGTERM, full disks and second trainings
in one workdir are tried as well.
"""

import logging
import pathlib
import random
import shutil
import signal
import tempfile
import time
from typing import Any

from absl import flags

from benchmarks import flag_values, machine
from lossattn_jax.commands import command
from lossattn_jax.errors import UserError
from reliability import mounts, processes, small_training

log = logging.getLogger("lossattn_jax.reliability")

DAMAGES = (None, "bit", None, "cut", None, "bit", None, "removed")  # of `damage.WAYS`
_SIGNALS_A_RUN = 8  # after which it is left alone
_SMALLEST, _LARGEST = 60, 900  # KiB of a disk that is to be full sooner or later


class Campaign:
    """Trials of every kind, compared with the bits of an undisturbed run."""

    def __init__(self, folder: pathlib.Path, data_dir: str, seed: int):
        """Makes the undisturbed run.

        Raises:
          UserError: it fails.
        """
        self._folder = folder
        self._data_dir = data_dir
        self._draw = random.Random(seed)
        whole = folder / "whole"
        for _ in range(2):  # the second one finds its programs compiled
            shutil.rmtree(whole, ignore_errors=True)
            training = self._train(whole)
            end = training.end()
            self.seconds = time.monotonic() - training.start_time
            if end.returncode:
                raise UserError(f"the undisturbed run ended with {end.returncode}: {end.last_line}")
        self._bits = small_training.bits(whole)

    def signals(self, number: signal.Signals, count: int) -> list[dict[str, Any]]:
        """Runs until `count` signals are sent.

        SIGKILL is followed by damage as `DAMAGES` says.
        """
        runs: list[dict[str, Any]] = []
        num_sent = 0
        while num_sent < count:
            workdir = self._folder / f"{number.name}_{len(runs)}"
            events: list[dict[str, Any]] = []
            while True:
                training = self._train(workdir)
                event = None
                if num_sent < count and len(events) < _SIGNALS_A_RUN:
                    event = small_training.strike(training, number, self.seconds, self._draw)
                sent_at = time.monotonic()
                end = training.end()
                if event is None:
                    break
                event["seconds_until_exit"] = round(time.monotonic() - sent_at, 3)
                event |= small_training.facts(end)
                way = DAMAGES[num_sent % len(DAMAGES)] if number == signal.SIGKILL else None
                event["damage"] = way and small_training.damage_checkpoint(way, workdir, self._draw)
                events.append(event)
                num_sent += 1
            runs.append({"signals": events, **self._judge(workdir, end)})
            log.info("%s: %d of %d sent, %d runs", number.name, num_sent, count, len(runs))
            shutil.rmtree(workdir, ignore_errors=True)
        return runs

    def full_disks(self, count: int) -> list[dict[str, Any]] | str:
        """Runs on disks of random sizes, and on with more room.

        Says why where no such disk can be made.
        """
        results: list[dict[str, Any]] = []
        for _ in range(count):
            size = self._draw.randrange(_SMALLEST, _LARGEST)
            try:
                with mounts.disk(self._folder / "disk", size) as disk:
                    first = self._train(disk / "run").end()
                    again = self._train(disk / "run").end() if first.returncode else None
                    mounts.resize(disk, 64 * 1024)
                    last = self._train(disk / "run").end()
                    results.append(
                        {
                            "kib": size,
                            "first": small_training.facts(first),
                            "still_full": again and small_training.facts(again),
                            **self._judge(disk / "run", last),
                        }
                    )
            except mounts.CannotMount as error:
                return f"no disk of a given size could be made here: {error}"
        log.info("full disks: %d", len(results))
        return results

    def two_at_once(self, count: int) -> list[dict[str, Any]]:
        """Starts a second training of a workdir beside the first."""
        results = []
        for number in range(count):
            workdir = self._folder / f"two_{number}"
            first = self._train(workdir)
            while first.runs() and not first.says("from step"):
                time.sleep(0.02)
            second = self._train(workdir, log="second")
            end = second.end()
            results.append(
                {"second": small_training.facts(end), **self._judge(workdir, first.end())}
            )
            shutil.rmtree(workdir, ignore_errors=True)
        log.info("two at once: %d", len(results))
        return results

    def _train(self, workdir: pathlib.Path, log: str = "log") -> small_training.Training:
        return small_training.Training(workdir, self._data_dir, self._folder / log)

    def _judge(self, workdir: pathlib.Path, end: processes.End) -> dict[str, Any]:
        """The end of a run that was left alone at last."""
        whole = end.returncode == 0 and small_training.metrics_are_whole(
            workdir, small_training.OVERRIDES, int(self._bits["step"])
        )
        same = end.returncode == 0 and small_training.bits(workdir) == self._bits
        return {"last": small_training.facts(end), "same_bits": same, "metrics_whole": whole}


def run(
    out: str, data_dir: str, *, kills: int, terms: int, disks: int, pairs: int, seed: int
) -> dict[str, Any]:
    """Runs the campaign, and writes and prints the results.

    Args:
      out: JSON file for the results.
      data_dir: folder of the data sets.
      kills: SIGKILLs.
      terms: SIGTERMs.
      disks: runs on a disk that is too small.
      pairs: second trainings in one workdir.
      seed: of the moments and the damage.

    Raises:
      UserError: the undisturbed run fails, or the file cannot be written.
    """
    path = machine.prepare(out)
    record = machine.header("reliability.crash_campaign", small_training.PACKAGES)
    with tempfile.TemporaryDirectory() as name:
        campaign = Campaign(pathlib.Path(name), data_dir, seed)
        kill_runs = campaign.signals(signal.SIGKILL, kills)
        term_runs = campaign.signals(signal.SIGTERM, terms)
        full = campaign.full_disks(disks)
        two = campaign.two_at_once(pairs)
    record |= {
        "seconds_undisturbed": campaign.seconds,
        "summary": summary(kill_runs, term_runs, full, two),
        "killed": kill_runs,
        "asked_to_end": term_runs,
        "full_disks": full,
        "two_at_once": two,
    }
    machine.write(record, path)
    for what, value in record["summary"].items():
        print(f"{what}: {value}")
    log.info("results: %s", path)
    return record


def summary(
    kill_runs: list[dict[str, Any]],
    term_runs: list[dict[str, Any]],
    full: list[dict[str, Any]] | str,
    two: list[dict[str, Any]],
) -> dict[str, Any]:
    """Counts the outcomes of the trials of a `Campaign`."""
    kills = [event for run in kill_runs for event in run["signals"]]
    terms = [event for run in term_runs for event in run["signals"]]
    disks = [] if isinstance(full, str) else full
    runs = [*kill_runs, *term_runs, *disks, *two]
    starts = [*kills, *terms, *(run["last"] for run in runs)]
    warnings = [line for start in starts for line in start["warnings"]]
    too_small = [run["first"] for run in disks if run["first"]["code"]]
    return {
        "SIGKILLs": len(kills),
        "of them in the middle of a save": sum(event["saving"] for event in kills),
        "checkpoints damaged": sum(event["damage"] is not None for event in kills),
        "damaged checkpoints moved aside": sum("was moved to" in line for line in warnings),
        "runs back at the beginning": sum("from the beginning" in line for line in warnings),
        "SIGTERMs": len(terms),
        "of them ended with 0": sum(event["code"] == 0 for event in terms),
        "longest until exit (s)": max((e["seconds_until_exit"] for e in terms), default=None),
        "full disks": len(too_small),
        "of them ended with 2": sum(end["code"] == 2 for end in too_small),
        "second trainings": len(two),
        "of them refused": sum(run["second"]["code"] == 2 for run in two),
        "runs": len(runs),
        "with the bits of the undisturbed one": sum(run["same_bits"] for run in runs),
        "with whole metrics": sum(run["metrics_whole"] for run in runs),
        "tracebacks": sum(start["traceback"] for start in [*starts, *too_small]),
    }


def main() -> None:
    """The command; see the flags."""
    run(**flag_values.arguments(run))


if __name__ == "__main__":
    # Not where tests import several benchmarks, whose flags have the same names.
    flags.DEFINE_string("out", None, "file for the results (JSON)", required=True)
    flags.DEFINE_string("data_dir", "data", "folder of the data sets, with digit_scenes in it")
    flags.DEFINE_integer("kills", 100, "SIGKILLs", lower_bound=0)
    flags.DEFINE_integer("terms", 30, "SIGTERMs", lower_bound=0)
    flags.DEFINE_integer("disks", 10, "runs on a disk that is too small", lower_bound=0)
    flags.DEFINE_integer("pairs", 5, "second trainings in one workdir", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "of the moments and the damage")
    command.run(main)

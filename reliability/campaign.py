"""Kills, damages and starves every command, and judges its results.

    python -m reliability.campaign --out=results/reliability/campaign.json

Each command of `subjects` runs undisturbed first. Then it is killed and run again; each kind of its
files is damaged in ten ways and the command run that reads it or goes on with it; it runs on a disk that is
too small, twice at once, and where nothing can be written. The results have to be those of the undisturbed
run, or the command has to refuse in a sentence. A table in Markdown is printed. The exit code is 3 where a
trial did not end so.
"""

import concurrent.futures
import logging
import os
import pathlib
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from benchmarks import flag_values, machine
from lossattn_jax.commands import command
from lossattn_jax.errors import Incomplete, UserError
from reliability import campaign_table, mounts, outcomes, small_training, trials
from reliability.subject import DAMAGE, FULL, KILL, KINDS, PAIR, READ_ONLY, Subject
from reliability.subject_inputs import with_needs
from reliability.subjects import SUBJECTS
from reliability.trials import Trial
from reliability.worlds import Bench, Processes, Worker, environment, make_inputs

log = logging.getLogger("lossattn_jax.reliability")


def run(
    out: str,
    data_dir: str | None = None,
    commands: Sequence[str] = (),
    kinds: Sequence[str] = KINDS,
    *,
    kills: int = 6,
    disks: int = 3,
    pairs: int = 2,
    share: float = 1.0,
    seed: int = 0,
    jobs: int = 1,
) -> dict[str, Any]:
    """Runs the campaign, writes the results and prints the table.

    Args:
      out: JSON file for the results.
      data_dir: folder of data sets with a digit_scenes; None: a small one is made.
      commands: of `SUBJECTS`; empty for all.
      kinds: of trials.
      kills: of each command.
      disks: that are too small, for each command.
      pairs: of each command.
      share: of the ways in which a file of each kind is damaged.
      seed: of moments, files and damage.
      jobs: commands that are tried at once.

    Raises:
      UserError: a name is unknown, the inputs cannot be made, or the file cannot be written.
    """
    subjects = _choose(commands, kinds)
    path = machine.prepare(out)
    record = machine.header("reliability.campaign", small_training.PACKAGES)
    record["commit"] = machine.commit()
    began = time.monotonic()
    counts = {KILL: kills, FULL: disks, PAIR: pairs}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = pathlib.Path(name).resolve()
        variables = environment(folder / "programs")
        processes = Processes(variables)
        inputs = with_needs(name for subject in subjects for name in subject.inputs)
        make_inputs(folder / "inputs", inputs, processes, data_dir)

        def attempt(subject: Subject) -> list[Trial | str]:
            draw = random.Random(f"{seed} {subject.name}")
            worker = Worker(variables)
            place = folder / str(SUBJECTS.index(subject))
            results: list[Trial | str] = []
            try:
                own = processes if {KILL, FULL, PAIR} & set(kinds) & set(subject.kinds) else None
                bench = Bench(subject, place, folder / "inputs", own, worker)
                results.extend(_attempt_all(bench, kinds, counts, share, draw))
            except Exception as error:  # the others are tried all the same
                log.info("%s: %r", subject.name, error)
                results.append(Trial("-", "", outcomes.FAILURE, None, repr(error)))
            finally:
                worker.end()
            return results

        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            results = list(pool.map(attempt, subjects))
    by_subject = [
        (subject, trial)
        for subject, own in zip(subjects, results, strict=True)
        for trial in own
        if isinstance(trial, Trial)
    ]
    record |= {
        "seconds": round(time.monotonic() - began),
        "table": campaign_table.rows_of(by_subject),
        "damage": _outcomes_of_damage(by_subject),
        "not_survived": [
            {"command": subject.name, **trials.facts(trial)}
            for subject, trial in by_subject
            if trial.outcome not in outcomes.GOOD
        ],
        "out_of_scope": [
            {
                "command": subject.name,
                "files": unseen.pattern,
                "ways": unseen.ways,
                "why": unseen.reason,
            }
            for subject in subjects
            for unseen in subject.unseen
        ],
        "not_possible_here": [line for own in results for line in own if isinstance(line, str)],
    }
    machine.write(record, path)
    print(campaign_table.markdown(record), end="")
    log.info("results: %s", path)
    return record


def _choose(commands: Sequence[str], kinds: Sequence[str]) -> list[Subject]:
    """The subjects of commands that have trials of these kinds.

    Raises:
      UserError: a name is unknown.
    """
    commands_there = list(dict.fromkeys(subject.command for subject in SUBJECTS))
    for flag, names, choices in (("commands", commands, commands_there), ("kinds", kinds, KINDS)):
        for name in names:
            if name not in choices:
                raise UserError(f"--{flag} has {name!r}, but may have: {', '.join(choices)}")
    return [
        subject
        for subject in SUBJECTS
        if (not commands or subject.command in commands) and set(subject.kinds) & set(kinds)
    ]


def _attempt_all(
    bench: Bench,
    kinds: Sequence[str],
    counts: Mapping[str, int],
    share: float,
    draw: random.Random,
) -> Iterator[Trial | str]:
    """All trials of a subject; sentences on those not possible here."""
    makers: Mapping[str, Iterator[Trial]] = {
        KILL: trials.kill_and_rerun(bench, counts[KILL], draw),
        DAMAGE: trials.damage_files(bench, share, draw),
        FULL: trials.fill_disk(bench, counts[FULL], draw),
        PAIR: trials.run_pair(bench, counts[PAIR], draw),
        READ_ONLY: trials.forbid_writing(bench, draw),
    }
    for kind in bench.subject.kinds:
        if kind not in kinds:
            continue
        began, count = time.monotonic(), 0
        try:
            for trial in makers[kind]:
                yield trial
                count += 1
                if trial.outcome not in outcomes.GOOD:
                    log.info("%s, %s: %s: %s", bench.subject.name, kind, trial.what, trial.outcome)
        except mounts.CannotMount as error:
            yield f"{bench.subject.name}, {kind}: {error}"
        seconds = time.monotonic() - began
        log.info("%s, %s: %d in %.0f s", bench.subject.name, kind, count, seconds)


def _outcomes_of_damage(
    by_subject: Iterable[tuple[Subject, Trial]],
) -> dict[str, dict[str, dict[str, str]]]:
    """Outcomes of damage by command, kind of file and way."""
    by_file: dict[str, dict[str, dict[str, str]]] = {}
    for subject, trial in by_subject:
        if trial.kind == DAMAGE:
            way, _, file = trial.what.partition(": ")
            by_file.setdefault(subject.name, {}).setdefault(file, {})[way] = trial.outcome
    return by_file


def main() -> None:
    """The command; see the flags."""
    record = run(**flag_values.arguments(run))
    if count := len(record["not_survived"]):
        raise Incomplete(f"{count} trials were not survived, see not_survived in {flags.FLAGS.out}")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "file for the results (JSON)", required=True)
    flags.DEFINE_string(
        "data_dir", None, "folder with a digit_scenes; default: a small one is made"
    )
    flags.DEFINE_list("commands", [], "which to try; default: all")
    flags.DEFINE_list("kinds", list(KINDS), "of trials")
    flags.DEFINE_integer("kills", 6, "of each command", lower_bound=0)
    flags.DEFINE_integer("disks", 3, "that are too small, for each command", lower_bound=0)
    flags.DEFINE_integer("pairs", 2, "of each command at once", lower_bound=0)
    flags.DEFINE_float("share", 1.0, "of the ways in which a file of each kind is damaged", 0, 1)
    flags.DEFINE_integer("seed", 0, "of moments, files and damage")
    flags.DEFINE_integer("jobs", os.cpu_count(), "commands that are tried at once", lower_bound=1)
    command.run(main)

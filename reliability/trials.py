"""The kinds of trial of `campaign`: kills, damage, full disks, pairs, read-only."""

import dataclasses
import fnmatch
import os
import pathlib
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from reliability import damage, mounts, outcomes
from reliability.processes import End
from reliability.subject import DAMAGE, FULL, KILL, PAIR, READ_ONLY, TEMPORARIES
from reliability.worlds import Bench, end_of

_TERM_SHARE = 3  # every third signal is SIGTERM
_ATTEMPTS = 3  # at a kill that came too late
_LARGE_KIB = 2**20  # a disk with room again


@dataclasses.dataclass(frozen=True)
class Trial:
    """What was done, and what came of it.

    Attributes:
      kind: of `subjects.KINDS`.
      what: was done to which file, or when.
      outcome: of `outcomes`.
      code: that the command ended with.
      last_line: that it said.
      others: results that differ, or why one cannot be read.
    """

    kind: str
    what: str
    outcome: str
    code: int | None
    last_line: str
    others: tuple[str, ...] = ()


def trial_of(
    bench: Bench,
    kind: str,
    what: str,
    end: End,
    judge: Callable[..., str] = outcomes.judge,
    without: tuple[str, ...] = (),
) -> Trial:
    """Judges the last command of a trial by its world.

    Args:
      bench: with the world.
      kind, what: of the `Trial`.
      end: of the command; `Subject.after` has not run yet.
      judge: `outcomes.judge` or `judge_rerun`.
      without: names of results that do not count.
    """
    end = bench.read_after(end)
    reference = {n: value for n, value in bench.reference.items() if n not in without}
    results = None
    try:
        results = {n: value for n, value in bench.results(end).items() if n not in without}
        others = outcomes.differences(results, reference)
    except outcomes.Unreadable as error:
        others = [str(error)]
    outcome = judge(end, results, reference, bench.code)
    others = [] if outcome in outcomes.GOOD else others
    return Trial(kind, what, outcome, end.returncode, end.last_line, tuple(others[:5]))


def kill_and_rerun(bench: Bench, count: int, draw: random.Random) -> Iterator[Trial]:
    """Kills the command, then runs it again to its end.

    At random moments, and when one of its files appears.
    """
    for number in range(count):
        name = signal.SIGTERM if number % _TERM_SHARE == 1 else signal.SIGKILL
        aims = [*bench.subject.aims, *TEMPORARIES]
        aim = draw.choice(aims) if number % 2 == 0 else None
        for attempt in range(_ATTEMPTS):
            bench.begin()
            process = bench.start()
            # Sooner each time: on a quieter machine the command ends sooner.
            share = draw.uniform(0.2, 0.95) / 2**attempt
            moment = process.start_time + share * bench.seconds
            seconds = process.strike(name, _trigger(bench, moment, aim, draw))
            killed_end = end_of(process)
            if seconds is not None:
                break
            aim = None
        else:
            continue
        what = f"{name.name} {f'when {aim} appeared' if aim else f'after {seconds} s'}"
        if "Traceback" in killed_end.stderr or killed_end.returncode is None:
            yield trial_of(bench, KILL, what, killed_end)
            continue
        yield trial_of(bench, KILL, what, end_of(bench.start()), outcomes.judge_rerun)


def _trigger(
    bench: Bench, moment: float, aim: str | None, draw: random.Random
) -> Callable[[], bool]:
    """Decides when to strike: at a moment, or when a file appears."""
    if aim is None:
        return lambda: time.monotonic() >= moment
    before = set(_matching(bench.world, aim))
    delay = draw.choice((0.0, draw.uniform(0, 0.03)))

    def has_appeared() -> bool:
        if all(path in before for path in _matching(bench.world, aim)):
            return False
        time.sleep(delay)
        return True

    return has_appeared


def _matching(world: pathlib.Path, aim: str) -> Iterator[str]:
    """Paths in a world that match an aim.

    A pattern, or one of `TEMPORARIES`, which is a part of a name.
    """
    for folder, folders, files in os.walk(world):
        for name in (*folders, *files):
            path = os.path.relpath(os.path.join(folder, name), world)
            if aim in name if aim in TEMPORARIES else fnmatch.fnmatch(path, aim):
                yield path


def damage_files(bench: Bench, share: float, draw: random.Random) -> Iterator[Trial]:
    """Damages one file after another and runs the command."""
    subject = bench.subject
    for name, kind, way in plan_damage(bench, share, draw):
        bench.begin(is_finished=not subject.fresh)
        file = bench.world / name
        before = _lines(file)
        if not damage.WAYS[way](file, bench.world, draw):
            continue
        is_log = name in subject.logs
        remaining = _lines(file) & before
        end = bench.run()
        left_out = subject.logs if is_log else ()
        trial = trial_of(bench, DAMAGE, f"{way}: {kind}", end, without=left_out)
        if is_log and trial.outcome == outcomes.RIGHT and remaining - _lines(file):
            trial = dataclasses.replace(trial, outcome=outcomes.WRONG, others=("lines of the log",))
        yield trial


def plan_damage(bench: Bench, share: float, draw: random.Random) -> list[tuple[str, str, str]]:
    """Plans damage: a share of all ways for each kind of file.

    One way at least, and one file of the kind.

    Returns:
      Of each a file's path in the world, its kind and the way.
    """
    subject = bench.subject
    bench.begin(is_finished=not subject.fresh)
    kinds: dict[str, list[str]] = {}
    for pattern in subject.damages:
        for file in sorted(bench.world.glob(pattern)):
            if file.is_file() and file.suffix != ".lock":
                name = file.relative_to(bench.world).as_posix()
                kinds.setdefault(damage.kind_of(file, bench.world), []).append(name)
    plan = []
    ways: list[str] = []
    for kind, names in sorted(kinds.items()):
        for _ in range(max(1, round(share * subject.weight * len(damage.WAYS)))):
            if not ways:  # all come equally often
                ways = draw.sample(sorted(damage.WAYS), len(damage.WAYS))
            way, name = ways.pop(), draw.choice(names)
            if not any(
                fnmatch.fnmatch(name, unseen.pattern) and way in unseen.ways
                for unseen in subject.unseen
            ):
                plan.append((name, kind, way))
    return plan


def _lines(file: pathlib.Path) -> set[bytes]:
    return set(file.read_bytes().splitlines()) if file.is_file() else set()


def fill_disk(bench: Bench, count: int, draw: random.Random) -> Iterator[Trial]:
    """Runs the command on small disks, and again with more room.

    Raises:
      mounts.CannotMount: no such disk can be made here.
    """
    for _ in range(count):
        with bench.begin_in(mounts.disk(bench.world, _LARGE_KIB), is_finished=False):
            room = draw.randrange(0, max(8, bench.kib))
            mounts.resize(bench.world, mounts.used_kib(bench.world) + room)
            what = f"{room} KiB for {bench.kib}"
            first = trial_of(bench, FULL, what, end_of(bench.start()))
            if first.outcome not in outcomes.GOOD:
                yield first
                continue
            mounts.resize(bench.world, _LARGE_KIB)
            yield trial_of(bench, FULL, what, end_of(bench.start()), outcomes.judge_rerun)


def run_pair(bench: Bench, count: int, draw: random.Random) -> Iterator[Trial]:
    """Starts the command twice at once, of which one may refuse."""
    for _ in range(count):
        bench.begin()
        first = bench.start()
        wait = draw.uniform(0, 0.2) * bench.seconds
        time.sleep(wait)
        second = bench.start("_of_second")
        ends = [end_of(first), end_of(second)]
        what = f"{wait:.2f} s apart"
        trials = [trial_of(bench, PAIR, what, end) for end in ends]
        right = [t for t in trials if t.outcome == outcomes.RIGHT]
        bad = [t for t in trials if t.outcome not in outcomes.GOOD]
        if not right and not bad:
            bad = [dataclasses.replace(trials[0], outcome=outcomes.DEAD_END)]
        yield (bad or right)[0]


def forbid_writing(bench: Bench, draw: random.Random) -> Iterator[Trial]:
    """Runs the command where nothing can be written.

    Before and after it has run once.

    Raises:
      mounts.CannotMount: no such folder can be made here.
    """
    for is_finished in (False, True):
        bench.begin(is_finished)
        with mounts.read_only(bench.world):
            what = "a finished folder" if is_finished else "inputs alone"
            # What is printed is enough where no file can be written.
            files = tuple(set(bench.reference) - {"printed"})
            left_out = files if bench.subject.prints and not is_finished else ()
            yield trial_of(bench, READ_ONLY, what, bench.run(), without=left_out)


def facts(trial: Trial) -> Mapping[str, Any]:
    """A trial for the record."""
    return dataclasses.asdict(trial)

"""Worlds of `campaign`: folders for commands, copied for each trial."""

import contextlib
import multiprocessing
import os
import pathlib
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from lossattn_jax.errors import UserError
from reliability import in_process, outcomes
from reliability.processes import ROOT, End, Process
from reliability.subject import Subject
from reliability.subject_inputs import INPUTS

_HANG_SECONDS = 600.0  # a command of these takes 40 at most, its programs not yet compiled


def environment(cache: pathlib.Path) -> dict[str, str]:
    """The commands' environment: this package, and programs kept in `cache`."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


class Runner(Protocol):
    """Runs commands."""

    def run(self, arguments: Sequence[str], folder: pathlib.Path) -> End:
        """Runs a command in a folder to its end."""


class Processes:
    """Runs each command as a process of its own."""

    def __init__(self, variables: Mapping[str, str]):
        """Takes the processes' environment."""
        self._variables = variables

    def run(self, arguments: Sequence[str], folder: pathlib.Path) -> End:
        """Runs a command in a folder to its end."""
        return end_of(self.start(arguments, folder))

    def start(self, arguments: Sequence[str], folder: pathlib.Path, place: str = "") -> Process:
        """Starts a command in a world, and logs beside it."""
        log, output = (folder.with_name(f"{name}{place}") for name in ("log", "output"))
        return Process(arguments, log, folder, self._variables, output)


class Worker:
    """A process that runs one command after another.

    Without a start of Python for each.
    """

    def __init__(self, variables: Mapping[str, str], seconds: float = _HANG_SECONDS):
        """Starts nothing yet.

        Args:
          variables: of the process' environment.
          seconds: after which a command counts as one that never ends.
        """
        self._variables = dict(variables)
        self._seconds = seconds
        self._process: Any = None
        self._pipe: Any = None

    def run(self, arguments: Sequence[str], folder: pathlib.Path) -> End:
        """Runs a command in a folder, as `in_process.run` does."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(
                target=_serve, args=(theirs, self._variables), daemon=True
            )
            self._process.start()
            theirs.close()
        self._pipe.send((list(arguments), str(folder)))
        if not self._pipe.poll(self._seconds):
            self.end()
            return End(None, "", f"no end within {self._seconds:g} s")
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            self.end()
            return End(code or 1, "", f"the process ended with {code} in the middle of a command")

    def end(self) -> None:
        """Ends the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(pipe: Any, variables: Mapping[str, str]) -> None:
    os.environ.update(variables)
    devices = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devices, 2)  # what libraries say below Python
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            arguments, folder = pipe.recv()
            pipe.send(in_process.run(arguments, folder, collect=True))


def make_inputs(
    folder: pathlib.Path, names: Collection[str], processes: Runner, data_dir: str | None
) -> None:
    """Makes what several subjects begin with.

    Args:
      folder: for all of it.
      names: of `INPUTS`, and what these need.
      processes: run the commands.
      data_dir: a data folder with a digit_scenes that is copied; None: a small one is made.

    Raises:
      UserError: a command does not end as it should.
    """
    folder.mkdir()
    if data_dir is not None:
        shutil.copytree(pathlib.Path(data_dir) / "digit_scenes", folder / "data" / "digit_scenes")
    for name, recipe in INPUTS.items():
        if name not in names or os.path.exists(folder / name):
            continue
        if callable(recipe):
            recipe(folder)
            continue
        arguments, code = recipe
        end = processes.run(arguments, folder)
        if end.returncode != code:
            raise UserError(f"making {name} ended with {end.returncode}: {end.last_line}")


def end_of(process: Process) -> End:
    """Waits for a command's end, but not for ever."""
    if not process.wait(_HANG_SECONDS):
        process.kill()
        return End(None, "", f"no end within {_HANG_SECONDS:g} s")
    return process.end()


class Bench:
    """One subject, its world and the results of its command."""

    def __init__(
        self,
        subject: Subject,
        folder: pathlib.Path,
        inputs: pathlib.Path,
        processes: Processes | None,
        worker: Runner,
    ):
        """Runs the command undisturbed, several times.

        Args:
          subject: the command.
          folder: for worlds, made here.
          inputs: of `make_inputs`.
          processes: run the commands that are killed, and the undisturbed ones; None for trials without.
          worker: runs the others.

        Raises:
          UserError: it fails, or its results are others the second time.
        """
        self.subject, self._processes, self._worker = subject, processes, worker
        self.world = folder / "world"
        self._start, self._end_folder = folder / "start", folder / "finished"
        folder.mkdir()
        self.world.mkdir()
        for name in subject.inputs:
            source = inputs / name
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, self.world / name)
        for pattern in subject.without:
            for path in list(self.world.glob(pattern)):
                path.unlink()
        for arguments in subject.before:
            self._check(worker.run(arguments, self.world))
        shutil.copytree(self.world, self._start)
        if processes is not None:
            processes.run(subject.arguments, self.world)  # the next one finds its programs compiled
            self.begin()
        began = time.monotonic()
        end = self._check((processes or worker).run(subject.arguments, self.world))
        self.seconds = time.monotonic() - began
        self.code = end.returncode
        end = self.read_after(end)
        self.reference = self.results(end)
        shutil.copytree(self.world, self._end_folder)
        self.kib = sum(path.stat().st_blocks // 2 for path in self.world.rglob("*"))
        self.kib -= sum(path.stat().st_blocks // 2 for path in self._start.rglob("*"))
        for is_finished in (False, True) if processes else (True,):
            self.begin(is_finished)
            end = worker.run(subject.arguments, self.world)
            if not (is_finished and subject.once):
                end = self.read_after(self._check(end))
            if others := outcomes.differences(self.results(end), self.reference):
                raise UserError(f"{subject.name} has other results every time: {', '.join(others)}")

    def _check(self, end: End) -> End:
        if end.returncode not in (0, 3):
            raise UserError(
                f"{self.subject.name} ended with {end.returncode} undisturbed: {end.last_line}"
            )
        return end

    def start(self, place: str = "") -> Process:
        """Starts the command as a process of its own."""
        assert self._processes is not None
        return self._processes.start(self.subject.arguments, self.world, place)

    def run(self) -> End:
        """Runs the command in the worker."""
        return self._worker.run(self.subject.arguments, self.world)

    def read_after(self, end: End) -> End:
        """Runs `Subject.after`, unless the command failed; the end of both."""
        for arguments in self.subject.after:
            if end.returncode != self.code:
                break
            last = self._worker.run(arguments, self.world)
            end = End(last.returncode, end.stdout + last.stdout, end.stderr + last.stderr)
        return end

    def begin(self, is_finished: bool = False) -> None:
        """Makes the world anew, as before the command or after it."""
        shutil.rmtree(self.world, ignore_errors=True)
        shutil.copytree(self._end_folder if is_finished else self._start, self.world)

    @contextlib.contextmanager
    def begin_in(self, mount: Any, is_finished: bool) -> Iterator[None]:
        """The world anew within a mount of its folder."""
        shutil.rmtree(self.world, ignore_errors=True)
        with mount as folder:
            source = self._end_folder if is_finished else self._start
            shutil.copytree(source, folder, dirs_exist_ok=True)
            yield

    def results(self, end: End) -> dict[str, Any]:
        """The results in the world, and what was printed if it counts.

        Raises:
          outcomes.Unreadable: a file cannot be read.
        """
        results = outcomes.read_results(
            self.world, self.subject.results, self.subject.workdirs, self.subject.stores
        )
        if self.subject.prints:
            results["printed"] = outcomes.strip_times(end.stdout, self.world)
        return results

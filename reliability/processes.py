"""Commands as processes: started, signalled at a moment, and what they leave."""

import contextlib
import dataclasses
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

ROOT = pathlib.Path(__file__).parents[1]
_WAIT_SECONDS = 1800.0  # of a process that others may have stopped
_LOOK_SECONDS = 0.002  # between two looks at whether the moment has come


@dataclasses.dataclass(frozen=True)
class End:
    """How a command ended.

    Attributes:
      returncode: its exit code, negative after a signal; None where it never ended.
      stdout: what it printed, where that was kept.
      stderr: what it said besides.
    """

    returncode: int | None
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """The last line of stderr."""
        lines = self.stderr.strip().splitlines()
        return lines[-1][:1000] if lines else ""

    def warns(self) -> bool:
        """Whether it warned of something that was done to its files."""
        words = ("damage", "made again", "makes it", "cannot be read", "not as it was written")
        lines = (line for line in self.stderr.splitlines() if "warning" in line.lower())
        return any(word in line for line in lines for word in words)

    def errors(self) -> list[str]:
        """The sentences in which it refused."""
        return [line for line in self.stderr.splitlines() if line.startswith("error")]


class Process:
    """`python ARGS`, started once."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: pathlib.Path,
        folder: pathlib.Path = ROOT,
        environment: Mapping[str, str] | None = None,
        output: pathlib.Path | None = None,
    ):
        """Starts it.

        Args:
          arguments: of Python.
          log: file for what it says on stderr.
          folder: where it runs.
          environment: in place of this process' own.
          output: file for what it prints; None: where this process prints.
        """
        self._log, self._output = log, output
        self.start_time = time.monotonic()
        with open(log, "w") as errors, contextlib.ExitStack() as files:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env=environment,
                stderr=errors,
                stdout=files.enter_context(open(output, "w")) if output else None,
            )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def says(self, words: str) -> bool:
        """Whether it has said so."""
        return words in self._log.read_text()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self._process.send_signal(number)

    def wait(self, seconds: float) -> bool:
        """Waits for its end, so long at most; whether it has come."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return not self.runs()

    def kill(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()

    def end(self) -> End:
        """Waits for its end."""
        code = self._process.wait(_WAIT_SECONDS)
        text = self._output.read_text() if self._output else ""
        return End(code, text, self._log.read_text(errors="replace"))

    def strike(self, number: signal.Signals, ready: Callable[[], bool]) -> float | None:
        """Sends a signal as soon as `ready` says so.

        Returns:
          Seconds after the start; None where the process ended before.
        """
        while not ready():
            if not self.runs():
                return None
            time.sleep(_LOOK_SECONDS)
        if not self.runs():
            return None
        self.send(number)
        return round(time.monotonic() - self.start_time, 3)

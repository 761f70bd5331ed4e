"""Progress of a computation: recent rate, and time left."""

import contextlib
import time
from collections.abc import Iterator


class Progress:
    """Rate and time left, counted from when it starts.

    Attributes:
      seconds: between the last two calls of `measure` (or the start and the first), without pauses.
    """

    def __init__(self, step: int, total: int, size: int = 1):
        """Starts the clock.

        Args:
          step: steps done before.
          total: steps of the whole computation.
          size: examples, or the like, of a step: what rates count.
        """
        self._total = total
        self._size = size
        self.restart(step)
        self.seconds = 0.0

    def restart(self, step: int) -> None:
        """Restarts the clock after `step` steps.

        As where they have compiled programs.
        """
        self._last_step = step
        self._last_time = time.monotonic()
        self._pause_seconds = 0.0
        self._rate: float | None = None

    def measure(self, step: int) -> float:
        """Measures examples per second since the last call.

        To be called right after fetching a result of step `step`.
        """
        now = time.monotonic()
        self.seconds = max(now - self._last_time - self._pause_seconds, 1e-9)
        rate = (step - self._last_step) * self._size / self.seconds
        self._last_step, self._last_time, self._pause_seconds = step, now, 0.0
        # The time left follows the recent rate; the first interval also holds the compilation.
        self._rate = rate if self._rate is None else 0.5 * (self._rate + rate)
        return rate

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Excludes from the rate what happens within the context.

        Such as an evaluation.
        """
        start = time.monotonic()
        yield
        self._pause_seconds += time.monotonic() - start

    def time_left(self, step: int) -> str:
        """Formats the time left as "h:mm:ss"; "?" where unknown.

        At the recent rate.
        """
        if not self._rate:
            return "?"
        seconds = round((self._total - step) * self._size / self._rate)
        return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"


class LogClock:
    """Says when a log line is due, every some seconds."""

    def __init__(self, seconds: float):
        """Starts the clock; the first line is due `seconds` later."""
        self._seconds = seconds
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Whether a line is due; then the next one is `seconds` later."""
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True

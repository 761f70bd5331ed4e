"""Progress of a computation: its recent rate, and the time that is left."""

import contextlib
import time
from collections.abc import Iterator


class Progress:
    """Rate and time left, counted from when it starts.

    Attributes:
      seconds: between the last two calls of `measure` (or the start and the first), without pauses.
    """

    def __init__(self, done: int, total: int, size: int = 1):
        """Starts the clock.

        Args:
          done: steps done before.
          total: steps of the whole computation.
          size: examples, or the like, of a step: what rates count.
        """
        self._total = total
        self._size = size
        self.restart(done)
        self.seconds = 0.0

    def restart(self, done: int) -> None:
        """Starts the clock anew after `done` steps, as where they have compiled programs."""
        self._last_step = done
        self._last_time = time.monotonic()
        self._pause_seconds = 0.0
        self._rate: float | None = None

    def measure(self, done: int) -> float:
        """Examples per second since the last call; call it right after fetching a result of step `done`."""
        now = time.monotonic()
        self.seconds = max(now - self._last_time - self._pause_seconds, 1e-9)
        rate = (done - self._last_step) * self._size / self.seconds
        self._last_step, self._last_time, self._pause_seconds = done, now, 0.0
        # The time left follows the recent rate; the first interval also holds the compilation.
        self._rate = rate if self._rate is None else 0.5 * (self._rate + rate)
        return rate

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out of the rate what happens meanwhile, such as an evaluation."""
        start = time.monotonic()
        yield
        self._pause_seconds += time.monotonic() - start

    def time_left(self, done: int) -> str:
        """Time until the last step at the recent rate, as "h:mm:ss"; "?" where that is unknown."""
        if not self._rate:
            return "?"
        seconds = round((self._total - done) * self._size / self._rate)
        return f"{seconds // 3600}:{seconds % 3600 // 60:02d}:{seconds % 60:02d}"


class LogClock:
    """Says when a line of a log is due: after so many seconds."""

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

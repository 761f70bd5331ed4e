"""SIGTERM: a training that is asked to end saves its state, says so and ends with exit code 0.

The loop asks between two dispatches, and between two batches of a test. Where a single process does not get
there in time, since it compiles, a thread saves in its place and ends it. Several processes agree on where
they all save, if only one of them was asked; one that does not get there in time ends without, and the others
with it.

Orbax' `reached_preemption` cannot do this (measured with Orbax 0.12.8, JAX 0.10.2, steps of 20 ms). It asks
JAX' preemption service, which exists only after `jax.distributed.initialize`: a single process that trains
with a `CheckpointManager` is ended by SIGTERM with exit code -15 and saves nothing. Of two processes both
knew after 0.2 to 0.5 s that one was asked, and the question takes 0.05 ms of a CPU, where the sum over the
devices here takes 2 to 6. But the service's handler of SIGTERM takes the place of Python's: nothing can end
a process which does not get to its next step, as one in a step of 20 s did not, nor a command without
steps. So the service is switched off (see `devices.join_processes`).
"""

import collections
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from lossattn_jax import devices

log = logging.getLogger(__name__)

# Seconds after SIGTERM: until when the loop may end by itself, and until when a safe place is waited for.
_OWN_SECONDS = 2.0
_SAFE_SECONDS = 7.0
_AHEAD = 2  # dispatches


class Ahead:
    """Keeps the host from starting more than the devices can do in a while.

    Left to itself JAX starts dozens of updates ahead (32 on CPUs), and whoever then wants the state waits for
    all of them.
    """

    def __init__(self) -> None:
        """Starts with nothing started."""
        self._started: collections.deque[Any] = collections.deque()

    def started(self, results: Any) -> None:
        """Waits until at most `_AHEAD` of the computations whose results were given here are under way.

        Args:
          results: tree of arrays that are not donated later.
        """
        self._started.append(results)
        if len(self._started) > _AHEAD:
            jax.block_until_ready(self._started.popleft())


class Ended(Exception):
    """The training is to end here, and all that it has to do before is done."""


class Stop:
    """Whether to end, and what to do before. Without `watch` nobody ever asks for it."""

    def __init__(self) -> None:
        """Starts where the process may end at once."""
        self._asked, self._done = threading.Event(), threading.Event()
        self._agreement = devices.Agreement()
        self._held = False
        self._lock = threading.Lock()  # held where the process must not be ended
        self._leave: Callable[[], str] = lambda: "nothing was begun"
        self._without: Callable[[], str] = self._leave

    def opened(self, without: Callable[[], str]) -> None:
        """Gives what says, of a run that is ended as it is, what there is of it."""
        self._leave = self._without = without

    def may_end(self, leave: Callable[[], str]) -> None:
        """From now on the process may be ended at any time, after `leave` was called.

        Not so one of several, since all have to save together.

        Args:
          leave: saves the state, from whatever thread, and says what there is of the run.
        """
        self._leave = leave if jax.process_count() == 1 else self._without
        if self._held:
            self._held = False
            self._lock.release()

    def must_not_end(self) -> None:
        """From now on the process must not be ended from outside."""
        if not self._held:
            self._lock.acquire()  # for ever, where the thread has begun to end the process
            self._held = True

    def check(self, leave: Callable[[], str]) -> None:
        """A place to end at; all processes have to come here equally often, and get the same answer.

        Args:
          leave: saves the state and says what there is of the run; called where it ends.

        Raises:
          Ended: this is the end.
        """
        if self._agreement.reached(self._asked.is_set()):
            self.must_not_end()
            log.info("ended by SIGTERM: %s", leave())
            raise Ended

    def done(self) -> None:
        """Says that the training has ended."""
        self._done.set()

    def ask(self) -> None:
        """Asks to end."""
        self._asked.set()

    @property
    def asked(self) -> bool:
        """Whether this process is asked to end."""
        return self._asked.is_set()

    def end_in_its_place(self, own: float, safe: float) -> None:
        """Ends the process when it has not done so itself.

        Args:
          own: seconds that it has for that.
          safe: further seconds in which a place where it may be ended is waited for.
        """
        if self._done.wait(own):
            return
        code, leave, until = 0, self._without, time.monotonic() + safe
        if jax.process_count() > 1 and self._done.wait(safe):  # for the others as well
            return
        while time.monotonic() < until:
            if self._done.is_set():
                return
            if self._lock.acquire(timeout=0.05):
                leave = self._leave
                break
        try:
            log.warning("ended by SIGTERM: %s", leave())
        except Exception as error:
            log.error("error: ended by SIGTERM: %s", error)
            code = 2
        finally:
            os._exit(code)


@contextlib.contextmanager
def watch() -> Iterator[Stop]:
    """Notes SIGTERM for as long as the context lasts; of the main thread only."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def wait() -> None:
        while told := os.read(reading, 1):
            if told[0] == signal.SIGTERM:
                stop.ask()
                stop.end_in_its_place(_OWN_SECONDS, _SAFE_SECONDS - _OWN_SECONDS)
                return

    # Python's own handlers wait for the interpreter, which may be compiling; this descriptor is told at once.
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    thread = threading.Thread(target=wait, name="SIGTERM", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        stop.done()
        signal.set_wakeup_fd(wakeup)
        # A second one does not end what the first one has begun to.
        signal.signal(signal.SIGTERM, signal.SIG_IGN if stop.asked else before)
        os.close(writing)
        thread.join()  # a thread that is left when Python ends may take the process down

"""Preemption by SIGTERM: the training saves, and exits with 0.

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
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax

from lossattn_jax import devices

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds after SIGTERM: until when the loop may end by itself, and until when a safe place is waited for.
_OWN_SECONDS = 2.0
_SAFE_SECONDS = 7.0
_AHEAD = 2  # dispatches


class Ahead:
    """Limits how far the host runs ahead of the devices.

    Left to itself JAX starts dozens of updates ahead (32 on CPUs), and whoever then wants the state waits for
    all of them.
    """

    def __init__(self) -> None:
        """Starts with nothing under way."""
        self._under_way: collections.deque[Any] = collections.deque()

    def limit(self, results: Any) -> None:
        """Waits until at most `_AHEAD` computations are under way.

        Of those whose results were given here.

        Args:
          results: tree of arrays that are not donated later.
        """
        self._under_way.append(results)
        if len(self._under_way) > _AHEAD:
            jax.block_until_ready(self._under_way.popleft())


class Preemption(Exception):
    """The training ends here, with its state saved."""


class Stop:
    """Whether a training is to end, and what comes before.

    Without `watch` nobody ever asks for it.
    """

    def __init__(self) -> None:
        """Starts where the process may end at once."""
        self._asks, self._has_ended = threading.Event(), threading.Event()
        self._agreement = devices.Agreement()
        self._holds = False
        self._lock = threading.Lock()  # held where the process must not be ended
        self._describe: Callable[[], str] = lambda: "nothing was begun"
        self._save = self._describe

    def begin(self, describe: Callable[[], str], save: Callable[[], str]) -> None:
        """Gives what a training does before it ends.

        Args:
          describe: says what there is of the run.
          save: saves the state, from whatever thread, and says the same.
        """
        self._describe, self._save = describe, save

    def between(self, items: Iterable[T]) -> Iterator[T]:
        """Yields items; before each the training may end.

        While it waits for one the process may be ended.

        All processes have to take equally many.

        Raises:
          Preemption: this is the end.
        """
        iterator = iter(items)
        while True:
            with self.interruptible():
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            self.check()
            yield item

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Lets SIGTERM end the process within, after saving its state.

        What is saved must not change meanwhile. One of several processes is not saved so, since all have to
        save together.
        """
        if self._holds:
            self._holds = False
            self._lock.release()
        yield
        self._hold()

    def check(self) -> None:
        """Ends the training where it was asked to.

        All processes have to come here equally often, and get the same answer.

        Raises:
          Preemption: this is the end, and the state is saved.
        """
        if self._agreement.is_reached(self._asks.is_set()):
            self._hold()
            log.info("ended by SIGTERM: %s", self._save())
            raise Preemption

    def _hold(self) -> None:
        """Forbids to end the process from outside."""
        if not self._holds:
            self._lock.acquire()  # for ever, where the thread has begun to end the process
            self._holds = True

    def finish(self) -> None:
        """Says that the training has ended."""
        self._has_ended.set()

    def ask(self) -> None:
        """Asks to end."""
        self._asks.set()

    @property
    def is_asked(self) -> bool:
        """Whether this process is asked to end."""
        return self._asks.is_set()

    def end_in_its_place(self, own: float, safe: float) -> None:
        """Ends the process when it has not done so itself.

        Args:
          own: seconds that it has for that.
          safe: further seconds in which a place where it may be ended is waited for.
        """
        if self._has_ended.wait(own):
            return
        code, leave, until = 0, self._describe, time.monotonic() + safe
        if jax.process_count() > 1 and self._has_ended.wait(safe):  # for the others as well
            return
        while time.monotonic() < until:
            if self._has_ended.is_set():
                return
            if self._lock.acquire(timeout=0.05):
                leave = self._save if jax.process_count() == 1 else self._describe
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
    """Watches for SIGTERM within the context.

    In the main thread only.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def wait() -> None:
        while signals := os.read(reading, 1):
            if signals[0] == signal.SIGTERM:
                stop.ask()
                stop.end_in_its_place(_OWN_SECONDS, _SAFE_SECONDS - _OWN_SECONDS)
                return

    # Python's own handlers wait for the interpreter, which may be compiling; this descriptor gets it at once.
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    thread = threading.Thread(target=wait, name="SIGTERM", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        stop.finish()
        signal.set_wakeup_fd(wakeup)
        # A second SIGTERM must not cut short what the first one began.
        signal.signal(signal.SIGTERM, signal.SIG_IGN if stop.is_asked else before)
        os.close(writing)
        thread.join()  # a thread that is left when Python ends may take the process down

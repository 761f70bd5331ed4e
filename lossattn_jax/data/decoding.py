"""Decoding of many images in threads, with progress in the log."""

import collections
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lossattn_jax.commands.progress import LogClock, Progress
from lossattn_jax.kernels import cpu

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_LOG_SECONDS = 10.0
_AHEAD = 4  # parts for each thread that may be done before they are wanted


def map_parts(
    read: Callable[[range], T], count: int, size: int, what: str
) -> Iterator[tuple[range, T]]:
    """Applies a function to parts of a data set in threads.

    Pillow decodes and resizes without Python's lock. The log says every some seconds how far it is.

    Args:
      read: the function of successive places; what it raises is raised here.
      count: of places.
      size: of a part; the last one may be smaller.
      what: the places are of, for the log.

    Yields:
      The places of each part and the function's value, in the order of places.
    """
    parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
    progress, clock = Progress(0, count), LogClock(_LOG_SECONDS)
    threads = cpu.cores()
    with ThreadPoolExecutor(threads, "decoding") as pool:
        try:
            for part, value in _in_order(pool, read, parts, _AHEAD * threads):
                yield part, value
                if clock.is_due():
                    rate = progress.measure(part.stop)
                    left = progress.time_left(part.stop)
                    _LOG.info(
                        "read %d of %d %s  %.0f/s  %s left", part.stop, count, what, rate, left
                    )
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, read: Callable[[range], T], parts: Sequence[range], ahead: int
) -> Iterator[tuple[range, T]]:
    """Yields results in order, of which few wait at a time."""
    waiting = collections.deque(pool.submit(read, part) for part in parts[:ahead])
    for place, part in enumerate(parts):
        value = waiting.popleft().result()
        if place + ahead < len(parts):
            waiting.append(pool.submit(read, parts[place + ahead]))
        yield part, value

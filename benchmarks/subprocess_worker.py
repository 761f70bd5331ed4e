"""An object in a process of its own, so that what is measured of it is not of others too."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable
from typing import Any, Self

# The object of this process.
_held: list[Any] = []


class SubprocessWorker:
    """Makes an object in a new process and calls its methods there; use it in a `with` statement."""

    def __init__(self, make: Callable[..., Any], *arguments: Any):
        """Starts the process.

        Args:
          make: of a module that the process can import.
          *arguments: of `make`.
        """
        # Spawned, since a fork of a process with JAX's threads in it may hang.
        context = multiprocessing.get_context("spawn")
        self._pool = concurrent.futures.ProcessPoolExecutor(1, context)
        self._pool.submit(_hold, make, arguments).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self._pool.shutdown()

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of the object returns, or raises."""
        return self._pool.submit(_call, method, arguments).result()


def _hold(make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    _held[:] = [make(*arguments)]


def _call(method: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(_held[0], method)(*arguments)

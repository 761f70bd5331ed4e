"""An object in a process of its own, which is measured alone."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable
from typing import Any, Self

# The object of this process.
_objects: list[Any] = []


class SubprocessWorker:
    """Makes an object in a new process and calls its methods there.

    The process starts at once, and is there within the `with` statement, which ends it.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any):
        """Starts the process.

        Args:
          make: of a module that the process can import.
          *arguments: of `make`.
        """
        # Spawned, since a fork of a process with JAX's threads in it may hang.
        context = multiprocessing.get_context("spawn")
        self._pool = concurrent.futures.ProcessPoolExecutor(1, context)
        self._ready = self._pool.submit(_make, make, arguments)

    def __enter__(self) -> Self:
        self._ready.result()
        return self

    def __exit__(self, *reason: object) -> None:
        self._pool.shutdown()

    def submit(self, method: str, *arguments: Any) -> concurrent.futures.Future[Any]:
        """Calls a method of the object without waiting for its result."""
        return self._pool.submit(_call, method, arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the object.

        Returns:
          What the method returns; what it raises, this raises too.
        """
        return self.submit(method, *arguments).result()


def _make(make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    _objects[:] = [make(*arguments)]


def _call(method: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(_objects[0], method)(*arguments)

"""Processes that train bags with PyTorch, apart from JAX and its threads."""

import concurrent.futures
import dataclasses
import multiprocessing
from collections.abc import Sequence
from typing import Self

from benchmarks import torch_bags

# What a worker has been given, so that no bag is sent again before each measurement.
_given: list[torch_bags.Fold] = []


@dataclasses.dataclass(frozen=True)
class Way:
    """How a plain loop may use the cores.

    Attributes:
      processes: that train at the same time, each its own networks.
      threads: of each.
      fused: whether Adam is the fused one.
    """

    processes: int
    threads: int
    fused: bool = False

    @property
    def name(self) -> str:
        """For tables."""
        several = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        each = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{several} of {each}" + (", fused Adam" if self.fused else "")


class Workers:
    """Processes that hold the folds and wait for work; use it in a `with` statement."""

    def __init__(self, recipe: torch_bags.Recipe, folds: Sequence[torch_bags.Fold], count: int):
        """Starts them.

        Args:
          recipe: of all networks.
          folds: what each process trains on.
          count: of processes.
        """
        self._recipe = recipe
        self._bags = sum(len(fold.bags) for fold in folds)
        # Spawned, since a fork of a process with JAX's threads in it may hang.
        context = multiprocessing.get_context("spawn")
        self._pools = [
            concurrent.futures.ProcessPoolExecutor(1, context, _hold, (list(folds),))
            for _ in range(count)
        ]
        # All at once, and not while something is measured.
        for started in [pool.submit(_started) for pool in self._pools]:
            started.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        for pool in self._pools:
            pool.shutdown()

    def seconds_per_step(self, way: Way, epochs: int, seed: int = 0) -> float:
        """Wall time of a step (one bag through one network: forward, backward, update).

        Each process trains a network on every fold. Several are timed from the first one's start to the
        last one's end, and their steps are added.

        Args:
          way: with at most as many processes as there are.
          epochs: of each network.
          seed: of the first process; the others count on.
        """
        recipe = dataclasses.replace(self._recipe, fused=way.fused)
        running = [
            pool.submit(_train, recipe, epochs, way.threads, seed + number)
            for number, pool in enumerate(self._pools[: way.processes])
        ]
        times = [one.result() for one in running]
        wall = max(ended for _, ended in times) - min(began for began, _ in times)
        return wall / (len(times) * epochs * self._bags)


def _hold(folds: list[torch_bags.Fold]) -> None:
    _given[:] = folds


def _started() -> None:
    """Does nothing; a process starts with its first work."""


def _train(recipe: torch_bags.Recipe, epochs: int, threads: int, seed: int) -> tuple[float, float]:
    return torch_bags.train_folds(recipe, _given, epochs, threads, seed)

"""Processes that train bags with PyTorch, without JAX and its threads."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Self

from benchmarks import torch_bags
from benchmarks.subprocess_worker import SubprocessWorker


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
    """Processes that hold the folds and wait for work.

    Use it in a `with` statement, which ends them.
    """

    def __init__(self, recipe: torch_bags.Recipe, folds: Sequence[torch_bags.Fold], count: int):
        """Starts them.

        Args:
          recipe: of all networks.
          folds: what each process trains on.
          count: of processes.
        """
        self._recipe = recipe
        self._bags = sum(len(fold.bags) for fold in folds)
        # The folds are sent once, and not before each measurement.
        self._workers = [
            SubprocessWorker(torch_bags.FoldTrainer, list(folds)) for _ in range(count)
        ]
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        # All have started before anything is measured.
        for worker in self._workers:
            self._exit.enter_context(worker)
        return self

    def __exit__(self, *reason: object) -> None:
        self._exit.close()

    def seconds_per_step(self, way: Way, epochs: int, seed: int = 0) -> float:
        """Wall time of a step: one bag, forward, backward and update.

        Each process trains a network on every fold. Several are timed from the first one's start to the
        last one's end, and their steps are added.

        Args:
          way: with at most as many processes as there are.
          epochs: of each network.
          seed: of the first process; the others count on.
        """
        recipe = dataclasses.replace(self._recipe, fused=way.fused)
        running = [
            worker.submit("train", recipe, epochs, way.threads, seed + number)
            for number, worker in enumerate(self._workers[: way.processes])
        ]
        times = [one.result() for one in running]
        wall = max(end for _, end in times) - min(start for start, _ in times)
        return wall / (len(times) * epochs * self._bags)

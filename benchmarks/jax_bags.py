"""The training of all folds of bags in JAX, as a job."""

import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import machine
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.splits import Split
from lossattn_jax.data.order import derive_seed
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train.bags import training
from lossattn_jax.train.bags.settings import Settings

# Below the package's logger, which is the one that commands show.
log = logging.getLogger("lossattn_jax.benchmarks")


def standardise(instances: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Standardises instances with a mean and a scale, in float32."""
    return ((instances - mean) / scale).astype(np.float32)


class Job:
    """JAX's training of one network for each split, all at once.

    Attributes:
      steps: model-steps of a call: one bag through one model, forward, backward and update.
    """

    def __init__(
        self,
        dataset: BagDataset,
        network: BagNetwork,
        settings: Settings,
        splits: Sequence[Split],
    ):
        """Plans the job; the first call of `seconds` compiles it.

        Args:
          dataset: the bags.
          network: of all models.
          settings: of their training.
          splits: one model for each.
        """
        self._dataset, self._network, self._settings = dataset, network, settings
        # As `network_folds.run` makes them for the rule "final".
        self._plans = [
            training.Plan(derive_seed(0, split.repeat, split.fold, 0), split.train, split.test)
            for split in splits
        ]
        self.steps = settings.epochs * sum(int(split.train.sum()) for split in splits)

    def seconds(self) -> float:
        """Wall time of everything: preparation, initialisation, steps, predictions at the end."""
        models = training.train(
            self._dataset,
            self._network,
            self._settings,
            self._plans,
            every_epoch=False,
            label=f"{self._dataset.name}, JAX",
        )
        return models.seconds


def compare_groups(
    dataset: BagDataset,
    network: BagNetwork,
    splits: Sequence[Split],
    groups: Sequence[int],
    epochs: int,
    repeats: int,
) -> list[dict[str, Any]]:
    """Times a device's models one by one and several in one vmap.

    A group computes a step for all of its models where one of them may see the bag; only the steps of
    those that may are counted.

    Args:
      dataset: the bags.
      network: of all models.
      splits: of which as many are trained as every group size divides.
      groups: values of `Settings.models_at_once`; () for none.
      epochs: of each timed call.
      repeats: timed calls of each.

    Returns:
      For each group its size, the models trained, and microseconds of wall time per model-step.
    """
    if not groups:
        return []
    # A group that is not full is filled up with copies, which would be computed for nothing.
    unit = int(np.lcm.reduce(list(groups))) * jax.local_device_count()
    splits = splits[: len(splits) // unit * unit or len(splits)]
    jobs = {
        group: Job(dataset, network, Settings(epochs=epochs, models_at_once=group), splits)
        for group in groups
    }
    for job in jobs.values():
        job.seconds()
    times: dict[int, list[float]] = {group: [] for group in groups}
    for _ in range(repeats):
        for group, job in jobs.items():
            times[group].append(1e6 * job.seconds() / job.steps)
    log.info("%s: %s models at once measured", dataset.name, ", ".join(map(str, groups)))
    most = -(-len(splits) // jax.local_device_count())  # `training.train` takes no larger group
    return [
        {"group": min(group, most), "models": len(splits), "us_per_step": machine.spread(values)}
        for group, values in times.items()
    ]

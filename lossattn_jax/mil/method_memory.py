"""Memory that methods take, checked before the first fold."""

import numpy as np

from lossattn_jax.data.bags.sources import Experiment
from lossattn_jax.errors import UserError
from lossattn_jax.kernels import cpu
from lossattn_jax.mil import methods


def refuse_too_large(experiment: Experiment, method: str) -> None:
    """Refuses a method that takes more memory than is free.

    Args:
      experiment: bags and folds.
      method: as `methods.get` takes it.

    Raises:
      UserError: one sentence that names method, data set, largest bag, estimate and what is free.
    """
    entry, free, dataset = methods.get(method), cpu.free_memory(), experiment.dataset
    need, instances = max(
        (
            entry.memory(dataset.lengths[split.train], dataset.labels[split.train]),
            int(dataset.lengths[split.train].sum()),
        )
        for split in experiment.splits
    )
    if free is not None and need > free:
        largest = int(np.argmax(dataset.lengths))
        raise UserError(
            f"{entry.title} on {dataset.name} needs about {_gibibytes(need)} of memory for the "
            f"{instances} instances that a fold is trained on (the largest bag, {dataset.ids[largest]!r}, "
            f"has {dataset.lengths[largest]}), but {_gibibytes(free)} are free; take fewer instances, "
            "another method, or a machine with more memory"
        )


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"

"""Memory that methods take, checked before the first fold."""

from collections.abc import Iterable

import numpy as np

from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.data.bags.sources import Experiment
from lossattn_jax.errors import UserError
from lossattn_jax.kernels import cpu
from lossattn_jax.mil import methods

_COPIES = 4


def refuse_too_large(experiment: Experiment, method: str) -> None:
    """Refuses a method that takes more memory than is free.

    Args:
      experiment: bags and folds.
      method: as `methods.get` takes it.

    Raises:
      UserError: one sentence that names method, data set, largest bag, estimate and what is free.
    """
    dataset = experiment.dataset
    parts = [
        (dataset.lengths[split.train], dataset.labels[split.train]) for split in experiment.splits
    ]
    refuse_large_parts(method, dataset, parts, "a fold")


def refuse_large_parts(
    method: str,
    bags: BagDataset | Bags,
    parts: Iterable[tuple[np.ndarray, np.ndarray]],
    what: str,
) -> None:
    """Refuses a method that takes more memory than is free for one of several trainings.

    Args:
      method: as `methods.get` takes it.
      bags: of all of them.
      parts: of each training lengths and labels of its bags.
      what: is trained, for the sentence.

    Raises:
      UserError: as of `refuse_too_large`.
    """
    entry, free = methods.get(method), cpu.free_memory()
    # Of those that networks read one by one, a classical method has copies in float64.
    copies = 0
    if isinstance(bags, Bags) and entry.network is None:
        copies = _COPIES * 2 * bags.nbytes
    need, instances = max(
        (copies + entry.memory(lengths, labels), int(lengths.sum())) for lengths, labels in parts
    )
    if free is not None and need > free:
        largest = int(np.argmax(bags.lengths))
        raise UserError(
            f"{entry.title} on {bags.name} needs about {_gibibytes(need)} of memory for the "
            f"{instances} instances that {what} is trained on (the largest bag, {bags.ids[largest]!r}, "
            f"has {bags.lengths[largest]}), but {_gibibytes(free)} are free; take fewer instances, "
            "another method, or a machine with more memory"
        )


def _gibibytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"

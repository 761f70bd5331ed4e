"""The order of the bags in an epoch: a pure function of (seed, epoch).

All models that train in one program visit the bags of the data set in the same order, each leaving out
those that it may not see. So a fold's training does not depend on which others train beside it.
"""

from collections.abc import Sequence

import numpy as np


def epoch_steps(bucket_of: np.ndarray, buckets: int, batch_size: int) -> int:
    """Steps of an epoch: batches of each bucket's bags, the last of each filled up.

    Args:
      bucket_of: `[bags]` int, the bucket of each bag, in `[0, buckets)`.
      buckets: number of buckets.
      batch_size: bags of a step.
    """
    counts = np.bincount(bucket_of, minlength=buckets)
    return int(sum(-(-count // batch_size) for count in counts))


def epoch_order(bucket_of: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """The bags of each step of an epoch: a random order of batches of one bucket each.

    With one bag a step every order of all bags is as likely as any other.

    Args:
      bucket_of: `[bags]` int, the bucket of each bag.
      batch_size: bags of a step.
      seed: of the run.
      epoch: from 0.

    Returns:
      `[steps, batch_size]` int32, -1 where a bucket's last batch is filled up.
    """
    random = np.random.default_rng((seed, epoch))
    batches: list[np.ndarray] = []
    for bucket in np.unique(bucket_of):
        bags = random.permutation(np.flatnonzero(bucket_of == bucket))
        full = np.full(-(-len(bags) // batch_size) * batch_size, -1)
        full[: len(bags)] = bags
        batches.extend(full.reshape(-1, batch_size))
    return random.permutation(np.stack(batches)).astype(np.int32)


def epochs_order(
    bucket_of: np.ndarray, batch_size: int, seed: int, epochs: Sequence[int]
) -> np.ndarray:
    """`[epochs, steps, batch_size]` int32: `epoch_order` of several epochs."""
    return np.stack([epoch_order(bucket_of, batch_size, seed, epoch) for epoch in epochs])

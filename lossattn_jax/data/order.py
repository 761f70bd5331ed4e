"""The order of examples, a pure function of seed and step.

The order of an epoch follows from (seed, epoch) alone and the batch of a step from (seed, step), so
resuming a run needs nothing but its step, and the global batch is the same for any number of
processes.

Bags are of many lengths, so that a batch is of one bucket of lengths. All models that train in one program
visit the bags of the data set in the same order, each leaving out those that it is not trained on. So a
fold's training does not depend on which others train beside it.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from lossattn_jax.errors import UserError

_ENDLESS = 2**62  # steps of a run: readers need a length


def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Draws the order in which an epoch visits the examples.

    Args:
      seed: the run's seed, 0 or more.
      epoch: the epoch, counted from 0.
      num_examples: size of the data set.

    Returns:
      int64 [num_examples], a permutation; read-only, since it is kept for the next call.
    """
    return _epoch_order(int(seed), int(epoch), int(num_examples))


@functools.lru_cache(maxsize=2)  # two, since a batch reader may be one epoch ahead of another
def _epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    random = epoch_generator(seed, epoch, np.random.Philox)
    order = random.permutation(num_examples).astype(np.int64, copy=False)
    order.flags.writeable = False
    return order


def epoch_generator(
    seed: int, epoch: int, bits: type[np.random.BitGenerator] = np.random.PCG64
) -> np.random.Generator:
    """Makes the random generator of an epoch's order.

    Args:
      seed: the run's seed, 0 or more.
      epoch: counted from 0.
      bits: the kind of generator: images' orders come from Philox, bags' from PCG64.
    """
    return np.random.Generator(bits(np.random.SeedSequence([seed, epoch])))


def bucket_batches(
    bucket_of: np.ndarray, batch_size: int, seed: int, epochs: Sequence[int]
) -> np.ndarray:
    """Draws the bags of each step of some epochs.

    They are batches of one bucket each, in random order.

    With one bag a step every order of all bags is as likely as any other.

    Args:
      bucket_of: `[bags]` int, the bucket of each bag.
      batch_size: bags of a step.
      seed: of the run.
      epochs: their numbers, from 0.

    Returns:
      `[epochs, steps, batch_size]` int32, -1 where a bucket's last batch is filled up.
    """
    return np.stack([_bucket_batches(bucket_of, batch_size, seed, epoch) for epoch in epochs])


def _bucket_batches(bucket_of: np.ndarray, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    random = epoch_generator(seed, epoch)
    batches: list[np.ndarray] = []
    for bucket in np.unique(bucket_of):
        bags = random.permutation(np.flatnonzero(bucket_of == bucket))
        full = np.full(-(-len(bags) // batch_size) * batch_size, -1)
        full[: len(bags)] = bags
        batches.extend(full.reshape(-1, batch_size))
    return random.permutation(np.stack(batches)).astype(np.int32)


def bucket_steps(bucket_of: np.ndarray, batch_size: int) -> int:
    """Counts the steps of an epoch of bags.

    Batches are of one bucket each, the last of each filled up.

    Args:
      bucket_of: `[bags]` int, the bucket of each bag.
      batch_size: bags of a step.
    """
    return int(sum(-(-count // batch_size) for count in np.bincount(bucket_of)))


def local_batch_size(batch_size: int, process_count: int) -> int:
    """Divides a global batch by processes, if it divides evenly.

    Else a `UserError`.
    """
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise UserError(
            f"batch size {batch_size} has to be a positive multiple of the number of processes, "
            f"{process_count}."
        )
    return batch_size // process_count


def steps_per_epoch(num_examples: int, batch_size: int, drop_last: bool = True) -> int:
    """Counts training steps per epoch.

    Args:
      num_examples: size of the data set.
      batch_size: examples per step.
      drop_last: whether an epoch ends before the batch that the data set does not fill.

    Raises:
      UserError: the data set does not fill a single batch, and such batches are dropped.
    """
    if not drop_last and min(batch_size, num_examples) >= 1:
        return -(-num_examples // batch_size)
    if batch_size < 1 or num_examples < batch_size:
        raise UserError(
            f"config.train.batch_size is {batch_size}, but must be between 1 and the number of training "
            f"examples, {num_examples}"
        )
    return num_examples // batch_size


def train_indices(
    seed: int,
    step: int,
    num_examples: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    *,
    drop_last: bool = True,
) -> np.ndarray:
    """Returns a process' examples of a training step.

    Args:
      seed: the run's seed.
      step: the global step, counted from 0 over all epochs.
      num_examples: size of the data set.
      batch_size: examples per step over all processes.
      process_index: this process; it takes its contiguous slice of the global batch.
      process_count: number of processes; has to divide `batch_size`, and what the last batch has.
      drop_last: as of `steps_per_epoch`.

    Returns:
      int64 [batch_size // process_count]; fewer in an epoch's last batch where that is not dropped.

    Raises:
      UserError: sizes that do not fit.
    """
    local_batch_size(batch_size, process_count)
    epoch, position = divmod(step, steps_per_epoch(num_examples, batch_size, drop_last))
    size = min(batch_size, num_examples - position * batch_size)
    local = local_batch_size(size, process_count)
    start = position * batch_size + process_index * local
    return epoch_order(seed, epoch, num_examples)[start : start + local]


def eval_indices(
    batch: int,
    num_examples: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a process' examples of an evaluation batch, in order.

    Args:
      batch: the global batch, counted from 0.
      num_examples: size of the data set.
      batch_size: examples per batch over all processes.
      process_index: this process; it takes its contiguous slice of the global batch.
      process_count: number of processes; has to divide `batch_size`.

    Returns:
      Indices int64 [batch_size // process_count] and mask float32 of the same shape: 1 for an
      example, 0 for padding. Padding repeats the last example, so that it never holds odd values.
    """
    local = local_batch_size(batch_size, process_count)
    start = batch * batch_size + process_index * local
    positions = np.arange(start, start + local, dtype=np.int64)
    mask = (positions < num_examples).astype(np.float32)
    return np.minimum(positions, num_examples - 1), mask


def eval_steps(num_examples: int, batch_size: int) -> int:
    """Counts evaluation batches; the last one may be partial."""
    if batch_size < 1 or num_examples < 1:
        raise UserError(
            f"evaluation needs at least one example and a batch size of 1 or more, not "
            f"{num_examples} examples in batches of {batch_size}."
        )
    return -(-num_examples // batch_size)


@dataclasses.dataclass(frozen=True)
class TrainSteps:
    """A process' examples of each training step.

    Item i is that of step `start_step` + i.

    Attributes: see `train_indices`; sizes that do not fit are a `UserError` of the constructor.
    """

    num_examples: int
    batch_size: int
    seed: int
    start_step: int = 0
    process_index: int = 0
    process_count: int = 1
    drop_last: bool = True

    def __post_init__(self) -> None:
        self[0]

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, item: int) -> tuple[np.ndarray, None]:
        """Returns the examples' places, int64 [b], and no mask."""
        indices = train_indices(
            self.seed,
            self.start_step + item,
            self.num_examples,
            self.batch_size,
            self.process_index,
            self.process_count,
            drop_last=self.drop_last,
        )
        return indices, None


@dataclasses.dataclass(frozen=True)
class EvalSteps:
    """A process' examples of each evaluation batch.

    Item i is that of `start_batch` + i.

    Attributes: see `eval_indices`; sizes that do not fit are a `UserError` of the constructor.
    """

    num_examples: int
    batch_size: int
    process_index: int = 0
    process_count: int = 1
    start_batch: int = 0

    def __post_init__(self) -> None:
        len(self)
        local_batch_size(self.batch_size, self.process_count)

    def __len__(self) -> int:
        return max(0, eval_steps(self.num_examples, self.batch_size) - self.start_batch)

    def __getitem__(self, item: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the examples' places, int64 [b], and mask, float32 [b]."""
        return eval_indices(
            self.start_batch + item,
            self.num_examples,
            self.batch_size,
            self.process_index,
            self.process_count,
        )


def derive_seed(*numbers: int) -> int:
    """Derives a seed from several numbers, for independent draws."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])

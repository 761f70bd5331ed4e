"""Batches read from the prepared files as they are wanted, for sets larger than memory.

Grain reads and decodes examples with threads or worker processes. The examples of a step are those
of `order`, so a streamed run and one from memory see the same batches, and a run resumed at a step
reads nothing of what came before it.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags

from lossattn_jax.data import order
from lossattn_jax.data.datasets import DatasetSpec, ImageSource

Batch = dict[str, np.ndarray]

_ENDLESS = 2**62  # steps of a run: grain wants a length


@dataclasses.dataclass(frozen=True)
class StreamDataset:
    """A split on disk, with the batches of `memory.ArrayDataset`.

    Attributes:
      source: the split's examples.
      num_threads: threads that read and decode, in every worker.
      num_workers: worker processes; 0 reads in this process.
    """

    source: ImageSource
    num_threads: int = 4
    num_workers: int = 0

    @property
    def spec(self) -> DatasetSpec:
        """The data set."""
        return self.source.spec

    @property
    def split(self) -> str:
        """'train' or 'test'."""
        return self.source.split

    def __len__(self) -> int:
        return len(self.source)

    def train_batches(self, **kwargs: Any) -> Iterator[Batch]:
        """`streaming.train_batches` over this data set."""
        return train_batches(self, **kwargs)

    def eval_batches(self, **kwargs: Any) -> Iterator[Batch]:
        """`streaming.eval_batches` over this data set."""
        return eval_batches(self, **kwargs)


@dataclasses.dataclass(frozen=True)
class _TrainSteps:
    """Random access to training batches: item `step - start_step` is the batch of `step`."""

    source: ImageSource
    batch_size: int
    seed: int
    start_step: int
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, item: int) -> Batch:
        indices = order.train_indices(
            self.seed,
            self.start_step + int(item),
            len(self.source),
            self.batch_size,
            self.process_index,
            self.process_count,
        )
        return _read(self.source, indices, with_boxes=False)


@dataclasses.dataclass(frozen=True)
class _EvalSteps:
    """Random access to evaluation batches."""

    source: ImageSource
    batch_size: int
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return order.eval_steps(len(self.source), self.batch_size)

    def __getitem__(self, item: int) -> Batch:
        indices, mask = order.eval_indices(
            int(item), len(self.source), self.batch_size, self.process_index, self.process_count
        )
        batch = _read(self.source, indices, with_boxes=self.source.spec.has_boxes)
        batch["mask"] = mask
        return batch


def _read(source: ImageSource, indices: np.ndarray, with_boxes: bool) -> Batch:
    examples = source.__getitems__(indices.tolist())
    batch = {
        "image": np.stack([example["image"] for example in examples]),
        "label": np.array([example["label"] for example in examples], np.int32),
        "index": indices.astype(np.int32),
    }
    if with_boxes:
        batch["box"] = np.stack([example["box"] for example in examples])
    return batch


def train_batches(
    dataset: StreamDataset,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """The batches of `pipeline.train_batches`, read from disk.

    Args:
      dataset: the split on disk.
      batch_size: examples per step over all processes.
      seed: the run's seed; the batch of a step follows from (seed, step).
      start_step: the global step of the first batch.
      process_index: this process.
      process_count: number of processes; has to divide `batch_size`.

    Returns:
      An iterator without end; see `pipeline.train_batches`.

    Raises:
      UserError: sizes that do not fit.
    """
    order.train_indices(seed, start_step, len(dataset), batch_size, process_index, process_count)
    steps = _TrainSteps(dataset.source, batch_size, seed, start_step, process_index, process_count)
    return _iterate(steps, dataset)


def eval_batches(
    dataset: StreamDataset,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """The batches of `pipeline.eval_batches`, read from disk.

    Args:
      dataset: the split on disk.
      batch_size: examples per batch over all processes.
      process_index: this process.
      process_count: number of processes; has to divide `batch_size`.

    Returns:
      An iterator; see `pipeline.eval_batches`.

    Raises:
      UserError: sizes that do not fit.
    """
    order.eval_steps(len(dataset), batch_size)
    order.local_batch_size(batch_size, process_count)
    return _iterate(_EvalSteps(dataset.source, batch_size, process_index, process_count), dataset)


def _iterate(steps: _TrainSteps | _EvalSteps, dataset: StreamDataset) -> Iterator[Batch]:
    import grain

    options = grain.ReadOptions(
        num_threads=dataset.num_threads, prefetch_buffer_size=max(2, dataset.num_threads)
    )
    batches: grain.IterDataset = grain.MapDataset.source(steps).to_iter_dataset(options)
    if dataset.num_workers:
        # Grain's workers look at flags of its own, which a program without flags never parses.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=dataset.num_workers))

    def iterate() -> Iterator[Batch]:
        iterator = iter(batches)
        try:
            yield from iterator
        finally:
            iterator.close()  # ends its threads and workers

    return iterate()

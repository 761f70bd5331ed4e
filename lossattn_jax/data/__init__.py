"""Data sets, their preparation, and batches for training and evaluation.

A prepared split is opened with `open_dataset`, from memory or streamed from disk; both give the
same batches. Reading imports no TensorFlow; downloading (`lossattn_jax.data.prepare`) does.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from lossattn_jax.data.augment import augment, normalise, random_crop, random_flip
from lossattn_jax.data.datasets import (
    DATASETS,
    DatasetNotFound,
    DatasetSpec,
    ImageSource,
    get_spec,
    open_source,
    resolve_data_dir,
)
from lossattn_jax.data.memory import ArrayDataset, load
from lossattn_jax.data.order import epoch_order, eval_steps, steps_per_epoch, train_indices
from lossattn_jax.data.pipeline import Prefetcher, eval_batches, prefetch, train_batches
from lossattn_jax.data.streaming import StreamDataset
from lossattn_jax.errors import UserError

__all__ = [
    "DATASETS",
    "ArrayDataset",
    "Dataset",
    "DatasetNotFound",
    "DatasetSpec",
    "ImageSource",
    "Prefetcher",
    "StreamDataset",
    "augment",
    "epoch_order",
    "eval_batches",
    "eval_steps",
    "get_spec",
    "load",
    "normalise",
    "open_dataset",
    "open_source",
    "prefetch",
    "random_crop",
    "random_flip",
    "resolve_data_dir",
    "steps_per_epoch",
    "train_batches",
    "train_indices",
]


class Dataset(Protocol):
    """What `open_dataset` gives: a split that can be iterated over in batches."""

    @property
    def spec(self) -> DatasetSpec:
        """The data set."""

    @property
    def split(self) -> str:
        """'train' or 'test'."""

    def __len__(self) -> int:
        """Number of examples."""

    def train_batches(
        self,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[dict[str, np.ndarray]]:
        """See `pipeline.train_batches`."""

    def eval_batches(
        self, *, batch_size: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[dict[str, np.ndarray]]:
        """See `pipeline.eval_batches`."""


def open_dataset(
    spec: DatasetSpec,
    split: str,
    data_dir: str | None = None,
    mode: str = "memory",
    num_threads: int = 4,
    num_workers: int = 0,
) -> Dataset:
    """Opens a prepared split.

    Args:
      spec: the data set.
      split: 'train' or 'test'.
      data_dir: the folder data sets are kept in; None for TFDS' default.
      mode: 'memory' decodes everything once and keeps it; 'stream' reads a batch when it is due.
      num_threads: reading threads of 'stream', in every worker.
      num_workers: worker processes of 'stream'; 0 reads in this process.

    Returns:
      The data set; the batches do not depend on the mode.

    Raises:
      DatasetNotFound: it is not prepared there.
      UserError: unknown mode or split.
    """
    if mode == "memory":
        return load(spec, split, data_dir)
    if mode == "stream":
        return StreamDataset(open_source(spec, split, data_dir), num_threads, num_workers)
    raise UserError(f"data mode {mode!r} is unknown; allowed are 'memory' and 'stream'.")

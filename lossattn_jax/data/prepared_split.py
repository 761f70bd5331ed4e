"""Prepared splits, in memory or streamed, with the same batches."""

from lossattn_jax.data.datasets import (
    open_source,
)
from lossattn_jax.data.memory import ArrayDataset, load
from lossattn_jax.data.specs import DatasetSpec
from lossattn_jax.data.streaming import StreamDataset
from lossattn_jax.data.subset import labelled_subset
from lossattn_jax.errors import UserError

# What `open_dataset` gives; `spec`, `split`, `len`, `train_batches` and `eval_batches` are common.
Dataset = ArrayDataset | StreamDataset


def open_dataset(
    spec: DatasetSpec,
    split: str,
    data_dir: str | None = None,
    mode: str = "memory",
    num_threads: int = 4,
    num_workers: int = 0,
    *,
    num_labels: int = 0,
    label_seed: int = 0,
) -> Dataset:
    """Opens a prepared split.

    Args:
      spec: the data set.
      split: 'train' or 'test'.
      data_dir: the folder data sets are kept in; None for TFDS' default.
      mode: 'memory' decodes everything once and keeps it; 'stream' reads a batch when it is due.
      num_threads: reading threads of 'stream', in every worker.
      num_workers: worker processes of 'stream'; 0 reads in this process.
      num_labels: reduces the training split to that many examples, equally many of every class; see
        `labelled_subset`. 0 keeps all of it; the test split is never reduced.
      label_seed: which examples these are follows from it and the labels alone.

    Returns:
      The data set; the batches do not depend on the mode. A reduced one counts its examples from 0
      to `num_labels` - 1.

    Raises:
      DatasetNotFound: it is not prepared there.
      DamagedDataset: a file of it cannot be read, or has changed; streamed, only when that is met.
      UserError: unknown mode or split, or a number of labels that the data set cannot give.
    """
    if mode not in ("memory", "stream"):
        raise UserError(f"data mode {mode!r} is unknown; allowed are 'memory' and 'stream'.")
    takes_part = bool(num_labels) and split == "train"
    if takes_part and spec.multi_label:
        raise UserError(
            f"config.data.num_labels is {num_labels}, but must be 0 for {spec.name}, whose images may show "
            "several classes."
        )
    if mode == "memory":
        arrays = load(spec, split, data_dir)
        if not takes_part:
            return arrays
        return arrays.take(labelled_subset(arrays.labels, num_labels, spec.num_classes, label_seed))
    source = open_source(spec, split, data_dir)
    places = None
    if takes_part:
        places = labelled_subset(source.labels(), num_labels, spec.num_classes, label_seed)
    return StreamDataset(source, num_threads, num_workers, places)

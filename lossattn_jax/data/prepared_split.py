"""Prepared splits, in memory or streamed, with the same batches."""

from lossattn_jax.data import memory
from lossattn_jax.data.memory import ArrayDataset
from lossattn_jax.data.origins import open_source
from lossattn_jax.data.specs import DatasetSpec
from lossattn_jax.data.streaming import StreamDataset
from lossattn_jax.data.subset import labelled_subset
from lossattn_jax.errors import UserError

# What `open_dataset` gives; `spec`, `split`, `len`, `train_batches` and `eval_batches` are common.
Dataset = ArrayDataset | StreamDataset


def load(spec: DatasetSpec, split: str, data_dir: str | None = None) -> ArrayDataset:
    """Loads a split into memory; see `memory.load_source` and `origins.open_source`."""
    return memory.load_source(open_source(spec, split, data_dir))


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
      mode: 'memory' decodes everything once and keeps it; 'stream' reads a batch when it is due; 'auto' is
        'memory' where the images take no more than half of what is free.
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
    takes_part = bool(num_labels) and split == "train"
    if takes_part and spec.multi_label:
        raise UserError(
            f"config.data.num_labels is {num_labels}, but must be 0 for {spec.name}, whose images may show "
            "several classes."
        )
    source = open_source(spec, split, data_dir)
    if memory.keeps(mode, spec, len(source)):
        arrays = memory.load_source(source)
        if not takes_part:
            return arrays
        return arrays.take(labelled_subset(arrays.labels, num_labels, spec.num_classes, label_seed))
    places = None
    if takes_part:
        places = labelled_subset(source.labels(), num_labels, spec.num_classes, label_seed)
    return StreamDataset(source, num_threads, num_workers, places)

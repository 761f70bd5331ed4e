"""Prepared splits, in memory or streamed, with the same batches."""

from lossattn_jax.data import memory
from lossattn_jax.data.memory import ArrayDataset
from lossattn_jax.data.origins import open_source
from lossattn_jax.data.specs import DatasetSpec
from lossattn_jax.data.streaming import StreamDataset
from lossattn_jax.data.subset import HELD_OUT, places_of_split
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
    held_out: int = 0,
    label_seed: int = 0,
) -> Dataset:
    """Opens a prepared split.

    Args:
      spec: the data set.
      split: 'train', 'test', or 'held_out': what `held_out` takes of the training images.
      data_dir: the folder data sets are kept in; None for TFDS' default.
      mode: 'memory' decodes everything once and keeps it; 'stream' reads a batch when it is due; 'auto' is
        'memory' where the images take no more than half of what is free.
      num_threads: reading threads of 'stream', in every worker.
      num_workers: worker processes of 'stream'; 0 reads in this process.
      num_labels: reduces the training split to that many examples, equally many of every class; see
        `labelled_subset`. 0 keeps all of it; the test split is never reduced.
      held_out: takes that many examples from the training split, equally many of every class, which are the
        split 'held_out'.
      label_seed: which examples these are follows from it and the labels alone.

    Returns:
      The data set; the batches do not depend on the mode. A reduced one counts its examples from 0
      to `num_labels` - 1.

    Raises:
      DatasetNotFound: it is not prepared there.
      DamagedDataset: a file of it cannot be read, or has changed; streamed, only when that is met.
      UserError: unknown mode or split, or a number of labels that the data set cannot give.
    """
    numbers = {"num_labels": num_labels, HELD_OUT: held_out}
    takes_part = split != "test" and (split == HELD_OUT or any(numbers.values()))
    if takes_part and spec.multi_label:
        name = next((name for name, number in numbers.items() if number), HELD_OUT)
        raise UserError(
            f"config.data.{name} is {numbers[name]}, but must be 0 for {spec.name}, whose images may show "
            "several classes."
        )
    if split == HELD_OUT and not held_out:
        raise UserError(
            "the split is held_out, but config.data.held_out is 0: this run trains on all images; use test"
        )
    source = open_source(spec, "train" if takes_part else split, data_dir)
    in_memory = memory.keeps(mode, spec, len(source))
    arrays = memory.load_source(source) if in_memory else None
    places = None
    if takes_part:
        labels = source.labels() if arrays is None else arrays.labels
        places = places_of_split(labels, split, spec.num_classes, **numbers, seed=label_seed)
    if arrays is None:
        return StreamDataset(source, num_threads, num_workers, places, name=split)
    return arrays if places is None else arrays.take(places, split)

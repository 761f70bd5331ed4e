"""Origins of images: how a data set of each kind is described and opened."""

import dataclasses
from collections.abc import Callable

from lossattn_jax.config.options import DataOptions
from lossattn_jax.data import datasets, file_source, image_folder, tfds_sets
from lossattn_jax.data.specs import DatasetSpec, get_spec
from lossattn_jax.data.split_source import SplitSource
from lossattn_jax.registry import Registry


@dataclasses.dataclass(frozen=True)
class Origin:
    """A kind of data sets of images.

    Attributes:
      complete: gives a data set what options and its files say of it.
      open_source: opens a split, of the data set, 'train' or 'test', and the folder.
    """

    complete: Callable[[DatasetSpec, DataOptions], DatasetSpec]
    open_source: Callable[[DatasetSpec, str, str | None], SplitSource]


ORIGINS = Registry(
    "origin of images",
    Origin,
    {
        "tfds": Origin(tfds_sets.complete, datasets.open_prepared),
        "folder": Origin(image_folder.complete, file_source.open_files),
    },
)


def make_spec(options: DataOptions) -> DatasetSpec:
    """Makes the data set that options describe.

    Raises:
      UserError: there is none of that name, or its files have to be looked at and cannot be used.
    """
    template = get_spec(options.name, extra=options.extra, key="config.data.name")
    return ORIGINS.find(template.origin).complete(template, options)


def open_source(spec: DatasetSpec, split: str, data_dir: str | None = None) -> SplitSource:
    """Opens a split for random access.

    It imports no TensorFlow and downloads nothing.

    Args:
      spec: the data set.
      split: 'train' or 'test'.
      data_dir: the folder data sets are kept in, or that of the image files; None for TFDS' default.

    Returns:
      The source, which can be pickled.

    Raises:
      DatasetNotFound: the data set is not there, or not in a random-access format.
      DamagedDataset: it lacks a file, or one cannot be read.
      UserError: unknown split, or a folder of images that cannot be used.
    """
    return ORIGINS.find(spec.origin).open_source(spec, split, data_dir)

"""Data sets of images, their preparation, and batches for training and evaluation.

A prepared split is opened with `open_dataset`, from memory or streamed from disk; both give the same batches.
Reading needs no TensorFlow; preparing (`lossattn_jax.data.prepare`) TFDS' own data sets does.

`specs` has the data sets of images. To add one, put a `DatasetSpec` into `specs.DATASETS`; where TFDS has no
builder of it, write one, as `digit_scenes` does, and name it as the spec's `builder_class`. `origins` says of
each kind of data sets how one is described and opened: `datasets` and `tfds_sets` those of TFDS,
`image_folder` and `file_source` users' image files. Data that come in bags are in the folder `bags`.
"""

from typing import TYPE_CHECKING

from lossattn_jax.commands import imports

__all__ = [
    "ArrayDataset",
    "DATASETS",
    "DamagedDataset",
    "Dataset",
    "DatasetNotFound",
    "DatasetSpec",
    "ImageSource",
    "NO_BOX",
    "Prefetcher",
    "StreamDataset",
    "alternate_flips",
    "augment",
    "epoch_order",
    "eval_steps",
    "get_spec",
    "labelled_subset",
    "load",
    "network_input",
    "make_spec",
    "normalise",
    "open_dataset",
    "open_source",
    "prefetch",
    "random_crop",
    "random_flip",
    "resolve_data_dir",
    "steps_per_epoch",
    "train_indices",
]

if TYPE_CHECKING:
    from lossattn_jax.data import prepare as prepare
    from lossattn_jax.data.augmentation import (
        alternate_flips,
        augment,
        network_input,
        normalise,
        random_crop,
        random_flip,
    )
    from lossattn_jax.data.boxes import NO_BOX
    from lossattn_jax.data.damage import DamagedDataset
    from lossattn_jax.data.datasets import (
        DatasetNotFound,
        ImageSource,
        resolve_data_dir,
    )
    from lossattn_jax.data.memory import ArrayDataset
    from lossattn_jax.data.order import epoch_order, eval_steps, steps_per_epoch, train_indices
    from lossattn_jax.data.origins import make_spec, open_source
    from lossattn_jax.data.pipeline import Prefetcher, prefetch
    from lossattn_jax.data.prepared_split import Dataset, load, open_dataset
    from lossattn_jax.data.specs import DATASETS, DatasetSpec, get_spec
    from lossattn_jax.data.streaming import StreamDataset
    from lossattn_jax.data.subset import labelled_subset
else:
    __getattr__, __dir__ = imports.attach(__name__)

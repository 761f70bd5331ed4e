"""Which data sets there are, and random access to the prepared ones without TensorFlow.

A prepared data set is read through `tfds.data_source`; images stay encoded in TFDS' records and are
decoded here with Pillow. `tensorflow_datasets` itself is imported on first use, since `import
lossattn_jax.data` should stay quick for programs that never open a data set.
"""

import contextlib
import dataclasses
import io
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lossattn_jax.errors import UserError


class DatasetNotFound(UserError):
    """A data set is not where it was looked for; the text says where, and what prepares it."""


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What a network and a pipeline have to know about a data set.

    Attributes:
      name: the TFDS name.
      num_classes: number of classes; labels are 0 ... num_classes - 1.
      class_names: one name per class, in label order.
      image_shape: (height, width, channels) of every image, uint8.
      mean: per-channel mean of the training pixels divided by 255.
      std: per-channel standard deviation of the same.
      flip: whether a mirrored image still shows its class (false for digits).
      train_split: TFDS split expression of the training set.
      test_split: TFDS split expression of the test set.
      num_train: training images of the published set. A prepared copy may be a part of it, so the
        length of the opened data set is what counts.
      num_test: test images of the published set, likewise.
      has_boxes: whether every image comes with the bounding box of what its label names.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int] = (32, 32, 3)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    flip: bool = False
    train_split: str = "train"
    test_split: str = "test"
    num_train: int = 0
    num_test: int = 0
    has_boxes: bool = False

    def split(self, split: str) -> str:
        """The TFDS split expression for 'train' or 'test'; another name is a `UserError`."""
        if split == "train":
            return self.train_split
        if split == "test":
            return self.test_split
        raise UserError(f"split {split!r} is unknown; allowed are 'train' and 'test'.")


_DIGITS = tuple("0123456789")

_CIFAR10_NAMES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())

_CIFAR100_NAMES = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
)

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="digit_scenes",
            num_classes=10,
            class_names=_DIGITS,
            mean=(0.498, 0.497, 0.497),
            std=(0.268, 0.258, 0.275),
            num_train=10_000,
            num_test=2_000,
            has_boxes=True,
        ),
        DatasetSpec(
            name="cifar10",
            num_classes=10,
            class_names=_CIFAR10_NAMES,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            flip=True,
            num_train=50_000,
            num_test=10_000,
        ),
        DatasetSpec(
            name="cifar100",
            num_classes=100,
            class_names=_CIFAR100_NAMES,
            mean=(0.5071, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
            flip=True,
            num_train=50_000,
            num_test=10_000,
        ),
        DatasetSpec(
            name="svhn_cropped",
            num_classes=10,
            class_names=_DIGITS,
            mean=(0.4377, 0.4438, 0.4728),
            std=(0.1980, 0.2010, 0.1970),
            num_train=73_257,
            num_test=26_032,
        ),
    )
}

_NUM_SVHN_EXTRA = 531_131


def get_spec(name: str, extra: bool = False) -> DatasetSpec:
    """Looks a data set up by name.

    Args:
      name: one of `DATASETS`.
      extra: train on SVHN's `extra` split as well (604,388 images instead of 73,257). The
        normalisation stays that of `train`, so that networks of both kinds can be compared.

    Returns:
      The specification.

    Raises:
      UserError: unknown name, or `extra` for a data set that has no such split.
    """
    if name not in DATASETS:
        raise UserError(f"data set {name!r} is unknown; allowed are {', '.join(sorted(DATASETS))}.")
    spec = DATASETS[name]
    if not extra:
        return spec
    if name != "svhn_cropped":
        raise UserError(f"data set {name!r} has no 'extra' split; only svhn_cropped has one.")
    return dataclasses.replace(
        spec, train_split="train+extra", num_train=spec.num_train + _NUM_SVHN_EXTRA
    )


def resolve_data_dir(data_dir: str | None = None) -> str:
    """The folder data sets are kept in: `data_dir`, else TFDS_DATA_DIR, else TFDS' default."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if "://" in chosen:
        return chosen
    return os.path.abspath(os.path.expanduser(chosen))


def prepare_command(spec: DatasetSpec, data_dir: str | None) -> str:
    """The shell command that prepares the data set in `data_dir`."""
    command = f"python -m lossattn_jax.data.prepare --dataset={spec.name}"
    return f"{command} --data_dir={data_dir}" if data_dir else command


def register(spec: DatasetSpec) -> None:
    """Makes the data set's builder known to TFDS where it is one of ours."""
    if spec.name == "digit_scenes":
        # TFDS registers a builder when its class is defined.
        from lossattn_jax.data import digit_scenes  # noqa: F401


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Silences TFDS' warnings about folders that are not there: our own sentence says it once."""
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


@dataclasses.dataclass(frozen=True)
class ImageSource:
    """Random access to the examples of a prepared split, decoded one by one.

    An example is a dict: `image` uint8 [H, W, C], `label` int, and `box` float32 [4] (ymin, xmin,
    ymax, xmax as fractions of the image) where the data set has boxes.

    Attributes:
      spec: the data set.
      split: 'train' or 'test'.
      records: the TFDS data source, which leaves images encoded.
    """

    spec: DatasetSpec
    split: str
    records: Any

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._decode(self.records[int(index)])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Reads many examples at once, which is much quicker than one at a time."""
        return [self._decode(r) for r in self.records.__getitems__([int(i) for i in indices])]

    @property
    def folder(self) -> str:
        """The folder the prepared data set lies in, its version included."""
        return os.fspath(self.records.dataset_info.data_dir)

    def fingerprint(self) -> str:
        """A string that changes whenever the prepared split does: version, files, dates."""
        info = self.records.dataset_info
        shards = []
        for instruction in _file_instructions(self.records):
            try:
                stat = os.stat(instruction.filename)
                size, date = stat.st_size, stat.st_mtime_ns
            except OSError:  # a remote file system: the counts have to do
                size, date = -1, -1
            name = os.path.basename(instruction.filename)
            shards.append([name, instruction.skip, instruction.take, size, date])
        return json.dumps(
            {
                "name": info.full_name,
                "split": self.spec.split(self.split),
                "num_examples": len(self),
                "shape": self.spec.image_shape,
                "shards": shards,
            },
            sort_keys=True,
        )

    def _decode(self, record: dict[str, Any]) -> dict[str, Any]:
        from PIL import Image

        with Image.open(io.BytesIO(record["image"])) as encoded:
            image = np.asarray(encoded)
        if image.shape != self.spec.image_shape or image.dtype != np.uint8:
            raise ValueError(
                f"{self.spec.name} holds an image {image.dtype} {image.shape} where uint8 "
                f"{self.spec.image_shape} is expected"
            )
        example = {"image": image, "label": int(record["label"])}
        if self.spec.has_boxes:
            example["box"] = np.asarray(record["bbox"], np.float32)
        return example


def _file_instructions(records: Any) -> list[Any]:
    from tensorflow_datasets.core.data_sources import base

    return base.file_instructions(records.dataset_info, records.split)


def open_source(spec: DatasetSpec, split: str, data_dir: str | None = None) -> ImageSource:
    """Opens a prepared split for random access; imports no TensorFlow and downloads nothing.

    Args:
      spec: the data set.
      split: 'train' or 'test'.
      data_dir: the folder data sets are kept in; None for TFDS' default.

    Returns:
      The source, which can be pickled.

    Raises:
      DatasetNotFound: the data set is not there, not complete, or not in a random-access format.
      UserError: unknown split.
    """
    expression = spec.split(split)
    root = resolve_data_dir(data_dir)
    import tensorflow_datasets as tfds

    register(spec)
    try:
        with quiet_logging():
            records = tfds.data_source(
                spec.name,
                split=expression,
                data_dir=root,
                download=False,
                decoders={"image": tfds.decode.SkipDecoding()},
            )
            missing = [
                instruction.filename
                for instruction in _file_instructions(records)
                if "://" not in instruction.filename and not os.path.exists(instruction.filename)
            ]
    except (NotImplementedError, ValueError) as error:
        raise _not_found(spec, root, "is not prepared (as array_record)", data_dir) from error
    except Exception as error:  # protobuf's and JSON's own errors share no base class
        reason = f"cannot be read ({type(error).__name__})"
        raise _not_found(spec, root, reason, data_dir) from error
    if missing:
        reason = f"lacks {os.path.basename(missing[0])}"
        raise _not_found(spec, root, reason, data_dir)
    return ImageSource(spec, split, records)


def _not_found(spec: DatasetSpec, root: str, reason: str, data_dir: str | None) -> DatasetNotFound:
    where = os.path.join(root, spec.name)
    return DatasetNotFound(
        f"data set {spec.name} {reason} in {where}; "
        f"prepare it with: {prepare_command(spec, data_dir)}"
    )

"""Random access to prepared data sets, without TensorFlow.

A prepared data set is opened from its folder, since some of TFDS' builders import TensorFlow (that
of COCO does). Images stay encoded in TFDS' records and are decoded here with Pillow.
`tensorflow_datasets` itself is imported on first use, since `import lossattn_jax.data` should stay
quick for programs that never open a data set.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

from lossattn_jax.data import damage, shard_digests
from lossattn_jax.data.boxes import fixed_number
from lossattn_jax.data.specs import EXTRA, DatasetSpec
from lossattn_jax.data.split_source import SplitDigests, SplitSource
from lossattn_jax.data.views import DRAFT, SQUEEZE
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests
from lossattn_jax.registry import import_part

_READ_AT_ONCE = 1000
# What TFDS reads of a prepared data set besides its shards.
_METADATA = ("dataset_info.json", "features.json")


class DatasetNotFound(UserError):
    """A data set is absent.

    The text says where it was looked for, and what prepares it.
    """


def resolve_data_dir(data_dir: str | None = None) -> str:
    """Returns the folder of data sets.

    `data_dir`, else TFDS_DATA_DIR, else TFDS' default.
    """
    folder = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    if "://" in folder:
        return folder
    return os.path.abspath(os.path.expanduser(folder))


def prepare_command(spec: DatasetSpec, data_dir: str | None) -> str:
    """Returns the shell command that prepares a data set in `data_dir`."""
    command = f"python -m lossattn_jax.data.prepare --dataset={spec.key}"
    if spec.train_split.endswith(EXTRA):
        command += " --extra"
    return f"{command} --data_dir={data_dir}" if data_dir else command


def register(spec: DatasetSpec) -> None:
    """Registers a data set's builder with TFDS where it is needed.

    Raises:
      UserError: `spec.builder_class` cannot be imported.
    """
    if spec.builder_class:
        # TFDS registers a builder when its class is defined.
        import_part(spec.builder_class, f"the builder_class of data set {spec.key}")


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Silences TFDS' warnings of absent folders.

    Our own sentence says it once.
    """
    from absl import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


@dataclasses.dataclass(frozen=True)
class ImageSource(SplitSource):
    """Random access to the decoded examples of a prepared split; see `SplitSource`.

    What cannot be read or decoded raises `DamagedDataset`.

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

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Reads many examples at once.

        That is much quicker than one at a time.
        """
        return self._read(indices, self._decode)

    def labels(self) -> np.ndarray:
        """See `SplitSource.labels`."""
        labels = np.empty((len(self), *self.spec.label_shape), self.spec.label_dtype)
        for start in range(0, len(self), _READ_AT_ONCE):
            stop = min(start + _READ_AT_ONCE, len(self))
            labels[start:stop] = self._read(range(start, stop), self._label)
        return labels

    @property
    def folder(self) -> str:
        """Returns the data set's folder, its version included."""
        return os.fspath(self.records.dataset_info.data_dir)

    def digests(self) -> SplitDigests:
        """Digests the split's content, and how pictures are stored.

        It goes by what the examples hold, not by dates and places: a copy has the same, and so has what was
        prepared again. Files that are not on a file system here go by how many examples they have.

        Raises:
          UserError: a file cannot be read, or is not as it was when the data set was first read.
        """
        info = self.records.dataset_info
        shards = self._shards()
        digests_of_shards: Sequence[str | None] = [None] * len(shards)
        if not any("://" in shard.path for shard in shards):
            starts = np.cumsum([0, *(shard.count for shard in shards)]).tolist()
            digests_of_shards = shard_digests.of_shards(
                self.folder,
                shards,
                lambda place: self._digest(starts[place], starts[place + 1]),
                _METADATA,
            )
        pictures = {
            "name": info.full_name,
            "split": self.spec.split(self.split),
            "num_examples": len(self),
            "shards": [
                [shard.name, digest]
                for shard, digest in zip(shards, digests_of_shards, strict=True)
            ],
        }
        stored: dict[str, Any] = {"shape": self.spec.image_shape}
        if self.spec.resize:
            stored["resized"] = f"bilinear, draft {DRAFT}"
        if self.spec.fit != SQUEEZE or self.spec.canvas:
            stored["stored"] = [self.spec.fit, self.spec.canvas]
        if self.spec.max_boxes > 1:
            stored["boxes"] = f"the {self.spec.max_boxes} largest"
        return SplitDigests(digests.of_json(pictures | stored), digests.of_json(pictures))

    def _digest(self, start: int, stop: int) -> str:
        """Digests examples from one place to before another.

        Images as encoded.
        """
        digest = hashlib.sha256()
        for begin in range(start, stop, _READ_AT_ONCE):
            indices = range(begin, min(begin + _READ_AT_ONCE, stop))
            for of_record in self._read(indices, lambda record: digests.of_arrays(_fields(record))):
                digest.update(of_record.encode())
        return digest.hexdigest()

    def _shards(self) -> list[shard_digests.Shard]:
        return [
            shard_digests.Shard(os.fspath(instruction.filename), instruction.skip, instruction.take)
            for instruction in _file_instructions(self.records)
        ]

    def _read(self, indices: Sequence[int], use: Callable[[dict[str, Any]], Any]) -> list[Any]:
        """Applies a function to the records at some places.

        Raises:
          DamagedDataset: one cannot be read, or the function fails.
        """
        places = [int(index) for index in indices]
        if places and not 0 <= min(places) <= max(places) < len(self):
            raise IndexError(f"places have to be 0 ... {len(self) - 1}")
        try:
            return [use(record) for record in self.records.__getitems__(places)]
        except Exception as error:  # riegeli, TFDS and Pillow fail in many ways
            raise damage.unreadable(self._find_damage(places, use), error, self.folder) from error

    def _find_damage(self, places: list[int], use: Callable[[dict[str, Any]], Any]) -> str:
        """Finds the shard of the first illegible record; else the folder."""
        stops = np.cumsum([shard.count for shard in self._shards()])
        for place in places:
            try:
                use(self.records[place])
            except Exception:
                return self._shards()[int(np.searchsorted(stops, place, "right"))].path
        return self.folder

    def _decode(self, record: dict[str, Any]) -> dict[str, Any]:
        image, size = self._image(record["image"])
        shape = self.spec.view.stored_shape
        if image.shape != shape or image.dtype != np.uint8:
            raise ValueError(
                f"{self.spec.name} holds an image {image.dtype} {image.shape} where uint8 {shape} is "
                "expected"
            )
        example = {"image": image, "label": self._label(record)}
        if self.spec.max_boxes == 1:
            example["box"] = self._place_boxes(record["bbox"], size)
        elif self.spec.has_boxes:
            objects = record["objects"]
            example["box"], example["box_label"] = fixed_number(
                self._place_boxes(objects["bbox"], size), objects["label"], self.spec.max_boxes
            )
        return example

    def _place_boxes(self, boxes: Any, size: tuple[int, int]) -> np.ndarray:
        """Converts boxes from fractions of a picture to those of what is seen of it."""
        fractions = np.asarray(boxes, np.float32)
        if self.spec.fit == SQUEEZE and not self.spec.canvas:
            return fractions
        pixels = fractions * np.array([*size, *size], np.float32)
        placed = [self.spec.view.place_box(tuple(box), size) for box in pixels.reshape(-1, 4)]
        return np.array(placed, np.float32).reshape(fractions.shape)

    def _image(self, content: bytes) -> tuple[np.ndarray, tuple[int, int]]:
        """Decodes a picture; returns it as stored, with its own height and width."""
        from PIL import Image

        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            width, height = image.size
            if not self.spec.resize:
                return np.asarray(image), (height, width)
            high, wide, _ = self.spec.view.stored_shape
            image.draft("RGB", (DRAFT * wide, DRAFT * high))
            return np.asarray(self.spec.view.resize(image.convert("RGB"))), (height, width)

    def _label(self, record: dict[str, Any]) -> int | np.ndarray:
        if not self.spec.multi_label:
            label = int(record["label"])
            if not 0 <= label < self.spec.num_classes:
                raise ValueError(f"it has the label {label} of {self.spec.num_classes} classes")
            return label
        several = np.zeros(self.spec.num_classes, np.uint8)
        several[np.asarray(record["objects"]["label"], np.int64)] = 1
        return several


def _fields(record: dict[str, Any]) -> dict[str, np.ndarray]:
    """Selects the fields of a record that examples hold, images still encoded."""
    fields = {"image": np.frombuffer(record["image"], np.uint8)}
    for prefix, part in (("", record), ("objects/", record.get("objects", {}))):
        for name in ("label", "bbox"):
            if name in part:
                fields[prefix + name] = np.asarray(part[name])
    return fields


def _file_instructions(records: Any) -> list[Any]:
    from tensorflow_datasets.core.data_sources import base

    return base.file_instructions(records.dataset_info, records.split)


def _counts(records: Any, shards: Collection[str]) -> dict[str, int]:
    """Returns how many examples were written to each shard."""
    counts = {
        os.fspath(path): count
        for split in records.dataset_info.splits.values()
        for path, count in zip(split.filepaths, split.shard_lengths, strict=True)
    }
    return {path: counts[path] for path in shards}


def open_prepared(spec: DatasetSpec, split: str, data_dir: str | None = None) -> ImageSource:
    """Opens a prepared split for random access.

    It imports no TensorFlow and downloads nothing.

    Args:
      spec: the data set.
      split: 'train' or 'test'.
      data_dir: the folder data sets are kept in; None for TFDS' default.

    Returns:
      The source, which can be pickled.

    Raises:
      DatasetNotFound: the data set is not there, or not in a random-access format.
      DamagedDataset: it lacks a file, or one cannot be read.
      UserError: unknown split.
    """
    expression = spec.split(split)
    root = resolve_data_dir(data_dir)
    folder = newest_version(spec, data_dir)
    import tensorflow_datasets as tfds

    local = "://" not in folder
    if local:
        damage.refuse_absent(folder, [os.path.join(folder, name) for name in _METADATA])
    try:
        with quiet_logging():
            builder = tfds.builder_from_directory(folder)
            records = builder.as_data_source(
                expression, decoders={"image": tfds.decode.SkipDecoding()}
            )
            shards = [os.fspath(one.filename) for one in _file_instructions(records)]
    except NotImplementedError as error:
        raise _not_found(spec, root, "is not prepared (as array_record)", data_dir) from error
    except Exception as error:  # errors of protobuf and JSON share no base class
        path = damage.find_malformed_json(folder, _METADATA) if local else folder
        raise damage.unreadable(path, error, folder) from error
    if local:
        damage.refuse_absent(folder, shards)
        damage.refuse_other_counts(folder, _counts(records, shards))
    return ImageSource(spec, split, records)


def newest_version(spec: DatasetSpec, data_dir: str | None) -> str:
    """Returns the folder of a prepared data set's newest version.

    Raises:
      DatasetNotFound: it is not prepared there.
      DamagedDataset: the folder cannot be read.
    """
    from tensorflow_datasets.core.utils import version

    root = resolve_data_dir(data_dir)
    folder = os.path.join(root, spec.tfds_name)
    if "://" not in folder:
        try:
            os.listdir(folder)  # TFDS takes a folder that cannot be read for an empty one
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise damage.unreadable(folder, error, folder) from error
    versions = version.list_all_versions(folder)
    if not versions:
        raise _not_found(spec, root, "is not prepared (as array_record)", data_dir)
    return os.path.join(folder, str(versions[-1]))


def _not_found(spec: DatasetSpec, root: str, reason: str, data_dir: str | None) -> DatasetNotFound:
    where = os.path.join(root, spec.tfds_name)
    return DatasetNotFound(
        f"data set {spec.name} {reason} in {where}; "
        f"name the folder that has it, or prepare it with: {prepare_command(spec, data_dir)}"
    )

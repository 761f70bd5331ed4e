"""A whole split as arrays in memory: decoded once, then read from a cache beside the data set."""

import dataclasses
import logging
import os
import tempfile
import time

import numpy as np

from lossattn_jax.data.datasets import ImageSource, open_source
from lossattn_jax.data.pipeline import Batch, Examples
from lossattn_jax.data.specs import DatasetSpec

_LOG = logging.getLogger(__name__)
_READ_AT_ONCE = 1000
# What the arrays of a split are called in a single example.
_IN_EXAMPLE = {"images": "image", "labels": "label", "boxes": "box", "box_labels": "box_label"}


@dataclasses.dataclass(frozen=True)
class ArrayDataset(Examples):
    """A split in memory.

    The boxes are kept of the training split as well, which can be evaluated and explained too; only
    training's own batches go without. COCO's are 2 KB an image beside 12 KB of pixels.

    Attributes:
      spec: the data set.
      split: 'train' or 'test'.
      images: uint8 [N, H, W, C].
      labels: int32 [N], or uint8 [N, K] (multi-hot) where `spec.multi_label`.
      boxes: float32 [N, 4] (ymin, xmin, ymax, xmax as fractions of the image), or [N, M, 4] where an
        image may have several, or None.
      box_labels: int32 [N, M], the classes of several boxes; None without.
    """

    spec: DatasetSpec
    split: str
    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray | None = None
    box_labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray, with_boxes: bool = False) -> Batch:
        """See `pipeline.Examples.read`."""
        batch = {
            "image": np.take(self.images, indices, axis=0),
            "label": np.take(self.labels, indices, axis=0),
            "index": indices.astype(np.int32),
        }
        if with_boxes and self.boxes is not None:
            batch["box"] = self.boxes[indices]
            if self.box_labels is not None:
                batch["box_label"] = self.box_labels[indices]
        return batch

    def take(self, indices: np.ndarray) -> "ArrayDataset":
        """The examples at `indices` int64 [n] as a data set of their own, counted from 0 anew."""
        return dataclasses.replace(
            self,
            images=self.images[indices],
            labels=self.labels[indices],
            boxes=None if self.boxes is None else self.boxes[indices],
            box_labels=None if self.box_labels is None else self.box_labels[indices],
        )


def load(spec: DatasetSpec, split: str, data_dir: str | None = None) -> ArrayDataset:
    """Loads a prepared split into memory.

    The first call decodes every image and writes the arrays to `cache_<split>.npz` beside the data
    set; later calls read that file. A cache that is truncated or belongs to another version of the
    data set is rebuilt, and where the folder cannot be written to, nothing is cached.

    Args:
      spec: the data set.
      split: 'train' or 'test'.
      data_dir: the folder data sets are kept in; None for TFDS' default.

    Returns:
      The arrays.

    Raises:
      DatasetNotFound: the data set is not prepared there.
    """
    source = open_source(spec, split, data_dir)
    path = cache_path(source)
    fingerprint = source.fingerprint()
    arrays = _read_cache(path, fingerprint)
    if arrays is None:
        arrays = _decode(source)
        _write_cache(path, fingerprint, arrays)
    return ArrayDataset(
        spec,
        split,
        arrays["images"],
        arrays["labels"],
        arrays.get("boxes"),
        arrays.get("box_labels"),
    )


def cache_path(source: ImageSource) -> str:
    """Where the decoded arrays of this split are kept, e.g. `.../cifar10/3.0.2/cache_train.npz`."""
    split = source.spec.split(source.split).replace("+", "_")
    return os.path.join(source.folder, f"cache_{split}.npz")


def _decode(source: ImageSource) -> dict[str, np.ndarray]:
    started = time.monotonic()
    count = len(source)
    arrays: dict[str, np.ndarray] = {
        "images": np.empty((count, *source.spec.image_shape), np.uint8),
        "labels": np.empty((count, *source.spec.label_shape), source.spec.label_dtype),
    }
    if source.spec.has_boxes:
        arrays["boxes"] = np.empty((count, *source.spec.box_shape), np.float32)
    if source.spec.max_boxes > 1:
        arrays["box_labels"] = np.empty((count, source.spec.max_boxes), np.int32)
    for start in range(0, count, _READ_AT_ONCE):
        indices = range(start, min(start + _READ_AT_ONCE, count))
        for index, example in zip(indices, source.__getitems__(indices), strict=True):
            for name, array in arrays.items():
                array[index] = example[_IN_EXAMPLE[name]]
    _LOG.info(
        "decoded %d images of %s %s in %.1f s",
        count,
        source.spec.name,
        source.split,
        time.monotonic() - started,
    )
    return arrays


def _read_cache(path: str, fingerprint: str) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["fingerprint"]) != fingerprint:
                _LOG.info("%s belongs to another version of the data set; rebuilding it", path)
                return None
            return {name: stored[name] for name in stored.files if name != "fingerprint"}
    except FileNotFoundError:
        return None
    except Exception as error:  # NumPy and zipfile fail in many ways on a damaged file
        _LOG.warning("%s is damaged (%s); rebuilding it", path, error)
        return None


def _write_cache(path: str, fingerprint: str, arrays: dict[str, np.ndarray]) -> None:
    # Written under another name and renamed, so that a reader never meets half a file, even when
    # several processes of a host start at once.
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(
            prefix=".cache_", suffix=".npz", dir=os.path.dirname(path)
        )
        with os.fdopen(handle, "wb") as file:
            np.savez(file, fingerprint=np.array(fingerprint), **arrays)  # type: ignore[arg-type]
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        _LOG.warning("no cache of the decoded images at %s: %s", path, error)
        if temporary is not None and os.path.exists(temporary):
            os.remove(temporary)

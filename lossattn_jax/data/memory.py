"""Whole splits as arrays in memory, with a cache on disk."""

import dataclasses
import logging
import os
import time
from typing import Any

import numpy as np

from lossattn_jax import files
from lossattn_jax.data import damage
from lossattn_jax.data.datasets import ImageSource, open_source
from lossattn_jax.data.pipeline import Batch, Examples
from lossattn_jax.data.specs import DatasetSpec
from lossattn_jax.data.subset import digest_of_part
from lossattn_jax.files import digests, npz, sole_writer

_LOG = logging.getLogger(__name__)
_READ_AT_ONCE = 1000
# What the arrays of a split are called in a single example.
_IN_EXAMPLE = {"images": "image", "labels": "label", "boxes": "box", "box_labels": "box_label"}
# What a cache holds beside the arrays: digests of the prepared files, and of the arrays.
_OF_CACHE = ("made_from", "digest")
_DIGEST = ((), np.dtype("<U64"))  # their shape and dtype

# Shapes and dtypes of arrays by name.
_Layout = dict[str, tuple[tuple[int, ...], np.dtype]]


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
      origin_digest: digest of the prepared examples that `load` made the arrays of; None for other arrays,
        and for what `dataclasses.replace` makes.
    """

    spec: DatasetSpec
    split: str
    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray | None = None
    box_labels: np.ndarray | None = None
    origin_digest: str | None = dataclasses.field(default=None, init=False, compare=False)

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
        """Takes the examples at `indices` int64 [n], counted from 0 anew."""
        part = dataclasses.replace(
            self,
            images=self.images[indices],
            labels=self.labels[indices],
            boxes=None if self.boxes is None else self.boxes[indices],
            box_labels=None if self.box_labels is None else self.box_labels[indices],
        )
        return (
            part if self.origin_digest is None else part._with_origin(self.origin_digest, indices)
        )

    def digest(self) -> str:
        """Returns the examples' digest; see `pipeline.Examples.digest`.

        Of arrays that were not prepared it is their own.
        """
        return self.origin_digest or digests.of_arrays(
            {name: array for name in _IN_EXAMPLE if (array := getattr(self, name)) is not None}
        )

    def _with_origin(self, origin_digest: str, indices: np.ndarray | None = None) -> "ArrayDataset":
        """Sets `origin_digest` of a new data set."""
        digest = origin_digest if indices is None else digest_of_part(origin_digest, indices)
        object.__setattr__(self, "origin_digest", digest)
        return self


def load(spec: DatasetSpec, split: str, data_dir: str | None = None) -> ArrayDataset:
    """Loads a prepared split into memory.

    The first call decodes every image and writes the arrays to `cache_<split>.npz` beside the data
    set; later calls read that file. It holds digests of the prepared files and of the arrays: a cache
    that is damaged, of other files or without digests is rebuilt. Where the folder cannot be written to,
    or another process writes the file already, nothing is cached.

    Args:
      spec: the data set.
      split: 'train' or 'test'.
      data_dir: the folder data sets are kept in; None for TFDS' default.

    Returns:
      The arrays.

    Raises:
      DatasetNotFound: the data set is not prepared there.
      DamagedDataset: a file of it cannot be read, or has changed.
    """
    source = open_source(spec, split, data_dir)
    path = cache_path(source)
    made_from = source.digest()
    layout = _plan(source)
    arrays = _read_cache(path, made_from, layout)
    if arrays is None:
        arrays = _decode(source, layout)
        _write_cache(path, made_from, arrays)
    dataset = ArrayDataset(
        spec,
        split,
        arrays["images"],
        arrays["labels"],
        arrays.get("boxes"),
        arrays.get("box_labels"),
    )
    return dataset._with_origin(made_from)


def cache_path(source: ImageSource) -> str:
    """Returns the path of a split's decoded arrays.

    Such as `.../cifar10/3.0.2/cache_train.npz`.
    """
    split = source.spec.split(source.split).replace("+", "_")
    return os.path.join(source.folder, f"cache_{split}.npz")


def _plan(source: ImageSource) -> _Layout:
    """Lays out the arrays of a split."""
    spec, count = source.spec, len(source)
    layout: _Layout = {
        "images": ((count, *spec.image_shape), np.dtype(np.uint8)),
        "labels": ((count, *spec.label_shape), np.dtype(spec.label_dtype)),
    }
    if spec.has_boxes:
        layout["boxes"] = ((count, *spec.box_shape), np.dtype(np.float32))
    if spec.max_boxes > 1:
        layout["box_labels"] = ((count, spec.max_boxes), np.dtype(np.int32))
    return layout


def _decode(source: ImageSource, layout: _Layout) -> dict[str, np.ndarray]:
    began = time.monotonic()
    count = len(source)
    arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in layout.items()}
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
        time.monotonic() - began,
    )
    return arrays


def _read_cache(path: str, made_from: str, layout: _Layout) -> dict[str, np.ndarray] | None:
    """Reads a cache; None where there is none or another one.

    No array is read before its header is known to be right: some MB may unpack to any number of zeros.
    """
    try:
        with files.open_regular(path) as file:
            headers = npz.read_headers(file)
            if not set(_OF_CACHE) <= set(headers):
                _LOG.warning("%s was written before caches carried digests; rebuilding it", path)
                return None
            if any(headers.pop(name) != _DIGEST for name in _OF_CACHE):
                raise ValueError("its digests are none")
            file.seek(0)
            with np.load(file, allow_pickle=False) as cache:
                if str(cache["made_from"]) != made_from:
                    _LOG.warning(
                        "%s was made of other files than are there now; rebuilding it", path
                    )
                    return None
                if headers != layout:
                    raise ValueError("its arrays are others")
                arrays = {name: cache[name] for name in layout}
                if str(cache["digest"]) != digests.of_arrays(arrays):
                    raise ValueError("it is not as it was written")
                return arrays
    except FileNotFoundError:
        return None
    except Exception as error:  # NumPy and zipfile fail in many ways on a damaged file
        damage.refuse_lack(error, path)
        reason = getattr(error, "strerror", None) or error
        _LOG.warning("%s is damaged (%s); rebuilding it", path, reason)
        return None


def _write_cache(path: str, made_from: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes a cache whole, also where several processes start at once."""
    facts = {"made_from": made_from, "digest": digests.of_arrays(arrays)}
    values: dict[str, Any] = {**{name: np.array(facts[name]) for name in _OF_CACHE}, **arrays}
    try:
        with sole_writer.attempt(path) as sole:
            if sole:
                with files.replacing(path) as file:
                    np.savez(file, **values)
    except OSError as error:
        _LOG.warning("no cache of the decoded images at %s: %s", path, error)

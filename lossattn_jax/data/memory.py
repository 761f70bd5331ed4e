"""Whole splits as arrays in memory, with a cache on disk."""

import dataclasses
import logging
import math
import os
import time
from typing import Any

import numpy as np

from lossattn_jax import files
from lossattn_jax.data import damage, decoding
from lossattn_jax.data.pipeline import Batch, Examples
from lossattn_jax.data.specs import DatasetSpec
from lossattn_jax.data.split_source import SplitDigests, SplitSource
from lossattn_jax.files import digests, npz, sole_writer
from lossattn_jax.kernels import cpu
from lossattn_jax.registry import lookup

_LOG = logging.getLogger(__name__)
_READ_AT_ONCE = 100
_SHARE = 0.5  # of the free memory that the images of a split may take with the mode "auto"
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
      split: 'train', 'test' or 'held_out'.
      images: uint8 [N, H, W, C] of `spec.view.stored_shape`.
      labels: int32 [N], or uint8 [N, K] (multi-hot) where `spec.multi_label`.
      boxes: float32 [N, 4] (ymin, xmin, ymax, xmax as fractions of the image), or [N, M, 4] where an
        image may have several, or None.
      box_labels: int32 [N, M], the classes of several boxes; None without.
      origin: digests of the prepared split that `load` made the arrays of; None for other arrays, and for
        what `dataclasses.replace` makes.
    """

    spec: DatasetSpec
    split: str
    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray | None = None
    box_labels: np.ndarray | None = None
    origin: SplitDigests | None = dataclasses.field(default=None, init=False, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: np.ndarray, with_boxes: bool = False, stored: bool = False) -> Batch:
        """See `pipeline.Examples.read`."""
        images = np.take(
            self.images if stored else self.spec.view.cut_centre(self.images), indices, axis=0
        )
        batch = {
            "image": images,
            "label": np.take(self.labels, indices, axis=0),
            "index": indices.astype(np.int32),
        }
        if with_boxes and self.boxes is not None:
            batch["box"] = self.boxes[indices]
            if self.box_labels is not None:
                batch["box_label"] = self.box_labels[indices]
        return batch

    def take(self, indices: np.ndarray, split: str | None = None) -> "ArrayDataset":
        """Takes examples, counted from 0 anew.

        Args:
          indices: int64 [n], their places.
          split: name of the part; None: as this one's.
        """
        part = dataclasses.replace(
            self,
            split=split or self.split,
            images=self.images[indices],
            labels=self.labels[indices],
            boxes=None if self.boxes is None else self.boxes[indices],
            box_labels=None if self.box_labels is None else self.box_labels[indices],
        )
        return part if self.origin is None else part._with_origin(self.origin.take(indices))

    def digest(self) -> str:
        """Returns the examples' digest; see `pipeline.Examples.digest`.

        Of arrays that were not prepared it is their own.
        """
        if self.origin is not None:
            return self.origin.examples
        return digests.of_arrays(
            {name: array for name in _IN_EXAMPLE if (array := getattr(self, name)) is not None}
        )

    def picture_digest(self) -> str:
        """Digests the pictures; see `pipeline.Examples.picture_digest`."""
        return self.digest() if self.origin is None else self.origin.pictures

    def _with_origin(self, origin: SplitDigests) -> "ArrayDataset":
        """Sets `origin` of a new data set."""
        object.__setattr__(self, "origin", origin)
        return self


def keeps(mode: str, spec: DatasetSpec, count: int) -> bool:
    """Whether a mode keeps so many images of a data set in memory.

    Args:
      mode: "memory", "stream", or "auto": where they take no more than half of the free memory.
      spec: the data set.
      count: of images.

    Raises:
      UnknownName: another mode.
    """

    def fits() -> bool:
        free = cpu.free_memory()
        return free is None or count * math.prod(spec.view.stored_shape) <= _SHARE * free

    return lookup(
        "config.data.mode", mode, {"auto": fits, "memory": lambda: True, "stream": lambda: False}
    )()


def load_source(source: SplitSource) -> ArrayDataset:
    """Loads a split into memory.

    The first call decodes every image and writes the arrays to a file in `source.folder`; later calls read
    that file. It holds digests of the data set's files and of the arrays: a cache that is damaged, of other
    files or without digests is rebuilt. Where the folder cannot be written to, or another process writes the
    file already, nothing is cached.

    Args:
      source: the split.

    Raises:
      UserError: a file of it cannot be read, or has changed.
    """
    spec = source.spec
    path = cache_path(source)
    origin = source.digests()
    layout = _plan(source)
    arrays = _read_cache(path, origin.examples, layout)
    if arrays is None:
        arrays = _decode(source, layout)
        _write_cache(path, origin.examples, arrays)
    dataset = ArrayDataset(
        spec,
        source.split,
        arrays["images"],
        arrays["labels"],
        arrays.get("boxes"),
        arrays.get("box_labels"),
    )
    return dataset._with_origin(origin)


def store(source: SplitSource, images: np.ndarray) -> None:
    """Writes the cache that `load_source` reads, of images that were decoded already.

    Args:
      source: the split, of a data set without boxes.
      images: uint8 [N, H, W, C], those of `source`.
    """
    arrays = {"images": images, "labels": source.labels()}
    _write_cache(cache_path(source), source.digests().examples, arrays)


def cache_path(source: SplitSource) -> str:
    """Returns the path of a split's decoded arrays.

    Such as `.../cifar10/3.0.2/cache_train.npz`.
    """
    return os.path.join(source.folder, f"cache_{source.name}.npz")


def _plan(source: SplitSource) -> _Layout:
    """Lays out the arrays of a split."""
    spec, count = source.spec, len(source)
    layout: _Layout = {
        "images": ((count, *spec.view.stored_shape), np.dtype(np.uint8)),
        "labels": ((count, *spec.label_shape), np.dtype(spec.label_dtype)),
    }
    if spec.has_boxes:
        layout["boxes"] = ((count, *spec.box_shape), np.dtype(np.float32))
    if spec.max_boxes > 1:
        layout["box_labels"] = ((count, spec.max_boxes), np.dtype(np.int32))
    return layout


def _decode(source: SplitSource, layout: _Layout) -> dict[str, np.ndarray]:
    began = time.monotonic()
    count = len(source)
    arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in layout.items()}
    what = f"images of {source.spec.name} {source.split}"
    parts = decoding.map_parts(source.__getitems__, count, _READ_AT_ONCE, what)
    for indices, examples in parts:
        for index, example in zip(indices, examples, strict=True):
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

"""Zarr stores of maps: the only module that knows about TensorStore.

A store is a Zarr v3 group with an array for each of `ARRAYS`. What it was made from is in the group's
attributes, with digests of data and parameters, so that it is gone on with only by the same export. Each row
has a digest of its content, by which damaged, lost and exchanged chunks are found.
"""

import hashlib
import json
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tensorstore

import lossattn_jax
from lossattn_jax.data import DatasetSpec
from lossattn_jax.errors import UserError

log = logging.getLogger(__name__)

_FORMATS = "lossattn_jax maps "
FORMAT = _FORMATS + "3"
# The arrays: type, and axes in the order of a row. `done` is the last to be made and to be written.
ARRAYS = {
    "index": ("int32", ("image",)),
    "label": ("int32", ("image",)),
    "prediction": ("int32", ("image",)),
    "logits": ("float32", ("image", "class")),
    "probabilities": ("float32", ("image", "class")),
    "patch_logits": ("float32", ("image", "patch", "class")),
    "attention": ("float32", ("image", "patch")),
    "pixels": ("float32", ("image", "y", "x")),
    "receptive_field": ("float32", ("patch", "y", "x")),
    "digest": ("uint8", ("image", "byte")),
    "done": ("bool", ("image",)),
}
# What the digest of a row is of, besides the receptive fields.
_DIGESTED = [name for name in ARRAYS if name not in ("receptive_field", "digest", "done")]
_UNWRITTEN = {"float32": "NaN", "int32": -1, "uint8": 255, "bool": False}
_COMPRESSION = {"cname": "zstd", "clevel": 3, "shuffle": "shuffle"}
_DIGEST = re.compile("[0-9a-f]{64}")
_METADATA = "zarr.json"  # of a group or an array


class MapStore:
    """An opened store of N images, a chunk of which holds the `rows` that a process has of a batch."""

    def __init__(
        self, folder: pathlib.Path, spec: DatasetSpec, sizes: Mapping[str, int], rows: int
    ):
        """Opens a store in `folder`; `sizes` are those of the axes."""
        self.folder, self.rows = folder, rows
        self._num = sizes["image"]
        sizes = {**sizes, "byte": hashlib.sha256().digest_size}
        self._pending: tuple[int, int, list[Any]] | None = None
        # `done` is made last: where it is, another array that is not has been lost.
        create = jax.process_index() == 0 and not (folder / "done" / _METADATA).exists()
        self.arrays = {}
        for name, (dtype, axes) in ARRAYS.items():
            if name == "label" and spec.multi_label:
                dtype, axes = "uint8", ("image", "class")
            chunk = [rows if axis == "image" else sizes[axis] for axis in axes]
            opening = {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": str(folder.absolute() / name)},
                "metadata": {
                    "shape": [sizes[axis] for axis in axes],
                    "data_type": dtype,
                    "dimension_names": axes,
                    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
                    "fill_value": _UNWRITTEN[dtype],
                    "codecs": [{"name": "blosc", "configuration": _COMPRESSION}],
                },
                "store_data_equal_to_fill_value": True,  # what was written is there, whatever it is
            }
            self.arrays[name] = self.wait(tensorstore.open(opening, open=True, create=create))

    def first_undone(self) -> int | None:
        """Finds the first row that is not done or is damaged.

        Of the latter a warning tells. None where there is no such chunk.
        """
        fields = legible(self.arrays["receptive_field"])
        own = jax.process_index() * self.rows
        for start in range(own, self._num, jax.process_count() * self.rows):
            stop = min(start + self.rows, self._num)
            done = legible(self.arrays["done"][start:stop])
            if done is None or not done.all():
                return start
            digests: Any = legible(self.arrays["digest"][start:stop])
            rows = {name: legible(self.arrays[name][start:stop]) for name in _DIGESTED}
            illegible = any(array is None for array in (fields, digests, *rows.values()))
            if illegible or (digests != _digest_rows(rows, fields)).any():
                log.warning(
                    "the store %s is damaged: images from %d on are not as they were written; "
                    "they are made again",
                    self.folder,
                    start,
                )
                return start
        return None

    def write(self, start: int, values: Mapping[str, np.ndarray], fields: np.ndarray) -> None:
        """Starts to write a chunk, once the one before is written.

        Args:
          start: its first row; it is cut at N.
          values: by names of the arrays, all but `receptive_field`, `digest` and `done`.
          fields: what `receptive_field` has.
        """
        self.close()
        count = min(self.rows, self._num - start)
        if count > 0:
            rows = {
                name: np.asarray(array[:count], self.arrays[name].dtype.numpy_dtype)
                for name, array in values.items()
            }
            rows["digest"] = _digest_rows(rows, fields)
            begun = [self._begin(name, start, array) for name, array in rows.items()]
            self._pending = start, count, begun

    def close(self) -> None:
        """Waits until all that was given to `write` is on disk, and says that it is done."""
        if self._pending is not None:
            start, count, begun = self._pending
            self._pending = None
            for future in begun:
                self.wait(future)
            self.wait(self._begin("done", start, np.ones(count, bool)))

    def _begin(self, name: str, start: int, rows: np.ndarray) -> Any:
        array = self.arrays[name]
        if len(rows) < self.rows:
            # The last chunk reaches beyond the array, and would be read before it is written: where a
            # crash has broken it, that fails.
            key = "/".join(["c", str(start // self.rows), *"0" * (array.rank - 1)])
            self.wait(array.kvstore.write(key, None))
        return array[start : start + len(rows)].write(rows)

    def wait(self, future: Any) -> Any:
        """What comes of opening, reading or writing; a failure is a `UserError`."""
        try:
            return future.result()
        except (ValueError, OSError, RuntimeError) as error:
            # TensorStore ends its messages with whole specifications.
            reason = " ".join(str(error).split()).split(" [")[0][:300]
            raise UserError(f"the store {self.folder} cannot be written: {reason}") from None


def _digest_rows(rows: Mapping[str, Any], fields: Any) -> np.ndarray:
    """Digests each of n rows with the receptive fields, uint8 `[n, 32]`."""
    shared = hashlib.sha256(fields.tobytes())
    digests = []
    for values in zip(*(rows[name] for name in _DIGESTED), strict=True):
        digest = shared.copy()
        for value in values:
            digest.update(value.tobytes())
        digests.append(np.frombuffer(digest.digest(), np.uint8))
    return np.stack(digests)


def legible(array: Any) -> np.ndarray | None:
    """The content of an array, or of a part of one; None where a file is damaged."""
    try:
        return array.read().result()
    except ValueError:
        return None


def make_group(folder: pathlib.Path, made_from: dict[str, Any], told: dict[str, Any]) -> None:
    """Makes the folder of a store, or sees that it is one that was made from the same.

    Args:
      folder: of the store.
      made_from: attributes that have to be the same for an export to be gone on with.
      told: attributes that need not be.

    Raises:
      UserError: the folder holds something else, or cannot be written.
    """
    path, part = folder / _METADATA, folder / f"{_METADATA}.part"
    instead = "give another --out, or remove it to start anew"
    stored: Any = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if {entry.name for entry in folder.iterdir()} <= {part.name}:
            versions = {"lossattn_jax": lossattn_jax.__version__, "jax": jax.__version__}
            attributes = made_from | told | versions
            group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
            part.write_text(json.dumps(group, indent=2) + "\n")
            part.replace(path)  # in one go, so that a folder without it is not ours
            return
        if path.is_file():
            stored = json.loads(path.read_text())["attributes"]
    except OSError as error:
        raise UserError(f"the store {folder} cannot be written: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        pass  # of something else, or damaged
    kind = stored.get("format") if isinstance(stored, dict) else None
    if not isinstance(kind, str) or not kind.startswith(_FORMATS):
        raise UserError(f"{folder} is not a store of maps; {instead}")
    if kind != FORMAT:
        raise UserError(
            f"{folder} was written by another version, in the format {kind!r} and not {FORMAT!r}, so that "
            f"it cannot be seen whether it was made from the same; {instead}"
        )
    for key, here in made_from.items():
        if stored.get(key) != here:
            before, now = _abbreviate(stored.get(key)), _abbreviate(here)
            raise UserError(
                f"{folder} holds another export, with {key} {before} and not {now}; {instead}"
            )


def _abbreviate(value: Any) -> str:
    """A value for a sentence, a digest by its first digits."""
    if isinstance(value, str) and _DIGEST.fullmatch(value):
        return f"'{value[:8]}...'"
    return repr(value)

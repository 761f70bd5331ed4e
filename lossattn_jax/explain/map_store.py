"""Zarr stores of maps, written and read with TensorStore.

A store is a Zarr v3 group with an array for each of `ARRAYS`. What it was made from is in the group's
attributes, with digests of data and parameters, so that it is gone on with only by the same export. Each row
has a digest of its content, by which damaged, lost and exchanged chunks are found.
"""

import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tensorstore

import lossattn_jax
from lossattn_jax import files
from lossattn_jax.data import DatasetSpec
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests, records

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
_DIGEST_ARRAYS = [name for name in ARRAYS if name not in ("receptive_field", "digest", "done")]
_UNWRITTEN = {"float32": "NaN", "int32": -1, "uint8": 255, "bool": False}
_COMPRESSION = {"cname": "zstd", "clevel": 3, "shuffle": "shuffle"}
_METADATA = "zarr.json"  # of a group or an array
_GROUP = {"zarr_format": 3, "node_type": "group"}
_DIGEST = "digest"  # of the group's metadata, among its attributes
_EARLIER_PART = f"{_METADATA}.part"  # what killed exports of earlier versions have left
_INSTEAD = "give another --out, or remove the store to start anew"


class MapStore:
    """An open store of N images.

    A chunk holds the `rows` that a process has of a batch.
    """

    def __init__(
        self, folder: pathlib.Path, spec: DatasetSpec, sizes: Mapping[str, int], rows: int
    ):
        """Opens a store in `folder`; `sizes` are those of the axes.

        Raises:
          UserError: it is damaged, lacks an array, or cannot be read or written.
        """
        _refuse_irregular(folder)
        self.folder, self.rows = folder, rows
        self._num = sizes["image"]
        sizes = {**sizes, "byte": hashlib.sha256().digest_size}
        self._pending: tuple[int, int, list[Any]] | None = None
        # `done` is made last: where it is, another array that is not has been lost.
        create = jax.process_index() == 0 and not os.path.lexists(folder / "done" / _METADATA)
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
                "store_data_equal_to_fill_value": True,  # whatever the content, it was written
            }
            self.arrays[name] = self._open(folder / name / _METADATA, opening, create)

    def _open(self, path: pathlib.Path, opening: dict[str, Any], create: bool) -> Any:
        """Opens the array whose metadata are in a file, or makes it.

        Raises:
          UserError: that is damaged or lost, or cannot be written.
        """
        future = tensorstore.open(opening, open=True, create=create)
        if create and not os.path.lexists(path):
            return self.wait(future)
        try:
            json.loads(files.read(path))  # TensorStore takes more than JSON
            return future.result()
        except (ValueError, OSError, RuntimeError) as error:
            raise UserError(
                f"{path} cannot be read ({_short(error)}): it is damaged or lost; {_INSTEAD}"
            ) from None

    def first_undone(self) -> int | None:
        """Finds the first row that is not done or is damaged.

        Of the latter a warning tells. None where there is no such chunk.
        """
        fields = legible(self.arrays["receptive_field"])
        own = jax.process_index() * self.rows
        for start in range(own, self._num, jax.process_count() * self.rows):
            stop = min(start + self.rows, self._num)
            is_done = legible(self.arrays["done"][start:stop])
            if is_done is not None and not is_done.all():
                return start
            digests: Any = legible(self.arrays["digest"][start:stop])
            rows = {name: legible(self.arrays[name][start:stop]) for name in _DIGEST_ARRAYS}
            illegible = any(array is None for array in (is_done, fields, digests, *rows.values()))
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
            writes = [self._begin(name, start, array) for name, array in rows.items()]
            self._pending = start, count, writes

    def close(self) -> None:
        """Waits until written rows are on disk, and marks them done."""
        if self._pending is not None:
            start, count, writes = self._pending
            self._pending = None
            for future in writes:
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

    def wait(self, future: Any, verb: str = "written") -> Any:
        """Waits for TensorStore; a failure is a `UserError` that says what failed."""
        try:
            return future.result()
        except (ValueError, OSError, RuntimeError) as error:
            reason = _short(error)
            raise UserError(f"the store {self.folder} cannot be {verb}: {reason}") from None

    def read(self, name: str) -> np.ndarray:
        """The content of an array.

        Raises:
          UserError: a file is damaged.
        """
        return self.wait(self.arrays[name].read(), "read")


def _refuse_irregular(folder: pathlib.Path) -> None:
    """Refuses a store with a FIFO or device.

    TensorStore would wait for it for ever.
    """
    if (path := files.find_irregular(folder)) is not None:
        raise UserError(f"{path} cannot be read: it is not a regular file; {_INSTEAD}")


def _short(error: Exception) -> str:
    """What TensorStore says; it ends with whole specifications."""
    return " ".join(str(error).split()).split(" [")[0][:300]


def _digest_rows(rows: Mapping[str, Any], fields: Any) -> np.ndarray:
    """Digests each of n rows with the receptive fields, uint8 `[n, 32]`."""
    fields_hash = hashlib.sha256(fields.tobytes())
    digests = []
    for values in zip(*(rows[name] for name in _DIGEST_ARRAYS), strict=True):
        digest = fields_hash.copy()
        for value in values:
            digest.update(value.tobytes())
        digests.append(np.frombuffer(digest.digest(), np.uint8))
    return np.stack(digests)


def legible(array: Any) -> np.ndarray | None:
    """Reads an array or a part; None where a file is damaged."""
    try:
        return array.read().result()
    except (ValueError, NotImplementedError):  # the latter where a chunk's bytes are no booleans
        return None


def make_group(folder: pathlib.Path, made_from: dict[str, Any], notes: dict[str, Any]) -> None:
    """Makes a store's folder, or refuses one made from other inputs.

    Args:
      folder: of the store.
      made_from: attributes that have to be the same for an export to be gone on with.
      notes: attributes that need not be.

    Raises:
      UserError: the folder holds something else, or cannot be written.
    """
    path = folder / _METADATA
    versions = {"lossattn_jax": lossattn_jax.__version__, "jax": jax.__version__}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Under its name in one go, so that a folder without it is not ours.
        names = {entry.name for entry in folder.iterdir()}
        if all(files.is_temporary(name) or name == _EARLIER_PART for name in names):
            attributes = made_from | notes | versions
            digest = digests.of_json({**_GROUP, "attributes": attributes})
            group = {**_GROUP, "attributes": attributes | {_DIGEST: digest}}
            files.write(path, (json.dumps(group, indent=2) + "\n").encode())
            return
    except OSError as error:
        raise UserError(f"the store {folder} cannot be written: {error.strerror}") from None
    if not os.path.lexists(path):
        raise UserError(f"{folder} is not a store of maps: it has no {_METADATA}; {_INSTEAD}")
    attributes_there = _read_attributes(path, {*made_from, *notes, *versions})
    kind = attributes_there.get("format")
    if kind != FORMAT:
        raise UserError(
            f"{folder} was written by another version, in the format {kind!r} and not {FORMAT!r}, so that "
            f"it cannot be seen whether it was made from the same; {_INSTEAD}"
        )
    before = {key: attributes_there[key] for key in made_from if key in attributes_there}
    if (reason := records.difference(before, made_from)) is not None:
        raise UserError(f"{folder} holds another export ({reason}); {_INSTEAD}")


def _read_attributes(path: pathlib.Path, names: set[str]) -> dict[str, Any]:
    """The attributes of a store, without their digest.

    Args:
      path: of the group's metadata.
      names: names of all attributes that a store has.

    Raises:
      UserError: they are damaged, or of something else.
    """
    try:
        group = json.loads(files.read(path))
    # The last one for what is nested too deeply.
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): it is damaged; {_INSTEAD}") from None
    attributes: Any = group.get("attributes") if isinstance(group, dict) else None
    kind = attributes.get("format") if isinstance(attributes, dict) else None
    if not isinstance(kind, str) or not kind.startswith(_FORMATS):
        raise UserError(f"{path.parent} is not a store of maps; {_INSTEAD}")
    # Stores from before there was one have none.
    digest = attributes.pop(_DIGEST, None)
    is_damaged = digest is not None and digest != digests.of_json(group)
    if kind == FORMAT and (
        is_damaged or group.keys() != {*_GROUP, "attributes"} or attributes.keys() - names
    ):
        raise UserError(f"{path} cannot be read: it is not as it was written; {_INSTEAD}")
    return attributes

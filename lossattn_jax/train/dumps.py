"""Dumps of skipped updates, for replay.

They are written where a training ends.

A dump is a folder with `arrays.npz`, the model before the update and the update's examples, and `dump.json`,
a record (see `files.records`) of what else the update follows from. The record is written last and has the
arrays' digest, so that arrays of another update are not taken for those of this one.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lossattn_jax import files
from lossattn_jax.checkpoint.tree_names import name_leaves
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests, npz, records

RECORD_NAME, ARRAYS_NAME = "dump.json", "arrays.npz"
FOLDER_NAME = "nonfinite"  # of a run, with its dumps

REMEDY = "the same training writes it anew"

_KIND = "kind"


@dataclasses.dataclass(frozen=True)
class Dump:
    """A skipped update.

    Attributes:
      kind: "images" or "bags".
      content: JSON, what else the update follows from; see `train.images.nonfinite` and
        `train.bags.nonfinite`.
      arrays: by name: "state/..." of the model before the update, "batch/..." of the examples.
      data: digest of the data set that the training had.
      folder: where it was read from.
    """

    kind: str
    content: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    data: str = ""
    folder: pathlib.Path = pathlib.Path()

    def tree(self, part: str) -> dict[str, Any]:
        """Returns the arrays of "state" or "batch" as nested dictionaries."""
        tree: dict[str, Any] = {}
        for name, array in self.arrays.items():
            first, *parents, last = name.split("/")
            if first == part:
                node = tree
                for parent in parents:
                    node = node.setdefault(parent, {})
                node[last] = array
        return tree

    def restore_state(self, like: Mapping[str, Any]) -> Any:
        """The state before the update.

        Args:
          like: a tree with the shapes and dtypes that are expected.

        Raises:
          UserError: the stored arrays are others.
        """
        leaves = []
        for name, leaf in name_leaves({"state": like}):
            array = self.arrays.get(name)
            if array is None or (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
                raise UserError(
                    f"{self.folder / ARRAYS_NAME} does not hold an update of the network in {RECORD_NAME}: "
                    f"{name} is {'missing' if array is None else 'another'}"
                )
            leaves.append(array)
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


def write(
    folder: pathlib.Path,
    kind: str,
    content: Mapping[str, Any],
    trees: Mapping[str, Any],
    data: str,
) -> None:
    """Writes a dump, in place of an earlier one.

    Args:
      folder: of the dump.
      kind, content, data: as of `Dump`.
      trees: "state" and "batch", trees of arrays on the host.

    Raises:
      UserError: it cannot be written.
    """
    arrays = {name: np.asarray(array) for name, array in name_leaves(dict(trees))}
    made_from = {"data": data, "arrays": digests.of_arrays(arrays)}
    try:
        for path in (folder.parent, folder):
            files.make_folder(path)
        files.remove_temporaries(folder)
        records.write_arrays(folder / ARRAYS_NAME, arrays)
        records.write(folder / RECORD_NAME, {_KIND: kind, **content}, made_from, indent=1)
    except OSError as error:
        raise UserError(f"the dump {folder} cannot be written: {error.strerror}") from None


def read(folder: pathlib.Path) -> Dump:
    """Reads a dump.

    Whether its arrays are those of its network is not looked at.

    Raises:
      UserError: there is none, or it cannot be read or is not as it was written.
    """
    path = folder / RECORD_NAME
    record = read_record(path)
    content = dict(record.content)
    kind = content.pop(_KIND, None)
    if record.made_from is None or not isinstance(kind, str):
        raise UserError(
            f"{path} cannot be read as a skipped update: it does not say of what; {REMEDY}"
        )
    arrays = read_arrays(folder / ARRAYS_NAME)
    if digests.of_arrays(arrays) != record.made_from.get("arrays"):
        raise UserError(
            f"the dump {folder} is damaged: its arrays are not those that were written with {RECORD_NAME}; "
            f"{REMEDY}"
        )
    return Dump(kind, content, arrays, str(record.made_from.get("data", "")), folder)


def read_record(path: pathlib.Path) -> records.Record:
    """Reads a record of a dump.

    Raises:
      UserError: there is none, or it cannot be read or is not as it was written.
    """
    try:
        path.stat()  # an absent file is no damage
        return records.read(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{path.parent} is not a dump of a skipped update: it has no {path.name}"
        ) from None
    except (records.DamagedRecord, OSError) as error:
        raise UserError(f"{path} cannot be read as a skipped update: {error}; {REMEDY}") from None


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a dump.

    Raises:
      UserError: there are none, or they cannot be read.
    """
    try:
        return npz.read_arrays(path)
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} is not a dump of a skipped update: it has no {path.name}"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as arrays of a skipped update: {error}; {REMEDY}"
        ) from None

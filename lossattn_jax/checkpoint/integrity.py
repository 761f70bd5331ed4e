"""Integrity of checkpoints: metadata, shapes and digests of arrays.

Beside its arrays a checkpoint has digests of them, in an item of their own. They also guard the shapes and
dtypes, by which damage differs from the checkpoint of another model, and the metrics. Checkpoints from
before there were digests have none; of their arrays only what Orbax finds by itself is found.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from orbax.checkpoint.path import step as orbax_steps

from lossattn_jax import files
from lossattn_jax.checkpoint.tree_names import name_leaves
from lossattn_jax.errors import DamagedCheckpoint, UserError
from lossattn_jax.files import digests as digests_lib

DIGESTS = "digests"
METADATA_NAME = "_CHECKPOINT_METADATA"
STEP_NAMES = orbax_steps.standard_name_format()

_METRICS = "metrics"
_FILES = {DIGESTS: "metadata", _METRICS: "metrics"}  # as Orbax names them

# "float32[2,3]" of each array of an item, by its path in the tree.
Shapes = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Record:
    """A checkpoint's record, without its arrays.

    Attributes:
      items: names of its items of arrays.
      shapes: of each item's arrays; None where the checkpoint has no digests.
      digests: SHA-256 of each array, as `shapes`.
      metrics: that were saved with it, if any.
    """

    items: frozenset[str]
    shapes: dict[str, Shapes] | None
    digests: dict[str, dict[str, str]] | None
    metrics: dict[str, float] | None


def is_checkpoint(folder: pathlib.Path) -> bool:
    """Whether a folder was written as a checkpoint.

    Any folder may have a number for a name; one that has lost a file since is a checkpoint all the same.
    """
    names = (METADATA_NAME, DIGESTS)
    return any((folder / name).exists() for name in names) or any(folder.glob("*/_METADATA"))


def shapes_of(tree: Any) -> Shapes:
    """Returns shape and dtype of every array of a tree."""
    return {path: _shape(leaf) for path, leaf in name_leaves(tree)}


def digests_of(tree: Any) -> dict[str, str]:
    """Digests every array of a tree, SHA-256 of its bytes."""
    return {path: digests_lib.of_array(np.asarray(leaf)) for path, leaf in name_leaves(tree)}


def describe(items: Mapping[str, Any], metrics: Mapping[str, float] | None) -> dict[str, Any]:
    """Makes the JSON record by which `read` finds damage."""
    content = {
        "shapes": {name: shapes_of(tree) for name, tree in items.items()},
        "digests": {name: digests_of(tree) for name, tree in items.items()},
        "metrics": None if metrics is None else digests_lib.of_json(metrics),
    }
    return {**content, "sha256": digests_lib.of_json(content)}


def read(folder: pathlib.Path) -> Record:
    """Reads a checkpoint's record, without its arrays.

    Args:
      folder: that of its step.

    Raises:
      DamagedCheckpoint: it is not as it was saved.
      UserError: this user may not read it.
    """
    handlers = _read_json(folder / METADATA_NAME).get("item_handlers")
    if not isinstance(handlers, dict):
        raise DamagedCheckpoint(f"{METADATA_NAME} names no items")
    for name in handlers:
        if not (folder / name).is_dir():
            raise DamagedCheckpoint(f"it has no {name}")
    try:  # Orbax reads the rest of the file when it opens the folder of all checkpoints.
        _ = STEP_NAMES.find_step(folder.parent, int(folder.name)).commit_timestamp
    except Exception as error:
        raise DamagedCheckpoint(f"{METADATA_NAME} cannot be read: {error}") from None
    content, metrics = (
        _read_json(folder / name / file) if name in handlers or (folder / name).is_dir() else None
        for name, file in _FILES.items()
    )
    items = frozenset(handlers) - set(_FILES)
    if content is None:
        return Record(items, None, None, metrics)
    stored_digest = content.pop("sha256", None)
    if stored_digest != digests_lib.of_json(content):
        raise DamagedCheckpoint(f"{DIGESTS} is not as it was saved")
    if content["metrics"] != (None if metrics is None else digests_lib.of_json(metrics)):
        raise DamagedCheckpoint(f"{_METRICS} is not as it was saved")
    if items != frozenset(content["shapes"]):
        raise DamagedCheckpoint(f"{METADATA_NAME} names other items than were saved")
    return Record(items, content["shapes"], content["digests"], metrics)


def verify(tree: Any, digests: Mapping[str, str]) -> None:
    """Refuses arrays that differ from their digests.

    Raises:
      DamagedCheckpoint: one is not as it was saved.
    """
    for path, digest in digests_of(tree).items():
        if digest != digests[path]:
            raise DamagedCheckpoint(f"the array {path} is not as it was saved")


def _shape(leaf: Any) -> str:
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return f"{leaf.dtype.name}[{','.join(map(str, leaf.shape))}]"


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    name = str(path.relative_to(path.parents[1])) if path.name != METADATA_NAME else METADATA_NAME
    try:
        content = json.loads(files.read(path))
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise DamagedCheckpoint(f"{name} holds no keys")
    return content

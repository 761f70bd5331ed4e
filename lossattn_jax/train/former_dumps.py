"""Dumps of the release before; read for one release.

Of images and of bags, in a format each.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lossattn_jax.checkpoint import provenance
from lossattn_jax.checkpoint import store as checkpoint_lib
from lossattn_jax.config.options import leaves
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests, records
from lossattn_jax.train import dumps
from lossattn_jax.train.dumps import Dump

_BATCH, _CONFIG = "batch.npz", "config.json"  # of images, beside dump.json and checkpoints
_UPDATE = "update.json"  # of bags, beside arrays.npz


def read(folder: pathlib.Path) -> Dump | None:
    """Reads a dump of the release before; None where there is none.

    Raises:
      UserError: it cannot be read, is not as it was written, or has no digests.
    """
    if (folder / _UPDATE).exists():
        return _read_bags(folder)
    if (folder / _BATCH).exists():
        return _read_images(folder)
    return None


def _read_bags(folder: pathlib.Path) -> Dump:
    made_from, content = _read_record(folder / _UPDATE)
    arrays = dumps.read_arrays(folder / dumps.ARRAYS_NAME)
    _refuse_mixed(folder, made_from, {"arrays": digests.of_arrays(arrays)})
    named_trees = {
        f"batch/{name.removeprefix('bags/')}" if name.startswith("bags/") else name: array
        for name, array in arrays.items()
    }
    return Dump("bags", content, named_trees, str(made_from.get("data", "")), folder)


@dataclasses.dataclass(frozen=True)
class _FormerImages(Dump):
    """A dump of images whose state is a checkpoint."""

    state_digest: str = ""

    def restore_state(self, like: Mapping[str, Any]) -> Any:
        with checkpoint_lib.Checkpoints(self.folder, read_only=True) as checkpoints:
            step = checkpoints.latest_step()
            if step is None:
                raise UserError(
                    f"{self.folder} is not a dump of a skipped update: it has no checkpoint"
                )
            items = checkpoints.restore(step, like)
        here = {"state": provenance.of_variables(items)}
        _refuse_mixed(self.folder, {"state": self.state_digest}, here)
        return items


def _read_images(folder: pathlib.Path) -> Dump:
    made_from, content = _read_record(folder / dumps.RECORD_NAME)
    batch = dumps.read_arrays(folder / _BATCH)
    try:
        config = json.loads((folder / _CONFIG).read_bytes())
        config.pop(records.DIGEST, None)
        values = dict(leaves(ConfigDict(config)))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / _CONFIG} cannot be read as a config: {error}") from None
    keys = {f"config.{key}": value for key, value in values.items()}
    _refuse_mixed(folder, made_from, {**keys, "batch": digests.of_arrays(batch)})
    examples = int(batch.pop("training_examples"))
    return _FormerImages(
        kind="images",
        content={**content, "examples": examples, "config": values},
        arrays={f"batch/{name}": array for name, array in batch.items()},
        data=str(made_from.get("data", "")),
        folder=folder,
        state_digest=str(made_from.get("state", "")),
    )


def _read_record(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what a record was made from, and its content."""
    record = dumps.read_record(path)
    if record.made_from is None:
        raise UserError(f"{path} was written before dumps carried digests; {dumps.REMEDY}")
    return record.made_from, record.content


def _refuse_mixed(folder: pathlib.Path, record: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuses parts that were not written together."""
    before = {key: record.get(key) for key in here}
    if (reason := records.difference(before, here)) is not None:
        raise UserError(
            f"the dump {folder} is damaged: its parts were not written together ({reason}); {dumps.REMEDY}"
        )

"""Dumps of updates of networks for bags that were not finite: written where a training ends, read to replay.

A dump is a folder with `update.json`, which says whose update it is, and `arrays.npz`: the model before the
update, Adam's moments, and the bags with their dropout. `update.json` is a record (see `records`) that has
the arrays' digest, so that arrays of another update are not taken for those of this one.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lossattn_jax import files
from lossattn_jax.checkpoint import tree_names
from lossattn_jax.errors import UntrustedCode, UserError
from lossattn_jax.files import digests, records
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.registry import refuse_untrusted
from lossattn_jax.train.bags.settings import Settings

UPDATE_NAME, ARRAYS_NAME = "update.json", "arrays.npz"

# What of a network the JSON file has; it computes in float32.
_NETWORK = ("num_classes", "method", "backbone", "hidden", "dropout")


@dataclasses.dataclass(frozen=True)
class Dump:
    """An update that a training has skipped.

    Attributes:
      training: what messages call the training.
      update: what they call the update.
      ids: of its b bags.
      network: of the model.
      settings: of the model, its own values among them.
      consistency: whether its attention is kept near its average over the epochs.
      seed: of the model.
      epoch: of the update, from 0.
      count: updates in Adam's moments.
      state: before the update, the trees "params", "mu" and "nu", the last two Adam's moments.
      bags: "x" `[b, length, features...]` float32 as in the data set, "mask" `[b, length]` bool,
        "labels" `[b]` int32, "noise" `[b, length, units]` uint8 of the dropout, "target" `[b, length]`
        float32 (of `State.ensemble`; without consistency `[0]`), "mean" and "inverse_scale" of the model's
        standardisation, and "class_weights" `[K]` float32 where it has some.
      data: digest of the data set that the training had.
    """

    training: str
    update: str
    ids: tuple[str, ...]
    network: BagNetwork
    settings: Settings
    consistency: bool
    seed: int
    epoch: int
    count: int
    state: Mapping[str, Any]
    bags: Mapping[str, np.ndarray]
    data: str = ""


def write(dump: Dump, folder: pathlib.Path) -> None:
    """Writes a dump; what an earlier one has left in the folder is replaced.

    Raises:
      UserError: it cannot be written.
    """
    plain = ("training", "update", "ids", "consistency", "seed", "epoch", "count")
    content = {
        **{name: getattr(dump, name) for name in plain},
        "network": {name: getattr(dump.network, name) for name in _NETWORK},
        "settings": dataclasses.asdict(dump.settings),
    }
    arrays: dict[str, Any] = {
        name: np.asarray(array)
        for name, array in tree_names.named({"bags": dict(dump.bags), "state": dict(dump.state)})
    }
    made_from = {"data": dump.data, "arrays": digests.of_arrays(arrays)}
    try:
        for path in (folder.parent, folder):
            files.make_folder(path)
        files.remove_temporaries(folder)
        records.write_arrays(folder / ARRAYS_NAME, arrays)
        records.write(folder / UPDATE_NAME, content, made_from, indent=1)
    except OSError as error:
        raise UserError(f"the dump {folder} cannot be written: {error.strerror}") from None


def read(folder: pathlib.Path, *, trust_code: bool = False) -> Dump:
    """Reads what `write` wrote. Whether its arrays are those of its network is not looked at.

    Args:
      folder: of the dump.
      trust_code: whether code that it names by reference may be imported.

    Raises:
      UntrustedCode: it names code that is not trusted; nothing was imported.
      UserError: there is none, it cannot be read or is not as it was written, or it has no digests.
    """
    path = folder / UPDATE_NAME
    try:
        path.stat()  # an absent file is no damage
        record = records.read(path)
        if record.made_from is None:
            raise ValueError(
                "it was written before dumps carried digests; the same training writes it anew"
            )
        content = record.content
        parts = {**content["network"], **content["settings"]}
        refuse_untrusted(parts.items(), path, trust_code)
        hidden = content["network"]["hidden"]
        network = {**content["network"], "hidden": None if hidden is None else tuple(hidden)}
        path = folder / ARRAYS_NAME
        with files.open_regular(path) as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        if digests.of_arrays(arrays) != record.made_from.get("arrays"):
            raise ValueError(f"its arrays are not those that were written with {UPDATE_NAME}")
        trees = _nested(arrays)
        state, bags = trees["state"], trees["bags"]
        path = folder / UPDATE_NAME
        return Dump(
            training=str(content["training"]),
            update=str(content["update"]),
            ids=tuple(map(str, content["ids"])),
            network=BagNetwork(**network),
            settings=Settings(**content["settings"]),
            consistency=bool(content["consistency"]),
            seed=int(content["seed"]),
            epoch=int(content["epoch"]),
            count=int(content["count"]),
            state=state,
            bags=bags,
            data=str(record.made_from.get("data", "")),
        )
    except UntrustedCode:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} is not a dump of a skipped update of bags: it has no {path.name}"
        ) from None
    except Exception as error:  # json, NumPy and zipfile fail in many ways on damaged files
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"{path} cannot be read as a skipped update: {reason}") from None


def _nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Undoes `tree_names.named` for trees of dictionaries."""
    trees: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, last = name.split("/")
        node = trees
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = array
    return trees

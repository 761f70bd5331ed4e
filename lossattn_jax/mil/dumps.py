"""Dumps of updates of networks for bags that were not finite: written where a training ends, read to replay.

A dump is a folder with `update.json`, which says whose update it is, and `arrays.npz`: the model before the
update, Adam's moments, and the bags with their dropout.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lossattn_jax import tree_names
from lossattn_jax.errors import UserError
from lossattn_jax.mil.networks import BagNetwork
from lossattn_jax.mil.settings import Settings

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


def write(dump: Dump, folder: pathlib.Path) -> None:
    """Writes a dump; what an earlier one has left in the folder is replaced.

    Raises:
      UserError: it cannot be written.
    """
    plain = ("training", "update", "ids", "consistency", "seed", "epoch", "count")
    told = {
        **{name: getattr(dump, name) for name in plain},
        "network": {name: getattr(dump.network, name) for name in _NETWORK},
        "settings": dataclasses.asdict(dump.settings),
    }
    arrays: dict[str, Any] = dict(
        tree_names.named({"bags": dict(dump.bags), "state": dict(dump.state)})
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / ARRAYS_NAME, **arrays)
        (folder / UPDATE_NAME).write_text(json.dumps(told, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"the dump {folder} cannot be written: {error.strerror}") from None


def read(folder: pathlib.Path) -> Dump:
    """Reads what `write` wrote. Whether its arrays are those of its network is not looked at.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    path = folder / UPDATE_NAME
    try:
        told = json.loads(path.read_text())
        hidden = told["network"]["hidden"]
        network = {**told["network"], "hidden": None if hidden is None else tuple(hidden)}
        path = folder / ARRAYS_NAME
        with np.load(path, allow_pickle=False) as stored:
            trees = _nested({name: stored[name] for name in stored.files})
        state, bags = trees["state"], trees["bags"]
        path = folder / UPDATE_NAME
        return Dump(
            training=str(told["training"]),
            update=str(told["update"]),
            ids=tuple(map(str, told["ids"])),
            network=BagNetwork(**network),
            settings=Settings(**told["settings"]),
            consistency=bool(told["consistency"]),
            seed=int(told["seed"]),
            epoch=int(told["epoch"]),
            count=int(told["count"]),
            state=state,
            bags=bags,
        )
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

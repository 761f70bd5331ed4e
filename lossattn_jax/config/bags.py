"""The configuration of experiments with bags: every key with its default, and the check of a config.

This file is itself a config: what `python -m lossattn_jax.mil` uses when no other is named.
"""

import dataclasses
import pathlib
from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

from lossattn_jax.config import config_json
from lossattn_jax.config.images import leaves
from lossattn_jax.errors import UserError
from lossattn_jax.mil.network_classifier import NetworkClassifier
from lossattn_jax.mil.selection import Validation
from lossattn_jax.train.bags.settings import PER_MODEL, Settings


def default_config() -> ConfigDict:
    """The AAAI 2020 paper's experiments on the five benchmarks (its section 4.1 and supplement).

    Returns:
      A config; see the comments here for each key.
    """
    config = ConfigDict()
    config.seed = 0  # of folds or generated bags, of parameters, dropout and the order of the bags
    config.folds = 10  # of cross-validation
    config.repeats = 5  # of all folds, drawn anew; of generated bags

    # Of the training; see lossattn_jax.train.bags.settings.Settings.
    config.training = ConfigDict(dataclasses.asdict(Settings()))

    config.network = ConfigDict()
    config.network.backbone = "dense"  # or lenet, for images
    config.network.hidden = ()  # widths of the layers; empty: as each method was published
    config.network.dropout = 0.5
    config.network.ensemble = 1  # networks of each fold whose probabilities are averaged
    config.network.standardise = True  # features, on the training fold

    # Of the rule validation; see lossattn_jax.mil.selection.Validation.
    config.validation = ConfigDict()
    config.validation.share = 0.2  # of the training fold's bags that are held out
    config.validation.splits = 1  # how many times
    # Values that are tried besides those of the training; () for none. Networks only.
    for name in PER_MODEL:
        config.validation[name] = ()

    # Of mnist_bags and cifar_bags.
    config.bags = ConfigDict()
    config.bags.train = (50,)  # bags of each training: one experiment for each number
    config.bags.test = 1000  # the same bags for all of them
    config.bags.targets = (9,)  # digits, or classes, that make a bag positive
    config.bags.mean_length = 10
    return config


get_config = default_config  # for --config


def check(config: ConfigDict) -> None:
    """Refuses a config with a missing or unknown key or an impossible value.

    Raises:
      UserError: a sentence that names the key, the value and what is allowed.
    """
    known, given = dict(leaves(default_config())), dict(leaves(config))
    for key in sorted(given.keys() - known.keys()):
        raise UserError(f"config.{key} is not a key; allowed are: {', '.join(sorted(known))}")
    for key in sorted(known.keys() - given.keys()):
        raise UserError(f"config.{key} is missing; start from mil.config.default_config()")
    settings(config)
    validation(config)
    NetworkClassifier(
        backbone=config.network.backbone,
        hidden=tuple(config.network.hidden),
        dropout=config.network.dropout,
        ensemble=config.network.ensemble,
    ).network(2)
    for key in ("folds", "repeats"):
        if config[key] < 1:
            raise UserError(f"config.{key} is {config[key]}, but must be 1 or more")
    if not 0 <= config.seed < 2**31:
        raise UserError(f"config.seed is {config.seed}, but must be from 0 to 2**31 - 1")
    if not config.bags.train or min(config.bags.train) < 1 or config.bags.test < 1:
        raise UserError(
            "config.bags.train and config.bags.test must be numbers of bags, at least 1"
        )


def write(config: ConfigDict, path: pathlib.Path) -> None:
    """Writes the resolved config as JSON."""
    config_json.write(config, path)


def read(path: pathlib.Path, *, trust_code: bool | Collection[str] = False) -> ConfigDict:
    """Reads what `write` wrote; see `config_json.read`.

    Raises:
      UserError: it is not a config of experiments with bags.
    """
    return config_json.read(path, default_config, check, trust_code=trust_code)


def settings(config: ConfigDict) -> Settings:
    """The training's settings.

    Raises:
      UserError: one is impossible.
    """
    try:
        return Settings(**config.training.to_dict())
    except UserError as error:
        raise UserError(f"config.training.{error}") from None


def validation(config: ConfigDict) -> Validation:
    """How the rule validation chooses.

    Raises:
      UserError: a value is impossible.
    """
    own = config.validation.to_dict()
    share, splits = own.pop("share"), own.pop("splits")
    try:
        tried = Validation(share, splits, {name: tuple(values) for name, values in own.items()})
        for overrides in tried.overrides():
            changes: dict[str, Any] = {**overrides}
            dataclasses.replace(settings(config), **changes)
    except UserError as error:
        raise UserError(f"config.validation: {error}") from None
    return tried

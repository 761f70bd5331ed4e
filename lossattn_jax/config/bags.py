"""The configuration of experiments with bags.

This file is itself a config: what `python -m lossattn_jax.mil` uses when no other is named. The keys, with
their meaning, are in `lossattn_jax.config.options`; those that images have too are called as there.
"""

import pathlib
from collections.abc import Collection

from ml_collections import ConfigDict

from lossattn_jax.config import config_json, former_keys, schema
from lossattn_jax.config.options import (
    BagOptions,
    LossOptions,
    ValidationOptions,
    leaves,
)
from lossattn_jax.config.schema import Schema
from lossattn_jax.errors import UserError
from lossattn_jax.mil.selection import Validation
from lossattn_jax.models.backbones import BAG_BACKBONES
from lossattn_jax.registry import is_reference
from lossattn_jax.train.bags.settings import PER_MODEL, Settings

__all__ = ["SCHEMA", "check", "default_config", "get_config", "leaves", "read", "resolve", "write"]


def default_config() -> ConfigDict:
    """Makes the config of the AAAI 2020 paper's five benchmarks.

    Its section 4.1 and supplement.

    Returns:
      A config; `lossattn_jax.config.options.BagOptions` says what each key means.
    """
    return SCHEMA.config()


get_config = default_config  # for --config


def check(config: ConfigDict) -> None:
    """Refuses missing and unknown keys and impossible values.

    Raises:
      UserError: a sentence that names the key, the value and what is allowed.
    """
    SCHEMA.check(config)


def resolve(config: ConfigDict) -> BagOptions:
    """The options of a config; a `UserError` as of `check`."""
    return SCHEMA.resolve(config)


def write(options: BagOptions | ConfigDict, path: pathlib.Path) -> None:
    """Writes options, or a config, as JSON."""
    config_json.write(options, path)


def read(path: pathlib.Path, *, trust_code: bool | Collection[str] = False) -> ConfigDict:
    """Reads what `write` wrote; see `config_json.read`.

    Raises:
      UserError: it is not a config of experiments with bags.
    """
    return config_json.read(path, SCHEMA, trust_code=trust_code)


def settings(options: BagOptions) -> Settings:
    """The training's settings."""
    train, loss, optimizer = options.train, options.loss, options.optimizer
    return Settings(
        epochs=train.epochs,
        batch_size=train.batch_size,
        learning_rate=optimizer.learning_rate,
        weight_decay=optimizer.weight_decay,
        patch_weight=loss.patch_weight,
        patch_ramp_epochs=loss.patch_ramp_epochs,
        patch_reduction=loss.patch_reduction,
        consistency_weight=loss.consistency_weight,
        consistency_ramp_epochs=loss.consistency_ramp_epochs,
        consistency_decay=loss.consistency_decay,
        average_epochs=train.average_epochs,
        max_waste=train.max_waste,
        max_skipped=train.max_skipped,
        models_at_once=train.models_at_once,
        optimizer=optimizer,
    )


def validation(options: ValidationOptions) -> Validation:
    """How the rule validation chooses."""
    grid = {name: tuple(getattr(options, name)) for name in PER_MODEL}
    return Validation(options.share, options.splits, grid, options.patience, options.metric)


def _refuse_more_to_average(options: BagOptions) -> None:
    average, epochs = options.train.average_epochs, options.train.epochs
    if average > epochs:
        raise UserError(
            f"config.train.average_epochs is {average}, but must be at most config.train.epochs, {epochs}"
        )


def _refuse_unknown_backbone(options: BagOptions) -> None:
    if not is_reference(options.model.backbone):  # a user's own is imported where it is used
        BAG_BACKBONES.find(options.model.backbone, "config.model.backbone")


# Keys that networks for bags cannot have other values of yet.
_IMAGE_ONLY = {
    "loss": (LossOptions(), ("name", "patch", "label_smoothing")),
}


def _refuse_what_bags_lack(options: BagOptions) -> None:
    for section, (only, keys) in _IMAGE_ONLY.items():
        for key in keys:
            value, possible = getattr(getattr(options, section), key), getattr(only, key)
            if value != possible:
                raise UserError(
                    f"config.{section}.{key} is {value!r}, but must be {possible!r}: networks for bags "
                    "cannot be trained with another one yet"
                )


SCHEMA = Schema(
    defaults=BagOptions(),
    source="lossattn_jax.config.bags.default_config()",
    relations=(
        lambda options: schema.refuse_unknown_parts(options.optimizer),
        lambda options: schema.refuse_unfit_schedule(options.optimizer, options.train),
        _refuse_more_to_average,
        _refuse_unknown_backbone,
        _refuse_what_bags_lack,
    ),
    former_names=former_keys.BAGS,
    holder=former_keys.BagConfig,
)

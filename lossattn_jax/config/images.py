"""The configuration of a run of images.

A config file under `configs/` starts from `default_config()` and sets what differs. All keys exist in the
defaults, so an override of an unknown one is refused; `check` refuses impossible values. The keys themselves,
with their meaning, are in `lossattn_jax.config.options`.
"""

from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from lossattn_jax.config import schema
from lossattn_jax.config.options import ImageOptions, LossOptions, leaves
from lossattn_jax.config.schema import Schema
from lossattn_jax.errors import UserError
from lossattn_jax.registry import lookup

if TYPE_CHECKING:
    from lossattn_jax.attention.poolings import Pooling

__all__ = ["SCHEMA", "check", "default_config", "leaves", "resolve", "uses_patch_loss"]


def default_config() -> ConfigDict:
    """Makes the config of the TIP 2021 paper's ResNet18 on CIFAR-10.

    With loss attention (section IV-A).

    Returns:
      A config; `lossattn_jax.config.options.ImageOptions` says what each key means.
    """
    return SCHEMA.config()


def check(config: ConfigDict) -> None:
    """Refuses missing and unknown keys and impossible values.

    Raises:
      UserError: a sentence that names the key, the value and what is allowed.
    """
    SCHEMA.check(config)


def resolve(config: ConfigDict) -> ImageOptions:
    """The options of a config; a `UserError` as of `check`."""
    return SCHEMA.resolve(config)


def uses_patch_loss(loss: LossOptions, pooling: str) -> bool:
    """Whether the patch loss takes part: the papers' baselines have none."""
    auto = _find_pooling(pooling).patch_loss
    return lookup("config.loss.patch", loss.patch, {"auto": auto, "on": True, "off": False})


def _refuse_streams_on_devices(options: ImageOptions) -> None:
    if options.data.on_device == "on" and options.data.mode == "stream":
        raise UserError(
            "config.data.on_device is 'on', but must be off or auto with config.data.mode stream"
        )


def _refuse_uneven_parts(options: ImageOptions) -> None:
    parts, batch_size = options.train.accumulate, options.train.batch_size
    if batch_size % parts:
        raise UserError(
            f"config.train.accumulate is {parts}, but must divide config.train.batch_size, {batch_size}"
        )


def _refuse_rate_of_frozen(options: ImageOptions) -> None:
    if options.train.freeze and options.train.backbone_rate != 1:
        raise UserError(
            f"config.train.backbone_rate is {options.train.backbone_rate:g}, but must be 1 with "
            f"config.train.freeze {options.train.freeze}, which leaves the backbone as it is"
        )


def _refuse_patch_loss_without_logits(options: ImageOptions) -> None:
    name = options.model.pooling
    if options.loss.patch == "on" and not _has_patch_loss(_find_pooling(name).loss):
        raise UserError(
            "config.loss.patch is 'on', but must be off or auto with config.model.pooling "
            f"{name}, whose patch predictions are not logits"
        )
    if options.loss.patch == "on" and not _has_patch_loss(options.loss.name):
        raise UserError(
            "config.loss.patch is 'on', but must be off or auto with config.loss.name "
            f"{options.loss.name}, which has no loss of patches"
        )


def _find_pooling(name: str) -> "Pooling":
    from lossattn_jax.attention import poolings  # imported late, since it imports JAX

    return poolings.POOLINGS.find(name, "config.model.pooling")


def _has_patch_loss(name: str) -> bool:
    from lossattn_jax.attention.losses import AUTO, LOSSES  # imported late, since it imports JAX

    return name in ("", AUTO) or LOSSES.find(name, "config.loss.name").patch is not None


SCHEMA = Schema(
    defaults=ImageOptions(),
    source="lossattn_jax.config.default_config()",
    relations=(
        lambda options: schema.refuse_unknown_parts(options.optimizer),
        lambda options: schema.refuse_unfit_schedule(options.optimizer, options.train),
        _refuse_streams_on_devices,
        _refuse_uneven_parts,
        _refuse_rate_of_frozen,
        _refuse_patch_loss_without_logits,
    ),
)

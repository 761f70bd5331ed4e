"""Digit scenes (ours): draft."""

from ml_collections import ConfigDict

from lossattn_jax.config import default_config


def get_config() -> ConfigDict:
    """The config; see `default_config` for every key."""
    config = default_config()
    config.data.name = "digit_scenes"
    config.data.crop_padding = 2
    config.model.backbone = "small"
    config.loss.patch_ramp_epochs = 12
    config.optimizer.schedule = "one_cycle"
    config.optimizer.warmup_epochs = 3.0
    config.train.epochs = 12
    config.train.batch_size = 64
    return config

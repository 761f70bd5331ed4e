"""Trains a network from a config.

    python train.py --config=configs/digit_scenes.py --workdir=runs/digit_scenes [--config.KEY=VALUE ...]

Rerunning the same command goes on from the newest checkpoint.
"""

from absl import flags
from ml_collections import config_flags

from lossattn_jax import command
from lossattn_jax.train import loop

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "the config, a file of configs/", lock_config=True
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "folder for checkpoints, metrics and TensorBoard files"
)


def main() -> None:
    """Trains with the given flags."""
    loop.train(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    command.run(main, processes=True)

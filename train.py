"""Trains a network from a config: the same as `lossattn train`, without an installed package.

    python train.py --config=configs/digit_scenes.py --workdir=runs/digit_scenes [--config.KEY=VALUE ...]

The command itself is lossattn_jax/train/__main__.py.
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("lossattn_jax.train", run_name="__main__")

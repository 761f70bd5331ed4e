"""ResNet18 + convolutional head + loss attention on SVHN: the TIP 2021 paper's table, 97.11 %.

    python -m lossattn_jax.data.prepare --dataset=svhn_cropped
    python train.py --config=configs/svhn_resnet18.py --workdir=runs/svhn_resnet18

Expected: 97.11 % test accuracy in the paper; not yet trained to the end here.
Time: 200 epochs of 73,257 images at about 72 GFLOP an image, 1.05 EFLOP in all: for GPUs or TPUs.
"""

from ml_collections import ConfigDict

from lossattn_jax.config import default_config


def get_config() -> ConfigDict:
    """The paper's setting, which is the default, on SVHN."""
    config = default_config()
    config.data.name = "svhn_cropped"
    return config

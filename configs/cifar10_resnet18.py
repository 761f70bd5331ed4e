"""ResNet18 + convolutional head + loss attention on CIFAR-10: the TIP 2021 paper's table, 95.31 %.

    python -m lossattn_jax.data.prepare --dataset=cifar10
    python train.py --config=configs/cifar10_resnet18.py --workdir=runs/cifar10_resnet18

Expected: 95.31 % test accuracy in the paper; not yet trained to the end here.
Time: 200 epochs of 50,000 images at about 72 GFLOP an image, 0.72 EFLOP in all: for GPUs or TPUs.
"""

from ml_collections import ConfigDict

from lossattn_jax.config import default_config


def get_config() -> ConfigDict:
    """The paper's setting, which is the default, on CIFAR-10."""
    config = default_config()
    config.data.name = "cifar10"
    return config

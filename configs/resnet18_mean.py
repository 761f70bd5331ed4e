"""ResNet18 + mean: the row of the TIP 2021 paper's table on CIFAR-10, CIFAR-100 and SVHN.

    python -m lossattn_jax.data.prepare --dataset=cifar10
    python train.py --config=configs/resnet18_mean.py --workdir=runs/resnet18_mean
    python train.py --config=configs/resnet18_mean.py:cifar100 --workdir=...   # or svhn_cropped

32.67 M parameters with 10 classes, as in the table.
Expected: 94.59 / 75.58 / 96.72 % test accuracy on CIFAR-10 / CIFAR-100 / SVHN in the paper; not yet
trained to the end here.
Time: about 70.5 GFLOP an image, forward and backward; 200 epochs of CIFAR are 0.7 EFLOP: for GPUs or TPUs.
"""

from ml_collections import ConfigDict

from lossattn_jax.config import default_config


def get_config(dataset: str = "cifar10") -> ConfigDict:
    """The paper's training on "cifar10", "cifar100" or "svhn_cropped"."""
    config = default_config()
    config.data.name = dataset
    config.model.backbone = "resnet18"
    config.model.head = "conv"
    config.model.pooling = "mean"
    return config

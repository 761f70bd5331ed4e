"""VGG16_bn: the row of the TIP 2021 paper's table on CIFAR-10, CIFAR-100 and SVHN.

    python -m lossattn_jax.data.prepare --dataset=cifar10
    python train.py --config=configs/vgg16_bn.py --workdir=runs/vgg16_bn
    python train.py --config=configs/vgg16_bn.py:cifar100 --workdir=...   # or svhn_cropped

33.65 M parameters with 10 classes, as in the table.
Expected: 93.52 / 72.35 / 96.83 % test accuracy on CIFAR-10 / CIFAR-100 / SVHN in the paper; not yet
trained to the end here.
Time: about 1.6 GFLOP an image, forward and backward; 200 epochs of CIFAR are 0.016 EFLOP: for GPUs or TPUs.
"""

from ml_collections import ConfigDict

from lossattn_jax.config import default_config


def get_config(dataset: str = "cifar10") -> ConfigDict:
    """The paper's training on "cifar10", "cifar100" or "svhn_cropped"."""
    config = default_config()
    config.data.name = dataset
    config.model.backbone = "vgg16_bn"
    config.model.head = "none"
    config.model.pooling = "none"
    return config

"""ResNet50: the row of the TIP 2021 paper's table on CIFAR-10, CIFAR-100 and SVHN.

    python -m lossattn_jax.data.prepare --dataset=cifar10
    python train.py --config=configs/resnet50.py --workdir=runs/resnet50
    python train.py --config=configs/resnet50.py:cifar100 --workdir=...   # or svhn_cropped

23.52 M parameters with 10 classes; the table's 58.16 is the count of a ResNet-152
(--config.model.backbone=resnet152).
Expected: 95.01 / 78.15 / 97.12 % test accuracy on CIFAR-10 / CIFAR-100 / SVHN in the paper; not yet
trained to the end here.
Time: about 7.4 GFLOP an image, forward and backward; 200 epochs of CIFAR are 0.074 EFLOP: for GPUs or TPUs.
"""

from ml_collections import ConfigDict

from lossattn_jax.config import default_config


def get_config(dataset: str = "cifar10") -> ConfigDict:
    """The paper's training on "cifar10", "cifar100" or "svhn_cropped"."""
    config = default_config()
    config.data.name = dataset
    config.model.backbone = "resnet50"
    config.model.head = "none"
    config.model.pooling = "none"
    return config

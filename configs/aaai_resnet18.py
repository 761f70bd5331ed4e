"""Strided ResNet18 + bag-style loss attention on CIFAR-10: the AAAI 2020 paper's image setting.

    python -m lossattn_jax.data.prepare --dataset=cifar10
    python train.py --config=configs/aaai_resnet18.py --workdir=runs/aaai              # all labels
    python train.py --config=configs/aaai_resnet18.py:1000 --workdir=runs/aaai_1000    # or 5000

Attention over the 4x4 map, the patch loss averaged over the map, and attention kept consistent with its
average over the epochs (temporal ensembling); Adam with ramps, whose moments begin at 0 in each epoch as in
the paper's code (`optimizer.restart_epochs`), 200 epochs of batches of 100. The paper trains on 1,000, 5,000
or all 50,000 labelled images. Its code says that weights of the consistency of 300 for 1,000 and 500 for
5,000 images do better than 400.
The paper's other methods are --config.model.pooling=max, mean, attention or gated_attention, with
--config.loss.consistency_weight=0.0 as plain baselines.
Expected, from the paper's Table 4 (1,000 / 5,000 / all labels): 0.605 / 0.830 / 0.948; with max 0.571 /
0.815 / 0.944, mean 0.584 / 0.819 / 0.946, attention 0.557 / 0.791 / 0.933, gated_attention 0.557 / 0.794 /
0.933. Not yet trained to the end here.
Time: about 2.9 GFLOP an image, forward and backward; with all labels 0.029 EFLOP: for GPUs or TPUs.
"""

from ml_collections import ConfigDict

from lossattn_jax.config.images import default_config
from lossattn_jax.errors import UserError


def get_config(labels: str = "all") -> ConfigDict:
    """11.17 M parameters; `labels` is "all" or the number of labelled images."""
    if labels != "all" and not labels.isdecimal():
        raise UserError(
            f"the config's argument is {labels!r}, but must be all or a number of images"
        )
    config = default_config()
    config.data.num_labels = 0 if labels == "all" else int(labels)
    config.model.backbone = "resnet18"
    config.model.head = "none"
    config.model.pooling = "bag_loss_attention"
    config.loss.patch_weight = 1.0
    config.loss.patch_ramp_epochs = 0
    config.loss.patch_reduction = "mean"
    config.loss.consistency_weight = 400.0
    config.loss.consistency_ramp_epochs = 80
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 0.003
    config.optimizer.weight_decay = 0.0
    config.optimizer.restart_epochs = 1
    config.optimizer.schedule = "ramps"
    config.optimizer.ramp_up_epochs = 80
    config.optimizer.ramp_down_epochs = 50
    config.optimizer.momentum_end = 0.5
    config.optimizer.beta2 = 0.99
    config.optimizer.beta2_end = 0.999
    config.train.epochs = 200
    config.train.batch_size = 100
    return config

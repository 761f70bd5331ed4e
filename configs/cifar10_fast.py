"""Quick network + loss attention on CIFAR-10, for CPUs; ours, not a row of the papers.

    python -m lossattn_jax.data.prepare --dataset=cifar10
    python train.py --config=configs/cifar10_fast.py --workdir=runs/cifar10_fast

Expected: 89.16 % test accuracy (seed 0) on a JPEG copy of CIFAR-10, 90.47 % with --views=mirror_and_move, and
99.9 % on the training images: what limits it is in results/README.md.
Time: 54.9 minutes on 2 cores of a Xeon (Sapphire Rapids), the evaluation included.
"""

from ml_collections import ConfigDict

from lossattn_jax.config.images import default_config


def get_config() -> ConfigDict:
    """2.0 M parameters, 14 epochs of Muon; after Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds"."""
    config = default_config()
    config.data.name = "cifar10"
    config.data.crop_padding = 2
    config.data.flip_order = "alternate"
    config.model.backbone = "quick"
    config.model.head = "none"
    config.loss.label_smoothing = 0.2
    config.loss.patch_ramp_epochs = 5
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 0.25
    config.optimizer.momentum = 0.6
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 0.0
    config.optimizer.others_rate = 0.1
    config.optimizer.schedule = "one_cycle"
    config.optimizer.warmup_epochs = 1.0
    config.train.epochs = 14
    config.train.batch_size = 500
    config.eval.every_epochs = 14
    config.log.every_steps = 20
    return config

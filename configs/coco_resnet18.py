"""ResNet18 + convolutional head + loss attention on COCO at 64x64, several labels per image: TIP 2021.

    python -m lossattn_jax.data.prepare --dataset=coco
    python train.py --config=configs/coco_resnet18.py --workdir=runs/coco

The second stage has stride 2, so that 64x64 images give the 6x6 patches of 32x32 ones. Every class is a
sigmoid; a patch is held to the most probable of the image's classes. The paper's code sets the learning
rate to 0.05 and has 91 classes, COCO's own numbers; here are the 80 that occur.
Expected: mean average precision (11-point and all-point) is what evaluation gives; not trained here.
Time: about 73.2 GFLOP an image, forward and backward; 200 epochs of COCO are 1.7 EFLOP: for GPUs or TPUs.
"""

from ml_collections import ConfigDict

from lossattn_jax.config.images import default_config


def get_config() -> ConfigDict:
    """The paper's training with the learning rate of its code."""
    config = default_config()
    config.data.name = "coco"
    config.model.backbone = "resnet18_stride2"
    config.optimizer.learning_rate = 0.05
    return config

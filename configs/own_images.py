"""Images of one's own, in a folder for each class: a network from scratch, or a published one.

    python train.py --config=configs/own_images.py --config.data.dir=FOLDER --workdir=runs/own
    python train.py --config=configs/own_images.py:vit_s14_dinov2 --config.data.dir=FOLDER \
        --config.model.pretrained=dinov2_vits14_pretrain.pth --workdir=runs/own

Without a backbone behind the colon it is the small network for images of 64 pixels; any other backbone has
images of 224, is frozen, and needs `config.model.pretrained` to be of use.

Expected: 57 % test accuracy on digit_photos, the most attended patch in the digit's box in 97 % of 200 test
images (seed 0; results/own_images/README.md).
Time: 4 minutes on 2 cores of an AMD EPYC with other work beside.
"""

from ml_collections import ConfigDict

from lossattn_jax.config.images import default_config

SMALL = "small"


def get_config(backbone: str = SMALL) -> ConfigDict:
    """Twenty epochs of one-cycle SGD.

    Args:
      backbone: of `lossattn_jax.models.backbones.BACKBONES`, or `package.module:attribute`.
    """
    config = default_config()
    config.data.name = "folder"
    config.data.mode = "auto"
    config.model.backbone = backbone
    config.optimizer.nesterov = True
    config.optimizer.schedule = "one_cycle"
    config.optimizer.warmup_epochs = 4.0
    config.train.epochs = 20
    config.train.batch_size = 32
    config.loss.patch_ramp_epochs = 10
    # Batches of tests are filled up to this size, and 500 pictures of 224 pixels are gigabytes in a network.
    config.eval.batch_size = 100
    if backbone == SMALL:
        config.data.image_size = 64
        config.model.width = 0.5
    else:
        config.data.image_size = 224
        config.data.normalisation = "imagenet"
        config.model.head = "none"
        config.train.freeze = "backbone"
    return config

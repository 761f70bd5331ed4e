"""Small network + loss attention on digit scenes, the demo; ours, not a row of the papers.

    python -m lossattn_jax.data.prepare --dataset=digit_scenes
    python train.py --config=configs/digit_scenes.py --workdir=runs/digit_scenes

Expected: 98.7 % test accuracy; the most attended patch has its centre in the digit's box in all 2,000
test images (seed 0; results/README.md).
Time: 77 s on 2 cores of an AMD EPYC, compilation and evaluation included.
"""

from ml_collections import ConfigDict

from lossattn_jax.config.images import default_config


def get_config() -> ConfigDict:
    """0.14 M parameters, 12 epochs of one-cycle SGD."""
    config = default_config()
    config.data.name = "digit_scenes"
    config.data.crop_padding = 2  # more would cut digits that lie at the rim
    config.model.backbone = "small"
    config.model.width = 0.5
    config.loss.patch_ramp_epochs = 12
    config.optimizer.nesterov = True
    config.optimizer.schedule = "one_cycle"
    config.optimizer.warmup_epochs = 3.0
    config.train.epochs = 12
    config.train.batch_size = 64
    return config

"""LeNet with loss attention on MNIST-bags: the AAAI 2020 paper's section 4.2 and its supplement's table A3.

    python -m lossattn_jax.mil --config=configs/mil_mnist.py --dataset=mnist_bags --data_dir=DIR \
        --method=loss_attention,attention,gated_attention --workdir=runs/mnist_bags
    python -m lossattn_jax.mil --config=configs/mil_mnist.py:multi ...      # the digits 3, 5 and 9
    python -m lossattn_jax.mil.lambdas --config=configs/mil_mnist.py --data_dir=DIR --workdir=runs/lambdas

DIR is a folder of TFDS data sets with MNIST, or an .npz file. 50 to 200 bags of about 10 digits to train on,
1,000 to test; 30 epochs, or 50 with several digits. The patch loss is a mean over a bag's instances, as in
the paper's public code, which takes the best epoch on the test bags and trains ten times or more.
Expected with 10,000 digits of MNIST, last epoch, 50 to 200 bags: 0.819 / 0.928 / 0.944 / 0.949 (AUC 0.903 /
0.978 / 0.980 / 0.989; the paper's table 2 has AUCs of 0.931 / 0.969 / 0.978 / 0.984, of 60,000 digits), with
several digits 0.753 / 0.878 / 0.887 / 0.907 (the paper: 0.765 / 0.892 / 0.917 / 0.939).
Time: on one core of an AMD EPYC, ten draws of 200 bags took 4.5 minutes, with several digits 8.
"""

from ml_collections import ConfigDict

from lossattn_jax.config.bags import default_config
from lossattn_jax.errors import UserError


def get_config(targets: str = "binary") -> ConfigDict:
    """`targets` is "binary" (is there a 9?) or "multi" (3, 5, 9 or none of them)."""
    if targets not in ("binary", "multi"):
        raise UserError(f"the config's argument is {targets!r}, but must be binary or multi")
    config = default_config()
    config.repeats = 10
    config.model.backbone = "lenet"
    config.model.standardise = False
    config.train.epochs = 30 if targets == "binary" else 50
    config.optimizer.learning_rate = 5e-4
    config.optimizer.weight_decay = 1e-4
    config.loss.patch_weight = 2.0
    config.loss.patch_reduction = "mean"
    config.bags.train = (50, 100, 150, 200)
    config.bags.targets = (9,) if targets == "binary" else (3, 5, 9)
    return config

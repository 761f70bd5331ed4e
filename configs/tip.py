"""The rows of the TIP 2021 paper's table: its networks on CIFAR-10, CIFAR-100 and SVHN.

    python -m lossattn_jax.data.prepare --dataset=cifar10
    python train.py --config=configs/tip.py --workdir=runs/tip  # ResNet18 + loss attention on CIFAR-10
    python train.py --config=configs/tip.py:vgg11_bn_mean --workdir=runs/vgg11_bn_mean
    python train.py --config=configs/tip.py:resnet50,cifar100 --workdir=runs/resnet50  # or svhn_cropped

`python -m lossattn_jax.models --list` prints the rows with sizes, accuracies and operations. ResNet50 has the
papers' own bottlenecks, learning rate and batch size; He et al.'s blocks are those of
--config.model.bottleneck_first_kernel=1 --config.model.bottleneck_relu_before_add=False. CapsNet is one
network on whole images, without reconstruction, trained with Adam; the table quotes an ensemble of seven
networks on 24x24 crops, of Sabour et al., and for SVHN a smaller network. DeepCaps takes images at 64x64,
and neither it nor HitNet has a decoder; docs/configuration.md says what else differs from their papers.
Expected: the accuracies of the paper's table, which its scripts print as the best of all epochs; not yet
trained to the end here.
Time: 200 epochs of CIFAR are 0.008 EFLOP (VGG11_bn) to 0.7 EFLOP (ResNet18 with a head): for GPUs or TPUs.
"""

from ml_collections import ConfigDict

from lossattn_jax.config.images import default_config
from lossattn_jax.models import table


def get_config(row: str = "resnet18_loss_attention") -> ConfigDict:
    """The paper's training of "ROW" on CIFAR-10, or of "ROW,DATASET" on another data set."""
    name, _, dataset = row.partition(",")
    system = table.find(name)
    config = default_config()
    config.data.name = dataset or "cifar10"
    config.model.backbone, config.model.head, config.model.pooling = system.parts
    config.update_from_flattened_dict(system.settings)
    return config

"""Backbones by name: of networks for images, and of those for bags.

To add one, write its module and entry (`Backbone`, or `BagBackbone`) and put it in here.
"""

from lossattn_jax.models import (
    bag_layers,
    capsules,
    deepcaps,
    hitnet,
    quick,
    resnet,
    small,
    vgg,
    vit,
)
from lossattn_jax.models.parts import Backbone, BagBackbone, adopt_backbone, adopt_layers
from lossattn_jax.registry import Registry

BACKBONES = Registry(
    "backbone",
    Backbone,
    {
        **vgg.BACKBONES,
        **resnet.BACKBONES,
        **vit.BACKBONES,
        "small": small.BACKBONE,
        "quick": quick.BACKBONE,
        "capsnet": capsules.CAPSNET,
        "deepcaps": deepcaps.DEEPCAPS,
        "hitnet": hitnet.HITNET,
    },
    adopt=adopt_backbone,
)
BAG_BACKBONES = Registry(
    "backbone",
    BagBackbone,
    {
        "dense": bag_layers.DENSE,
        "lenet": bag_layers.LENET,
        "lenet_tanh": bag_layers.LENET_TANH,
    },
    adopt=adopt_layers,
)

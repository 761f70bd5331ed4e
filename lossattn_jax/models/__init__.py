"""Networks: backbones, heads that make patches, networks for bags, and their sizes.

`build` (in `factory`) puts a network for images together by names; `bag_networks` has those for bags.
`parts` says what a part has to be: a `Backbone`, a `Head`, or for bags a `BagBackbone`, each made of what a
`Build` holds. To add one, write its module in a file here and its entry in `backbones.BACKBONES`,
`heads.HEADS` or `backbones.BAG_BACKBONES`. A module that is to be converted to and from PyTorch has a method
`torch_modules`, and `published_weights` where published files have more. Poolings are in
`lossattn_jax.attention.poolings`.

`python -m lossattn_jax.models --list` prints the networks of the paper's tables; they are `table.ROWS`.
"""

from typing import TYPE_CHECKING

from lossattn_jax.commands import imports

__all__ = [
    "BACKBONES",
    "HEADS",
    "ImageNetwork",
    "Outputs",
    "POOLINGS",
    "PatchGrid",
    "PatchNetwork",
    "build",
    "variable_shapes",
]

if TYPE_CHECKING:
    from lossattn_jax.attention.outputs import Outputs
    from lossattn_jax.attention.poolings import POOLINGS
    from lossattn_jax.models import table as table
    from lossattn_jax.models.backbones import BACKBONES
    from lossattn_jax.models.factory import build
    from lossattn_jax.models.geometry import PatchGrid
    from lossattn_jax.models.heads import HEADS
    from lossattn_jax.models.network import ImageNetwork, PatchNetwork
    from lossattn_jax.models.shapes import variable_shapes
else:
    __getattr__, __dir__ = imports.attach(__name__)

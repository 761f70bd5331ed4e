"""Networks: backbones, heads that make patches, networks for bags, and their sizes.

`build` puts a network for images together by names; `bag_networks` holds those for bags. A new backbone
belongs into `backbones`, a head into `heads`; poolings are in `lossattn_jax.attention.poolings`. `python -m
lossattn_jax.models --list` prints the networks of the paper's tables, which `table` lists.
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

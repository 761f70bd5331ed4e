"""Networks: backbones, heads that make patches, networks for bags, and their sizes.

`build` puts a network for images together by names; `bag_networks` holds those for bags. `python -m
lossattn_jax.models --list` prints the networks of the paper's tables, which `table` lists.
"""

from typing import TYPE_CHECKING

from lossattn_jax.commands import imports

__all__ = [
    "BACKBONES",
    "CapsuleNetwork",
    "HEADS",
    "ImageNetwork",
    "Outputs",
    "POOLINGS",
    "PatchGrid",
    "PatchNetwork",
    "RoutingNetwork",
    "build",
    "variable_shapes",
]

if TYPE_CHECKING:
    from lossattn_jax.attention.outputs import Outputs
    from lossattn_jax.models import table as table
    from lossattn_jax.models.capsules import CapsuleNetwork, RoutingNetwork
    from lossattn_jax.models.combinations import BACKBONES, HEADS, POOLINGS
    from lossattn_jax.models.factory import build
    from lossattn_jax.models.geometry import PatchGrid
    from lossattn_jax.models.network import ImageNetwork, PatchNetwork
    from lossattn_jax.models.shapes import variable_shapes
else:
    __getattr__, __dir__ = imports.attach(__name__)

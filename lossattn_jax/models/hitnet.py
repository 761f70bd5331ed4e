"""HitNet: a capsule for each class that hits or misses a centre (Deliege et al. 2018).

arXiv 1806.06519. Two convolutions as those of CapsNet are the backbone, the layer of capsules is the head,
and the distances from the centre are the pooling "hit_or_miss". The paper's decoder, its augmentation by it
and its ghost capsules are not here. Sizes, and the numbers of the loss, are those of an implementation of the
paper, github.com/bakirillov/capsules; of the paper only the beginning was at hand.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax.attention.poolings import entry
from lossattn_jax.models.capsules import CapsNetBackbone
from lossattn_jax.models.geometry import PatchGrid, sliding_grid
from lossattn_jax.models.layers import dense, flatten_as_torch
from lossattn_jax.models.parts import Backbone, Build, MakeModule, TorchModules, whole_modules

CHANNELS = 256  # of both convolutions
CAPSULE_DIMENSION = 16
_STRIDES = (1, 2)


class HitOrMissHead(nn.Module):
    """HitNet's layer of class capsules, of the whole map.

    A dense layer, batch normalisation and the sigmoid, which keeps capsules in [0, 1]^E.

    Attributes:
      classes: K.
      dimension: E, of each class's capsule.
      norm: makes a batch normalisation layer.
      dtype: compute dtype.
    """

    classes: int
    dimension: int
    norm: Callable[..., nn.Module]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps `[B, H, W, C]` to `[B, 1, classes, dimension]` float32."""
        x = flatten_as_torch(x)
        x = dense(self.classes * self.dimension, x.shape[-1], "dense", self.dtype)(x)
        capsules = nn.sigmoid(self.norm(name="bn")(x, train).astype(jnp.float32))
        return capsules.reshape(-1, 1, self.classes, self.dimension)

    @nn.nowrap
    def grid(self, map_size: tuple[int, int]) -> PatchGrid:
        """The one patch, whatever the map's size."""
        del map_size
        return sliding_grid((1, 1), 1, 1)

    @nn.nowrap
    def torch_modules(self) -> TorchModules:
        """Names its layers in PyTorch, as here."""
        return whole_modules({"dense": "hom.dense", "bn": "hom.bn"})


def _make(build: Build) -> MakeModule:
    return functools.partial(
        CapsNetBackbone, channels=build.scale(CHANNELS), dtype=build.dtype, strides=_STRIDES
    )


HITNET = Backbone(_make, plain_form=entry.CLASS_CAPSULES, takes_heads=False)

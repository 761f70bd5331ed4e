"""A network under explanation: scores, and patches' places in images."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from lossattn_jax.models import ImageNetwork, Outputs
from lossattn_jax.models.network import BACKBONE


@flax.struct.dataclass
class Relevance:
    """Relevance of patches and pixels of B images.

    For one class of each; higher is more, and negative speaks against.

    Attributes:
      patches: `[B, P]` float32.
      pixels: `[B, H, W]` float32.
    """

    patches: jax.Array
    pixels: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A network that is explained; all methods can be traced.

    Attributes:
      model: the network.
      image_shape: (height, width, channels).
    """

    model: ImageNetwork
    image_shape: tuple[int, int, int]

    def outputs(self, variables: Any, images: jax.Array) -> Outputs:
        """The evaluation's forward pass for normalised images `[B, H, W, C]`."""
        outputs: Any = self.model.apply(variables, images, train=False)
        return outputs

    def score(self, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
        """Computes the image logit of a class, `[B]`.

        With dynamic routing the class capsule's length.

        Args:
          variables: of the network.
          images: `[B, H, W, C]` float, normalised.
          classes: `[B]` int.
        """
        return pick_class(self.outputs(variables, images).logits, classes)

    def from_patches(self, patches: jax.Array) -> Relevance:
        """Makes relevance of patches `[B, P]`.

        A pixel has the mean of the patches whose window holds it.
        """
        patches = patches.astype(jnp.float32)
        covers = self._coverage()
        count = jnp.sum(covers, axis=0)
        share = covers / jnp.maximum(count, 1)[None]
        # From the lowest up, so that a flat map is flat to the bit, and ranks no rounding.
        lowest = jnp.min(patches, axis=1, keepdims=True)
        above = jnp.einsum("bp,phw->bhw", patches - lowest, share, precision="highest")
        is_covered = (count > 0).astype(jnp.float32)
        return Relevance(patches, above + lowest[:, :, None] * is_covered[None])

    def from_pixels(self, pixels: jax.Array) -> Relevance:
        """Makes relevance of pixels `[B, H, W]`.

        A patch has the mean over its window.
        """
        pixels = pixels.astype(jnp.float32)
        covers = self._coverage()
        share = covers / jnp.sum(covers, axis=(1, 2), keepdims=True)
        patches = jnp.einsum("bhw,phw->bp", pixels, share, precision="highest")
        return Relevance(patches, pixels)

    def _coverage(self) -> jax.Array:
        grid = self.model.patch_grid(self.image_shape)
        height, width, _ = self.image_shape
        return jnp.asarray(grid.coverage((height, width)), jnp.float32)

    def backbone_map(self, variables: Any, images: jax.Array) -> jax.Array:
        """The backbone's map `[B, H', W', C]`."""
        maps: list[jax.Array] = []

        def look(backbone_map: jax.Array) -> jax.Array:
            maps.append(backbone_map)
            return backbone_map

        with nn.intercept_methods(_at_backbone(look)):
            self.outputs(variables, images)
        return maps[0]

    def score_of_map(
        self, variables: Any, images: jax.Array, classes: jax.Array, backbone_map: jax.Array
    ) -> jax.Array:
        """`score`, with the backbone's map replaced by another."""
        with nn.intercept_methods(_at_backbone(lambda _: backbone_map)):
            return self.score(variables, images, classes)


def pick_class(scores: jax.Array, classes: jax.Array) -> jax.Array:
    """`scores[..., classes]`: of `[B, ..., K]` and `[B]` int makes `[B, ...]`."""
    index = classes.reshape(-1, *(1 for _ in scores.shape[1:]))
    return jnp.take_along_axis(scores, index, axis=-1)[..., 0]


def _at_backbone(replace: Callable[[jax.Array], jax.Array]) -> Any:
    def interceptor(call, args, kwargs, context):
        result = call(*args, **kwargs)
        whole = context.module.name == BACKBONE and context.method_name == "__call__"
        return replace(result) if whole else result

    return interceptor

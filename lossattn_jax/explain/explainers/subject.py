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
        in_y, in_x = self._line_coverage()
        rows, cols = jnp.sum(in_y, axis=0), jnp.sum(in_x, axis=0)  # of patches at a pixel
        share_y, share_x = in_y / jnp.maximum(rows, 1)[None], in_x / jnp.maximum(cols, 1)[None]
        # From the lowest up, so that a flat map is flat to the bit, and ranks no rounding.
        lowest = jnp.min(patches, axis=1, keepdims=True)
        grid = (patches - lowest).reshape(-1, len(in_y), len(in_x))
        # One axis after the other: whether each pixel is in each window would be P times an image.
        lines = jnp.einsum("brc,rh->bhc", grid, share_y, precision="highest")
        above = jnp.einsum("bhc,cw->bhw", lines, share_x, precision="highest")
        is_covered = jnp.outer(rows > 0, cols > 0).astype(jnp.float32)
        return Relevance(patches, above + lowest[:, :, None] * is_covered[None])

    def from_pixels(self, pixels: jax.Array) -> Relevance:
        """Makes relevance of pixels `[B, H, W]`.

        A patch has the mean over its window.
        """
        pixels = pixels.astype(jnp.float32)
        in_y, in_x = self._line_coverage()
        share_y = in_y / jnp.sum(in_y, axis=1, keepdims=True)
        share_x = in_x / jnp.sum(in_x, axis=1, keepdims=True)
        lines = jnp.einsum("bhw,rh->brw", pixels, share_y, precision="highest")
        patches = jnp.einsum("brw,cw->brc", lines, share_x, precision="highest")
        return Relevance(patches.reshape(len(pixels), -1), pixels)

    def _line_coverage(self) -> tuple[jax.Array, jax.Array]:
        grid = self.model.patch_grid(self.image_shape)
        height, width, _ = self.image_shape
        in_y, in_x = grid.line_coverage((height, width))
        return jnp.asarray(in_y, jnp.float32), jnp.asarray(in_x, jnp.float32)

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

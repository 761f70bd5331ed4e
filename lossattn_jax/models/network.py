"""Networks: a backbone, a head that makes patches of its map, and a pooling that makes one prediction."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax.arguments import Kind, check_arrays
from lossattn_jax.attention import pooling as pooling_lib
from lossattn_jax.attention.learned import HIDDEN, AttentionScores
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.models.geometry import PatchGrid
from lossattn_jax.models.layers import dense
from lossattn_jax.registry import lookup

# Whole numbers are the values of a file, which were not normalised.
_NORMALISED = Kind("normalised values, which are floats", (jnp.floating,))


class ImageNetwork(nn.Module):
    """What all image networks have in common; use `PatchNetwork`, `CapsuleNetwork` or `RoutingNetwork`.

    Attributes:
      make_backbone: makes the module from images `[B, H, W, 3]` to a map `[B, H', W', C]`.
      make_head: makes the module from that map to patches; it has a method `grid(map_size)`.
      num_classes: K.
      dtype: compute dtype of backbone and head; classifier, attention and routing are float32.
    """

    make_backbone: Callable[..., nn.Module]
    make_head: Callable[..., Any]
    num_classes: int
    dtype: Dtype = jnp.float32

    @nn.nowrap
    def patch_grid(self, image_shape: tuple[int, int, int]) -> PatchGrid:
        """Places of the patches in images of `image_shape` (height, width, channels); runs nothing.

        Raises:
          UserError: the images are too small for the network.
        """
        backbone = self.make_backbone()
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        shapes, _ = jax.eval_shape(
            lambda x: backbone.init_with_output(jax.random.key(0), x, False), images
        )
        height, width = shapes.shape[1:3]
        return self.make_head().grid((height, width))

    @nn.nowrap
    def make_map(self, images: jax.Array, train: bool) -> jax.Array:
        """Computes the backbone's map `[B, H', W', C]` of images `[B, H, W, 3]`.

        Raises:
          ValueError: images of another shape, or that are not floats.
        """
        check_arrays(images=(images, "B H W C", _NORMALISED))
        return self.make_backbone(name="backbone")(images.astype(self.dtype), train)


class PatchNetwork(ImageNetwork):
    """An image classifier that also classifies and weighs every patch (TIP 2021, figure 2).

    One linear classifier predicts for each patch's features and for their weighted sum.

    Attributes:
      pooling: one of `POOLINGS`; "none" is the same as "mean".
      threshold: t of the loss attention.
      attention_hidden: hidden units of attention and gated attention.
    """

    pooling: str = "loss_attention"
    threshold: float = pooling_lib.DEFAULT_THRESHOLD
    attention_hidden: int = HIDDEN

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> Outputs:
        """Predicts for a batch.

        Args:
          images: `[B, H, W, 3]` float, normalised.
          train: True normalises by the batch's statistics and updates the running ones in the
            collection "batch_stats", which must then be mutable. VGG's dense layers then need the
            random stream "dropout".

        Returns:
          `Outputs` in float32.

        Raises:
          UnknownName: there is no such pooling.
          ValueError: images of another shape, or that are not floats.
        """
        pool = lookup("pooling", self.pooling, POOLINGS)
        backbone_map = self.make_map(images, train)
        features = self.make_head(name="head")(backbone_map, train).astype(jnp.float32)
        classifier = dense(self.num_classes, features.shape[-1], "classifier")
        patch_logits = classifier(features)
        grid = backbone_map.shape[1] * backbone_map.shape[2]
        pooled, attention = pool(self, features, patch_logits, grid)
        return Outputs(classifier(pooled), patch_logits, attention)


# Of a network, patch features `[B, P, D]`, patch logits `[B, P, K]` and the number of the map's positions it
# makes pooled features `[B, D]` and attention `[B, P]`. May make layers, which become the network's.
Pooling = Callable[[PatchNetwork, jax.Array, jax.Array, int], tuple[jax.Array, jax.Array]]


def _mean(
    network: PatchNetwork, features: jax.Array, patch_logits: jax.Array, grid: int
) -> tuple[jax.Array, jax.Array]:
    del network, grid
    attention = pooling_lib.uniform_attention(patch_logits)
    return pooling_lib.weighted_sum(features, attention), attention


def _max(
    network: PatchNetwork, features: jax.Array, patch_logits: jax.Array, grid: int
) -> tuple[jax.Array, jax.Array]:
    del network, patch_logits, grid
    return pooling_lib.max_pool(features), pooling_lib.max_attention(features)


def _learned_attention(
    network: PatchNetwork, features: jax.Array, patch_logits: jax.Array, grid: int, *, gated: bool
) -> tuple[jax.Array, jax.Array]:
    del patch_logits, grid
    scores = AttentionScores(network.attention_hidden, gated, name="attention")(features)
    attention = pooling_lib.softmax_attention(scores)
    return pooling_lib.weighted_sum(features, attention), attention


def _loss_attention(
    network: PatchNetwork, features: jax.Array, patch_logits: jax.Array, grid: int
) -> tuple[jax.Array, jax.Array]:
    attention = pooling_lib.loss_attention(patch_logits, grid, network.threshold)
    return pooling_lib.weighted_sum(features, attention), attention


def _bag_loss_attention(
    network: PatchNetwork, features: jax.Array, patch_logits: jax.Array, grid: int
) -> tuple[jax.Array, jax.Array]:
    del network, grid
    attention = pooling_lib.bag_loss_attention(patch_logits)
    return pooling_lib.weighted_sum(features, attention), attention


# The poolings of a `PatchNetwork`, by name.
POOLINGS: Mapping[str, Pooling] = {
    "none": _mean,
    "mean": _mean,
    "max": _max,
    "attention": functools.partial(_learned_attention, gated=False),
    "gated_attention": functools.partial(_learned_attention, gated=True),
    "loss_attention": _loss_attention,
    "bag_loss_attention": _bag_loss_attention,
}

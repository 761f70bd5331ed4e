"""Networks: a backbone, a head that makes patches of its map, and a pooling that makes one prediction."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax import pooling as pooling_lib
from lossattn_jax.models.attention import HIDDEN, AttentionScores
from lossattn_jax.models.geometry import PatchGrid
from lossattn_jax.models.layers import dense
from lossattn_jax.models.outputs import Outputs


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


class PatchNetwork(ImageNetwork):
    """An image classifier that also classifies and weighs every patch (TIP 2021, figure 2).

    One linear classifier predicts for each patch's features and for their weighted sum.

    Attributes:
      pooling: "mean" (or "none", which is the same), "max", "attention", "gated_attention",
        "loss_attention" or "bag_loss_attention".
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
        """
        backbone_map = self.make_backbone(name="backbone")(images.astype(self.dtype), train)
        features = self.make_head(name="head")(backbone_map, train).astype(jnp.float32)
        classifier = dense(self.num_classes, features.shape[-1], "classifier")
        patch_logits = classifier(features)
        grid = backbone_map.shape[1] * backbone_map.shape[2]
        attention = self._attention(features, patch_logits, grid)
        if self.pooling == "max":
            pooled = pooling_lib.max_pool(features)
        else:
            pooled = pooling_lib.weighted_sum(features, attention)
        return Outputs(classifier(pooled), patch_logits, attention)

    def _attention(self, features: jax.Array, patch_logits: jax.Array, grid: int) -> jax.Array:
        if self.pooling == "loss_attention":
            return pooling_lib.loss_attention(patch_logits, grid, self.threshold)
        if self.pooling == "bag_loss_attention":
            return pooling_lib.bag_loss_attention(patch_logits)
        if self.pooling in ("attention", "gated_attention"):
            gated = self.pooling == "gated_attention"
            scores = AttentionScores(self.attention_hidden, gated, name="attention")(features)
            return pooling_lib.softmax_attention(scores)
        if self.pooling == "max":
            return pooling_lib.max_attention(features)
        return pooling_lib.uniform_attention(patch_logits)

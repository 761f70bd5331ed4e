"""Backbone, patch head, pooling and one shared linear classifier, put together."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax import pooling as pooling_lib
from lossattn_jax.models.geometry import PatchGrid
from lossattn_jax.models.layers import torch_bias_init, torch_kernel_init
from lossattn_jax.models.outputs import Outputs
from lossattn_jax.models.patch_head import ConvPatchHead

POOLINGS = ("mean", "max", "loss_attention")


class PatchNetwork(nn.Module):
    """An image classifier that also classifies and weighs every patch (TIP 2021, figure 2).

    Attributes:
      make_backbone: makes the module from images `[B, H, W, 3]` to a map `[B, H', W', C]`.
      make_head: makes the module from that map to patch features `[B, P, D]`.
      pooling: "mean", "max" or "loss_attention".
      num_classes: K.
      threshold: t of the loss attention.
      dtype: compute dtype of backbone and head; the classifier and the attention are float32.
    """

    make_backbone: Callable[..., nn.Module]
    make_head: Callable[..., ConvPatchHead]
    pooling: str
    num_classes: int
    threshold: float = pooling_lib.DEFAULT_THRESHOLD
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> Outputs:
        """Predicts for a batch.

        Args:
          images: `[B, H, W, 3]` float, normalised.
          train: True normalises by the batch's statistics and updates the running ones in the
            collection "batch_stats", which must then be mutable.

        Returns:
          `Outputs` in float32.
        """
        backbone_map = self.make_backbone(name="backbone")(images.astype(self.dtype), train)
        features = self.make_head(name="head")(backbone_map, train).astype(jnp.float32)
        classifier = nn.Dense(
            self.num_classes,
            kernel_init=torch_kernel_init,
            bias_init=torch_bias_init(features.shape[-1]),
            name="classifier",
        )
        patch_logits = classifier(features)
        if self.pooling == "max":
            attention = pooling_lib.max_attention(features)
            pooled = pooling_lib.max_pool(features)
        else:
            if self.pooling == "mean":
                attention = pooling_lib.uniform_attention(patch_logits)
            else:
                grid = backbone_map.shape[1] * backbone_map.shape[2]
                attention = pooling_lib.loss_attention(patch_logits, grid, self.threshold)
            pooled = pooling_lib.weighted_sum(features, attention)
        return Outputs(classifier(pooled), patch_logits, attention)

    @nn.nowrap
    def patch_grid(self, image_shape: tuple[int, int, int]) -> PatchGrid:
        """Places of the patches in images of `image_shape` (height, width, channels); runs nothing."""
        head = self.make_head()
        backbone = self.make_backbone()
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        shapes, _ = jax.eval_shape(
            lambda x: backbone.init_with_output(jax.random.key(0), x, False), images
        )
        height, width = shapes.shape[1:3]
        return PatchGrid(
            rows=(height - head.kernel) // head.stride + 1,
            cols=(width - head.kernel) // head.stride + 1,
            map_size=(height, width),
            kernel=head.kernel,
            stride=head.stride,
        )

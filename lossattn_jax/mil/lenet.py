"""The AAAI 2020 paper's network for bags of handwritten digits: LeNet with loss attention."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax import pooling
from lossattn_jax.models.layers import Conv, ExampleDropout, dense
from lossattn_jax.models.outputs import Outputs

CHANNELS = (20, 50)  # of the two 5x5 convolutions
HIDDEN = 500  # features of an instance


class BagLeNet(nn.Module):
    """LeNet over the instances of a bag, with the AAAI 2020 paper's loss attention over the bag.

    Two 5x5 convolutions, each with ReLU and 2x2 max pooling, and a dense layer with ReLU and dropout
    make an instance's features. One linear classifier predicts for each instance and for the weighted
    sum of their features, which stands for the bag. Dropout draws from the stream "dropout" in training.

    Attributes:
      num_classes: K; 4 in the paper.
      hidden: features of an instance.
      dropout: share of them that is dropped in training.
      axis_name: pmap axis that training batches are split over, or None; see `ExampleDropout`.
      dtype: compute dtype of the features; classifier and attention are float32.
    """

    num_classes: int = 4
    hidden: int = HIDDEN
    dropout: float = 0.5
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, instances: jax.Array, mask: jax.Array | None = None, train: bool = False
    ) -> Outputs:
        """Predicts for a batch of bags.

        Args:
          instances: `[B, N, 28, 28, 1]` float images.
          mask: `[B, N]`, True or 1 for a real instance; the others may hold anything. None: all are
            real.
          train: True applies dropout.

        Returns:
          `Outputs` in float32, an instance being a patch: `logits` of the bags, `patch_logits` of the
          instances (meaningless where there is none) and their `attention` (0 where there is none).
        """
        bags, size, *image_shape = instances.shape
        if mask is not None:
            real = mask.astype(bool).reshape(bags, size, *(1 for _ in image_shape))
            instances = jnp.where(real, instances, 0)
        x = instances.astype(self.dtype).reshape(bags * size, *image_shape)
        for number, channels in enumerate(CHANNELS, start=1):
            conv = Conv(channels, 5, 1, 0, self.dtype, use_bias=True, name=f"conv{number}")
            x = nn.max_pool(nn.relu(conv(x)), (2, 2), strides=(2, 2))
        # Channels first, as PyTorch flattens, so that stored weights need no reordering.
        x = x.transpose(0, 3, 1, 2).reshape(bags, size, -1)
        x = nn.relu(dense(self.hidden, x.shape[-1], "dense", self.dtype)(x))
        x = ExampleDropout(self.dropout, self.axis_name, name="dropout")(x, train)
        features = x.astype(jnp.float32)
        classifier = dense(self.num_classes, self.hidden, "classifier")
        patch_logits = classifier(features)
        attention = pooling.bag_loss_attention(patch_logits, mask)
        return Outputs(
            classifier(pooling.weighted_sum(features, attention)), patch_logits, attention
        )

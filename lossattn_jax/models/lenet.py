"""LeNet for instances that are images, and its pooling.

Both are functions for use inside a module's `nn.compact`: their layers become that module's.
"""

import jax
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax.kernels.bag_convolution import conv_general_dilated, max_pool
from lossattn_jax.kernels.linear import dot_general
from lossattn_jax.models.layers import Conv, dense

CHANNELS = (20, 50)  # of the two 5x5 convolutions
HIDDEN = 500  # features of an instance


def lenet_features(
    instances: jax.Array, hidden: int, dtype: Dtype = jax.numpy.float32
) -> jax.Array:
    """Computes LeNet up to its dense layer.

    AAAI 2020 and Ilse et al. 2018, for bags of images.

    Two 5x5 convolutions, each with ReLU and 2x2 max pooling, and a dense layer with ReLU.

    Args:
      instances: `[B, N, H, W, C]` float images, at least 16x16.
      hidden: features of an instance.
      dtype: compute dtype.

    Returns:
      `[B, N, hidden]` in `dtype`.
    """
    bags, size, *image_shape = instances.shape
    x = instances.astype(dtype).reshape(bags * size, *image_shape)
    for number, channels in enumerate(CHANNELS, start=1):
        conv = Conv(
            channels,
            kernel=5,
            dtype=dtype,
            use_bias=True,
            conv_general_dilated=conv_general_dilated,
            name=f"conv{number}",
        )
        x = nn.relu(
            max_pool(conv(x))
        )  # the same as pooling what ReLU leaves, of a quarter of the values
    # Channels first, as PyTorch flattens, so that stored weights need no reordering.
    x = x.transpose(0, 3, 1, 2).reshape(bags, size, -1)
    return nn.relu(dense(hidden, x.shape[-1], "dense", dtype, dot_general)(x))

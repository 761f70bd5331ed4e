"""Networks and images so small that a whole run takes a second."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lossattn_jax import data
from lossattn_jax.attention import pooling
from lossattn_jax.config import images as config_lib
from lossattn_jax.models import Outputs
from lossattn_jax.models.geometry import PatchGrid

SPEC = data.DatasetSpec("toy", 3, ("a", "b", "c"), image_shape=(4, 4, 3))
STEPS = 4  # of 8 images an epoch
LOSS, GRADIENT, NORM = 255, 254, 253  # the first pixel of images that are too much for `Toy`


class Toy(nn.Module):
    """As little of a network as compiles in no time: each row of the image is a patch.

    With some first pixels the loss is not finite, or the gradient alone, or only the gradient's norm.
    """

    dtype: Any = jnp.float32

    def patch_grid(self, image_shape):
        return PatchGrid(4, 1, (4, 4), 1, 1)

    @nn.compact
    def __call__(self, images, train=False):
        first = jnp.round((images[:, 0, 0, 0] * 0.25 + 0.5) * 255)
        rows = images.reshape(*images.shape[:2], -1)
        rows = nn.BatchNorm(not train, momentum=0.9, name="norm")(rows)
        patch_logits = nn.Dense(3)(rows)
        bias = self.param("extra", nn.initializers.constant(0.5), (3,))
        # The square root's gradient at 0 is infinite, and the last factor's squares overflow float32.
        steep = jnp.sqrt(jnp.where((first == GRADIENT)[:, None], 0.0 * bias[None], 1.0))
        large = jnp.where((first == NORM)[:, None], 1e30 * (bias - jax.lax.stop_gradient(bias)), 0)
        patch_logits = patch_logits + (bias[None] + steep + large)[:, None]
        patch_logits = patch_logits * jnp.where(first == LOSS, jnp.nan, 1.0)[:, None, None]
        attention = pooling.loss_attention(patch_logits, grid=4)
        return Outputs(pooling.weighted_sum(patch_logits, attention), patch_logits, attention)


def train_set(bad):
    """32 images; `bad` has the first pixels of some of them, by place."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 250, (32, 4, 4, 3)).astype(np.uint8)
    for place, pixel in bad.items():
        images[place, 0, 0, 0] = pixel
    return data.ArrayDataset(SPEC, "train", images, draw.integers(0, 3, 32).astype(np.int32))


def settings(**changes):
    config = config_lib.default_config()
    config.data.update(name="digit_scenes", crop_padding=0, flip=False, on_device="off")
    config.train.update(batch_size=8, epochs=3)
    config.eval.batch_size = 8
    config.log.update(every_steps=3, pictures=0)
    config.optimizer.update(schedule="cosine", learning_rate=0.05)
    config.loss.update(patch_ramp_epochs=0, consistency_weight=1.0, consistency_ramp_epochs=1)
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return config

"""Mean pooling: every patch weighs the same."""

from lossattn_jax.attention import pooling
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.attention.poolings.entry import MAP, ONE, PATCHES, Patches, Pooling


def _mean(patches: Patches) -> Outputs:
    attention = pooling.uniform_attention(patches.patch_logits, patches.mask, patches.axis_name)
    return patches.weigh(attention)


MEAN = Pooling(_mean, takes=(ONE, MAP, PATCHES), splits_patches=True)

"""Mean pooling: every patch weighs the same.

Of bags it is the mean of the instances' features, which are then classified (Ilse et al. 2018);
with a linear classifier that is the mean of the instances' own logits.
"""

from lossattn_jax.attention import pooling
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.attention.poolings.entry import (
    INSTANCES,
    MAP,
    ONE,
    PATCHES,
    Patches,
    Pooling,
)


def _mean(patches: Patches) -> Outputs:
    attention = pooling.uniform_attention(patches.patch_logits, patches.mask, patches.axis_name)
    return patches.weigh(attention)


MEAN = Pooling(
    _mean,
    takes=(ONE, MAP, PATCHES, INSTANCES),
    scores_by_attention=False,
    splits_patches=True,
    title="Mean pooling",
)

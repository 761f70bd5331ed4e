"""Loss-based attention: the classifier's predictions weigh patches.

In both papers' forms.
"""

import jax.numpy as jnp

from lossattn_jax.attention import pooling
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.attention.poolings.entry import (
    INSTANCES,
    MAP,
    PATCHES,
    PaperRow,
    Patches,
    Pooling,
)


def _tip(patches: Patches) -> Outputs:
    """Weighs patches by their logits' norms, cut at a threshold.

    TIP 2021.
    """
    attention = pooling.loss_attention(
        patches.patch_logits, patches.grid, patches.threshold, patches.mask
    )
    return patches.weigh(attention)


def _tip_capsules(patches: Patches) -> Outputs:
    """Weighs capsules by their logits' norms, cut at a threshold.

    TIP 2021, section III-C: each capsule is classified and weighed.

    A patch's prediction is the sum of its capsules' predictions, and its attention what is left of the sum of
    their weights above the threshold.
    """
    capsules = patches.features
    batch, count, _, dimension = capsules.shape
    logits = patches.classifier(capsules)
    weights, attention = pooling.capsule_loss_attention(
        logits, count, patches.threshold, patches.mask
    )
    features = pooling.weighted_sum(
        capsules.reshape(batch, -1, dimension), weights.reshape(batch, -1)
    )
    return Outputs(patches.classifier(features), jnp.sum(logits, axis=2), attention)


def _aaai(patches: Patches) -> Outputs:
    """Weighs patches by a softmax of their logsumexp over classes.

    AAAI 2020.
    """
    attention = pooling.bag_loss_attention(patches.patch_logits, patches.mask, patches.axis_name)
    return patches.weigh(attention)


LOSS_ATTENTION = Pooling(
    _tip,
    takes=(PATCHES,),
    pool_capsules=_tip_capsules,
    patch_loss=True,
    threshold=True,
    warns_of_collapse=True,
)
BAG_LOSS_ATTENTION = Pooling(
    _aaai,
    takes=(MAP, PATCHES, INSTANCES),
    patch_loss=True,
    warns_of_collapse=True,
    splits_patches=True,
    paper=PaperRow("loss_attention", "Loss-Attention", (0.917, 0.911, 0.712, 0.897, 0.900)),
)

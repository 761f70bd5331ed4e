"""Loss-based attention: the classifier's own predictions weigh the patches, in both papers' forms."""

import jax.numpy as jnp

from lossattn_jax.attention import pooling
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.attention.poolings.entry import (
    INSTANCES,
    MAP,
    PATCHES,
    Patches,
    Pooling,
    Published,
)


def _tip(patches: Patches) -> Outputs:
    """Weights by the norms of the patches' logits, cut at a threshold (TIP 2021)."""
    attention = pooling.loss_attention(
        patches.patch_logits, patches.grid, patches.threshold, patches.mask
    )
    return patches.weigh(attention)


def _tip_capsules(patches: Patches) -> Outputs:
    """The same over capsules: each is classified and weighed (TIP 2021, section III-C).

    A patch's prediction is the sum of its capsules' predictions, and its attention what is left of the sum of
    their weights above the threshold.
    """
    capsules = patches.features
    batch, count, _, dimension = capsules.shape
    logits = patches.classifier(capsules)
    weights, attention = pooling.capsule_loss_attention(
        logits, count, patches.threshold, patches.mask
    )
    pooled = pooling.weighted_sum(
        capsules.reshape(batch, -1, dimension), weights.reshape(batch, -1)
    )
    return Outputs(patches.classifier(pooled), jnp.sum(logits, axis=2), attention)


def _aaai(patches: Patches) -> Outputs:
    """Weights by a softmax of the patches' logsumexp over the classes (AAAI 2020)."""
    return patches.weigh(pooling.bag_loss_attention(patches.patch_logits, patches.mask))


LOSS_ATTENTION = Pooling(
    _tip,
    takes=(PATCHES,),
    pool_capsules=_tip_capsules,
    patch_loss=True,
    threshold=True,
    watched=True,
)
BAG_LOSS_ATTENTION = Pooling(
    _aaai,
    takes=(MAP, PATCHES, INSTANCES),
    patch_loss=True,
    watched=True,
    published=Published("loss_attention", "Loss-Attention", (0.917, 0.911, 0.712, 0.897, 0.900)),
)

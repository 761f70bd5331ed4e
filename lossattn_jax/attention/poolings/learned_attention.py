"""Attention scored by learned layers (Ilse et al. 2018), gated or not."""

import functools

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
from lossattn_jax.attention.scorers import HIDDEN, AttentionScores


def _pool_by_attention(patches: Patches, *, has_gate: bool) -> Outputs:
    # Before the scores, which decides the order in which gradients to the features are summed.
    _ = patches.patch_logits
    scores = AttentionScores(patches.hidden, has_gate, name="attention")(patches.features)
    return patches.weigh(pooling.softmax_attention(scores, patches.mask, patches.axis_name))


ATTENTION = Pooling(
    functools.partial(_pool_by_attention, has_gate=False),
    takes=(MAP, PATCHES, INSTANCES),
    warns_of_collapse=True,
    learns_scores=True,
    hidden=HIDDEN,
    splits_patches=True,
    torch_names={"attention/tanh": "attention.0", "attention/score": "attention.2"},
    paper=PaperRow("attention", "Attention", (0.892, 0.858, 0.615, 0.839, 0.868)),
)
GATED_ATTENTION = Pooling(
    functools.partial(_pool_by_attention, has_gate=True),
    takes=(MAP, PATCHES, INSTANCES),
    warns_of_collapse=True,
    learns_scores=True,
    hidden=HIDDEN,
    splits_patches=True,
    torch_names={
        "attention/tanh": "attention_V.0",
        "attention/gate": "attention_U.0",
        "attention/score": "attention_weights",
    },
    paper=PaperRow("gated_attention", "Gated-Attention", (0.900, 0.863, 0.603, 0.845, 0.857)),
)

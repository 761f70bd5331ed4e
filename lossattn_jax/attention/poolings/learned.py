"""Attention that layers of its own score (Ilse et al. 2018), with or without a gate."""

import functools

from lossattn_jax.attention import pooling
from lossattn_jax.attention.learned import HIDDEN, AttentionScores
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.attention.poolings.entry import INSTANCES, PATCHES, Patches, Pooling, Published


def _learned(patches: Patches, *, gated: bool) -> Outputs:
    # Before the scores, which decides the order in which gradients to the features are summed.
    _ = patches.patch_logits
    scores = AttentionScores(patches.hidden, gated, name="attention")(patches.features)
    return patches.weigh(pooling.softmax_attention(scores, patches.mask))


ATTENTION = Pooling(
    functools.partial(_learned, gated=False),
    takes=(PATCHES, INSTANCES),
    watched=True,
    learned=True,
    hidden=HIDDEN,
    torch_names={"attention/tanh": "attention.0", "attention/score": "attention.2"},
    published=Published("attention", "Attention", (0.892, 0.858, 0.615, 0.839, 0.868)),
)
GATED_ATTENTION = Pooling(
    functools.partial(_learned, gated=True),
    takes=(PATCHES, INSTANCES),
    watched=True,
    learned=True,
    hidden=HIDDEN,
    torch_names={
        "attention/tanh": "attention_V.0",
        "attention/gate": "attention_U.0",
        "attention/score": "attention_weights",
    },
    published=Published("gated_attention", "Gated-Attention", (0.900, 0.863, 0.603, 0.845, 0.857)),
)

"""Layers that score patches beside the classifier (Ilse et al. 2018).

They are the papers' main baseline.
"""

import jax
from flax import linen as nn

from lossattn_jax.attention import pooling
from lossattn_jax.models.layers import dense

HIDDEN = 128  # of both papers' tables


class AttentionScores(nn.Module):
    """The layers of `pooling.learned_scores`, with biases, in float32.

    Attributes:
      hidden: outputs of V and U.
      has_gate: whether there is a U.
    """

    hidden: int = HIDDEN
    has_gate: bool = False

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Scores features `[B, P, D]` of any float dtype, `[B, P]` float32."""
        return pooling.learned_scores(
            features,
            tanh=dense(self.hidden, features.shape[-1], "tanh"),
            score=dense(1, self.hidden, "score"),
            gate=dense(self.hidden, features.shape[-1], "gate") if self.has_gate else None,
        )

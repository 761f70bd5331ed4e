"""Attention that is learned beside the classifier (Ilse et al. 2018): the papers' main baseline."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lossattn_jax.models.layers import dense

HIDDEN = 128  # of both papers' tables


class AttentionScores(nn.Module):
    """Scores of patches or instances, for `pooling.softmax_attention`.

    `w^T tanh(V h_p)` (Ilse et al. 2018, eq. 8), or with a gate `w^T (tanh(V h_p) * sigmoid(U h_p))`
    (eq. 9). Every layer has a bias. Computes in float32.

    Attributes:
      hidden: outputs of V and U.
      gated: whether there is a U.
    """

    hidden: int = HIDDEN
    gated: bool = False

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps features `[B, P, D]` of any float dtype to scores `[B, P]` float32."""
        features = features.astype(jnp.float32)
        hidden = jnp.tanh(dense(self.hidden, features.shape[-1], "tanh")(features))
        if self.gated:
            gate = nn.sigmoid(dense(self.hidden, features.shape[-1], "gate")(features))
            hidden = hidden * gate
        return dense(1, self.hidden, "score")(hidden)[..., 0]

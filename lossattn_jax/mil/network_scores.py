"""Scores of instances from a network's outputs.

Apart from the networks, so that importing these takes no SciPy.
"""

import numpy as np
from scipy.special import softmax

from lossattn_jax.attention import poolings


def instance_scores(method: str, attention: np.ndarray, instance_logits: np.ndarray) -> np.ndarray:
    """Scores instances for their bag's label.

    By attention where the method learns one.

    With the others, the probability that the classifier gives the instance for any class but the first.

    Args:
      method: one of `poolings.BAG_POOLINGS`, or a reference.
      attention: `[..., N]`.
      instance_logits: `[..., N, K]`.

    Returns:
      `[..., N]` float64.

    Raises:
      UnknownName: there is no such method.
    """
    if poolings.BAG_POOLINGS.find(method).scores_by_attention:
        return attention.astype(np.float64)
    return 1.0 - softmax(instance_logits.astype(np.float64), axis=-1)[..., 0]

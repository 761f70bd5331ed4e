"""Scores of instances from a network's outputs.

Apart from the networks, so that importing these takes no SciPy.
"""

import numpy as np
from scipy.special import expit, softmax

from lossattn_jax.attention import poolings


def probabilities(logits: np.ndarray, *, several_labels: bool) -> np.ndarray:
    """`[..., K]` float64: how probable each class is; of several labels each one by itself.

    Args:
      logits: `[..., K]`.
      several_labels: whether a bag may have any number of labels.
    """
    with np.errstate(invalid="ignore"):  # of infinite logits
        own = logits.astype(np.float64)
        return expit(own) if several_labels else softmax(own, axis=-1)


def instance_scores(
    method: str,
    attention: np.ndarray,
    instance_logits: np.ndarray,
    *,
    several_labels: bool = False,
) -> np.ndarray:
    """Scores instances for their bag's label.

    By attention where the method learns one.

    With the others, the probability that the classifier gives the instance for any class but the first, or of
    several labels for the most probable one.

    Args:
      method: one of `poolings.BAG_POOLINGS`, or a reference.
      attention: `[..., N]`.
      instance_logits: `[..., N, K]`.
      several_labels: whether a bag may have any number of labels.

    Returns:
      `[..., N]` float64.

    Raises:
      UnknownName: there is no such method.
    """
    if poolings.BAG_POOLINGS.find(method).scores_by_attention:
        return attention.astype(np.float64)
    of_instances = probabilities(instance_logits, several_labels=several_labels)
    return of_instances.max(axis=-1) if several_labels else 1.0 - of_instances[..., 0]

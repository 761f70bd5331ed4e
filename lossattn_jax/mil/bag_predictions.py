"""What a fitted method says of one bag and of its instances."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class InstancePredictions:
    """Predictions for one bag of n instances, of networks averaged over an ensemble.

    Attributes:
      row: the bag's position.
      probabilities: `[K]` float64 of the bag.
      attention: `[n]` float32 weights; NaN where outputs are not finite. None of methods without a network.
      logits: `[n, K]` float32 of the instances; None likewise.
      scores: `[n]` float64, see `BagClassifier.instance_scores`.
    """

    row: int
    probabilities: np.ndarray
    attention: np.ndarray | None
    logits: np.ndarray | None
    scores: np.ndarray

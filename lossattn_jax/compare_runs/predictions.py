"""Predictions of a run for every image of a split, and its evaluation."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from lossattn_jax import data, devices
from lossattn_jax.attention import losses
from lossattn_jax.checkpoint import runs
from lossattn_jax.evaluate import metrics
from lossattn_jax.evaluate.evaluation import EvalStep, evaluate
from lossattn_jax.models import Outputs


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a network predicts for the N images of a split.

    Attributes:
      labels: `[N]` int32, or multi-hot uint8 `[N, K]`.
      logits: `[N, K]` float32.
      probabilities: `[N, K]` float32; see `losses.probabilities`.
      metrics: of the evaluation, by name; see `evaluation.evaluate`.
    """

    labels: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    metrics: Mapping[str, float]

    @property
    def predicted(self) -> np.ndarray:
        """`[N]` int64, the most probable classes."""
        return self.logits.argmax(axis=-1)

    @property
    def right(self) -> np.ndarray:
        """`[N]` bool, whether the most probable class is the label, or one of the labels."""
        if self.labels.ndim == 1:
            return self.predicted == self.labels
        return np.take_along_axis(self.labels, self.predicted[:, None], axis=1)[:, 0] > 0

    @property
    def finite(self) -> bool:
        """Whether all outputs are."""
        return metrics.NONFINITE not in self.metrics


def predict(
    run: runs.Run, eval_step: EvalStep, dataset: data.Dataset, batch_size: int
) -> Predictions:
    """Evaluates a run, batch by batch; what stays of each image is K numbers.

    Args:
      run: a checkpoint.
      eval_step: of its network, from `make_eval_step`.
      dataset: the split.
      batch_size: images per batch.
    """
    parts: list[dict[str, np.ndarray]] = []

    def look(batch: dict[str, np.ndarray], outputs: Outputs) -> None:
        own = {key: batch[key] for key in ("label", "index", "mask")}
        rows = devices.concatenate_processes(own | {"logits": devices.gather(outputs.logits)})
        real = rows.pop("mask") > 0
        parts.append({key: array[real] for key, array in rows.items()})

    results = evaluate(eval_step, devices.replicate(run.variables), dataset, batch_size, look=look)
    columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.argsort(columns["index"])  # of several processes each has a part of every batch
    logits = columns["logits"][order].astype(np.float32)
    probabilities = np.asarray(losses.probabilities(run.loss, logits))
    return Predictions(columns["label"][order], logits, probabilities, results)

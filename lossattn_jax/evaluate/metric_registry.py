"""The registry of evaluation metrics, and where each is shown."""

import dataclasses

from lossattn_jax.registry import Registry


@dataclasses.dataclass(frozen=True)
class EvaluationMetric:
    """A metric of a network over a split.

    Attributes:
      higher: whether more is better; None: neither.
      in_log: whether a training says it after each evaluation.
      compares_thresholds: whether it is in a report's table of thresholds of the attention.
      compares_systems: whether it is a row of the table of several systems.
      chooses_checkpoint: whether the checkpoint with the highest is the best; of several, the first does.
    """

    higher: bool | None
    in_log: bool = False
    compares_thresholds: bool = False
    compares_systems: bool = False
    chooses_checkpoint: bool = False


EVALUATION_METRICS = Registry(
    "the metric of evaluations",
    EvaluationMetric,
    {
        "accuracy": EvaluationMetric(
            True,
            in_log=True,
            compares_thresholds=True,
            compares_systems=True,
            chooses_checkpoint=True,
        ),
        "precision_at_1": EvaluationMetric(True),
        "map_all_point": EvaluationMetric(True, in_log=True, chooses_checkpoint=True),
        "map_11_point": EvaluationMetric(True),
        "loss": EvaluationMetric(False, in_log=True, compares_thresholds=True),
        "patch_loss": EvaluationMetric(False),
        "attention_entropy": EvaluationMetric(None, compares_thresholds=True),
        "patch_accuracy": EvaluationMetric(True, in_log=True),
        "attended_patch_accuracy": EvaluationMetric(True, compares_thresholds=True),
        "pointing_accuracy": EvaluationMetric(True, in_log=True, compares_thresholds=True),
        "attention_in_box": EvaluationMetric(True, compares_thresholds=True),
        "patches_in_box": EvaluationMetric(None, compares_thresholds=True),
        "calibration_error": EvaluationMetric(False),
    },
)

"""Evaluation: exact metrics of a network, and files of measurements.

`metric_registry` has the metrics, each with its function, and sums them over a batch; `metrics` has what they
are made of, and the sums that are added over devices and batches; `evaluation` goes over a split. To add a
metric, write its function in `metric_registry` and put it into `EVALUATION_METRICS` there.
`python -m lossattn_jax.evaluate` evaluates a finished run.
"""

from typing import TYPE_CHECKING

from lossattn_jax.commands import imports

__all__ = [
    "EvalStep",
    "add_sums",
    "evaluate",
    "evaluate_run",
    "forward_batches",
    "make_eval_step",
    "refuse_nonfinite",
    "to_devices",
]

if TYPE_CHECKING:
    from lossattn_jax.evaluate.evaluation import (
        EvalStep,
        add_sums,
        evaluate,
        evaluate_run,
        forward_batches,
        make_eval_step,
        refuse_nonfinite,
        to_devices,
    )
else:
    __getattr__, __dir__ = imports.attach(__name__)

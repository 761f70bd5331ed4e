"""Evaluation: exact metrics of a network, and files of measurements.

`metric_registry` lists the metrics, `metrics` holds them, as sums that are added over devices and batches;
`evaluation` goes over a split. `python -m lossattn_jax.evaluate` does it for a finished run.
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

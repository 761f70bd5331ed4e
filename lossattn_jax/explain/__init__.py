"""Explanations: attention and other explainers, their metrics, reports, and exports.

An explainer belongs into `explainers`, a metric of explanations into `metrics`, what a page shows into
`report`.
`python -m lossattn_jax.explain` writes a report on a finished run.
"""

from typing import TYPE_CHECKING

from lossattn_jax.commands import imports

__all__ = [
    "explain_run",
]

if TYPE_CHECKING:
    from lossattn_jax.explain import explainers as explainers
    from lossattn_jax.explain import receptive_field as receptive_field
    from lossattn_jax.explain.run_report import explain_run
else:
    __getattr__, __dir__ = imports.attach(__name__)

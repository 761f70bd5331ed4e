"""Comparison of runs of images: configs, metrics, curves, and the images on which they disagree.

`comparison` has the whole of it; `predictions` is what it takes of each run, `paired_differences` and
`disagreements` are functions of predictions for the same images, `curves` draws what trainings have logged,
and `tables` and `page` show the results. `python -m lossattn_jax.compare_runs A B` is the command.
"""

from typing import TYPE_CHECKING

from lossattn_jax.commands import imports

__all__ = ["compare", "refuse_nonfinite"]

if TYPE_CHECKING:
    from lossattn_jax.compare_runs.comparison import compare, refuse_nonfinite
else:
    __getattr__, __dir__ = imports.attach(__name__)

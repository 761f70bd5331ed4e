"""A trained run in use: predictions and explanations of any pictures, from Python and as files.

`trained_run` opens a run and predicts, `inputs` are the pictures, `forward` the network's passes over them,
`predictions` and `explanation` what comes of them; `prediction_run` and `prediction_files` are the command's.
`python -m lossattn_jax.predict` writes a table of any number of files. What becomes a program for others
belongs into `export_model`, what is said of bags into `mil`.
"""

from typing import TYPE_CHECKING

from lossattn_jax.commands import imports

__all__ = [
    "Explanation",
    "Predictions",
    "TrainedRun",
    "load",
]

if TYPE_CHECKING:
    from lossattn_jax.predict.explanation import Explanation
    from lossattn_jax.predict.predictions import Predictions
    from lossattn_jax.predict.trained_run import TrainedRun, load
else:
    __getattr__, __dir__ = imports.attach(__name__)

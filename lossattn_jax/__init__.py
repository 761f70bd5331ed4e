"""Loss-based attention for images and bags, in JAX and Flax.

The classifier's own weights score every patch of an image (Shi et al., IEEE TIP 2021) or every
instance of a bag (Shi et al., AAAI 2020): one set of parameters gives the patch weights, the patch
predictions and the image prediction.

The folders, in the order in which data pass through them: `data`, `models` (with `attention` and `kernels`),
`train`, `checkpoint`, `evaluate`, `explain`, `predict` and `export_model`; `mil` for experiments with bags;
and for all of them `config`, `files` and `commands`. They are imported when they are first used.
`train_run` trains a network, and `load` opens a trained run, which predicts for pictures.

Each kind of part (poolings, backbones, data sets, methods, metrics, ...) is a `registry.Registry` by name,
whose entries say all that the rest asks of a part; a search for `Registry(` finds them all.
"""

import sys
from typing import TYPE_CHECKING

from lossattn_jax.commands import imports

__version__ = "0.1.0"

sys.meta_path.append(imports.MovedModules())

if TYPE_CHECKING:  # for editors and type checkers
    from lossattn_jax import attention as attention
    from lossattn_jax import checkpoint as checkpoint
    from lossattn_jax import config as config
    from lossattn_jax import convert as convert
    from lossattn_jax import data as data
    from lossattn_jax import evaluate as evaluate
    from lossattn_jax import explain as explain
    from lossattn_jax import export_model as export_model
    from lossattn_jax import mil as mil
    from lossattn_jax import models as models
    from lossattn_jax import predict as predict
    from lossattn_jax import train as train
    from lossattn_jax.predict.trained_run import TrainedRun as TrainedRun
    from lossattn_jax.predict.trained_run import load as load
    from lossattn_jax.train.images.shown_training import train_run as train_run
else:
    __getattr__, __dir__ = imports.attach(__name__)

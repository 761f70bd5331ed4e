"""Training: what images and bags share, and both drivers.

Here: optimisers, schedules, the state of a training, and its end by SIGTERM. To add an optimiser or a
schedule, put its function into `optimizer.OPTIMIZERS` or `schedules.SCHEDULES`; a hyper-parameter that it
needs is a key of `config.options.OptimizerOptions`. `images` trains on batches of images over all devices,
`bags` all folds of an experiment with bags at once.
"""

from lossattn_jax.commands import imports

__getattr__, __dir__ = imports.attach(__name__)

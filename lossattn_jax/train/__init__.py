"""Training: what images and bags share, and both drivers.

Here: optimisers, schedules, the state of a training, and its end by SIGTERM. `images` trains on batches of
images over all devices, `bags` all folds of an experiment with bags at once.
"""

from lossattn_jax.commands import imports

__getattr__, __dir__ = imports.attach(__name__)

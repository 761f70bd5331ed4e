"""Training on images, on all devices, from config to checkpoints.

`loop` is the training that `train.py` calls; `step` and `gradients` are one update of it.
"""

from lossattn_jax.commands import imports

__getattr__, __dir__ = imports.attach(__name__)

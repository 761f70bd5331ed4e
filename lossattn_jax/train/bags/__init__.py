"""Training of networks for bags: all folds in one compiled program.

`training` is the driver, `programs` what runs on the devices, `steps` and `gradients` one update of it.
"""

from lossattn_jax.commands import imports

__getattr__, __dir__ = imports.attach(__name__)

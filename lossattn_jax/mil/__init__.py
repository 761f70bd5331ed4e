"""Multiple instance learning: the AAAI 2020 paper's methods and experiments.

`cross_validation` and `experiment` are the protocol, `report`, `paper_table` and `tables` what comes of it.
To add a method, write an `estimator.BagClassifier` and put it into `methods.METHODS`; a method that is a
network is a pooling that takes instances, in `lossattn_jax.attention.poolings`. `python -m lossattn_jax.mil`
is the command.
"""

from typing import TYPE_CHECKING

from lossattn_jax.commands import imports

__all__ = ["BagLeNet", "BagNetwork", "load"]

if TYPE_CHECKING:
    from lossattn_jax.mil import methods as methods
    from lossattn_jax.mil.stored_models import load
    from lossattn_jax.models.bag_networks import BagLeNet, BagNetwork
else:
    __getattr__, __dir__ = imports.attach(__name__)

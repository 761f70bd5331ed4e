"""Multiple instance learning: the AAAI 2020 paper's methods and experiments.

A method belongs into the table of `methods`; `cross_validation` and `experiment` are the protocol, `report`,
`paper_table` and `tables` what comes of it. `python -m lossattn_jax.mil` is the command.
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

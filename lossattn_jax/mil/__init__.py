"""Multiple instance learning on bags: the AAAI 2020 paper's own setting."""

from typing import TYPE_CHECKING

from lossattn_jax.commands import lazy
from lossattn_jax.models.bag_networks import BagLeNet, BagNetwork

__all__ = ["BagLeNet", "BagNetwork"]

if TYPE_CHECKING:
    from lossattn_jax.mil import methods as methods
else:
    __getattr__, __dir__ = lazy.attach(__name__)

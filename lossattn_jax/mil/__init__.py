"""Multiple instance learning on bags: the AAAI 2020 paper's own setting."""

from lossattn_jax.mil.lenet import BagLeNet

__all__ = ["BagLeNet"]

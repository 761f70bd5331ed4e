"""Multiple instance learning on bags: the AAAI 2020 paper's own setting."""

from lossattn_jax.mil.networks import BagLeNet, BagNetwork

__all__ = ["BagLeNet", "BagNetwork"]

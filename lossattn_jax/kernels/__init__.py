"""Kernels that run well where XLA's do not, mostly on CPUs.

What belongs here computes what JAX's own function computes, up to rounding, faster or in less memory; each
module says what it was measured against. `cpu` holds the settings of a process on CPUs.
"""

from lossattn_jax.commands import imports

__getattr__, __dir__ = imports.attach(__name__)

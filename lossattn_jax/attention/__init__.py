"""Attention: scores of patches and instances, pooling by them, and the losses that meet them.

What belongs here works on patches of images and on instances of bags alike, as pure functions of arrays:
`pooling` (scores and weighted sums), `losses`, `routing` between capsules, `ensemble` (the consistency of
attention over epochs), `outputs` (what networks return); and `learned`, attention with weights of its own.
"""

from lossattn_jax.commands import imports

__getattr__, __dir__ = imports.attach(__name__)

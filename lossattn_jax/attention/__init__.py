"""Attention: scores of patches and instances, pooling, and losses.

What belongs here works on patches of images and on instances of bags alike, as pure functions of arrays:
`pooling` (scores and weighted sums), `losses`, `routing` between capsules, `ensemble` (the consistency of
attention over epochs), `outputs` (what networks return); `learned`, attention with weights of its own; and
`poolings`, where each pooling that a network can have is one entry: a new one is a file there.
"""

from lossattn_jax.commands import imports

__getattr__, __dir__ = imports.attach(__name__)

"""Attention: scores of patches and instances, pooling, and losses.

What belongs here works on patches of images and on instances of bags alike: `pooling` (scores and weighted
sums), `losses` and `routing` between capsules are pure functions of arrays, `ensemble` keeps attention
consistent over epochs, `scorers` has layers that score patches, `outputs` what networks return.

`poolings` has the poolings that a network can have, of images in `POOLINGS` and of bags in `BAG_POOLINGS`: a
new one is a file and an entry there. A new loss is a function and an entry of `losses.LOSSES`.
"""

from lossattn_jax.commands import imports

__getattr__, __dir__ = imports.attach(__name__)

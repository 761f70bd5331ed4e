"""Parameters of networks drawn by NumPy, where compiling their initialisation takes most of a test."""

import math
import zlib

import jax
import numpy as np


def draw(network, *inputs):
    """Variables of a Linen module, about as large as those of a new one, and none 0 or 1.

    What has the same path and shape in another network is the same there.
    """
    shapes = jax.eval_shape(lambda *x: network.init(jax.random.key(0), *x), *inputs)

    def fill(path, leaf):
        name = jax.tree_util.keystr(path)
        values = np.random.default_rng(zlib.crc32(name.encode())).normal(size=leaf.shape)
        if leaf.ndim > 1:
            values = values / math.sqrt(math.prod(leaf.shape[:-1]))
        elif name.endswith(("['scale']", "['var']")):
            values = 1 + np.abs(values) / 5
        else:
            values = values / 10
        return values.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)

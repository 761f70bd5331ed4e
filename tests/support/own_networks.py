"""A pooling, a backbone, a head, a loss and layers for bags, as a user writes them in a file of one's own."""

NAME = "own_networks_outside"

SOURCE = '''
import jax
import jax.numpy as jnp
from flax import linen as nn

from lossattn_jax.attention import losses, pooling
from lossattn_jax.attention.poolings import Patches, Pooling
from lossattn_jax.models.geometry import sliding_grid


def score(patches: Patches):
    """Softmax over patches of one score with weights of its own."""
    scores = nn.Dense(1, name="own_scores")(patches.features)[..., 0]
    return patches.weigh(pooling.softmax_attention(scores, patches.mask))


SCORED = Pooling(score, patch_loss=True, warns_of_collapse=True, widths=(6, 5, 4))
NAMED = Pooling(score, torch_names={"own_scores": "scores.0"})


class Backbone(nn.Module):
    """One strided convolution."""

    @nn.compact
    def __call__(self, x, train):
        return nn.relu(nn.Conv(6, (4, 4), strides=4, name="conv")(x))


class Head(nn.Module):
    """Patches of 2x2 positions of the map."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(5, (2, 2), strides=2, padding="VALID", name="patch")(x))
        return x.reshape(len(x), -1, x.shape[-1])

    @nn.nowrap
    def grid(self, map_size):
        return sliding_grid(map_size, 2, 2)


def layers(network, instances, train, noise):
    """One layer over instances, without dropout."""
    return [nn.relu(nn.Dense(4, name="own_layer")(instances)).astype(jnp.float32)]


def squares(logits, labels):
    """Brier's score: squares of what the probabilities lack."""
    wrong = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])
    return jnp.sum(jnp.square(wrong), axis=-1)


def patch_squares(patch_logits, labels, attention):
    """The same of patches, weighted."""
    return jnp.sum(attention * squares(patch_logits, labels[:, None]), axis=-1)


BRIER = losses.Loss(squares, patch_squares, jax.nn.softmax)
NOTHING = 3
'''


def write(folder):
    """Writes the module into a folder."""
    (folder / f"{NAME}.py").write_text(SOURCE)

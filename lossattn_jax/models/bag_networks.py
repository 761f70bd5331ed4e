"""The seven networks for bags of the AAAI 2020 paper's Table 1, on vectors or on images.

All share the layers over instances and one classifier, and differ in how a bag is pooled. The pooling and
the attention scores are those of `lossattn_jax.attention.pooling`, an instance being a patch.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax.attention import pooling
from lossattn_jax.attention.bag_outputs import BagOutputs
from lossattn_jax.attention.learned import AttentionScores
from lossattn_jax.kernels.linear import dot_general
from lossattn_jax.models import layers as layers_lib
from lossattn_jax.models.layers import ExampleDropout
from lossattn_jax.models.lenet import HIDDEN, lenet_features
from lossattn_jax.registry import lookup

# Method: the widths of the three layers over instances that it was published with.
METHODS = {
    "mi_net": (256, 128, 64),
    "mi_net_bag": (256, 128, 64),
    "mi_net_ds": (256, 128, 64),
    "mi_net_rc": (128, 128, 128),
    "attention": (256, 128, 64),
    "gated_attention": (256, 128, 64),
    "loss_attention": (256, 128, 64),
}
BACKBONES = ("dense", "lenet")
# Without attention; after Wang et al. 2018 they drop units where they pool, not between the layers.
MI_NETS = ("mi_net", "mi_net_bag", "mi_net_ds", "mi_net_rc")
_ATTENTION_HIDDEN = {"dense": 64, "lenet": 128}  # Ilse et al. 2018, for vectors and for digits


dense = functools.partial(layers_lib.dense, dot_general=dot_general)


class BagNetwork(nn.Module):
    """Layers over instances, a pooling, and one linear classifier.

    With instance features h_p and the classifier z = W h + b:
      loss_attention: a = softmax_p(logsumexp_k z_pk), bag logits W (sum_p a_p h_p) + b (AAAI 2020).
      attention, gated_attention: a from layers of their own (Ilse et al. 2018), same bag logits.
      mi_net_bag: max pooling of h, then the classifier (Wang et al. 2018, MI-Net).
      mi_net_ds: the same after each of the layers, each with a classifier; the prediction is the mean
        of their probabilities, the loss the sum of their losses (deep supervision).
      mi_net_rc: the layers' pooled features are added before the classifier (residual connections).
      mi_net: the bag's score of class k > 0 is its highest instance score; class 0 has score 0, so that
        it is predicted where no instance speaks for another. With two classes that is mi-Net's sigmoid.

    Dropout, in training only, follows every layer with attention, and comes before each pooling with the
    others. On images only the dense layer of LeNet has it. It draws from the stream "dropout", or takes
    random bytes that the caller has drawn for many steps at once, which on CPUs is far quicker.

    Attributes:
      num_classes: K.
      method: one of `METHODS`.
      backbone: "dense" for vectors, "lenet" for images.
      hidden: widths of the dense layers, or of LeNet's one; None: as published.
      dropout: share of features that is dropped in training.
      axis_name: pmap axis that training batches are split over, or None; see `ExampleDropout`.
      dtype: compute dtype of the features; classifiers and attention are float32.
    """

    num_classes: int = 2
    method: str = "loss_attention"
    backbone: str = "dense"
    hidden: tuple[int, ...] | None = None
    dropout: float = 0.5
    axis_name: str | None = None
    dtype: Dtype = jnp.float32

    @property
    def widths(self) -> tuple[int, ...]:
        """Outputs of the dense layers."""
        published = {"dense": lookup("method", self.method, METHODS), "lenet": (HIDDEN,)}
        return self.hidden or lookup("backbone", self.backbone, published)

    @nn.compact
    def __call__(
        self,
        instances: jax.Array,
        mask: jax.Array | None = None,
        train: bool = False,
        noise: jax.Array | None = None,
    ) -> BagOutputs:
        """Predicts for a batch of bags.

        Args:
          instances: `[B, N, D]` float vectors, or `[B, N, H, W, C]` images.
          mask: `[B, N]`, True or 1 for a real instance; the others may hold anything. None: all are
            real.
          train: True applies dropout.
          noise: `[B, N, sum(widths)]` uint8 random bytes to drop by, which rounds the rate to 1/256. None:
            the stream.

        Returns:
          `BagOutputs` in float32. The `attention` of the networks without one is each instance's share
          of the maxima (`pooling.max_attention`), and with mi_net of the highest score.

        Raises:
          UnknownName: there is no such method or backbone.
        """
        make_layers = lookup("backbone", self.backbone, _LAYERS)
        pool = lookup("method", self.method, _POOLINGS)
        if mask is not None:
            real = mask.astype(bool).reshape(*mask.shape, *(1 for _ in instances.shape[2:]))
            instances = jnp.where(real, instances, 0)
        return pool(self, make_layers(self, instances, train, noise), mask)

    def dropped(self, x: jax.Array, name: str, train: bool, noise: jax.Array | None) -> jax.Array:
        """Drops units of `x` `[B, N, D]` in training."""
        if noise is None:
            return ExampleDropout(self.dropout, self.axis_name, name=name)(x, train)
        if not train or self.dropout == 0:
            return x
        dropped = min(round(self.dropout * 256), 255)
        return jnp.where(noise >= dropped, x / (1 - dropped / 256), 0.0).astype(x.dtype)


class BagLeNet(BagNetwork):
    """The AAAI 2020 paper's network for bags of digits of several classes: LeNet, loss attention."""

    num_classes: int = 4
    backbone: str = "lenet"
    hidden: tuple[int, ...] = (HIDDEN,)


# Makes of a network's instances `[B, N, ...]` the features that are pooled, float32: of the last layer, or of
# all that the method looks at. Its layers become the network's, as do those of a pooling.
Layers = Callable[[BagNetwork, jax.Array, bool, jax.Array | None], list[jax.Array]]
# Makes of a network's features, each `[B, N, D]`, and the mask `[B, N]` what the network says.
Pooling = Callable[[BagNetwork, list[jax.Array], jax.Array | None], BagOutputs]


def _dense_layers(
    network: BagNetwork, instances: jax.Array, train: bool, noise: jax.Array | None
) -> list[jax.Array]:
    pooled, x, first = [], instances.astype(network.dtype), 0
    for number, width in enumerate(network.widths, start=1):
        x = nn.relu(dense(width, x.shape[-1], f"dense{number}", network.dtype)(x))
        own = None if noise is None else noise[..., first : first + width]
        dropped = network.dropped(x, f"dropout{number}", train, own)
        pooled.append(dropped.astype(jnp.float32))
        x = x if network.method in MI_NETS else dropped
        first += width
    several = network.method in ("mi_net_ds", "mi_net_rc")
    return pooled if several else pooled[-1:]


def _lenet_layers(
    network: BagNetwork, instances: jax.Array, train: bool, noise: jax.Array | None
) -> list[jax.Array]:
    features = lenet_features(instances, network.widths[0], network.dtype)
    return [network.dropped(features, "dropout", train, noise).astype(jnp.float32)]


_LAYERS: Mapping[str, Layers] = {"dense": _dense_layers, "lenet": _lenet_layers}


def _scored(network: BagNetwork, layers: list[jax.Array], mask: jax.Array | None) -> BagOutputs:
    features = layers[-1]
    scores = dense(network.num_classes - 1, features.shape[-1], "classifier")(features)
    background = jnp.zeros((*scores.shape[:-1], 1), jnp.float32)
    patch_logits = jnp.concatenate([background, scores], axis=-1)
    highest = pooling.max_pool(scores, mask)
    logits = jnp.concatenate([background[:, 0], highest], axis=-1)
    return BagOutputs(logits, patch_logits, pooling.max_attention(scores, mask))


def _max_pooled(network: BagNetwork, layers: list[jax.Array], mask: jax.Array | None) -> BagOutputs:
    features = sum(layers[:-1], layers[-1])  # of one width
    classifier = dense(network.num_classes, features.shape[-1], "classifier")
    patch_logits = classifier(features)
    pooled = sum(pooling.max_pool(layer, mask) for layer in layers)
    attention = pooling.max_attention(jnp.concatenate(layers, axis=-1), mask)
    return BagOutputs(classifier(pooled), patch_logits, attention)


def _deeply_supervised(
    network: BagNetwork, layers: list[jax.Array], mask: jax.Array | None
) -> BagOutputs:
    logits, patches = [], []
    for number, layer in enumerate(layers, start=1):
        classifier = dense(network.num_classes, layer.shape[-1], f"classifier{number}")
        logits.append(jax.nn.log_softmax(classifier(pooling.max_pool(layer, mask))))
        patches.append(jax.nn.log_softmax(classifier(layer)))
    attention = pooling.max_attention(jnp.concatenate(layers, axis=-1), mask)
    return BagOutputs(_mean(logits), _mean(patches), attention, jnp.stack(logits, axis=1))


def _loss_attention(
    network: BagNetwork, layers: list[jax.Array], mask: jax.Array | None
) -> BagOutputs:
    features = layers[-1]
    classifier = dense(network.num_classes, features.shape[-1], "classifier")
    patch_logits = classifier(features)
    attention = pooling.bag_loss_attention(patch_logits, mask)
    pooled = pooling.weighted_sum(features, attention)
    return BagOutputs(classifier(pooled), patch_logits, attention)


def _learned_attention(
    network: BagNetwork, layers: list[jax.Array], mask: jax.Array | None, *, gated: bool
) -> BagOutputs:
    features = layers[-1]
    classifier = dense(network.num_classes, features.shape[-1], "classifier")
    patch_logits = classifier(features)
    scores = AttentionScores(_ATTENTION_HIDDEN[network.backbone], gated, name="attention")
    attention = pooling.softmax_attention(scores(features), mask)
    pooled = pooling.weighted_sum(features, attention)
    return BagOutputs(classifier(pooled), patch_logits, attention)


_POOLINGS: Mapping[str, Pooling] = {
    "mi_net": _scored,
    "mi_net_bag": _max_pooled,
    "mi_net_ds": _deeply_supervised,
    "mi_net_rc": _max_pooled,
    "attention": functools.partial(_learned_attention, gated=False),
    "gated_attention": functools.partial(_learned_attention, gated=True),
    "loss_attention": _loss_attention,
}


def _mean(log_probabilities: list[jax.Array]) -> jax.Array:
    """Logarithm of the mean of probabilities."""
    return jax.nn.logsumexp(jnp.stack(log_probabilities), axis=0) - jnp.log(
        float(len(log_probabilities))
    )

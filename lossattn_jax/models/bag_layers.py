"""Backbones of networks for bags: layers over vectors or images."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lossattn_jax.kernels.linear import dot_general
from lossattn_jax.models import layers as layers_lib
from lossattn_jax.models.lenet import HIDDEN, lenet_features
from lossattn_jax.models.parts import BagBackbone, FirstProduct

dense = functools.partial(layers_lib.dense, dot_general=dot_general)


def _dense_layers(
    network: Any, instances: jax.Array | FirstProduct, train: bool, noise: jax.Array | None
) -> list[jax.Array]:
    pooling = network.find_pooling()
    layer_outputs, first, product = [], 0, dot_general
    if isinstance(instances, FirstProduct):
        x, values = jnp.zeros((1, 1, instances.features), network.dtype), instances.values
        product = lambda *_, **__: values  # noqa: E731
    else:
        x = instances.astype(network.dtype)
    for number, width in enumerate(network.widths, start=1):
        layer = layers_lib.dense(width, x.shape[-1], f"dense{number}", network.dtype, product)
        x, product = nn.relu(layer(x)), dot_general
        own = None if noise is None else noise[..., first : first + width]
        with_dropout = network.drop_units(x, f"dropout{number}", train, own)
        layer_outputs.append(with_dropout.astype(jnp.float32))
        x = x if pooling.dropout_at_pooling else with_dropout
        first += width
    return layer_outputs if pooling.all_layers else layer_outputs[-1:]


def _lenet_layers(
    network: Any, instances: jax.Array, train: bool, noise: jax.Array | None
) -> list[jax.Array]:
    features = lenet_features(instances, network.widths[0], network.dtype)
    return [network.drop_units(features, "dropout", train, noise).astype(jnp.float32)]


def _lenet_tanh_layers(
    network: Any, instances: jax.Array, train: bool, noise: jax.Array | None
) -> list[jax.Array]:
    """LeNet, and a dense layer with tanh behind its dropout (AAAI 2020, supplement's table A10)."""
    first, last = network.widths[0], network.widths[-1]
    features = lenet_features(instances, first, network.dtype)
    own = None if noise is None else noise[..., :first]
    x = network.drop_units(features, "dropout", train, own)
    layer = layers_lib.dense(last, first, "dense2", network.dtype, dot_general)
    return [jnp.tanh(layer(x)).astype(jnp.float32)]


# The layers that score instances are Ilse et al.'s (2018), for vectors and for digits.
DENSE = BagBackbone(_dense_layers, attention_hidden=64, first_layer="dense1")
LENET = BagBackbone(_lenet_layers, widths=(HIDDEN,), attention_hidden=128)
LENET_TANH = BagBackbone(_lenet_tanh_layers, widths=(HIDDEN, HIDDEN), attention_hidden=128)

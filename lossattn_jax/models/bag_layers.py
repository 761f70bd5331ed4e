"""Backbones of networks for bags: layers over vectors or images."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import DotGeneralT

from lossattn_jax.kernels import bag_products
from lossattn_jax.kernels.bag_products import BagRows
from lossattn_jax.kernels.linear import dot_general
from lossattn_jax.models import layers as layers_lib
from lossattn_jax.models.lenet import HIDDEN, lenet_features
from lossattn_jax.models.parts import BagBackbone

dense = functools.partial(layers_lib.dense, dot_general=dot_general)


def _dense_layers(
    network: Any, instances: jax.Array | BagRows, train: bool, noise: jax.Array | None
) -> list[jax.Array]:
    pooling = network.find_pooling()
    rows = instances if isinstance(instances, BagRows) else None
    layer_outputs, first = [], 0
    x = instances.astype(network.dtype) if rows is None else rows.x
    for number, width in enumerate(network.widths, start=1):
        make = dense
        if rows is not None:
            make = functools.partial(
                layers_lib.dense, dot_general=_product_of(rows, is_first=number == 1)
            )
        x = nn.relu(make(width, x.shape[-1], f"dense{number}", network.dtype)(x))
        own = None if noise is None else noise[..., first : first + width]
        with_dropout = network.drop_units(x, f"dropout{number}", train, own)
        layer_outputs.append(with_dropout.astype(jnp.float32))
        x = x if pooling.dropout_at_pooling else with_dropout
        first += width
    return layer_outputs if pooling.all_layers else layer_outputs[-1:]


def _product_of(rows: BagRows, *, is_first: bool) -> DotGeneralT:
    """The product of a layer over long bags, as `flax.linen.Dense` calls it."""

    def multiply(x: jax.Array, weights: jax.Array, *_: Any, **__: Any) -> jax.Array:
        if is_first:  # `x` are the instances as stored
            return bag_products.first_product(rows, weights)
        return bag_products.product(x, weights, rows.longest)

    return multiply


def _lenet_layers(
    network: Any, instances: jax.Array, train: bool, noise: jax.Array | None
) -> list[jax.Array]:
    features = lenet_features(instances, network.widths[0], network.dtype)
    return [network.drop_units(features, "dropout", train, noise).astype(jnp.float32)]


# The layers that score instances are Ilse et al.'s (2018), for vectors and for digits.
DENSE = BagBackbone(_dense_layers, attention_hidden=64, takes_rows=True)
LENET = BagBackbone(_lenet_layers, widths=(HIDDEN,), attention_hidden=128)

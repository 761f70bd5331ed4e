"""Networks as programs in files: what `jax.export` writes and reads gives the same outputs."""

import functools
import pathlib

import jax
import numpy as np
import pytest
from jax import export

from lossattn_jax import models
from lossattn_jax.attention.outputs import BagOutputs
from lossattn_jax.mil import BagLeNet, BagNetwork
from tests.support import parameters

IMAGES = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
BAGS = jax.random.normal(jax.random.key(1), (3, 5, 7))
DIGITS = jax.random.normal(jax.random.key(2), (2, 3, 28, 28, 1))
STORED = pathlib.Path(__file__).parent / "stored_exports"
MASK = np.arange(5) < np.array([[5], [2], [1]])


def call(network, *arguments):
    """The outputs of a network with weights of its own, and those of its exported program."""
    variables = parameters.draw(network, *arguments)
    program = jax.jit(lambda *given: network.apply(variables, *given))
    stored = export.export(program)(*arguments).serialize()
    return program(*arguments), export.deserialize(stored).call(*arguments)


def assert_same(outputs, again, kind):
    assert isinstance(outputs, kind) and isinstance(again, kind)
    assert len(outputs) == len(again) == len(kind._fields)
    for name, given in outputs._asdict().items():
        if given is None:
            assert getattr(again, name) is None
        else:
            np.testing.assert_array_equal(getattr(again, name), given)


@pytest.mark.parametrize(
    ("head", "pooling"),
    [("conv", "loss_attention"), ("capsule", "loss_attention"), ("capsule", "dynamic_routing")],
)
def test_an_exported_network_gives_its_outputs(head, pooling):
    network = models.build("small", head, pooling, width=0.125)
    outputs, again = call(network, IMAGES)
    assert_same(outputs, again, models.Outputs)
    logits, patch_logits, attention = again
    assert (logits.shape, patch_logits.shape, attention.shape) == ((2, 10), (2, 36, 10), (2, 36))


@pytest.mark.parametrize("method", ["loss_attention", "mi_net_ds"])
def test_an_exported_network_for_bags_gives_its_outputs(method):
    outputs, again = call(BagNetwork(method=method), BAGS, MASK)
    assert_same(outputs, again, models.Outputs)
    logits, patch_logits, attention = again
    assert (logits.shape, patch_logits.shape, attention.shape) == ((3, 2), (3, 5, 2), (3, 5))


@pytest.mark.slow
def test_an_exported_network_for_digit_bags_gives_its_outputs():
    outputs, again = call(BagLeNet(), DIGITS)
    assert_same(outputs, again, models.Outputs)
    other = outputs.replace(logits=outputs.logits + 1)
    assert isinstance(other, models.Outputs) and other.attention is outputs.attention


@pytest.mark.parametrize("method", ["loss_attention", "mi_net_ds"])
def test_a_file_from_when_bags_had_outputs_of_their_own_is_read(method):
    # Written by commit b75b108: a network of key 0, hidden=(2, 2, 2), for two bags of three instances.
    stored = (STORED / f"bag_outputs_{method}.bin").read_bytes()
    bags = jax.random.normal(jax.random.key(1), (2, 3, 4))
    outputs = export.deserialize(stored).call(bags)
    assert isinstance(outputs, BagOutputs)
    network = BagNetwork(method=method, hidden=(2, 2, 2))
    variables = jax.jit(network.init)(jax.random.key(0), bags)
    apply = jax.jit(functools.partial(network.apply, mutable=["supervision"]))
    expected, sown = apply(variables, bags)
    for name, array in expected._asdict().items():
        np.testing.assert_allclose(getattr(outputs, name), array, rtol=1e-6, atol=1e-7)
    if method == "mi_net_ds":
        side_logits = sown["supervision"]["logits"]
        np.testing.assert_allclose(outputs.side_logits, side_logits, rtol=1e-6)
    else:
        assert outputs.side_logits is None and not sown

"""The network for bags of digits: masks, order of instances, dropout, and bags without any."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax.mil import BagLeNet

BAGS = np.random.default_rng(0).standard_normal((2, 3, 28, 28, 1)).astype(np.float32)
MODULE = BagLeNet()


@pytest.fixture(scope="module")
def variables():
    return jax.jit(MODULE.init)(jax.random.key(0), BAGS)


@pytest.fixture(scope="module")
def apply():
    return jax.jit(MODULE.apply, static_argnames="train")


def padded(bags, filling):
    """The bags with two more places, and their mask."""
    more = np.full((len(bags), 2, *bags.shape[2:]), filling, np.float32)
    mask = np.array([[True] * bags.shape[1] + [False] * 2] * len(bags))
    return np.concatenate([bags, more], axis=1), mask


def test_it_predicts_for_bags_and_instances(variables, apply):
    out = apply(variables, BAGS)
    assert out.logits.shape == (2, 4)
    assert out.patch_logits.shape == (2, 3, 4)
    # The AAAI 2020 paper's attention, and one classifier for both.
    scores = np.log(np.exp(np.asarray(out.patch_logits, np.float64)).sum(-1))
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(out.attention, expected, rtol=1e-5)
    np.testing.assert_allclose(
        out.logits, np.einsum("bn,bnk->bk", expected, out.patch_logits), rtol=1e-4, atol=1e-5
    )


def test_it_has_the_papers_parameters(variables):
    # 20 5x5 kernels on 1 channel, 50 on 20, 800 -> 500, 500 -> 4; each with its biases.
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count == 20 * 26 + 50 * 501 + 500 * 801 + 4 * 501


@pytest.mark.parametrize("train", [False, True])
def test_padding_changes_nothing(variables, apply, train):
    rngs = {"dropout": jax.random.key(1)}
    expected = apply(variables, BAGS, np.ones((2, 3), bool), train=train, rngs=rngs)
    out = apply(variables, *padded(BAGS, 0), train=train, rngs=rngs)
    # Another shape of the same matrix product may round differently in the last bit.
    for name in ("logits", "patch_logits", "attention"):
        actual = getattr(out, name)
        actual = actual if name == "logits" else actual[:, :3]
        np.testing.assert_allclose(actual, getattr(expected, name), rtol=1e-6, atol=2e-7)
    np.testing.assert_array_equal(out.attention[:, 3:], 0)
    for filling in (7, np.nan, np.inf):
        other = apply(variables, *padded(BAGS, filling), train=train, rngs=rngs)
        jax.tree.map(np.testing.assert_array_equal, other, out)


def test_no_mask_is_a_mask_of_ones(variables, apply):
    expected = apply(variables, BAGS)
    out = apply(variables, BAGS, np.ones((2, 3), np.float32))
    jax.tree.map(np.testing.assert_array_equal, out, expected)


def test_the_order_of_the_instances_does_not_matter(variables, apply):
    order = np.array([2, 0, 1])
    expected, out = apply(variables, BAGS), apply(variables, BAGS[:, order])
    np.testing.assert_allclose(out.logits, expected.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out.attention, expected.attention[:, order], rtol=1e-5)
    np.testing.assert_allclose(
        out.patch_logits, expected.patch_logits[:, order], rtol=1e-5, atol=1e-6
    )
    assert np.abs(np.diff(out.attention, axis=1)).min() > 1e-4  # otherwise order cannot show


def test_a_bag_without_instances_is_finite_with_finite_gradients(variables):
    mask = np.array([[1, 1, 1], [0, 0, 0]], np.float32)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def gradients_of(params, bags):
        out = MODULE.apply({"params": params}, bags, mask)
        return jnp.sum(out.logits) + jnp.sum(out.attention * out.patch_logits[..., 0]), out

    (gradients, moved), out = gradients_of(variables["params"], BAGS)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradients, out)))
    np.testing.assert_array_equal(out.attention[1], 0)
    np.testing.assert_allclose(out.logits[1], variables["params"]["classifier"]["bias"])
    assert np.abs(moved[0]).max() > 0
    np.testing.assert_array_equal(moved[1], 0)


def test_dropout_acts_in_training_alone(variables, apply):
    first, second = (
        apply(variables, BAGS, None, train=True, rngs={"dropout": jax.random.key(k)}).logits
        for k in (1, 2)
    )
    assert np.abs(first - second).max() > 0.01
    # Half of the features, doubled: the mean over many draws is the prediction without.
    keys = jax.random.split(jax.random.key(0), 200)

    def draw(key):
        return MODULE.apply(variables, BAGS, train=True, rngs={"dropout": key}).patch_logits

    mean = jax.jit(lambda keys: jnp.mean(jax.lax.map(draw, keys), axis=0))(keys)
    np.testing.assert_allclose(mean, apply(variables, BAGS).patch_logits, atol=0.05)


def test_bfloat16_computes_close_to_float32_and_gives_float32(variables, apply):
    rounded = jax.jit(BagLeNet(dtype=jnp.bfloat16).apply)(variables, BAGS)
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(rounded.logits, apply(variables, BAGS).logits, atol=0.02)

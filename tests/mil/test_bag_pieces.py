"""Layers of long bags in pieces, and random words in pieces: the same as in one go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax.kernels import bag_pieces, random_words
from lossattn_jax.kernels.bag_pieces import BagRows
from lossattn_jax.train.bags import streamed_steps
from tests.mil.test_streamed_training import NETWORK, close, resident, same, streamed

RANDOM = np.random.default_rng(3)


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of so few instances that the bags of tests have several."""
    monkeypatch.setattr(bag_pieces, "PIECE", 4)
    streamed_steps.forget()
    yield
    streamed_steps.forget()  # what was compiled with these


def some_rows(dtype=np.float32):
    """Two bags of 9 and 5 instances, padded to 16 by what is no number."""
    x = RANDOM.normal(1, 2, (2, 16, 3)).astype(dtype)
    real = np.arange(16) < np.array([[9], [5]])
    x[:, 12:] = np.nan  # behind the last piece
    x[1, 5:12] = 1e3
    mean, inverse_scale = np.array([1, 0, 2], np.float32), np.array([0.5, 1, 2], np.float32)
    return BagRows(*map(jnp.asarray, (x, mean, inverse_scale, real)), jnp.int32(9))


def layers(params, product, noise):
    first = jnp.tanh(product + params["bias"][None, None])
    return [first, jnp.where(noise > 99, first @ params["kernel"], 0)]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_pieces_have_outputs_and_gradients_of_the_whole(small_pieces, dtype):
    rows = some_rows(dtype)
    weights = jnp.asarray(RANDOM.normal(size=(3, 5)), jnp.float32)
    params = {
        "bias": jnp.full(5, 0.2),
        "kernel": jnp.asarray(RANDOM.normal(size=(5, 2)), jnp.float32),
    }
    noise = jnp.asarray(RANDOM.integers(0, 256, (2, 16, 2)), jnp.uint8)
    factors = [jnp.asarray(RANDOM.normal(size=(2, 16, n)), jnp.float32) for n in (5, 2)]

    def whole(weights, params):
        own = (rows.x.astype(jnp.float32) - rows.mean[None, None]) * rows.inverse_scale[None, None]
        return layers(params, jnp.where(rows.real[..., None], own, 0) @ weights, noise)

    def pieces(weights, params):
        return bag_pieces.apply_layers(layers, weights, params, rows, noise)

    def total(function, weights, params):
        outputs = zip(function(weights, params), factors, strict=True)
        return sum(jnp.sum((output * factor)[:, :12]) for output, factor in outputs)

    for one, other in zip(pieces(weights, params), whole(weights, params), strict=True):
        close(one[:, :12], other[:, :12], atol=1e-6)
        assert not one[:, 12:].any()
    one, other = (
        jax.jit(jax.grad(lambda *own, of=of: total(of, *own), argnums=(0, 1)))(weights, params)
        for of in (pieces, whole)
    )
    close(one, other, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_training_in_pieces_is_that_of_resident_bags(small_pieces, batch_size):
    result = streamed(batch_size=batch_size, average_epochs=2)
    same(result, resident(batch_size=batch_size, average_epochs=2))
    assert result.epoch_seconds.shape == (3,)
    assert (result.waiting_seconds <= result.epoch_seconds).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mi_net_ds", "mi_net", "attention"])
def test_methods_in_pieces_are_those_of_resident_bags(small_pieces, method):
    network = NETWORK.clone(method=method)
    same(streamed(network=network), resident(network=network))


@pytest.mark.parametrize("rows", [1, 40, 77, 100])
def test_words_in_pieces_are_those_of_one_draw(monkeypatch, rows):
    monkeypatch.setattr(random_words, "_WORDS", 64)  # nine rows a piece
    key = jax.random.key(4)
    drawn = random_words.draw_rows(key, (100, 7), jnp.int32(rows))
    whole = jax.random.bits(key, (100, 7), jnp.uint32)
    np.testing.assert_array_equal(drawn[:rows], whole[:rows])


def test_dropout_behind_the_longest_bag_changes_no_other():
    arguments = (NETWORK, jnp.uint32(1), jnp.int32(2), jnp.array([3, 0], jnp.int32), 12)
    one, other = (
        streamed_steps.draw_noise(*arguments, longest) for longest in (jnp.int32(5), None)
    )
    np.testing.assert_array_equal(one[:, :5], other[:, :5])

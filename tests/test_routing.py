"""Squashing and dynamic routing against hand-computed values and a NumPy float64 version."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax.attention import routing

# Compiled as a whole: one operation after the other, each compiles for each shape.
squash = jax.jit(routing.squash)
dynamic_routing = jax.jit(routing.dynamic_routing, static_argnames="iterations")


def reference_squash(s):
    length = np.linalg.norm(s, axis=-1, keepdims=True)
    return length / (1 + length**2) * s


def reference_routing(votes, iterations):
    """Procedure 1 of Sabour et al. 2017, one bag at a time and in loops."""
    capsules, couplings = [], []
    for vote in np.asarray(votes, np.float64):
        b = np.zeros(vote.shape[:2])
        for _ in range(iterations):
            c = np.exp(b) / np.exp(b).sum(axis=1, keepdims=True)
            s = np.stack(
                [sum(c[n, k] * vote[n, k] for n in range(len(c))) for k in range(c.shape[1])]
            )
            v = reference_squash(s)
            b = b + np.array([[vote[n, k] @ v[k] for k in range(len(v))] for n in range(len(c))])
        capsules.append(v)
        couplings.append(c)
    return np.stack(capsules), np.stack(couplings)


def test_squash_by_hand():
    # |s| = 5: 25 / 26 of the length-1 direction.
    np.testing.assert_allclose(
        squash(jnp.array([[3.0, 4.0], [0.0, 0.0]])), [[15 / 26, 20 / 26], [0, 0]], rtol=1e-6
    )
    gradient = jax.jit(jax.grad(lambda s: squash(s).sum()))(jnp.zeros((2, 3)))
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("size", [1e-20, 1e-3, 3.0, 1e4, 1e30])
def test_squash_agrees_with_float64_at_any_length(size):
    vectors = (size * np.random.default_rng(0).standard_normal((4, 3))).astype(np.float32)
    expected = reference_squash(vectors.astype(np.float64))
    np.testing.assert_allclose(squash(jnp.asarray(vectors)), expected, rtol=1e-5, atol=1e-30)
    gradient = jax.jit(jax.grad(lambda s: squash(s)[0, 0]))(jnp.asarray(vectors))
    assert np.isfinite(gradient).all()


def test_squash_takes_each_vector_by_itself():
    vectors = np.array([[1e30, 0.0], [0.3, 0.4], [1e-12, 0.0]], np.float32)
    expected = reference_squash(vectors.astype(np.float64))
    np.testing.assert_allclose(squash(jnp.asarray(vectors)), expected, rtol=1e-5)


@pytest.mark.parametrize("iterations", [1, 3])
def test_routing_agrees_with_the_procedure(iterations):
    votes = np.random.default_rng(0).standard_normal((2, 6, 4, 3)).astype(np.float32)
    routed = dynamic_routing(jnp.asarray(votes), iterations)
    capsules, couplings = reference_routing(votes, iterations)
    np.testing.assert_allclose(routed.capsules, capsules, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(routed.couplings, couplings, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(routed.couplings.sum(axis=-1), 1, rtol=1e-6)
    if iterations == 1:
        np.testing.assert_allclose(routed.couplings, 1 / 4, rtol=1e-6)


def test_the_gradient_goes_through_every_iteration():
    votes = np.random.default_rng(1).standard_normal((1, 5, 3, 2))
    weights = np.random.default_rng(2).standard_normal((1, 3, 2))

    def value(v):
        return float((reference_routing(v, 3)[0] * weights).sum())

    def ours(v):
        return jnp.sum(dynamic_routing(v).capsules * jnp.asarray(weights, jnp.float32))

    gradient = np.asarray(jax.jit(jax.grad(ours))(jnp.asarray(votes, jnp.float32)))
    for place in np.ndindex(votes.shape):
        step = np.zeros_like(votes)
        step[place] = 1e-6
        expected = (value(votes + step) - value(votes - step)) / 2e-6
        assert gradient[place] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_votes_that_agree_win_the_coupling():
    rng = np.random.default_rng(3)
    votes = (0.3 * rng.standard_normal((1, 20, 2, 4))).astype(np.float32)
    votes[:, :, 0] = [2.0, 0, 0, 0]
    couplings = dynamic_routing(jnp.asarray(votes)).couplings
    assert couplings[0, :, 0].min() > 0.9

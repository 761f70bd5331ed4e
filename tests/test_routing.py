"""Squashing and routing against hand-computed values and NumPy float64 versions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax.attention import routing

# Compiled as a whole: one operation after the other, each compiles for each shape.
squash = jax.jit(routing.squash)
dynamic_routing = jax.jit(routing.dynamic_routing, static_argnames="iterations")
map_routing = jax.jit(routing.map_routing, static_argnames="iterations")


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


def test_a_bias_is_added_before_squashing():
    # One capsule that votes (3, 0) and (0, 4): with couplings of a half each, 1.5 and 2 before the bias.
    votes = jnp.array([[[[3.0, 0.0], [0.0, 4.0]]]])
    routed = dynamic_routing(votes, 1, jnp.array([[0.5, 0.0], [0.0, -2.0]]))
    np.testing.assert_allclose(routed.couplings, [[[0.5, 0.5]]], rtol=1e-6)
    np.testing.assert_allclose(routed.capsules, [[[0.8, 0.0], [0.0, 0.0]]], rtol=1e-6)
    without = dynamic_routing(votes, 3)
    zero = dynamic_routing(votes, 3, jnp.zeros((2, 2)))
    np.testing.assert_allclose(zero.capsules, without.capsules, rtol=1e-6)


def reference_map_routing(votes, bias, iterations):
    """DeepCaps' routing of one image, in loops over kinds and places."""
    kinds_in, height, width, kinds, dimension = votes.shape
    above = list(np.ndindex(height, width, kinds))
    b = np.zeros((kinds_in, height, width, kinds))
    for _ in range(iterations):
        c = np.zeros_like(b)
        for n in range(kinds_in):
            total = sum(np.exp(b[n][place]) for place in above)
            for place in above:
                c[n][place] = np.exp(b[n][place]) / total
        v = np.zeros((height, width, kinds, dimension))
        for place in above:
            s = sum(c[n][place] * votes[n][place] for n in range(kinds_in)) + bias[place[-1]]
            v[place] = reference_squash(s)
        for n in range(kinds_in):
            for place in above:
                b[n][place] += votes[n][place] @ v[place]
    return v, c


@pytest.mark.parametrize("iterations", [1, 3])
def test_map_routing_agrees_with_loops(iterations):
    rng = np.random.default_rng(0)
    votes, bias = 3 * rng.standard_normal((2, 3, 2, 3, 2, 4)), rng.standard_normal((2, 4))
    as_floats = (jnp.asarray(values, jnp.float32) for values in (votes, bias))
    routed = map_routing(*as_floats, iterations)
    expected = [reference_map_routing(vote, bias, iterations) for vote in votes]
    capsules, couplings = map(np.stack, zip(*expected, strict=True))
    assert routed.capsules.shape == (2, 2, 3, 2, 4) and routed.couplings.shape == (2, 3, 2, 3, 2)
    np.testing.assert_allclose(routed.capsules, capsules, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(routed.couplings, couplings, rtol=1e-4, atol=1e-6)
    # Shared by all places and kinds above, and not by the kinds at each place.
    np.testing.assert_allclose(routed.couplings.sum(axis=(2, 3, 4)), 1, rtol=1e-5)
    if iterations == 1:
        np.testing.assert_allclose(routed.couplings, 1 / 12, rtol=1e-6)
    else:
        assert np.abs(np.asarray(routed.couplings.sum(axis=-1)) - 1 / 6).max() > 0.01


def test_map_routing_follows_its_places_and_kinds():
    rng = np.random.default_rng(1)
    votes, bias = rng.standard_normal((1, 3, 2, 3, 4, 2)), rng.standard_normal((4, 2))
    votes, bias = jnp.asarray(votes, jnp.float32), jnp.asarray(bias, jnp.float32)
    routed = map_routing(votes, bias)
    kinds = np.array([2, 0, 3, 1])
    moved = map_routing(votes[:, ::-1, ::-1, ::-1][..., kinds, :], bias[kinds])
    expected = routed.capsules[:, ::-1, ::-1][..., kinds, :]
    np.testing.assert_allclose(moved.capsules, expected, rtol=1e-5, atol=1e-7)
    expected = routed.couplings[:, ::-1, ::-1, ::-1][..., kinds]
    np.testing.assert_allclose(moved.couplings, expected, rtol=1e-5)


def test_routing_of_zeros_has_finite_gradients():
    def total(votes, bias):
        return map_routing(votes, bias).capsules.sum()

    gradients = jax.grad(total, argnums=(0, 1))(jnp.zeros((1, 2, 2, 2, 3, 4)), jnp.zeros((3, 4)))
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)  # a squashed vector hardly moves about 0

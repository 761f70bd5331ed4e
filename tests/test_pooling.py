"""Attention scores and pooling: hand-computed values, and the properties that every row must have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossattn_jax.attention import pooling

# Compiled as a whole: one operation after the other, each compiles for each shape.
uniform_attention = jax.jit(pooling.uniform_attention)
loss_attention = jax.jit(pooling.loss_attention, static_argnames=("grid", "threshold"))
capsule_loss_attention = jax.jit(
    pooling.capsule_loss_attention, static_argnames=("grid", "threshold")
)
bag_loss_attention = jax.jit(pooling.bag_loss_attention)
softmax_attention = jax.jit(pooling.softmax_attention)
coupling_attention = jax.jit(pooling.coupling_attention)
max_attention = jax.jit(pooling.max_attention)
weighted_sum = jax.jit(pooling.weighted_sum)
max_pool = jax.jit(pooling.max_pool)


def reference_loss_attention(logits, grid, threshold):
    """NumPy float64, straight from the definition."""
    norms = np.linalg.norm(np.asarray(logits, np.float64), axis=-1)
    weights = norms / norms.sum(axis=-1, keepdims=True)
    cut = np.maximum(weights - threshold / grid, 0)
    return cut / cut.sum(axis=-1, keepdims=True)


def test_loss_attention_by_hand():
    # Norms 5, 10, 0 and 5: shares .25, .5, 0 and .25; minus .1 each: .15, .4, 0 and .15 of .7.
    logits = jnp.array([[[3.0, 4.0], [-6.0, 8.0], [0.0, 0.0], [0.0, -5.0]]])
    attention = loss_attention(logits, grid=10, threshold=1.0)
    np.testing.assert_allclose(attention, [[15 / 70, 40 / 70, 0, 15 / 70]], rtol=1e-6)


def test_a_patch_below_the_threshold_has_no_weight_or_gradient():
    logits = jnp.array([[[10.0, 0.0], [0.1, 0.0]]])

    def weighted(z):
        return jnp.sum(loss_attention(z, grid=10, threshold=1.0) * jnp.array([[1.0, 3.0]]))

    assert loss_attention(logits, 10, 1.0)[0, 1] == 0
    np.testing.assert_array_equal(jax.jit(jax.grad(weighted))(logits), 0)


def test_a_row_all_at_the_threshold_stays_beside_one_above_it():
    logits = jnp.array([[[0.28], [0.26], [0.24], [0.22]], [[0.7], [0.1], [0.1], [0.1]]])
    attention = loss_attention(logits, grid=4, threshold=1.2)
    np.testing.assert_allclose(attention, [[0.28, 0.26, 0.24, 0.22], [1, 0, 0, 0]], rtol=1e-6)
    _, attention = capsule_loss_attention(logits[:, :, None], grid=4, threshold=1.2)
    np.testing.assert_allclose(attention, [[0.28, 0.26, 0.24, 0.22], [1, 0, 0, 0]], rtol=1e-6)


def test_a_row_is_weighed_by_itself_beside_one_of_any_size():
    logits = np.random.default_rng(0).standard_normal((1, 5, 3)) * np.reshape(
        [1e30, 1e-12], (2, 1, 1)
    )
    attention = loss_attention(jnp.asarray(logits, jnp.float32), 64)
    np.testing.assert_allclose(attention, reference_loss_attention(logits, 64, 0.1), rtol=1e-5)
    np.testing.assert_allclose(attention[0], attention[1], rtol=1e-5)


def test_rounding_above_the_threshold_leaves_the_other_patches():
    logits = jnp.array([[[1 + 2.0**-22], [1.0], [1.0], [1.0]]])
    attention = loss_attention(logits, grid=4, threshold=1.0)
    np.testing.assert_allclose(attention, [[0.25] * 4], rtol=1e-6)


def test_equal_patches_at_the_threshold_keep_equal_weights():
    # 1 / P is exactly threshold / grid: the definition would divide 0 by 0.
    attention = loss_attention(jnp.ones((2, 4, 3)), grid=4, threshold=1.0)
    np.testing.assert_allclose(attention, np.full((2, 4), 0.25), rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from([1, 7, 36]),
    st.sampled_from([1e-18, 1e-4, 1.0, 1e4, 1e18]),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_loss_attention_agrees_with_float64(seed, patches, scale, threshold):
    logits = scale * np.random.default_rng(seed).standard_normal((3, patches, 5))
    expected = reference_loss_attention(logits.astype(np.float32), 64, threshold)
    attention = loss_attention(jnp.asarray(logits, jnp.float32), 64, threshold)
    np.testing.assert_allclose(attention, expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(attention.sum(axis=-1), 1, rtol=1e-5)


def reference_capsule_attention(logits, grid, threshold):
    """NumPy float64, step by step: (weights of capsules, attention of patches)."""
    norms = np.linalg.norm(np.asarray(logits, np.float64), axis=-1)
    shares = norms / norms.sum(axis=(1, 2), keepdims=True)
    cut = np.maximum(shares.sum(axis=2) - threshold / grid, 0)
    kept = shares * (cut > 0)[:, :, None]
    return kept / kept.sum(axis=(1, 2), keepdims=True), cut / cut.sum(axis=1, keepdims=True)


def test_capsule_attention_by_hand():
    # Norms 1, 3 | 2, 0 | 1, 1: patches 4/8, 2/8, 2/8; minus 0.26 only the first stays.
    logits = jnp.array([[[[1.0], [3.0]], [[2.0], [0.0]], [[-1.0], [1.0]]]])
    weights, attention = capsule_loss_attention(logits, grid=1, threshold=0.26)
    np.testing.assert_allclose(attention, [[1, 0, 0]])
    np.testing.assert_allclose(weights, [[[1 / 4, 3 / 4], [0, 0], [0, 0]]], rtol=1e-6)
    # Minus 0.1: 0.4, 0.15, 0.15 of 0.7. The capsules keep their shares, for none is dropped.
    weights, attention = capsule_loss_attention(logits, grid=1, threshold=0.1)
    np.testing.assert_allclose(attention, [[4 / 7, 1.5 / 7, 1.5 / 7]], rtol=1e-6)
    np.testing.assert_allclose(weights, [[[1 / 8, 3 / 8], [2 / 8, 0], [1 / 8, 1 / 8]]], rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**31 - 1),
    st.sampled_from([1e-12, 1.0, 1e12]),
    st.sampled_from([0.0, 0.1, 1.0]),
)
def test_capsule_attention_agrees_with_float64(seed, scale, threshold):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((2, 9, 4, 5)) * rng.uniform(0.2, 2, (2, 9, 1, 1))).astype(
        np.float32
    )
    ours = capsule_loss_attention(jnp.asarray(logits), 9, threshold)
    for actual, expected in zip(
        ours, reference_capsule_attention(logits, 9, threshold), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-6)


def test_capsules_of_no_length_weigh_equal_with_finite_gradients():
    def value(z):
        weights, attention = capsule_loss_attention(z, 4, 1.0)
        return jnp.sum(weights[:, 0] * jnp.array([[1.0, 2.0]])) + attention[0, 1]

    weights, attention = capsule_loss_attention(jnp.zeros((1, 4, 2, 3)), 4, 1.0)
    np.testing.assert_allclose(weights, np.full((1, 4, 2), 1 / 8))
    np.testing.assert_allclose(attention, np.full((1, 4), 1 / 4))
    assert np.isfinite(jax.jit(jax.grad(value))(jnp.zeros((1, 4, 2, 3)))).all()


def test_bag_attention_by_hand():
    # Sums of exponentials 4, 2 and 2: half, a quarter, a quarter.
    logits = jnp.log(jnp.array([[[3.0, 1.0], [1.0, 1.0], [0.5, 1.5]]]))
    np.testing.assert_allclose(bag_loss_attention(logits), [[0.5, 0.25, 0.25]], rtol=1e-6)


@pytest.mark.parametrize("size", [1e4, -1e4, 1e30])
def test_bag_attention_takes_extreme_logits(size):
    logits = jnp.full((1, 3, 2), size).at[0, 0, 0].set(0.0)
    attention = bag_loss_attention(logits)
    np.testing.assert_allclose(attention.sum(), 1, rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda z: bag_loss_attention(z)[0, 0]))(logits)
    assert np.isfinite(gradient).all()


def test_couplings_to_the_target_class_are_split_over_patches():
    couplings = jnp.array([[[[0.1, 0.9], [0.3, 0.7]], [[0.5, 0.5], [0.3, 0.7]]]])
    attention = coupling_attention(couplings, jnp.array([0]))
    np.testing.assert_allclose(attention, [[0.4 / 1.2, 0.8 / 1.2]], rtol=1e-6)
    attention = coupling_attention(couplings, jnp.array([1]))
    np.testing.assert_allclose(attention, [[1.6 / 2.8, 1.2 / 2.8]], rtol=1e-6)


def test_learned_scores_by_hand():
    features = jnp.array([[[1.0, 2.0], [0.0, -1.0]]])
    layers = {
        "tanh": lambda h: h @ jnp.array([[0.5], [0.25]]),
        "score": lambda h: 3.0 * h,
    }
    np.testing.assert_allclose(
        pooling.learned_scores(features, **layers), 3 * np.tanh([[1.0, -0.25]]), rtol=1e-6
    )
    gated = pooling.learned_scores(features, gate=lambda h: h @ jnp.array([[0.0], [1.0]]), **layers)
    expected = 3 * np.tanh([[1.0, -0.25]]) / (1 + np.exp([[-2.0, 1.0]]))
    np.testing.assert_allclose(gated, expected, rtol=1e-6)
    with pytest.raises(ValueError):  # two scores for each patch
        pooling.learned_scores(features, tanh=layers["tanh"], score=lambda h: jnp.tile(h, 2))


SCORES = {
    "capsules": lambda x, mask=None: capsule_loss_attention(
        jnp.stack([x, x[..., ::-1]], axis=2), 9, 1.0, mask
    )[1],
    "coupling": lambda x, mask=None: coupling_attention(
        jnp.abs(x)[:, :, None], jnp.array([1, 2]), mask
    ),
    "bag": lambda x, mask=None: bag_loss_attention(x, mask),
    "softmax": lambda x, mask=None: softmax_attention(x[..., 0], mask),
    "uniform": lambda x, mask=None: uniform_attention(x, mask),
    "max": lambda x, mask=None: max_attention(x, mask),
    "loss": lambda x, mask=None: loss_attention(x, 1024, mask=mask),
    "loss, localising": lambda x, mask=None: loss_attention(x, 36, 1.0, mask=mask),
}


@pytest.mark.parametrize("score", SCORES)
def test_permuting_patches_permutes_the_weights(score):
    rng = np.random.default_rng(0)
    logits, order = rng.standard_normal((2, 9, 4)).astype(np.float32), rng.permutation(9)
    attention = SCORES[score](jnp.asarray(logits))
    permuted = SCORES[score](jnp.asarray(logits[:, order]))
    np.testing.assert_allclose(permuted, attention[:, order], rtol=1e-5)


@pytest.mark.parametrize("filler", [0.0, 1e30, np.inf, np.nan])
@pytest.mark.parametrize("score", SCORES)
def test_a_padded_row_gives_what_the_unpadded_one_gives(score, filler):
    logits = np.random.default_rng(1).standard_normal((2, 5, 4)).astype(np.float32)
    padded = np.concatenate([logits, np.full((2, 3, 4), filler, np.float32)], axis=1)
    mask = np.array([[1] * 5 + [0] * 3] * 2)
    attention = SCORES[score](jnp.asarray(logits))
    padded_attention = SCORES[score](jnp.asarray(padded), jnp.asarray(mask))
    np.testing.assert_allclose(padded_attention[:, :5], attention, rtol=1e-6)
    np.testing.assert_array_equal(padded_attention[:, 5:], 0)
    pooled = weighted_sum(jnp.asarray(padded), padded_attention)
    expected = weighted_sum(jnp.asarray(logits), attention)
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)


def test_padding_counts_for_nothing_beside_the_smallest_logits():
    # Were the padding looked at, the squares of 1e-25 would be 0, or those of the padding infinite.
    logits = jnp.array([[[3e-25, 4e-25], [0.0, 1e-24], [7.0, 7.0]]])
    attention = loss_attention(logits, 9, threshold=0.0, mask=jnp.array([[1, 1, 0]]))
    np.testing.assert_allclose(attention, [[1 / 3, 2 / 3, 0]], rtol=1e-6)


def test_features_are_summed_in_full_precision_on_accelerators():
    traced = jax.make_jaxpr(pooling.weighted_sum)(jnp.ones((1, 2, 3)), jnp.ones((1, 2)))
    assert "precision=(Precision.HIGHEST, Precision.HIGHEST)" in str(traced)


def test_a_row_without_patches_has_no_weight_and_finite_grads():
    logits = jnp.ones((2, 3, 4))
    mask = jnp.array([[1, 1, 1], [0, 0, 0]])

    def pooled(z):
        return jnp.sum(weighted_sum(z, loss_attention(z, 9, mask=mask)) ** 2)

    np.testing.assert_array_equal(loss_attention(logits, 9, mask=mask)[1], 0)
    np.testing.assert_array_equal(bag_loss_attention(logits, mask)[1], 0)
    gradient = jax.jit(jax.grad(lambda z: bag_loss_attention(z, mask).sum()))(logits)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(max_pool(logits, mask)[1], 0)
    np.testing.assert_array_equal(max_attention(logits, mask)[1], 0)
    assert np.isfinite(jax.jit(jax.grad(pooled))(logits)).all()


@pytest.mark.parametrize(
    "logits",
    [np.zeros((1, 4, 3)), np.eye(4, 3)[None], np.full((1, 4, 3), 1e4), np.full((1, 1, 3), -1e4)],
    ids=["all zero", "one zero norm", "large and equal", "one patch"],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_extreme_logits_give_finite_weights_and_gradients(logits, dtype):
    z = jnp.asarray(logits, dtype)

    def first_weight(z):
        return loss_attention(z, 16)[0, 0]

    attention = loss_attention(z, 16)
    assert attention.dtype == jnp.float32
    np.testing.assert_allclose(attention.sum(axis=-1), 1, rtol=1e-6)
    assert np.isfinite(np.asarray(jax.jit(jax.grad(first_weight))(z), np.float32)).all()


def test_loss_attention_gradient_agrees_with_finite_differences():
    rng = np.random.default_rng(2)
    logits, weights = rng.standard_normal((1, 6, 3)), rng.standard_normal((1, 6))

    def value(z):
        return float((reference_loss_attention(z, 20, 1.0) * weights).sum())

    def ours(z):
        return jnp.sum(loss_attention(z, 20, 1.0) * jnp.asarray(weights, jnp.float32))

    gradient = np.asarray(jax.jit(jax.grad(ours))(jnp.asarray(logits, jnp.float32)))
    for place in np.ndindex(logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-6
        expected = (value(logits + step) - value(logits - step)) / 2e-6
        assert gradient[place] == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_max_pooling_by_hand():
    features = jnp.array([[[1.0, 5.0, 2.0, 0.0], [3.0, 5.0, 1.0, -1.0]]])
    np.testing.assert_array_equal(max_pool(features), [[3, 5, 2, 0]])
    # Channel 0 to the second, 1 shared, 2 and 3 to the first patch.
    np.testing.assert_allclose(max_attention(features), [[2.5 / 4, 1.5 / 4]])
    gradient = jax.jit(jax.grad(lambda x: max_pool(x).sum()))(features)
    np.testing.assert_array_equal(gradient, [[[0, 1, 1, 1], [1, 0, 0, 0]]])


def test_uniform_attention_pools_to_the_mean():
    features = np.random.default_rng(3).standard_normal((2, 7, 5)).astype(np.float32)
    attention = uniform_attention(jnp.asarray(features))
    pooled = weighted_sum(jnp.asarray(features), attention)
    np.testing.assert_allclose(pooled, features.mean(axis=1), rtol=1e-5, atol=1e-6)


def test_attention_of_bfloat16_weighs_as_that_of_float32():
    features = np.random.default_rng(4).standard_normal((2, 2, 5)).astype(np.float32)
    attention = jnp.array([[0.25, 0.75], [0.5, 0.5]])  # what bfloat16 holds too
    expected = weighted_sum(jnp.asarray(features), attention)
    pooled = weighted_sum(jnp.asarray(features), attention.astype(jnp.bfloat16))
    np.testing.assert_array_equal(pooled, expected, strict=True)


@pytest.mark.parametrize(
    "weigh",
    [
        lambda x, mask: loss_attention(x, 4, mask=mask),
        lambda x, mask: capsule_loss_attention(x[:, :, None], 4, mask=mask)[1],
        lambda x, mask: bag_loss_attention(x, mask),
        lambda x, mask: softmax_attention(x[..., 0], mask),
    ],
    ids=["loss", "capsule", "bag", "softmax"],
)
def test_nan_makes_its_row_nan_and_not_even(weigh):
    x = np.arange(1, 25, dtype=np.float32).reshape(3, 4, 2) / 10
    bad = x.copy()
    bad[1, 2] = np.nan
    for mask in (None, jnp.ones((3, 4))):
        weights = weigh(jnp.asarray(bad), mask)
        assert np.isnan(weights[1]).all()
        np.testing.assert_array_equal(weights[::2], weigh(jnp.asarray(x), mask)[::2])
    hidden = jnp.ones((3, 4)).at[:, 2].set(0)
    weights = weigh(jnp.asarray(bad), hidden)
    np.testing.assert_array_equal(weights, weigh(jnp.asarray(x), hidden))
    np.testing.assert_array_equal(weights[:, 2], 0)

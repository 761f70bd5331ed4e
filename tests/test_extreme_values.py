"""Poolings, losses and routing where numbers are at their worst: finite, defined, and those of float64.

Inputs are rounded to the dtype first and the references take what is left, so that only the functions' own
arithmetic differs, which is in float32 for both dtypes. All functions of a kind are one program.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from lossattn_jax.attention import losses, pooling
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.attention.routing import dynamic_routing, squash
from lossattn_jax.train.bags.objective import bag_loss

ROWS, CLASSES = 6, 4
DTYPES = [jnp.float32, jnp.bfloat16]
SIZES = [  # dtype and patches
    (jnp.float32, 6),
    (jnp.bfloat16, 1),
    pytest.param(jnp.float32, 1, marks=pytest.mark.slow),
    pytest.param(jnp.bfloat16, 6, marks=pytest.mark.slow),
]

KINDS = {
    "usual": lambda r, shape: r.standard_normal(shape),
    "high": lambda r, shape: np.full(shape, 1e4),
    "low": lambda r, shape: np.full(shape, -1e4),
    "zero": lambda r, shape: np.zeros(shape),
    "equal": lambda r, shape: np.full(shape, r.standard_normal()),
    "mixed": lambda r, shape: r.choice([1e4, -1e4, 0.0, 1.0], shape),
    "near": lambda r, shape: 1e4 + r.standard_normal(shape),
}
MASKS = {
    "all": lambda r, size: np.ones(size, bool),
    "none": lambda r, size: np.zeros(size, bool),
    "one": lambda r, size: np.arange(size) == r.integers(size),
    "some": lambda r, size: r.random(size) < 0.5,
}

rows = functools.partial(st.lists, min_size=ROWS, max_size=ROWS)
extreme = given(
    st.integers(0, 2**31 - 1), rows(st.sampled_from([*KINDS])), rows(st.sampled_from([*MASKS]))
)
few = settings(max_examples=8, deadline=None)


def drawn(seed, kinds, masks, shape):
    """`[ROWS, *shape]` float32 of a kind by row, and a mask of each row's first axis."""
    random = np.random.default_rng(seed)
    values = np.stack([KINDS[kind](random, shape) for kind in kinds]).astype(np.float32)
    return values, np.stack([MASKS[mask](random, shape[0]) for mask in masks])


def rounded(values, dtype):
    """The array in `dtype`, and what it holds in float64."""
    array = jnp.asarray(values, dtype)
    return array, np.asarray(array.astype(jnp.float32), np.float64)


def finite(tree):
    return all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(tree))


# References, float64.


def normalised(weights, mask):
    weights = weights * mask
    total, count = weights.sum(-1, keepdims=True), mask.sum(-1, keepdims=True)
    shares = weights / np.where(total > 0, total, 1)
    return np.where(total > 0, shares, mask / np.maximum(count, 1))


def cut(before, level, mask):
    left = np.maximum(before - level, 0)
    survives = left.sum(-1, keepdims=True) > 1e-6  # what remains of equal weights is rounding
    return np.where(survives, normalised(left, mask), before)


def ref_loss_attention(z, mask, grid, threshold):
    return cut(normalised(np.linalg.norm(z, axis=-1), mask), threshold / grid, mask)


def ref_capsule_attention(z, mask, grid, threshold):
    several = np.repeat(mask, z.shape[2], axis=1)
    norms = np.linalg.norm(z, axis=-1)
    before = normalised(norms.reshape(len(z), -1), several).reshape(norms.shape)
    attention = cut(before.sum(axis=2), threshold / grid, mask)
    kept = np.where(attention[:, :, None] > 0, before, 0).reshape(len(z), -1)
    return attention, normalised(kept, several)


def ref_softmax(scores, mask):
    highest = np.where(mask, scores, -np.inf).max(axis=-1, keepdims=True)
    return normalised(np.exp(np.minimum(scores - np.where(highest > -np.inf, highest, 0), 0)), mask)


def ref_max_attention(z, mask):
    seen = np.where(mask[:, :, None], z, -np.inf)
    wins = (seen == seen.max(axis=1, keepdims=True)) & mask[:, :, None]
    shares = wins / np.maximum(wins.sum(axis=1, keepdims=True), 1)
    return normalised(shares.mean(axis=-1), mask)


def cross_entropy(z, labels, smoothing=0.0):
    target = np.eye(z.shape[-1])[labels] * (1 - smoothing) + smoothing / z.shape[-1]
    return -(target * scipy.special.log_softmax(z, axis=-1)).sum(-1)


def softplus(z):
    return np.logaddexp(0, z)


# name: (ours of (logits, mask or None), reference of (logits, mask)).
ATTENTIONS = {
    "uniform": (pooling.uniform_attention, lambda z, m: normalised(np.ones(m.shape), m)),
    "loss": (
        lambda z, m: pooling.loss_attention(z, 64, mask=m),
        lambda z, m: ref_loss_attention(z, m, 64, 0.1),
    ),
    "loss, at the threshold": (
        lambda z, m: pooling.loss_attention(z, z.shape[1], 1.0, m),
        lambda z, m: ref_loss_attention(z, m, z.shape[1], 1.0),
    ),
    "capsules": (
        lambda z, m: pooling.capsule_loss_attention(paired(z), 9, 1.0, m)[1],
        lambda z, m: ref_capsule_attention(z[:, :, None] * PAIR, m, 9, 1.0)[0],
    ),
    "each capsule": (
        lambda z, m: pooling.capsule_loss_attention(paired(z), 9, 1.0, m)[0].reshape(ROWS, -1),
        lambda z, m: ref_capsule_attention(z[:, :, None] * PAIR, m, 9, 1.0)[1],
    ),
    "bag": (
        pooling.bag_loss_attention,
        lambda z, m: ref_softmax(scipy.special.logsumexp(z, axis=-1), m),
    ),
    "softmax": (
        lambda z, m: pooling.softmax_attention(z[..., 0], m),
        lambda z, m: ref_softmax(z[..., 0], m),
    ),
    "learned": (
        lambda z, m: pooling.softmax_attention(
            pooling.learned_scores(z, lambda h: h, lambda h: h[..., :1], lambda h: -h), m
        ),
        lambda z, m: ref_softmax((np.tanh(z) * scipy.special.expit(-z))[..., 0], m),
    ),
    "coupling": (
        lambda z, m: pooling.coupling_attention(
            jnp.abs(z)[:, :, None], jnp.arange(ROWS) % CLASSES, m
        ),
        lambda z, m: normalised(np.abs(z)[np.arange(ROWS), :, np.arange(ROWS) % CLASSES], m),
    ),
    "max": (pooling.max_attention, ref_max_attention),
}
PAIR = np.array([[1.0], [-0.5]], np.float32)[
    None, None
]  # the second of two capsules is half the first


def paired(z):
    return z[:, :, None] * jnp.asarray(PAIR, z.dtype)


def tolerances(name, z, mask):
    """Relative by attention, and absolute by row, `[B, 1]`."""
    absolute = np.full((len(z), 1), 1e-6)
    if name == "loss, at the threshold":
        # Near the threshold the cut leaves little of each weight, of which their rounding is a larger part.
        shares = normalised(np.linalg.norm(z, axis=-1), mask)
        left = np.maximum(shares - 1 / z.shape[1], 0).sum(axis=1, keepdims=True)
        absolute += np.where(left > 1e-6, 3e-7 / np.maximum(left, 1e-6), 0)
    # At 1e4 the numbers of float32 lie 1e-3 apart, and so does the logsumexp that "bag" takes a softmax of.
    return (2e-3 if name == "bag" else 2e-5), absolute


@functools.partial(jax.jit, static_argnames="masked")
def all_attentions(z, mask, masked):
    """Of each attention the weights, and the gradient of some sum of them."""

    def one(ours, z):
        def some(z):
            weights = ours(z, mask if masked else None)
            factors = jnp.cos(jnp.arange(weights.shape[1], dtype=weights.dtype))
            return jnp.sum(weights * factors[None]), weights

        (_, weights), gradient = jax.value_and_grad(some, has_aux=True)(z)
        return weights, gradient

    return {name: one(ours, z) for name, (ours, _) in ATTENTIONS.items()}


@pytest.mark.parametrize(("dtype", "patches"), SIZES)
def test_attention_sums_to_one_with_finite_gradients(dtype, patches):
    @few
    @extreme
    def check(seed, kinds, masks):
        values, mask = drawn(seed, kinds, masks, (patches, CLASSES))
        z, exact = rounded(values, dtype)
        for masked, real in ((True, mask), (False, np.ones_like(mask))):
            for name, (weights, gradient) in all_attentions(z, mask, masked).items():
                assert weights.dtype == jnp.float32 and gradient.dtype == dtype
                assert finite((weights, gradient)), name
                assert (weights >= 0).all(), name
                # Of a row in which all is masked every weight is 0, as documented.
                relative, absolute = tolerances(name, exact, real)
                off = np.abs(np.asarray(weights.sum(axis=1), np.float64) - real.any(axis=1))
                assert (off <= 2 * patches * absolute[:, 0]).all(), name
                expected = ATTENTIONS[name][1](exact, real)
                off = np.abs(np.asarray(weights, np.float64) - expected)
                assert (off <= absolute + relative * expected).all(), name

    check()


@jax.jit
def pooled(features, attention, mask):
    def both(features):
        return pooling.weighted_sum(features, attention), pooling.max_pool(features, mask)

    of_sum = jax.grad(lambda f: both(f)[0].sum())(features)
    of_max = jax.grad(lambda f: both(f)[1].sum())(features)
    return both(features), (of_sum, of_max)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_pooled_features_are_those_of_float64(dtype):
    @few
    @extreme
    def check(seed, kinds, masks):
        values, mask = drawn(seed, kinds, masks, (5, 3))
        features, exact = rounded(values, dtype)
        weights = normalised(np.random.default_rng(seed).random(mask.shape), mask)
        attention = weights.astype(np.float32)
        (summed, highest), gradients = pooled(features, attention, mask)
        assert finite(gradients)
        # Sums of 1e4 may cancel, and then keep an error of their terms.
        expected = np.einsum("bpd,bp->bd", exact, attention.astype(np.float64))
        np.testing.assert_allclose(summed, expected, rtol=1e-6, atol=5e-3)
        seen = np.where(mask[:, :, None], exact, -np.inf).max(axis=1)
        np.testing.assert_array_equal(highest, np.where(np.isfinite(seen), seen, 0))

    check()


def ref_patch_sigmoid(z, positives, attention):
    per_class = np.where(positives[:, None] > 0, softplus(-z), np.inf).min(axis=-1)
    return (attention * np.where(positives.any(axis=1)[:, None], per_class, 0)).sum(axis=1)


def ref_margin(lengths, positives):
    missing = np.maximum(0.9 - lengths, 0) ** 2
    excess = 0.5 * np.maximum(lengths - 0.1, 0) ** 2
    return np.where(positives > 0, missing, excess).sum(axis=-1)


def ref_patch(z, labels, attention, smoothing=0.0):
    every = np.repeat(labels[:, None], z.shape[1], axis=1)
    return (attention * cross_entropy(z, every, smoothing)).sum(axis=1)


def ref_sigmoid(z, positives):
    return np.where(positives > 0, softplus(-z), softplus(z)).sum(axis=-1)


# name: (ours, reference), both of (logits [B, P, K], label [B], multi-hot [B, K], attention [B, P]); the
# image's logits are those of the first patch.
LOSSES = {
    "cross entropy": (
        lambda z, y, h, a: losses.cross_entropy(z[:, 0], y),
        lambda z, y, h, a: cross_entropy(z[:, 0], y),
    ),
    "smoothed": (
        lambda z, y, h, a: losses.image_loss(losses.CROSS_ENTROPY, z[:, 0], y, 0.1),
        lambda z, y, h, a: cross_entropy(z[:, 0], y, 0.1),
    ),
    "sigmoid": (
        lambda z, y, h, a: losses.image_loss(losses.SIGMOID, z[:, 0], h),
        lambda z, y, h, a: ref_sigmoid(z[:, 0], h),
    ),
    "margin": (
        lambda z, y, h, a: losses.image_loss(losses.MARGIN, z[:, 0], h),
        lambda z, y, h, a: ref_margin(z[:, 0], h),
    ),
    "patches": (
        lambda z, y, h, a: losses.patch_loss(losses.CROSS_ENTROPY, z, y, a, 0.1),
        lambda z, y, h, a: ref_patch(z, y, a, 0.1),
    ),
    "patches, sigmoid": (
        lambda z, y, h, a: losses.patch_loss(losses.SIGMOID, z, h, a),
        lambda z, y, h, a: ref_patch_sigmoid(z, h, a),
    ),
    "patches, margin": (
        lambda z, y, h, a: losses.patch_loss(losses.MARGIN, z, h, a),
        lambda z, y, h, a: np.zeros(ROWS),
    ),
    "total": (
        lambda z, y, h, a: losses.loss_attention_loss(z[:, 0], z, a, y, 0.5).total,
        lambda z, y, h, a: cross_entropy(z[:, 0], y) + 0.5 * ref_patch(z, y, a),
    ),
    "total, sigmoid": (
        lambda z, y, h, a: (
            losses.loss_attention_loss(z[:, 0], z, a, h, 0.5, kind=losses.SIGMOID).total
        ),
        lambda z, y, h, a: ref_sigmoid(z[:, 0], h) + 0.5 * ref_patch_sigmoid(z, h, a),
    ),
    "deep supervision": (
        lambda z, y, h, a: losses.deep_supervision_loss(z, y),
        lambda z, y, h, a: cross_entropy(z, np.repeat(y[:, None], z.shape[1], 1)).sum(axis=1),
    ),
    "bags": (
        lambda z, y, h, a: bag_loss(Outputs(z[:, 0], z, a), y, a > 0, 0.5, "mean"),
        lambda z, y, h, a: (
            cross_entropy(z[:, 0], y)
            + 0.5 * ref_patch(z, y, a) / np.maximum((a > 0).sum(axis=1), 1)
        ),
    ),
    "consistency": (
        lambda z, y, h, a: losses.consistency_loss(z[..., 0], a),
        lambda z, y, h, a: ((z[..., 0] - a) ** 2).mean(axis=1),
    ),
}


@jax.jit
def all_losses(z, labels, positives, attention):
    def one(ours):
        def total(z):
            loss = ours(z, labels, positives, attention)
            return loss.sum(), loss

        (_, loss), gradient = jax.value_and_grad(total, has_aux=True)(z)
        return loss, gradient

    kinds = (losses.CROSS_ENTROPY, losses.SIGMOID)
    said = {kind: losses.probabilities(kind, z) for kind in kinds}
    return {name: one(ours) for name, (ours, _) in LOSSES.items()}, said


@pytest.mark.parametrize(("dtype", "patches"), SIZES)
def test_losses_are_those_of_float64_with_finite_gradients(dtype, patches):
    @few
    @extreme
    def check(seed, kinds, masks):
        values, mask = drawn(seed, kinds, masks, (patches, CLASSES))
        random = np.random.default_rng(seed)
        labels = random.integers(0, CLASSES, ROWS)
        positives = random.integers(0, 2, (ROWS, CLASSES))
        attention = normalised(random.random(mask.shape), mask).astype(np.float32)
        z, exact = rounded(values, dtype)
        told, said = all_losses(z, labels, positives, attention)
        for name, (loss, gradient) in told.items():
            assert loss.dtype == jnp.float32 and gradient.dtype == dtype
            assert finite((loss, gradient)), name
            expected = LOSSES[name][1](exact, labels, positives, attention.astype(np.float64))
            np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5, err_msg=name)
        for kind, expected in (
            (losses.CROSS_ENTROPY, scipy.special.softmax(exact, axis=-1)),
            (losses.SIGMOID, scipy.special.expit(exact)),
        ):
            np.testing.assert_allclose(said[kind], expected, rtol=1e-5, atol=1e-7)

    check()


@jax.jit
def routed(votes):
    def some(votes):
        capsules, couplings = dynamic_routing(votes)
        return jnp.sum(capsules * jnp.cos(jnp.arange(3.0))[None, None]), (capsules, couplings)

    squashed = jax.value_and_grad(lambda v: jnp.sum(squash(v)[..., 0], dtype=jnp.float32))(votes)
    return jax.value_and_grad(some, has_aux=True)(votes), squash(votes), squashed


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_capsules_are_no_longer_than_one_with_finite_gradients(dtype):
    """Values of routing at 1e4 are not compared: agreements cancel there, and couplings go by the rest."""

    @few
    @extreme
    def check(seed, kinds, masks):
        values, mask = drawn(seed, kinds, masks, (4, CLASSES, 3))
        votes, exact = rounded(values * mask[:, :, None, None], dtype)
        ((_, (capsules, couplings)), gradient), squashed, of_squash = routed(votes)
        assert finite((capsules, couplings, gradient, squashed, of_squash))
        np.testing.assert_allclose(couplings.sum(axis=-1), 1, rtol=1e-6)
        assert np.linalg.norm(capsules, axis=-1).max() <= 1 + 1e-6
        length = np.linalg.norm(exact, axis=-1, keepdims=True)
        expected = exact * length / (1 + length**2)
        # Computed in the dtype it is given in: some roundings of 2^-9 in bfloat16.
        tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
        np.testing.assert_allclose(
            np.asarray(squashed, np.float64), expected, rtol=tolerance, atol=1e-30
        )

    check()


@jax.jit
def chain(features, kernel, mask):
    """Loss of a whole head of each kind, from features on, and its gradients."""

    def loss(features, kernel, attend):
        classify = lambda h: jnp.einsum("...d,dk->...k", h.astype(jnp.float32), kernel)  # noqa: E731
        patch_logits = classify(features)
        attention = attend(patch_logits)
        logits = classify(pooling.weighted_sum(features, attention))
        labels = jnp.arange(ROWS) % CLASSES
        return losses.loss_attention_loss(logits, patch_logits, attention, labels, 1.0).total.mean()

    kinds = {
        "loss": lambda z: pooling.loss_attention(z, 9, 1.0, mask),
        "bag": lambda z: pooling.bag_loss_attention(z, mask),
        "max": lambda z: pooling.max_attention(z, mask),
    }
    return {
        name: jax.value_and_grad(functools.partial(loss, attend=attend), argnums=(0, 1))(
            features, kernel
        )
        for name, attend in kinds.items()
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
def test_a_head_has_a_finite_loss_and_gradient_for_any_features(dtype):
    @few
    @extreme
    def check(seed, kinds, masks):
        values, mask = drawn(seed, kinds, masks, (6, 5))
        kernel = np.random.default_rng(seed).standard_normal((5, CLASSES)).astype(np.float32)
        for name, told in chain(jnp.asarray(values, dtype), kernel, mask).items():
            assert finite(told), name

    check()


def test_all_is_float32_also_where_jax_has_float64():
    with jax.enable_x64(True):
        z = jax.ShapeDtypeStruct((ROWS, 3, CLASSES), jnp.float64)
        labels, positives = (jax.ShapeDtypeStruct((ROWS, *s), jnp.int64) for s in ((), (CLASSES,)))
        mask, attention = (jax.ShapeDtypeStruct((ROWS, 3), t) for t in (jnp.int64, jnp.float32))
        votes = jax.ShapeDtypeStruct((ROWS, 3, CLASSES, 2), jnp.float64)
        told = {
            "routing": jax.eval_shape(dynamic_routing, votes),
            "pooled": jax.eval_shape(pooling.weighted_sum, z, attention),
            "scores": jax.eval_shape(
                lambda h: pooling.learned_scores(h, jnp.negative, lambda h: h[..., :1]), z
            ),
            "highest": jax.eval_shape(pooling.max_pool, z, mask),
            "lengths": jax.eval_shape(lambda z, y: losses.margin_loss(z[:, 0], y), z, labels),
        }
        for kind in (losses.CROSS_ENTROPY, losses.SIGMOID, losses.MARGIN):
            told[kind] = jax.eval_shape(functools.partial(losses.probabilities, kind), z)
        for name, (ours, _) in ATTENTIONS.items():
            told[f"{name}, masked"] = jax.eval_shape(ours, z, mask)
            told[name] = jax.eval_shape(lambda z, ours=ours: ours(z, None), z)
        for name, (ours, _) in LOSSES.items():
            told[f"{name}, loss"] = jax.eval_shape(ours, z, labels, positives, attention)
    for name, result in told.items():
        assert {leaf.dtype for leaf in jax.tree.leaves(result)} == {jnp.dtype("float32")}, name

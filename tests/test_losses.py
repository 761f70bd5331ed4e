"""Losses against hand-computed and NumPy float64 values."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossattn_jax.attention import losses
from lossattn_jax.errors import UserError

# Compiled as a whole: one operation after the other, each compiles for each shape.
cross_entropy = jax.jit(losses.cross_entropy, static_argnames="label_smoothing")
sigmoid_cross_entropy = jax.jit(losses.sigmoid_cross_entropy)
margin_loss = jax.jit(losses.margin_loss)
centripetal_loss = jax.jit(losses.centripetal_loss)
image_loss = jax.jit(losses.image_loss, static_argnames="kind")
probabilities = jax.jit(losses.probabilities, static_argnames="kind")
patch_cross_entropy = jax.jit(losses.patch_cross_entropy)
patch_sigmoid_loss = jax.jit(losses.patch_sigmoid_loss)
patch_loss = jax.jit(losses.patch_loss, static_argnames="kind")
loss_attention_loss = jax.jit(losses.loss_attention_loss, static_argnames="label_smoothing")
deep_supervision_loss = jax.jit(losses.deep_supervision_loss)
consistency_loss = jax.jit(losses.consistency_loss)


def reference_cross_entropy(logits, labels, smoothing=0.0):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    target = np.eye(logits.shape[-1])[labels] * (1 - smoothing) + smoothing / logits.shape[-1]
    return -(target * logs).sum(axis=-1)


def test_cross_entropy_by_hand():
    # Two classes with odds 3 to 1: -log(3/4), and -log(1/4) for the other.
    logits = jnp.log(jnp.array([[3.0, 1.0], [3.0, 1.0]]))
    loss = cross_entropy(logits, jnp.array([0, 1]))
    np.testing.assert_allclose(loss, [np.log(4 / 3), np.log(4)], rtol=1e-6)


def test_label_smoothing_by_hand():
    # Epsilon 0.2 over two classes: 0.9 on the label and 0.1 on the other.
    loss = cross_entropy(jnp.log(jnp.array([[3.0, 1.0]])), jnp.array([0]), 0.2)
    np.testing.assert_allclose(loss, [0.9 * np.log(4 / 3) + 0.1 * np.log(4)], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31 - 1), st.sampled_from([1.0, 100.0, 1e4]), st.sampled_from([0.0, 0.1, 0.9])
)
def test_cross_entropy_agrees_with_float64(seed, scale, smoothing):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((6, 5))).astype(np.float32)
    labels = rng.integers(0, 5, 6)
    loss = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    expected = reference_cross_entropy(logits, labels, smoothing)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)


def test_losses_take_any_leading_axes():
    rng = np.random.default_rng(4)
    logits = jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.float32)
    labels, positives = rng.integers(0, 4, (2, 3)), rng.integers(0, 2, (2, 3, 4))
    for loss, target in (
        (functools.partial(cross_entropy, label_smoothing=0.1), labels),
        (sigmoid_cross_entropy, positives),
        (margin_loss, labels),
        (margin_loss, positives),
    ):
        together = loss(logits, jnp.asarray(target))
        for row in range(2):
            alone = loss(logits[row], jnp.asarray(target[row]))
            np.testing.assert_allclose(together[row], alone, rtol=1e-6)


def test_labels_are_not_smoothed_unless_wanted():
    logits, labels = jnp.log(jnp.array([[3.0, 1.0]])), jnp.array([0])
    image = image_loss(losses.CROSS_ENTROPY, logits, labels)
    attention = jnp.ones((1, 1))
    patch = patch_loss(losses.CROSS_ENTROPY, logits[:, None], labels, attention)
    np.testing.assert_allclose([image, patch], [[np.log(4 / 3)]] * 2, rtol=1e-6)


def test_patch_loss_by_hand():
    patch_logits = jnp.log(jnp.array([[[3.0, 1.0], [1.0, 1.0], [1.0, 3.0]]]))
    attention = jnp.array([[0.5, 0.25, 0.25]])
    loss = patch_cross_entropy(patch_logits, jnp.array([0]), attention)
    expected = 0.5 * np.log(4 / 3) + 0.25 * np.log(2) + 0.25 * np.log(4)
    np.testing.assert_allclose(loss, [expected], rtol=1e-6)


def test_attention_of_bfloat16_counts_as_that_of_float32():
    patch_logits = jnp.log(jnp.array([[[3.0, 1.0], [1.0, 1.0], [1.0, 3.0]]]))
    attention = jnp.array([[0.5, 0.25, 0.25]])  # what bfloat16 holds too
    narrow = attention.astype(jnp.bfloat16)
    for loss, labels in (
        (patch_cross_entropy, jnp.array([0])),
        (patch_sigmoid_loss, jnp.array([[1, 0]])),
    ):
        expected = loss(patch_logits, labels, attention)
        np.testing.assert_array_equal(loss(patch_logits, labels, narrow), expected, strict=True)
    target = jnp.array([[0.3, 0.3, 0.4]])
    moved = consistency_loss(narrow, target)
    np.testing.assert_array_equal(moved, consistency_loss(attention, target), strict=True)
    np.testing.assert_allclose(moved, [(0.2**2 + 0.05**2 + 0.15**2) / 3], rtol=1e-6)


def test_total_is_image_plus_weighted_patch_loss():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((4, 3)), np.array([0, 1, 2, 0])
    patch_logits = rng.standard_normal((4, 5, 3))
    attention = rng.dirichlet(np.ones(5), 4)
    terms = loss_attention_loss(
        jnp.asarray(logits, jnp.float32),
        jnp.asarray(patch_logits, jnp.float32),
        jnp.asarray(attention, jnp.float32),
        jnp.asarray(labels),
        patch_weight=0.1,
        label_smoothing=0.2,
    )
    per_patch = reference_cross_entropy(patch_logits, np.repeat(labels[:, None], 5, 1), 0.2)
    patch = (attention * per_patch).sum(axis=1)
    image = reference_cross_entropy(logits, labels, 0.2)
    np.testing.assert_allclose(terms.image, image, rtol=1e-5)
    np.testing.assert_allclose(terms.patch, patch, rtol=1e-5)
    np.testing.assert_allclose(terms.total, image + 0.1 * patch, rtol=1e-5)


@pytest.mark.parametrize("filler", [1e30, np.inf, np.nan])
def test_a_patch_without_weight_takes_no_part(filler):
    patch_logits = np.random.default_rng(1).standard_normal((2, 4, 3)).astype(np.float32)
    attention = np.array([[0.5, 0.5, 0, 0]] * 2, np.float32)
    labels = jnp.array([0, 2])
    filled = patch_logits.copy()
    filled[:, 2:] = filler

    def total(z):
        return patch_cross_entropy(z, labels, jnp.asarray(attention)).sum()

    expected = patch_cross_entropy(
        jnp.asarray(patch_logits[:, :2]), labels, jnp.asarray(attention[:, :2])
    ).sum()
    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.asarray(filled))
    assert value == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_array_equal(gradient[:, 2:], 0)


@pytest.mark.parametrize("size", [1e4, -1e4, 1e30])
def test_extreme_logits_give_finite_losses_and_gradients(size):
    logits = jnp.array([[size, 0.0, 0.0], [size, size, size]], jnp.float32)
    labels = jnp.array([1, 2])
    total = jax.value_and_grad(lambda z: cross_entropy(z, labels).sum())
    value, gradient = jax.jit(total)(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_margin_loss_by_hand():
    # Present at 0.5: 0.4^2; absent at 0.3 and 0.05: half of 0.2^2 and of 0.
    lengths = jnp.array([[0.5, 0.3, 0.05]])
    np.testing.assert_allclose(margin_loss(lengths, jnp.array([0])), [0.16 + 0.02], rtol=1e-5)
    both = margin_loss(lengths, jnp.array([[1, 1, 0]]))
    np.testing.assert_allclose(both, [0.16 + 0.36], rtol=1e-5)


def test_centripetal_loss_by_hand():
    # Slopes of 0.2, 0.4, 0.6, ... over 0.1 each: 0.25 beyond the zone is 0.02 + 0.04 + half of 0.06. The
    # capsules are at 0.35 from the centre, which is to be hit, at 0.75 and at 2, which are to miss it.
    closeness = 1 - jnp.array([[0.35, 0.75, 2.0]])
    absent = 0.5 * (0.02 + 0.5 * 0.04)
    np.testing.assert_allclose(
        centripetal_loss(closeness, jnp.array([0])), [0.09 + absent], rtol=1e-5
    )
    # Both of them there: 0.65 beyond the zone is 0.02 (1 + ... + 6) and half of 0.14.
    both = centripetal_loss(closeness, jnp.array([[1, 1, 0]]))
    np.testing.assert_allclose(both, [0.09 + 0.42 + 0.07], rtol=1e-5)
    # In the zones there is nothing to gain.
    inside = 1 - jnp.array([[0.05, 0.95, 1.5]])
    np.testing.assert_array_equal(centripetal_loss(inside, jnp.array([0])), [0])


def test_centripetal_loss_is_the_integral_of_a_staircase():
    # Steps end in the middle between two of these distances, where the trapezium rule is exact.
    distances = jnp.linspace(0.0025, 1.9475, 390)[:, None]
    for label, expected in ((1, np.arange(20)), (0, -0.5 * np.arange(10))):
        labels = jnp.full((390, 1), label)

        def total(distances, labels=labels):
            return centripetal_loss(1 - distances, labels).sum()

        values = np.asarray(centripetal_loss(1 - distances, labels), np.float64)
        slopes = np.asarray(jax.grad(total)(distances))[:, 0]
        np.testing.assert_allclose(np.unique(np.round(slopes / 0.2, 4)), np.sort(expected))
        areas = 0.005 * (slopes[1:] + slopes[:-1]) / 2
        np.testing.assert_allclose(np.diff(values), areas, atol=2e-6)


def test_sigmoid_loss_by_hand():
    # Probabilities 3/4 and 1/4, of which the first is there; then neither, with a huge logit.
    logits = jnp.array([[np.log(3.0), -np.log(3.0)], [1e4, -1e4]])
    loss = sigmoid_cross_entropy(logits, jnp.array([[1, 0], [0, 0]]))
    np.testing.assert_allclose(loss, [2 * np.log(4 / 3), 1e4], rtol=1e-6)


def test_patch_sigmoid_loss_holds_a_patch_to_its_likeliest_class():
    odds = jnp.log(jnp.array([[[3.0, 1.0, 9.0], [1.0, 3.0, 9.0], [1 / 3, 1.0, 9.0]]]))
    attention = jnp.array([[0.5, 0.3, 0.2]])

    def loss(*positives):
        return patch_sigmoid_loss(odds, jnp.array([positives]), attention)

    one = 0.5 * np.log(4 / 3) + 0.3 * np.log(2) + 0.2 * np.log(4)
    np.testing.assert_allclose(loss(1, 0, 0), [one], rtol=1e-6)
    several = 0.5 * np.log(4 / 3) + 0.3 * np.log(4 / 3) + 0.2 * np.log(2)
    np.testing.assert_allclose(loss(1, 1, 0), [several], rtol=1e-6)
    np.testing.assert_array_equal(loss(0, 0, 0), [0])


def test_patch_sigmoid_loss_always_has_finite_gradients():
    logits = jnp.full((2, 3, 2), np.nan).at[:, :2].set(jnp.array([[1e4, -1e4], [0.0, 0.0]])[None])
    attention = jnp.array([[0.5, 0.5, 0.0]] * 2)
    positives = jnp.array([[1, 1], [0, 0]])
    total = jax.grad(lambda z: patch_sigmoid_loss(z, positives, attention).sum())
    gradient = jax.jit(total)(logits)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[:, 2], 0)
    np.testing.assert_array_equal(gradient[1], 0)
    assert np.abs(gradient[0, 1]).max() > 0


def test_the_patch_loss_of_routing_is_nothing():
    loss = patch_loss(losses.MARGIN, jnp.ones((2, 3, 4)), jnp.array([0, 1]), jnp.ones((2, 3)))
    np.testing.assert_array_equal(loss, [0, 0])


def test_probabilities_by_kind():
    logits = jnp.array([[np.log(3.0), 0.0]])
    softmax = probabilities(losses.CROSS_ENTROPY, logits)
    np.testing.assert_allclose(softmax, [[0.75, 0.25]], rtol=1e-6)
    sigmoid = probabilities(losses.SIGMOID, logits)
    np.testing.assert_allclose(sigmoid, [[0.75, 0.5]], rtol=1e-6)
    np.testing.assert_array_equal(probabilities(losses.MARGIN, logits), logits)
    closeness = probabilities(losses.CENTRIPETAL, jnp.array([[1.0, 0.25, -0.5]]))
    np.testing.assert_array_equal(closeness, [[1.0, 0.25, 0.0]])


def test_consistency_by_hand_pulls_at_the_attention_alone():
    attention, target = jnp.array([[0.5, 0.5]]), jnp.array([[0.2, 0.6]])
    np.testing.assert_allclose(consistency_loss(attention, target), [0.05], rtol=1e-5)
    total = jax.grad(lambda a, t: consistency_loss(a, t).sum(), argnums=(0, 1))
    of_attention, of_target = jax.jit(total)(attention, target)
    np.testing.assert_allclose(of_attention, [[0.3, -0.1]], rtol=1e-5)
    np.testing.assert_array_equal(of_target, 0)


def test_deep_supervision_adds_the_losses_of_the_classifiers():
    # Odds of 3 to 1 and 1 to 1 for class 0, which it is; of 3 to 1 and 1 to 3 for class 1.
    logits = jnp.log(jnp.array([[[3.0, 1.0], [1.0, 1.0]], [[1.0, 3.0], [3.0, 1.0]]]))
    loss = deep_supervision_loss(logits, jnp.array([0, 1]))
    np.testing.assert_allclose(
        loss, [np.log(4 / 3) + np.log(2), np.log(4 / 3) + np.log(4)], rtol=1e-6
    )
    assert loss.dtype == jnp.float32
    # Log-probabilities are logits: three even classifiers of four classes.
    even = jnp.full((1, 3, 4), -np.log(4.0))
    np.testing.assert_allclose(
        deep_supervision_loss(even, jnp.array([2])), [3 * np.log(4)], rtol=1e-6
    )


def test_deep_supervision_teaches_every_classifier_alone():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((5, 3, 4)), rng.integers(0, 4, 5)

    def total(z):
        return deep_supervision_loss(z, jnp.asarray(labels)).sum()

    gradient = jax.jit(jax.grad(total))(jnp.asarray(logits, jnp.float32))
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(gradient, shares - np.eye(4)[labels][:, None], rtol=1e-4, atol=1e-6)
    rounded = deep_supervision_loss(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(labels))
    assert rounded.dtype == jnp.float32


def compute_all(kind, loss):
    """What a kind makes of the same predictions and labels, those that it takes."""
    logits = jnp.array([[0.3, 0.9, 0.1], [0.7, 0.2, 0.4]])
    predictions = jnp.stack([logits, logits + 1], axis=1) if loss.axes == "B S K" else logits
    labels = [jnp.array([0, 2])] * loss.one_label
    labels += [jnp.array([[1, 0, 0], [0, 0, 1]])] * loss.several_labels
    values = [np.asarray(losses.image_loss(kind, predictions, some)) for some in labels]
    assert values, f"{kind} takes no labels"
    return np.stack(values)


def test_no_two_losses_compute_the_same():
    values = {kind: compute_all(kind, loss) for kind, loss in losses.LOSSES.items()}
    for (one, first), (other, second) in itertools.combinations(values.items(), 2):
        assert np.abs(first[:, None] - second[None]).max() > 1e-3, f"{one} is {other}"


def test_a_loss_says_which_labels_and_whether_smoothing_it_takes():
    logits = jnp.array([[0.3, 0.9, 0.1]])
    for kind, loss in losses.LOSSES.items():
        predictions = logits[:, None] if loss.axes == "B S K" else logits
        for takes, labels in (
            (loss.one_label, jnp.array([0])),
            (loss.several_labels, jnp.array([[1, 0, 1]])),
        ):
            if takes:
                assert losses.image_loss(kind, predictions, labels).shape == (1,)
            else:
                with pytest.raises(ValueError, match="labels|positives"):
                    losses.image_loss(kind, predictions, labels)
        labels = jnp.array([0]) if loss.one_label else jnp.array([[1, 0, 1]])
        if loss.smoothing:
            assert losses.image_loss(kind, predictions, labels, 0.1).shape == (1,)
        else:
            with pytest.raises(ValueError, match="label_smoothing is 0.1, but must be 0"):
                losses.image_loss(kind, predictions, labels, 0.1)


OWN_LOSS = losses.Loss(
    lambda logits, labels: jnp.square(1 - losses.probabilities("cross_entropy", logits)[:, 0]),
    None,
    jax.nn.softmax,
)


def test_a_loss_of_the_users_is_named_by_reference():
    logits, labels = jnp.zeros((2, 4)), jnp.array([0, 1])
    value = losses.image_loss(f"{__name__}:OWN_LOSS", logits, labels)
    np.testing.assert_allclose(value, [0.75**2] * 2, rtol=1e-6)
    probabilities = losses.probabilities(f"{__name__}:OWN_LOSS", logits)
    np.testing.assert_allclose(probabilities, 0.25)
    terms = losses.loss_attention_loss(
        logits, jnp.zeros((2, 3, 4)), jnp.ones((2, 3)), labels, 0.5, kind=f"{__name__}:OWN_LOSS"
    )
    np.testing.assert_array_equal(terms.patch, 0)
    with pytest.raises(UserError, match="kind is 'json:dump', which is a function, but must be a"):
        losses.image_loss("json:dump", logits, labels)

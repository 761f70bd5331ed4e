"""Library calls that make no sense: each raises one sentence, outside and inside of JAX's transformations."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax import models
from lossattn_jax.attention import losses, pooling, routing
from lossattn_jax.evaluate import metric_registry, metrics
from lossattn_jax.explain.metrics import faithfulness, imputation, localisation, map_agreement
from lossattn_jax.train import schedules

B, P, K, C, D, E = 2, 5, 3, 4, 6, 7
CE, SIGMOID, MARGIN = losses.CROSS_ENTROPY, losses.SIGMOID, losses.MARGIN


def floats(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def whole(*shape):
    return np.zeros(shape, np.int32)


def flags(*shape):
    return np.ones(shape, bool)


def weights(*shape):
    return np.full(shape, 1 / shape[-1], np.float32)


def same(x):
    return x


def one(x):
    return x[..., :1]


PATCHES = dict(patch_logits=floats(B, P, K), mask=flags(B, P))
LEARNED = dict(features=floats(B, P, D), tanh=same, score=one, gate=same)
WEIGHTED = dict(patch_logits=floats(B, P, K), attention=weights(B, P))

# Calls that make sense, by the name of a public function.
CALLS = {
    "uniform_attention": (pooling, PATCHES),
    "loss_attention": (pooling, PATCHES | dict(grid=64, threshold=0.1)),
    "capsule_loss_attention": (
        pooling,
        dict(capsule_logits=floats(B, P, C, K), grid=P, threshold=0.1, mask=flags(B, P)),
    ),
    "bag_loss_attention": (pooling, PATCHES),
    "softmax_attention": (pooling, dict(scores=floats(B, P), mask=flags(B, P))),
    "learned_scores": (pooling, LEARNED),
    "coupling_attention": (
        pooling,
        dict(couplings=weights(B, P, C, K), classes=whole(B), mask=flags(B, P)),
    ),
    "max_attention": (pooling, dict(features=floats(B, P, D), mask=flags(B, P))),
    "weighted_sum": (pooling, dict(features=floats(B, P, D), attention=weights(B, P))),
    "max_pool": (pooling, dict(features=floats(B, P, D), mask=flags(B, P))),
    "cross_entropy": (losses, dict(logits=floats(B, K), labels=whole(B), label_smoothing=0.1)),
    "sigmoid_cross_entropy": (losses, dict(logits=floats(B, K), positives=flags(B, K))),
    "loss_of_label": (losses, dict(losses=floats(B, K), labels=whole(B))),
    "smooth_svm_losses": (losses, dict(scores=floats(B, K), margin=1.0, temperature=1.0)),
    "margin_loss": (losses, dict(lengths=weights(B, K), labels=whole(B))),
    "centripetal_loss": (losses, dict(closeness=weights(B, K), labels=whole(B))),
    "image_loss": (losses, dict(kind=CE, logits=floats(B, K), labels=whole(B))),
    "probabilities": (losses, dict(kind=CE, logits=floats(B, K))),
    "patch_cross_entropy": (losses, WEIGHTED | dict(labels=whole(B), label_smoothing=0.1)),
    "patch_sigmoid_loss": (losses, WEIGHTED | dict(positives=flags(B, K))),
    "patch_loss": (losses, WEIGHTED | dict(kind=CE, labels=whole(B))),
    "loss_attention_loss": (
        losses,
        WEIGHTED | dict(logits=floats(B, K), labels=whole(B), patch_weight=0.1, kind=CE),
    ),
    "reduced_weight": (losses, dict(reduction="mean", weight=0.1, count=lambda: 36)),
    "deep_supervision_loss": (losses, dict(side_logits=floats(B, 3, K), labels=whole(B))),
    "consistency_loss": (losses, dict(attention=weights(B, P), target=weights(B, P))),
    "squash": (routing, dict(vectors=floats(B, E))),
    "dynamic_routing": (
        routing,
        dict(votes=floats(B, P, K, E), iterations=2, bias=floats(K, E)),
    ),
    "map_routing": (
        routing,
        dict(votes=floats(B, P, 2, 3, K, E), bias=floats(K, E), iterations=2),
    ),
}

UNKNOWN = "is 'focal', but must be one of: cross_entropy, sigmoid, margin"
NOT_BP = r"shape \(2, 1\), but must be \[B, P\] with P = 5 as in"
ONE_HOT = "must hold one whole number .* of one-hot rows take their argmax"
# Calls that make none: a function, what differs from the call above, and a part of the sentence.
NONSENSE = [
    ("uniform_attention", dict(patch_logits=floats(B, P)), r"must be \[B, P, K\]"),
    ("uniform_attention", dict(patch_logits=floats(B, 0, K)), "P of .* must be 1 or more"),
    ("uniform_attention", dict(mask=flags(B, P, K)), r"mask has the shape .* be \[B, P\]"),
    (
        "loss_attention",
        dict(patch_logits=floats(B, 4, 4, K)),
        r"\(2, 4, 4, 3\), but must be \[B, P",
    ),
    ("loss_attention", dict(patch_logits=floats(P, K)), r"\(5, 3\), but must be \[B, P, K\]"),
    ("loss_attention", dict(mask=flags(B, 1)), NOT_BP),
    ("loss_attention", dict(mask=flags(1, P)), "with B = 2 as in patch_logits"),
    ("loss_attention", dict(mask=flags(P)), r"mask has the shape \(5,\)"),
    ("loss_attention", dict(patch_logits=flags(B, P, K)), "dtype bool, but must hold real numbers"),
    ("loss_attention", dict(grid=0), "grid is 0, but must be a whole number, at least 1"),
    ("loss_attention", dict(grid=-64), "grid is -64, but"),
    ("loss_attention", dict(grid=0.5), "grid is 0.5, but"),
    ("loss_attention", dict(grid=float("nan")), "grid is nan, but"),
    ("loss_attention", dict(grid="64"), "grid is '64', but"),
    ("loss_attention", dict(grid=None), "grid is None, but"),
    ("loss_attention", dict(grid=np.array([8, 8])), r"grid has the shape \(2,\), but"),
    (
        "loss_attention",
        dict(threshold=-0.1),
        "threshold is -0.1, but must be a finite number, at l",
    ),
    ("loss_attention", dict(threshold=float("nan")), "threshold is nan, but"),
    ("loss_attention", dict(threshold=float("inf")), "threshold is inf, but"),
    ("loss_attention", dict(threshold=np.float32(-1)), "threshold is .*-1.0.*, but"),
    ("loss_attention", dict(threshold=weights(B, 1)), r"threshold has the shape \(2, 1\), but"),
    ("capsule_loss_attention", dict(capsule_logits=floats(B, P, K)), r"must be \[B, P, C, K\]"),
    ("capsule_loss_attention", dict(mask=flags(B, P * C)), "with P = 5 as in capsule_logits"),
    ("capsule_loss_attention", dict(grid=0), "grid is 0, but"),
    ("capsule_loss_attention", dict(threshold=-1), "threshold is -1, but"),
    ("bag_loss_attention", dict(patch_logits=floats(B, 4, 4, K)), r"but must be \[B, P, K\]"),
    ("bag_loss_attention", dict(mask=flags(B, 1)), NOT_BP),
    ("softmax_attention", dict(scores=floats(B, P, 1)), r"scores has .* but must be \[B, P\]"),
    ("softmax_attention", dict(mask=flags(B, 1)), NOT_BP),
    ("learned_scores", dict(features=floats(B, D)), r"features has .* but must be \[B, P, D\]"),
    ("learned_scores", dict(score=same), r"what score gives has .* but must be \[B, P, 1\]"),
    ("learned_scores", dict(gate=one), "what gate gives has .* with H = 6 as in what tanh gives"),
    ("coupling_attention", dict(couplings=weights(B, P, K)), r"must be \[B, P, C, K\]"),
    ("coupling_attention", dict(classes=whole(B, K)), r"classes has .* but must be \[B\]"),
    (
        "coupling_attention",
        dict(classes=floats(B)),
        "classes has the dtype float32, but must hold w",
    ),
    ("coupling_attention", dict(classes=whole(1)), "with B = 2 as in couplings"),
    ("max_attention", dict(features=floats(B, 4, 4, D)), r"but must be \[B, P, D\]"),
    ("max_attention", dict(mask=flags(B, 1)), NOT_BP),
    ("weighted_sum", dict(attention=weights(B, 1)), f"attention has the {NOT_BP} features"),
    ("weighted_sum", dict(attention=weights(1, P)), "with B = 2 as in features"),
    ("weighted_sum", dict(attention=weights(B, P, 1)), r"\(2, 5, 1\), but must be \[B, P\]"),
    ("weighted_sum", dict(attention=flags(B, P)), "attention has the dtype bool"),
    ("weighted_sum", dict(features=floats(B, 4, 4, D)), r"features has .* but must be \[B, P, D\]"),
    ("max_pool", dict(features=floats(B, D)), r"but must be \[B, P, D\]"),
    ("max_pool", dict(mask=flags(B, P, 1)), r"mask has .* but must be \[B, P\]"),
    ("cross_entropy", dict(labels=whole(B, K)), ONE_HOT),
    ("cross_entropy", dict(labels=whole(B, 1)), "must hold one whole number"),
    (
        "cross_entropy",
        dict(labels=floats(B)),
        "labels has the dtype float32, but must hold whole n",
    ),
    ("cross_entropy", dict(labels=flags(B)), "labels has the dtype bool"),
    ("cross_entropy", dict(labels=whole(B + 1)), r"labels has the shape \(3,\)"),
    ("cross_entropy", dict(labels=whole()), r"labels has the shape \(\)"),
    ("cross_entropy", dict(logits=np.float32(1), labels=whole()), "logits has the shape"),
    ("cross_entropy", dict(label_smoothing=1.0), "label_smoothing is 1.0, but must be .* below 1"),
    ("cross_entropy", dict(label_smoothing=-0.1), "label_smoothing is -0.1, but"),
    ("cross_entropy", dict(label_smoothing=float("nan")), "label_smoothing is nan, but"),
    ("sigmoid_cross_entropy", dict(positives=flags(B)), "positives has the shape"),
    ("sigmoid_cross_entropy", dict(positives=flags(B, 1)), "with K = 3 as in logits"),
    ("sigmoid_cross_entropy", dict(positives=flags(1, K)), "positives has the shape"),
    ("loss_of_label", dict(losses=floats(B, P, K)), r"losses has .* but must be \[B, K\]"),
    ("loss_of_label", dict(labels=whole(B, K)), r"labels has .* but must be \[B\]"),
    ("smooth_svm_losses", dict(scores=flags(B, K)), "scores has the dtype bool"),
    ("smooth_svm_losses", dict(margin=-1), "margin is -1, but"),
    ("smooth_svm_losses", dict(temperature=0.0), "temperature is 0.0, but must be above 0"),
    ("margin_loss", dict(labels=floats(B)), "labels has the dtype float32"),
    ("margin_loss", dict(labels=flags(B, 1)), "with K = 3 as in lengths"),
    ("margin_loss", dict(labels=whole(B + 1)), "labels has the shape"),
    ("centripetal_loss", dict(labels=floats(B)), "labels has the dtype float32"),
    ("centripetal_loss", dict(labels=flags(B, 1)), "with K = 3 as in closeness"),
    ("image_loss", dict(kind="focal"), UNKNOWN),
    ("image_loss", dict(kind=None), "kind is None, but must be one of"),
    ("image_loss", dict(labels=whole(B, K)), ONE_HOT),
    ("image_loss", dict(logits=floats(B, P, K)), r"logits has .* but must be \[B, K\]"),
    ("image_loss", dict(kind=SIGMOID), "positives has the shape"),
    ("image_loss", dict(kind=MARGIN, label_smoothing=0.1), "must be 0 with 'margin'"),
    ("probabilities", dict(kind="focal"), UNKNOWN),
    ("probabilities", dict(logits=np.float32(1)), r"must be \[..., K\]"),
    ("probabilities", dict(logits=flags(B, K)), "logits has the dtype bool"),
    ("patch_cross_entropy", dict(attention=weights(B, 1)), NOT_BP),
    ("patch_cross_entropy", dict(labels=whole(B, K)), ONE_HOT),
    ("patch_cross_entropy", dict(labels=floats(B)), "labels has the dtype float32"),
    ("patch_cross_entropy", dict(labels=whole(1)), "with B = 2 as in patch_logits"),
    ("patch_cross_entropy", dict(patch_logits=floats(1, P, K)), "with B = 1 as in patch_logits"),
    ("patch_cross_entropy", dict(patch_logits=floats(B, K)), r"but must be \[B, P, K\]"),
    ("patch_sigmoid_loss", dict(positives=flags(B, K + 1)), "with K = 3 as in patch_logits"),
    ("patch_sigmoid_loss", dict(positives=whole(B)), "positives has the shape"),
    ("patch_sigmoid_loss", dict(attention=weights(B, 1)), NOT_BP),
    ("patch_loss", dict(kind="focal"), UNKNOWN),
    ("patch_loss", dict(attention=weights(B, 1)), NOT_BP),
    ("patch_loss", dict(kind=MARGIN, attention=weights(B, 1)), NOT_BP),
    ("patch_loss", dict(kind=SIGMOID, labels=flags(B, K), label_smoothing=0.1), "must be 0 with"),
    ("loss_attention_loss", dict(kind="focal"), UNKNOWN),
    ("loss_attention_loss", dict(patch_logits=floats(B, P, K + 1)), "with K = 3 as in logits"),
    ("loss_attention_loss", dict(attention=weights(B, 1)), NOT_BP),
    ("loss_attention_loss", dict(labels=whole(B, K)), ONE_HOT),
    ("loss_attention_loss", dict(logits=floats(B, 1, K)), r"logits has .* but must be \[B, K\]"),
    ("loss_attention_loss", dict(patch_weight=-0.1), "patch_weight is -0.1, but"),
    ("loss_attention_loss", dict(patch_weight=float("nan")), "patch_weight is nan, but"),
    ("loss_attention_loss", dict(patch_weight=weights(B, P)), "patch_weight has the shape"),
    ("reduced_weight", dict(reduction="max"), "reduction is 'max', but must be one of: sum, mean"),
    ("deep_supervision_loss", dict(side_logits=floats(B, K)), r"must be \[B, S, K\]"),
    ("deep_supervision_loss", dict(labels=floats(B)), "labels has the dtype float32"),
    ("consistency_loss", dict(target=weights(B, 1)), f"target has the {NOT_BP} attention"),
    ("consistency_loss", dict(target=weights(1, P)), "with B = 2 as in attention"),
    ("squash", dict(vectors=np.float32(1)), r"must be \[..., E\]"),
    ("squash", dict(vectors=floats(B, 0)), "must be 1 or more"),
    ("dynamic_routing", dict(votes=floats(B, P, K)), r"must be \[B, N, K, E\]"),
    (
        "dynamic_routing",
        dict(iterations=0),
        "iterations is 0, but must be a whole number, at least 1",
    ),
    ("dynamic_routing", dict(iterations=1.5), "iterations is 1.5, but"),
    ("dynamic_routing", dict(bias=floats(E, E)), "with K = 3 as in votes"),
    ("map_routing", dict(votes=floats(B, P, K, E)), r"must be \[B, N, H, W, K, E\]"),
    ("map_routing", dict(bias=floats(K)), r"bias has the shape \(3,\), but must be \[K, E\]"),
    ("map_routing", dict(iterations=0), "iterations is 0, but"),
]


def split(name, change):
    """A function, its arrays, and the rest of its arguments."""
    module, usual = CALLS[name]
    arguments = usual | change
    arrays = {key: value for key, value in arguments.items() if hasattr(value, "dtype")}
    scalar = {k for k, v in arrays.items() if k in ("grid", "threshold")}
    arrays = {key: value for key, value in arrays.items() if key not in scalar}
    rest = {key: value for key, value in arguments.items() if key not in arrays}
    return getattr(module, name), arrays, rest


def eagerly(function, arrays, rest):
    return function(**arrays, **rest)


def jitted(function, arrays, rest):
    return jax.jit(lambda arrays: function(**arrays, **rest))(arrays)


def mapped(function, arrays, rest):
    rows = {key: np.stack([array] * 3) for key, array in arrays.items()}
    return jax.vmap(lambda arrays: function(**arrays, **rest))(rows)


def on_devices(function, arrays, rest):
    rows = {key: np.asarray(array)[None] for key, array in arrays.items()}
    return jax.pmap(lambda arrays: function(**arrays, **rest))(rows)


def differentiated(function, arrays, rest):
    inexact = {k: v for k, v in arrays.items() if jnp.issubdtype(v.dtype, jnp.floating)}
    others = {key: array for key, array in arrays.items() if key not in inexact}

    def total(inexact):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(function(**inexact, **others, **rest)))

    return jax.grad(total)(inexact)


WAYS = (eagerly, jitted, mapped, on_devices, differentiated)


def test_every_public_function_is_called():
    public = {
        name
        for module in (pooling, losses, routing)
        for name, value in inspect.getmembers(module, inspect.isfunction)
        if value.__module__ == module.__name__ and not name.startswith("_")
    }
    assert public == set(CALLS)
    assert {name for name, *_ in NONSENSE} == public


@pytest.mark.parametrize("way", WAYS)
def test_calls_that_make_sense_are_made(way):
    for name in CALLS:
        if name == "reduced_weight" and way is not eagerly:
            continue  # takes no array
        call = functools.partial(way, *split(name, {}))
        assert jax.tree.leaves(call() if way is eagerly else jax.eval_shape(call))


@pytest.mark.parametrize(("name", "change", "sentence"), NONSENSE)
def test_nonsense_raises_the_same_sentence_everywhere(name, change, sentence):
    sentences = set()
    for way in WAYS:
        if name == "reduced_weight" and way is not eagerly:
            continue
        with pytest.raises(ValueError, match=sentence) as error:
            way(*split(name, change))
        sentences.add(str(error.value))
    assert len(sentences) == 1 and "\n" not in sentences.pop()


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        (
            "weighted_sum",
            dict(attention=[[0.2] * P] * B),
            "attention is of type list, but must be an",
        ),
        ("loss_attention", dict(patch_logits=None), "patch_logits is of type NoneType"),
        ("cross_entropy", dict(labels=[0, 1]), "labels is of type list, but must be an array"),
        ("softmax_attention", dict(scores=np.array([["a"] * P] * B)), "scores has the dtype <U1"),
        (
            "loss_attention",
            dict(patch_logits=floats(B, P, K) * 1j),
            "dtype complex64, but must hold",
        ),
    ],
)
def test_what_is_no_array_of_numbers_raises_too(name, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        eagerly(*split(name, change))


def test_what_a_program_is_made_of_must_be_known_when_traced():
    with pytest.raises(
        ValueError, match="iterations is traced, but must be a whole number, at lea"
    ):
        jax.jit(routing.dynamic_routing)(floats(B, P, K, E), 3)
    with pytest.raises(ValueError, match="steps is traced, but must be a whole number, at least 1"):
        jax.jit(lambda n: faithfulness.deletion(predict, IMAGES, whole(B), RANKS, n))(3)


def test_patch_losses_are_summed_or_averaged():
    assert losses.reduced_weight("sum", 0.5, count=None) == 0.5
    assert losses.reduced_weight("mean", 0.5, lambda: 4) == 0.125


def test_a_threshold_of_zero_and_traced_numbers_are_fine():
    logits = jnp.asarray(floats(B, P, K))
    norms = np.linalg.norm(np.asarray(logits, np.float64), axis=-1)
    expected = norms / norms.sum(axis=1, keepdims=True)
    for threshold in (0, 0.0, np.float32(0), jnp.float32(0)):
        attention = pooling.loss_attention(logits, 64, threshold)
        np.testing.assert_allclose(attention, expected, rtol=1e-5)
    traced = jax.jit(pooling.loss_attention)(logits, 64, 0.1)
    np.testing.assert_allclose(traced, pooling.loss_attention(logits, 64, 0.1), rtol=1e-6)
    several = jax.vmap(lambda t: pooling.loss_attention(logits, 64, t))(jnp.array([0.0, 0.1]))
    np.testing.assert_allclose(several[0], expected, rtol=1e-5)
    np.testing.assert_allclose(several[1], traced, rtol=1e-6)
    # So is a traced smoothing.
    labels = jnp.array([0, 2])
    smooth = jax.jit(losses.cross_entropy)(logits[:, 0], labels, 0.1)
    np.testing.assert_allclose(smooth, losses.cross_entropy(logits[:, 0], labels, 0.1), rtol=1e-6)


def test_whole_numbers_of_any_width_are_labels():
    logits = jnp.asarray(floats(B, K))
    expected = losses.cross_entropy(logits, jnp.array([2, 1]))
    for dtype in (np.int8, np.uint8, np.int16, np.uint32, np.int64):
        results = losses.cross_entropy(logits, np.array([2, 1], dtype))
        np.testing.assert_array_equal(results, expected)


def test_checks_leave_nothing_in_the_program(monkeypatch):
    def programs():
        logits, labels = floats(B, P, K), whole(B)

        def both(logits, labels, mask):
            attention = pooling.loss_attention(logits, 64, 0.1, mask)
            pooled = pooling.weighted_sum(logits, attention)
            return losses.loss_attention_loss(pooled, logits, attention, labels, 0.1)

        return str(jax.make_jaxpr(both)(logits, labels, flags(B, P)))

    with_checks = programs()
    monkeypatch.setattr(pooling, "check_arrays", lambda **_: {})
    for module in (pooling, losses):
        monkeypatch.setattr(module, "check_number", lambda *_, **__: None)
    assert programs() == with_checks


# What cannot be seen while a program is traced: the docstrings say what comes of it.


@pytest.mark.parametrize("label", [-1, -K, -K - 1, K, K + 7, 2**31 - 1])
def test_a_label_that_is_no_class_gives_nan(label):
    logits, patch_logits = jnp.asarray(floats(B, K)), jnp.asarray(floats(B, P, K))
    labels, attention = jnp.array([label, 1]), jnp.asarray(weights(B, P))
    results = {
        "image": losses.cross_entropy(logits, labels),
        "smooth": losses.cross_entropy(logits, labels, 0.1),
        "margin": losses.margin_loss(logits, labels),
        "centripetal": losses.centripetal_loss(logits, labels),
        "patch": losses.patch_cross_entropy(patch_logits, labels, attention),
        "side": losses.deep_supervision_loss(patch_logits, labels),
        "total": losses.loss_attention_loss(logits, patch_logits, attention, labels, 0.1).total,
    }
    for name, loss in results.items():
        assert np.isnan(loss[0]) and np.isfinite(loss[1]), name
    gradient = jax.jit(jax.grad(lambda z: losses.cross_entropy(z, labels).sum()))(logits)
    np.testing.assert_array_equal(gradient[0], 0)
    assert np.abs(gradient[1]).max() > 0


@pytest.mark.parametrize("index", [-1, K])
def test_a_class_that_is_none_gives_attention_of_nan(index):
    couplings = jnp.asarray(weights(B, P, C, K))
    attention = pooling.coupling_attention(couplings, jnp.array([index, 1]))
    assert np.isnan(attention[0]).all()
    np.testing.assert_allclose(attention[1], 1 / P, rtol=1e-6)


def test_a_row_with_no_patch_has_weights_and_losses_of_zero():
    logits, mask = jnp.asarray(floats(B, P, K)), jnp.array([[False] * P, [True] * P])
    capsules = jnp.asarray(floats(B, P, C, K))
    results = {
        "uniform": pooling.uniform_attention(logits, mask),
        "loss": pooling.loss_attention(logits, 64, 0.1, mask),
        "capsules": pooling.capsule_loss_attention(capsules, P, 0.1, mask)[0],
        "patches": pooling.capsule_loss_attention(capsules, P, 0.1, mask)[1],
        "bag": pooling.bag_loss_attention(logits, mask),
        "softmax": pooling.softmax_attention(logits[..., 0], mask),
        "coupling": pooling.coupling_attention(jnp.abs(capsules), jnp.array([0, 1]), mask),
        "max": pooling.max_attention(logits, mask),
    }
    for name, attention in results.items():
        np.testing.assert_array_equal(attention[0], 0, err_msg=name)
        assert float(attention[1].sum()) == pytest.approx(1, rel=1e-5), name
    labels, attention = jnp.array([0, 1]), results["bag"]
    np.testing.assert_array_equal(pooling.weighted_sum(logits, attention)[0], 0)
    np.testing.assert_array_equal(pooling.max_pool(logits, mask)[0], 0)
    assert losses.patch_cross_entropy(logits, labels, attention)[0] == 0
    positives = jnp.eye(K, dtype=bool)[labels]
    assert losses.patch_sigmoid_loss(logits, positives, attention)[0] == 0


@pytest.mark.parametrize("value", [1, 2, 255, 0.5])
def test_whatever_is_not_zero_in_a_mask_is_a_patch(value):
    logits = jnp.asarray(floats(B, P, K))
    mask = np.array([[1, 1, 0, 1, 0]] * B, np.float32)
    expected = pooling.loss_attention(logits, 64, 0.1, jnp.asarray(mask, bool))
    other = mask.copy()
    other[:, 1] *= value
    np.testing.assert_array_equal(pooling.loss_attention(logits, 64, 0.1, other), expected)
    np.testing.assert_array_equal(
        pooling.max_attention(logits, other), pooling.max_attention(logits, mask > 0)
    )


# The same kind elsewhere.

MAPS, BOXES = floats(B, 8, 8), weights(B, 4)
IMAGES, RANKS = floats(B, 8, 8, 3), whole(B, 8, 8)


def predict(images):
    return jnp.ones((len(images), K)) / K


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: localisation.pointing(MAPS[0], BOXES), r"pixels has .* must be \[B, H, W\]"),
        (lambda: localisation.pointing(MAPS, weights(1, 4)), "with B = 2 as in pixels"),
        (lambda: localisation.mass_in_box(MAPS, weights(B, 5)), r"boxes has .* be \[B, 4\]"),
        (
            lambda: localisation.patch_pointing(floats(B, P), floats(P + 1, 2), BOXES),
            "with P = 5 as in patches",
        ),
        (lambda: localisation.patch_scores(floats(B, P), flags(B, 1)), NOT_BP),
        (
            lambda: localisation.patch_scores(floats(B, P), flags(B, P), (0.5, 0.0)),
            "a threshold is 0.0, but must be a finite number, above 0 and at most 1",
        ),
        (
            lambda: localisation.patch_scores(floats(B, P), flags(B, P), (1.5,)),
            "a threshold is 1.5, but",
        ),
        (
            lambda: localisation.is_localised(floats(B, P), BOXES, weights(P, 3)),
            r"patch_boxes has .* be \[P, 4\]",
        ),
        (
            lambda: localisation.boxes_of_class(weights(B, 2, 4), floats(B, 2), whole(B)),
            "box_labels has the dtype float32",
        ),
        (lambda: faithfulness.by_pixels(floats(B, P)), r"maps has .* must be \[B, H, W\]"),
        (
            lambda: faithfulness.deletion(predict, IMAGES, floats(B), RANKS, 4),
            "classes has the dtype float32",
        ),
        (
            lambda: faithfulness.deletion(predict, IMAGES, whole(B), RANKS, 0),
            "steps is 0, but must be a whole number, at least 1",
        ),
        (
            lambda: faithfulness.insertion(predict, IMAGES, whole(B), RANKS[:, :4], 4),
            "with H = 8 as in images",
        ),
        (
            lambda: faithfulness.insertion(predict, IMAGES, whole(B), RANKS, 4, -1.0),
            "sigma is -1.0, but",
        ),
        (
            lambda: faithfulness.sufficiency(
                predict, IMAGES, whole(B), floats(B, P), whole(8, 8), (2.0,)
            ),
            "a share is 2.0, but",
        ),
        (
            lambda: faithfulness.comprehensiveness(
                predict, IMAGES, whole(B), floats(B, P), whole(4, 8)
            ),
            "cells has .* with H = 8 as in images",
        ),
        (lambda: faithfulness.area(floats(B, 1)), r"must be \[B, steps \+ 1\]"),
        (
            lambda: imputation.linear_imputation(IMAGES, flags(B, 8, 1)),
            "missing has .* with W = 8 as in images",
        ),
        (lambda: map_agreement.spearman(floats(B, 8), floats(B, 1)), "second has the shape"),
        (lambda: map_agreement.spearman(floats(B, 8), floats(B, 2, 4)), "second has the shape"),
        (
            lambda: map_agreement.top_overlap(floats(B, 8), floats(B, 8), 0.5, flags(B, 1)),
            "valid has the shape",
        ),
        (lambda: map_agreement.shift(IMAGES, 0.5, 0), "dy is 0.5, but must be a whole number"),
        (lambda: map_agreement.shift_back(IMAGES, 1, 0), r"maps has .* must be \[B, H, W\]"),
    ],
)
def test_explanations_are_checked_too(call, sentence):
    for way in (lambda call: call(), lambda call: jax.jit(call)()):
        with pytest.raises(ValueError, match=sentence):
            way(call)


OUTPUTS = models.Outputs(floats(B, K), floats(B, P, K), weights(B, P))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: metrics.mean_of(floats(B), flags(B, 1)), r"mask has the shape \(2, 1\), but"),
        (lambda: metrics.hits(floats(B, K), whole(B, 1)), "labels has .* with K = 3 as in logits"),
        (lambda: metrics.hits(floats(B, K), flags(B, K + 1)), "with K = 3 as in logits"),
        (lambda: metrics.hits(floats(B, K), whole(1)), r"labels has the shape \(1,\), but"),
        (lambda: metrics.hits(floats(B, K), floats(B)), "labels has the dtype float32"),
        (lambda: metrics.attention_entropy(weights(B, 6, 6)), r"must be \[B, P\]"),
        (lambda: metrics.has_box(weights(B, 5)), r"boxes has the shape \(2, 5\), but must be"),
        (lambda: metrics.centres_in_boxes(floats(P, 3), BOXES), r"centres has .* be \[P, 2\]"),
        (lambda: metrics.centres_in_boxes(floats(P, 2), BOXES[0]), r"boxes has the shape \(4,\)"),
        (
            lambda: metric_registry.evaluation_sums(OUTPUTS, whole(B), weights(B, 1), floats(P, 2)),
            r"mask has the shape \(2, 1\), but must be \[B\]",
        ),
        (
            lambda: metric_registry.evaluation_sums(
                OUTPUTS, whole(B), weights(B), floats(4, 2), BOXES
            ),
            "centres has .* with P = 5 as in attention",
        ),
    ],
)
def test_metrics_are_checked_too(call, sentence):
    for way in (lambda call: call(), lambda call: jax.jit(call)()):
        with pytest.raises(ValueError, match=sentence):
            way(call)


@pytest.mark.parametrize(
    "names",
    [
        ("small", "conv", "loss_attention"),
        ("small", "capsule", "loss_attention"),
        ("capsnet", "none", "dynamic_routing"),
        ("deepcaps", "none", "biased_routing"),
        ("hitnet", "none", "hit_or_miss"),
    ],
)
@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (floats(32, 32, 3), r"images has the shape \(32, 32, 3\), but must be \[B, H, W, C\]"),
        (np.zeros((B, 32, 32, 3), np.uint8), "dtype uint8, but must hold normalised values"),
    ],
)
def test_networks_take_batches_of_normalised_images_alone(names, images, sentence):
    network = models.build(*names, width=0.02)
    for init in (network.init, jax.jit(network.init)):
        with pytest.raises(ValueError, match=sentence):
            init(jax.random.key(0), images)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda n: schedules.loss_weight_schedule(3, -0.1, 80), "weight is -0.1, but must be a f"),
        (lambda n: schedules.loss_weight_schedule(3, 0.1, -5), "ramp_epochs is -5, but must be a"),
        (lambda n: schedules.fall_schedule(3, 10, -5), "fall_epochs is -5, but must be a finite"),
    ],
)
def test_schedules_are_checked_too(call, sentence):
    for way in (call, jax.jit(call)):
        with pytest.raises(ValueError, match=sentence):
            way(0)

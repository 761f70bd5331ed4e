"""The networks for bags: masks, order, published structure, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from lossattn_jax.attention.poolings import BAG_POOLINGS, SUPERVISION
from lossattn_jax.errors import UserError
from lossattn_jax.mil import BagNetwork
from lossattn_jax.mil.network_scores import instance_scores
from tests.support import parameters

HIDDEN = (6, 5, 4)
BAGS = np.random.default_rng(0).standard_normal((2, 3, 7)).astype(np.float32)
MASK = np.array([[True, True, True], [True, False, False]])


@functools.cache
def fitted(method, classes=3):
    """Module, variables and jitted apply of one method."""
    hidden = (5, 5, 5) if method == "mi_net_rc" else HIDDEN
    module = BagNetwork(classes, method, hidden=hidden)
    variables = parameters.draw(module, BAGS)
    return module, variables, jax.jit(module.apply, static_argnames="train")


@pytest.mark.parametrize("method", BAG_POOLINGS)
def test_padding_changes_nothing_whatever_it_holds(method):
    _, variables, apply = fitted(method)
    expected = apply(variables, BAGS, MASK)
    for filling in (0.0, 9.0, np.nan, np.inf):
        bags = np.where(MASK[..., None], BAGS, filling).astype(np.float32)
        out = apply(variables, bags, MASK)
        np.testing.assert_array_equal(out.logits, expected.logits)
        np.testing.assert_array_equal(out.attention, expected.attention)
    np.testing.assert_array_equal(expected.attention[1], [1, 0, 0])
    alone = fitted(method)[2](variables, BAGS[1:, :1])
    np.testing.assert_allclose(expected.logits[1], alone.logits[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", BAG_POOLINGS)
def test_order_matters_where_said_and_attention_sums_to_1(method):
    _, variables, apply = fitted(method)
    order = np.array([2, 0, 1])
    expected, out = apply(variables, BAGS), apply(variables, BAGS[:, order])
    np.testing.assert_allclose(out.attention.sum(axis=1), 1, rtol=1e-5)
    if BAG_POOLINGS[method].orders_patches:
        assert np.abs(out.logits - expected.logits).max() > 1e-3
        return
    np.testing.assert_allclose(out.logits, expected.logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out.attention, expected.attention[:, order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", BAG_POOLINGS)
def test_gradients_are_finite_also_for_a_bag_without_instances(method):
    module, variables, _ = fitted(method)
    mask = np.array([[True, True, True], [False, False, False]])

    def total(params):
        out = module.apply({"params": params}, BAGS, mask)
        return jnp.sum(jnp.square(out.logits)) + jnp.sum(out.attention * out.patch_logits[..., 0])

    gradients = jax.jit(jax.grad(total))(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert np.abs(gradients["dense1"]["kernel"]).max() > 0


def features(params, bag, layers=3):
    """Outputs of the dense layers for one bag, in float64."""
    x, outputs = bag.astype(np.float64), []
    for number in range(1, layers + 1):
        layer = params[f"dense{number}"]
        x = np.maximum(x @ np.asarray(layer["kernel"], np.float64) + layer["bias"], 0)
        outputs.append(x)
    return outputs


def linear(params, x):
    return x @ np.asarray(params["kernel"], np.float64) + params["bias"]


def test_each_method_is_its_published_formula():
    out = {}
    expected = {}
    for method in BAG_POOLINGS:
        if method == "transmil":  # which test_transformer.py has
            continue
        _, variables, apply = fitted(method)
        out[method] = apply(variables, BAGS)
        params = jax.tree.map(np.asarray, variables["params"])
        layers = features(params, BAGS[0])
        if method == "mi_net":
            scores = linear(params["classifier"], layers[-1])
            expected[method] = np.concatenate([[0], scores.max(axis=0)])
        elif method == "mean":
            expected[method] = linear(params["classifier"], layers[-1].mean(axis=0))
            np.testing.assert_allclose(out[method].attention[0], np.full(3, 1 / 3), rtol=1e-6)
        elif method == "instance_max":
            expected[method] = linear(params["classifier"], layers[-1]).max(axis=0)
        elif method == "dsmil":
            scores = linear(params["classifier"], layers[-1])
            queries, values = (
                linear(params[name], layers[-1]) for name in ("query", "information")
            )
            streams, weights = [], []
            for label, critical in enumerate(scores.argmax(axis=0)):
                weights.append(softmax(queries @ queries[critical]))
                kernel, bias = (params["bag_classifier"][part] for part in ("kernel", "bias"))
                of_bag = weights[-1] @ values @ kernel[:, label] + bias[label]
                streams.append((scores[critical, label] + of_bag) / 2)
            expected[method] = np.array(streams)
            own = weights[np.argmax(streams)]
            np.testing.assert_allclose(out[method].attention[0], own, rtol=1e-4)
        elif method == "mi_net_bag":
            expected[method] = linear(params["classifier"], layers[-1].max(axis=0))
        elif method == "mi_net_rc":
            pooled = sum(layer.max(axis=0) for layer in layers)
            expected[method] = linear(params["classifier"], pooled)
        elif method == "mi_net_ds":
            each = [
                softmax(linear(params[f"classifier{n}"], layer.max(axis=0)))
                for n, layer in enumerate(layers, start=1)
            ]
            expected[method] = np.log(np.mean(each, axis=0))
            module = fitted(method)[0]
            _, sown = module.apply(variables, BAGS[:1], mutable=[SUPERVISION])
            side_logits = sown[SUPERVISION]["logits"]
            np.testing.assert_allclose(np.exp(side_logits[0]), each, rtol=1e-4)
            assert set(variables) == {"params"}
        else:
            if method == "loss_attention":
                scores = logsumexp(linear(params["classifier"], layers[-1]), axis=1)
            else:
                own = params["attention"]
                hidden = np.tanh(linear(own["tanh"], layers[-1]))
                if method in ("gated_attention", "clam"):
                    hidden = hidden / (1 + np.exp(-linear(own["gate"], layers[-1])))
                scores = linear(own["score"], hidden)[:, 0]
            weights = softmax(scores)
            np.testing.assert_allclose(out[method].attention[0], weights, rtol=1e-4)
            expected[method] = linear(params["classifier"], weights @ layers[-1])
        np.testing.assert_allclose(out[method].logits[0], expected[method], rtol=1e-4, atol=1e-5)


def test_two_classes_make_mi_net_a_sigmoid_of_the_highest_score():
    _, variables, apply = fitted("mi_net", classes=2)
    out = apply(variables, BAGS)
    np.testing.assert_array_equal(out.logits[:, 0], 0)
    np.testing.assert_allclose(out.logits[:, 1], out.patch_logits[..., 1].max(axis=1))


def test_noise_drops_by_its_bytes():
    module, variables, apply = fitted("loss_attention")
    units = sum(module.widths)
    nothing = apply(variables, BAGS, None, train=True, noise=np.zeros((2, 3, units), np.uint8))
    bias = variables["params"]["classifier"]["bias"]
    np.testing.assert_allclose(nothing.logits, np.stack([bias, bias]), rtol=1e-6)
    assert module.dropout == 0.5
    edge = np.full((2, 3, units), 127, np.uint8)
    np.testing.assert_array_equal(
        apply(variables, BAGS, None, train=True, noise=edge).logits, nothing.logits
    )
    kept = apply(variables, BAGS, None, train=True, noise=edge + 1)
    layers = features(jax.tree.map(np.asarray, variables["params"]), BAGS[0])
    # Every unit of three layers doubled, biases not: no multiple of the undropped network.
    assert np.abs(np.asarray(kept.logits) - np.asarray(apply(variables, BAGS).logits)).max() > 1e-3
    assert len(layers) == 3
    same = apply(variables, BAGS, None, train=False, noise=edge)
    np.testing.assert_array_equal(same.logits, apply(variables, BAGS).logits)


@pytest.mark.slow
def test_images_go_through_lenet_with_every_method():
    images = np.random.default_rng(1).standard_normal((1, 2, 16, 16, 1)).astype(np.float32)
    for method in ("gated_attention", "mi_net_ds"):
        module = BagNetwork(2, method, "lenet", hidden=(8,))
        out, variables = jax.jit(module.init_with_output)(jax.random.key(0), images)
        assert out.logits.shape == (1, 2)
        assert variables["params"]["dense"]["kernel"].shape == (50, 8)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"method": "mil"}, "method is 'mil'"), ({"backbone": "vit"}, "backbone is 'vit'")],
)
def test_unknown_names_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        BagNetwork(2, **options).init(jax.random.key(0), BAGS)


def test_scores_are_attention_or_another_classs_probability():
    attention = np.array([0.25, 0.75])
    logits = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]]))
    np.testing.assert_array_equal(instance_scores("attention", attention, logits), attention)
    np.testing.assert_allclose(instance_scores("mi_net", attention, logits), [0.5, 0.9])

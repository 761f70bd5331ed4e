"""CLAM and DSMIL against their formulas in float64, baselines' options, and their place in tables."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

import lossattn_jax.mil as mil
from lossattn_jax.attention import losses
from lossattn_jax.attention.poolings import BAG_POOLINGS, SUPERVISION, clustering, dual_stream
from lossattn_jax.config import bags as config_lib
from lossattn_jax.config.rules import parse_assignments
from lossattn_jax.errors import UserError
from lossattn_jax.mil import BagNetwork, cross_validation, methods, paper_table, report
from lossattn_jax.mil.network_classifier import NetworkClassifier
from lossattn_jax.train.bags.objective import bag_loss
from lossattn_jax.train.bags.settings import Settings
from tests.support import parameters, tiny_bags

CLASSES, WIDTH, COUNT = 3, 6, 2
RANDOM = np.random.default_rng(0)
BAGS = RANDOM.standard_normal((4, 9, 5)).astype(np.float32)
LENGTHS = np.array([9, 3, 1, 0])
MASK = np.arange(9) < LENGTHS[:, None]


def network(method="clam", **options):
    options = {"clustered": COUNT, "attention_hidden": 4} | options if method == "clam" else options
    return BagNetwork(CLASSES, method, hidden=(WIDTH,), options=tuple(options.items()))


VARIABLES = parameters.draw(network(), BAGS)
PARAMS = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), VARIABLES["params"])


@functools.partial(jax.jit, static_argnums=0)
def loss_of(module, bags, mask, params=VARIABLES["params"]):
    """The loss of each bag for each label."""
    _, sown = module.apply({"params": params}, bags, mask, mutable=[SUPERVISION])
    return sown[SUPERVISION]["losses"]


def linear(params, x):
    return x @ params["kernel"] + params["bias"]


def smooth_svm(scores, label, margin, temperature):
    gaps = [
        (margin * (other != label) + score - scores[label]) / temperature
        for other, score in enumerate(scores)
    ]
    return temperature * logsumexp(gaps)


def clam_by_hand(bag, label, weight, margin, temperature, subtyping):
    """The loss of one unpadded bag, an instance at a time, in float64."""
    features = np.maximum(linear(PARAMS["dense1"], bag.astype(np.float64)), 0)
    own = PARAMS["attention"]
    gate = 1 / (1 + np.exp(-linear(own["gate"], features)))
    scores = linear(own["score"], np.tanh(linear(own["tanh"], features)) * gate)[:, 0]
    logits = linear(PARAMS["classifier"], softmax(scores) @ features)
    order = np.argsort(-scores)
    count = min(COUNT, len(bag) // 2)
    highest, lowest = order[:count], order[len(order) - count :]
    clusters = linear(PARAMS["clusters"], features).reshape(-1, CLASSES, 2)

    def mean_loss(places, cluster, target):
        return [smooth_svm(clusters[n, cluster], target, margin, temperature) for n in places]

    inside = [*mean_loss(highest, label, 1), *mean_loss(lowest, label, 0)]
    of_instances = np.mean(inside) if count else 0.0
    if subtyping and count:
        others = [k for k in range(CLASSES) if k != label]
        outside = sum(np.mean(mean_loss(highest, k, 0)) for k in others)
        of_instances = (of_instances + outside) / CLASSES
    return weight * (logsumexp(logits) - logits[label]) + (1 - weight) * of_instances


@pytest.mark.parametrize(
    "chosen", [{}, {"bag_weight": 0.2, "margin": 0.5, "temperature": 2.0, "subtyping": 1}]
)
def test_the_loss_of_clam_is_the_papers_formula(chosen):
    published = {name: option.default for name, option in BAG_POOLINGS["clam"].options.items()}
    values = published | chosen
    of_labels = np.asarray(loss_of(network(**chosen), BAGS, MASK))
    for row, length in enumerate(LENGTHS[:3]):
        for label in range(CLASSES):
            expected = clam_by_hand(
                BAGS[row, :length],
                label,
                values["bag_weight"],
                values["margin"],
                values["temperature"],
                values["subtyping"],
            )
            np.testing.assert_allclose(of_labels[row, label], expected, rtol=1e-5)
    assert np.isfinite(of_labels).all()


def test_the_loss_of_clam_knows_no_padding_and_no_order():
    module = network()
    expected = np.asarray(loss_of(module, BAGS, MASK))
    order = np.random.default_rng(1).permutation(9)
    again = loss_of(module, BAGS[:, order], MASK[:, order])
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-6)
    longer = np.pad(BAGS, ((0, 0), (0, 30), (0, 0)), constant_values=np.nan)
    padded = loss_of(module, longer, np.pad(MASK, ((0, 0), (0, 30))))
    np.testing.assert_allclose(padded, expected, rtol=1e-6, atol=1e-6)
    alone = loss_of(module, BAGS[1:2, :3], None)
    np.testing.assert_allclose(alone, expected[1:2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["clam", "dsmil"])
def test_gradients_of_own_losses_are_finite(method):
    module = network(method, **({"separate_losses": 1} if method == "dsmil" else {"subtyping": 1}))
    params = VARIABLES["params"]
    if method == "dsmil":
        params = parameters.draw(module, BAGS)["params"]
    bags = np.where(MASK[..., None], BAGS, np.nan)
    total = jax.jit(jax.grad(lambda params: jnp.sum(loss_of(module, bags, MASK, params))))
    leaves = jax.tree.leaves_with_path(total(params))
    assert all(np.isfinite(leaf).all() for _, leaf in leaves)
    assert all(np.abs(leaf).max() > 0 for path, leaf in leaves if "score" not in str(path[-2:]))


def test_the_extremes_are_no_more_than_half_of_a_bag():
    scores = jnp.array([[0.3, 0.1, 0.2, 9.0], [5.0, 4.0, 3.0, 2.0]])
    mask = jnp.array([[True, True, True, False], [True] * 4])
    extremes = clustering.find_extremes(scores, mask, 2)
    real = np.asarray(extremes.real)
    np.testing.assert_array_equal(real, [[True, False, True, False], [True] * 4])
    np.testing.assert_array_equal(np.asarray(extremes.places)[0][real[0]], [0, 1])
    np.testing.assert_array_equal(extremes.places[1], [0, 1, 3, 2])
    assert clustering.find_extremes(scores, None, 8).places.shape == (2, 8)


def test_the_smooth_svm_loss_by_hand():
    scores = jnp.array([0.0, 0.0])
    np.testing.assert_allclose(losses.smooth_svm_losses(scores, 1, 1), np.log(1 + np.e), rtol=1e-6)
    scores = jnp.array([2.0, -1.0, 0.5])
    entropies = losses.smooth_svm_losses(scores, 0, 1)  # without a margin it is the cross-entropy
    np.testing.assert_allclose(entropies, -jax.nn.log_softmax(scores), rtol=1e-6)
    hinge = losses.smooth_svm_losses(scores, 1, 1e-3)  # without a temperature it is the hinge loss
    np.testing.assert_allclose(hinge, [0, 4, 2.5], atol=1e-5)
    huge = jnp.array([1e30, -1e30])
    np.testing.assert_allclose(losses.smooth_svm_losses(huge, 1, 1), [0, 2e30], rtol=1e-6)


def test_the_label_chooses_the_loss_of_a_bag():
    module = mil.BagNetwork(2, hidden=(2,))
    outputs = jax.jit(module.apply)(parameters.draw(module, BAGS[:2]), BAGS[:2])
    own = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    chosen = bag_loss(outputs, jnp.array([1, 0]), MASK[:2], None, "sum", label_losses=own)
    np.testing.assert_array_equal(chosen, [2, 3])
    wrong = losses.loss_of_label(own, jnp.array([2, -1]))
    assert np.isnan(wrong).all()


def test_critical_attention_by_hand():
    logits = jnp.array([[[0.0, 5.0], [1.0, 2.0], [9.0, 9.0]]])
    queries = jnp.array([[[1.0, 0.0], [0.0, 2.0], [7.0, 7.0]]])
    mask = jnp.array([[True, True, False]])
    # Class 0 has instance 1, with the products 0 and 4; class 1 has instance 0, with 1 and 0.
    expected = [[*softmax([0, 4]), 0], [*softmax([1, 0]), 0]]
    attention = dual_stream.critical_attention(queries, logits, mask)
    np.testing.assert_allclose(attention[0], expected, rtol=1e-6)
    cooler = dual_stream.critical_attention(queries, logits, mask, temperature=2.0)
    np.testing.assert_allclose(cooler[0, 0, :2], softmax([0, 2]), rtol=1e-6)


def test_dsmil_trains_each_stream_where_asked():
    plain = BagNetwork(2, "dsmil", hidden=(WIDTH,))
    variables = parameters.draw(plain, BAGS)
    apply = jax.jit(functools.partial(plain.apply, mutable=[SUPERVISION]))
    out, sown = apply(variables, BAGS)
    assert not sown
    module = dataclasses.replace(plain, options=(("separate_losses", 1),))
    own = loss_of(module, BAGS, None, variables["params"])
    first = np.asarray(out.patch_logits).max(axis=1)
    streams = [first, 2 * np.asarray(out.logits) - first]  # whose mean is predicted
    expected = [logsumexp(one, axis=1, keepdims=True) - one for one in streams]
    np.testing.assert_allclose(own, np.mean(expected, axis=0), rtol=1e-4, atol=1e-5)


def test_options_are_numbers_of_their_method():
    assert parse_assignments("") == {}
    assert parse_assignments("clam.clustered=4, my.code:POOL.t=2,clam.margin=0") == {
        "clam": {"clustered": 4, "margin": 0},
        "my.code:POOL": {"t": 2},
    }
    for text in ("clam", "clam.clustered", "clam.clustered=x", "clustered=4", "clam.margin=nan"):
        assert parse_assignments(text) is None
    config = config_lib.default_config()
    config.model.method_options = "clam.clustered=4"
    options = config_lib.resolve(config)
    assert cross_validation.classifier("clam", options).options == {"clustered": 4}
    assert cross_validation.classifier("dsmil", options).options is None
    network = cross_validation.classifier("clam", options).network(2)
    assert network.options == (("clustered", 4),) and network.widths == (512,)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("clan.clustered=4", "the method in config.model.method_options is 'clan', but must be"),
        (
            "clam.clusters=4",
            "option 'clusters' of clam must be one of: attention_hidden, clustered",
        ),
        ("clam.clustered=0", "'clustered' of clam is 0.0, but must be a whole number, at least 1"),
        ("clam.bag_weight=2", "'bag_weight' of clam is 2.0, but must be a number from 0 to 1"),
        ("mean.x=1", "option 'x' of mean must be left out: it has none"),
        ("mi_svm.x=1", "option 'x' of mi_svm must be left out: it has none"),
    ],
)
def test_options_that_cannot_be_are_refused(text, sentence):
    config = config_lib.default_config()
    config.model.method_options = text
    with pytest.raises(UserError, match=sentence):
        cross_validation.check_options(config_lib.resolve(config))


def test_options_of_a_classifier_are_checked():
    for options, sentence in (
        ({"query": 2.5}, "'query' of dsmil is 2.5, but must be a whole number, at least 1"),
        ({"query": True}, "'query' of dsmil is True"),
        ([("query", 2)], "but must be None or a dictionary of numbers by name"),
    ):
        with pytest.raises(UserError, match=sentence):
            NetworkClassifier(method="dsmil", options=options).network(2)


@pytest.mark.slow
def test_a_model_with_options_is_read_as_written(tmp_path):
    bags, labels = tiny_bags.toy(8)
    options = {"clustered": 1, "attention_hidden": 3}
    own = {"settings": Settings(epochs=1), "hidden": (4,), "options": options}
    method = NetworkClassifier(method="clam", **own).fit(bags, labels)
    method.save(tmp_path / "model")
    loaded = mil.load(tmp_path / "model")
    assert loaded.options == options
    np.testing.assert_array_equal(loaded.predict_proba(bags), method.predict_proba(bags))


def summary(method, accuracy):
    return report.Summary(
        dataset="fox",
        method=method,
        rule="final",
        folds=2,
        accuracy=accuracy,
        over_folds=0.1,
        over_repeats=0.01,
        auc=0.5,
        seconds=1.0,
        accuracies=(accuracy, accuracy),
        settings={},
        epochs={},
        benchmark="fox",
    )


def test_baselines_are_no_rows_of_the_papers_table():
    later = [name for name in methods.NAMES if name not in methods.PAPER_NAMES]
    assert later == ["mean", "instance_max", "clam", "dsmil", "transmil"]
    assert methods.NAMES == (*methods.PAPER_NAMES, *later) and len(methods.PAPER_NAMES) == 14
    assert methods.expand_names(["paper", "clam", "mi_net"]) == (*methods.PAPER_NAMES, "clam")
    assert methods.expand_names(["all"]) == methods.NAMES
    text = paper_table.markdown([summary("clam", 0.6), summary("mi_net", 0.7)])
    first, second = text.split("Baselines that are no rows of the paper:")
    assert "| mi-Net | 0.700 (0.010) / 0.613 |" in first and "CLAM" not in first
    assert "| CLAM-SB | 0.600 (0.010) / - |" in second and "mi-Net |" not in second
    for name in later:
        assert methods.get(name).paper == () and methods.get(name).title != name

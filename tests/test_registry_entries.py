"""Entries of the registries of data sets, bags, methods, explainers and metrics: no two do the same."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax import models
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.data.bags import benchmarks, sources
from lossattn_jax.data.specs import DATASETS
from lossattn_jax.evaluate.metric_registry import (
    EVALUATION_METRICS,
    evaluation_metrics,
    evaluation_sums,
    ranking_metrics,
)
from lossattn_jax.explain import explainers
from lossattn_jax.explain.explainers import EXPLAINERS, Relevance
from lossattn_jax.explain.metrics import faithfulness, metric_registry
from lossattn_jax.explain.metrics.maps import Maps, Protocol
from lossattn_jax.explain.metrics.metric_registry import METRICS
from lossattn_jax.mil.bag_metrics import BAG_METRICS
from lossattn_jax.mil.methods import METHODS
from lossattn_jax.models.bag_networks import BagNetwork
from tests.support import parameters, tiny_bags

SIDE = 32


def refuse_same(results):
    """Fails where two of some named arrays are equal but for rounding."""
    for (name, one), (other, two) in itertools.combinations(results.items(), 2):
        one, two = (np.asarray(array, np.float64) for array in (one, two))
        same = one.shape == two.shape and np.allclose(one, two, rtol=1e-5, atol=1e-7)
        assert not same, f"{name} and {other} are the same"


def test_no_two_entries_that_are_equal_are_missed():
    with pytest.raises(AssertionError, match="a and b are the same"):
        refuse_same({"a": [1.0, 2.0], "c": [1.0], "b": [1.0, 2.0]})


def test_no_two_data_sets_read_the_same():
    assert len({spec.tfds_name for spec in DATASETS.values()}) == len(DATASETS)
    nameless = {
        dataclasses.replace(spec, name="", builder="", builder_class="", extra_builder="")
        for spec in DATASETS.values()
    }
    assert len(nameless) == len(DATASETS)
    for name, spec in DATASETS.items():
        assert spec.name == spec.key == name


def test_no_two_sources_have_the_same_bags():
    known = [(one.lengths, one.exact, one.moments) for one in benchmarks.BENCHMARKS.values()]
    assert len(set(known)) == len(known)
    # The others are what they are made by; a name alone makes no other bags.
    others = [
        source for name, source in sources.SOURCES.items() if name not in benchmarks.BENCHMARKS
    ]
    nameless = {dataclasses.replace(source, name="") for source in others}
    assert len(nameless) == len(others) == len(sources.SOURCES) - len(known)
    assert len({dataclasses.replace(others[0], name=name) for name in ("", "twin")}) == 2


def test_no_two_classical_methods_predict_the_same():
    bags, labels = tiny_bags.toy(12, shift=1.0)
    others, _ = tiny_bags.toy(9, seed=1, shift=1.0)
    results = {}
    for name in tiny_bags.CLASSICAL:
        method = METHODS[name].make(positive="yes", **tiny_bags.settings(name)).fit(bags, labels)
        scores = method.instance_scores(others)
        results[name] = np.concatenate([method.predict_proba(others)[:, 1], *scores])
    refuse_same(results)


@pytest.mark.slow
def test_no_two_networks_predict_the_same():
    bags = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    results = {}
    for name, method in METHODS.items():
        if method.network is not None:
            network = BagNetwork(method=method.network, hidden=(8, 8, 8))
            outputs = jax.jit(network.apply)(parameters.draw(network, bags), bags)
            results[name] = jnp.concatenate([outputs.logits, outputs.attention], axis=1)
    assert results
    refuse_same(results)


@pytest.fixture(scope="module")
def network():
    model = models.build("small", num_classes=3, width=0.1)
    images = np.random.default_rng(1).standard_normal((2, SIDE, SIDE, 3)).astype(np.float32)
    return model, parameters.draw(model, images), images


def explained(name, network, seed=0):
    model, variables, images = network
    explain = explainers.make(name, model, images.shape[1:])
    keys = jax.random.split(jax.random.key(seed), len(images))
    return jax.jit(explain)(variables, images, jnp.array([0, 2]), keys)


@pytest.mark.slow
def test_no_two_explainers_give_the_same_maps(network):
    found = {name: explained(name, network) for name in EXPLAINERS}
    refuse_same({name: one.pixels / np.abs(one.pixels).max() for name, one in found.items()})
    refuse_same({name: one.patches / np.abs(one.patches).max() for name, one in found.items()})
    subject = explainers.Subject(network[0], (SIDE, SIDE, 3))
    for name, spec in EXPLAINERS.items():
        again = explained(name, network, seed=1).pixels
        assert spec.uses_randomness != np.allclose(found[name].pixels, again, rtol=1e-5)
        of_patches = subject.from_patches(found[name].patches).pixels
        assert spec.of_patches == np.allclose(found[name].pixels, of_patches, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_an_entry_says_whether_it_uses_gradients(network, monkeypatch, name):
    def grad(*_, **__):
        raise RuntimeError("a gradient")

    monkeypatch.setattr(jax, "grad", grad)
    model, variables, images = network
    explain = explainers.make(name, model, images.shape[1:])
    keys = jax.random.split(jax.random.key(0), len(images))
    call = (explain, variables, images, jnp.array([0, 2]), keys)
    if EXPLAINERS[name].uses_gradients:
        with pytest.raises(RuntimeError, match="a gradient"):
            jax.eval_shape(*call)
    else:
        jax.eval_shape(*call)


def made_up_maps(grid):
    random = np.random.default_rng(2)
    weights = random.standard_normal((SIDE * SIDE * 3, 4)).astype(np.float32) / 30

    def relevance():
        pixels = random.uniform(0, 1, (5, SIDE, SIDE)).astype(np.float32)
        patches = random.uniform(0, 1, (5, grid.patches))
        return Relevance(jnp.asarray(patches, jnp.float32), jnp.asarray(pixels))

    low = random.uniform(0, 0.4, (5, 2))
    return Maps(
        predict=lambda images: jax.nn.softmax(images.reshape(len(images), -1) @ weights),
        images=jnp.asarray(random.standard_normal((5, SIDE, SIDE, 3)), jnp.float32),
        classes=jnp.array([0, 1, 2, 3, 0]),
        keys=jax.random.split(jax.random.key(0), 5),
        relevance=relevance(),
        after_shift=relevance(),
        after_randomisation={stage: relevance() for stage in ("classifier", "head", "backbone")},
        protocol=Protocol(steps=4, road_shares=(0.3,), patch_threshold=0.7),
        cells=faithfulness.cells(grid, (SIDE, SIDE)),
        centres=jnp.asarray(grid.centres()),
        patch_boxes=jnp.asarray(grid.boxes()),
        boxes=jnp.asarray(np.concatenate([low, low + 0.5], axis=1), jnp.float32),
    )


@pytest.mark.slow
def test_no_two_metrics_of_explanations_measure_the_same(network):
    maps = made_up_maps(network[0].patch_grid((SIDE, SIDE, 3)))

    def measure():
        values = [metric_registry.measure(METRICS, maps, boxes=boxes) for boxes in (False, True)]
        return values[0] | values[1]

    measured = jax.jit(measure)()
    refuse_same(measured)
    for name, metric in METRICS.items():
        made_of_others = metric.needs_curves or metric.needs_ranking or metric.of_machine
        assert (name in measured) != made_of_others


def test_no_two_metrics_of_evaluations_measure_the_same():
    random = np.random.default_rng(11)
    arrays = (random.standard_normal(shape) for shape in ((50, 7), (50, 6, 7)))
    outputs = Outputs(*map(jnp.asarray, arrays), jnp.asarray(random.dirichlet(np.ones(6), 50)))
    labels, several = random.integers(0, 7, 50), random.integers(0, 2, (50, 7), np.uint8)
    low = random.uniform(0, 0.3, (50, 2))
    others = (jnp.ones(50), jnp.asarray(random.uniform(0, 1, (6, 2))))
    boxes = jnp.asarray(np.concatenate([low, low + 0.7], axis=1))
    sums = jax.jit(evaluation_sums, static_argnames="kind")
    single = evaluation_metrics(sums(outputs, labels, *others, boxes))
    multiple = evaluation_metrics(sums(outputs, several, *others, boxes, "sigmoid"))
    multiple |= ranking_metrics(np.asarray(outputs.logits), several > 0)
    for measured in (single, multiple):
        del measured["num_examples"]
        assert measured.keys() <= EVALUATION_METRICS.keys()
        refuse_same(measured)
    assert single.keys() | multiple.keys() == EVALUATION_METRICS.keys()


def test_no_two_metrics_of_bags_measure_the_same():
    random = np.random.default_rng(4)
    labels, probabilities = random.integers(0, 3, 50), random.dirichlet(np.ones(3), 50)
    refuse_same(
        {
            name: metric.compute(labels, probabilities, None)[:1]
            for name, metric in BAG_METRICS.items()
        }
    )

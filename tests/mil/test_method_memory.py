"""Memory of classical methods: large bags in blocks, and estimates that refuse what would not fit."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import rbf_kernel

from lossattn_jax.data.bags import splits
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.sources import Experiment
from lossattn_jax.errors import UserError
from lossattn_jax.kernels import cpu
from lossattn_jax.mil import bag_kernels, method_memory, methods
from lossattn_jax.mil.bag_kernels import Similarities, graph_weights, set_weights

BAG = np.random.default_rng(0).standard_normal((50, 3))


@pytest.mark.parametrize("weights", [set_weights, graph_weights])
@pytest.mark.parametrize("values", [1, 100, 350, 2500])
def test_weights_of_a_large_bag_are_found_in_blocks(monkeypatch, weights, values):
    expected = weights([rbf_kernel(BAG, gamma=0.3)])
    monkeypatch.setattr(bag_kernels, "_WHOLE", 49)
    monkeypatch.setattr(bag_kernels, "_BLOCK_VALUES", values)
    blocks = list(Similarities(BAG, 0.3))
    assert len(blocks) == -(-50 // max(1, values // 50)) and sum(map(len, blocks)) == 50
    np.testing.assert_allclose(weights(Similarities(BAG, 0.3)), expected, rtol=1e-13)


def test_smaller_bags_have_the_weights_of_before():
    similarity = rbf_kernel(BAG, gamma=0.3)
    expected = np.full(50, 1 / np.sqrt(similarity.sum()))
    np.testing.assert_array_equal(set_weights(Similarities(BAG, 0.3)), expected)
    own = np.eye(50, dtype=bool)
    joined = own | (similarity > similarity[~own].mean())
    expected = (1 / joined.sum(axis=1)) / (1 / joined.sum(axis=1)).sum()
    np.testing.assert_array_equal(graph_weights(Similarities(BAG, 0.3)), expected)


def experiment_of(lengths):
    bags = [np.zeros((length, 1), np.float32) for length in lengths]
    dataset = BagDataset.from_bags(bags, np.arange(len(bags)) % 2, name="own")
    return Experiment(dataset, splits.cross_validation(dataset, 2, 1, seed=0))


@pytest.mark.parametrize(
    ("method", "gibibytes"), [("mi_svm", "76.1"), ("mi_svm_bag", "150.6"), ("mi_kernel", "1.5")]
)
def test_what_would_not_fit_is_refused_before_the_first_fold(monkeypatch, method, gibibytes):
    monkeypatch.setattr(cpu, "free_memory", lambda: 1 << 30)
    sentence = (
        f"{methods.get(method).title} on own needs about {gibibytes} GiB of memory for the 100020 instances "
        r"that a fold is trained on \(the largest bag, '0', has 100000\), but 1.0 GiB are free"
    )
    with pytest.raises(UserError, match=sentence):
        method_memory.refuse_too_large(experiment_of([100_000, 20, 20, 20]), method)


@pytest.mark.parametrize("method", methods.NAMES)
def test_what_fits_or_cannot_be_known_is_not_refused(monkeypatch, method):
    few = experiment_of([5, 3, 2, 2])
    monkeypatch.setattr(cpu, "free_memory", lambda: 2 << 30)
    method_memory.refuse_too_large(few, method)
    monkeypatch.setattr(cpu, "free_memory", lambda: None)
    method_memory.refuse_too_large(experiment_of([100_000, 20, 20, 20]), method)


def test_free_memory_is_known_on_linux():
    free = cpu.free_memory()
    assert free is None or 0 <= free < 1 << 50

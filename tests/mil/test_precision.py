"""Offsets and sizes of features change nothing: moments in float64, and networks after them in float32."""

from fractions import Fraction

import numpy as np
import pytest

from lossattn_jax.data.bags import precision
from lossattn_jax.data.bags.bag_files import read_csv, write_csv
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.precision import standardisation
from lossattn_jax.errors import UserError
from lossattn_jax.mil import methods
from lossattn_jax.mil.network_classifier import NetworkClassifier
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train.bags import training
from lossattn_jax.train.bags.settings import Settings

RANDOM = np.random.default_rng(0)
LABELS = np.arange(16) % 2
BAGS = [RANDOM.normal(label, 0.5, (2, 2)) for n, label in enumerate(LABELS)]
# Offset and size of a feature.
FORMS = [(1.7e9, 1), (-1e7, 1), (1e12, 100), (1.7e9, 1e-3), (0, 1e-30), (0, 1e-42), (0, 1e37)]
SETTINGS = Settings(epochs=8, learning_rate=0.05, max_waste=3.0)


def changed(offset, size, dtype=np.float64):
    return [(bag * [size, 1] + [offset, 0]).astype(dtype) for bag in BAGS]


@pytest.mark.parametrize(
    ("mean", "spread", "expected"),
    [
        (0.0, 1.0, True),
        (800.0, 1.0, True),  # 800 * 2**-23 = 0.95e-4
        (-850.0, 1.0, False),
        (1.7e9, 1.0, False),
        (1.7e9, 0.0, True),
        (0.0, 1e-31, False),
        (0.0, 1e31, False),
    ],
)
def test_what_survives_float32(mean, spread, expected):
    assert precision.survives(np.float64(mean), np.float64(spread)) == expected


@pytest.mark.parametrize("form", FORMS)
def test_moments_are_exact(form):
    values = np.concatenate(changed(*form))
    exact = [[Fraction(x) for x in column] for column in values.T.tolist()]
    means = [sum(column) / len(column) for column in exact]
    variances = [
        sum((x - mean) ** 2 for x in column) / len(column)
        for column, mean in zip(exact, means, strict=True)
    ]
    # The mean of large values may be rounded, but not the spread about it.
    roots = [float(mean) for mean in means]
    spreads = [float(v * 10**100) ** 0.5 / 1e50 for v in variances]
    for found in (precision.moments(values), standardisation(values)):
        np.testing.assert_allclose(found[0], roots, rtol=1e-14, atol=1e-50)
        np.testing.assert_allclose(found[1], spreads, rtol=1e-6)


def test_moments_of_blocks_are_those_of_all(monkeypatch):
    values = np.concatenate(changed(1e6, 1)).repeat(5, axis=1)
    whole = precision.moments(values)
    monkeypatch.setattr(precision, "_BLOCK", 3 * len(values))
    np.testing.assert_array_equal(precision.moments(values), whole)


def test_data_stay_float32_where_that_will_do():
    kept = BagDataset.from_bags(BAGS, LABELS)
    assert kept.instances.dtype == np.float32
    np.testing.assert_array_equal(kept.instances, np.concatenate(BAGS).astype(np.float32))
    constant = BagDataset.from_bags([np.full((2, 1), 1.7e9 + n * 0) for n in range(4)], [0, 1] * 2)
    assert constant.instances.dtype == np.float32
    whole = BagDataset.from_bags([np.arange(6, dtype=np.uint8).reshape(3, 2)] * 2, [0, 1])
    assert whole.instances.dtype == np.float32


@pytest.mark.parametrize("form", FORMS[:-1])
def test_other_data_stay_float64(form):
    bags = changed(*form)
    dataset = BagDataset.from_bags(bags, LABELS)
    assert dataset.instances.dtype == np.float64
    np.testing.assert_array_equal(dataset.instances, np.concatenate(bags))
    # One bag alone: the decision is that of all bags.
    part = dataset.select([0])
    assert part.instances.dtype == np.float64 and part.bags[0].base is part.instances
    np.testing.assert_array_equal(dataset.pad([1], 4).instances[0, :2], bags[1])


def test_integers_of_64_bits_keep_their_digits():
    bags = [np.array([[1_700_000_000 + n]]) for n in range(4)]
    dataset = BagDataset.from_bags(bags, [0, 0, 1, 1])
    np.testing.assert_array_equal(dataset.instances[:, 0] - 1.7e9, [0, 1, 2, 3])


@pytest.mark.parametrize("value", [1e39, -1e200, np.inf, np.nan])
def test_values_that_float32_lacks_are_refused(value):
    with pytest.raises(UserError, match="bag '1' of some holds a value that is not finite"):
        BagDataset.from_bags([[[1.7e9]], [[value]], [[1.7e9 + 1]]], [0, 1, 1], name="some")
    if abs(value) < np.inf:
        with pytest.raises(
            UserError, match=r"a feature of the size 1e\+.*, but values must be fin"
        ):
            standardisation(np.array([[1.0], [value]]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["mi_svm", "mi_svm_bag", "mi_kernel"])
def test_classical_methods_see_through_offset_and_size(name, form):
    plain = methods.make(name).fit(BAGS, LABELS).predict_proba(BAGS)
    found = methods.make(name).fit(changed(*form), LABELS).predict_proba(changed(*form))
    np.testing.assert_allclose(found, plain, atol=2e-3)


def trained(dataset, standardise=True):
    everything = np.ones(len(dataset), bool)
    plans = [training.Plan(3, everything, everything) for _ in range(2)]
    plans[1] = training.Plan(3, np.arange(len(dataset)) > 3, everything)
    network = BagNetwork(2, hidden=(8, 8, 8), dropout=0.0)
    result = training.train(dataset, network, SETTINGS, plans, standardise=standardise)
    said = training.predict(
        dataset.select(everything),
        network,
        SETTINGS,
        result.last,
        result.mean,
        result.scale,
        predict_mask=np.ones((2, len(dataset)), bool),
    )
    return result, said


def test_networks_see_through_offset_and_size(caplog):
    plain, said = trained(BagDataset.from_bags(BAGS, LABELS))
    right = plain.logits[0, -1].argmax(axis=-1) == LABELS
    assert right.mean() > 0.8 and np.ptp(plain.logits[0, -1]) > 1
    for form in (FORMS[0], FORMS[5], FORMS[6]):
        result, again = trained(BagDataset.from_bags(changed(*form), LABELS))
        np.testing.assert_allclose(result.logits, plain.logits, atol=2e-3, err_msg=str(form))
        np.testing.assert_allclose(again.logits, said.logits, atol=2e-3, err_msg=str(form))
        np.testing.assert_allclose(again.attention, said.attention, atol=2e-3)
    assert not caplog.records  # without `standardise` there would be a warning


@pytest.mark.slow
def test_a_network_behind_the_interface_sees_through_an_offset():
    def probabilities(bags):
        network = NetworkClassifier(settings=SETTINGS, hidden=(4, 4, 4), dropout=0.0, seed=1)
        return network.fit(bags, LABELS).predict_proba(bags)

    found = probabilities(changed(1.7e9, 1))
    np.testing.assert_allclose(found, probabilities(BAGS), atol=2e-3)


@pytest.mark.slow
def test_without_standardisation_a_warning_and_nothing_is_moved(caplog):
    mean, scale = np.zeros((2, 1)), np.ones((2, 1))
    values = np.concatenate(changed(1.7e9, 1))
    moved, *moments = precision.in_float32(values, mean, scale)
    np.testing.assert_array_equal(moved, values.astype(np.float32))
    np.testing.assert_array_equal(moments, [mean, scale])
    names = ("time", "area")
    dataset = BagDataset.from_bags(changed(1e5, 1), LABELS, name="own", features=names)
    trained(dataset, standardise=False)
    trained(BagDataset.from_bags(BAGS, LABELS, name="fine"), standardise=False)
    assert "fine" not in caplog.text
    assert "own: the spread of the feature 'time' does not survive float32" in caplog.text


def test_features_that_survive_are_rounded_as_they_are():
    values = np.concatenate(changed(1.7e9, 1))
    mean, scale = (part[None] for part in standardisation(values))
    moved, mean32, scale32 = precision.in_float32(values, mean, scale)
    np.testing.assert_array_equal(moved[:, 1], values[:, 1].astype(np.float32))
    assert (mean32[0, 1], scale32[0, 1]) == (np.float32(mean[0, 1]), np.float32(scale[0, 1]))
    np.testing.assert_allclose(moved[:, 0], (values[:, 0] - mean[0, 0]) / scale[0, 0], rtol=1e-6)
    assert (mean32[0, 0], scale32[0, 0]) == (0, 1)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_what_float32_would_lose_is_written_in_full(tmp_path, dtype):
    bags = changed(1e4, 1, dtype)
    write_csv(BagDataset.from_bags(bags, LABELS), tmp_path / "again.csv")
    again = read_csv(tmp_path / "again.csv")
    np.testing.assert_array_equal(again.instances, np.concatenate(bags))

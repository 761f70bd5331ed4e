"""Metrics of predicted bags: by hand, by scikit-learn, and of many resamples at once."""

import math

import numpy as np
import pytest
import sklearn.metrics

from lossattn_jax.evaluate import metric_registry
from lossattn_jax.mil import bag_metrics
from lossattn_jax.mil.bag_metrics import BAG_METRICS, BagMetric, Resamples

# Predictions 0, 0, 0, 1.
TWO = ([0, 0, 1, 1], [[0.9, 0.1], [0.6, 0.4], [0.65, 0.35], [0.2, 0.8]])
# Predictions 0, 1, 0, 2.
THREE = ([0, 1, 2, 2], [[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.1, 0.1, 0.8]])

# The number of class 1, or of all classes; then of each class where it has one.
BY_HAND_OF_TWO = {
    "accuracy": [3 / 4],
    "balanced_accuracy": [(1 + 1 / 2) / 2],
    "f1": [2 / 3, 4 / 5, 2 / 3],
    "auroc": [3 / 4, 3 / 4, 3 / 4],  # of four pairs, 0.35 and 0.4 are in the wrong order
    "auprc": [5 / 6, 5 / 6, 5 / 6],  # (1 + 2/3) / 2
    "log_loss": [-math.log(0.9 * 0.6 * 0.35 * 0.8) / 4],
    "brier_score": [0.158125] * 3,  # (0.01 + 0.16 + 0.4225 + 0.04) / 4
    # In bins of 1/15: 0.9 is right; 0.6 is right and 0.65 wrong, in one bin; 0.8 is right.
    "expected_calibration_error": [(0.1 + abs(0.4 - 0.65) + 0.2) / 4],
    # Of class 1: 0.1 and 0.4 are not, 0.35 and 0.8 are. Of class 0 0.6 and 0.65 share a bin.
    "classwise_calibration_error": [
        (0.1 + 0.4 + 0.65 + 0.2) / 4,
        (0.1 + abs(0.4 - 0.65) + 0.2) / 4,
        (0.1 + 0.4 + 0.65 + 0.2) / 4,
    ],
}
BY_HAND_OF_THREE = {
    "accuracy": [3 / 4],
    "balanced_accuracy": [(1 + 1 + 1 / 2) / 3],
    "f1": [7 / 9, 2 / 3, 1, 2 / 3],
    "auroc": [(2 / 3 + 1 + 7 / 8) / 3, 2 / 3, 1, 7 / 8],
    # Class 2: 0.8; then both 0.3 at once, one of which is right: 1/2 + 2/3 / 2.
    "auprc": [(1 / 2 + 1 + 5 / 6) / 3, 1 / 2, 1, 5 / 6],
    "log_loss": [-math.log(0.5 * 0.5 * 0.3 * 0.8) / 4],
    "brier_score": [(0.66 + 0.36 + 0.66) / 12, 0.66 / 4, 0.36 / 4, 0.66 / 4],
    # 0.5 is right twice, in a bin; 0.6 wrong; 0.8 right.
    "expected_calibration_error": [(1.0 + 0.6 + 0.2) / 4],
    "classwise_calibration_error": [
        (1.4 + 1.0 + 0.8) / 12,
        (0.5 + 0.2 + 0.6 + 0.1) / 4,
        (0.5 + 0.3 + 0.2) / 4,  # twice 0.1 in one bin
        (0.2 + abs(1 - 0.6) + 0.2) / 4,  # twice 0.3 in one bin, once rightly
    ],
}


def arrays(case):
    return np.array(case[0]), np.array(case[1], np.float64)


@pytest.mark.parametrize("name", BAG_METRICS)
def test_every_metric_of_two_classes_by_hand(name):
    found = BAG_METRICS[name].compute(*arrays(TWO), 1)
    np.testing.assert_allclose(found, BY_HAND_OF_TWO[name], rtol=1e-14)


@pytest.mark.parametrize("name", BAG_METRICS)
def test_every_metric_of_three_classes_by_hand(name):
    found = BAG_METRICS[name].compute(*arrays(THREE), None)
    np.testing.assert_allclose(found, BY_HAND_OF_THREE[name], rtol=1e-14)


def test_without_a_positive_class_the_mean_is_taken():
    for name, by_hand in BY_HAND_OF_TWO.items():
        found = BAG_METRICS[name].compute(*arrays(TWO), None)
        expected = [np.mean(by_hand[1:]), *by_hand[1:]] if len(by_hand) > 1 else by_hand
        np.testing.assert_allclose(found, expected, rtol=1e-14)


def draw(count, bags=60, seed=0, digits=1):
    """Labels and probabilities with ties; the last class is rare."""
    random = np.random.default_rng(seed)
    labels = np.minimum(random.integers(0, count + 2, bags), count - 1)
    labels[:count] = np.arange(count)
    weights = np.round(random.random((bags, count)) + 0.05, digits) + 0.01
    weights[np.arange(bags), labels] += 0.3
    return labels, weights / weights.sum(axis=1, keepdims=True)


def test_scikit_learn_has_the_same_of_all_classes():
    labels, probabilities = draw(4)
    predictions = np.argmax(probabilities, axis=1)
    expected = {
        "f1": sklearn.metrics.f1_score(labels, predictions, average="macro"),
        "auroc": sklearn.metrics.roc_auc_score(labels, probabilities, multi_class="ovr"),
        "auprc": sklearn.metrics.average_precision_score(np.eye(4)[labels], probabilities),
        # Its score of several classes is the sum over them.
        "brier_score": sklearn.metrics.brier_score_loss(labels, probabilities) / 4,
        "log_loss": -np.mean(np.log(probabilities[np.arange(60), labels])),
    }
    for name, value in expected.items():
        found = BAG_METRICS[name].compute(labels, probabilities, None)[0]
        np.testing.assert_allclose(found, value, rtol=1e-12, err_msg=name)


def test_calibration_is_that_of_evaluations():
    labels, probabilities = draw(3, digits=6)
    assert bag_metrics.CALIBRATION_BINS == metric_registry.CALIBRATION_BINS
    confidence, right = probabilities.max(axis=1), np.argmax(probabilities, axis=1) == labels
    gaps = np.stack([confidence, confidence - right], axis=1).astype(np.float32)
    sums = metric_registry._add_gaps(gaps, np.ones(60, np.float32))
    expected = metric_registry._expected_calibration_error(sums)
    found = BAG_METRICS["expected_calibration_error"].compute(labels, probabilities, None)
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", BAG_METRICS)
def test_resamples_have_what_a_loop_has(name, count):
    """Also where a class is missing, and where the bags of a resample are few."""
    labels, probabilities = draw(count, bags=25)
    random = np.random.default_rng(1)
    counts = random.poisson(0.1, (300, 25)).astype(np.float64)
    counts = counts[counts.sum(axis=1) > 0]
    metric = BAG_METRICS[name]
    positive = 1 if count == 2 else None
    found = metric.compute_resamples(Resamples(labels, probabilities, counts), positive)
    rows = [np.repeat(np.arange(25), own.astype(int)) for own in counts]
    expected = [metric.compute(labels[own], probabilities[own], positive) for own in rows]
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-12, atol=1e-15)
    if metric.needs is not None:
        missing = np.isnan(found[:, 0])
        assert 0 < missing.sum() < len(counts)
        for own, is_missing in zip(rows, missing, strict=True):
            names = tuple("abc"[:count])
            whole, *each = metric.explain_undefined(labels[own], probabilities[own], names)
            reason = each[positive] if each and positive is not None else whole
            assert (reason is not None) == is_missing


def test_a_metric_without_a_form_for_resamples_is_looped():
    labels, probabilities = draw(3)
    counts = np.random.default_rng(2).integers(0, 3, (5, 60)).astype(np.float64)
    slow = BagMetric("accuracy", BAG_METRICS["accuracy"].measure, True)
    resamples = Resamples(labels, probabilities, counts)
    np.testing.assert_allclose(
        slow.compute_resamples(resamples, None),
        BAG_METRICS["accuracy"].compute_resamples(resamples, None),
        rtol=1e-14,
    )


def test_one_class_alone_has_no_areas_and_says_why():
    labels, probabilities = np.zeros(3, int), np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]])
    undefined = {}
    for name, metric in BAG_METRICS.items():
        value = metric.compute(labels, probabilities, 1)[0]
        reasons = metric.explain_undefined(labels, probabilities, ("no", "yes"))
        if np.isnan(value):
            undefined[name] = reasons
    missing = "there is no bag of yes"
    pairs = [f"there are not both bags of {names} and others" for names in ("no", "yes")]
    both = "there are not both bags of no and of yes and others"
    assert undefined == {
        "balanced_accuracy": [missing],
        "auroc": [both, *pairs],
        "auprc": [both, *pairs],
    }
    # A bag is taken for the other class, of which there is none: 0 / 1.
    assert BAG_METRICS["f1"].compute(labels, probabilities, 1).tolist() == [0.0, 4 / 5, 0.0]
    f1 = BAG_METRICS["f1"].compute(labels[:1], probabilities[:1], 1)
    assert np.isnan(f1).tolist() == [True, False, True]
    reasons = BAG_METRICS["f1"].explain_undefined(labels[:1], probabilities[:1], ("no", "yes"))
    assert reasons[2] == "no bag is, or is predicted to be, of yes" and reasons[1] is None


def test_data_of_a_single_class_have_no_metric():
    for metric in BAG_METRICS.values():
        assert np.isnan(metric.compute(np.zeros(2, int), np.ones((2, 1)), None)).all()
        reasons = metric.explain_undefined(np.zeros(2, int), np.ones((2, 1)), ("a",))
        assert set(reasons) == {"there is one class only"}


@pytest.mark.parametrize("wrong", [[[-0.5, 1.5]] * 4, [[0.2, 0.2]] * 4])
def test_what_is_no_probability_is_ranked_but_not_scored(wrong):
    labels, scores = np.array(TWO[0]), np.array(wrong)
    for metric in BAG_METRICS.values():
        value = metric.compute(labels, scores, 1)[0]
        reason = metric.explain_undefined(labels, scores, ("no", "yes"))[0]
        assert np.isnan(value) == metric.takes_probabilities
        assert (reason is not None and "are no probabilities" in reason) == np.isnan(value)


def test_rounding_of_float32_is_no_mistake():
    labels, probabilities = arrays(TWO)
    shifted = probabilities * (1 + 3e-7)
    for name, by_hand in BY_HAND_OF_TWO.items():
        found = BAG_METRICS[name].compute(labels, shifted, 1)
        np.testing.assert_allclose(found, by_hand, rtol=1e-5)
    sure = np.array([[1 + 1e-9, -1e-9], [1.0, 0.0]])
    assert BAG_METRICS["log_loss"].compute(np.zeros(2, int), sure, 1)[0] < 1e-15


def test_areas_are_of_all_digits_in_both_classes():
    """The first class's probabilities are all rounded to 0; ranked by them, all would be ties."""
    high = np.array([0.0, 1e-18, 2e-18, 3e-18])
    probabilities = np.stack([1 - high, high], axis=1)
    assert set(probabilities[:, 0]) == {1.0}
    labels = np.array([0, 1, 0, 1])
    found = BAG_METRICS["auroc"].compute(labels, probabilities, 1)
    np.testing.assert_array_equal(found, [0.75, 0.75, 0.75])
    once = Resamples(labels, probabilities, np.ones((1, 4)))
    np.testing.assert_array_equal(BAG_METRICS["auroc"].compute_resamples(once, 1), [found])


def test_a_certain_mistake_costs_what_scikit_learn_takes():
    labels, probabilities = np.array([1, 0]), np.array([[1.0, 0.0], [1.0, 0.0]])
    largest = -math.log(np.finfo(np.float64).eps)
    found = BAG_METRICS["log_loss"].compute(labels, probabilities, 1)
    np.testing.assert_allclose(found, [largest / 2], rtol=1e-12)
    once = Resamples(labels, probabilities, np.ones((1, 2)))
    np.testing.assert_allclose(BAG_METRICS["log_loss"].compute_resamples(once, 1), [found])


def test_bins_hold_their_lower_ends():
    values = np.array([0.0, 0.066, 0.067, 0.5, 0.999, 1.0])
    assert bag_metrics.calibration_bins(values).tolist() == [0, 0, 1, 7, 14, 14]

"""Instance metrics: values by hand, scikit-learn's, and what must not depend on the order of instances."""

import json
import math

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from lossattn_jax.mil.instance_metrics import (
    THRESHOLDS,
    attention_metrics,
    bag_metrics,
    json_ready,
    mean_and_spread,
    ranking,
    scale_to_highest,
    threshold_metrics,
)

# Two positive bags and a negative one: (weight, instance label).
ATTENTION = np.array([0.5, 0.3, 0.2, 0.6, 0.4, 0.75, 0.25])
LENGTHS = np.array([3, 2, 2])
OWN = np.array([1, 0, 1, 0, 2, 0, 0])
LABELS = np.array([1, 2, 0])


def random_bags(seed=0, bags=40):
    """Softmax weights that know a little of the truth: (attention, lengths, own, labels)."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 15, bags)
    labels = rng.integers(0, 3, bags)
    own = (rng.random(lengths.sum()) < 0.3) * np.repeat(labels, lengths)
    scores = np.exp(rng.normal(size=len(own)) + (own > 0))
    starts = np.cumsum(lengths) - lengths
    sums = np.repeat(np.add.reduceat(scores, starts), lengths)
    return (scores / sums).astype(np.float32), lengths, own, labels


def test_scaled_by_hand():
    nan = np.nan
    attention = [0.5, 0.25, 0.25, 0, 0, nan, nan, 0.125]
    expected = [1, 0.5, 0.5, 0, 0, nan, nan, 1]
    np.testing.assert_array_equal(scale_to_highest(attention, [3, 2, 2, 1]), expected)
    assert scale_to_highest(np.float32(attention), [3, 2, 2, 1]).dtype == np.float64
    with pytest.raises(ValueError, match="negative, but one is -0.5"):
        scale_to_highest([-0.5, 1], [2])
    with pytest.raises(ValueError, match="of bag 1 some weights are NaN"):
        scale_to_highest([1, 0.5, nan], [1, 2])
    with pytest.raises(ValueError, match="one for each of 4 instances"):
        scale_to_highest([1, 0.5, nan], [1, 3])
    with pytest.raises(ValueError, match="infinite"):
        scale_to_highest([np.inf], [1])


def test_threshold_metrics_by_hand():
    truth = [True, False, True, False, False]
    metrics = threshold_metrics([0.9, 0.7, 0.4, 0.1, 0.0], truth, [0, 0.4, 0.5, 0.8, 0.95])
    np.testing.assert_array_equal(metrics["found"], [5, 3, 2, 1, 0])
    np.testing.assert_allclose(metrics["precision"], [2 / 5, 2 / 3, 1 / 2, 1, np.nan])
    np.testing.assert_allclose(metrics["recall"], [1, 1, 1 / 2, 1 / 2, 0])
    np.testing.assert_allclose(metrics["f_score"], [4 / 7, 4 / 5, 1 / 2, 2 / 3, 0])


def test_without_true_instances_there_is_no_recall():
    metrics = threshold_metrics([0.2, 0.6], [False, False], [0.5, 0.7])
    np.testing.assert_array_equal(metrics["precision"], [0, np.nan])
    np.testing.assert_array_equal(metrics["recall"], [np.nan, np.nan])
    np.testing.assert_array_equal(metrics["f_score"], [0, np.nan])


def test_instances_without_a_weight_are_not_counted():
    with_gaps = threshold_metrics([np.nan, 0.5, np.nan, 0.2], [True, True, False, False])
    without = threshold_metrics([0.5, 0.2], [True, False])
    for name, values in without.items():
        np.testing.assert_array_equal(with_gaps[name], values)


def test_a_weight_that_rounding_put_below_the_threshold_is_found():
    low = np.nextafter(np.float32(0.1), np.float32(0))
    assert low < 0.1
    assert threshold_metrics(np.full(10, low), np.ones(10), [0.1])["found"] == 10
    assert threshold_metrics([0.0999], [True], [0.1])["found"] == 0
    weights = np.array(THRESHOLDS, np.float32)
    np.testing.assert_array_equal(
        threshold_metrics(weights, np.ones(9))["found"], [9, 8, 7, 6, 5, 4, 3, 2, 1]
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("relative", [False, True])
def test_threshold_metrics_agree_with_scikit_learn(seed, relative):
    attention, lengths, own, _ = random_bags(seed)
    weights = scale_to_highest(attention, lengths) if relative else attention
    metrics = threshold_metrics(weights, own > 0)
    for place, threshold in enumerate(THRESHOLDS):
        expected = precision_recall_fscore_support(
            own > 0, weights >= threshold, average="binary", zero_division=np.nan
        )
        for name, value in zip(("precision", "recall", "f_score"), expected, strict=False):
            np.testing.assert_allclose(metrics[name][place], value, rtol=1e-12, err_msg=name)


def test_threshold_metrics_reject_what_does_not_fit():
    with pytest.raises(ValueError, match=r"not \(2,\), \(3,\) and \(9,\)"):
        threshold_metrics([0.1, 0.2], [True, False, True])
    with pytest.raises(ValueError, match="infinite"):
        threshold_metrics([np.inf], [True])
    with pytest.raises(ValueError, match="finite"):
        threshold_metrics([0.5], [True], [np.nan])


def test_ranking_by_hand():
    # Bag 0: its two true instances beat the other once. Bag 1: the true one is below.
    metrics = ranking(ATTENTION, LENGTHS, OWN, LABELS)
    assert metrics["bag_auc"] == pytest.approx((1 / 2 + 0) / 2)
    assert metrics["bag_auc_bags"] == metrics["pointing_bags"] == 2
    assert metrics["pointing"] == pytest.approx(1 / 2)
    # In the order .6 - .5 + .4 + .3 - .2 +: precision 1/2, 2/3 and 3/5 at the true ones.
    assert metrics["average_precision"] == pytest.approx((1 / 2 + 2 / 3 + 3 / 5) / 3)
    # The negative bag's .75 is the first, and its .25 comes before .2.
    everything = ranking(ATTENTION, LENGTHS, OWN, LABELS, over="all")
    assert everything["average_precision"] == pytest.approx((1 / 3 + 2 / 4 + 3 / 7) / 3)
    assert everything["bag_auc"] == metrics["bag_auc"]


def test_equal_weights_point_nowhere():
    metrics = ranking(np.full(4, 0.25), [4], [0, 1, 0, 0], [1])
    assert metrics["bag_auc"] == 0.5
    assert metrics["pointing"] == 0.25
    assert metrics["average_precision"] == 0.25


def test_the_bags_in_which_a_ranking_is_undefined_are_left_out():
    # All true; no true one though positive; a mixed one.
    metrics = ranking([0.5, 0.5, 1, 0.2, 0.8], [2, 1, 2], [1, 1, 0, 0, 1], [1, 1, 1])
    assert (metrics["bag_auc"], metrics["bag_auc_bags"]) == (1, 1)
    assert (metrics["pointing"], metrics["pointing_bags"]) == (1, 2)
    nothing = ranking([0.5, 0.5], [2], [0, 0], [0])
    assert math.isnan(nothing["bag_auc"]) and math.isnan(nothing["pointing"])
    assert math.isnan(nothing["average_precision"])


def test_the_area_in_bags_agrees_with_scikit_learn():
    attention, lengths, own, labels = random_bags(5)
    attention = np.round(attention, 1)  # with equal weights
    areas = [
        roc_auc_score(truth, weights)
        for weights, truth in zip(
            np.split(attention, np.cumsum(lengths)[:-1]),
            np.split(own > 0, np.cumsum(lengths)[:-1]),
            strict=True,
        )
        if 0 < truth.sum() < len(truth)
    ]
    metrics = ranking(attention, lengths, own, labels)
    assert metrics["bag_auc_bags"] == len(areas) > 10
    assert metrics["bag_auc"] == pytest.approx(np.mean(areas), rel=1e-12)


def test_attention_metrics_by_hand():
    metrics = attention_metrics(ATTENTION, LENGTHS, OWN, LABELS, thresholds=[0.35, 0.65])
    assert (metrics["bags"], metrics["instances"], metrics["true_instances"]) == (2, 5, 3)
    # At .35 .5 +, .6 - and .4 + are found. Scaled they are 1, .6 and .4 | 1 and 2/3.
    np.testing.assert_allclose(metrics["raw"]["precision"], [2 / 3, np.nan])
    np.testing.assert_allclose(metrics["raw"]["recall"], [2 / 3, 0])
    np.testing.assert_allclose(metrics["scaled"]["precision"], [3 / 5, 2 / 3])
    np.testing.assert_allclose(metrics["scaled"]["recall"], [1, 2 / 3])
    # Scaled 1 + and 1 - are equal: precisions 1/2, 2/3 and 3/5.
    expected = (1 / 2 + 2 / 3 + 3 / 5) / 3
    assert metrics["average_precision_scaled"] == pytest.approx(expected)


def test_negative_bags_lower_precision_alone():
    positive = attention_metrics(ATTENTION, LENGTHS, OWN, LABELS)
    everything = attention_metrics(ATTENTION, LENGTHS, OWN, LABELS, over="all")
    assert everything["bags"] == 3
    for kind in ("raw", "scaled"):
        np.testing.assert_array_equal(positive[kind]["recall"], everything[kind]["recall"])
    # The negative bag adds its highest weight at each threshold, and its .25 / .75 up to 0.3.
    more = everything["scaled"]["found"] - positive["scaled"]["found"]
    np.testing.assert_array_equal(more, [2, 2, 2, 1, 1, 1, 1, 1, 1])


def test_rows_and_missing_bags():
    attention, lengths, own, labels = random_bags(2)
    asked = np.random.default_rng(0).random(len(lengths)) < 0.5
    gaps = np.where(np.repeat(asked, lengths), attention, np.nan)
    within = np.repeat(asked, lengths)
    alone = attention_metrics(attention[within], lengths[asked], own[within], labels[asked])
    np.testing.assert_equal(attention_metrics(gaps, lengths, own, labels), alone)
    for rows in (asked, np.flatnonzero(asked)):
        np.testing.assert_equal(
            attention_metrics(attention, lengths, own, labels, rows=rows), alone
        )
    missing = int(np.flatnonzero(~asked)[0])
    with pytest.raises(ValueError, match=f"bag {missing} is to be counted, but was not asked"):
        attention_metrics(gaps, lengths, own, labels, rows=[missing])
    assert attention_metrics(attention, lengths, own, labels, rows=[])["bags"] == 0


def test_the_order_of_bags_and_instances_does_not_matter():
    attention, lengths, own, labels = random_bags(3)
    rng = np.random.default_rng(1)
    bags = np.split(np.arange(len(own)), np.cumsum(lengths)[:-1])
    order = rng.permutation(len(bags))
    places = np.concatenate([rng.permutation(bags[row]) for row in order])
    shuffled = attention_metrics(attention[places], lengths[order], own[places], labels[order])
    straight = attention_metrics(attention, lengths, own, labels)
    assert shuffled.keys() == straight.keys()
    for name, value in straight.items():
        np.testing.assert_allclose(
            *(
                [x[part] for part in x] if isinstance(x, dict) else x
                for x in (shuffled[name], value)
            ),
            rtol=1e-12,
            err_msg=name,
        )
    np.testing.assert_array_equal(
        scale_to_highest(attention[places], lengths[order]),
        scale_to_highest(attention, lengths)[places],
    )


def test_attention_metrics_reject_what_does_not_fit():
    with pytest.raises(ValueError, match="over is 'negative'"):
        attention_metrics(ATTENTION, LENGTHS, OWN, LABELS, over="negative")
    with pytest.raises(ValueError, match="instance labels and labels"):
        attention_metrics(ATTENTION, LENGTHS, OWN[:-1], LABELS)
    with pytest.raises(ValueError, match="one bool for each of 3 bags"):
        attention_metrics(ATTENTION, LENGTHS, OWN, LABELS, rows=[True, False])


def test_bag_metrics_of_two_classes_by_hand():
    # Probabilities of class 1: 1/4, 3/4, 1/2 and, not asked, one more.
    third = np.log(3)
    logits = np.array([[third, 0], [0, third], [2, 2], [np.nan, np.nan]])
    metrics = bag_metrics(logits, [0, 1, 1, 0])
    assert metrics["bags"] == 3
    assert metrics["accuracy"] == pytest.approx(2 / 3)  # of equal logits the first class is taken
    assert metrics["auc"] == 1
    assert metrics["cross_entropy"] == pytest.approx((2 * np.log(4 / 3) + np.log(2)) / 3)
    assert "auc_undefined" not in metrics
    assert bag_metrics(logits, [1, 1, 0, 0])["auc"] == 0.5


def test_probabilities_that_round_to_one_are_still_ranked():
    assert bag_metrics([[0, 50.0], [0, 60.0]], [0, 1])["auc"] == 1


def test_auc_of_several_classes_is_the_mean_of_one_against_all():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 60)
    logits = rng.normal(size=(60, 4)) + np.eye(4)[labels]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    areas = [roc_auc_score(labels == k, shares[:, k]) for k in range(4)]
    assert bag_metrics(logits, labels)["auc"] == pytest.approx(np.mean(areas), rel=1e-12)


def test_without_bags_of_a_class_there_is_no_area():
    metrics = bag_metrics(np.eye(3), [0, 1, 1])
    assert math.isnan(metrics["auc"])
    assert metrics["auc_undefined"] == "no bag has the label 2"
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    nothing = bag_metrics(np.zeros((2, 2)), [0, 1], rows=[])
    assert nothing["bags"] == 0 and math.isnan(nothing["accuracy"])
    assert nothing["auc_undefined"] == "no bag has the label 0, 1"


def test_bag_metrics_reject_what_does_not_fit():
    with pytest.raises(ValueError, match=r"not \(2, 2\) and \(3,\)"):
        bag_metrics(np.zeros((2, 2)), [0, 1, 1])
    with pytest.raises(ValueError, match="labels have to be of 0 to 1"):
        bag_metrics(np.zeros((2, 2)), [0, 2])
    with pytest.raises(ValueError, match="finite"):
        bag_metrics([[0, np.nan], [0, 1]], [0, 1])
    with pytest.raises(ValueError, match="bag 0 is to be counted"):
        bag_metrics([[np.nan, np.nan], [0, 1]], [0, 1], rows=[True, True])


def test_mean_and_spread_by_hand():
    runs = [
        {"auc": 0.5, "why": "text", "raw": {"recall": np.array([1.0, np.nan, 3.0])}},
        {"auc": np.nan, "raw": {"recall": [2.0, None, np.nan]}},
        {"auc": 0.7, "raw": {"recall": [6.0, np.nan, np.nan]}, "bags": 4},
    ]
    summary = mean_and_spread(runs)
    assert summary.keys() == {"auc", "raw", "bags"}
    assert summary["auc"]["mean"] == pytest.approx(0.6)
    assert summary["auc"]["std"] == pytest.approx(np.sqrt(0.02))
    assert summary["auc"]["runs"] == 2
    recall = summary["raw"]["recall"]
    np.testing.assert_allclose(recall["mean"], [3, np.nan, 3])
    np.testing.assert_allclose(recall["std"], [np.std([1, 2, 6], ddof=1), np.nan, np.nan])
    np.testing.assert_array_equal(recall["runs"], [3, 0, 1])
    np.testing.assert_equal(summary["bags"], {"mean": 4.0, "std": math.nan, "runs": 1})


def test_mean_and_spread_reject_what_cannot_be_summarised():
    with pytest.raises(ValueError, match="no run"):
        mean_and_spread([])
    with pytest.raises(ValueError, match="recall has different shapes"):
        mean_and_spread([{"recall": [1, 2]}, {"recall": [1, 2, 3]}])


def test_everything_can_be_written_as_json_and_read_back():
    attention, lengths, own, labels = random_bags(4)
    logits = np.random.default_rng(0).normal(size=(len(labels), 3)).astype(np.float32)
    run = attention_metrics(attention, lengths, own, labels) | bag_metrics(logits, labels)
    run["undefined"] = math.nan
    stored = json.loads(json.dumps(json_ready(run), allow_nan=False))
    assert stored["undefined"] is None
    assert stored["raw"]["found"] == run["raw"]["found"].tolist()
    direct, again = (mean_and_spread([x, x]) for x in (run, stored))
    np.testing.assert_equal(again, direct)
    json.dumps(json_ready(direct), allow_nan=False)

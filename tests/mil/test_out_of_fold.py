"""Metrics of out-of-fold predictions: repeats, groups, and what is not defined."""

import json

import numpy as np
import pytest
import sklearn.metrics

from lossattn_jax.data.bags.sources import Experiment
from lossattn_jax.files import records
from lossattn_jax.mil import bootstrap, instance_metrics, out_of_fold, report
from tests.support.predicted_bags import draw, experiment_of, folds_of

RESAMPLES = 200


def test_a_metric_is_of_all_folds_and_a_mean_of_repeats():
    labels = np.arange(14) % 2
    experiment, probabilities = experiment_of(labels), draw(labels)
    folds = folds_of(experiment, probabilities)
    found = out_of_fold.measure(experiment, folds, 0, 0)
    areas = [sklearn.metrics.roc_auc_score(labels, own[:, 1]) for own in probabilities]
    area = found["metrics"]["auroc"]
    assert area["per_repeat"] == pytest.approx(areas, rel=1e-14) and areas[0] != areas[1]
    assert area["value"] == pytest.approx(np.mean(areas), rel=1e-14)
    assert (found["repeats"], found["bags"], found["positive"]) == (2, 14, "yes")
    matrices = [
        sklearn.metrics.confusion_matrix(labels, np.argmax(own, axis=1)) for own in probabilities
    ]
    assert found["confusion"]["per_repeat"] == [matrix.tolist() for matrix in matrices]
    assert found["confusion"]["all_repeats"] == sum(matrices).tolist()
    # Folds of 5, 5 and 4 bags: the accuracy of all bags is not the mean over folds.
    right = [np.mean(np.argmax(own, axis=1) == labels) for own in probabilities]
    assert found["metrics"]["accuracy"]["value"] == np.mean(right)
    assert report.summarise(folds).accuracy != np.mean(right)


@pytest.mark.parametrize("count", [2, 3])
def test_the_area_is_that_of_the_summary(count):
    labels = np.arange(30) % count
    experiment = experiment_of(labels, folds=5 - count)
    folds = folds_of(experiment, draw(labels))
    found = out_of_fold.measure(experiment, folds, 0, 0)["metrics"]["auroc"]["value"]
    assert found == pytest.approx(report.summarise(folds).auc, rel=1e-14)


def plain_samples(experiment, probabilities, measure, resamples, units):
    """Means over repeats of a metric in each resample, one after the other; NaN where it fails."""
    labels, samples = experiment.dataset.labels, []
    for counts in np.concatenate(list(bootstrap.draw_counts(units, resamples, 5))):
        rows = [row for row in range(len(labels)) for _ in range(int(counts[row]))]
        if len(set(labels[rows])) < 2:
            samples.append(np.nan)
            continue
        samples.append(np.mean([measure(labels[rows], own[rows, 1]) for own in probabilities]))
    return np.array(samples)


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_are_those_of_a_plain_loop(grouped):
    labels = np.array([1, 1, 1, *[0] * 15])  # a resample without the first three is left out
    groups = tuple(f"g{place % 9}" for place in range(18)) if grouped else None
    experiment, probabilities = experiment_of(labels, groups=groups), draw(labels)
    found = out_of_fold.measure(experiment, folds_of(experiment, probabilities), RESAMPLES, 5)
    # Rows come fold by fold, but groups are numbered by name and bags by place.
    units = np.arange(18) % 9 if grouped else np.arange(18)
    drawn = "groups" if grouped else "bags"
    assert found["bootstrap"]["of"] == drawn
    assert found["bootstrap"][drawn] == (9 if grouped else 18)
    for name, measure in {
        "auroc": sklearn.metrics.roc_auc_score,
        "auprc": sklearn.metrics.average_precision_score,
        "balanced_accuracy": lambda labels, values: sklearn.metrics.balanced_accuracy_score(
            labels, values > 0.5
        ),
    }.items():
        samples = plain_samples(experiment, probabilities, measure, RESAMPLES, units)
        left_out = int(np.isnan(samples).sum())
        assert 0 < left_out < RESAMPLES / 2
        metric = found["metrics"][name]
        expected = np.percentile(samples[~np.isnan(samples)], [2.5, 97.5])
        np.testing.assert_allclose(metric["interval"], expected, rtol=1e-12, err_msg=name)
        assert metric["left_out"] == left_out
    assert found["metrics"]["log_loss"]["left_out"] == 0


def widths(found):
    return {
        name: np.diff(metric["interval"])[0]
        for name, metric in found["metrics"].items()
        if metric["interval"] is not None
    }


def test_copies_of_bags_make_no_interval_narrower_by_group():
    """Of ten copies of each bag: as wide as without copies by group, and about a third by bag."""
    few = np.arange(40) % 2
    labels, names = np.repeat(few, 10), np.repeat(np.arange(40), 10)
    single, probabilities = experiment_of(few, 1), draw(few, 1)
    by_group = experiment_of(labels, 1, groups=tuple(f"g{name:02d}" for name in names))
    by_bag = experiment_of(labels, 1)
    copies = probabilities[:, names]
    without, grouped, alone = (
        widths(out_of_fold.measure(one, folds_of(one, own), 1000, 0))
        for one, own in ((single, probabilities), (by_group, copies), (by_bag, copies))
    )
    for name in ("accuracy", "auroc", "log_loss", "brier_score"):
        assert grouped[name] == pytest.approx(without[name], rel=1e-9), name
        assert alone[name] < grouped[name] / 2, name


def test_the_same_bags_are_drawn_for_all_methods():
    labels = np.arange(20) % 2
    experiment = experiment_of(labels)
    first, second = (
        out_of_fold.measure(experiment, folds_of(experiment, draw(labels, seed=seed)), 100, 3)
        for seed in (0, 0)
    )
    assert first == second
    other = out_of_fold.measure(experiment, folds_of(experiment, draw(labels)), 100, 4)
    assert other["metrics"]["auroc"]["interval"] != first["metrics"]["auroc"]["interval"]
    assert other["metrics"]["auroc"]["value"] == first["metrics"]["auroc"]["value"]


def test_each_class_of_several_has_its_numbers():
    labels = np.arange(30) % 3
    experiment, probabilities = experiment_of(labels, 1, folds=4), draw(labels, 1)
    found = out_of_fold.measure(experiment, folds_of(experiment, probabilities), RESAMPLES, 0)
    for name in ("f1", "auroc", "auprc", "brier_score", "classwise_calibration_error"):
        metric = found["metrics"][name]
        assert metric["of"] == "the mean over classes" and list(metric["per_class"]) == [*"abc"]
        parts = [one["value"] for one in metric["per_class"].values()]
        assert metric["value"] == pytest.approx(np.mean(parts), rel=1e-14)
        assert all(one["interval"][0] < one["interval"][1] for one in metric["per_class"].values())
    assert "per_class" not in found["metrics"]["accuracy"]


def test_a_class_that_one_repeat_lacks_is_no_number():
    """Repeats that test different bags, as of a user's own splits."""
    labels = np.array([0, 0, 1, 1, 0, 0])
    experiment, probabilities = experiment_of(labels), draw(labels)
    splits = (experiment.splits[0], *experiment.splits[3:])  # bags 0 and 3; then all
    one = Experiment(experiment.dataset, (splits[0],))
    rest = folds_of(Experiment(experiment.dataset, splits), probabilities)
    assert out_of_fold.measure(one, rest[:1], 0, 0)["metrics"]["auroc"]["undefined"] is None
    rest[0]["bags"][1]["label"] = 0  # as if bag 3 were of the other class
    found = out_of_fold.measure(Experiment(experiment.dataset, splits), rest, RESAMPLES, 0)
    metric = found["metrics"]["auroc"]
    assert np.isnan(metric["value"]) and metric["interval"] is None
    assert metric["undefined"] == "there are not both bags of yes and others"
    assert metric["left_out"] is None and metric["no_interval"] is None
    assert np.isnan(metric["per_repeat"][0]) and np.isfinite(metric["per_repeat"][1])
    assert found["metrics"]["accuracy"]["value"] >= 0 and found["bags"] == 6


def test_no_metric_is_taken_over_the_finite_rest():
    labels = np.arange(12) % 2
    experiment, probabilities = experiment_of(labels), draw(labels)
    probabilities[1, 4] = np.nan
    found = out_of_fold.measure(experiment, folds_of(experiment, probabilities), RESAMPLES, 0)
    assert found["nonfinite"] == 1 and found["confusion"] is None
    reason = "1 predictions have probabilities that are not finite"
    for metric in found["metrics"].values():
        assert np.isnan(metric["value"]) and metric["interval"] is None
        assert np.isnan(metric["per_repeat"]).all() and metric["undefined"] == reason
        assert all(one["undefined"] == reason for one in metric.get("per_class", {}).values())
    stored = records.complete(found, {})
    assert stored["nonfinite"] == 1 and "NaN" not in json.dumps(stored)


def test_no_resamples_and_one_group_have_no_interval():
    labels = np.arange(12) % 2
    experiment = experiment_of(labels)
    none = out_of_fold.measure(experiment, folds_of(experiment, draw(labels)), 0, 0)
    metric = none["metrics"]["auroc"]
    assert metric["interval"] is None and metric["no_interval"] == "no resamples were asked for"
    assert metric["value"] > 0
    grouped = experiment_of(labels, groups=tuple("aabb" * 3), folds=2)
    first = Experiment(grouped.dataset, (grouped.splits[0],))  # tests the bags of one group
    found = out_of_fold.measure(first, folds_of(first, draw(labels)), RESAMPLES, 0)
    assert found["metrics"]["accuracy"]["no_interval"] == "one group alone cannot be resampled"


def test_instances_with_labels_are_ranked():
    labels = np.arange(6) % 2
    truth = np.array([[0, 0], [0, 1], [0, 0], [1, 0], [0, 0], [1, 1]]).ravel()
    experiment = experiment_of(labels, instance_labels=truth)
    scores = np.random.default_rng(0).normal(size=(6, 2))  # also below 0, as decisions are
    scores[1], scores[3] = [0.1, 0.3], [-0.4, -0.2]
    found = out_of_fold.measure(experiment, folds_of(experiment, draw(labels), scores), 0, 0)
    expected = instance_metrics.ranking(scores.ravel(), [2] * 6, truth, labels)
    assert expected["bag_auc"] == 0.5 and expected["bag_auc_bags"] == 2
    assert found["instances"]["per_repeat"] == [expected, expected]
    assert found["instances"]["over_repeats"]["bag_auc"] == {"mean": 0.5, "std": 0.0, "runs": 2}
    scores[0, 0] = np.nan
    assert (
        out_of_fold.measure(experiment, folds_of(experiment, draw(labels), scores), 0, 0)[
            "instances"
        ]
        is None
    )
    plain = experiment_of(labels)
    assert out_of_fold.measure(plain, folds_of(plain, draw(labels)), 0, 0)["instances"] is None

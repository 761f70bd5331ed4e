"""Evaluation metrics against hand-computed values, and their exactness under padding and splitting."""

import jax
import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from lossattn_jax import data
from lossattn_jax.evaluate import metric_registry, metrics
from lossattn_jax.models import Outputs
from lossattn_jax.registry import Registry

# Compiled as a whole: one operation after the other, each compiles for each shape.
evaluation_sums = jax.jit(metric_registry.evaluation_sums, static_argnames="kind")
CENTRES = np.array([[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]])


def hand_made():
    """Two classes, four patches, two images: the first right at 3/4, the second wrong at 3/4."""
    odds = np.log(np.array([3.0, 1.0]))
    logits = np.stack([odds, odds])
    right, wrong = odds, odds[::-1]
    patch_logits = np.stack([np.stack([right, right, right, wrong])] * 2)
    attention = np.array([[0.5, 0.5, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]])
    labels = np.array([0, 1])
    boxes = np.array([[0.0, 0.0, 0.5, 0.5], [0.5, 0.0, 1.0, 1.0]])
    return Outputs(logits, patch_logits, attention), labels, boxes


def test_metrics_by_hand():
    outputs, labels, boxes = hand_made()
    sums = evaluation_sums(outputs, labels, np.ones(2), CENTRES, boxes)
    measured = metric_registry.evaluation_metrics(sums)
    entropy = -(0.1 * np.log(0.1) + 0.2 * np.log(0.2) + 0.3 * np.log(0.3) + 0.4 * np.log(0.4))
    expected = {
        "accuracy": 0.5,
        "loss": (np.log(4 / 3) + np.log(4)) / 2,
        "patch_loss": (np.log(4 / 3) + 0.6 * np.log(4) + 0.4 * np.log(4 / 3)) / 2,
        "patch_accuracy": (3 / 4 + 1 / 4) / 2,
        "attended_patch_accuracy": (1 + 0.4) / 2,
        "attention_entropy": (np.log(2) + entropy) / 2,
        # Both are 3/4 sure and in one bin: |2 * 3/4 - 1| / 2.
        "calibration_error": 0.25,
        # The first box holds patch 0, the second patches 2 and 3.
        "attention_in_box": (0.5 + 0.7) / 2,
        "pointing_accuracy": 1.0,
        "patches_in_box": (1 / 4 + 2 / 4) / 2,
        "num_examples": 2,
    }
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        assert measured[name] == pytest.approx(value, rel=1e-5), name


def test_calibration_error_of_separate_bins():
    # Confidences 0.9 (right), 0.9 (wrong), 0.6 (right): (|1.8 - 1| + |0.6 - 1|) / 3.
    confidence = np.array([0.9, 0.9, 0.6])
    logits = np.asarray(np.log(np.stack([confidence, 1 - confidence], axis=1)), np.float32)
    outputs = Outputs(logits, np.zeros((3, 4, 2)), np.full((3, 4), 0.25))
    sums = evaluation_sums(outputs, np.array([0, 1, 0]), np.ones(3), CENTRES)
    measured = metric_registry.evaluation_metrics(sums)
    assert measured["calibration_error"] == pytest.approx(1.2 / 3, rel=1e-5)
    assert "pointing_accuracy" not in measured


def test_an_entry_is_all_that_a_metric_needs(monkeypatch):
    outputs, labels, boxes = hand_made()
    entries = {
        "highest_attention": metric_registry.EvaluationMetric(
            None, lambda predictions: predictions.outputs.attention.max(axis=-1)
        ),
        "box_height": metric_registry.EvaluationMetric(
            None,
            lambda predictions: predictions.boxes[:, 2] - predictions.boxes[:, 0],
            needs_boxes=True,
            divide=lambda mean: float(mean.total),
        ),
        "of_none": metric_registry.EvaluationMetric(None, lambda predictions: None),
        "ranked": metric_registry.EvaluationMetric(
            None, rank=lambda scores, positives: float(scores[positives].sum())
        ),
    }
    own = Registry("metric", metric_registry.EvaluationMetric, entries)
    monkeypatch.setattr(metric_registry, "EVALUATION_METRICS", own)
    sums = metric_registry.evaluation_sums(outputs, labels, np.ones(2), CENTRES, boxes)
    measured = metric_registry.evaluation_metrics(sums)
    assert measured.pop("num_examples") == 2
    assert measured == pytest.approx({"highest_attention": 0.45, "box_height": 1.0})
    sums = metric_registry.evaluation_sums(outputs, labels, np.ones(2), CENTRES)
    assert metric_registry.evaluation_metrics(sums).keys() == {"highest_attention", "num_examples"}
    scores, positives = np.array([[1.0, 2.0], [4.0, 8.0]]), np.array([[True, False], [True, True]])
    assert metric_registry.ranking_metrics(scores, positives) == {"ranked": 13.0}
    assert np.isnan(metric_registry.ranking_metrics(scores * np.nan, positives)["ranked"])


def random_batch(count):
    rng = np.random.default_rng(count)
    outputs = Outputs(
        np.asarray(rng.standard_normal((count, 5)), np.float32),
        np.asarray(rng.standard_normal((count, 4, 5)), np.float32),
        np.asarray(rng.dirichlet(np.ones(4), count), np.float32),
    )
    corners = np.sort(rng.uniform(size=(2, count, 2)), axis=0)
    boxes = np.asarray(np.concatenate(corners, axis=-1), np.float32)
    return outputs, np.asarray(rng.integers(0, 5, count)), boxes


def test_padding_and_splitting_change_nothing():
    outputs, labels, boxes = random_batch(10)
    whole = evaluation_sums(outputs, labels, np.ones(10), CENTRES, boxes)

    def part(start, stop, size):
        """Examples start to stop, padded to `size` with something that would be noticed."""
        lacking = size - (stop - start)

        def pad(x):
            return np.concatenate([x[start:stop], np.full((lacking, *x.shape[1:]), 7, x.dtype)])

        mask = np.array([1.0] * (stop - start) + [0.0] * lacking)
        padded = jax.tree.map(pad, (outputs, labels % 5, boxes))
        return evaluation_sums(padded[0], padded[1] % 5, mask, CENTRES, padded[2])

    parts = metrics.merge(part(0, 6, 6), part(6, 10, 6))
    expected, merged = (
        metric_registry.evaluation_metrics(whole),
        metric_registry.evaluation_metrics(parts),
    )
    for name, value in expected.items():
        assert merged[name] == pytest.approx(value, rel=1e-6), name


def test_labels_among_the_highest_by_hand():
    logits = np.array([[0.0, 5, 4, 3, 2, 1], [0, 5, 4, 3, 2, 1], [1, 1, 1, 1, 1, 1], [1] * 6])
    # The sixth of six is not among five; of equal ones the first classes are higher.
    among_top = metrics.hits_among_top(logits, np.array([0, 5, 4, 5]), 5)
    np.testing.assert_array_equal(among_top, [0, 1, 1, 0])
    among_top = metrics.hits_among_top(logits, np.array([1, 2, 0, 1]), 1)
    np.testing.assert_array_equal(among_top, metrics.hits(logits, np.array([1, 2, 0, 1])))
    with pytest.raises(ValueError, match="the top 7 of 6 classes is not defined: count must be"):
        metrics.hits_among_top(logits, np.array([0, 0, 0, 0]), 7)


def test_top_5_accuracy_of_padded_batches_is_scikit_learns():
    rng = np.random.default_rng(5)
    logits, labels = rng.normal(size=(23, 9)).astype(np.float32), rng.integers(0, 9, 23)
    total = None
    for start in range(0, 23, 8):
        real = len(logits[start : start + 8])
        padded = np.full((8, 9), np.nan, np.float32)
        padded[:real] = logits[start : start + 8]
        own = np.zeros(8, np.int64)
        own[:real] = labels[start : start + 8]
        outputs = Outputs(np.asarray(padded), np.zeros((8, 4, 9)), np.full((8, 4), 0.25))
        mask = np.asarray(np.arange(8) < real, np.float32)
        sums = evaluation_sums(outputs, np.asarray(own), mask, CENTRES)
        total = sums if total is None else metrics.merge(total, sums)
    expected = top_k_accuracy_score(labels, logits, k=5, labels=np.arange(9))
    measured = metric_registry.evaluation_metrics(total)["top_5_accuracy"]
    assert measured == pytest.approx(expected, rel=1e-6) and 0 < expected < 1


def test_fewer_than_five_classes_have_no_top_5_accuracy():
    for classes, there in ((4, False), (5, True)):
        outputs = Outputs(np.zeros((2, classes)), np.zeros((2, 4, classes)), np.full((2, 4), 0.25))
        sums = evaluation_sums(outputs, np.array([0, 1]), np.ones(2), CENTRES)
        assert ("top_5_accuracy" in sums) == there


def test_localised_patches_by_hand():
    # Three classes, of which the images have the first two, and the last alone.
    labels = np.array([[1, 1, 0], [0, 0, 1]])
    patch_logits = np.array(
        [
            # Of a class of the image; of another; of both; of one, but without weight.
            [[1.0, -1, -1], [-1, -1, 9], [1, 1, -1], [1, -1, -1]],
            # A half is not above a half; the class of the image; another's; the image's.
            [[-1.0, -1, 0], [-1, -1, 1], [1, 1, -1], [5, 5, 0.1]],
        ]
    )
    attention = np.array([[0.4, 0.3, 0.3, 0], [0.2, 0.2, 0.3, 0.3]])
    # In the first image patches 0 and 1 are in a box, in the second all, of two boxes.
    nothing = [1.0, 1, 0, 0]
    boxes = np.array([[[0.0, 0, 0.5, 1], nothing], [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]])
    outputs = Outputs(np.zeros((2, 3)), patch_logits, attention)

    def measure(mask):
        sums = evaluation_sums(outputs, labels, np.array(mask), CENTRES, boxes, "sigmoid")
        return metric_registry.evaluation_metrics(sums)

    # Localised are 0 and 2 of the first, of which 0 is in the box, and 1 and 3 of the second.
    measured = measure([1.0, 1.0])
    assert measured["localised_patch_precision"] == pytest.approx((1 + 2) / (2 + 2))
    assert measured["localised_patch_recall"] == pytest.approx((1 + 2) / (2 + 4))
    measured = measure([1.0, 0.0])
    assert measured["localised_patch_precision"] == pytest.approx(1 / 2)
    assert measured["localised_patch_recall"] == pytest.approx(1 / 2)


def test_images_without_a_box_do_not_count():
    outputs, labels, boxes = hand_made()
    absent = np.array([data.NO_BOX, data.NO_BOX])
    # The first image has a box among absent ones, the second none.
    several = np.stack([np.stack([absent[0], boxes[0], absent[0]]), np.stack([absent[0]] * 3)])
    both = evaluation_sums(outputs, labels, np.ones(2), CENTRES, several)
    measured = metric_registry.evaluation_metrics(both)
    one = evaluation_sums(outputs, labels, np.array([1.0, 0.0]), CENTRES, boxes)
    expected = metric_registry.evaluation_metrics(one)
    for name in ("attention_in_box", "pointing_accuracy", "patches_in_box"):
        assert measured[name] == expected[name] > 0
        assert float(both[name].count) == 1
    assert measured["num_examples"] == 2
    none = evaluation_sums(outputs, labels, np.ones(2), CENTRES, absent)
    assert metric_registry.evaluation_metrics(none)["pointing_accuracy"] == 0
    assert float(none["attention_in_box"].count) == 0
    np.testing.assert_array_equal(metrics.has_box(several), [True, False])


def test_a_centre_in_any_of_several_boxes_is_inside():
    boxes = np.array([[[0.0, 0.0, 0.5, 0.5], data.NO_BOX, [0.5, 0.5, 1.0, 1.0]]])
    inside = metrics.centres_in_boxes(CENTRES, boxes)
    np.testing.assert_array_equal(inside, [[True, False, False, True]])
    np.testing.assert_array_equal(metrics.centres_in_boxes(CENTRES, boxes[:, 1]), [[False] * 4])


def test_merging_by_hand():
    first = {"x": metrics.mean_of(np.array([1.0, 2.0]))}
    second = {"x": metrics.mean_of(np.array([9.0, 5.0]), np.array([1.0, 0.0]))}
    assert metrics.compute(metrics.merge(first, second)) == {"x": 4.0}
    assert metrics.compute({"x": metrics.mean_of(np.array([9.0]), np.zeros(1))}) == {"x": 0.0}

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from lossattn_jax.evaluate.average_precision import average_precision, mean_average_precision

# Few distinct scores, so that there are ties; one positive example at least.
RANKINGS = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=40).filter(
    lambda pairs: any(positive for _, positive in pairs)
)


def _arrays(pairs):
    scores, positives = zip(*pairs, strict=True)
    return np.array(scores, np.float64) / 8, np.array(positives)


def _points_of(scores, positives):
    """(recall, precision) of every threshold as fractions, by counting."""
    total = int(positives.sum())
    points = []
    for threshold in set(scores.tolist()):
        taken = scores >= threshold
        hits = int((taken & positives).sum())
        points.append((Fraction(hits, total), Fraction(hits, int(taken.sum()))))
    return points


def _interpolated(points, recall):
    return max(precision for reached, precision in points if reached >= recall)


def _slow(scores, positives, points):
    curve = _points_of(scores, positives)
    if points == "11":
        return float(sum(_interpolated(curve, Fraction(i, 10)) for i in range(11)) / 11)
    # Constant between two recalls that some threshold reaches: all of them are k / total.
    total = int(positives.sum())
    return float(sum(_interpolated(curve, Fraction(k, total)) for k in range(1, total + 1)) / total)


@pytest.mark.parametrize(
    ("positives", "eleven", "area"),
    [
        # Precisions 1, 1/2, 2/3, 1/2: 1 up to recall 1/2 (0 ... 0.5), then 2/3 (0.6 ... 1).
        ([1, 0, 1, 0], (6 * 1 + 5 * 2 / 3) / 11, (1 + 2 / 3) / 2),
        # Precisions 0, 1/2, 2/3, 3/4: 3/4 everywhere, since precision only rises.
        ([0, 1, 1, 1], 3 / 4, 3 / 4),
        # One positive in the third place.
        ([0, 0, 1, 0], 1 / 3, 1 / 3),
        # 1 up to 1/3 (0 ... 0.3), then max(2/4, 3/5) up to 1.
        ([1, 0, 0, 1, 1], (4 * 1 + 7 * 3 / 5) / 11, (1 + 3 / 5 + 3 / 5) / 3),
        ([1, 1, 0, 0], 1.0, 1.0),
        ([1], 1.0, 1.0),
    ],
)
def test_rankings_worked_out_by_hand(positives, eleven, area):
    scores = -np.arange(len(positives))  # already ranked
    positives = np.array(positives, bool)
    assert average_precision(scores, positives, "11") == pytest.approx(eleven, abs=1e-15)
    assert average_precision(scores, positives, "all") == pytest.approx(area, abs=1e-15)
    assert average_precision(scores, positives) == average_precision(scores, positives, "all")


def test_recalls_are_compared_exactly():
    # Of ten positives the first three come first, and then there are many negatives: the precision
    # is 1 at the recalls 0 ... 0.3, although 3 * 0.1 > 3 / 10 as floats.
    positives = np.array([1] * 3 + [0] * 90 + [1] * 7, bool)
    scores = -np.arange(100.0)
    assert average_precision(scores, positives, "11") == pytest.approx((4 + 7 * 0.1) / 11)


def test_ties_are_one_threshold():
    # The best two share a score, one of them positive: 1/2 at recall 1/2, then 2/3.
    scores = np.array([2.0, 2.0, 1.0])
    for positives in ([1, 0, 1], [0, 1, 1]):
        assert average_precision(scores, np.array(positives, bool)) == pytest.approx(2 / 3)
    # Without any difference all examples are taken at once.
    assert average_precision(np.zeros(5), np.array([1, 0, 0, 0, 0], bool)) == pytest.approx(1 / 5)
    assert average_precision(np.zeros(5), np.array([0, 0, 0, 0, 1], bool), "11") == 1 / 5


@given(RANKINGS, st.sampled_from(["11", "all"]))
@settings(deadline=None)
def test_both_kinds_agree_with_counting(pairs, points):
    scores, positives = _arrays(pairs)
    expected = _slow(scores, positives, points)
    assert average_precision(scores, positives, points) == pytest.approx(expected, abs=1e-14)


@given(RANKINGS, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_examples_does_not_matter(pairs, random):
    one = _arrays(pairs)
    random.shuffle(pairs)
    other = _arrays(pairs)
    for points in ("11", "all"):
        assert average_precision(*one, points) == average_precision(*other, points)


@given(RANKINGS)
@settings(deadline=None)
def test_the_area_lies_between_its_bounds(pairs):
    scores, positives = _arrays(pairs)
    area = average_precision(scores, positives, "all")
    eleven = average_precision(scores, positives, "11")
    # Interpolation only raises precision.
    assert average_precision_score(positives, scores) <= area + 1e-12
    # The interpolated precision never rises with recall, so the sums of its values at the ends of
    # tenths enclose the area; the eleven points are all of these ends.
    curve = _points_of(scores, positives)
    first, last = (float(_interpolated(curve, recall)) for recall in (0, 1))
    assert (11 * eleven - first) / 10 - 1e-12 <= area <= (11 * eleven - last) / 10 + 1e-12


def test_the_mean_leaves_out_classes_without_positives():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(50, 4))
    positives = rng.random((50, 4)) < 0.2
    positives[:, 2] = False
    without = np.delete(scores, 2, axis=1), np.delete(positives, 2, axis=1)
    for points in ("11", "all"):
        singles = [average_precision(scores[:, k], positives[:, k], points) for k in (0, 1, 3)]
        mean = mean_average_precision(scores, positives, points)
        assert isinstance(mean, float)
        assert mean == pytest.approx(np.mean(singles), abs=1e-15)
        assert mean_average_precision(*without, points) == mean


def test_nothing_to_find_is_nan():
    assert math.isnan(average_precision(np.arange(3.0), np.zeros(3, bool)))
    assert math.isnan(average_precision(np.zeros(0), np.zeros(0, bool)))
    for shape in ((3, 2), (0, 2)):
        assert math.isnan(mean_average_precision(np.zeros(shape), np.zeros(shape, bool)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_have_to_be_finite(bad):
    scores, positives = np.array([[0.5], [bad]]), np.array([[True], [False]])
    with pytest.raises(ValueError, match="finite"):
        mean_average_precision(scores, positives)
    with pytest.raises(ValueError, match="finite"):
        average_precision(scores[:, 0], positives[:, 0])


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        average_precision(np.zeros(3), np.ones(4, bool))
    with pytest.raises(ValueError, match="2 dimensions"):
        mean_average_precision(np.zeros(3), np.ones(3, bool))
    with pytest.raises(ValueError, match="'10'.*'11' or 'all'"):
        average_precision(np.zeros(3), np.ones(3, bool), "10")


def test_coco_takes_well_below_a_second():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(5000, 80)).astype(np.float32)
    positives = rng.random((5000, 80)) < 0.04
    started = time.process_time()
    mean_average_precision(scores, positives)
    assert time.process_time() - started < 1

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from lossattn_jax.evaluate.average_precision import (
    average_precision,
    mean_average_precision,
    published_average_precision,
    published_mean_average_precision,
)

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


@given(RANKINGS)
@settings(deadline=None)
def test_the_exact_one_is_that_of_scikit_learn(pairs):
    scores, positives = _arrays(pairs)
    expected = average_precision_score(positives, scores)
    assert average_precision(scores, positives, "exact") == pytest.approx(expected, abs=1e-12)


def _walk(positives):
    """The published precision by a walk over a ranking, with recalls in float32."""
    total, hits, ends = sum(positives), 0, []
    precision = [Fraction(0)] * len(positives)
    for rank, positive in enumerate(positives):
        if not positive:
            continue
        hits += 1
        precision[rank] = Fraction(hits, rank + 1)
        recall = np.float32(hits) * (np.float32(1) / np.float32(total))
        low, high = (np.float32(0.1 * (len(ends) + more)) for more in (0, 1))
        if low < recall < high or recall == 1:
            ends.append(rank)
    values = []
    for place in range(11):
        end = ends[place] if place < len(ends) else 0
        start = ends[place - 1] if 0 < place <= len(ends) else 0
        values.append(max(precision[start:end]) if end else precision[0])
    return float(sum(values) / 11)


@given(st.lists(st.booleans(), min_size=1, max_size=60).filter(any))
@settings(deadline=None)
def test_the_published_one_is_a_walk_over_bins(positives):
    value = published_average_precision(-np.arange(len(positives)), np.array(positives, bool))
    assert value == pytest.approx(_walk(positives), abs=1e-12)


@pytest.mark.parametrize(
    ("positives", "expected"),
    [
        # Three positives: the recall 1/3 is in no first tenth, so a bin ends at the last and ten are missing.
        ([1, 0, 1, 1], (1 + 10 * 1) / 11),
        ([0, 1, 1, 1], (2 / 3 + 10 * 0) / 11),
        # One positive: the bin before it is empty.
        ([0, 1], 0.0),
        ([1, 0], 1.0),
        ([0, 0], 0.0),
        # Eleven, after a negative one: their recalls 1/11, ..., 1 are one in each tenth, and the last
        # at 1; the bins are empty, 1/2, 2/3, ..., 10/11.
        ([0] + [1] * 11, sum(c / (c + 1) for c in range(1, 11)) / 11),
    ],
)
def test_published_rankings_worked_out_by_hand(positives, expected):
    value = published_average_precision(-np.arange(len(positives)), np.array(positives, bool))
    assert value == pytest.approx(expected, abs=1e-15)


# Of calculate_AP of the authors' utils/calculate_AP.py under PyTorch 2.13.0: examples, positive ones, values
# for three draws of `_draw`.
OF_THEIR_CODE = [
    (500, 9, (0.0227273, 0.0181818, 0.0045455)),
    (40, 15, (0.537375, 0.3117138, 0.3031141)),
    (500, 11, (0.0306783, 0.0190175, 0.0224603)),
    (200, 40, (0.1849667, 0.2206677, 0.1996898)),
    (60, 41, (0.6010871, 0.5857756, 0.5224207)),
    (60, 47, (0.6065004, 0.8977449, 0.8740095)),
    (60, 25, (0.3861581, 0.525319, 0.4218424)),
    (300, 100, (0.4901532, 0.3065946, 0.3393411)),
    (30, 2, (0.0064935, 0.030303, 0.006993)),
]


def _draw(examples, count, seed):
    """Scores without ties, and which are positive."""
    rng = np.random.default_rng([seed, examples, count])
    scores = rng.permutation(examples).astype(np.float64)
    positives = np.zeros(examples, bool)
    positives[rng.permutation(examples)[:count]] = True
    return scores, positives


@pytest.mark.parametrize(("examples", "count", "values"), OF_THEIR_CODE)
def test_published_values_are_those_of_their_code(examples, count, values):
    for seed, theirs in enumerate(values):
        # Theirs are means of float32.
        value = published_average_precision(*_draw(examples, count, seed))
        assert value == pytest.approx(theirs, abs=2e-7)


def test_the_published_mean_counts_empty_classes():
    scores, positives = _draw(60, 25, 0)
    pair = np.stack([scores, scores], axis=1), np.stack([positives, positives & False], axis=1)
    whole = published_average_precision(scores, positives)
    assert published_mean_average_precision(*pair) == whole / 2 > 0.1
    assert mean_average_precision(*pair, "11") == average_precision(scores, positives, "11")

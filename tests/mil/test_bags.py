"""Data sets of bags, and their padding: hand-computed values, all ways tried, and properties."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossattn_jax.data.bags.bags import BagDataset, bucket_lengths, padding_waste
from lossattn_jax.errors import UserError


def three_bags(**changes):
    """Bags a = [[1, 2], [3, 4]], b = [[5, 6]] and c = [[7, 8], [9, 10], [11, 12]]."""
    arguments = {
        "instances": np.arange(1, 13).reshape(6, 2),
        "lengths": [2, 1, 3],
        "labels": [1, 0, 1],
        "ids": ("a", "b", "c"),
        "classes": (-1, 1),
        "instance_labels": [0, 1, 0, 1, 1, 0],
        "name": "three",
    }
    return BagDataset(**{**arguments, **changes})


def random_bags(lengths, seed=0, shape=(2,)):
    generator = np.random.default_rng(seed)
    bags = [generator.standard_normal((length, *shape)).astype(np.float32) for length in lengths]
    own = [generator.integers(0, 2, length) for length in lengths]
    labels = [0, *(1 for _ in bags[1:])]
    return BagDataset.from_bags(bags, labels, instance_labels=own, classes=(0, 1))


def test_bags_are_parts_of_the_instances():
    dataset = three_bags()
    assert len(dataset) == 3 and dataset.num_classes == 2
    np.testing.assert_array_equal(dataset.offsets, [0, 2, 3, 6])
    np.testing.assert_array_equal(dataset.bag(1), [[5, 6]])
    np.testing.assert_array_equal(dataset.bags[2], [[7, 8], [9, 10], [11, 12]])
    assert all(bag.base is dataset.instances for bag in dataset.bags)
    types = dataset.instances, dataset.lengths, dataset.labels, dataset.instance_labels
    assert [array.dtype for array in types] == [np.float32, np.int64, np.int32, np.int32]


def test_from_bags():
    bags = [np.array([[1, 2], [3, 4]]), np.array([[5, 6]])]
    dataset = BagDataset.from_bags(bags, ["yes", "no"], instance_labels=[[1, 0], [0]], name="some")
    assert dataset.classes == ("no", "yes") and dataset.ids == ("0", "1") and dataset.name == "some"
    np.testing.assert_array_equal(dataset.labels, [1, 0])
    np.testing.assert_array_equal(dataset.instance_labels, [1, 0, 0])
    np.testing.assert_array_equal(dataset.instances, [[1, 2], [3, 4], [5, 6]])


def test_from_bags_with_a_class_that_does_not_occur():
    dataset = BagDataset.from_bags([np.zeros((1, 2))], [2], classes=[0, 1, 2])
    assert dataset.num_classes == 3 and dataset.labels[0] == 2
    with pytest.raises(UserError, match="bag '0' of bags has the label 3; allowed are 0, 1, 2"):
        BagDataset.from_bags([np.zeros((1, 2))], [3], classes=[0, 1, 2])


@pytest.mark.parametrize("rows", [[2, 0], np.array([2, 0]), [2, 0, 2], [1], [True, False, True]])
def test_select(rows):
    dataset = three_bags()
    chosen = dataset.select(rows)
    places = np.flatnonzero(rows) if isinstance(rows[0], bool) else rows
    assert chosen.ids == tuple(dataset.ids[row] for row in places)
    assert chosen.classes == dataset.classes and chosen.name == "three"
    np.testing.assert_array_equal(chosen.labels, dataset.labels[places])
    own = np.split(dataset.instance_labels, dataset.offsets[1:-1])
    np.testing.assert_array_equal(chosen.instance_labels, np.concatenate([own[r] for r in places]))
    for bag, row in zip(chosen.bags, places, strict=True):
        np.testing.assert_array_equal(bag, dataset.bag(row))


def test_padded_by_hand():
    bucket = three_bags().pad([1, 0], 3)
    np.testing.assert_array_equal(
        bucket.instances, [[[5, 6], [0, 0], [0, 0]], [[1, 2], [3, 4], [0, 0]]]
    )
    np.testing.assert_array_equal(bucket.mask, [[True, False, False], [True, True, False]])
    np.testing.assert_array_equal(bucket.instance_labels, [[0, -1, -1], [0, 1, -1]])
    np.testing.assert_array_equal(bucket.labels, [0, 1])
    np.testing.assert_array_equal(bucket.rows, [1, 0])
    with pytest.raises(UserError, match="bag 'c' of three has 3 instances, .* the length 2"):
        three_bags().pad([0, 2], 2)


def test_buckets_by_hand():
    first, second = three_bags(lengths=[1, 1, 4]).buckets(max_waste=1)
    assert first.instances.shape == (2, 1, 2) and second.instances.shape == (1, 4, 2)
    np.testing.assert_array_equal(first.rows, [0, 1])
    np.testing.assert_array_equal(second.rows, [2])
    (only,) = three_bags(lengths=[1, 1, 4]).buckets(max_waste=2)  # 12 slots for 6 instances
    assert only.instances.shape == (3, 4, 2)


def test_images_are_padded_as_well():
    dataset = random_bags([1, 3], shape=(4, 4, 1))
    (bucket,) = dataset.buckets()
    assert bucket.instances.shape == (2, 3, 4, 4, 1)
    np.testing.assert_array_equal(bucket.instances[1], dataset.bag(1))
    np.testing.assert_array_equal(bucket.instances[0, 1:], 0)


# Many equal lengths and a few long ones, as in MUSK2.
LENGTHS = st.lists(st.one_of(st.integers(1, 8), st.integers(1, 300)), min_size=1, max_size=30)
WASTES = st.sampled_from([1.0, 1.1, 1.5, 2.0, 3.0, 100.0])


@settings(max_examples=100, deadline=None)
@given(LENGTHS, WASTES)
def test_every_bag_is_in_one_bucket_within_the_waste(lengths, max_waste):
    dataset = random_bags(lengths)
    buckets = dataset.buckets(max_waste)
    rows = np.concatenate([bucket.rows for bucket in buckets])
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(lengths)))
    for bucket in buckets:
        assert bucket.mask.size <= max_waste * bucket.mask.sum()
        np.testing.assert_array_equal(bucket.labels, dataset.labels[bucket.rows])
        np.testing.assert_array_equal(bucket.instances[~bucket.mask], 0)
        np.testing.assert_array_equal(bucket.instance_labels[~bucket.mask], -1)
        for row, instances, mask in zip(bucket.rows, bucket.instances, bucket.mask, strict=True):
            np.testing.assert_array_equal(instances[mask], dataset.bag(row))
        np.testing.assert_array_equal(
            bucket.instance_labels[bucket.mask],
            dataset.select(bucket.rows).instance_labels,
        )
    tops = bucket_lengths(lengths, max_waste)
    assert tops == tuple(bucket.mask.shape[1] for bucket in buckets)
    slots = sum(bucket.mask.size for bucket in buckets)
    assert padding_waste(lengths, tops) == pytest.approx(slots / sum(lengths))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), WASTES)
def test_no_other_lengths_do_with_fewer_buckets_or_slots(lengths, max_waste):
    distinct = sorted(set(lengths))

    def cost(tops):
        groups = [[] for _ in tops]
        for length in lengths:
            groups[next(n for n, top in enumerate(tops) if length <= top)].append(length)
        slots = [top * len(group) for top, group in zip(tops, groups, strict=True)]
        fits = all(s <= max_waste * sum(g) for s, g in zip(slots, groups, strict=True))
        return (len(tops), sum(slots)) if fits else (np.inf, np.inf)

    best = min(
        cost((*some, distinct[-1]))
        for count in range(len(distinct))
        for some in itertools.combinations(distinct[:-1], count)
    )
    assert cost(bucket_lengths(lengths, max_waste)) == best


def test_few_buckets_for_lengths_like_those_of_musk2():
    lengths = np.concatenate([np.arange(1, 90), [135, 215, 383, 911, 1010, 1044]])
    tops = bucket_lengths(lengths)
    assert len(tops) <= 4 and padding_waste(lengths, tops) <= 2


@pytest.mark.parametrize("max_waste", [0.5, 0, -1, float("nan")])
def test_waste_below_one_is_refused(max_waste):
    with pytest.raises(UserError, match="max_waste is .*, but must be 1"):
        bucket_lengths([1, 2], max_waste)


def test_a_bag_that_fits_no_bucket_is_refused():
    with pytest.raises(UserError, match="a bag has 9 instances, but the longest bucket is 8"):
        padding_waste([3, 9], (4, 8))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lengths": [3, 0, 3]}, "bag 'b' of three has no instance"),
        ({"lengths": [2, 1, 4]}, "bags of three add up to 7, but the instances have the shape"),
        ({"lengths": [2, 4]}, r"three has lengths of the shape \(2,\), but .* each of 3 bags"),
        ({"instances": np.zeros(6)}, r"three add up to 6, but the instances have the shape \(6,\)"),
        ({"instances": np.diag([0, 0, np.nan, 0, 0, 0])}, "bag 'b' of three holds a value"),
        ({"instances": np.diag([0, 0, 0, 0, 0, np.inf])}, "bag 'c' of three holds a value"),
        ({"instances": np.diag([0, 1e39, 0, 0, 0, 0])}, "bag 'a' of three holds a value"),
        ({"labels": [1, 0, 2]}, "bag 'c' of three has the label 2, but must have one of 0 to 1"),
        ({"labels": [1, -1, 0]}, "bag 'b' of three has the label -1"),
        ({"labels": [1, 0]}, r"three has labels of the shape \(2,\)"),
        ({"instance_labels": [0, 1]}, r"instance labels of three have the shape \(2,\)"),
        ({"instance_labels": [0, 1, 0, 2, 0, 0]}, "bag 'c' of three has the instance label 2"),
        ({"ids": (), "lengths": [], "labels": []}, "three has no bag"),
    ],
)
def test_what_is_no_data_set_is_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        three_bags(**changes)


@pytest.mark.parametrize(
    ("bags", "labels", "own", "sentence"),
    [
        ([], [], None, "odd has no bag"),
        ([np.zeros((1, 2)), np.zeros((0, 2))], [0, 1], None, "bag '1' of odd has no instance"),
        ([np.zeros((1, 2)), np.zeros((1, 3))], [0, 1], None, r"bag '1' .* \[instances, 2\]"),
        ([np.zeros(2)], [0], None, r"bag '0' of odd has the shape \(2,\)"),
        ([np.zeros((1, 2))], [0, 1], None, r"odd has labels of the shape \(2,\)"),
        ([np.zeros((2, 2))], [0], [[1]], "bag '0' of odd has instance labels of the shape"),
    ],
)
def test_what_are_no_bags_is_refused(bags, labels, own, sentence):
    with pytest.raises(UserError, match=sentence):
        BagDataset.from_bags(bags, labels, instance_labels=own, name="odd")


def test_selecting_nothing_is_refused():
    with pytest.raises(UserError, match="three has no bag"):
        three_bags().select([])


@pytest.mark.parametrize(
    ("labels", "positive", "classes", "encoded"),
    [
        (["healthy", "cancer", "healthy"], "cancer", ("healthy", "cancer"), [0, 1, 0]),
        (["healthy", "cancer", "healthy"], "healthy", ("cancer", "healthy"), [1, 0, 1]),
        (["Pos", "neg", "neg"], None, ("neg", "Pos"), [1, 0, 0]),
        ([1, -1, 1], None, (-1, 1), [1, 0, 1]),
        ([0, 1, 1], 0, (1, 0), [1, 0, 0]),
        ([1, 2, 2], "1", (2, 1), [1, 0, 0]),
    ],
)
def test_the_positive_class_is_the_last(labels, positive, classes, encoded):
    bags, places = [np.ones((1, 2))] * 3, {name: n for n, name in enumerate(sorted(set(labels)))}
    own = [[places[label]] for label in labels]
    dataset = BagDataset.from_bags(bags, labels, instance_labels=own, positive=positive)
    assert dataset.classes == classes and dataset.positive == classes[1]
    np.testing.assert_array_equal(dataset.labels, encoded)
    np.testing.assert_array_equal(dataset.instance_labels, encoded)
    part = dataset.select([2, 0])
    assert (part.classes, part.positive) == (classes, classes[1])
    np.testing.assert_array_equal(part.labels, [encoded[2], encoded[0]])


def test_a_positive_class_that_is_not_known():
    bags = [np.ones((1, 2))] * 3
    dataset = BagDataset.from_bags(bags, ["healthy", "cancer", "healthy"], name="own")
    assert dataset.positive is None and dataset.classes == ("cancer", "healthy")
    assert BagDataset.from_bags(bags, [0, 1, 2]).positive is None
    named = dataclasses.replace(dataset, positive="cancer")
    np.testing.assert_array_equal(named.labels, [0, 1, 0])
    with pytest.raises(UserError, match="positive names 'tumor', of which none is a class of own"):
        dataclasses.replace(dataset, positive="tumor")
    with pytest.raises(
        UserError, match="positive is 2, but some has 3 classes, and only one of two"
    ):
        BagDataset.from_bags(bags, [0, 1, 2], positive=2, name="some")


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (["b", "a", "b"], ("b", "a"), [0, 1, 0]),
        (["a", "b", "b"], ("a", "b"), [0, 1, 1]),
        ([2, 1, 1], (2, 1), [0, 1, 1]),
        (["yes", "no", "no"], ("no", "yes"), [1, 0, 0]),
        (["c", "a", "b"], ("a", "b", "c"), [2, 0, 1]),
    ],
)
def test_unknown_classes_are_in_order_of_appearance(labels, classes, expected):
    place = {name: number for number, name in enumerate(sorted(set(labels)))}
    bags, own = [np.ones((1, 2))] * 3, [[place[label]] for label in labels]
    dataset = BagDataset.from_bags(bags, labels, instance_labels=own).in_order_of_appearance()
    assert dataset.classes == classes
    np.testing.assert_array_equal(dataset.labels, expected)
    np.testing.assert_array_equal(dataset.instance_labels, expected)
    assert dataset.select([1, 2]).classes == classes


def test_features_may_have_names():
    dataset = three_bags(features=["area", "colour"])
    assert dataset.features == ("area", "colour") and dataset.feature_name(1) == "'colour'"
    assert dataset.select([1]).features == dataset.features
    assert three_bags().features is None and three_bags().feature_name(1) == "number 1"
    for names in (["area"], ["area", "area"], ["area", "colour", "size"]):
        with pytest.raises(
            UserError, match=r"features of three have \d names, \d of them different"
        ):
            three_bags(features=names)


def test_groups_go_with_their_bags():
    dataset = three_bags(groups=("p", 7, "p"))
    assert dataset.groups == ("p", "7", "p")
    assert dataset.select([2, 1]).groups == ("p", "7")
    assert three_bags().select([0]).groups is None
    with pytest.raises(
        UserError, match=r"three has groups of the shape \(2,\), but must have one for each"
    ):
        three_bags(groups=("p", "q"))

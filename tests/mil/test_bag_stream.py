"""Which instances and lengths the steps of bags have, and what is known of bags after one look."""

import threading
import time

import numpy as np
import pytest

from lossattn_jax.data.bags import bag_stream, precision, streaming
from lossattn_jax.data.bags.bag_survey import survey_bags
from lossattn_jax.data.bags.lazy_bags import ArrayReader, Bags
from lossattn_jax.errors import UserError

RANDOM = np.random.default_rng(2)
ARRAYS = [RANDOM.normal(5, 3, (n, 4)).astype(np.float32) for n in (3, 1, 6, 2)]


def test_a_draw_follows_from_seed_epoch_and_bag():
    draw = bag_stream.draw_instances
    one = draw(3, 5, "slide", 1000, 100)
    assert len(one) == len(set(one)) == 100 and (np.diff(one) > 0).all() and one.max() < 1000
    np.testing.assert_array_equal(one, draw(3, 5, "slide", 1000, 100))
    for other in (
        draw(4, 5, "slide", 1000, 100),
        draw(3, 6, "slide", 1000, 100),
        draw(3, 5, "b", 1000, 100),
    ):
        assert not np.array_equal(one, other)
    np.testing.assert_array_equal(draw(3, 5, "slide", 7, 7), np.arange(7))
    np.testing.assert_array_equal(draw(3, 5, "slide", 7, 100), np.arange(7))


def test_every_instance_is_drawn_as_often():
    counts = np.zeros(20)
    for epoch in range(2000):
        counts[bag_stream.draw_instances(0, epoch, "a", 20, 5)] += 1
    # 500 each, with a standard deviation of 19.4.
    assert np.abs(counts - 500).max() < 80


def test_instances_of_a_long_bag_are_read_in_parts(monkeypatch):
    monkeypatch.setattr(bag_stream, "_READ_AT_ONCE", 4 * 4 * 2)
    bags = Bags.from_arrays(ARRAYS)
    places = np.array([0, 3, 5])
    np.testing.assert_array_equal(bag_stream.read_instances(bags, 2, places), ARRAYS[2][places])


def test_padding_is_zero_and_masked():
    x, mask = bag_stream.pad(ARRAYS[:2], 3, 4)
    assert x.shape == (3, 4, 4)
    np.testing.assert_array_equal(x[0, :3], ARRAYS[0])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    assert not x[~mask].any() and not x[2].any()


def test_few_lengths_do():
    assert bag_stream.step_lengths(np.array([5, 5, 5]), 1.25) == (5,)
    tops = bag_stream.step_lengths(np.arange(1, 5000), 1.05)
    assert len(tops) <= 4 and tops[-1] == 4999


def test_steps_are_read_ahead_in_order_and_end():
    before = threading.active_count()
    steps = bag_stream.read_ahead(list(range(7)), 1, 100)
    assert list(steps) == list(range(7))
    steps = bag_stream.read_ahead(list(range(7)), 1, 100)
    assert next(steps) == 0
    steps.close()
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
    expected = {
        (10, 1000): 4,
        (10, 40): 3,
        (10, 10): 1,
        (1 << 24, 1 << 40): 2,
        (1 << 30, 1 << 40): 1,
    }
    assert {sizes: bag_stream.steps_ahead(*sizes) for sizes in expected} == expected
    with pytest.raises(UserError, match="takes 2 GiB, but there are only 1"):
        bag_stream.steps_ahead(2 << 30, 1 << 30)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_of_some_bags_are_those_of_their_instances(offset):
    arrays = [array.astype(np.float64) + offset for array in ARRAYS]
    arrays = [np.column_stack([array, np.full(len(array), 7.0)]) for array in arrays]
    survey = survey_bags(Bags.from_arrays(arrays))
    for rows in ([0, 1, 2, 3], [2], [0, 3]):
        mean, scale = survey.standardisation(rows)
        expected = precision.standardisation(np.concatenate([arrays[row] for row in rows]))
        np.testing.assert_allclose(mean, expected[0], rtol=1e-12)
        np.testing.assert_allclose(scale, expected[1], rtol=1e-8)
    np.testing.assert_array_equal(survey.low[1], arrays[1][0])


def test_digests_are_of_values_shapes_and_types():
    first = survey_bags(Bags.from_arrays(ARRAYS)).digests
    assert len(set(first)) == 4
    assert survey_bags(Bags.from_arrays(ARRAYS, ids="wxyz")).digests == first
    halves = [array.astype(np.float16) for array in ARRAYS]
    assert not set(survey_bags(Bags.from_arrays(halves)).digests) & set(first)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_a_value_that_is_not_finite_is_named(value):
    arrays = [array.astype(np.float64) for array in ARRAYS]
    arrays[2][4, 1] = value
    with pytest.raises(UserError, match="bag 'c' in memory holds a value that is not finite"):
        survey_bags(Bags.from_arrays(arrays, ids="abcd"))


def test_bags_refuse_what_does_not_fit():
    one, wide = np.ones((2, 3)), np.ones((2, 4))
    for arrays, options, sentence in (
        ([], {}, "has no bag"),
        ([one, np.ones(3)], {}, r"bag '1' in memory has the shape \(3,\)"),
        ([one, np.ones((0, 3))], {}, "bag '1' in memory has no instance"),
        ([one, wide], {}, r"have the shape \(4,\), but must have \(3,\)"),
        ([one, one], {"ids": ["a", "a"]}, "two bags 'a', in memory and in memory"),
        ([one, one], {"labels": [1]}, "has 1 labels, but must have one for each of 2 bags"),
    ):
        with pytest.raises(UserError, match=sentence):
            Bags.from_arrays(arrays, **options)


def test_bags_are_selected_and_loaded():
    bags = Bags.from_arrays(ARRAYS, ["a", "b", "b", "a"], groups=["p", "p", "q", "q"])
    part = bags.select(bags.labels == 1)
    assert part.ids == ("1", "2") and part.groups == ("p", "q") and len(part[1:]) == 1
    dataset = part.load()
    np.testing.assert_array_equal(dataset.bag(1), ARRAYS[2])
    assert dataset.classes == ("a", "b") and dataset.labels.tolist() == [1, 1]
    with pytest.raises(UserError, match="have no labels"):
        Bags.from_arrays(ARRAYS).load()
    np.testing.assert_array_equal(Bags.from_dataset(bags.load())[2], ARRAYS[2])


def test_small_sets_lie_on_the_devices_and_large_ones_are_read():
    def bags(count, length, width=1024):
        return Bags(
            tuple(Shape((length, width)) for _ in range(count)), tuple(map(str, range(count)))
        )

    plenty = 1 << 40
    assert not streaming.is_streamed(bags(10, 100), 0, plenty)
    assert streaming.is_streamed(bags(10, 100), 99, plenty)
    assert not streaming.is_streamed(bags(10, 100), 100, plenty)
    assert streaming.is_streamed(bags(20, 5000), 0, plenty)
    assert not streaming.is_streamed(bags(20_000, 10), 0, plenty)  # many of few instances
    assert streaming.is_streamed(bags(20_000, 10), 0, 1 << 20)
    assert streaming.memory_bytes(0.5) == 1 << 29 and streaming.memory_bytes(None) > 0
    for wrong in (0, -1, "2", True, float("nan")):
        with pytest.raises(UserError, match="memory is .* but must be a number of GiB above 0"):
            streaming.memory_bytes(wrong)


class Shape(ArrayReader):
    """A bag of which only the shape is known."""

    shape = property(lambda self: self.array)

"""The order of an epoch: every bag once, batches of one bucket, a function of (seed, epoch) alone."""

import collections

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lossattn_jax.data.order import bucket_batches, bucket_steps, epoch_generator

BUCKET_OF = np.array([0, 1, 0, 2, 1, 0, 0, 2, 0])  # 5, 2 and 2 bags


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=30),
    st.integers(1, 7),
    st.integers(0, 10**6),
    st.integers(0, 500),
)
def test_each_bag_is_visited_once_in_batches_of_one_bucket(bucket_of, batch_size, seed, epoch):
    bucket_of = np.array(bucket_of)
    order = bucket_batches(bucket_of, batch_size, seed, [epoch])[0]
    assert order.dtype == np.int32
    assert order.shape == (bucket_steps(bucket_of, batch_size), batch_size)
    np.testing.assert_array_equal(np.sort(order[order >= 0]), np.arange(len(bucket_of)))
    for row in order:
        real = row[row >= 0]
        assert len(real) and len(np.unique(bucket_of[real])) == 1
        np.testing.assert_array_equal(row[len(real) :], -1)  # only behind the bags of a batch


def test_steps_by_hand():
    assert [bucket_steps(BUCKET_OF, size) for size in (1, 2, 4, 9)] == [9, 5, 4, 3]
    assert bucket_steps(BUCKET_OF * 3, 2) == 5  # buckets without bags have no steps


def test_only_a_buckets_last_batch_is_filled_up():
    order = bucket_batches(BUCKET_OF, 2, 0, [0])[0]
    filled = order[(order < 0).any(axis=1)]
    assert len(filled) == 1 and BUCKET_OF[filled[0, 0]] == 0


def test_it_is_a_function_of_seed_and_epoch():
    orders = [bucket_batches(BUCKET_OF, 1, s, [e])[0].tobytes() for s in range(3) for e in range(3)]
    assert len(set(orders)) == 9
    several = bucket_batches(BUCKET_OF, 1, 1, [2, 0])
    np.testing.assert_array_equal(several[0], bucket_batches(BUCKET_OF, 1, 1, [2])[0])
    np.testing.assert_array_equal(several[1], bucket_batches(BUCKET_OF, 1, 1, [0])[0])


def test_the_order_is_that_of_earlier_releases():
    same = epoch_generator(3, 4).permutation(99), np.random.default_rng((3, 4)).permutation(99)
    np.testing.assert_array_equal(*same)
    assert bucket_batches(BUCKET_OF, 2, 5, [1])[0].tolist() == [
        [5, 0],
        [4, 1],
        [8, 6],
        [2, -1],
        [7, 3],
    ]


def test_with_one_bag_a_step_every_order_is_as_likely():
    # Two buckets, 4 bags: each of the 24 orders should come up 200 times.
    orders = bucket_batches(np.array([0, 0, 0, 1]), 1, 0, range(4800))
    seen = collections.Counter(tuple(order) for order in orders[:, :, 0].tolist())
    assert len(seen) == 24
    # Chi squared of 23 degrees: above 50 once in 1000 seeds.
    assert sum((count - 200) ** 2 / 200 for count in seen.values()) < 50


def test_batches_are_shuffled_and_hold_other_bags_each_epoch():
    orders = bucket_batches(BUCKET_OF, 2, 0, range(200))
    buckets = BUCKET_OF[orders[:, :, 0]]
    for step in range(5):  # 3 of the 5 batches are of the first bucket
        assert 0.45 < (buckets[:, step] == 0).mean() < 0.75
    pairs = {
        tuple(sorted(batch)) for order in orders for batch in order.tolist() if min(batch) >= 0
    }
    assert len({pair for pair in pairs if BUCKET_OF[pair[0]] == 0}) == 10  # all pairs of 5 bags

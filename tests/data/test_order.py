import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossattn_jax.data import order
from lossattn_jax.errors import UserError

SEEDS = st.integers(0, 2**40)


@given(SEEDS, st.integers(0, 1000), st.integers(1, 300))
def test_an_epoch_visits_every_example_once(seed, epoch, count):
    visited = order.epoch_order(seed, epoch, count)
    assert visited.dtype == np.int64
    np.testing.assert_array_equal(np.sort(visited), np.arange(count))


def test_orders_are_pure_and_differ_between_seeds_and_epochs():
    first = order.epoch_order(3, 4, 1000).copy()
    for other in [(3, 5), (4, 4), (4, 3), (0, 0)]:
        assert not np.array_equal(order.epoch_order(*other, 1000), first)
    np.testing.assert_array_equal(order.epoch_order(3, 4, 1000), first)


def test_the_order_is_the_one_that_earlier_runs_used():
    # Written down from this code: a change would make a resumed run see other batches.
    assert order.epoch_order(0, 0, 8).tolist() == [3, 6, 4, 0, 7, 5, 2, 1]
    assert order.epoch_order(7, 2, 8).tolist() == [4, 7, 6, 1, 5, 0, 3, 2]


def test_a_kept_order_cannot_be_changed_by_its_users():
    with pytest.raises(ValueError, match="read-only"):
        order.epoch_order(1, 1, 10)[0] = 3


@pytest.mark.parametrize(("count", "batch", "steps"), [(10, 3, 3), (9, 3, 3), (3, 3, 1), (5, 4, 1)])
def test_the_partial_batch_is_dropped_in_training(count, batch, steps):
    assert order.steps_per_epoch(count, batch) == steps


@pytest.mark.parametrize(("count", "batch"), [(3, 4), (0, 1), (5, 0)])
def test_a_batch_larger_than_the_set_is_refused(count, batch):
    with pytest.raises(UserError, match=f"batch_size is {batch}.*{count}"):
        order.steps_per_epoch(count, batch)


def test_batches_of_an_epoch_are_slices_of_its_order():
    for step in range(7):
        epoch, position = divmod(step, 3)  # 11 examples in batches of 3
        expected = order.epoch_order(5, epoch, 11)[3 * position : 3 * position + 3]
        np.testing.assert_array_equal(order.train_indices(5, step, 11, 3), expected)


@given(SEEDS, st.integers(0, 50), st.integers(1, 4), st.integers(1, 5), st.integers(0, 100))
def test_processes_share_the_global_batch(seed, step, processes, local, spare):
    batch = processes * local
    count = batch + spare
    parts = [order.train_indices(seed, step, count, batch, p, processes) for p in range(processes)]
    np.testing.assert_array_equal(
        np.concatenate(parts), order.train_indices(seed, step, count, batch)
    )
    assert len(set(np.concatenate(parts).tolist())) == batch


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(UserError, match="batch size 10 .* 4"):
        order.train_indices(0, 0, 100, 10, 0, 4)


@given(st.integers(1, 100), st.integers(1, 4), st.integers(1, 8))
def test_evaluation_covers_every_example_exactly_once(count, processes, local):
    batch = processes * local
    seen = []
    for step in range(order.eval_steps(count, batch)):
        for process in range(processes):
            indices, mask = order.eval_indices(step, count, batch, process, processes)
            assert indices.shape == mask.shape == (local,)
            assert indices.max() < count
            seen += indices[mask == 1].tolist()
            assert set(indices[mask == 0].tolist()) <= {count - 1}
    assert seen == list(range(count))


def test_an_empty_set_cannot_be_evaluated():
    with pytest.raises(UserError, match="at least one example"):
        order.eval_steps(0, 4)

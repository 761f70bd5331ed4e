import gc
import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossattn_jax import data
from lossattn_jax.data import order
from lossattn_jax.errors import UserError


def _dataset(count, boxes=True):
    """Images and labels that name their own place."""
    images = (
        np.zeros((count, 4, 4, 3), np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None]
    )
    box = np.tile(np.arange(count, dtype=np.float32)[:, None], (1, 4)) if boxes else None
    labels = np.arange(count, dtype=np.int32) * 2
    return data.ArrayDataset(data.get_spec("digit_scenes"), "train", images, labels, box)


def _threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def _wait_for_no_thread():
    deadline = time.monotonic() + 5
    while _threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert _threads() == []


def test_a_training_batch_holds_the_examples_of_its_step():
    batches = _dataset(20).train_batches(batch_size=6, seed=1)
    for step, batch in enumerate(itertools.islice(batches, 7)):
        expected = order.train_indices(1, step, 20, 6)
        assert sorted(batch) == ["image", "index", "label"]
        assert (batch["image"].dtype, batch["image"].shape) == (np.uint8, (6, 4, 4, 3))
        assert batch["label"].dtype == batch["index"].dtype == np.int32
        np.testing.assert_array_equal(batch["index"], expected)
        np.testing.assert_array_equal(batch["label"], expected * 2)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], expected)


def test_places_alone_are_those_of_the_batches():
    options = {"batch_size": 6, "seed": 1, "start_step": 2, "process_index": 1, "process_count": 2}
    batches = _dataset(20).train_batches(**options)
    places = _dataset(20).train_batches(**options, places_only=True)
    for batch, alone in itertools.islice(zip(batches, places, strict=True), 5):
        assert list(alone) == ["index"] and alone["index"].dtype == np.int32
        np.testing.assert_array_equal(alone["index"], batch["index"])
    with pytest.raises(UserError, match="config.train.batch_size is 32"):
        _dataset(20).train_batches(batch_size=32, seed=0, places_only=True)


@given(start=st.integers(0, 40), processes=st.sampled_from([1, 2, 3, 6]))
@settings(deadline=None, max_examples=25)
def test_resuming_continues_the_run(start, processes):
    dataset = _dataset(20)
    for process in range(processes):
        options = {
            "batch_size": 6,
            "seed": 2,
            "process_index": process,
            "process_count": processes,
        }
        whole = itertools.islice(dataset.train_batches(**options), start, start + 4)
        resumed = dataset.train_batches(**options, start_step=start)
        for expected, batch in zip(whole, resumed, strict=False):
            np.testing.assert_array_equal(batch["image"], expected["image"])
            np.testing.assert_array_equal(batch["index"], expected["index"])


def test_sizes_that_do_not_fit_are_refused_at_once():
    with pytest.raises(UserError, match="config.train.batch_size is 32"):
        _dataset(20).train_batches(batch_size=32, seed=0)
    with pytest.raises(UserError, match="batch size 5.*2"):
        _dataset(20).eval_batches(batch_size=5, process_count=2)


@given(
    count=st.integers(1, 50),
    local=st.integers(1, 9),
    processes=st.integers(1, 4),
    boxes=st.booleans(),
)
@settings(deadline=None)
def test_evaluation_is_exact_for_any_size(count, local, processes, boxes):
    dataset = _dataset(count, boxes)
    seen = []
    lengths = set()
    for process in range(processes):
        batches = list(
            dataset.eval_batches(
                batch_size=local * processes, process_index=process, process_count=processes
            )
        )
        lengths.add(len(batches))
        for batch in batches:
            assert batch["image"].shape == (local, 4, 4, 3)
            assert batch["mask"].dtype == np.float32
            real = batch["mask"] == 1
            assert set(batch["mask"].tolist()) <= {0.0, 1.0}
            np.testing.assert_array_equal(batch["label"], batch["index"] * 2)
            np.testing.assert_array_equal(batch["image"][:, 3, 3, 2], batch["index"])
            assert ("box" in batch) == boxes
            if boxes:
                assert batch["box"].shape == (local, 4)
                np.testing.assert_array_equal(batch["box"][:, 1], batch["index"])
            seen += batch["index"][real].tolist()
    assert len(lengths) == 1
    assert sorted(seen) == list(range(count))


@pytest.mark.parametrize("start", [0, 2, 3, 4])
def test_an_evaluation_can_start_at_any_batch(start):
    for process in range(2):
        options = {"batch_size": 6, "process_index": process, "process_count": 2}
        whole = list(_dataset(20).eval_batches(**options))[start:]
        rest = list(_dataset(20).eval_batches(**options, start_batch=start))
        assert len(rest) == len(whole) == 4 - start
        for batch, expected in zip(rest, whole, strict=True):
            assert batch.keys() == expected.keys()
            for name in batch:
                np.testing.assert_array_equal(batch[name], expected[name])


def test_prefetching_keeps_the_order_and_transfers_everything():
    with data.prefetch(iter(range(20)), lambda item: item * 10) as items:
        assert list(items) == list(range(0, 200, 10))
        assert list(items) == []
    _wait_for_no_thread()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_prefetching_stays_within_its_depth(depth):
    done = []
    items = data.prefetch(itertools.count(), done.append, depth=depth)
    deadline = time.monotonic() + 5
    while len(done) < depth and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert len(done) == depth
    next(items)
    while len(done) < depth + 1 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert len(done) == depth + 1
    items.close()
    with pytest.raises(ValueError, match="depth"):
        data.prefetch(iter([]), lambda item: item, depth=0)


def test_prefetching_overlaps_with_the_consumer():
    handed_over = threading.Event()

    def transfer(item):
        if item == 1:
            handed_over.set()
        return item

    with data.prefetch(iter(range(3)), transfer) as items:
        next(items)
        assert handed_over.wait(5)  # the second is moved although nobody asked for it yet


@pytest.mark.parametrize("where", ["iterator", "transfer"])
def test_an_error_arrives_after_the_items_before_it(where):
    def numbers():
        yield 1
        yield 2
        if where == "iterator":
            raise OSError("disk gone")
        yield 3

    def transfer(item):
        if item == 3:
            raise OSError("disk gone")
        return item

    items = data.prefetch(numbers(), transfer)
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(OSError, match="disk gone"):
        next(items)
    assert list(items) == []
    _wait_for_no_thread()


@pytest.mark.parametrize("how", ["close", "with", "forget", "error"])
def test_the_thread_ends_with_its_consumer(how):
    closed = threading.Event()

    def numbers():
        try:
            yield from itertools.count()
        finally:
            closed.set()

    items = data.prefetch(numbers(), lambda item: item)
    assert next(items) == 0
    if how == "close":
        items.close()
        items.close()
    elif how == "with":
        with items:
            pass
    elif how == "error":
        with pytest.raises(KeyError), items:
            raise KeyError
    else:
        del items
        gc.collect()
    assert closed.wait(5)  # the source is told as well
    _wait_for_no_thread()

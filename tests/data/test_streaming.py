import dataclasses
import itertools

import numpy as np
import pytest

from lossattn_jax import data
from lossattn_jax.data import streaming
from lossattn_jax.errors import UserError


def _assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name])


@pytest.fixture(params=["train", "test"])
def both(request, digits_dir, digits_spec):
    return [
        data.open_dataset(digits_spec, request.param, digits_dir, mode=mode)
        for mode in ("memory", "stream")
    ]


@pytest.mark.parametrize("start", [0, 5, 1000])
def test_training_batches_are_those_from_memory(both, start):
    memory, stream = both
    assert len(memory) == len(stream)
    assert memory.spec == stream.spec and memory.split == stream.split
    for process in range(2):
        options = {
            "batch_size": 8,
            "seed": 3,
            "start_step": start,
            "process_index": process,
            "process_count": 2,
        }
        streamed = stream.train_batches(**options)
        for one, other in itertools.islice(
            zip(memory.train_batches(**options), streamed, strict=False), 10
        ):
            _assert_same(one, other)  # several epochs of both splits
        streamed.close()


@pytest.mark.parametrize(("batch", "processes"), [(8, 1), (6, 3), (100, 2)])
def test_evaluation_batches_are_those_from_memory(both, batch, processes):
    memory, stream = both
    for process in range(processes):
        options = {"batch_size": batch, "process_index": process, "process_count": processes}
        for one, other in zip(
            memory.eval_batches(**options), stream.eval_batches(**options), strict=True
        ):
            _assert_same(one, other)


@pytest.mark.parametrize("threads", [0, 1, 8])
def test_the_number_of_threads_changes_nothing(digits_dir, digits_spec, threads):
    memory = data.open_dataset(digits_spec, "test", digits_dir)
    stream = data.open_dataset(digits_spec, "test", digits_dir, "stream", num_threads=threads)
    for one, other in zip(
        memory.eval_batches(batch_size=4), stream.eval_batches(batch_size=4), strict=True
    ):
        _assert_same(one, other)


def test_worker_processes_change_nothing(digits_dir, digits_spec):
    memory = data.open_dataset(digits_spec, "train", digits_dir)
    stream = data.open_dataset(digits_spec, "train", digits_dir, "stream", num_workers=2)
    streamed = stream.train_batches(batch_size=8, seed=1, start_step=4)
    for one, other in itertools.islice(
        zip(memory.train_batches(batch_size=8, seed=1, start_step=4), streamed, strict=False), 9
    ):
        _assert_same(one, other)
    streamed.close()


@dataclasses.dataclass(frozen=True)
class _Watched:
    """A source that notes which examples are read."""

    spec: data.DatasetSpec
    split: str
    read: list

    def __len__(self):
        return 1000

    def __getitems__(self, indices):
        self.read.extend(indices)
        image = np.zeros((32, 32, 3), np.uint8)
        return [{"image": image, "label": 0} for _ in indices]


def test_resuming_reads_nothing_of_what_came_before(digits_spec):
    source = _Watched(digits_spec, "train", [])
    dataset = streaming.StreamDataset(source, num_threads=0)
    batches = dataset.train_batches(batch_size=10, seed=0, start_step=123)
    next(batches)
    batches.close()
    expected = data.train_indices(0, 123, 1000, 10)
    assert source.read[:10] == expected.tolist()
    ahead = np.concatenate([data.train_indices(0, 123 + step, 1000, 10) for step in range(4)])
    assert set(source.read) <= set(ahead.tolist())


def test_mistakes_are_told_at_once(digits_dir, digits_spec):
    with pytest.raises(UserError, match="mode is 'disk', but must be one of: auto, memory, stream"):
        data.open_dataset(digits_spec, "train", digits_dir, mode="disk")
    stream = data.open_dataset(digits_spec, "train", digits_dir, "stream")
    with pytest.raises(UserError, match="config.train.batch_size is 64"):
        stream.train_batches(batch_size=64, seed=0)
    with pytest.raises(UserError, match="batch size 9"):
        stream.eval_batches(batch_size=9, process_count=2)

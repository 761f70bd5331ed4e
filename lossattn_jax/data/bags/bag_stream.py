"""Padded batches of bags that are read when they are wanted, the next ones ahead.

What a step takes is a pure function of (seed, epoch) and the bags: `order.bucket_batches` says which bags,
and `draw_instances` which instances of one that is longer than a step may be.
"""

import contextlib
import dataclasses
import hashlib
import mmap
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lossattn_jax.data.bags.bags import bucket_lengths
from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.errors import UserError

# Each length that bags are padded to is a program to compile.
_MOST_LENGTHS = 4
_MOST_AHEAD = 4  # steps
_AHEAD_BYTES = 1 << 25  # of several steps
_SMALLEST_MAP = 1 << 20  # bytes
_READ_AT_ONCE = 1 << 24  # bytes, of bags of which only some instances are wanted
# Keeps the draw of instances apart from others of the same seed.
_DRAW_KEY = 0xD4A3


@dataclasses.dataclass(frozen=True, eq=False)
class StepBags:
    """The bags of a step.

    Attributes:
      x: `[b, length, features...]` as stored, zeros at padding.
      mask: `[b, length]` bool, True for a real instance; of a place without a bag for the first alone, since
        attention has to be somewhere.
      labels: `[b]` int32, or `[b, K]`.
      rows: `[b]` int32, positions of the bags; -1 for none.
    """

    x: np.ndarray
    mask: np.ndarray
    labels: np.ndarray
    rows: np.ndarray


def draw_instances(seed: int, epoch: int, bag_id: str, length: int, most: int) -> np.ndarray:
    """Draws which instances of a bag an epoch sees, without replacement.

    Args:
      seed: of the run, 0 or more.
      epoch: from 0.
      bag_id: of the bag, so that other bags do not change the draw.
      length: instances of the bag.
      most: how many an epoch sees at most, 1 or more.

    Returns:
      `[min(length, most)]` int64, rising places.
    """
    if length <= most:
        return np.arange(length)
    name = int.from_bytes(hashlib.sha256(bag_id.encode()).digest()[:8], "little")
    random = np.random.default_rng([seed, epoch, name, _DRAW_KEY])
    return np.sort(random.choice(length, most, replace=False, shuffle=False))


def step_lengths(
    lengths: np.ndarray, max_waste: float, most: int = _MOST_LENGTHS
) -> tuple[int, ...]:
    """The few lengths that bags of a training are padded to.

    Args:
      lengths: `[bags]` int, instances that steps take of each.
      max_waste: padded slots for each instance, see `bags.bucket_lengths`; more, where lengths that keep to
        it are more than `most`.
      most: how many lengths there may be.

    Returns:
      Rising lengths.
    """
    tops = bucket_lengths(lengths, max_waste)
    while len(tops) > most:
        max_waste *= 1.25
        tops = bucket_lengths(lengths, max_waste)
    return tops


def read_instances(bags: Bags, row: int, places: np.ndarray) -> np.ndarray:
    """Reads instances of a bag at rising places, `[n, features...]`.

    The others are in memory only for a while.
    """
    reader = bags.readers[row]
    length = reader.shape[0]
    if len(places) == length:
        return reader.read()  # what is not finite, a survey has refused
    instance_bytes = max(1, int(np.prod(reader.shape[1:])) * reader.dtype.itemsize)
    stride = max(1, _READ_AT_ONCE // instance_bytes)
    parts = []
    for start in range(0, length, stride):
        own = places[(places >= start) & (places < start + stride)]
        if len(own):
            parts.append(reader.read(start, min(start + stride, length))[own - start])
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class TrainingSteps:
    """The steps of an epoch, for `read_ahead`.

    Attributes:
      bags: with labels.
      order: `[steps, b]` int32 of `order.bucket_batches`.
      tops: rising lengths.
      seed, epoch: of the draw of instances.
      most: instances that an epoch sees of a bag; 0: all.
      convert: what is done with the instances of a bag before they are padded.
      buffers: memory of the steps of a training.
    """

    bags: Bags
    order: np.ndarray
    tops: tuple[int, ...]
    seed: int
    epoch: int
    most: int
    convert: Callable[[np.ndarray], np.ndarray]
    buffers: "Buffers | None" = None

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, step: int) -> StepBags:
        """Reads the bags of a step."""
        rows = self.order[step]
        parts = []
        for row in rows[rows >= 0]:
            length = int(self.bags.lengths[row])
            places = draw_instances(
                self.seed, self.epoch, self.bags.ids[row], length, self.most or length
            )
            parts.append(self.convert(read_instances(self.bags, row, places)))
        longest = max(map(len, parts))
        length = next(top for top in self.tops if top >= longest)
        assert self.bags.labels is not None
        own = self.bags.labels[np.maximum(rows, 0)]
        labels = np.where((rows >= 0).reshape(-1, *(1 for _ in own.shape[1:])), own, 0)
        padded = pad(parts, len(rows), length, self.buffers)
        return StepBags(*padded, labels.astype(np.int32), rows)


class Buffers:
    """Memory for arrays, used again once nobody has the last one.

    The next array has the same shape. Fresh memory of the system costs more time than copying a bag into it.
    """

    def __init__(self) -> None:
        """Starts with none."""
        self._free: dict[Any, list[tuple[mmap.mmap, np.ndarray]]] = {}

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Takes an array `[b, length, ...]`, which may hold values of before.

        Beside it is `[b]` int: how many first places of each row are to be zeroed. The caller replaces these
        numbers by those of the places that it fills.
        """
        key = shape, dtype.str
        free = self._free.setdefault(key, [])
        if free:
            memory, filled = free.pop()
        else:
            memory, filled = _map(int(np.prod(shape)) * dtype.itemsize), np.zeros(shape[0], int)
        array: np.ndarray = np.ndarray(shape, dtype, memory)
        weakref.finalize(array, free.append, (memory, filled)).atexit = False
        return array, filled


def pad(
    parts: Sequence[np.ndarray], count: int, length: int, buffers: Buffers | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pads bags to one length, and their number to `count`.

    Args:
      parts: arrays `[n_i, features...]`, at least one.
      count: b.
      length: of the longest or more.
      buffers: for large arrays; None: fresh memory.

    Returns:
      `[b, length, features...]` of the bags' type, and its mask `[b, length]`, as `StepBags` has them.
    """
    shape, dtype = (count, length, *parts[0].shape[1:]), parts[0].dtype
    if int(np.prod(shape)) * dtype.itemsize < _SMALLEST_MAP:
        x, filled = np.zeros(shape, dtype), np.zeros(count, int)
    else:
        x, filled = (buffers or Buffers()).take(shape, dtype)
    mask = np.zeros((count, length), bool)
    mask[:, 0] = True
    for place in range(count):
        part = parts[place] if place < len(parts) else parts[0][:0]
        x[place, : len(part)] = part
        x[place, len(part) : filled[place]] = 0
        filled[place] = len(part)
        mask[place, : len(part)] = True
    return x, mask


def _map(size: int) -> mmap.mmap:
    """Zeros, which go back to the system when they are let go of.

    The C library would keep them for the thread that has read them, several for each thread.
    """
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # of systems without: pages come one by one
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def read_ahead(steps: Any, step_bytes: int, memory: int) -> Iterator[Any]:
    """The items of `steps` in order, with the next ones read in other threads.

    Args:
      steps: something with a length and items.
      step_bytes: of the largest item.
      memory: bytes that items which are read ahead may take together.

    Returns:
      An iterator; closing it ends its threads.
    """
    grain = import_grain()
    ahead = steps_ahead(step_bytes, memory)
    options = grain.ReadOptions(num_threads=min(2, ahead), prefetch_buffer_size=ahead)
    iterator: Any = iter(grain.MapDataset.source(steps).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()  # grain's own iterator would leave its threads running


def import_grain() -> Any:
    """Imports grain, which takes half a second, where it is needed first."""
    import grain

    return grain


def steps_ahead(step_bytes: int, memory: int) -> int:
    """How many items are read ahead, 1 or more.

    Args:
      step_bytes: of the largest item.
      memory: bytes that all may take together.

    Raises:
      UserError: one alone is too large.
    """
    if step_bytes > memory:
        raise UserError(
            f"the longest bag of a step takes {step_bytes / 2**30:.2g} GiB, but there are only "
            f"{memory / 2**30:.2g} for what is read: give more by --memory, or take fewer instances of a bag "
            "by --max_instances"
        )
    several = min(memory - step_bytes, _AHEAD_BYTES) // step_bytes
    return int(min(_MOST_AHEAD, max(1, several)))

"""Batches for training and evaluation, and moving them to the devices ahead of time."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from lossattn_jax.data import order

if TYPE_CHECKING:
    from lossattn_jax.data.memory import ArrayDataset

Batch = dict[str, np.ndarray]


def train_batches(
    dataset: "ArrayDataset",
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Training batches from `start_step` on, without end.

    Args:
      dataset: the data set in memory.
      batch_size: examples per step over all processes.
      seed: the run's seed; the batch of a step follows from (seed, step).
      start_step: the global step of the first batch.
      process_index: this process.
      process_count: number of processes; has to divide `batch_size`.

    Yields:
      With b = batch_size // process_count: `image` uint8 [b, H, W, C], `label` int32 [b] and
      `index` int32 [b], the examples' places in the data set.

    Raises:
      UserError: sizes that do not fit, at the call and not only at the first batch.
    """
    order.train_indices(seed, start_step, len(dataset), batch_size, process_index, process_count)

    def batches() -> Iterator[Batch]:
        step = start_step
        while True:
            indices = order.train_indices(
                seed, step, len(dataset), batch_size, process_index, process_count
            )
            yield gather(dataset, indices)
            step += 1

    return batches()


def eval_batches(
    dataset: "ArrayDataset",
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Every example exactly once over all processes, in the data set's own order.

    All processes yield equally many batches of one shape; what fills the last one up is masked.

    Args:
      dataset: the data set in memory.
      batch_size: examples per batch over all processes.
      process_index: this process.
      process_count: number of processes; has to divide `batch_size`.

    Yields:
      As `train_batches`, with `mask` float32 [b] (1 for an example, 0 for padding, which repeats
      the last example), and `box` float32 [b, 4] where the data set has boxes.

    Raises:
      UserError: sizes that do not fit.
    """
    steps = order.eval_steps(len(dataset), batch_size)
    order.local_batch_size(batch_size, process_count)

    def batches() -> Iterator[Batch]:
        for step in range(steps):
            indices, mask = order.eval_indices(
                step, len(dataset), batch_size, process_index, process_count
            )
            batch = gather(dataset, indices)
            batch["mask"] = mask
            if dataset.boxes is not None:
                batch["box"] = dataset.boxes[indices]
            yield batch

    return batches()


def gather(dataset: "ArrayDataset", indices: np.ndarray) -> Batch:
    """The examples at `indices` int64 [b] as a batch of `image`, `label` and `index`."""
    return {
        "image": np.take(dataset.images, indices, axis=0),
        "label": np.take(dataset.labels, indices),
        "index": indices.astype(np.int32),
    }


class _Buffer:
    """What the producer thread and the consumer share."""

    def __init__(self, depth: int):
        self.changed = threading.Condition()
        self.items: deque[tuple[str, Any]] = deque()
        self.depth = depth
        self.closed = False

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.items.clear()
            self.changed.notify_all()


def _produce(buffer: _Buffer, iterator: Iterator[Any], transfer: Callable[[Any], Any]) -> None:
    try:
        while True:
            with buffer.changed:
                buffer.changed.wait_for(lambda: buffer.closed or len(buffer.items) < buffer.depth)
                if buffer.closed:
                    return
            try:
                entry = ("item", transfer(next(iterator)))
            except StopIteration:
                entry = ("end", None)
            except BaseException as error:  # raised again where the batches are consumed
                entry = ("error", error)
            with buffer.changed:
                if buffer.closed:
                    return
                buffer.items.append(entry)
                buffer.changed.notify_all()
            if entry[0] != "item":
                return
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


def _stop(buffer: _Buffer, thread: threading.Thread) -> None:
    buffer.close()
    if thread is not threading.current_thread():
        thread.join()


class Prefetcher(Iterator[Any]):
    """Iterates over `transfer(item)`, which a background thread keeps ready; see `prefetch`."""

    def __init__(self, iterator: Iterator[Any], transfer: Callable[[Any], Any], depth: int):
        self._buffer = _Buffer(depth)
        # The thread knows the buffer but not this object, so that dropping this object ends it.
        thread = threading.Thread(
            target=_produce, args=(self._buffer, iterator, transfer), name="prefetch", daemon=True
        )
        self._stop = weakref.finalize(self, _stop, self._buffer, thread)
        thread.start()

    def __next__(self) -> Any:
        buffer = self._buffer
        with buffer.changed:
            buffer.changed.wait_for(lambda: bool(buffer.items) or buffer.closed)
            if buffer.closed:
                raise StopIteration
            kind, value = buffer.items.popleft()
            buffer.changed.notify_all()
        if kind == "item":
            return value
        self.close()
        if kind == "error":
            raise value
        raise StopIteration

    def close(self) -> None:
        """Ends the thread and drops what it had ready; iterating further yields nothing."""
        self._stop()

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prefetch(iterator: Iterator[Any], transfer: Callable[[Any], Any], depth: int = 2) -> Prefetcher:
    """Reads ahead in a thread of its own, so that batches are on the devices when they are wanted.

    Args:
      iterator: where the batches come from; closed in the end where it can be.
      transfer: what is done to each in the thread, such as placing it on the devices.
      depth: how many are kept ready at most; 2 is a double buffer.

    Returns:
      An iterator over the transferred batches, which is also a context manager. Its thread ends
      when it is closed, exhausted or garbage-collected; an error of `iterator` or `transfer` is
      raised from `next` after the batches before it.
    """
    if depth < 1:
        raise ValueError(f"prefetch depth has to be 1 or more, not {depth}")
    return Prefetcher(iterator, transfer, depth)

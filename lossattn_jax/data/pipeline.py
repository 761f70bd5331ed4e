"""Batches for training and evaluation, prefetched to the devices."""

import abc
import dataclasses
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lossattn_jax.data import order

Batch = dict[str, np.ndarray]


class Examples(abc.ABC):
    """A split that yields batches, wherever its examples are stored."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abc.abstractmethod
    def read(self, indices: np.ndarray, with_boxes: bool = False, stored: bool = False) -> Batch:
        """Reads the examples at some places as a batch.

        Args:
          indices: int64 [b].
          with_boxes: whether to add `box` where the data set has boxes.
          stored: whether images are as they are stored, of which training cuts random parts; else they are
            the centres of these.

        Returns:
          `image`, `label`, `index` and perhaps `box`; see `train_batches` and `eval_batches`.
        """

    @abc.abstractmethod
    def digest(self) -> str:
        """Digests the examples, however they are stored.

        SHA-256 in hexadecimal digits.

        Of a prepared split it is that of its files and of which examples are taken: the same from memory
        and from disk, in a copied folder too.

        Raises:
          UserError: a file cannot be read.
        """

    @abc.abstractmethod
    def picture_digest(self) -> str:
        """Digests which pictures with which labels there are, at whatever size they are stored.

        Of arrays that were not prepared it is `digest`.

        Raises:
          UserError: a file cannot be read.
        """

    def iterate(self, batches: "Batches") -> Iterator[Batch]:
        """Yields all of `batches`, one after the other."""
        return (batches[item] for item in range(len(batches)))

    def train_batches(
        self,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        places_only: bool = False,
        drop_last: bool = True,
    ) -> Iterator[Batch]:
        """Yields training batches from `start_step` on, without end.

        Args:
          batch_size: examples per step over all processes.
          seed: the run's seed; the batch of a step follows from (seed, step).
          start_step: the global step of the first batch.
          process_index: this process.
          process_count: number of processes; has to divide `batch_size`.
          places_only: True gives batches with `index` alone, for which no example is read.
          drop_last: whether an epoch ends before the batch that the data set does not fill; else that has
            fewer examples.

        Returns:
          An iterator over batches. With b = batch_size // process_count they hold: `image` uint8
          [b, H, W, C] as stored; `label` int32 [b], or uint8 [b, K] (multi-hot) where the data set is
          `multi_label`; `index` int32 [b], the examples' places in the data set, 0 ... N - 1.

        Raises:
          UserError: sizes that do not fit, at the call and not only at the first batch.
        """
        steps = order.TrainSteps(
            len(self), batch_size, seed, start_step, process_index, process_count, drop_last
        )
        if places_only:
            return ({"index": steps[item][0].astype(np.int32)} for item in range(len(steps)))
        return self.iterate(Batches(self, steps))

    def eval_batches(
        self,
        *,
        batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
        start_batch: int = 0,
    ) -> Iterator[Batch]:
        """Yields every example exactly once over all processes.

        In the data set's own order.

        All processes get equally many batches of one shape; what fills the last one up is masked.

        Args:
          batch_size: examples per batch over all processes.
          process_index: this process.
          process_count: number of processes; has to divide `batch_size`.
          start_batch: the first batch, counted from 0; nothing is read of those before it.

        Returns:
          An iterator over batches as of `train_batches`, with `mask` float32 [b] (1 for an example,
          0 for padding, which repeats the last example), and where the data set has boxes `box`
          float32 [b, 4], or where an image may have several `box` [b, M, 4] and `box_label` int32
          [b, M]; see `data.boxes`.

        Raises:
          UserError: sizes that do not fit, at the call.
        """
        steps = order.EvalSteps(len(self), batch_size, process_index, process_count, start_batch)
        return self.iterate(Batches(self, steps))


@dataclasses.dataclass(frozen=True)
class Batches:
    """Random access to batches: item i holds the examples of `steps[i]`.

    Attributes:
      examples: where they are read from.
      steps: which examples; batches of an evaluation come with `mask` and, if there are any, `box`.
    """

    examples: Examples
    steps: order.TrainSteps | order.EvalSteps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, item: int) -> Batch:
        indices, mask = self.steps[int(item)]
        tested = mask is not None
        batch = self.examples.read(indices, with_boxes=tested, stored=not tested)
        if mask is not None:
            batch["mask"] = mask
        return batch


class _Buffer:
    """The state shared by producer thread and consumer."""

    def __init__(self, depth: int):
        self.condition = threading.Condition()
        self.items: deque[tuple[str, Any]] = deque()
        self.depth = depth
        self.is_closed = False

    def close(self) -> None:
        with self.condition:
            self.is_closed = True
            self.items.clear()
            self.condition.notify_all()


def _produce(buffer: _Buffer, iterator: Iterator[Any], transfer: Callable[[Any], Any]) -> None:
    try:
        while True:
            with buffer.condition:
                buffer.condition.wait_for(
                    lambda: buffer.is_closed or len(buffer.items) < buffer.depth
                )
                if buffer.is_closed:
                    return
            try:
                entry = ("item", transfer(next(iterator)))
            except StopIteration:
                entry = ("end", None)
            except BaseException as error:  # raised again where the batches are consumed
                entry = ("error", error)
            with buffer.condition:
                if buffer.is_closed:
                    return
                buffer.items.append(entry)
                buffer.condition.notify_all()
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
    """Iterates over `transfer(item)`, which a thread prepares; see `prefetch`."""

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
        with buffer.condition:
            buffer.condition.wait_for(lambda: bool(buffer.items) or buffer.is_closed)
            if buffer.is_closed:
                raise StopIteration
            kind, value = buffer.items.popleft()
            buffer.condition.notify_all()
        if kind == "item":
            return value
        self.close()
        if kind == "error":
            raise value
        raise StopIteration

    def close(self) -> None:
        """Ends the thread; iterating further yields nothing."""
        self._stop()

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prefetch(iterator: Iterator[Any], transfer: Callable[[Any], Any], depth: int = 2) -> Prefetcher:
    """Reads ahead in a thread, so that devices need not wait.

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

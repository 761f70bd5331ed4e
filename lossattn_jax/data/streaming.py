"""Batches streamed from prepared files, for sets larger than memory.

Grain reads and decodes examples with threads or worker processes. The examples of a step are those
of `order`, so a streamed run and one from memory see the same batches, and a run resumed at a step
reads nothing of what came before it.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags

from lossattn_jax.data.pipeline import Batch, Batches, Examples
from lossattn_jax.data.specs import DatasetSpec
from lossattn_jax.data.split_source import SplitDigests, SplitSource


@dataclasses.dataclass(frozen=True)
class StreamDataset(Examples):
    """A split on disk, with the batches of `memory.ArrayDataset`.

    Attributes:
      source: the split's examples.
      num_threads: threads that read and decode, in every worker.
      num_workers: worker processes; 0 reads in this process.
      selection: int64 [n], the places of the examples that make up the data set, which counts them from
        0 anew; None for all of `source`.
      name: of the split where it is another than that of `source`, else empty.
    """

    source: SplitSource
    num_threads: int = 4
    num_workers: int = 0
    selection: np.ndarray | None = None
    name: str = ""

    @property
    def spec(self) -> DatasetSpec:
        """The data set."""
        return self.source.spec

    @property
    def split(self) -> str:
        """'train', 'test' or 'held_out'."""
        return self.name or self.source.split

    def __len__(self) -> int:
        return len(self.source) if self.selection is None else len(self.selection)

    def read(self, indices: np.ndarray, with_boxes: bool = False, stored: bool = False) -> Batch:
        """Reads examples; see `pipeline.Examples.read`."""
        places = indices if self.selection is None else self.selection[indices]
        examples = self.source.__getitems__(places.tolist())
        images = [example["image"] for example in examples]
        if not stored:
            images = [self.spec.view.cut_centre(image) for image in images]
        batch = {
            "image": np.stack(images),
            "label": np.array([example["label"] for example in examples], self.spec.label_dtype),
            "index": indices.astype(np.int32),
        }
        if with_boxes and self.spec.has_boxes:
            for name in ("box", "box_label") if self.spec.max_boxes > 1 else ("box",):
                batch[name] = np.stack([example[name] for example in examples])
        return batch

    def digest(self) -> str:
        """Digests the examples; see `pipeline.Examples.digest`."""
        return self._digests().examples

    def picture_digest(self) -> str:
        """Digests the pictures; see `pipeline.Examples.picture_digest`."""
        return self._digests().pictures

    def _digests(self) -> SplitDigests:
        whole = self.source.digests()
        return whole if self.selection is None else whole.take(self.selection)

    def iterate(self, batches: Batches) -> Iterator[Batch]:
        """Yields all of `batches`, read ahead.

        Closing the iterator ends its threads and workers.
        """
        import grain

        options = grain.ReadOptions(
            num_threads=self.num_threads, prefetch_buffer_size=max(2, self.num_threads)
        )
        ahead: grain.IterDataset = grain.MapDataset.source(batches).to_iter_dataset(options)
        if self.num_workers:
            # Grain's workers look at flags of its own, which a program without flags never parses.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=self.num_workers))
        return _closing(iter(ahead))


def _closing(iterator: Any) -> Iterator[Batch]:
    try:
        yield from iterator
    finally:
        iterator.close()  # grain's own iterator would leave its threads and workers running

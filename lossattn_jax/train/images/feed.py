"""Examples for updates: prefetched from the host, or on devices.

Either way the examples and their order are those of `data.order`, and so are the results.
"""

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from lossattn_jax import data, devices
from lossattn_jax.registry import lookup
from lossattn_jax.train.images import memory
from lossattn_jax.train.images.job import Job

log = logging.getLogger(__name__)

# Of an accelerator's memory that is left beside the state, what the images may take by themselves.
_SHARE_OF_MEMORY = 0.25


def dispatches(job: Job, start_step: int) -> list[int]:
    """Returns how many updates each call makes.

    From `start_step` to the run's end.
    """
    return dispatch_sizes(
        start_step,
        job.total_steps,
        job.steps_per_epoch,
        job.options.train.steps_per_dispatch,
        last_alone=job.has_partial_batch,
    )


def dispatch_sizes(
    start: int, total: int, steps_per_epoch: int, most: int, *, last_alone: bool = False
) -> list[int]:
    """Divides updates into dispatches of at most `most`.

    Those after `start` until `total`; a dispatch ends with an epoch.

    No dispatch goes beyond its epoch, whose last update is one by itself where `last_alone` says so: all
    batches of a dispatch have as many images. A start within an epoch first goes to that epoch's next
    multiple of `most`, so that all runs are cut at the same places.
    """
    sizes = []
    while start < total:
        into_epoch = start % steps_per_epoch
        ahead = steps_per_epoch - into_epoch  # updates of the epoch
        if last_alone and ahead > 1:
            ahead -= 1
        size = min(most - into_epoch % most, ahead, total - start)
        sizes.append(size)
        start += size
    return sizes


def on_devices(job: Job) -> dict[str, jax.Array] | None:
    """Puts the training set on every device, if configured.

    Returns:
      `image` uint8 `[devices, N, H, W, C]` and `label` `[devices, N]` or `[devices, N, K]`; None where
      batches come from the host.
    """
    train_set = job.train_set
    if not isinstance(train_set, data.ArrayDataset):
        log.info("training images: streamed")
        return None
    images = train_set.images
    choices = {"on": True, "off": False, "auto": None}
    there = lookup("config.data.on_device", job.options.data.on_device, choices)
    if not (_suits(images) if there is None else there):
        log.info("training images: in the host's memory")
        return None
    log.info("training images: on each device, %s", memory.size(images.nbytes))
    return devices.replicate({"image": images, "label": train_set.labels})


def _suits(images: np.ndarray) -> bool:
    """Whether "auto" puts the images on the devices.

    All processes say the same.
    """
    if jax.default_backend() == "cpu":  # there they would lie twice in the same memory
        return False
    free_bytes = memory.free_bytes()
    fits = free_bytes is not None and images.nbytes <= _SHARE_OF_MEMORY * free_bytes
    return bool(devices.concatenate_processes(np.array([fits])).all())


def open_batches(
    job: Job, start_step: int, sizes: Sequence[int], places_only: bool
) -> data.Prefetcher:
    """Opens the batches of all dispatches, prefetched to the devices.

    Args:
      job: the run.
      start_step: updates done.
      sizes: from `dispatches`.
      places_only: whether the examples are on the devices, so that batches need `index` alone.

    Returns:
      A context manager and iterator; its items are what `step.make_train_step` takes for a dispatch.
    """
    batches = job.train_set.train_batches(
        batch_size=job.options.train.batch_size,
        seed=job.options.seed,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        places_only=places_only,
        drop_last=job.options.data.drop_last,
    )
    return data.prefetch(_group_batches(batches, sizes), devices.shard_steps)


def _group_batches(batches: Iterator[Any], sizes: Sequence[int]) -> Iterator[list[Any]]:
    """Yields as many batches at a time as `sizes` say.

    It closes `batches` in the end.
    """
    try:
        for size in sizes:
            yield list(itertools.islice(batches, size))
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()

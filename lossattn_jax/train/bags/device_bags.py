"""Bags on a device, as one flat array from which programs slice."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax.data.bags.bags import BagDataset


@flax.struct.dataclass
class Data:
    """A data set's arrays, for a device.

    Attributes:
      instances: `[N + longest, features...]` float32: zeros behind the last bag, so that a cut of any
        bucket's length stays inside.
      offsets, lengths, labels, bucket: `[bags]` int32; labels of which a bag may have several `[bags, K]`.
    """

    instances: Any
    offsets: Any
    lengths: Any
    labels: Any
    bucket: Any


def pack(dataset: BagDataset, tops: tuple[int, ...]) -> Data:
    """Makes the arrays of a data set, on the host.

    Args:
      dataset: of N instances.
      tops: rising lengths of the buckets.
    """
    behind = np.zeros((tops[-1], *dataset.instances.shape[1:]), np.float32)
    return Data(
        instances=np.concatenate([dataset.instances, behind]),
        offsets=dataset.offsets[:-1].astype(np.int32),
        lengths=dataset.lengths.astype(np.int32),
        labels=dataset.labels.astype(np.int32),
        bucket=np.searchsorted(tops, dataset.lengths).astype(np.int32),
    )


def standardise(x: jax.Array, mean: jax.Array, inverse_scale: jax.Array) -> jax.Array:
    """Scales bags `[b, length, features...]` by a model's mean and scale."""
    return (x - mean[None, None]) * inverse_scale[None, None]


def cut_bags(data: Data, rows: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Slices bags `[b, length, features...]` and their mask `[b, length]`.

    Behind a bag are instances of others.
    """
    mask = jnp.arange(length)[None, :] < data.lengths[rows][:, None]
    return cut_values(data.instances, data, rows, length), mask


def cut_values(values: jax.Array, data: Data, rows: jax.Array, length: int) -> jax.Array:
    """Slices `[b, length, ...]` of values per instance `[N + longest, ...]`."""
    # Slices one by one: as a gather over bags it is far slower on CPUs.
    return jnp.stack(
        [jax.lax.dynamic_slice_in_dim(values, data.offsets[row], length) for row in rows]
    )


def write(values: jax.Array, new: jax.Array, mask: jax.Array, place: jax.Array) -> jax.Array:
    """Writes `new` at `place` where `mask` is True.

    `new` is `[G, length, ...]`, `values` `[G, N + longest, ...]`.
    """
    old = jax.lax.dynamic_slice_in_dim(values, place, new.shape[1], axis=1)
    mask = jnp.broadcast_to(mask, new.shape[:2]).reshape(
        *new.shape[:2], *(1 for _ in new.shape[2:])
    )
    return jax.lax.dynamic_update_slice_in_dim(values, jnp.where(mask, new, old), place, axis=1)

"""Receptive fields of patches, measured on the network, and pixel maps.

A patch's window (`PatchGrid`) is only where the last convolution looks on the backbone's map: the layers
below it see further, and most of it weakly. How much the patch's logits move when a pixel does is the
effective receptive field of Luo et al. 2016 ("Understanding the Effective Receptive Field in Deep CNNs");
where it is not 0 is all that the patch can see.
"""

import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax import data
from lossattn_jax.commands.progress import LogClock, Progress
from lossattn_jax.models import ImageNetwork, PatchGrid

log = logging.getLogger(__name__)

# Images that sensitivities are averaged over: fewer leave the signs' noise in maps. Of many patches several
# see each pixel, whose mean has less noise, and each patch costs a pass.
PROBES, _FEWEST = 32, 8
_PATCHES = 49  # that are measured on all of them
_FEW = 256  # patches that are measured one by one, whatever they see
_AT_ONCE = 8  # backward passes of one call
_LOG_SECONDS = 10.0

# Of sets of patches `[S, P]` 0 or 1, the energies `[S, H, W]` of their summed logits by pixel.
_Measure = Callable[[np.ndarray], np.ndarray]


def count_probes(patches: int) -> int:
    """Returns how many images the fields of so many patches are measured on."""
    return min(PROBES, max(_FEWEST, PROBES * _PATCHES // patches))


def read_probes(model: ImageNetwork, dataset: data.Dataset) -> np.ndarray:
    """Reads the first images of a split, as many as the fields of a network are measured on.

    Args:
      model: the network.
      dataset: the split.

    Returns:
      `[N, H, W, C]` uint8, for `on_images`.
    """
    count = count_probes(model.patch_grid(dataset.spec.image_shape).patches)
    return dataset.read(np.arange(min(count, len(dataset))))["image"]


def receptive_fields(
    model: ImageNetwork, variables: Any, images: jax.Array, seed: int = 0
) -> np.ndarray:
    """Computes how strongly each patch's logits depend on each pixel.

    The root of the mean over N images of the squared Frobenius norm of d z_p / d pixel. The norm is not
    summed over classes but estimated without bias from one product with random signs for each image, so
    that a patch costs one backward pass however many classes there are. Of many patches those that see
    nothing in common, going by eight of them, corners among them, share a pass; where one turns out to see
    more, all have their own.

    Args:
      model: the network.
      variables: its "params" and "batch_stats".
      images: `[N, H, W, C]` float, normalised; `count_probes` of a data set will do.
      seed: of the signs.

    Returns:
      `[P, H, W]` float32 on the host, each patch's sum 1; 0 exactly at the pixels that a patch cannot see. A
      patch that depends on nothing is 0 everywhere.
    """

    @jax.jit
    def energies(
        variables: Any, images: jax.Array, key: jax.Array, members: jax.Array
    ) -> jax.Array:
        def patch_logits(x: jax.Array) -> jax.Array:
            outputs: Any = model.apply(variables, x, train=False)
            return outputs.patch_logits.astype(jnp.float32)

        logits, pull = jax.vjp(patch_logits, images)
        signs = jax.random.rademacher(key, logits.shape, jnp.float32)

        def energy(of_set: jax.Array) -> jax.Array:
            (gradient,) = pull(signs * of_set[None, :, None])
            return jnp.mean(jnp.sum(jnp.square(gradient.astype(jnp.float32)), axis=-1), axis=0)

        # One set after the other: all at once would hold S gradients of every layer.
        return jax.lax.map(energy, members)

    def measure(members: np.ndarray) -> np.ndarray:
        key = jax.random.key(seed)
        return np.asarray(energies(variables, images, key, members.astype(np.float32)))

    _, height, width, channels = images.shape
    grid = model.patch_grid((height, width, channels))
    fields = None
    if grid.patches > _FEW:
        fields = _measure_together(measure, grid, (height, width))
    if fields is None:
        passes = _pad_sets(np.eye(grid.patches, dtype=bool))
        fields = np.concatenate([_normalise(part) for _, part in _in_parts(measure, passes)])
    return fields[: grid.patches]


def _measure_together(
    measure: _Measure, grid: PatchGrid, size: tuple[int, int]
) -> np.ndarray | None:
    """Measures patches that see nothing in common in one pass.

    Args:
      measure: of sets of patches.
      grid: of the patches.
      size: (height, width) of the images, in pixels.

    Returns:
      `[P, H, W]` as of `receptive_fields`; None where that would save little, or a patch sees more than the
      ones by which the sets were made.
    """
    numbers = np.arange(grid.patches).reshape(grid.rows, grid.cols)
    quarter = (grid.rows // 4, grid.cols // 4)
    inner = numbers[quarter[0] :: quarter[0] + 1, quarter[1] :: quarter[1] + 1]
    # Corners, where borders may be otherwise, and places inside.
    some = [*numbers[[0, 0, -1, -1], [0, -1, 0, -1]], *inner.ravel()[1::2]]
    pixels = [np.arange(side) + 0.5 for side in size]
    # Of each patch and line of pixels the distance of their middles.
    middles = (grid.centres().astype(np.float64) * size).T
    gaps = [
        np.abs(axis[None] - middle[:, None]) for axis, middle in zip(pixels, middles, strict=True)
    ]
    visible = measure(np.eye(grid.patches)[some]) != 0
    lines = (visible.any(axis=2), visible.any(axis=1))
    # Places of patches are rounded, and those of pixels lie a whole pixel apart.
    reach = [(gap[some] * line).max() + 0.25 for gap, line in zip(gaps, lines, strict=True)]
    # With a line between two of a set that neither sees, where what is seen beyond would be.
    steps = [
        min(count, math.ceil((2 * far + 2) / (side * grid.stride / places)))
        for far, side, places, count in zip(
            reach, size, grid.map_size, (grid.rows, grid.cols), strict=True
        )
    ]
    if 2 * steps[0] * steps[1] > grid.patches:
        return None
    sets = np.zeros((steps[0] * steps[1], grid.patches), bool)
    for number, (row, col) in enumerate(np.ndindex(*steps)):
        sets[number, numbers[row :: steps[0], col :: steps[1]].ravel()] = True
    near = [gap <= far for gap, far in zip(gaps, reach, strict=True)]
    fields = np.zeros((grid.patches, *size), np.float32)
    for members, energies in _in_parts(measure, _pad_sets(sets)):
        for of_set, energy in zip(members, energies, strict=True):
            around = near[0][of_set][:, :, None] & near[1][of_set][:, None, :]
            if (energy[~around.any(axis=0)] != 0).any():
                return None
            fields[of_set] = _normalise(np.where(around, energy, 0))
    return fields


def _pad_sets(sets: np.ndarray) -> np.ndarray:
    """Adds empty sets to `[S, P]`, so that all calls are of one size."""
    return np.pad(sets, ((0, -len(sets) % _AT_ONCE), (0, 0)))


def _in_parts(measure: _Measure, sets: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields some sets and their energies at a time, with progress in the log."""
    progress, clock = Progress(0, len(sets)), LogClock(_LOG_SECONDS)
    for start in range(0, len(sets), _AT_ONCE):
        members = sets[start : start + _AT_ONCE]
        yield members, measure(members)
        done = start + _AT_ONCE
        if clock.is_due():
            progress.measure(done)
            remaining = progress.time_left(done)
            log.info("what patches see: %d of %d passes  %s left", done, len(sets), remaining)


def _normalise(energies: np.ndarray) -> np.ndarray:
    """Makes fields whose sums are 1 of energies `[P, H, W]`."""
    fields = np.sqrt(energies.astype(np.float64))
    totals = fields.sum(axis=(1, 2), keepdims=True)
    return (fields / np.where(totals > 0, totals, 1.0)).astype(np.float32)


def on_images(
    model: ImageNetwork, variables: Any, images: np.ndarray, spec: data.DatasetSpec
) -> np.ndarray:
    """Computes `receptive_fields` on images of a run's data set.

    `[N, H, W, C]` uint8.
    """
    pixels = data.normalise(jnp.asarray(images), spec.mean, spec.std, model.dtype)
    return receptive_fields(model, variables, pixels)


def pixel_map(values: np.ndarray, fields: np.ndarray) -> np.ndarray:
    """Spreads patches' values over the pixels that they see.

    A pixel has their mean, by how strongly they see it.

    Equal values give an even map, whatever the patches see.

    Args:
      values: `[..., P]`.
      fields: `[P, H, W]` from `receptive_fields`.

    Returns:
      `[..., H, W]` float64; 0 at a pixel that no patch sees.
    """
    weights = np.asarray(fields, np.float64)
    total = weights.sum(axis=0)
    mean = np.tensordot(np.asarray(values, np.float64), weights, axes=1)
    return mean / np.where(total > 0, total, 1.0)


def extents(fields: np.ndarray, share: float = 0.95) -> tuple[float, float]:
    """Computes the share of the image that patches see.

    Args:
      fields: `[P, H, W]` from `receptive_fields`.
      share: of the dependence.

    Returns:
      The part that a patch can see at all, and the smallest part that holds `share` of its dependence.
    """
    flat = -np.sort(-np.asarray(fields, np.float64).reshape(len(fields), -1), axis=1)
    is_below = np.cumsum(flat, axis=1) < share * flat.sum(axis=1, keepdims=True)
    alive = flat.sum(axis=1) > 0
    return float(np.mean(flat > 0)), float(np.mean((is_below.sum(axis=1) + alive) / flat.shape[1]))

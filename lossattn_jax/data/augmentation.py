"""Random crop, flip and normalisation inside the jitted step.

Every example draws from a key of its own, `fold_in(key, position)`, with `position` its place in
the global batch. So an example's augmentation depends neither on how the batch is split over
devices nor on its neighbours.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from lossattn_jax.data.specs import DatasetSpec
from lossattn_jax.data.views import cut_centre

_TRIES = 10  # of random parts
_PROPORTIONS = (3 / 4, 4 / 3)  # of width and height of a random part, the least and the greatest
_CROP, _FLIP = 0, 1  # folded into the step's key, so that the two draws are independent


def example_keys(key: jax.Array, batch: int, positions: ArrayLike | None = None) -> jax.Array:
    """Makes a random key for each example.

    Args:
      key: the step's key.
      batch: number of examples B at hand.
      positions: int32 [B], their places in the global batch; None for 0 ... B - 1.

    Returns:
      Keys [B].
    """
    places = jnp.arange(batch) if positions is None else jnp.asarray(positions)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, places)


def random_crop(
    key: jax.Array, images: jax.Array, pad: int = 4, positions: ArrayLike | None = None
) -> jax.Array:
    """Moves images by up to `pad` pixels; the border is zero.

    The same as padding by `pad` black pixels and cutting a random window of the old size, each of
    the (2 pad + 1)^2 windows being equally likely.

    Args:
      key: the step's key.
      images: [B, H, W, C], any dtype.
      pad: pixels; 0 leaves the images alone.
      positions: int32 [B], the examples' places in the global batch; None for 0 ... B - 1.

    Returns:
      [B, H, W, C] of the same dtype.
    """
    if pad == 0:
        return images
    batch, *shape = images.shape
    keys = example_keys(jax.random.fold_in(key, _CROP), batch, positions)
    corners = jax.vmap(lambda k: jax.random.randint(k, (2,), 0, 2 * pad + 1))(keys)
    with_border = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    # Slicing beats a one-hot product, a gather of indices and selecting among shifted copies; it
    # also becomes a single gather of whole windows on accelerators.
    def window(image: jax.Array, corner: jax.Array) -> jax.Array:
        start = (corner[0], corner[1], jnp.zeros_like(corner[0]))
        return jax.lax.dynamic_slice(image, start, shape)

    return jax.vmap(window)(with_border, corners)


def random_part(
    key: jax.Array,
    images: jax.Array,
    size: tuple[int, int],
    area: float,
    positions: ArrayLike | None = None,
    *,
    flip: bool | jax.Array = False,
) -> jax.Array:
    """Cuts a random part out of each image and resizes it.

    As is usual for photographs: the part's share of the area is uniform in [`area`, 1], the logarithm of its
    width by its height uniform between those of 3/4 and 4/3. Of ten draws the first one counts whose part
    fits into the image; where none does, it is the whole image. Its place is uniform, in fractions of pixels.
    It is resized bilinearly, with a filter that widens with the reduction.

    Args:
      key: the step's key.
      images: [B, H, W, C], any dtype.
      size: (height, width) of the result.
      area: smallest share of the area, above 0.
      positions: int32 [B], the examples' places in the global batch; None for 0 ... B - 1.
      flip: mirror parts as `random_flip` does, for the same key the same ones; or bool [B], which ones.

    Returns:
      float32 [B, *size, C], of values as those of `images`.
    """
    batch, height, width, channels = images.shape
    keys = example_keys(jax.random.fold_in(key, _CROP), batch, positions)
    flips = _which_flips(key, flip, batch, positions)
    low, high = jnp.log(jnp.float32(_PROPORTIONS[0])), jnp.log(jnp.float32(_PROPORTIONS[1]))

    def cut(key: jax.Array, image: jax.Array, mirrored: jax.Array) -> jax.Array:
        draws = jax.random.uniform(key, (_TRIES + 1, 2))
        areas = (area + (1 - area) * draws[:-1, 0]) * (height * width)
        proportions = jnp.exp(low + (high - low) * draws[:-1, 1])
        sides = jnp.stack([jnp.sqrt(areas / proportions), jnp.sqrt(areas * proportions)], axis=-1)
        whole = jnp.array([[height, width]], jnp.float32)
        fits = (sides <= whole).all(axis=-1)
        first = jnp.argmax(fits)
        part = jnp.where(fits[first], sides[first], whole[0])
        corner = draws[-1] * (whole[0] - part)
        rows = _resize_rows(image.reshape(height, -1), size[0], corner[0], part[0])
        turned = rows.reshape(size[0], width, channels).transpose(1, 0, 2)
        # To mirror the result instead takes seven times as long as to cut it.
        columns = _resize_rows(turned.reshape(width, -1), size[1], corner[1], part[1], mirrored)
        return columns.reshape(size[1], size[0], channels).transpose(1, 0, 2)

    return jax.vmap(cut)(keys, images, flips)


def _resize_rows(
    rows: jax.Array,
    count: int,
    start: jax.Array,
    length: jax.Array,
    reverse: ArrayLike = False,
) -> jax.Array:
    """Resizes a part of some rows bilinearly, with a filter that widens with the reduction.

    The same as `jax.image.scale_and_translate`, whose products with matrices that are nearly all 0 take
    several times as long.

    Args:
      rows: [n, m].
      count: rows of the result.
      start: scalar, where the part begins, in rows.
      length: scalar, of the part, in rows; with `start` within the n.
      reverse: scalar, whether the result begins with the part's last row.

    Returns:
      float32 [count, m].
    """
    total = rows.shape[0]
    step = length / count
    width = jnp.maximum(step, 1.0)  # from the middle of the filter, a triangle, to where it is 0
    most = math.ceil(2 * max(total / count, 1.0))  # rows that it can cover
    order = jnp.arange(count, dtype=jnp.float32)
    order = jnp.where(reverse, count - 1 - order, order)
    middles = start + (order + 0.5) * step - 0.5
    first = jnp.floor(middles - width).astype(jnp.int32) + 1
    places = first[:, None] + jnp.arange(most)[None]
    distances = jnp.abs(middles[:, None] - places.astype(jnp.float32))
    weights = jnp.maximum(1 - distances / width, 0)
    weights = jnp.where((places >= 0) & (places < total), weights, 0)
    weights = weights / weights.sum(axis=1, keepdims=True)
    places = jnp.clip(places, 0, total - 1)
    parts = [
        weights[:, tap, None] * rows[places[:, tap]].astype(jnp.float32) for tap in range(most)
    ]
    return functools.reduce(jnp.add, parts)


def crop(
    key: jax.Array,
    images: jax.Array,
    size: tuple[int, int],
    *,
    pad: int,
    area: float,
    flip: bool | jax.Array = False,
    positions: ArrayLike | None = None,
) -> jax.Array:
    """Crops stored images for training, and mirrors half of them.

    Those of a network's size by `random_crop`, larger ones by `random_part`, or where `area` is 0 to their
    centre.

    Args:
      key: the step's key.
      images: [B, H, W, C], any dtype.
      size: (height, width) of the result.
      pad: as of `random_crop`.
      area: as of `random_part`; or 0.
      flip: mirror by `random_flip`; or bool [B], which images to mirror.
      positions: int32 [B], the examples' places in the global batch; None for 0 ... B - 1.

    Returns:
      [B, *size, C].
    """
    if images.shape[1:3] != size and area:
        return random_part(key, images, size, area, positions, flip=flip)
    if images.shape[1:3] == size:
        images = random_crop(key, images, pad, positions)
    else:
        images = cut_centre(images, size)
    if flip is False:
        return images
    return _mirror(images, _which_flips(key, flip, images.shape[0], positions))


def random_flip(key: jax.Array, images: jax.Array, positions: ArrayLike | None = None) -> jax.Array:
    """Mirrors images left to right with probability 1/2.

    Args:
      key: the step's key.
      images: [B, H, W, C], any dtype.
      positions: int32 [B], the examples' places in the global batch; None for 0 ... B - 1.

    Returns:
      [B, H, W, C] of the same dtype.
    """
    return _mirror(images, _which_flips(key, True, images.shape[0], positions))


def alternate_flips(key: jax.Array, indices: jax.Array, epoch: ArrayLike) -> jax.Array:
    """Decides which images to mirror so that two epochs show both sides.

    A draw for each image decides on the first epoch, and every epoch changes the side, as in Jordan 2024
    ("94% on CIFAR-10 in 3.29 Seconds on a Single GPU"). With draws for every epoch half of the images look
    the same way twice.

    Args:
      key: of the run; not of the step.
      indices: int32 [B], the images' places in the training set.
      epoch: int32 scalar, from 0.

    Returns:
      bool [B], for `augment`.
    """
    return _draw_flips(key, indices.shape[0], indices) ^ (jnp.asarray(epoch) % 2 == 1)


def _which_flips(
    key: jax.Array, flip: bool | jax.Array, batch: int, positions: ArrayLike | None
) -> jax.Array:
    """Which images to mirror, bool [B]: drawn where `flip` is True, none, or as it says."""
    if flip is True:
        return _draw_flips(jax.random.fold_in(key, _FLIP), batch, positions)
    return jnp.zeros(batch, bool) if flip is False else flip


def _draw_flips(key: jax.Array, batch: int, positions: ArrayLike | None) -> jax.Array:
    """Draws True or False for each example; bool [B]."""
    return jax.vmap(jax.random.bernoulli)(example_keys(key, batch, positions))


def _mirror(images: jax.Array, flips: jax.Array) -> jax.Array:
    """Mirrors those of [B, H, W, C] that `flips`, bool [B], names."""
    return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)


def normalise(
    images: jax.Array,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: DTypeLike = jnp.float32,
) -> jax.Array:
    """Computes (images / 255 - mean) / std in float32.

    Args:
      images: [B, H, W, C] of values 0 ... 255.
      mean: C channel means of pixels / 255.
      std: C channel standard deviations of the same.
      dtype: of the result.

    Returns:
      [B, H, W, C] of `dtype`.
    """
    centre, spread = (jnp.asarray(c, jnp.float32).reshape(1, 1, 1, -1) for c in (mean, std))
    return ((images.astype(jnp.float32) / 255.0 - centre) / spread).astype(dtype)


def network_input(images: jax.Array, spec: DatasetSpec, dtype: DTypeLike) -> jax.Array:
    """Turns images as a data set hands them out into a network's input.

    Args:
      images: uint8 [B, H, W, C], or floats where `spec.is_network_input`.
      spec: of the data set.
      dtype: of the result.

    Returns:
      [B, H, W, C] of `dtype`, normalised.
    """
    if spec.is_network_input:
        return images.astype(dtype)
    return normalise(images, spec.mean, spec.std, dtype)


def augment(
    key: jax.Array,
    images: jax.Array,
    *,
    spec_flip: bool | jax.Array,
    mean: Sequence[float],
    std: Sequence[float],
    pad: int = 4,
    size: tuple[int, int] | None = None,
    area: float = 0.08,
    dtype: DTypeLike = jnp.float32,
    positions: ArrayLike | None = None,
) -> jax.Array:
    """Crops, flips and normalises a training batch.

    It flips where the data set allows it.

    Pixels are padded with black before normalisation, as is usual for CIFAR.

    Args:
      key: the step's key, such as `fold_in(run_key, step)`.
      images: uint8 [B, H, W, C], as stored.
      spec_flip: `DatasetSpec.flip`; or bool [B], which images to mirror, as of `alternate_flips`.
      mean: `DatasetSpec.mean`.
      std: `DatasetSpec.std`.
      pad: pixels of the random crop; 0 for none.
      size: (height, width) of the network's images; None: that of `images`.
      area: smallest share of a random part of larger `images`; 0: their centre.
      dtype: of the result.
      positions: int32 [B], the examples' places in the global batch; None for 0 ... B - 1.

    Returns:
      [B, *size, C] of `dtype`.
    """
    height, width = size or images.shape[1:3]
    images = crop(
        key, images, (height, width), pad=pad, area=area, flip=spec_flip, positions=positions
    )
    return normalise(images, mean, std, dtype)

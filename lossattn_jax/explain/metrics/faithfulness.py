"""Faithfulness: the network's outputs while parts of images are removed.

What the metrics take, under the same names:

- predict: any function from images `[B, H, W, C]` float32 to probabilities `[B, K]`, each image by itself.
- images: `[B, H, W, C]` float, normalised, so that 0 is the data set's mean colour.
- classes: `[B]` int in [0, K), whose probability is followed.
- ranks: `[B, H, W]` int, the explanation: pixels of lower rank are more important and go first
  (`by_pixels`, `by_patches`; `least_first` turns them round). Only their order counts. Pixels of equal rank
  go together, as soon as the number of pixels to remove reaches the middle of theirs.

Values are float32, per image, and no image changes another's: padding is masked when they are averaged,
by `metrics.mean_of(values, mask)`, or for `[B, S]` `jax.vmap(metrics.mean_of, (1, None))(values, mask)`.
Shares are computed one after the other, so that memory does not grow with their number.

Shapes, dtypes and numbers that do not fit raise a `ValueError` with a sentence, also while traced.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax.arguments import NUMBERS, WHOLE, check_arrays, check_number
from lossattn_jax.explain.metrics.imputation import BLUR, blur, linear_imputation
from lossattn_jax.models import PatchGrid

Predict = Callable[[jax.Array], jax.Array]
Cells = np.ndarray | jax.Array

NOISE = 0.01  # Rong et al. 2022
PATCH_SHARES = (0.1, 0.2, 0.5)
# Where a share of a number is whole or a half, its rounding is not to decide.
_SLACK = 1e-6


class Road(NamedTuple):
    """Results of ROAD, each `[B, S]` float32.

    Attributes:
      probability: of the class.
      is_highest: 1 where the class is (still) the most probable one, else 0.
    """

    probability: jax.Array
    is_highest: jax.Array


def cells(grid: PatchGrid, size: tuple[int, int]) -> np.ndarray:
    """Finds the patch of each pixel: the nearest centre's.

    Of several the first.

    Windows overlap or leave gaps; cells are a partition of the image. Where the grid is finer than the
    pixels, some patches have none.

    Args:
      grid: places of the P patches.
      size: (height, width) of the image, in pixels.

    Returns:
      `[height, width]` int32 in [0, P).
    """
    rows, cols = (_nearest(grid, axis, size[axis]) for axis in (0, 1))
    return (rows[:, None] * grid.cols + cols[None, :]).astype(np.int32)


def by_pixels(maps: jax.Array) -> jax.Array:
    """Ranks pixels by value, highest first.

    Equal ones are in row-major order.

    Args:
      maps: `[B, H, W]` float.

    Returns:
      `[B, H, W]` int32: each of 0 ... H * W - 1 once.
    """
    check_arrays(maps=(maps, "B H W", NUMBERS))
    return _ranks(maps.reshape(maps.shape[0], -1)).reshape(maps.shape)


def by_patches(patches: jax.Array, cells: Cells) -> jax.Array:
    """Ranks pixels by their patches' values, highest first.

    Equal patches are in their order.

    Args:
      patches: `[B, P]` float.
      cells: `[H, W]` int, see the function `cells`.

    Returns:
      `[B, H, W]` int32 in [0, P): the rank of the pixel's patch.
    """
    check_arrays(patches=(patches, "B P", NUMBERS))
    check_arrays(cells=(cells, "H W", WHOLE))
    return _ranks(patches)[:, jnp.asarray(cells)]


def least_first(ranks: jax.Array) -> jax.Array:
    """Reverses `ranks` `[B, H, W]`."""
    check_arrays(ranks=(ranks, "B H W", WHOLE))
    return jnp.max(ranks, axis=(1, 2), keepdims=True) - ranks


def deletion(
    predict: Predict, images: jax.Array, classes: jax.Array, ranks: jax.Array, steps: int
) -> jax.Array:
    """Computes the class's probability while pixels become mean colour.

    RISE, Petsiuk et al. 2018.

    Returns:
      `[B, steps + 1]`: with the shares 0, 1 / steps, ..., 1 of the pixels removed, rounded half up. The
      lower its `area`, the better the explanation.
    """
    _check(images, classes, ranks)
    images = images.astype(jnp.float32)
    return _curve(predict, classes, ranks, steps, jnp.zeros_like(images), images)


def insertion(
    predict: Predict,
    images: jax.Array,
    classes: jax.Array,
    ranks: jax.Array,
    steps: int,
    sigma: float = BLUR,
) -> jax.Array:
    """Computes the class's probability while pixels enter a blurred image.

    RISE, Petsiuk et al. 2018.

    Returns:
      `[B, steps + 1]`: with the shares 0, 1 / steps, ..., 1 of the pixels inserted, rounded half up. The
      higher its `area`, the better the explanation. The blur is that of `blur`.
    """
    _check(images, classes, ranks)
    images = images.astype(jnp.float32)
    return _curve(predict, classes, ranks, steps, images, blur(images, sigma))


def area(curve: jax.Array) -> jax.Array:
    """Computes the area `[B]` under curves `[B, steps + 1]`.

    Over shares from 0 to 1, by trapezoids.
    """
    check_arrays(curve=(curve, "B S", NUMBERS))
    if curve.shape[1] < 2:
        raise ValueError(f"curve has the shape {curve.shape}, but must be [B, steps + 1]")
    return jnp.mean((curve[:, 1:] + curve[:, :-1]) / 2, axis=1)


def road(
    predict: Predict,
    images: jax.Array,
    classes: jax.Array,
    ranks: jax.Array,
    shares: Sequence[float],
    key: jax.Array,
    *,
    iterations: int | None = None,
) -> Road:
    """Computes ROAD: probabilities while imputed pixels replace removed ones.

    Rong et al. 2022: so the shape of a hole tells little.

    With `ranks` the most relevant pixels go first: the faster the probability falls, the better. With
    `least_first(ranks)` the least relevant ones: the slower, the better.

    Args:
      shares: S shares of the pixels to remove, each in [0, 1].
      key: `jax.random.key` for the noise of deviation `NOISE` (in normalised units) on imputed pixels,
        which also depends on the share's and the image's place; or `[B]` of them, one per image, for
        noise that does not depend on the image's place in the batch.
      iterations: of `linear_imputation`.

    Returns:
      `Road`.

    Raises:
      ValueError: a share is out of range.
    """
    if not all(0 <= share <= 1 for share in shares):
        raise ValueError(f"the shares are {tuple(shares)}, but each must lie between 0 and 1")
    _check(images, classes, ranks)
    if key.ndim and key.shape != images.shape[:1]:
        raise ValueError(f"key has the shape {key.shape}, but must be one key, or {len(images)}")
    images = images.astype(jnp.float32)
    places = jnp.arange(len(images))
    keys = key if key.ndim else jax.vmap(functools.partial(jax.random.fold_in, key))(places)
    middles, pixels = _middles(ranks), images.shape[1] * images.shape[2]
    limits = [math.floor(2 * share * pixels + _SLACK) for share in shares]

    def look(step: tuple[jax.Array, jax.Array]) -> Road:
        number, limit = step
        missing = middles <= limit
        noise = jax.vmap(
            lambda k: jax.random.normal(jax.random.fold_in(k, number), images.shape[1:])
        )(keys)
        imputed = linear_imputation(images, missing, iterations)
        imputed += jnp.where(missing[..., None], NOISE * noise, 0.0)
        probabilities = predict(imputed)
        is_highest = jnp.argmax(probabilities, axis=-1) == classes
        return Road(_of_class(probabilities, classes), is_highest.astype(jnp.float32))

    numbers = jnp.arange(len(limits))
    result = jax.lax.map(look, (numbers, jnp.asarray(limits, jnp.int32)))
    return Road(result.probability.T, result.is_highest.T)


def comprehensiveness(
    predict: Predict,
    images: jax.Array,
    classes: jax.Array,
    patches: jax.Array,
    cells: Cells,
    shares: Sequence[float] = PATCH_SHARES,
) -> jax.Array:
    """Computes falls of the class's probability without top patches.

    ERASER, DeYoung et al. 2020.

    Args:
      patches: `[B, P]` float; of equal ones the first is the higher.
      cells: `[H, W]` int, see the function `cells`: what goes with a patch, replaced by the mean colour.
      shares: S shares of the patches, rounded half up to k patches, and at least 1.

    Returns:
      `[B, S]`: the higher, the better; negative where the probability rises.
    """
    return _drops(predict, images, classes, patches, cells, shares, keep=False)


def sufficiency(
    predict: Predict,
    images: jax.Array,
    classes: jax.Array,
    patches: jax.Array,
    cells: Cells,
    shares: Sequence[float] = PATCH_SHARES,
) -> jax.Array:
    """Computes falls of the class's probability with top patches alone.

    DeYoung et al. 2020.

    Arguments as for `comprehensiveness`.

    Returns:
      `[B, S]`: the lower, the better; negative where the probability rises.
    """
    return _drops(predict, images, classes, patches, cells, shares, keep=True)


def _drops(
    predict: Predict,
    images: jax.Array,
    classes: jax.Array,
    patches: jax.Array,
    cells: Cells,
    shares: Sequence[float],
    *,
    keep: bool,
) -> jax.Array:
    """Computes falls `[B, S]` of the class's probability.

    With (`keep`) or without the top patches of each of S.
    """
    check_arrays(
        images=(images, "B H W C", NUMBERS),
        classes=(classes, "B", WHOLE),
        patches=(patches, "B P", NUMBERS),
        cells=(cells, "H W", WHOLE),
    )
    for share in shares:
        check_number("a share", share, 0, 1, high_too=True)
    images = images.astype(jnp.float32)
    ranks, tops = by_patches(patches, cells), _tops(shares, patches.shape[1])

    def look(top: jax.Array) -> jax.Array:
        visible = (ranks < top) == keep
        return _of_class(predict(jnp.where(visible[..., None], images, 0.0)), classes)

    # The whole image goes through the same program, so that only pixels make a difference.
    whole = np.iinfo(np.int32).max if keep else 0
    probabilities = jax.lax.map(look, jnp.asarray([whole, *tops], jnp.int32)).T
    return probabilities[:, :1] - probabilities[:, 1:]


def _check(images: jax.Array, classes: jax.Array, ranks: jax.Array) -> None:
    """Refuses images, classes and ranks that do not fit together."""
    check_arrays(
        images=(images, "B H W C", NUMBERS),
        classes=(classes, "B", WHOLE),
        ranks=(ranks, "B H W", WHOLE),
    )


def _tops(shares: Sequence[float], count: int) -> list[int]:
    """Counts the patches of each share, of `count`."""
    return [max(1, math.floor(share * count + 0.5 + _SLACK)) for share in shares]


def _curve(
    predict: Predict,
    classes: jax.Array,
    ranks: jax.Array,
    steps: int,
    end: jax.Array,
    start: jax.Array,
) -> jax.Array:
    """Computes probabilities while pixels of `end` replace those of `start`."""
    check_number("steps", steps, 1, whole=True, static=True)
    middles = _middles(ranks)
    pixels = ranks.shape[1] * ranks.shape[2]
    limits = [2 * pixels * step // steps for step in range(steps + 1)]

    def look(limit: jax.Array) -> jax.Array:
        images = jnp.where((middles <= limit)[..., None], end, start)
        return _of_class(predict(images), classes)

    return jax.lax.map(look, jnp.asarray(limits, jnp.int32)).T


def _middles(ranks: jax.Array) -> jax.Array:
    """Computes twice the middle of each pixel's rank, `[B, H, W]`.

    int32: 1, 3, 5, ... without ties.

    A share s of N pixels removes what has `middle <= 2 s N`: without ties s N pixels, rounded half up.
    """
    flat = ranks.reshape(ranks.shape[0], -1)
    sorted_values = jnp.sort(flat, axis=1)
    before, upto = (
        jax.vmap(functools.partial(jnp.searchsorted, side=side))(sorted_values, flat)
        for side in ("left", "right")
    )
    return (before + upto).astype(jnp.int32).reshape(ranks.shape)


def _ranks(values: jax.Array) -> jax.Array:
    """Ranks values in descending order, `[B, N]` int32.

    Equal ones in the order they come.
    """
    order = jnp.argsort(values, axis=1, stable=True, descending=True)
    return jnp.argsort(order, axis=1).astype(jnp.int32)


def _of_class(probabilities: jax.Array, classes: jax.Array) -> jax.Array:
    own = jnp.take_along_axis(probabilities, classes[:, None], axis=1)[:, 0]
    return own.astype(jnp.float32)


def _nearest(grid: PatchGrid, axis: int, pixels: int) -> np.ndarray:
    """Finds the nearest row or column of patches, `[pixels]`.

    Rows for axis 0, columns for 1.

    In units of 1 / (2 * pixels * positions) everything is whole, so that ties are ties.
    """
    count, positions = (grid.rows, grid.cols)[axis], grid.map_size[axis]
    centres = (2 * np.arange(count) * grid.stride + grid.kernel) * pixels
    places = (2 * np.arange(pixels) + 1) * positions
    return np.argmin(np.abs(places[:, None] - centres[None]), axis=1)

"""Agreement of maps: similarity, and what should change them or not.

Sanity checks (Adebayo et al. 2018, "Sanity Checks for Saliency Maps"): a map that explains the network has
to change when the network's weights are randomised, part by part from the classifier down (`stages`,
`randomise`). Stability: it should move with the image when the image is shifted (`shift`,
`shift_back`). Either is measured by `spearman` or `top_overlap` of the maps before and after.

Maps are `[B, ...]`, such as patches `[B, P]` or pixels `[B, H, W]`: finite floats of which only the order
counts. Both measures take each image by itself and can be traced; `valid`, of the maps' shape, says which
places are compared (None: all). Maps that do not fit together raise a `ValueError`, also while traced.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax.arguments import MASK, NUMBERS, check_arrays, check_number
from lossattn_jax.checkpoint.tree_names import name_leaves
from lossattn_jax.commands import imports
from lossattn_jax.models.network import BACKBONE, HEAD

__getattr__ = imports.former_names(
    __name__, {"shifted": "shift", "shifted_back": "shift_back", "randomised": "randomise"}
)


def spearman(first: jax.Array, second: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Computes Spearman's rank correlation of two maps.

    Equal values have the mean of their ranks.

    Args:
      first: `[B, ...]` float.
      second: `[B, ...]` float, of the same shape.
      valid: `[B, ...]` bool or 0/1, of the same shape; None: all.

    Returns:
      `[B]` float32 in [-1, 1]; 0 where a map is constant or has no valid place.
    """
    first, second, valid = _flatten(first, second, valid)
    count = jnp.sum(valid, axis=1, keepdims=True, dtype=jnp.float32)
    # Centred and in units of the count, so that sums of squares of many ranks stay exact enough.
    a, b = (
        jnp.where(valid, (_ranks(x, valid) - (count - 1) / 2) / jnp.maximum(count, 1), 0.0)
        for x in (first, second)
    )
    norms = jnp.sqrt(jnp.sum(a * a, axis=1)) * jnp.sqrt(jnp.sum(b * b, axis=1))
    correlation = jnp.sum(a * b, axis=1) / jnp.where(norms > 0, norms, 1.0)
    return jnp.clip(correlation, -1.0, 1.0)


def top_overlap(
    first: jax.Array, second: jax.Array, share: float, valid: jax.Array | None = None
) -> jax.Array:
    """Computes the share of k highest places in common.

    The intersection of Ghorbani et al. 2019 ("Interpretation of Neural Networks Is Fragile"), with k as a
    share of the places, rounded half up, and at least 1. Places of equal value that cannot all be among
    the k highest belong to them in equal parts, and a place is common to the smaller of its two parts: so
    equal maps overlap fully whatever their ties, and a flat map overlaps with one without ties by k / N.

    Args:
      first: `[B, ...]` float.
      second: `[B, ...]` float, of the same shape.
      share: of the (valid) places, above 0 and at most 1.
      valid: `[B, ...]` bool or 0/1, of the same shape; None: all.

    Returns:
      `[B]` float32 in [0, 1]; 0 where no place is valid.

    Raises:
      ValueError: `share` is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}, but must be above 0 and at most 1")
    first, second, valid = _flatten(first, second, valid)
    count = jnp.sum(valid, axis=1, keepdims=True).astype(jnp.float32)
    size = jnp.maximum(jnp.floor(share * count + 0.5), 1.0)
    common = jnp.minimum(_membership(first, valid, size), _membership(second, valid, size))
    return jnp.sum(common, axis=1) / size[:, 0]


def shift(images: jax.Array, dy: jax.Array | int, dx: jax.Array | int) -> jax.Array:
    """Shifts images down by `dy` and right by `dx` pixels.

    The edge is repeated where nothing comes in.

    Args:
      images: `[B, H, W, ...]`: images or maps.
      dy: whole number of any sign; may be traced.
      dx: as `dy`.

    Returns:
      The same shape and dtype.
    """
    _check_shift(dy, dx)
    if np.ndim(images) < 3:
        raise ValueError(f"images has the shape {np.shape(images)}, but must be [B, H, W, ...]")
    height, width = images.shape[1:3]
    rows = jnp.clip(jnp.arange(height) - dy, 0, height - 1)
    cols = jnp.clip(jnp.arange(width) - dx, 0, width - 1)
    return images[:, rows][:, :, cols]


def shift_back(
    maps: jax.Array, dy: jax.Array | int, dx: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """Moves maps of images that `shift` moved back.

    Args:
      maps: `[B, H, W]` of the shifted images.
      dy: as in `shift`.
      dx: as in `shift`.

    Returns:
      `[B, H, W]` maps, and `[B, H, W]` bool: False for what the shift pushed out of the image, where the
      maps hold their edge.
    """
    check_arrays(maps=(maps, "B H W", NUMBERS))
    _check_shift(dy, dx)
    height, width = maps.shape[1:]
    rows, cols = jnp.arange(height) + dy, jnp.arange(width) + dx
    in_rows, in_cols = (rows >= 0) & (rows < height), (cols >= 0) & (cols < width)
    valid = in_rows[:, None] & in_cols[None, :]
    return shift(maps, -dy, -dx), jnp.broadcast_to(valid[None], maps.shape)


def stages(params: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Names the parts that are randomised together, prediction first.

    Whatever names a pooling gives its layers, and head and backbone theirs: all that lies beside these two is
    what predicts.

    Args:
      params: `variables["params"]` of a network, or their shapes.

    Returns:
      Names for `randomise`, each stage with those of the stages before: "classifier" (the classifier and
      the pooling's own parameters), "head" and "backbone".
    """
    classifier = tuple(name for name in params if name not in (HEAD, BACKBONE))
    # A head that makes patches of a map's positions has no parameters.
    head, backbone = ((name,) if name in params else () for name in (HEAD, BACKBONE))
    return {
        "classifier": classifier,
        "head": classifier + head,
        "backbone": classifier + head + backbone,
    }


def randomise(params: Any, key: jax.Array, layers: Sequence[str]) -> Any:
    """Shuffles the values of named layers within each array.

    Shuffling is a draw without replacement from an array's own values: it keeps their mean, deviation
    and signs to the bit, and destroys what they say. An array of equal values (a fresh bias) stays.
    Running statistics are no parameters and are not meant to be changed.

    Args:
      params: nested mappings of arrays.
      key: random; an array's shuffle depends on this and the array's place in `params` only, so that
        going down the stages with one key leaves alone what was shuffled before.
      layers: names of arrays or of mappings, with "/" between levels: "classifier",
        "backbone/layer4_1", "head/conv1/conv/kernel".

    Returns:
      As `params`.

    Raises:
      ValueError: a name that `params` does not have.
    """
    leaves, tree = jax.tree.flatten(params)
    paths = [f"{name}/" for name, _ in name_leaves(params)]
    for layer in layers:
        if not any(path.startswith(f"{layer}/") for path in paths):
            raise ValueError(f"there are no parameters {layer!r}")
    prefixes = tuple(f"{layer}/" for layer in layers)
    values = [
        _shuffle(leaf, jax.random.fold_in(key, place)) if path.startswith(prefixes) else leaf
        for place, (path, leaf) in enumerate(zip(paths, leaves, strict=True))
    ]
    return jax.tree.unflatten(tree, values)


def _check_shift(dy: Any, dx: Any) -> None:
    for name, shift in (("dy", dy), ("dx", dx)):
        check_number(name, shift, -math.inf, whole=True)


def _shuffle(leaf: jax.Array, key: jax.Array) -> jax.Array:
    return jax.random.permutation(key, leaf.reshape(-1)).reshape(leaf.shape)


def _flatten(
    first: jax.Array, second: jax.Array, valid: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    check_arrays(
        first=(first, "...", NUMBERS), second=(second, "...", NUMBERS), valid=(valid, "...", MASK)
    )
    if np.ndim(first) < 2:
        raise ValueError(f"first has the shape {np.shape(first)}, but must be maps [B, ...]")
    batch = first.shape[0]
    flat = (x.astype(jnp.float32).reshape(batch, -1) for x in (first, second))
    a, b = flat
    if valid is None:
        return a, b, jnp.ones(a.shape, bool)
    return a, b, valid.astype(bool).reshape(batch, -1)


def _ranks(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Ranks the valid values of a row `[B, N]` from 0.

    Equal ones have the mean of theirs.
    """
    # What is not valid stands behind everything, where it takes no rank from the others.
    sorted_values = jnp.sort(jnp.where(valid, values, jnp.inf), axis=1)
    below, upto = (
        jax.vmap(functools.partial(jnp.searchsorted, side=side))(sorted_values, values)
        for side in ("left", "right")
    )
    return (below + upto - 1).astype(jnp.float32) / 2


def _membership(values: jax.Array, valid: jax.Array, size: jax.Array) -> jax.Array:
    """Computes each value's part in the `size` highest: 1, 0, between.

    Values are `[B, N]`, `size` is `[B, 1]`.
    """
    values = jnp.where(valid, values, -jnp.inf)
    sorted_values = jnp.sort(values, axis=1, descending=True)
    lowest = jnp.take_along_axis(sorted_values, size.astype(jnp.int32) - 1, axis=1)
    above, is_tied = values > lowest, (values == lowest) & valid
    num_above, num_tied = (
        jnp.sum(which, axis=1, keepdims=True).astype(jnp.float32) for which in (above, is_tied)
    )
    part = (size - num_above) / jnp.maximum(num_tied, 1.0)
    return jnp.where(above, 1.0, jnp.where(is_tied, part, 0.0))

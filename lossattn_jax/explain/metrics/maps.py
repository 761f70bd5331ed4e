"""An explainer's maps of a batch, and what metrics need."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lossattn_jax.evaluate import metrics
from lossattn_jax.explain.explainers import Relevance
from lossattn_jax.explain.metrics import faithfulness, localisation

# Relative slack by which a patch has to exceed the mean: in a flat map, rounding is not to decide.
_SLACK = 1e-5


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How explanations are measured.

    Attributes:
      steps: of the deletion and insertion curves.
      road_shares: of the pixels that ROAD removes.
      patch_shares: of the patches for comprehensiveness and sufficiency.
      patch_threshold: share of the image's highest value that a patch has to reach to count as found.
      shift: (down, right) in pixels that stability moves images by.
      seed: of ROAD's noise, of the explainers and of the randomised weights.
    """

    steps: int = 32
    road_shares: tuple[float, ...] = (0.1, 0.3, 0.5)
    patch_shares: tuple[float, ...] = faithfulness.PATCH_SHARES
    patch_threshold: float = 0.5
    shift: tuple[int, int] = (2, 2)
    seed: int = 0


class Scores(NamedTuple):
    """Precision, recall and F of some patches, `[B]` each."""

    precision: jax.Array
    recall: jax.Array
    f: jax.Array


@dataclasses.dataclass(eq=False)
class Maps:
    """Maps of B images, and what they are measured against.

    Under a trace; what is shared is made once.

    Attributes:
      predict: the class probabilities `[B, K]` of normalised images `[B, H, W, C]`.
      images: `[B, H, W, C]` float32, normalised.
      classes: `[B]` int: the predicted ones, which are explained.
      keys: random keys `[B]`.
      relevance: the explainer's relevance of patches and pixels.
      after_shift: of the images moved by `protocol.shift`.
      after_randomisation: of the images, by networks whose parameters are shuffled.
      protocol: how it is measured.
      cells: the patches' cells of pixels; see `faithfulness.cells`.
      centres: `[P, 2]` of the patches, fractions of the image.
      patch_boxes: `[P, 4]` of the patches, likewise.
      boxes: `[B, 4]` or `[B, M, 4]` of the objects of the explained class, likewise; only metrics that need
        boxes may look at them.
    """

    predict: Callable[[jax.Array], jax.Array]
    images: jax.Array
    classes: jax.Array
    keys: jax.Array
    relevance: Relevance
    after_shift: Relevance
    after_randomisation: Mapping[str, Relevance]
    protocol: Protocol
    cells: Any
    centres: jax.Array
    patch_boxes: jax.Array
    boxes: Any = None

    @property
    def class_inputs(self) -> tuple[Callable[[jax.Array], jax.Array], jax.Array, jax.Array]:
        """Returns `predict`, `images` and `classes`, the first arguments of `faithfulness`."""
        return self.predict, self.images, self.classes

    @functools.cached_property
    def ranks(self) -> Any:
        """Ranks pixels by relevance; see `faithfulness.by_pixels`."""
        return faithfulness.by_pixels(self.relevance.pixels)

    @functools.cached_property
    def inside(self) -> jax.Array:
        """Finds patches whose centre is in a box, `[B, P]` bool."""
        return metrics.centres_in_boxes(self.centres, self.boxes)

    @functools.cached_property
    def patch_scores(self) -> Any:
        """Computes `[B, T + 1]` scores of patches above each threshold.

        The last is `patch_threshold`.
        """
        levels = (*localisation.THRESHOLDS, self.protocol.patch_threshold)
        return localisation.patch_scores(self.relevance.patches, self.inside, levels)

    @functools.cached_property
    def above_mean(self) -> Scores:
        """Computes scores of the patches above the map's mean."""
        return Scores(*above_mean(self.relevance.patches, self.inside))


def above_mean(patches: jax.Array, inside: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes precision, recall and F `[B]` of patches above the mean.

    The mean is that of the map's positive part.

    Args:
      patches: `[B, P]` float. Where none is positive, or all are equal, none passes.
      inside: `[B, P]` bool: the true patches.
    """
    positive = jnp.maximum(patches.astype(jnp.float32), 0.0)
    # In units of the highest value no sum over- or underflows.
    highest = jnp.max(positive, axis=1, keepdims=True)
    shares = positive / jnp.where(highest > 0, highest, 1.0)
    passes = shares > (1 + _SLACK) * jnp.mean(shares, axis=1, keepdims=True)
    counts = (jnp.sum(w, axis=1, dtype=jnp.float32) for w in (passes & inside, passes, inside))
    return localisation.scores_of_counts(*counts)


def finite_rows(relevance: Relevance) -> jax.Array:
    """Finds images with a finite map, `[B]` bool."""
    return metrics.rows_finite(relevance.patches, relevance.pixels)

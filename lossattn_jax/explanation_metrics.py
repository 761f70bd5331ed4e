"""Every metric of an explainer on a batch, as one program over all devices.

Faithfulness and sanity are about the class that the network predicts: they ask whether the explanation tells
what the network used, right or wrong. Localisation is about the labelled object's box.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lossattn_jax import data, devices, faithfulness, localisation, losses, map_agreement, metrics
from lossattn_jax.explainers import Explainer, Relevance, Subject

# Parts of the network that are randomised together: each stage adds to those before it.
_STAGES = (("classifier", "transform", "attention"), ("head",), ("backbone",))

Sums = dict[str, metrics.Mean]
MetricStep = Callable[[Any, dict[str, jax.Array], jax.Array], Sums]
ExplainStep = Callable[[Any, jax.Array, jax.Array, jax.Array], Relevance]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How explanations are measured.

    Attributes:
      steps: of the deletion and insertion curves.
      road_shares: of the pixels that ROAD removes.
      patch_shares: of the patches for comprehensiveness and sufficiency.
      patch_threshold: share of the image's highest value that a patch has to reach to count as found.
      shift: (down, right) in pixels that stability moves images by.
      seed: of ROAD's noise and of the randomised weights.
    """

    steps: int = 32
    road_shares: tuple[float, ...] = (0.1, 0.3, 0.5)
    patch_shares: tuple[float, ...] = faithfulness.PATCH_SHARES
    patch_threshold: float = 0.5
    shift: tuple[int, int] = (2, 2)
    seed: int = 0


def image_keys(seed: int, index: jax.Array) -> jax.Array:
    """Random keys `[B]` of images by their places `[B]` in the data set, whatever batch they are in."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), index)


def make_explain_step(subject: Subject, explain: Explainer, spec: data.DatasetSpec) -> ExplainStep:
    """The pmapped explainer alone, to be timed.

    Takes replicated variables, and sharded images `[devices, b, H, W, C]` uint8, classes and places in
    the data set `[devices, b]`; returns the sharded `Relevance`.
    """

    def step(variables: Any, images: jax.Array, classes: jax.Array, index: jax.Array) -> Relevance:
        pixels = data.normalise(images, spec.mean, spec.std, subject.model.dtype)
        return explain(variables, pixels, classes, image_keys(0, index))

    return devices.pmap(step)


def make_metric_step(
    subject: Subject, explain: Explainer, spec: data.DatasetSpec, kind: str, protocol: Protocol
) -> MetricStep:
    """The pmapped sums of every metric over a batch.

    The step takes replicated variables, a sharded evaluation batch with `image`, `label`, `mask`, `index`
    and, where the data set has boxes, `box`, and the sharded predicted classes. It returns replicated
    sums over all devices, for `metrics.merge` and `metrics.compute`:

      deletion, insertion: areas under the curves. road_most, road_least: mean over the shares of the
        class's probability when the most or the least relevant pixels are imputed.
      comprehensiveness, sufficiency: mean over the shares of the patches.
      pointing, mass_in_box, patch_precision, patch_recall, patch_f, localised: with boxes only.
      similarity_classifier, similarity_head, similarity_backbone: Spearman's correlation of the pixels
        with those when the classifier (with learned attention or routing), then also the head, then also
        the backbone is randomised: near 0 is right.
      stability: Spearman's correlation with the map of the shifted image, moved back.

    Args:
      subject: the network.
      explain: the explainer.
      spec: of the data set.
      kind: of image loss; see `losses`.
      protocol: how it is measured.
    """
    grid = subject.model.patch_grid(subject.image_shape)
    height, width, _ = subject.image_shape
    cells = faithfulness.cells(grid, (height, width))
    centres, patch_boxes = jnp.asarray(grid.centres()), jnp.asarray(grid.boxes())

    def step(variables: Any, batch: dict[str, jax.Array], classes: jax.Array) -> Sums:
        images = data.normalise(batch["image"], spec.mean, spec.std, subject.model.dtype)
        images = images.astype(jnp.float32)
        keys = image_keys(protocol.seed, batch["index"])

        def predict(x: jax.Array) -> jax.Array:
            return losses.probabilities(kind, subject.outputs(variables, x).logits)

        found = explain(variables, images, classes, keys)
        values = _faithfulness(predict, images, classes, found, cells, keys, protocol)
        if "box" in batch:
            values |= _localisation(found, batch["box"], centres, patch_boxes, protocol)
        for name, params in _randomised(variables["params"], protocol.seed):
            other = explain({**variables, "params": params}, images, classes, keys)
            values[f"similarity_{name}"] = map_agreement.spearman(found.pixels, other.pixels)
        moved = explain(variables, map_agreement.shifted(images, *protocol.shift), classes, keys)
        back, valid = map_agreement.shifted_back(moved.pixels, *protocol.shift)
        values["stability"] = map_agreement.spearman(found.pixels, back, valid)
        sums = {name: metrics.mean_of(value, batch["mask"]) for name, value in values.items()}
        return jax.lax.psum(sums, devices.AXIS)

    return devices.pmap(step)


def _faithfulness(
    predict: faithfulness.Predict,
    images: jax.Array,
    classes: jax.Array,
    found: Relevance,
    cells: Any,
    keys: jax.Array,
    protocol: Protocol,
) -> dict[str, jax.Array]:
    ranks = faithfulness.by_pixels(found.pixels)
    common = (predict, images, classes)
    curves = {
        "deletion": faithfulness.deletion(*common, ranks, protocol.steps),
        "insertion": faithfulness.insertion(*common, ranks, protocol.steps),
    }
    values = {name: faithfulness.area(curve) for name, curve in curves.items()}
    for name, order in (("road_most", ranks), ("road_least", faithfulness.least_first(ranks))):
        road = faithfulness.road(*common, order, protocol.road_shares, keys)
        values[name] = jnp.mean(road.probability, axis=1)
    parts = (*common, found.patches, cells, protocol.patch_shares)
    values["comprehensiveness"] = jnp.mean(faithfulness.comprehensiveness(*parts), axis=1)
    values["sufficiency"] = jnp.mean(faithfulness.sufficiency(*parts), axis=1)
    return values


def _localisation(
    found: Relevance,
    boxes: jax.Array,
    centres: jax.Array,
    patch_boxes: jax.Array,
    protocol: Protocol,
) -> dict[str, jax.Array]:
    inside = metrics.centres_in_boxes(centres, boxes)
    scores = localisation.patch_scores(found.patches, inside, (protocol.patch_threshold,))
    return {
        "pointing": localisation.patch_pointing(found.patches, centres, boxes),
        "mass_in_box": localisation.mass_in_box(found.pixels, boxes),
        "patch_precision": scores.precision[:, 0],
        "patch_recall": scores.recall[:, 0],
        "patch_f": scores.f[:, 0],
        "localised": localisation.localised(found.patches, boxes, patch_boxes),
    }


def _randomised(params: Any, seed: int) -> list[tuple[str, Any]]:
    """Names and parameters of the cascade's stages."""
    layers = map_agreement.cascade(params)
    stages, chosen = [], []
    for parts in _STAGES:
        chosen += [layer for layer in layers if layer.split("/")[0] in parts]
        shuffled = map_agreement.randomised(params, jax.random.key(seed), chosen)
        stages.append((parts[0], shuffled))
    return stages

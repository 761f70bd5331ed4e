"""Outputs of a network for single images: hardest, first, or own.

The numbers come from the forward pass that evaluation runs; over a split they are the same to the bit.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lossattn_jax import data, devices
from lossattn_jax.attention import losses
from lossattn_jax.evaluate import metrics
from lossattn_jax.evaluate.evaluation import EvalStep, forward_batches

Sums = dict[str, metrics.Mean]
Rows = dict[str, np.ndarray]  # a batch and the outputs for it, on the host, without padding


@dataclasses.dataclass(frozen=True)
class Explanations:
    """What a network says about N images.

    Attributes:
      names: what each image is called.
      images: `[N, H, W, C]` uint8, as the network saw them.
      labels: `[N]` int32 or multi-hot uint8 `[N, K]`, or None where the classes are not known.
      boxes: `[N, 4]` float32 (ymin, xmin, ymax, xmax), fractions of the image, `[N, M, 4]` where an
        image may have several, or None.
      logits: `[N, K]` float32.
      probabilities: `[N, K]` float32; see `losses.probabilities`.
      patch_logits: `[N, P, K]` float32.
      attention: `[N, P]` float32.
      index: `[N]` int32, places in the split, or None for the user's own.
      reasons: why each image was picked, such as "least certain"; empty where there is no reason.
    """

    names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray | None
    boxes: np.ndarray | None
    logits: np.ndarray
    probabilities: np.ndarray
    patch_logits: np.ndarray
    attention: np.ndarray
    index: np.ndarray | None = None
    reasons: tuple[str, ...] = ()

    def classes(self, image: int) -> list[int]:
        """Returns the classes of an image's label; none where unknown."""
        if self.labels is None:
            return []
        label = self.labels[image]
        return np.flatnonzero(label).tolist() if label.ndim else [int(label)]

    def correct(self, image: int) -> bool | None:
        """Whether the most probable class is a label; None where unknown."""
        has_labels = self.labels is not None
        return int(self.logits[image].argmax()) in self.classes(image) if has_labels else None

    def entropy(self) -> np.ndarray:
        """Computes the attention's entropy over log P, `[N]` float64.

        0 with one patch.
        """
        return relative_entropy(self.attention)


def relative_entropy(attention: np.ndarray) -> np.ndarray:
    """Computes entropy of rows `[N, P]` over log P, float64.

    0 for one patch, 1 for an even weight on all.
    """
    entropy = np.asarray(metrics.attention_entropy(jnp.asarray(attention)), np.float64)
    return entropy / max(np.log(attention.shape[1]), 1e-12) if attention.shape[1] > 1 else entropy


def explain_dataset(
    eval_step: EvalStep,
    variables: Any,
    dataset: data.Dataset,
    num: int,
    batch_size: int,
    kind: str = losses.CROSS_ENTROPY,
) -> Explanations:
    """Explains the first `num` images of a split.

    Args:
      eval_step: from `make_eval_step`.
      variables: replicated "params" and "batch_stats".
      dataset: the split.
      num: number of images; a smaller split gives fewer.
      batch_size: as evaluation's, so that it is the same compiled program.
      kind: of image loss; see `losses`.
    """
    batches = -(-num // devices.round_up(batch_size))
    passes = itertools.islice(_passes(eval_step, variables, dataset, batch_size), batches)
    rows = _join([rows for rows, _ in passes])
    return _explanations(dataset.split, {name: array[:num] for name, array in rows.items()}, kind)


def hardest(
    eval_step: EvalStep,
    variables: Any,
    dataset: data.Dataset,
    num: int,
    batch_size: int,
    kind: str = losses.CROSS_ENTROPY,
    *,
    look: Callable[[Rows, Sums], None] = lambda rows, sums: None,
) -> Explanations:
    """Explains the images with least certainty or most diffuse attention.

    By turns the image whose most probable class is least probable, and the one whose attention has the
    highest entropy; of equal ones the first. What has to be kept does not grow with the split.

    Args:
      eval_step: from `make_eval_step`.
      variables: replicated "params" and "batch_stats".
      dataset: the split.
      num: number of images; a smaller split gives fewer.
      batch_size: as evaluation's, so that it is the same compiled program.
      kind: of image loss; see `losses`.
      look: called with each batch of the whole split, of all processes and without padding, and with its
        sums on the devices.

    Returns:
      `reasons` says "least certain" or "most diffuse".
    """
    rankings = {"least certain": _confidence, "most diffuse": _sharpness}
    extremes: dict[str, Rows] = {}
    for rows, sums in _passes(eval_step, variables, dataset, batch_size):
        look(rows, sums)
        for reason, key in rankings.items():
            both = _join([extremes[reason], rows]) if reason in extremes else rows
            best = np.lexsort((both["index"], key(both, kind)))[:num]
            extremes[reason] = {name: array[best] for name, array in both.items()}
    reasons: dict[int, tuple[str, int]] = {}
    for place, reason in itertools.product(range(min(num, len(dataset))), rankings):
        index = int(extremes[reason]["index"][place])
        if index not in reasons and len(reasons) < num:
            reasons[index] = (reason, place)
    rows = _join(
        [
            {name: array[place : place + 1] for name, array in extremes[reason].items()}
            for reason, place in reasons.values()
        ]
    )
    reasons_of_images = tuple(reason for reason, _ in reasons.values())
    return dataclasses.replace(_explanations(dataset.split, rows, kind), reasons=reasons_of_images)


def explain_at(
    eval_step: EvalStep,
    variables: Any,
    dataset: data.Dataset,
    index: np.ndarray,
    batch_size: int,
    look: Callable[[Sums], None] = lambda sums: None,
) -> np.ndarray:
    """Computes attention `[N, P]` of images at places `index`.

    In a pass over all of the split.

    Args:
      eval_step: from `make_eval_step`.
      variables: replicated "params" and "batch_stats".
      dataset: the split.
      index: places in the split, each once.
      batch_size: as evaluation's.
      look: called with each batch's sums on the devices.
    """
    attention_of: dict[int, np.ndarray] = {}
    places = set(index.tolist())
    for rows, sums in _passes(eval_step, variables, dataset, batch_size):
        look(sums)
        for place, attention in zip(rows["index"].tolist(), rows["attention"], strict=True):
            if place in places:
                attention_of[place] = attention
    return np.stack([attention_of[place] for place in index.tolist()])


def explain_images(
    eval_step: EvalStep,
    variables: Any,
    images: np.ndarray,
    names: Sequence[str],
    batch_size: int,
    spec: data.DatasetSpec,
    *,
    kind: str = losses.CROSS_ENTROPY,
) -> Explanations:
    """Explains images whose classes are not known.

    Args:
      eval_step: from `make_eval_step`.
      variables: replicated "params" and "batch_stats".
      images: `[N, H, W, C]` uint8 of the network's size.
      names: what to call them.
      batch_size: images per batch.
      spec: of the data set that the network was trained on.
      kind: of image loss; see `losses`.
    """
    labels = np.zeros((len(images), *spec.label_shape), spec.label_dtype)  # not looked at
    dataset = data.ArrayDataset(spec, "", images, labels)
    size = min(batch_size, len(images))
    explanations = explain_dataset(eval_step, variables, dataset, len(images), size, kind)
    return dataclasses.replace(explanations, names=tuple(names), labels=None, index=None)


def _passes(
    eval_step: EvalStep, variables: Any, dataset: data.Dataset, batch_size: int
) -> Iterator[tuple[Rows, Sums]]:
    """Yields batches of all processes with outputs and sums."""
    for batch, sums, outputs in forward_batches(eval_step, variables, dataset, batch_size):
        local = {**batch, **devices.gather(outputs)._asdict()}
        rows = devices.concatenate_processes(local)
        real = rows["mask"] > 0
        yield {name: array[real] for name, array in rows.items()}, sums


def _join(parts: Sequence[Rows]) -> Rows:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _confidence(rows: Rows, kind: str) -> np.ndarray:
    return np.asarray(losses.probabilities(kind, rows["logits"])).max(axis=-1)


def _sharpness(rows: Rows, kind: str) -> np.ndarray:
    del kind
    return -relative_entropy(rows["attention"])


def _explanations(split: str, rows: Rows, kind: str) -> Explanations:
    return Explanations(
        names=tuple(f"{split} {place}" for place in rows["index"]),
        images=rows["image"],
        labels=rows["label"],
        boxes=rows.get("box"),
        logits=rows["logits"],
        probabilities=np.asarray(losses.probabilities(kind, rows["logits"])),
        patch_logits=rows["patch_logits"],
        attention=rows["attention"],
        index=rows["index"],
    )

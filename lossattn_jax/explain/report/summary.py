"""Counts over a whole split, and their plots, for a report."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from lossattn_jax.attention import losses
from lossattn_jax.evaluate import metrics
from lossattn_jax.evaluate.metric_registry import CALIBRATION_BINS
from lossattn_jax.explain.explanations import Rows, relative_entropy
from lossattn_jax.explain.report import plots
from lossattn_jax.explain.report.plots import Plot

ENTROPY_BINS = 40
# Edges of a patch's weight as a multiple of the even weight 1 / P. Weight 0, what the threshold cut away,
# has the first bin to itself.
WEIGHT_EDGES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_NAMED_CLASSES = 30  # in the confusion matrix; more names would overlap


class Summary:
    """Counts over a split; `add` takes batches in any order and division."""

    def __init__(self, num_classes: int, kind: str, multi_label: bool):
        """Starts with no example.

        Args:
          num_classes: K.
          kind: of image loss; see `losses`.
          multi_label: whether labels are multi-hot; then a prediction is right if its most probable class
            is one of the image's, and there is neither a confusion matrix nor a reliability diagram.
        """
        self._kind = kind
        self.multi_label = multi_label
        self.images = 0
        self.entropy = np.zeros(ENTROPY_BINS, np.int64)
        self.entropy_sum = 0.0
        self.patches = np.zeros(len(WEIGHT_EDGES) + 1, np.int64)
        self.right_patches = np.zeros_like(self.patches)
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        self.confidences = np.zeros(CALIBRATION_BINS, np.int64)
        self.confidence_sum = np.zeros(CALIBRATION_BINS)
        self.right = np.zeros(CALIBRATION_BINS, np.int64)

    def add(self, rows: Rows) -> None:
        """Counts a batch.

        Args:
          rows: `label`, `logits`, `patch_logits` and `attention` of its images, without padding.
        """
        labels, attention = rows["label"], rows["attention"]
        self.images += len(labels)
        entropy = relative_entropy(attention)
        self.entropy_sum += float(entropy.sum())
        self.entropy += np.histogram(entropy.clip(0, 1), ENTROPY_BINS, (0, 1))[0]
        weights = np.asarray(attention, np.float64) * attention.shape[1]
        bins = np.searchsorted(WEIGHT_EDGES, weights, side="left")
        of_patches = np.broadcast_to(labels[:, None], (*attention.shape, *labels.shape[1:]))
        hits = _hits(rows["patch_logits"], of_patches)
        size = len(self.patches)
        self.patches += np.bincount(bins.ravel(), minlength=size)
        self.right_patches += np.bincount(bins[hits], minlength=size)
        right = _hits(rows["logits"], labels)
        confidence = np.asarray(losses.probabilities(self._kind, rows["logits"])).max(axis=-1)
        places = (confidence * CALIBRATION_BINS).astype(int).clip(0, CALIBRATION_BINS - 1)
        self.confidences += np.bincount(places, minlength=CALIBRATION_BINS)
        self.confidence_sum += np.bincount(places, confidence, minlength=CALIBRATION_BINS)
        self.right += np.bincount(places[right], minlength=CALIBRATION_BINS)
        if not self.multi_label:
            np.add.at(self.confusion, (labels, rows["logits"].argmax(axis=-1)), 1)

    def plots(self, class_names: Sequence[str]) -> list[Plot]:
        """Draws all plots that the labels allow."""
        own = [self._plot_entropy(), self._plot_patches()]
        if not self.multi_label:
            own += [self._plot_confusion(class_names), self._plot_reliability()]
        return own

    def _plot_entropy(self) -> Plot:
        figure, axis = plots.axes()
        edges = np.linspace(0, 1, ENTROPY_BINS + 1)
        axis.bar(edges[:-1], self.entropy, width=1 / ENTROPY_BINS, align="edge", color="#4477aa")
        axis.set_xlim(0, 1)
        axis.set_xlabel("entropy / log P  (0: one patch, 1: all alike)")
        axis.set_ylabel("images")
        mean = self.entropy_sum / max(self.images, 1)
        alt = (
            f"Histogram of the attention's entropy over log P in {self.images} images: mean {mean:.3f}; "
            f"{self.entropy[0]} images below {edges[1]:.3f}, {self.entropy[-1]} above {edges[-2]:.3f}."
        )
        return Plot("entropy", "How spread out attention is", plots.png(figure), alt)

    def _plot_patches(self) -> Plot:
        figure, axis = plots.axes()
        names = weight_names()
        has_examples = self.patches > 0
        accuracy = self.right_patches / np.maximum(self.patches, 1)
        places = np.arange(len(names))
        axis.bar(places[has_examples], accuracy[has_examples], color="#228833")
        axis.set_xticks(places, names, rotation=30, ha="right", fontsize=8)
        axis.set_ylim(0, 1)
        axis.set_xlabel("patch weight, as a multiple of the even weight 1 / P")
        axis.set_ylabel("patches that predict the label")
        for place, count in zip(places, self.patches, strict=True):
            axis.text(place, 0.02, f"{count:,}", ha="center", fontsize=7)
        sentence = "; ".join(
            f"weight {name}: {share:.3f} of {count} patches"
            for name, share, count in zip(names, accuracy, self.patches, strict=True)
            if count
        )
        alt = f"Share of patches that predict the image's label, by weight. {sentence}."
        return Plot("patches", "Are heavy patches right?", plots.png(figure), alt)

    def _plot_confusion(self, class_names: Sequence[str]) -> Plot:
        figure, axis = plots.axes(5.2, 4.6)
        totals = np.maximum(self.confusion.sum(axis=1, keepdims=True), 1)
        shares = self.confusion / totals
        picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        figure.colorbar(picture, label="share of the labelled class")
        if len(class_names) <= _NAMED_CLASSES:
            ticks = range(len(class_names))
            axis.set_xticks(ticks, class_names, rotation=90, fontsize=7, parse_math=False)
            axis.set_yticks(ticks, class_names, fontsize=7, parse_math=False)
        if len(class_names) <= 10:
            for row, column in np.argwhere(self.confusion):
                colour = "white" if shares[row, column] > 0.5 else "black"
                count = str(self.confusion[row, column])
                axis.text(column, row, count, ha="center", va="center", fontsize=6, color=colour)
        axis.set_xlabel("predicted")
        axis.set_ylabel("label")
        wrong = self.confusion * (1 - np.eye(len(class_names), dtype=np.int64))
        order = np.argsort(-wrong, axis=None, kind="stable")[:5]
        pairs = [np.unravel_index(place, wrong.shape) for place in order]
        sentence = "; ".join(
            f"{class_names[row]} taken for {class_names[column]} {wrong[row, column]} times"
            for row, column in pairs
            if wrong[row, column]
        )
        right = int(np.trace(self.confusion))
        alt = f"Confusion matrix: {right} of {self.images} images on the diagonal. {sentence or 'No other'}."
        return Plot("confusion", "What is taken for what", plots.png(figure), alt)

    def _plot_reliability(self) -> Plot:
        figure, axis = plots.axes()
        has_examples = self.confidences > 0
        count = np.maximum(self.confidences, 1)
        confidence, accuracy = self.confidence_sum / count, self.right / count
        axis.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--")
        sizes = 20 + 180 * self.confidences[has_examples] / max(self.images, 1)
        axis.scatter(
            confidence[has_examples], accuracy[has_examples], s=sizes, color="#aa3377", alpha=0.8
        )
        axis.plot(confidence[has_examples], accuracy[has_examples], color="#aa3377", lw=1)
        axis.set_xlim(0, 1.02)
        axis.set_ylim(0, 1.02)
        axis.set_xlabel("probability of the predicted class")
        axis.set_ylabel("share that is right")
        sentence = "; ".join(
            f"confidence {c:.2f}: {a:.2f} right of {n}"
            for c, a, n in zip(confidence, accuracy, self.confidences, strict=True)
            if n
        )
        error = self.calibration_error()
        alt = f"Reliability diagram, expected calibration error {error:.4f}. {sentence}."
        return Plot("reliability", "Is confidence earned?", plots.png(figure), alt)

    def calibration_error(self) -> float:
        """Expected calibration error, as `metric_registry.evaluation_metrics` has it."""
        return float(np.abs(self.confidence_sum - self.right).sum() / max(self.images, 1))


def weight_names() -> list[str]:
    """Names the bins of `WEIGHT_EDGES`."""
    edges = [f"{edge:g}" for edge in WEIGHT_EDGES]
    inner = [f"{low} to {high}" for low, high in zip(edges, edges[1:], strict=False)]
    return ["0 (cut)", *inner, f"above {edges[-1]}"]


def _hits(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`metrics.hits` as bool on the host."""
    return np.asarray(metrics.hits(jnp.asarray(logits), jnp.asarray(labels))) > 0

"""The figure `curves.png` of out-of-fold predictions, drawn with matplotlib.

It is imported on first use. No number is taken from the figure; `metrics.json` has them.
"""

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from lossattn_jax.data.bags.label_sets import has_several
from lossattn_jax.mil.bag_metrics import CALIBRATION_BINS, calibration_bins, ranking_scores
from lossattn_jax.mil.out_of_fold import RepeatPredictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distinct for all common kinds of colour vision (Okabe and Ito 2008), without the yellow.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MOST_NAMED = len(_COLOURS)  # classes; of more, there are no names and no counts
_LONGEST_NAME, _LONGEST_TITLE = 24, 120  # characters


def draw(
    predictions: Sequence[RepeatPredictions],
    classes: Sequence[str],
    positive: int | None,
    title: str,
) -> bytes:
    """Draws ROC and precision-recall curves, reliability and confusion.

    There is a curve for each repeat, of the positive class of two, else of each class against the rest, and
    none of a class without bags or that has all of them. The reliability diagram has the bins of the
    class-wise calibration error, points as large as their bins, of all repeats together; the confusion matrix
    counts the bags of all repeats.

    Args:
      predictions: of the repeats.
      classes: K names.
      positive: place of the positive class; None: none is.
      title: of the figure.

    Returns:
      A PNG file; the same for the same arguments and release of matplotlib.
    """
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.6), dpi=100, layout="constrained")
    # A name with two dollar signs is no formula, and one that the font lacks is drawn as boxes.
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure.suptitle(_shorten(title, _LONGEST_TITLE), fontsize=10)
        axes = figure.subplots(1, 4)
        is_finite = all(np.isfinite(one.probabilities).all() for one in predictions)
        if is_finite and len(classes) > 1:
            drawn = range(len(classes)) if positive is None else (positive,)
            _draw_rankings(axes[0], axes[1], predictions, drawn)
            _draw_reliability(axes[2], predictions, drawn)
            _draw_confusion(axes[3], predictions, classes)
            _name_classes(figure, classes, drawn)
        else:
            reason = "one class only" if is_finite else "probabilities are not finite"
            for axis in axes:
                axis.text(0.5, 0.5, reason, ha="center", va="center", fontsize=8)
        titles = ("ROC", "precision and recall", "reliability", "confusion")
        for axis, text in zip(axes, titles, strict=True):
            axis.set_title(text, fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_rankings(
    roc: "Axes", precision: "Axes", predictions: Sequence[RepeatPredictions], drawn: Sequence[int]
) -> None:
    roc.plot([0, 1], [0, 1], color="0.7", lw=1, ls="--")
    for one in predictions:
        several = has_several(one.labels)
        scores = one.probabilities if several else ranking_scores(one.probabilities)
        for k in drawn:
            truth = _truth(one.labels, k)
            if not truth.any() or truth.all():
                continue
            look: dict[str, Any] = {"color": _COLOURS[k % len(_COLOURS)], "lw": 1, "alpha": 0.7}
            false_rate, true_rate, _ = roc_curve(truth, scores[:, k])
            roc.plot(false_rate, true_rate, **look)
            values, recall, _ = precision_recall_curve(truth, scores[:, k])
            precision.plot(recall, values, drawstyle="steps-post", **look)
    _label(roc, "false positive rate", "true positive rate")
    _label(precision, "recall", "precision")


def _truth(labels: np.ndarray, place: int) -> np.ndarray:
    """`[n]` bool: the bags of a class, or with one of several labels."""
    return labels[:, place] > 0 if has_several(labels) else labels == place


def _draw_reliability(
    axis: "Axes", predictions: Sequence[RepeatPredictions], drawn: Sequence[int]
) -> None:
    labels = np.concatenate([one.labels for one in predictions])
    probabilities = np.concatenate([one.probabilities for one in predictions])
    axis.plot([0, 1], [0, 1], color="0.7", lw=1, ls="--")
    for k in drawn:
        own = np.clip(probabilities[:, k], 0, 1)
        bins = calibration_bins(own)
        count = np.bincount(bins, minlength=CALIBRATION_BINS)
        there = count > 0
        mean = np.bincount(bins, own, CALIBRATION_BINS)[there] / count[there]
        frequency = np.bincount(bins, _truth(labels, k), CALIBRATION_BINS)[there] / count[there]
        colour = _COLOURS[k % len(_COLOURS)]
        axis.plot(mean, frequency, color=colour, lw=1)
        sizes = 8 + 120 * count[there] / len(own)
        axis.scatter(mean, frequency, s=sizes, color=colour, alpha=0.7)
    _label(axis, "mean probability of the class", "frequency of the class")


def _draw_confusion(
    axis: "Axes", predictions: Sequence[RepeatPredictions], classes: Sequence[str]
) -> None:
    if has_several(predictions[0].labels):
        axis.text(
            0.5, 0.5, "one for each label: metrics.json", ha="center", va="center", fontsize=8
        )
        return
    counts = np.zeros((len(classes), len(classes)), np.int64)
    for one in predictions:
        np.add.at(counts, (one.labels, np.argmax(one.probabilities, axis=1)), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    if len(classes) <= _MOST_NAMED:
        names = [_shorten(name) for name in classes]
        axis.set_xticks(range(len(names)), names, fontsize=7, rotation=45, ha="right")
        axis.set_yticks(range(len(names)), names, fontsize=7)
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, str(count), ha="center", va="center", fontsize=8, color=colour)
    axis.set_xlabel("predicted", fontsize=8)
    axis.set_ylabel("label", fontsize=8)


def _name_classes(figure: "Figure", classes: Sequence[str], drawn: Sequence[int]) -> None:
    """Puts a legend of the classes below, unless there are too many."""
    from matplotlib.lines import Line2D

    if len(drawn) <= _MOST_NAMED:
        lines = [Line2D([], [], color=_COLOURS[k % len(_COLOURS)]) for k in drawn]
        names = [_shorten(classes[k]) for k in drawn]
        figure.legend(
            lines, names, loc="outside lower left", ncols=len(names), fontsize=8, frameon=False
        )


def _shorten(name: str, longest: int = _LONGEST_NAME) -> str:
    """Makes one line of a text; what matplotlib cannot draw becomes an escape."""
    words = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(name.split()))
    return words if len(words) <= longest else f"{words[: longest - 3]}..."


def _label(axis: "Axes", xlabel: str, ylabel: str) -> None:
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axis.set_xlabel(xlabel, fontsize=8)
    axis.set_ylabel(ylabel, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3, lw=0.5)
    axis.spines[["top", "right"]].set_visible(False)

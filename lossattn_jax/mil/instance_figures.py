"""Figures of attention's precision on instances, drawn with matplotlib.

Matplotlib is imported on first use.

    by_lambda = {0.0: mean_and_spread(runs_of_0), 1e-4: mean_and_spread(runs_of_1e_4), ...}
    save(threshold_figure({key: value["scaled"] for key, value in by_lambda.items()}), "thresholds.png")
    scores = {
        "F-score": {key: at_threshold(value["scaled"]["f_score"], 0.5) for key, value in by_lambda.items()},
        "bag accuracy": {key: value["accuracy"] for key, value in by_lambda.items()},
    }
    save(lambda_figure(scores), "lambda.png")

Summaries are those of `instance_metrics.mean_and_spread`, or what JSON made of them. Nothing here
touches pyplot's global state.
"""

import math
import numbers
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from lossattn_jax import files
from lossattn_jax.errors import UserError
from lossattn_jax.mil.instance_metrics import THRESHOLDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Distinct for all common kinds of colour vision (Okabe and Ito 2008), without the yellow, which is hard to
# see on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">")
_STYLES = ("-", "--", "-.", ":")
_LIGHTEST = 0.9  # of viridis; the yellow end is hard to see on white
_TRUE, _OTHER = "#D55E00", "0.6"

# Inches, of `bag_figure`.
_CELL, _BARS, _NAMES, _LEFT_MARGIN, _TITLE, _NARROWEST = 0.8, 0.6, 0.25, 0.65, 0.25, 4.0


def threshold_figure(
    curves: Mapping[Any, Mapping[str, Any]],
    thresholds: ArrayLike = THRESHOLDS,
    *,
    legend_title: str | None = None,
    xlabel: str = "threshold of the weight",
) -> "Figure":
    """Draws precision, recall and F-score against the threshold.

    Means are lines, standard deviations bands.

    Args:
      curves: for each method, or each lambda, the summary of its `threshold_metrics`: `precision`,
        `recall` and `f_score`, each with `mean` and `std` `[T]`. If all keys are numbers, the curves are
        in their order and so are the colours, from dark to light; else each has a colour of its own.
      thresholds: `[T]`.
      legend_title: None: "λ" if all keys are numbers, else nothing.
      xlabel: of all three panels.

    Raises:
      ValueError: no curve, or one with another number of thresholds.
    """
    from matplotlib.figure import Figure

    if not curves:
        raise ValueError("there is no curve to draw")
    places = np.asarray(thresholds, np.float64)
    numeric = all(isinstance(key, numbers.Real) for key in curves)
    keys = sorted(curves) if numeric else list(curves)
    looks = _looks(len(keys), numeric)
    figure = Figure(figsize=(11, 3.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    titles = {"precision": "precision", "recall": "recall", "f_score": "F-score"}
    for axis, (name, title) in zip(panels, titles.items(), strict=True):
        for key, look in zip(keys, looks, strict=True):
            _draw_curve(axis, places, curves[key][name], _name(key), look)
        axis.set_title(title)
        axis.set_xlabel(xlabel)
        if len(places) <= len(THRESHOLDS):  # more would overlap
            axis.set_xticks(places)
        axis.set_ylim(0, 1.02)
        _tidy(axis)
    title = ("λ" if numeric else "") if legend_title is None else legend_title
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", title=title, frameon=False)
    return figure


def at_threshold(
    summary: Mapping[str, Any], threshold: float, thresholds: ArrayLike = THRESHOLDS
) -> dict[str, Any]:
    """Takes one threshold's part of a summary, for `lambda_figure`.

    Args:
      summary: arrays `[T]`, such as the `mean`, `std` and `runs` of F-scores.
      threshold: one of `thresholds`.
      thresholds: `[T]` of the summary.

    Raises:
      ValueError: there is no such threshold.
    """
    limits = np.asarray(thresholds, np.float64)
    place = np.flatnonzero(np.isclose(limits, threshold))
    if len(place) != 1:
        raise ValueError(f"the threshold is {threshold}, but must be one of {limits}")
    return {part: values[place[0]] for part, values in summary.items()}


def lambda_figure(
    series: Mapping[str, Mapping[float, Mapping[str, Any]]],
    *,
    ylabel: str = "",
    bottom: float = 0.0,
) -> "Figure":
    """Draws scores against lambda, on a logarithmic axis.

    The axis has 0 one decade left of the smallest other value.

    Args:
      series: for each score, such as "F-score at 0.5" or "bag accuracy", the `mean` and `std` for each
        lambda (0 or more; not all have to have the same).
      ylabel: what the scores are.
      bottom: of the axis of scores; its top is 1.

    Raises:
      ValueError: no value to draw, or a lambda that is negative or not finite.
    """
    from matplotlib.figure import Figure

    ticks = sorted({float(value) for by_lambda in series.values() for value in by_lambda})
    if not ticks or ticks[0] < 0 or not math.isfinite(sum(ticks)):
        raise ValueError(
            f"the values of lambda are {ticks}, but must be 0 or more, and at least one"
        )
    figure = Figure(figsize=(6.4, 4), dpi=150, layout="constrained")
    axis = figure.subplots()
    looks = _looks(len(series), in_order=False)
    for (label, by_lambda), look in zip(series.items(), looks, strict=True):
        keys = sorted(by_lambda)
        summary = {part: [by_lambda[key][part] for key in keys] for part in ("mean", "std")}
        _draw_curve(axis, np.asarray(keys, np.float64), summary, label, look)
    positive = [tick for tick in ticks if tick > 0]
    if positive:
        axis.set_xscale("symlog", linthresh=positive[0], linscale=1)
        low = -0.3 * positive[0] if ticks[0] == 0 else positive[0] * 0.5
        axis.set_xlim(low, max(positive[-1], 2 * positive[0]) * 2)
    axis.set_xticks(ticks, [_name(tick) for tick in ticks])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("λ")
    axis.set_ylabel(ylabel)
    axis.set_ylim(bottom, 1 + 0.02 * (1 - bottom))
    _tidy(axis)
    figure.legend(loc="outside upper center", ncols=min(len(series), 3), frameon=False)
    return figure


def bag_figure(
    images: ArrayLike,
    weights: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    class_names: Sequence[str] | None = None,
    title: str = "",
    columns: int = 12,
) -> "Figure":
    """Draws a bag's images with bars of their weights.

    Each true instance has a frame.

    Args:
      images: `[n, height, width]`, or with 1 or 3 channels `[n, height, width, channels]`. uint8 is shown
        as it is; of others each channel is stretched so that the bag's lowest value is 0 and its highest
        full intensity, which undoes a normalisation.
      weights: `[n]`.
      labels: `[n]` int instance labels, of which those greater than 0 are true; None: not known.
      class_names: for each instance label a name, shown above the image ("" for nothing).
      title: of the figure.
      columns: images in a row at most; a longer bag has several rows.

    Raises:
      ValueError: shapes that do not fit, no instance, a weight that is not finite, or no column.
    """
    from matplotlib.figure import Figure

    pixels, shares = _to_unit_range(np.asarray(images)), np.asarray(weights, np.float64)
    own_labels = np.zeros(len(pixels), np.int64) if labels is None else np.asarray(labels)
    if not len(pixels) or shares.shape != pixels.shape[:1] or own_labels.shape != shares.shape:
        raise ValueError(
            f"weights and labels have to be one for each of {len(pixels)} images, and at least one, "
            f"not {shares.shape} and {own_labels.shape}"
        )
    if not np.isfinite(shares).all() or columns < 1:
        raise ValueError("weights have to be finite, and a row has to have one image at least")
    across = min(len(pixels), columns)
    down = -(-len(pixels) // across)
    unit = _NAMES + _CELL + _BARS
    width = max(_LEFT_MARGIN + _CELL * across + 0.1, _NARROWEST if title else 0)
    height = unit * down + 0.1 + (_TITLE if title else 0)
    figure = Figure(figsize=(width, height), dpi=150)
    if title:
        figure.suptitle(
            title, x=_LEFT_MARGIN / width, y=1 - 0.05 / height, ha="left", va="top", fontsize=9
        )
    highest = max(float(shares.max()), 1e-12)
    for row in range(down):
        part = slice(row * across, (row + 1) * across)
        left, wide = _LEFT_MARGIN / width, _CELL * len(pixels[part]) / width
        bottom = 0.1 + unit * (down - 1 - row)
        names = None if class_names is None else [class_names[k] for k in own_labels[part]]
        box = (left, (bottom + _BARS) / height, wide, _CELL / height)
        _draw_images(figure.add_axes(box), pixels[part], own_labels[part] > 0, names)
        box = (left, bottom / height, wide, 0.9 * _BARS / height)
        _draw_bars(figure.add_axes(box), shares[part], own_labels[part] > 0, highest)
    return figure


def save(figure: "Figure", path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes a figure in the format that the path's ending names.

    Such as .png, .pdf and .svg.

    Raises:
      UserError: the file cannot be written, or there is no such format.
    """
    try:
        with files.replacing(path) as file:
            figure.savefig(file, format=pathlib.Path(path).suffix.removeprefix(".") or None)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the picture {os.fspath(path)} cannot be written: {reason}") from None
    return pathlib.Path(path)


def _looks(count: int, in_order: bool) -> list[dict[str, Any]]:
    """Chooses colour, marker and line style of each curve."""
    from matplotlib import colormaps

    scale = colormaps["viridis"](np.linspace(0, _LIGHTEST, count))
    return [
        {
            "color": tuple(scale[place]) if in_order else _COLOURS[place % len(_COLOURS)],
            "marker": _MARKERS[place % len(_MARKERS)],
            "linestyle": "-" if in_order else _STYLES[place // len(_COLOURS) % len(_STYLES)],
        }
        for place in range(count)
    ]


def _draw_curve(
    axis: "Axes", x: np.ndarray, summary: Mapping[str, Any], label: str, look: Mapping[str, Any]
) -> None:
    """Draws means as a line, and deviations as a band.

    The band is one deviation to either side, within [0, 1].
    """
    mean, std = (np.asarray(summary[part], np.float64) for part in ("mean", "std"))
    if mean.shape != x.shape or std.shape != x.shape:
        raise ValueError(f"{label} has {mean.shape} means and {std.shape} deviations for {x.shape}")
    axis.plot(x, mean, label=label, markersize=4, lw=1.5, **look)
    band = np.clip([mean - std, mean + std], 0, 1)
    if np.isfinite(band).any():
        axis.fill_between(x, band[0], band[1], color=look["color"], alpha=0.13, lw=0)


def _draw_images(
    axis: "Axes", pixels: np.ndarray, true: np.ndarray, names: Sequence[str] | None
) -> None:
    from matplotlib.patches import Rectangle

    for place, image in enumerate(pixels):
        edges = (place - 0.46, place + 0.46, -0.46, 0.46)
        axis.imshow(image, extent=edges, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        if true[place]:
            frame = Rectangle((place - 0.46, -0.46), 0.92, 0.92, fill=False, ec=_TRUE, lw=2.5)
            axis.add_patch(frame)
        if names is not None:
            axis.text(place, 0.52, names[place], ha="center", va="bottom", fontsize=8)
    axis.set(xlim=(-0.5, len(pixels) - 0.5), ylim=(-0.5, 0.5), aspect="auto")
    axis.set_axis_off()


def _draw_bars(axis: "Axes", shares: np.ndarray, true: np.ndarray, highest: float) -> None:
    colours = [_TRUE if is_true else _OTHER for is_true in true]
    bars = axis.bar(range(len(shares)), shares, width=0.7, color=colours)
    axis.bar_label(bars, fmt="{:.2f}", fontsize=7, padding=1)
    axis.set(xlim=(-0.5, len(shares) - 0.5), ylim=(0, 1.35 * highest))
    axis.set_xticks([])
    axis.set_ylabel("weight", fontsize=8)
    axis.tick_params(axis="y", labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)


def _to_unit_range(images: np.ndarray) -> np.ndarray:
    """Scales images `[n, height, width(, 3)]` to values in [0, 1]."""
    if images.ndim not in (3, 4) or images.ndim == 4 and images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images have to be [n, height, width], with 1 or 3 channels at most, not {images.shape}"
        )
    pixels = images.astype(np.float64)
    if images.dtype == np.uint8:
        pixels /= 255
    elif images.size:
        axes = (0, 1, 2)
        low = pixels.min(axis=axes, keepdims=True)
        spread = pixels.max(axis=axes, keepdims=True) - low
        pixels = (pixels - low) / np.where(spread > 0, spread, 1)
    return pixels[..., 0] if images.ndim == 4 and images.shape[-1] == 1 else pixels


def _name(key: Any) -> str:
    return f"{key:g}" if isinstance(key, numbers.Real) else str(key)


def _tidy(axis: "Axes") -> None:
    axis.grid(alpha=0.3, lw=0.5)
    axis.spines[["top", "right"]].set_visible(False)

"""Table and figures of a comparison of explainers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lossattn_jax.explain.metrics.metric_registry import METRICS, Metric
from lossattn_jax.registry import is_reference

_COLUMNS = 4
_CURVES = ("precision", "recall", "f")


def table(measurements: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats Markdown: a row per metric, a column per explainer.

    An arrow says where the metric is better.
    """
    names = list(measurements)
    lines = [f"| metric | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for row, metric in _rows(measurements).items():
        cells = [measurements[name][row] for name in names]
        texts = " | ".join("-" if cell is None else f"{cell:.3f}" for cell in cells)
        lines.append(f"| {row}{metric.arrow} | {texts} |")
    return "\n".join(lines) + "\n"


def draw(measurements: Mapping[str, Mapping[str, Any]]) -> Any:
    """Draws bars for each metric, and curves over thresholds.

    Curves where there are boxes.

    Args:
      measurements: of `compare_explainers.compare`.

    Returns:
      A matplotlib Figure.
    """
    from matplotlib.figure import Figure

    names, rows = list(measurements), _rows(measurements)
    with_curves = "curves" in measurements[names[0]]
    bars = math.ceil(len(rows) / _COLUMNS)
    heights = [0.8 + 0.25 * len(names)] * bars + [2.8] * with_curves
    figure = Figure(figsize=(3.2 * _COLUMNS, sum(heights)), dpi=100, layout="constrained")
    axes = figure.subplots(len(heights), _COLUMNS, squeeze=False, height_ratios=heights)
    places = np.arange(len(names))[::-1]
    for axis, (row, metric) in zip(axes[:bars].ravel(), rows.items(), strict=False):
        axis.barh(places, [measurements[name][row] for name in names], color="#4477aa")
        axis.set_yticks(places, names, fontsize=7)
        axis.tick_params(axis="x", labelsize=7)
        if metric.of_machine:
            _scale_times(axis, [measurements[name][row] for name in names])
        better = {True: " (higher is better)", False: " (lower is better)", None: ""}[metric.higher]
        axis.set_title(f"{row}{better}", fontsize=7)
    for axis in axes[:bars].ravel()[len(rows) :]:
        axis.set_axis_off()
    if with_curves:
        _draw_curves(axes[-1], {name: measurements[name]["curves"] for name in names})
    return figure


def _scale_times(axis: Any, times: Sequence[float]) -> None:
    """Makes an axis logarithmic where times are of several sizes."""
    if max(times) > 10 * min(times):
        axis.set_xscale("log")
        axis.set_xlim(left=min(times) / 2)


def _draw_curves(axes: Any, curves: Mapping[str, Mapping[str, list[float]]]) -> None:
    """Draws precision, recall and F against the threshold.

    A panel each, and the legend in the last one.
    """
    *panels, beside = axes
    for axis, name in zip(panels, _CURVES, strict=True):
        for place, (explainer, curve) in enumerate(curves.items()):
            axis.plot(
                curve["threshold"],
                curve[name],
                marker="osD^vPX"[place % 7],
                markersize=3.5,
                linewidth=1,
                label=explainer,
            )
        axis.set_ylim(-0.03, 1.03)
        axis.tick_params(labelsize=7)
        axis.set_xlabel("share of the image's highest value", fontsize=7)
        axis.set_title(f"{'F' if name == 'f' else name} of the patches that reach it", fontsize=7)
    beside.set_axis_off()
    beside.legend(*panels[0].get_legend_handles_labels(), loc="center left", fontsize=8)


def _rows(measurements: Mapping[str, Mapping[str, Any]]) -> dict[str, Metric]:
    """Returns measured metrics in the registry's order.

    A user's own come behind them.
    """
    first = next(iter(measurements.values()))
    own = [name for name in first if is_reference(name)]
    return {name: METRICS.find(name) for name in (*METRICS, *own) if name in first}

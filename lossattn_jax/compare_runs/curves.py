"""Training curves of several runs, drawn from the lines of their logs."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from lossattn_jax.evaluate.metric_registry import EVALUATION_METRICS
from lossattn_jax.explain.report import plots

Lines = Sequence[Mapping[str, Any]]

_LOOKS = {"train": {"lw": 0.8, "ls": ":"}, "test": {"lw": 1.4, "marker": "o", "markersize": 3}}


def draw(lines: Mapping[str, Lines]) -> list[plots.Plot]:
    """Draws each metric that a training logs, over updates.

    Args:
      lines: by the runs' names what `reporting.read_legible_metrics` gives.

    Returns:
      A plot for each metric that a run has; dotted lines are of training batches.
    """
    names = [name for name, metric in EVALUATION_METRICS.items() if metric.in_log]
    return [
        _plot(name, lines)
        for name in names
        if any(_points(own, kind, name) for own in lines.values() for kind in _LOOKS)
    ]


def _plot(metric: str, lines: Mapping[str, Lines]) -> plots.Plot:
    import matplotlib

    figure, axis = plots.axes()
    sentences, handles = [], []
    # A name with two dollar signs is no formula, and one that the font lacks is drawn as boxes.
    with matplotlib.rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place, (run, own) in enumerate(lines.items()):
            for kind, look in _LOOKS.items():
                points = _points(own, kind, metric)
                (line,) = axis.plot(*zip(*points, strict=True) if points else ((), ()), **look)
                line.set_color(f"C{place}")
                if points:
                    step, value = points[-1]
                    number = f"{value:.4f}" if math.isfinite(value) else "not finite"
                    sentences.append(f"{run}, {kind}: {number} after {step} updates")
            handles.append(line)
        # Numbered, for a label that begins with an underscore is left out.
        numbered = [f"{place}. {run}" for place, run in enumerate(lines, 1)]
        axis.legend(handles, numbered, fontsize=7, frameon=False)
        axis.set_xlabel("updates")
        axis.set_ylabel(metric.replace("_", " "))
        picture = plots.png(figure)
    title = f"{metric.replace('_', ' ')}: test, and dotted training batches"
    alt = f"Curves of {metric.replace('_', ' ')}. At the end {'; '.join(sentences)}."
    return plots.Plot(f"curve_{metric}", title, picture, alt)


def _points(lines: Lines, kind: str, metric: str) -> list[tuple[int, float]]:
    """Steps and values of a metric; NaN, a gap, for what is not finite."""
    return [
        (line["step"], math.nan if line[metric] is None else line[metric])
        for line in lines
        if line.get("kind") == kind and isinstance(line.get(metric, ""), int | float | None)
    ]

"""Plots of reports: their axes, and how they become pictures."""

import dataclasses
import io
from typing import Any


@dataclasses.dataclass(frozen=True)
class Plot:
    """A picture, and a description for those who cannot see it.

    Attributes:
      name: of its file, without the suffix.
      title: a heading.
      png: the file's bytes.
      alt: what it shows, numbers included.
    """

    name: str
    title: str
    png: bytes
    alt: str


def axes(width: float = 5.2, height: float = 3.4) -> tuple[Any, Any]:
    """Makes a figure of some inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def png(figure: Any) -> bytes:
    """Draws a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()

"""Figures of explanations, drawn with matplotlib.

It is imported on first use, for quick starts.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lossattn_jax.explain.receptive_field import pixel_map
from lossattn_jax.models import PatchGrid

if TYPE_CHECKING:
    from lossattn_jax.explain.explanations import Explanations

_TOP = 5  # image predictions shown
_NAMED_COLUMNS = 8  # columns of patches up to which each is named
_BOX_COLOUR = "#00e5ff"


def draw_explanations(
    explanations: "Explanations",
    grid: PatchGrid,
    class_names: Sequence[str],
    fields: np.ndarray | None = None,
    most: int | None = None,
) -> Any:
    """One row per image: image, attention, patch predictions, image predictions.

    Args:
      explanations: what the network said about N images.
      grid: places of its patches.
      class_names: K names.
      fields: `[P, H, W]`, what each patch sees; see `receptive_field`. None: the patches' windows, which
        cost nothing to find.
      most: number of images to draw at most, the first; None: all.

    Returns:
      A matplotlib Figure.
    """
    import matplotlib
    from matplotlib.figure import Figure

    count = len(explanations.images[:most])
    if fields is None:
        fields = grid.coverage(explanations.images.shape[1:3])
    figure = Figure(figsize=(11, 2.6 * count + 0.4), dpi=100, layout="constrained")
    # A name with two dollar signs is no formula.
    with matplotlib.rc_context({"text.parse_math": False}):
        axes = figure.subplots(count, 4, squeeze=False, width_ratios=[1, 1, 1, 1.3])
        for index, row in enumerate(axes):
            for axis in row[:3]:
                axis.set_xticks([])
                axis.set_yticks([])
            _draw_image(row[0], explanations, index, class_names)
            _draw_attention(row[1], explanations, index, fields)
            _draw_patches(row[2], explanations, index, grid, class_names)
            _draw_predictions(row[3], explanations, index, class_names)
    titles = ("image", "attention", "patch predictions", "image prediction")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(f"{title}\n{axis.get_title()}" if axis.get_title() else title, fontsize=10)
    return figure


def _draw_image(axis: Any, e: "Explanations", index: int, class_names: Sequence[str]) -> None:
    axis.imshow(e.images[index], interpolation="nearest")
    name = e.names[index]
    names = ", ".join(class_names[k] for k in e.classes(index)[:_TOP])
    axis.set_xlabel(f"{name}: {names}" if names else name, fontsize=9)
    _draw_box(axis, e, index)


def _draw_box(axis: Any, e: "Explanations", index: int) -> None:
    from matplotlib.patches import Rectangle

    if e.boxes is None:
        return
    height, width = e.images.shape[1:3]
    for box in e.boxes[index].reshape(-1, 4):
        top, left, bottom, right = box * (height, width, height, width)
        if bottom < top or right < left:
            continue  # it is not there
        axis.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5),
                right - left,
                bottom - top,
                fill=False,
                color=_BOX_COLOUR,
                lw=1.2,
            )
        )


def _draw_attention(axis: Any, e: "Explanations", index: int, fields: np.ndarray) -> None:
    grey = e.images[index].mean(axis=-1)
    heat = pixel_map(e.attention[index], fields)
    axis.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.imshow(heat, cmap="inferno", alpha=0.65, interpolation="nearest")
    highest = e.attention[index].max() * e.attention.shape[1]
    axis.set_xlabel(f"highest weight: {highest:.1f} x uniform", fontsize=9)
    _draw_box(axis, e, index)


def _draw_patches(
    axis: Any, e: "Explanations", index: int, grid: PatchGrid, class_names: Sequence[str]
) -> None:
    """Draws a cell per patch in its predicted class's colour.

    The stronger the more it weighs.
    """
    from matplotlib import colormaps

    classes = e.patch_logits[index].argmax(axis=-1)
    weight = e.attention[index] / max(e.attention[index].max(), 1e-12)
    colours = colormaps["tab10" if len(class_names) <= 10 else "tab20"](classes % 20)[:, :3]
    shade = 0.15 + 0.85 * weight[:, None]
    cells = (shade * colours + (1 - shade)).clip(0, 1).reshape(grid.rows, grid.cols, 3)
    axis.imshow(cells, interpolation="nearest")
    labels = classes if grid.cols <= _NAMED_COLUMNS else ()  # more names would overlap
    for patch, label in enumerate(labels):
        name = class_names[label]
        axis.text(
            patch % grid.cols,
            patch // grid.cols,
            name if len(name) <= 4 else name[:4],
            ha="center",
            va="center",
            fontsize=7 if len(name) > 1 else 9,
            color="black" if weight[patch] > 0 else "0.6",
        )
    axis.set_xlabel("stronger colour: more weight", fontsize=9)


def _draw_predictions(axis: Any, e: "Explanations", index: int, class_names: Sequence[str]) -> None:
    probabilities = e.probabilities[index]
    top = np.argsort(-probabilities, kind="stable")[: min(_TOP, len(probabilities))]
    right = e.classes(index)
    unknown = e.labels is None
    colours = ["0.6" if unknown else "tab:green" if k in right else "tab:red" for k in top]
    axis.barh(range(len(top)), probabilities[top], color=colours)
    axis.set_yticks(range(len(top)), [class_names[k] for k in top], fontsize=9)
    axis.set_xlim(0, 1)
    axis.invert_yaxis()
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)

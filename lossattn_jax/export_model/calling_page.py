"""The page that tells how an exported network is called without this package."""

import pathlib
import string

from lossattn_jax.checkpoint import runs
from lossattn_jax.data.views import CROP, DRAFT, View
from lossattn_jax.files.escaping import for_markdown

_TEMPLATE = pathlib.Path(__file__).parent / "page.md"
_SQUEEZE_TEXT = "resized to {width} x {height} pixels, whatever its proportions"
_CROP_TEXT = (
    "cut to the largest box of the proportion {width} : {height} in its middle, whose edges need not fall on "
    "whole pixels, and resized to {width} x {height} pixels"
)
_CUT_TEXT = "; of that the middle {cols} x {rows} pixels are taken"


def render(run: runs.Run, name: str) -> str:
    """Renders the page.

    Args:
      run: that was exported.
      name: of the program's file.

    Returns:
      Markdown, with one block of Python.
    """
    spec, view = run.spec, run.spec.view
    grid = run.model.patch_grid(spec.image_shape)
    rows, cols, channels = view.shape
    several = "each class by itself" if spec.multi_label else "classes that exclude one another"
    return string.Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=for_markdown(name),
        file=repr(name),
        record=repr(f"{name}.json"),
        step=run.step,
        dataset=for_markdown(spec.name),
        preparation=_describe(view),
        code=_code(view),
        draft=DRAFT * max(view.stored_shape[:2]),
        shape=f"B, {rows}, {cols}, {channels}",
        classes=spec.num_classes,
        patches=grid.patches,
        grid=f"{grid.rows} rows of {grid.cols}",
        kind=several,
    )


def _describe(view: View) -> str:
    """Says how a picture becomes the network's image."""
    height, width, _ = view.stored_shape
    rows, cols, _ = view.shape
    text = (_CROP_TEXT if view.fit == CROP else _SQUEEZE_TEXT).format(width=width, height=height)
    return text + (_CUT_TEXT.format(rows=rows, cols=cols) if view.canvas else "")


def _code(view: View) -> str:
    """The lines that resize and cut."""
    height, width, _ = view.stored_shape
    rows, cols, _ = view.shape
    lines, box = "", ""
    if view.fit == CROP:
        lines = (
            f"    wide = min(picture.width, picture.height * ({width} / {height}))\n"
            f"    high = min(picture.height, picture.width / ({width} / {height}))\n"
            "    left, top = (picture.width - wide) / 2, (picture.height - high) / 2\n"
            "    box = (left, top, left + wide, top + high)\n"
        )
        box = ", box=box"
    lines += f"    picture = picture.resize(({width}, {height}), Image.Resampling.BILINEAR{box})\n"
    if view.canvas:
        top, left = (height - rows) // 2, (width - cols) // 2
        lines += f"    picture = picture.crop(({left}, {top}, {left + cols}, {top + rows}))\n"
    return lines.rstrip("\n")

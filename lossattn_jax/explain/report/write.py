"""Writes a report's folder: the page, its pictures and its numbers."""

import contextlib
import io
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from lossattn_jax import files
from lossattn_jax.checkpoint import run_folder
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import metrics
from lossattn_jax.explain import figures
from lossattn_jax.explain.report import page, pictures
from lossattn_jax.files import records

PAGE_NAME = "index.html"
NUMBERS_NAME = "report.json"
FIGURE_NAME = "explanations.png"  # the layout of the paper's figure
FIGURE_IMAGES = 50  # in it at most: more rows are beyond what matplotlib draws
_IMAGES_NAME = "images"
_SCALE = 8  # of the pictures of single images


@contextlib.contextmanager
def lock(folder: pathlib.Path, remedy: str) -> Iterator[None]:
    """Locks the folder of a report before there is anything to write.

    Raises:
      UserError: another command writes it, or it cannot be written; ends with `remedy`.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(run_folder.make_and_lock(folder))
        except OSError as error:
            raise UserError(
                f"the report {folder} cannot be written: {error.strerror}{remedy}"
            ) from None
        yield


def refuse_links(*paths: pathlib.Path) -> None:
    """Refuses symbolic links in the places of a report's folders.

    Raises:
      UserError: there is one.
    """
    for path in paths:
        if path.is_symlink():
            raise UserError(
                f"{path} is a link, and what is behind it stays as it is: remove it, or give another --out"
            )


def write(content: page.Content, folder: str | pathlib.Path) -> pathlib.Path:
    """Writes `index.html`, `report.json`, `explanations.png`, `images/` and the plots as PNG.

    Pictures of single images that an earlier report left in `images/` are removed. `report.json` is a
    record (see `records`) that says what the numbers were made from.

    Returns:
      The page.

    Raises:
      UserError: the folder cannot be written.
    """
    folder = pathlib.Path(folder)
    images = folder / _IMAGES_NAME
    refuse_links(folder, images)
    try:
        files.make_folder(images)
        _write_pictures(content, images)
        figure = io.BytesIO()
        figures.draw_explanations(
            content.explanations,
            content.grid,
            content.class_names,
            content.fields,
            most=FIGURE_IMAGES,
        ).savefig(figure)
        files.write(folder / FIGURE_NAME, figure.getvalue())
        for plot in (*content.plots, *content.mosaics):
            files.write(folder / f"{plot.name}.png", plot.png)
        records.write(folder / NUMBERS_NAME, _numbers(content), content.made_from, indent=1)
        files.write(folder / PAGE_NAME, page.render(content).encode())
    except OSError as error:
        raise UserError(f"the report {folder} cannot be written: {error.strerror}") from None
    return folder / PAGE_NAME


def _write_pictures(content: page.Content, images: pathlib.Path) -> None:
    e = content.explanations
    files.remove_temporaries(images)
    for old in images.glob("[0-9][0-9][0-9][0-9]_*.png"):
        old.unlink()
    for image, name in enumerate(e.names):
        stem = f"{image:04d}_{_slug(name)}"
        files.write(images / f"{stem}_image.png", pictures.png(e.images[image], _SCALE))
        overlay = pictures.draw_attention(e.images[image], e.attention[image], content.fields)
        files.write(images / f"{stem}_attention.png", pictures.png(overlay, _SCALE))


def _slug(name: str) -> str:
    """Makes a name that any file system takes."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:60]


def _numbers(content: page.Content) -> dict[str, Any]:
    """Returns the page's numbers, all with every digit."""
    e = content.explanations
    return {
        "title": content.title,
        "facts": dict(content.facts),
        "classes": list(content.class_names),
        "thresholds": {name: metrics.finite(values) for name, values in content.thresholds.items()},
        "images": [
            {
                "name": e.names[image],
                "index": None if e.index is None else int(e.index[image]),
                "label": None if e.labels is None else e.classes(image),
                "predicted": int(e.logits[image].argmax()),
                "picked": e.reasons[image] if e.reasons else None,
                "logits": _finite(e.logits[image]),
                "probabilities": _finite(e.probabilities[image]),
                "attention": _finite(e.attention[image]),
                "patch_predictions": e.patch_logits[image].argmax(axis=-1).tolist(),
            }
            for image in range(len(e.names))
        ],
    }


def _finite(values: np.ndarray) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.astype(np.float64).tolist()]

"""What `python -m lossattn_jax.mil.explain` does: a page for each bag, and one of all of them.

out/index.html          the bags, with what is predicted
out/bags/BAG.html       where a bag's instances are that count
out/maps/BAG.png        the map of attention, over the thumbnail where there is one
out/report.json         the numbers, a record of `lossattn_jax.files.records`
"""

import logging
import os
import pathlib
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lossattn_jax import files
from lossattn_jax.checkpoint import run_folder
from lossattn_jax.commands.progress import LogClock, Progress
from lossattn_jax.data import own_images
from lossattn_jax.data.bags import feature_files
from lossattn_jax.data.bags.bag_survey import digest_bag
from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.errors import Incomplete, UserError
from lossattn_jax.evaluate import nonfinite_values
from lossattn_jax.explain.report import templates
from lossattn_jax.files import records
from lossattn_jax.mil import bag_page, prediction_run
from lossattn_jax.mil.bag_page import Bag
from lossattn_jax.mil.ensemble import Ensemble

log = logging.getLogger(__name__)

INDEX_NAME, BAGS_NAME, MAPS_NAME, NUMBERS_NAME = "index.html", "bags", "maps", "report.json"

_SECONDS_BETWEEN_LINES = 10
_SUFFIX = ".png"


def run(
    ensemble: Ensemble,
    bags: Bags,
    out: str,
    *,
    labels: Sequence[Any] | None = None,
    tiles: str | None = None,
    thumbnails: str | None = None,
    thumbnail_scale: float | None = None,
    top: int = bag_page.TOP,
) -> tuple[str, ...]:
    """Writes the pages.

    Args:
      ensemble: the models.
      bags: which need no labels.
      out: folder for the files.
      labels: of the bags, each one of the models' classes; None: they are not known.
      tiles: folder with pictures of instances, BAG/X_Y.png; None: there are none.
      thumbnails: folder with pictures of slides, BAG.png; likewise.
      thumbnail_scale: units of coordinates that a pixel of a thumbnail is wide; None: see
        `bag_page.place_thumbnail`.
      top: how many instances are listed, at least 1.

    Returns:
      The names of bags with outputs that are not finite.

    Raises:
      UserError: a folder of pictures is absent, a value is impossible, the bags have other features, a label
        is none of the classes, a bag or a picture cannot be read, or `out` cannot be written.
    """
    if top < 1:
        raise UserError(f"--top is {top}, but must be 1 or more")
    if thumbnail_scale is not None and not 0 < thumbnail_scale < float("inf"):
        raise UserError(f"--thumbnail_scale is {thumbnail_scale}, but must be a number above 0")
    for name, place in (("tiles", tiles), ("thumbnails", thumbnails)):
        if place is not None and not os.path.isdir(place):
            raise UserError(f"--{name}={place} is no folder")
    ensemble.check(bags)
    words = prediction_run.match_labels(ensemble, bags, labels)
    folder = pathlib.Path(out)
    with files.writing_out(folder), run_folder.make_and_lock(folder):
        for own in (BAGS_NAME, MAPS_NAME):
            files.make_folder(folder / own)
            files.remove_temporaries(folder / own)
        numbers, nonfinite = {}, []
        progress, clock = Progress(0, len(bags)), LogClock(_SECONDS_BETWEEN_LINES)
        for prediction in ensemble.predict(bags):
            row = prediction.row
            name = bags.ids[row]
            bag = Bag(
                name,
                prediction,
                predicted=ensemble.label_of(prediction.probabilities),
                label=words[row],
                coords=bags.read_coords(row),
                attributes=_read_attributes(bags.readers[row].place),
                thumbnail=_read_thumbnail(thumbnails, name),
                thumbnail_scale=thumbnail_scale,
                several_labels=ensemble.several_labels,
                find_tile=_tile_finder(tiles, name),
            )
            html = bag_page.render(bag, ensemble.classes, f"../{INDEX_NAME}", top)
            files.write(folder / BAGS_NAME / _page_name(name), html.encode())
            picture = bag_page.draw_overview(bag)
            if picture is not None:
                files.write(folder / MAPS_NAME / f"{files.safe_name(name)}{_SUFFIX}", picture)
            numbers[name] = _numbers(bag)
            if not bag.finite:
                nonfinite.append(name)
            if clock.is_due() or row + 1 == len(bags):
                progress.measure(row + 1)
                left = progress.time_left(row + 1)
                log.info("%s: bag %d of %d, %s left", bags.name, row + 1, len(bags), left)
        files.write(folder / INDEX_NAME, _render_index(ensemble, bags, numbers).encode())
        made_from = {
            "models": list(ensemble.digests),
            "bags": [digest_bag(bags, row) for row in range(len(bags))],
        }
        content = {"classes": [str(label) for label in ensemble.classes], "bags": numbers}
        records.write(folder / NUMBERS_NAME, content, made_from, indent=1)
    return tuple(nonfinite)


def refuse_nonfinite(names: Sequence[str]) -> None:
    """Ends a command some of whose outputs are not finite.

    Raises:
      Incomplete: the text names bags.
    """
    if names:
        raise Incomplete(
            f"outputs for {len(names)} bags are not finite, and their pages have no maps: "
            f"{nonfinite_values.list_first(names)}"
        )


def _numbers(bag: Bag) -> dict[str, Any]:
    return {
        "label": None if bag.label is None else str(bag.label),
        "predicted": None if bag.predicted is None else str(bag.predicted),
        "probabilities": bag.prediction.probabilities.tolist(),
        **bag_page.measure(bag),
    }


def _page_name(name: str) -> str:
    return f"{files.safe_name(name)}.html"


def _render_index(ensemble: Ensemble, bags: Bags, numbers: Mapping[str, Mapping[str, Any]]) -> str:
    labelled = [own for own in numbers.values() if own["label"] is not None]
    facts = {"models": ", ".join(ensemble.folders), "bags": str(len(numbers))}
    if labelled:
        right = sum(own["label"] == own["predicted"] for own in labelled)
        facts["right"] = f"{right} of {len(labelled)}"
    attended = all("n50" in own for own in numbers.values())
    columns = ["bag", *(["label"] if labelled else []), "predicted"]
    columns += [f"probability of {label}" for label in ensemble.classes]
    columns += ["instances", *(["n50", "n90"] if attended else []), "highest"]
    rows = []
    for name, own in numbers.items():
        cells = [own["label"] or ""] if labelled else []
        cells += [own["predicted"] or ""]
        cells += [_cell(value) for value in own["probabilities"]]
        cells += [_cell(own[key]) for key in ("instances", "n50", "n90", "highest") if key in own]
        verdict = ""
        if own["label"] is not None and own["predicted"] is not None:
            verdict = "right" if own["label"] == own["predicted"] else "wrong"
        href = f"{BAGS_NAME}/{urllib.parse.quote(_page_name(name))}"
        rows.append({"bag": name, "href": href, "verdict": verdict, "cells": cells})
    template = templates.environment().get_template("bags.html")
    return template.render(
        title=f"Where the bags of {bags.name} count", facts=facts, columns=columns, rows=rows
    )


def _cell(value: Any) -> str:
    if value is None or not np.isfinite(value):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _read_attributes(place: str) -> Mapping[str, Any]:
    """What a feature file says of its coordinates; nothing of bags in memory."""
    if feature_files.split_name(place) is None or not os.path.exists(place):
        return {}
    attributes = feature_files.read_attributes(place)
    return {**attributes.get("", {}), **attributes.get("coords", {})}


def _read_thumbnail(folder: str | None, bag: str) -> np.ndarray | None:
    path = None if folder is None else pathlib.Path(folder) / f"{files.safe_name(bag)}{_SUFFIX}"
    return None if path is None or not path.is_file() else own_images.read_image(path, None)


def _tile_finder(
    folder: str | None, bag: str
) -> Callable[[float, float], np.ndarray | None] | None:
    """Finds pictures of a bag's instances by their coordinates."""
    own = None if folder is None else pathlib.Path(folder) / files.safe_name(bag)
    if own is None or not own.is_dir():
        return None

    def find(x: float, y: float) -> np.ndarray | None:
        path = own / f"{_coordinate(x)}_{_coordinate(y)}{_SUFFIX}"
        return own_images.read_image(path, None) if path.is_file() else None

    return find


def _coordinate(value: float) -> str:
    """As in a file's name: whole numbers without a fraction."""
    return str(int(value)) if value.is_integer() else repr(value)

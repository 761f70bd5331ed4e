"""Data sets of bags that `lossattn prepare` makes on the spot.

They are folders of feature files:

    DATA/digit_slides/slides/slide_000.h5       features [N, D], coords [N, 2], labels [N], attributes
    DATA/digit_slides/labels.csv                slide_id,label,patient,split
    DATA/digit_slides/thumbnails/slide_000.png  the canvas at a quarter of its size
    DATA/digit_slides/tiles/slide_000/X_Y.png   each tile of the slides that are to test on
    DATA/digit_slides/prepared.json             what it was made with, and digests

The folder is like one of a user's own: `--dataset=DATA/digit_slides/slides` with
`--labels=DATA/digit_slides/labels.csv`.
"""

import csv
import dataclasses
import io
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lossattn_jax import files
from lossattn_jax.data.bags.bag_folder import open_bags
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.generated_folders import (
    RECORD_NAME,
    Write,
    damaged,
    folder_of,
    read_record,
)
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests, records

if TYPE_CHECKING:
    from lossattn_jax.data.bags.digit_slides import Slide

log = logging.getLogger(__name__)

SLIDES_NAME, TABLE_NAME = "slides", "labels.csv"
THUMBNAILS_NAME, TILES_NAME = "thumbnails", "tiles"

_VERSION = "1.0.0"
_SHRINK = 4  # of thumbnails
_LABELS = "labels"  # the dataset of a feature file with the instances' own
_SLIDES_BETWEEN_LINES = 40


@dataclasses.dataclass(frozen=True)
class PreparedBags:
    """A data set of bags that is made on the spot.

    Attributes:
      write: writes it into a folder, of settings by name.
      load: reads it from there.
    """

    write: Write
    load: Callable[[pathlib.Path], BagDataset]


def load(name: str, data_dir: str | None) -> BagDataset:
    """Reads a data set that was prepared.

    Args:
      name: of `PREPARED_BAGS`.
      data_dir: the folder data sets are kept in; None for TFDS' default.

    Raises:
      UserError: it was not, or is damaged.
    """
    folder = folder_of(name, data_dir)
    if not folder.is_dir():
        raise UserError(
            f"the data set {name} is not in {folder.parent}: make it with python -m "
            f"lossattn_jax.data.prepare --dataset={name} --data_dir={folder.parent}, or name its folder as "
            "--data_dir"
        )
    return PREPARED_BAGS[name].load(folder)


def write_slides(folder: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Draws the slides of `digit_slides`, and writes them with their features.

    Args:
      folder: that exists and is empty.
      settings: fields of `digit_slides.Options`.

    Raises:
      UserError: a setting is impossible.
      OSError: a file cannot be written.
    """
    # Drawing takes SciPy, which commands that read the slides need not wait for.
    from lossattn_jax.data.bags import digit_slides

    try:
        options = digit_slides.Options(**settings)
    except TypeError as error:
        raise UserError(f"digit_slides cannot be made so: {error}") from None
    for name in (SLIDES_NAME, THUMBNAILS_NAME, TILES_NAME):
        (folder / name).mkdir()
    rows, by_slide = [("slide_id", "label", "patient", "split")], {}
    for slide in digit_slides.draw_slides(options):
        by_slide[slide.name] = _write_slide(folder, slide, options.target)
        rows.append((slide.name, slide.label, slide.writer, slide.split))
        if len(by_slide) % _SLIDES_BETWEEN_LINES == 0:
            log.info("digit_slides: %d of %d slides", len(by_slide), options.slides)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    files.write(folder / TABLE_NAME, table.getvalue().encode())
    content = {"version": _VERSION, "slides": by_slide, "table": digests.of_json(rows)}
    records.write(folder / RECORD_NAME, content, dataclasses.asdict(options), indent=1)


def load_slides(folder: pathlib.Path) -> BagDataset:
    """Reads the bags that `write_slides` wrote.

    A bag is a slide, and its group the writer.

    Raises:
      UserError: they are not as they were written.
    """
    record = _read_record(folder)
    bags = open_bags(folder / SLIDES_NAME, folder / TABLE_NAME, name="digit_slides")
    parts = []
    for row, name in enumerate(bags.ids):
        path = _slide_path(folder, name)
        coords, labels = bags.read_coords(row), _read_labels(path)
        own = {"features": bags.read(row), "coords": coords, "labels": labels}
        if coords is None or _digest(own) != record.content["slides"].get(name):
            raise damaged(folder, f"{path} is not as it was written")
        parts.append(labels)
    return dataclasses.replace(bags.load(), instance_labels=np.concatenate(parts))


def _write_slide(folder: pathlib.Path, slide: "Slide", target: int) -> str:
    """Writes the files of a slide; returns the digest of its arrays."""
    from PIL import Image

    from lossattn_jax.data.bags import digit_slides, tile_features

    arrays = {
        "features": tile_features.compute_features(slide.tiles),
        "coords": slide.coords,
        "labels": slide.labels,
    }
    height, width = (digit_slides.TILE * side for side in slide.grid)
    attributes = {
        "name": slide.name,
        "label": slide.label,
        "writer": slide.writer,
        "target": target,
        "features": "means of a random convolution network, tile_features.py of lossattn_jax",
    }
    # As TRIDENT calls them.
    of_coords = {
        "patch_size_level0": digit_slides.TILE,
        "level0_width": width,
        "level0_height": height,
    }
    files.write(_slide_path(folder, slide.name), _hdf5(arrays, attributes, of_coords))
    _write_png(
        Image.fromarray(slide.thumbnail(_SHRINK)), folder / THUMBNAILS_NAME / f"{slide.name}.png"
    )
    if slide.split == "test":
        own = folder / TILES_NAME / slide.name
        own.mkdir()
        for tile, (x, y) in zip(slide.tiles, slide.coords.tolist(), strict=True):
            _write_png(Image.fromarray(tile), own / f"{x}_{y}.png")
    return _digest(arrays)


def _slide_path(folder: pathlib.Path, name: str) -> pathlib.Path:
    return folder / SLIDES_NAME / f"{name}.h5"


def _hdf5(
    arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any], of_coords: Mapping[str, Any]
) -> bytes:
    """Makes a feature file."""
    import h5py  # when a file is written, not with the command

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file.attrs.update(attributes)
        file["coords"].attrs.update(of_coords)
    return buffer.getvalue()


def _read_labels(path: pathlib.Path) -> np.ndarray:
    """Reads the instances' own labels, uint8 `[N]`; empty where there are none."""
    import h5py

    with h5py.File(path, "r", locking="best-effort") as file:
        stored = file.get(_LABELS)
        return np.empty(0, np.uint8) if stored is None else np.asarray(stored[()])


def _write_png(image: Any, path: pathlib.Path) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    files.write(path, buffer.getvalue())


def _digest(arrays: Mapping[str, Any]) -> str:
    """Digests a slide's arrays; coordinates as whole numbers."""
    return digests.of_arrays({**arrays, "coords": np.asarray(arrays["coords"]).astype("<i8")})


def _read_record(folder: pathlib.Path) -> records.Record:
    record = read_record(folder)
    if not isinstance(record.content.get("slides"), dict):
        raise damaged(folder, f"its {RECORD_NAME} is another one")
    return record


PREPARED_BAGS: Mapping[str, PreparedBags] = {
    "digit_slides": PreparedBags(write_slides, load_slides),
}

"""Users' image files with their classes: folders of classes, or a table.

    D/train/CLASS/*.jpg, D/test/CLASS/*.jpg     files in splits; `val`, `validation` or `valid` where there is
                                                no test
    D/CLASS/*.jpg                               files of which a share is tested, drawn for each class
    D/images.csv or D/images.parquet            a table with the columns path and label, see `read_table`

Classes are in the order of their names, and so are files by class and path; those of a table in the table's.
"""

import dataclasses
import itertools
import logging
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lossattn_jax.data import own_images
from lossattn_jax.data.bags import columns, folds, label_sets, table_cells
from lossattn_jax.data.bags.bag_table import NAMES, SPLITS
from lossattn_jax.data.bags.label_sets import SEPARATOR, split_words
from lossattn_jax.data.bags.label_values import label_values, warn_of_case
from lossattn_jax.data.bags.missing import is_missing
from lossattn_jax.data.bags.table_cells import TableCells
from lossattn_jax.errors import UserError, name_first

log = logging.getLogger(__name__)

Corners = tuple[float, float, float, float]

# Of a folder, taken where one is there and no other is named.
DEFAULT_TABLES = ("images.csv", "images.parquet")
# Names of the columns, in small letters; the first one counts.
_PATHS, _LABELS = ("path", "file", "filename", "image"), ("label", "class")
_CORNERS = ("ymin", "xmin", "ymax", "xmax")
_TESTS = ("test", "validation")  # splits that are tested, the first one that there is
_MOST_NAMED = 5


@dataclasses.dataclass(frozen=True)
class FileList:
    """Image files of one split or of several.

    Attributes:
      root: the folder of the data set.
      names: `N` paths in it, with slashes.
      labels: of each of the `N` its names of classes: one, or where `has_several` any number.
      splits: `N` of "train", "test", or "" where the file is in no split.
      groups: `N` of what files share that must not be divided, or None.
      boxes: `N` (ymin, xmin, ymax, xmax) in pixels of the picture, None for a file without; or None.
      has_several: whether a file may have several labels, or none.
    """

    root: pathlib.Path
    names: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    splits: tuple[str, ...]
    groups: tuple[str, ...] | None = None
    boxes: tuple[Corners | None, ...] | None = None
    has_several: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def take(self, places: Iterable[int]) -> "FileList":
        """Takes the files at some places."""
        chosen = list(places)

        def of(values: Sequence[Any] | None) -> Any:
            return None if values is None else tuple(values[place] for place in chosen)

        return FileList(
            self.root,
            of(self.names),
            of(self.labels),
            of(self.splits),
            of(self.groups),
            of(self.boxes),
            self.has_several,
        )

    def of_split(self, split: str) -> "FileList":
        """Takes the files of "train" or "test"."""
        return self.take(place for place, own in enumerate(self.splits) if own == split)

    def class_names(self) -> tuple[str, ...]:
        """Returns the names of the classes in their order."""
        return tuple(sort_names({name for own in self.labels for name in own}))

    def encode(self, class_names: Sequence[str], several: bool) -> np.ndarray:
        """Encodes the labels for a network.

        Args:
          class_names: K different names, all labels among them.
          several: whether a file may have several; where not, each has one.

        Returns:
          int32 [N], places in `class_names`; or uint8 [N, K], 1 for each label that a file has.
        """
        if several:
            return label_sets.encode(self.labels, class_names).astype(np.uint8)
        place = {name: number for number, name in enumerate(class_names)}
        return np.array([place[name] for (name,) in self.labels], np.int32)


def sort_names(names: Iterable[str]) -> list[str]:
    """Sorts names of classes, by their values where all are whole numbers."""
    ordered = sorted(names)
    values = dict(zip(ordered, label_values(ordered), strict=True))
    return sorted(ordered, key=values.__getitem__)


def find(root: str | os.PathLike[str], table: str = "") -> FileList:
    """Finds the image files of a folder and their classes.

    Hidden files and folders are left out, and so are files that are not named as images. Links to files and
    to folders of classes are followed, other links to folders are not. Files in subfolders of a class are
    its own.

    Args:
      root: the folder.
      table: file that lists them, in `root` unless it is absolute; '': one of `DEFAULT_TABLES` if it
        is there.

    Raises:
      UserError: it is no folder, its layout is none of these, or the table cannot be used.
    """
    folder = pathlib.Path(root)
    if not folder.is_dir():
        raise UserError(
            f"the folder of images {folder} is not there; config.data.dir, or --data_dir of the commands "
            "that open a run, says where it is"
        )
    if own_table := table or _find_table(folder):
        return read_table(folder, folder / own_table)
    try:
        inside = _list_folders(folder)
        by_split: dict[str, list[pathlib.Path]] = {}
        for name in inside:
            if (split := SPLITS.get(name.name.lower())) is not None:
                by_split.setdefault(split, []).append(name)
        if "train" in by_split:
            return _find_in_splits(folder, by_split)
        if len(by_split) == len(inside) == 1:  # a folder with tests alone, of a trained network
            return _find_in_splits(folder, {"train": [], **by_split})
        return _find_in_classes(folder, folder, "")
    except OSError as error:
        raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}") from None


def _find_table(folder: pathlib.Path) -> str:
    """Finds the table that a folder has without its being named; '' for none."""
    tables = [name for name in DEFAULT_TABLES if (folder / name).is_file()]
    if len(tables) > 1:
        raise UserError(
            f"{folder} has the tables {' and '.join(tables)}; say which one counts with config.data.table"
        )
    return tables[0] if tables else ""


def _find_in_splits(root: pathlib.Path, folders: dict[str, list[pathlib.Path]]) -> FileList:
    for split, several in folders.items():
        if len(several) > 1:
            names = " and ".join(repr(folder.name) for folder in several)
            raise UserError(f"{root} has the folders {names}, but must have one for {split}")
    test = next((split for split in _TESTS if split in folders), None)
    if test is None:
        raise UserError(
            f"{root} has the folder {folders['train'][0].name!r} but none of {', '.join(_TESTS)}; add one, "
            f"or give {folders['train'][0]} as config.data.dir, of which a share is tested then"
        )
    if test == "test" and "validation" in folders:
        log.info("not used, since there is a test folder: %s", folders["validation"][0])
    lists = [
        _find_in_classes(root, folder, split)
        for split, used in (("train", "train"), ("test", test))
        for folder in folders[used]
    ]
    return FileList(
        root,
        tuple(name for one in lists for name in one.names),
        tuple(own for one in lists for own in one.labels),
        tuple(name for one in lists for name in one.splits),
    )


def _find_in_classes(root: pathlib.Path, folder: pathlib.Path, split: str) -> FileList:
    """Finds the files of a folder whose folders are classes."""
    by_name = {path.name: path for path in _list_folders(folder)}
    if divided := [name for name in by_name if SEPARATOR in name]:
        raise UserError(
            f"the folder {folder / divided[0]} of a class has {SEPARATOR!r} in its name, which "
            "stands between several labels of an image; rename it"
        )
    classes = [by_name[name] for name in sort_names(by_name)]
    if not classes:
        raise UserError(
            f"{folder} has no folder of a class, but must have one for each, with its images in it; or "
            f"{root / DEFAULT_TABLES[0]} lists images with their labels"
        )
    names: list[str] = []
    labels: list[tuple[str, ...]] = []
    for own in classes:
        paths = _list_visible(own)
        if not paths:
            raise UserError(
                f"the folder {own} of a class has no image ({', '.join(own_images.SUFFIXES)}); add some, or "
                "remove it"
            )
        names += [path.relative_to(root).as_posix() for path in paths]
        labels += [(own.name,)] * len(paths)
    return FileList(root, tuple(names), tuple(labels), (split,) * len(names))


def _list_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists the visible folders in a folder, links to folders among them."""
    return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _list_visible(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists the visible image files in a folder and its subfolders."""
    files = own_images.list_files(folder)
    return [
        path
        for path in files
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def read_table(root: pathlib.Path, path: pathlib.Path) -> FileList:
    """Reads a table of images: CSV, TSV (also `.gz`), or Parquet.

    Columns are found by these names, in any case of letters: `path` (or file, filename, image), in `root`
    unless it is absolute; `label` (or class); perhaps `split` (train, validation or test), `group` (or
    patient, patient_id, case_id) of what must not be divided, and all of `ymin`, `xmin`, `ymax`, `xmax` in
    pixels, empty where an image has no box. Others are not taken. Where a label has a semicolon, images have
    several, with semicolons between them, and one alone where there is none.

    Raises:
      UserError: it cannot be read, lacks a column, has a file twice, a cell is missing or of no allowed
        value, or a file does not exist.
    """
    table = table_cells.read_cells(path)
    lines = table.lines
    if not lines:
        raise UserError(f"{path} has no image, but must have one in each line after the header")

    def column(names: Sequence[str], needed: bool = False) -> list[str] | None:
        place = columns.find_first(path, table.header, names)
        if place is None:
            if needed:
                raise UserError(
                    f"{path} has no column {' or '.join(map(repr, names))}, but "
                    f"{_some(map(repr, table.header))}"
                )
            return None
        cells = table.column(place)
        missing = [number for number, cell in enumerate(cells) if is_missing(cell)]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(cells)} images of {path} have no {table.header[place]}, the first "
                f"in {lines[missing[0]]}; give them one or leave these images out"
            )
        return cells

    names, labels = column(_PATHS, needed=True), column(_LABELS, needed=True)
    assert names is not None and labels is not None
    first: dict[str, str] = {}
    for line, name in zip(lines, names, strict=True):
        if first.setdefault(name, line) != line:
            raise UserError(f"{path} has the image {name!r} twice, in {first[name]} and in {line}")
    absent = [name for name in names if not (root / name).is_file()]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(names)} images of {path} do not exist in {root}: {_some(absent)}; "
            "correct the paths, or leave these lines out"
        )
    has_several = any(SEPARATOR in label for label in labels)
    groups, splits, boxes = column(NAMES["group"]), column(("split",)), _read_boxes(table)
    if has_several:
        log.info("%s: images have several labels, with %r between them", path, SEPARATOR)
    if has_several and boxes is not None:
        raise UserError(
            f"{path} has boxes, and images with several labels ({SEPARATOR!r} stands between labels), but a "
            f"box is around what one label names; take the columns {', '.join(_CORNERS)} out"
        )
    files = FileList(
        root,
        tuple(names),
        tuple(map(split_words, labels)) if has_several else _read_classes(labels),
        ("",) * len(names) if splits is None else _read_splits(path, lines, splits),
        None if groups is None else tuple(groups),
        boxes,
        has_several,
    )
    return files.take(place for place, split in enumerate(files.splits) if split != "validation")


def _read_classes(labels: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Reads cells with one label each; 2.0 is 2 where all are whole numbers."""
    return tuple((str(value),) for value in label_values(labels))


def _read_splits(path: pathlib.Path, lines: Sequence[str], words: Sequence[str]) -> tuple[str, ...]:
    """Reads "train" and "test"; "validation" is left where there are tests besides."""
    for line, word in zip(lines, words, strict=True):
        if word.lower() not in SPLITS:
            raise UserError(
                f"{line} of {path} has the split {word!r}, but allowed are {', '.join(SPLITS)}"
            )
    splits = [SPLITS[word.lower()] for word in words]
    if "test" in splits:
        if "validation" in splits:
            log.info("not used, since there are images to test: those for validation of %s", path)
        return tuple(splits)
    return tuple("test" if split == "validation" else split for split in splits)


def _read_boxes(table: TableCells) -> tuple[Corners | None, ...] | None:
    places = [columns.find_first(table.place, table.header, (name,)) for name in _CORNERS]
    there = [place for place in places if place is not None]
    if not there:
        return None
    if len(there) < len(places):
        raise UserError(
            f"{table.place} has columns of boxes, but must have all of {', '.join(_CORNERS)}"
        )
    rows = zip(*map(table.column, there), strict=True)
    return tuple(
        _read_box(f"{line} of {table.place}", cells)
        for line, cells in zip(table.lines, rows, strict=True)
    )


def _read_box(place: str, cells: Sequence[str]) -> Corners | None:
    if all(map(is_missing, cells)):
        return None
    try:
        ymin, xmin, ymax, xmax = map(float, cells)
    except ValueError:
        ymin = xmin = ymax = xmax = np.nan
    if not (np.isfinite([ymin, xmin, ymax, xmax]).all() and ymin < ymax and xmin < xmax):
        raise UserError(
            f"{place} has the box {', '.join(cells)}, but must have four numbers of pixels, "
            "ymin below ymax and xmin below xmax, or none"
        )
    return ymin, xmin, ymax, xmax


def divide(files: FileList, share: float, seed: int) -> FileList:
    """Draws the files that are tested where no split is given.

    Of a class with n files `share * n` are drawn, rounded, at least 1; of groups, and of several labels,
    see `folds.held_out`.

    Args:
      files: all of them.
      share: of the files that are tested, between 0 and 1.
      seed: the draw follows from it, and from the classes and their order.

    Raises:
      UserError: a class has a single file, or the groups cannot be divided.
    """
    if any(files.splits):
        _refuse_divided_groups(files)
        return files
    names, counts = np.unique([*itertools.chain(*files.labels)], return_counts=True)
    if not len(names):  # which `check_classes` refuses
        return dataclasses.replace(files, splits=("train",) * len(files))
    if counts.min() < 2:
        raise UserError(
            f"the class {str(names[counts.argmin()])!r} has one image in {files.root}, but must have one to "
            "train on and one to test; add some, or leave it out"
        )
    rows = np.arange(len(files))
    try:
        encoded = files.encode(files.class_names(), files.has_several)
        is_tested = folds.held_out(encoded, rows, share, seed, files.groups)
    except UserError:
        if files.groups is None and not files.has_several:
            raise
        what = "" if files.groups is None else f"{len(set(files.groups))} groups of "
        raise UserError(
            f"the {what}images in {files.root} cannot be divided so that every class is in training and "
            "test; give the table a column split"
        ) from None
    return dataclasses.replace(
        files, splits=tuple("test" if tested else "train" for tested in is_tested)
    )


def _refuse_divided_groups(files: FileList) -> None:
    if files.groups is None:
        return
    owners: dict[str, str] = {}
    for group, split in zip(files.groups, files.splits, strict=True):
        if owners.setdefault(group, split) != split:
            raise UserError(
                f"the group {group!r} has images to train on and images to test in {files.root}, but must be "
                "in one split; correct the table, or take its column of groups out"
            )


def check_classes(files: FileList) -> None:
    """Refuses classes that cannot be learned; warns of untested ones.

    Raises:
      UserError: there are fewer than two classes, or one has images to test and none to train on.
    """
    classes = files.class_names()
    if len(classes) < 2:
        raise UserError(
            f"{files.root} has {'the one class ' + repr(classes[0]) if classes else 'no class'}, but must "
            "have two at least; put the images of each class into a folder of its name"
        )
    warn_of_case(classes, files.root)
    train, test = (files.of_split(split) for split in ("train", "test"))
    in_training, in_test = (set(part.class_names()) for part in (train, test))
    if only := sorted(in_test - in_training):
        raise UserError(
            f"{_classes(only)} in the test split of {files.root} and not in its training split, so that no "
            "network can learn it; add images to train on, or leave it out"
        )
    if not len(test):
        raise UserError(f"{files.root} has no image to test, but must have some of each class")
    if only := sorted(in_training - in_test):
        log.warning(
            "warning: %s in the training split of %s and not in its test split",
            _classes(only),
            files.root,
        )


def _classes(names: Sequence[str]) -> str:
    several = len(names) > 1
    return f"class{'es' if several else ''} {_some(map(repr, names))} {'are' if several else 'is'}"


def _some(names: Iterable[str]) -> str:
    return name_first(list(names), _MOST_NAMED)

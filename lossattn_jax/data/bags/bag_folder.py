"""Opens bags: feature files in a folder, labels in a table.

    bags = open_bags("slides", "labels.csv")    # slides/s01.h5, slides/s02.h5, ...
    bags.ids, bags.labels, bags.lengths         # no instance has been read
    bags[0]                                     # [n, D]

A bag's file is called by the bag's id and the ending of a format (`feature_files.FORMATS`). It lies in the
folder or in a folder of it, or where a column of paths says.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lossattn_jax.data.bags import feature_files, label_sets
from lossattn_jax.data.bags.bag_table import BagTable, TableColumns, read_table
from lossattn_jax.data.bags.feature_files import FORMATS, FeatureFormat
from lossattn_jax.data.bags.label_values import warn_of_case
from lossattn_jax.data.bags.lazy_bags import BagReader, Bags
from lossattn_jax.data.bags.positive import find_positive
from lossattn_jax.errors import UserError, name_first

Path = str | os.PathLike[str]

# Folders in which CLAM puts the same features twice; those with coordinates are read.
_CLAM, _CLAM_AGAIN = "h5_files", "pt_files"
_MOST_NAMED = 3
_DEEPEST = 4  # levels that are looked into for folders that could be meant
_BLOCK = 1 << 24  # numbers that are checked at once


def open_bags(
    folder: Path,
    table: Any = None,
    names: TableColumns | None = None,
    *,
    positive: Sequence[str] = (),
    labelled: bool = True,
    check_values: bool = False,
    formats: Mapping[str, FeatureFormat] = FORMATS,
    name: str = "",
) -> Bags:
    """Opens the bags of a folder without reading an instance.

    Shapes and types are read. Values that are not finite are found when a bag is read.

    Args:
      folder: with a feature file for each bag.
      table: what `bag_table.read_table` takes, or a `BagTable`; None: bags without labels.
      names: of the table's columns.
      positive: words for the positive one of two classes, see `positive.find_positive`; it becomes the last.
      labelled: whether the table must have labels.
      check_values: whether all instances are read now, and looked at.
      formats: of feature files.
      name: of the data set; empty: the folder's.

    Returns:
      Bags in the table's order, without a table in the order of their ids.

    Raises:
      UserError: as of `read_table`; a bag has no file or several, a file has no bag, or one cannot be read,
        has no instance or others than the first; all labels are the same; `positive` names none or both of
        two classes; or with `check_values` a value is not finite.
    """
    folder = os.fspath(folder)
    name = name or os.path.basename(os.path.abspath(folder))
    files_by_id = _find_files(folder, formats)
    if table is None:
        ids: tuple[str, ...] = tuple(sorted(files_by_id))
        rows = BagTable(folder, ids)
        paths = tuple(_the_file(bag_id, files_by_id[bag_id]) for bag_id in ids)
    else:
        rows = table if isinstance(table, BagTable) else read_table(table, names, labelled=labelled)
        ids = rows.ids
        paths = _paths_of(rows, folder, files_by_id, formats)
    readers = tuple(_open(bag_id, path, formats) for bag_id, path in zip(ids, paths, strict=True))
    classes, labels, word = _classes(rows, positive, name)
    bags = Bags(
        readers,
        ids,
        labels,
        classes,
        groups=rows.groups,
        splits=rows.splits,
        folds=None if rows.folds is None else np.array(rows.folds),
        positive=word,
        name=name,
        features=_features(ids, readers),
    )
    if check_values:
        check_all(bags)
    return bags


def check_all(bags: Bags) -> None:
    """Reads all instances in parts, and refuses values that are not finite.

    Raises:
      UserError: there is one, or a file cannot be read.
    """
    rows = max(1, _BLOCK // max(1, int(np.prod(bags.shape))))
    for row, length in enumerate(bags.lengths.tolist()):
        for start in range(0, length, rows):
            bags.read(row, start, min(start + rows, length))


def _find_files(folder: str, formats: Mapping[str, FeatureFormat]) -> dict[str, list[str]]:
    """Finds feature files in a folder and its folders, by bag id."""
    files_by_id: dict[str, list[str]] = {}
    for path in _list(folder):
        if not _add(path, formats, files_by_id) and os.path.isdir(path):
            for inner in _list(path):
                _add(inner, formats, files_by_id)
    if not files_by_id:
        deeper = _find_deeper(folder, formats)
        way = f"; name one of its folders that has some: {_first(deeper, str)}" if deeper else ""
        raise UserError(
            f"the folder {folder} has no feature file, whose name ends in one of "
            f"{', '.join(feature_files.list_endings(formats))}{way}"
        )
    return files_by_id


def _find_deeper(folder: str, formats: Mapping[str, FeatureFormat]) -> list[str]:
    """Finds the folders further down that could be meant, as those in one of TRIDENT's jobs."""
    candidates = []
    for path, folders, names in os.walk(folder):
        depth = os.path.relpath(path, folder).count(os.sep) + 1
        folders[:] = sorted(own for own in folders if not own.startswith(".") and depth < _DEEPEST)
        own_files: dict[str, list[str]] = {}
        for name in [*folders, *names]:
            _add(os.path.join(path, name), formats, own_files)
        if own_files:
            candidates.append(path)
            folders.clear()
    # A job of TRIDENT has files of the tiles' places besides.
    by_name = [path for path in candidates if "feature" in os.path.basename(path).lower()]
    return by_name or candidates


def _list(folder: str) -> list[str]:
    """Lists the paths in a folder by name, without hidden ones."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"there is no folder {folder}") from None
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read ({error.strerror})") from None
    return [os.path.join(folder, name) for name in names]


def _add(
    path: str, formats: Mapping[str, FeatureFormat], files_by_id: dict[str, list[str]]
) -> bool:
    """Adds a path if it is a feature file, and says so."""
    parts = feature_files.split_name(path, formats)
    if parts is None or parts[1].is_folder != os.path.isdir(path):
        return False
    files_by_id.setdefault(parts[0], []).append(path)
    return True


def _paths_of(
    table: BagTable,
    folder: str,
    files_by_id: Mapping[str, list[str]],
    formats: Mapping[str, FeatureFormat],
) -> tuple[str, ...]:
    """The path of each bag's file."""
    if table.paths is not None:
        owners: dict[str, str] = {}
        for bag_id, path in zip(table.ids, table.paths, strict=True):
            whole = os.path.join(folder, path)
            if owners.setdefault(os.path.realpath(whole), bag_id) != bag_id:
                raise UserError(
                    f"{table.place} has the file {path} for the bags {owners[os.path.realpath(whole)]!r} and "
                    f"{bag_id!r}, but each must have one of its own"
                )
        return tuple(os.path.join(folder, path) for path in table.paths)
    # Some tables name bags by their files, with the ending.
    by_name = {
        os.path.basename(path): bag_id for bag_id, paths in files_by_id.items() for path in paths
    }
    own = {bag_id: bag_id if bag_id in files_by_id else by_name.get(bag_id) for bag_id in table.ids}
    absent = [bag_id for bag_id, stem in own.items() if stem is None]
    if absent:
        endings = feature_files.list_endings(formats)
        raise UserError(
            f"{len(absent)} of {len(table.ids)} bags of {table.place} have no feature file in {folder}: "
            f"{_first(absent)}; files are called ID{endings[0]} (or {', '.join(endings[1:])}), in the folder "
            "or in one of its folders, or as a column of paths says"
        )
    used = set(own.values())
    unlabelled = [bag_id for bag_id in sorted(files_by_id) if bag_id not in used]
    if unlabelled:
        raise UserError(
            f"{len(unlabelled)} of {len(files_by_id)} feature files in {folder} have no line in "
            f"{table.place}: {_first(unlabelled)}; give them one, put them elsewhere, or name the "
            "files of the others in a column of paths"
        )
    return tuple(
        _the_file(bag_id, files_by_id[stem]) for bag_id, stem in own.items() if stem is not None
    )


def _the_file(bag_id: str, paths: Sequence[str]) -> str:
    """The one file of a bag."""
    if len(paths) == 1:
        return paths[0]
    by_folder = {os.path.basename(os.path.dirname(path)): path for path in paths}
    if len(paths) == 2 and set(by_folder) == {_CLAM, _CLAM_AGAIN}:
        return by_folder[_CLAM]
    raise UserError(
        f"the bag {bag_id!r} has {len(paths)} feature files, {_first(paths, str)}, but must have one; take "
        "the others away, or name the folder of the right ones or a column of paths"
    )


def _open(bag_id: str, path: str, formats: Mapping[str, FeatureFormat]) -> BagReader:
    try:
        return feature_files.open_file(path, formats)
    except UserError as error:
        raise UserError(f"bag {bag_id!r}: {error}") from error


def _classes(
    table: BagTable, positive: Sequence[str], name: str
) -> tuple[tuple[Any, ...], np.ndarray | None, Any]:
    """Numbers classes and labels, with the positive class last."""
    if table.labels is None:
        return (), None, None
    words = table.label_names or tuple(sorted(set(table.labels)))
    warn_of_case(words, table.place)
    if table.label_names is not None:
        labels = label_sets.encode(table.labels, table.label_names)
        absent = [
            own for own, bags in zip(table.label_names, labels.T, strict=True) if not bags.any()
        ]
        if absent or len(table.label_names) < 2:
            what = f"no bag with the label {absent[0]!r}" if absent else "one label only"
            raise UserError(
                f"{table.place} has {what}, but bags with several labels need two that occur; leave it out"
            )
        return table.label_names, labels, None
    classes = words
    if len(classes) < 2:
        raise UserError(
            f"all bags of {table.place} have the label {classes[0]!r}, but there must be two"
        )
    word = find_positive(classes, positive, name)
    if word is not None and word == classes[0]:
        classes = classes[::-1]
    place = {label: number for number, label in enumerate(classes)}
    return classes, np.array([place[label] for label in table.labels], np.int32), word


def _features(ids: Sequence[str], readers: Sequence[BagReader]) -> tuple[str, ...] | None:
    """Names of the features where all files have them."""
    names = [getattr(reader, "features", None) for reader in readers]
    if any(name is None for name in names):
        return None
    for bag_id, reader, own in zip(ids, readers, names, strict=True):
        if own is not None and names[0] is not None and own != names[0]:
            raise UserError(
                f"bag {bag_id!r} in {reader.place} has the features {_first(own)}, but bag {ids[0]!r} in "
                f"{readers[0].place} has {_first(names[0])}; all must have the same in the same order"
            )
    return names[0]


def _first(names: Sequence[str], show: Any = repr) -> str:
    return name_first(list(map(show, names)), _MOST_NAMED)

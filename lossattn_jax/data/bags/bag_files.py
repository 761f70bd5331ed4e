"""Reads and writes bags: CSV, Parquet, UCI's MUSK files, MATLAB files.

    dataset = read("mine.csv.gz")

A CSV file has a header and a row for each instance:

    bag_label,bag_id,area,colour
    1,a,0.5,3
    0,b,1.5,2
    1,a,0.25,1

The rows of a bag need not follow each other; bags are in the order of their first rows. Labels are integers
if all are written as such (1, -1, 2.0), otherwise text. A column `instance_label` may give the instances'
own labels, which are among those of the bags. Every other column of numbers is a feature, but for those whose
names say otherwise (`columns.ROLES`) or that a `columns.Choice` leaves out.
"""

import csv
import gzip
import io
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from lossattn_jax import files
from lossattn_jax.data.bags import columns, matlab_files, parquet_table, precision, text_tables
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.cells import Cells, check_finite, is_number
from lossattn_jax.data.bags.columns import Choice
from lossattn_jax.data.bags.label_values import label_value, label_values, warn_of_case
from lossattn_jax.data.bags.missing import is_missing
from lossattn_jax.errors import UserError

Path = str | os.PathLike[str]

log = logging.getLogger(__name__)

BAG_LABEL, BAG_ID, INSTANCE_LABEL = "bag_label", "bag_id", "instance_label"


def read(path: Path, choice: Choice | None = None) -> BagDataset:
    """Reads a file of bags, in the format that its ending names.

    `.mat` is read with `read_matlab`, `.data` and `.data.Z` with `read_uci`, `.parquet` with `read_parquet`,
    all else with `read_csv`.

    Args:
      path: of the file.
      choice: of features; only CSV and Parquet files have names for them.

    Raises:
      UserError: as these do, or a choice is made where columns have no names.
    """
    name = os.path.basename(path).lower()
    if name.endswith(".parquet"):
        return read_parquet(path, choice)
    if not name.endswith((".mat", ".data", ".data.z")):
        return read_csv(path, choice)
    if choice:
        raise UserError(
            f"--features and --ignore choose columns by their names, but those of {path} have none"
        )
    return read_matlab(path) if name.endswith(".mat") else read_uci(path)


def read_csv(path: Path, choice: Choice | None = None) -> BagDataset:
    """Reads a CSV file as above, compressed or not.

    The first line says whether commas, semicolons or tabs separate columns; where no commas do, decimals may
    be written with one. Labels of bags are in the column `bag_label`, else `label`, and their ids in
    `bag_id`, else `bag`, else `slide_id`. A column without a name that counts the rows is left out.

    Args:
      path: of the file.
      choice: of features; None: all columns of numbers whose names have no role.

    Raises:
      UserError: the file is missing, cannot be read or is not as above; the sentence names the file and
        the line or the bag.
    """
    table = text_tables.open_table(path)
    rows = _Rows(path)
    places = columns.find(path, table.header, choice or Choice())
    cells = Cells(path, table.header, places, commas=table.separator != ",")
    own = places.instance_label
    for line, fields in table.rows:
        rows.add(
            line,
            fields[places.bag_id],
            fields[places.label],
            None if own is None else fields[own],
        )
        cells.add(line, fields)
    values, names = cells.end()
    log.info("%s: %s", path, cells.describe())
    return rows.dataset(values, names)


def read_parquet(path: Path, choice: Choice | None = None) -> BagDataset:
    """Reads a Parquet file with the columns of `read_csv`.

    Those whose type is a number's are numbers.

    Args:
      path: of the file.
      choice: of features; None: all columns of numbers whose names have no role.

    Raises:
      UserError: as of `read_csv`; the sentence names the row, counted from 1.
    """
    table = parquet_table.read(os.fspath(path), choice or Choice())
    rows = _Rows(path, "row")
    own: Sequence[str | None] = table.instance_labels or [None] * len(table.ids)
    for row, cells in enumerate(zip(table.ids, table.labels, own, strict=True), start=1):
        rows.add(row, *cells)
    return rows.dataset(table.values, table.features)


def write_csv(dataset: BagDataset, path: Path) -> None:
    """Writes bags as CSV.

    The file is compressed with gzip if its name ends in `.gz`.

    `read_csv` gives the same bags, ids and classes back, as long as every class has a bag, classes are
    integers or text that does not look like them, and which is positive is known or named again. Features
    without names are called f0, f1, ...; those whose names have a role (`columns.ROLES`) have to be
    chosen then.

    Raises:
      UserError: an instance is not a row of features, two bags have the same id, or a feature is called as
        the labels' or the ids' columns are.
    """
    if dataset.instances.ndim != 2:
        raise UserError(
            f"the instances of {dataset.name} have the shape {dataset.instances.shape[1:]}, but a CSV "
            "file holds one row of features for each"
        )
    if len(set(dataset.ids)) < len(dataset):
        twice = next(bag_id for bag_id in dataset.ids if dataset.ids.count(bag_id) > 1)
        raise UserError(f"{dataset.name} has several bags {twice!r}, but ids in a file must differ")
    names = dataset.features or tuple(f"f{n}" for n in range(dataset.instances.shape[1]))
    header = [BAG_LABEL, BAG_ID, *names]
    clashes = [name for name in names if name.lower() in (BAG_LABEL, BAG_ID, INSTANCE_LABEL)]
    if clashes:
        raise UserError(
            f"{dataset.name} has a feature {clashes[0]!r}, but a file has a column of that name anyway"
        )
    own = dataset.instance_labels
    if own is not None:
        header.append(INSTANCE_LABEL)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    row = 0
    # NumPy writes the shortest decimals that give the same number back, in float32 only where that is read.
    wide = dataset.instances.dtype != np.float32 or precision.loses_spread(dataset.instances).any()
    for label, bag_id, bag in zip(dataset.labels, dataset.ids, dataset.bags, strict=True):
        bag = bag.astype(np.float64) if wide else bag
        for values in bag.astype(str).tolist():
            features = [value.removesuffix(".0") for value in values]
            ending = [] if own is None else [dataset.classes[own[row]]]
            writer.writerow([dataset.classes[label], bag_id, *features, *ending])
            row += 1
    content = text.getvalue().encode()
    if os.fspath(path).endswith(".gz"):
        content = gzip.compress(content, mtime=0)  # the same data make the same file
    write_atomically(path, content)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, by renaming it.

    Raises:
      UserError: it cannot be written.
    """
    try:
        files.write(path, content)
    except OSError as error:
        raise UserError(f"the file {path} cannot be written ({error.strerror or error})") from error


def read_uci(path: Path) -> BagDataset:
    """Reads UCI's `clean1.data` or `clean2.data`, compressed or not.

    A line is a conformation: the molecule's name, the conformation's, the features, and the class "1."
    (musk) or "0.". A molecule is a bag (Dietterich et al. 1997, "Solving the multiple instance problem
    with axis-parallel rectangles").

    Raises:
      UserError: as for `read_csv`.
    """
    rows, features, lines = _Rows(path), [], []
    width = None
    for number, line in enumerate(text_tables.read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.split(",")
        width = width or len(fields)
        if len(fields) != width or width < 4:
            raise UserError(
                f"line {number} of {path} has {len(fields)} fields, but must have a molecule, a "
                f"conformation, features and a class{f' ({width} fields)' if width > 3 else ''}"
            )
        rows.add(number, fields[0], fields[-1])
        wrong = next((text for text in fields[2:-1] if not is_number(text)), None)
        if wrong is not None:
            raise UserError(f"line {number} of {path} has {wrong!r}, which is not a number")
        features.append(list(map(float, fields[2:-1])))
        lines.append(number)
    if not lines:
        raise UserError(f"{path} has no instance, but must have one in each line")
    values = np.array(features)
    check_finite(path, values, lines)
    return rows.dataset(values)


def read_matlab(path: Path) -> BagDataset:
    """Reads a MATLAB file of Andrews et al., such as `fox_100x100_matlab.mat`.

    It holds `features` [N, D], `bag_ids` [1, N] and `labels` [1, N], each sparse or not. `labels` repeats
    the bag's label, 1 or -1, for each of its instances; where they differ, the largest is the bag's.
    ("Support vector machines for multiple-instance learning", NIPS 2002.)

    Raises:
      UserError: the file is missing, not a MATLAB file of version 7 or older, lacks one of the three, or
        has them in shapes that do not fit; or there is only one class.
    """
    names = ("features", "bag_ids", "labels")
    try:
        variables = matlab_files.read(text_tables.read_content(path), names)
        arrays = [variables[name] for name in names]
    except KeyError as error:
        raise UserError(
            f"{path} has no variable {error}, but must have {', '.join(names)}"
        ) from error
    except NotImplementedError as error:  # HDF5
        raise UserError(f"{path} is of MATLAB's version 7.3; save it with the flag -v7") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be read as a MATLAB file ({error})") from error
    features, bag_ids, labels = arrays[0], arrays[1].ravel(), arrays[2].ravel()
    if features.ndim != 2 or not len(features) == len(bag_ids) == len(labels) > 0:
        raise UserError(
            f"{path} has features of the shape {features.shape}, {len(bag_ids)} bag_ids and "
            f"{len(labels)} labels, but there must be one of each for every instance"
        )
    if not (np.isfinite(bag_ids).all() and np.isfinite(labels).all()):
        raise UserError(f"{path} has a label or a bag id that is not a finite number")
    different, first, number = np.unique(bag_ids, return_index=True, return_inverse=True)
    bags = np.argsort(np.argsort(first))[number]
    highest = np.full(len(different), -np.inf)
    np.maximum.at(highest, bags, labels)
    return _dataset(
        path,
        bags,
        [str(_whole(bag_id)) for bag_id in bag_ids[np.sort(first)]],
        [_whole(label) for label in highest],
        features,
    )


class _Rows:
    """Collects labels and ids of rows, and reports mistakes by their lines.

    Or by what `unit` calls them.
    """

    def __init__(self, path: Path, unit: str = "line"):
        self.path = path
        self.unit = unit
        self.numbers: dict[str, int] = {}  # of the bags, by their ids
        self.labels: list[str] = []  # one per bag
        self.bags: list[int] = []  # from here on one per row
        self.lines: list[int] = []
        self.own: list[str] = []

    def add(self, line: int, bag_id: str, label: str, own: str | None = None) -> None:
        bag_id, label = bag_id.strip(), label.strip()
        self._refuse_missing(line, "bag id", bag_id)
        self._refuse_missing(line, "label", label)
        number = self.numbers.setdefault(bag_id, len(self.numbers))
        if number == len(self.labels):
            self.labels.append(label)
        elif label != self.labels[number] and label_value(label) != label_value(
            self.labels[number]
        ):
            raise UserError(
                f"{self.unit} {line} of {self.path} has the label {label!r} for bag {bag_id!r}, which had "
                f"{self.labels[number]!r} before"
            )
        self.bags.append(number)
        self.lines.append(line)
        if own is not None:
            self._refuse_missing(line, "instance label", own)
            self.own.append(own.strip())

    def _refuse_missing(self, line: int, what: str, value: str) -> None:
        if not value.strip():
            raise UserError(f"{self.unit} {line} of {self.path} has an empty {what}")
        if is_missing(value):
            raise UserError(
                f"{self.unit} {line} of {self.path} has the {what} {value.strip()!r}, which stands for a "
                "missing one; leave such rows out, or rename it if it is none"
            )

    def dataset(self, values: np.ndarray, features: tuple[str, ...] | None = None) -> BagDataset:
        """The data set of features `[N, D]` float64."""
        labels = label_values(self.labels)
        integers = isinstance(labels[0], int)
        own = [label_value(label) if integers else label for label in self.own]
        bag_labels = set(labels)
        for line, label in zip(self.lines, own, strict=False):
            if label not in bag_labels:
                raise UserError(
                    f"{self.unit} {line} of {self.path} has the {INSTANCE_LABEL} {str(label)!r}, but allowed "
                    f"are those of the bags, {', '.join(map(str, sorted(bag_labels)))}"
                )
        return _dataset(
            self.path,
            np.array(self.bags),
            list(self.numbers),
            labels,
            values,
            own or None,
            features=features,
        )


def _dataset(
    path: Path,
    bags: np.ndarray,
    ids: Sequence[str],
    labels: Sequence[Any],
    instances: np.ndarray,
    own: Sequence[Any] | None = None,
    *,
    features: tuple[str, ...] | None = None,
) -> BagDataset:
    """Makes a data set of instances in any order.

    `bags` has the number of each instance's bag.
    """
    classes = sorted(set(labels))
    warn_of_case(classes, path)
    if len(classes) < 2:
        raise UserError(f"all bags of {path} have the label {classes[0]!r}, but there must be two")
    place = {label: number for number, label in enumerate(classes)}
    order = np.argsort(bags, kind="stable")
    return BagDataset(
        instances=instances[order],
        lengths=np.bincount(bags, minlength=len(ids)),
        labels=np.array([place[label] for label in labels]),
        ids=tuple(ids),
        classes=tuple(classes),
        instance_labels=None if own is None else np.array([place[label] for label in own])[order],
        name=os.path.basename(path).split(".")[0],
        features=features,
    )


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else float(value)

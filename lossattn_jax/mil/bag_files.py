"""Bags in files: CSV, UCI's MUSK files, and the MATLAB files of Andrews, Tsochantaridis and Hofmann.

    dataset = read("mine.csv.gz")

A CSV file has a header and a row for each instance:

    bag_label,bag_id,area,colour
    1,a,0.5,3
    0,b,1.5,2
    1,a,0.25,1

The rows of a bag need not follow each other; bags are in the order of their first rows. Labels are integers
if all are written as such (1, -1, 2.0), otherwise text. A column `instance_label` may give the instances'
own labels, which are among those of the bags; every other column is a feature.
"""

import array
import csv
import gzip
import io
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lossattn_jax import records
from lossattn_jax.data.archives import MOST_BYTES as _MOST_BYTES
from lossattn_jax.errors import UserError
from lossattn_jax.mil import matlab_files, unix_compress
from lossattn_jax.mil.bags import BagDataset

Path = str | os.PathLike[str]

BAG_LABEL, BAG_ID, INSTANCE_LABEL = "bag_label", "bag_id", "instance_label"
_GZIP = b"\x1f\x8b"
# Python converts no more than 4,300 digits.
_INTEGER = re.compile(r"[+-]?\d{1,4000}(\.0*)?", re.ASCII)


def read(path: Path) -> BagDataset:
    """Reads a file of any of the formats here; the ending of its name says which.

    `.mat` is read with `read_matlab`, `.data` and `.data.Z` with `read_uci`, all else with `read_csv`.

    Raises:
      UserError: as these do.
    """
    name = os.path.basename(path).lower()
    if name.endswith(".mat"):
        return read_matlab(path)
    if name.endswith((".data", ".data.z")):
        return read_uci(path)
    return read_csv(path)


def read_csv(path: Path) -> BagDataset:
    """Reads a CSV file in the format above, compressed with gzip or not.

    Raises:
      UserError: the file is missing, cannot be read or is not as above; the sentence names the file and
        the line or the bag.
    """
    rows = _Rows(path)
    lines = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = [field.strip() for field in next(lines, [])]
        place = _places(path, header)
        features = [number for number, name in enumerate(header) if name not in place]
        if not features:
            raise UserError(f"{path} has no column but {', '.join(header)}, so no feature")
        own = place.get(INSTANCE_LABEL)
        for fields in lines:
            if len(fields) < 2 and not "".join(fields).strip():
                continue
            if len(fields) != len(header):
                raise UserError(
                    f"line {lines.line_num} of {path} has {len(fields)} fields, but the header has "
                    f"{len(header)}"
                )
            rows.add(
                lines.line_num,
                fields[place[BAG_ID]],
                fields[place[BAG_LABEL]],
                [fields[number] for number in features],
                None if own is None else fields[own],
            )
    except csv.Error as error:
        raise UserError(f"line {lines.line_num} of {path} is not CSV ({error})") from error
    return rows.dataset()


def write_csv(dataset: BagDataset, path: Path) -> None:
    """Writes a data set in the format above, compressed with gzip if the name ends in `.gz`.

    `read_csv` gives the same bags, ids and classes back, as long as every class has a bag and classes are
    integers or text that does not look like them. Features are named f0, f1, ...

    Raises:
      UserError: an instance is not a row of features, or two bags have the same id.
    """
    if dataset.instances.ndim != 2:
        raise UserError(
            f"the instances of {dataset.name} have the shape {dataset.instances.shape[1:]}, but a CSV "
            "file holds one row of features for each"
        )
    if len(set(dataset.ids)) < len(dataset):
        twice = next(bag_id for bag_id in dataset.ids if dataset.ids.count(bag_id) > 1)
        raise UserError(f"{dataset.name} has several bags {twice!r}, but ids in a file must differ")
    header = [BAG_LABEL, BAG_ID, *(f"f{n}" for n in range(dataset.instances.shape[1]))]
    own = dataset.instance_labels
    if own is not None:
        header.append(INSTANCE_LABEL)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    row = 0
    for label, bag_id, bag in zip(dataset.labels, dataset.ids, dataset.bags, strict=True):
        # NumPy writes the shortest decimals that give the same float32 back.
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
    """Writes a file under another name and renames it: there is never a part of it under its own.

    Raises:
      UserError: it cannot be written.
    """
    try:
        records.write_file(path, content)
    except OSError as error:
        raise UserError(f"the file {path} cannot be written ({error.strerror or error})") from error


def read_uci(path: Path) -> BagDataset:
    """Reads UCI's `clean1.data` or `clean2.data`, as they are or compressed (`clean1.data.Z`).

    A line is a conformation: the molecule's name, the conformation's, the features, and the class "1."
    (musk) or "0.". A molecule is a bag (Dietterich et al. 1997, "Solving the multiple instance problem
    with axis-parallel rectangles").

    Raises:
      UserError: as for `read_csv`.
    """
    rows = _Rows(path)
    width = None
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.split(",")
        width = width or len(fields)
        if len(fields) != width or width < 4:
            raise UserError(
                f"line {number} of {path} has {len(fields)} fields, but must have a molecule, a "
                f"conformation, features and a class{f' ({width} fields)' if width > 3 else ''}"
            )
        rows.add(number, fields[0], fields[-1], fields[2:-1])
    return rows.dataset()


def read_matlab(path: Path) -> BagDataset:
    """Reads a MATLAB file of Andrews, Tsochantaridis and Hofmann, such as `fox_100x100_matlab.mat`.

    It holds `features` [N, D], `bag_ids` [1, N] and `labels` [1, N], each sparse or not. `labels` repeats
    the bag's label, 1 or -1, for each of its instances; where they differ, the largest is the bag's.
    ("Support vector machines for multiple-instance learning", NIPS 2002.)

    Raises:
      UserError: the file is missing, not a MATLAB file of version 7 or older, lacks one of the three, or
        has them in shapes that do not fit; or there is only one class.
    """
    names = ("features", "bag_ids", "labels")
    try:
        found = matlab_files.read(_content(path), names)
        arrays = [found[name] for name in names]
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
    """Collects the rows of a text file, and reports what is wrong with one by its line."""

    def __init__(self, path: Path):
        self.path = path
        self.numbers: dict[str, int] = {}  # of the bags, by their ids
        self.labels: list[str] = []  # one per bag
        self.bags: list[int] = []  # from here on one per row
        self.lines: list[int] = []
        self.own: list[str] = []
        self.values = array.array("d")

    def add(
        self, line: int, bag_id: str, label: str, features: Sequence[str], own: str | None = None
    ) -> None:
        bag_id, label = bag_id.strip(), label.strip()
        if not bag_id or not label:
            raise UserError(
                f"line {line} of {self.path} has an empty {'label' if bag_id else 'bag id'}"
            )
        number = self.numbers.setdefault(bag_id, len(self.numbers))
        if number == len(self.labels):
            self.labels.append(label)
        elif label != self.labels[number] and _value(label) != _value(self.labels[number]):
            raise UserError(
                f"line {line} of {self.path} has the label {label!r} for bag {bag_id!r}, which had "
                f"{self.labels[number]!r} before"
            )
        self.bags.append(number)
        self.lines.append(line)
        if own is not None:
            self.own.append(own.strip())
        try:
            self.values.extend(map(float, features))
            if "_" in "".join(features):  # which Python's numbers may have
                raise ValueError
        except ValueError:
            wrong = next(text for text in features if not _is_number(text))
            raise UserError(
                f"line {line} of {self.path} has {wrong!r}, which is not a number"
            ) from None

    def dataset(self) -> BagDataset:
        if not self.lines:
            raise UserError(f"{self.path} has no instance, but must have one in each line")
        values = np.frombuffer(self.values).reshape(len(self.lines), -1)
        with np.errstate(over="ignore"):
            instances = values.astype(np.float32)
        finite = np.isfinite(instances).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            wrong = values[row][~np.isfinite(instances[row])][0]
            raise UserError(
                f"line {self.lines[row]} of {self.path} has the value {wrong:g}, but values must be "
                "finite numbers (in float32)"
            )
        integers = all(_INTEGER.fullmatch(label) for label in self.labels)
        labels = [_value(label) if integers else label for label in self.labels]
        own = [_value(label) if integers else label for label in self.own]
        allowed = set(labels)
        for line, label in zip(self.lines, own, strict=False):
            if label not in allowed:
                raise UserError(
                    f"line {line} of {self.path} has the {INSTANCE_LABEL} {str(label)!r}, but allowed "
                    f"are those of the bags, {', '.join(map(str, sorted(allowed)))}"
                )
        return _dataset(
            self.path, np.array(self.bags), list(self.numbers), labels, instances, own or None
        )


def _dataset(
    path: Path,
    bags: np.ndarray,
    ids: Sequence[str],
    labels: Sequence[Any],
    instances: np.ndarray,
    own: Sequence[Any] | None = None,
) -> BagDataset:
    """The data set of instances in any order, `bags` being the number of each one's bag."""
    classes = sorted(set(labels))
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
    )


def _places(path: Path, header: Sequence[str]) -> Mapping[str, int]:
    """Where the columns are that are no features."""
    if not any(header):
        raise UserError(f"{path} is empty or its first line is, but must be the header")
    for name in (BAG_LABEL, BAG_ID):
        if name not in header:
            raise UserError(
                f"the first line of {path} names no column {name!r} (names are separated by commas)"
            )
    for number, name in enumerate(header):
        if not name:
            raise UserError(f"column {number + 1} of {path} has no name")
        if name in header[:number]:
            raise UserError(f"{path} has two columns {name!r}, but names must differ")
    return {
        name: header.index(name) for name in (BAG_LABEL, BAG_ID, INSTANCE_LABEL) if name in header
    }


def _value(label: str) -> int | str:
    return int(label.split(".")[0]) if _INTEGER.fullmatch(label) else label


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else float(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _content(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise UserError(f"the file {path} does not exist") from error
    except OSError as error:
        raise UserError(f"the file {path} cannot be read ({error.strerror or error})") from error


def _text(path: Path) -> str:
    content = _content(path)
    try:
        if content.startswith(_GZIP):
            content = _gunzipped(content)
        elif content.startswith(unix_compress.MAGIC):
            content = unix_compress.uncompress(content, _MOST_BYTES)
        elif os.fspath(path).endswith((".gz", ".Z")):
            raise UserError(f"{path} is not compressed as its name says")
        return content.decode("utf-8-sig")
    except (EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        what = "not text in UTF-8" if isinstance(error, UnicodeDecodeError) else "damaged"
        raise UserError(f"{path} is {what} ({error})") from error


def _gunzipped(content: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        text = file.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB uncompressed")
    return text

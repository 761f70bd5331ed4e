"""The small data that `pinned_updates` trains on, the same on every machine."""

import io
import pathlib
import tarfile

import numpy as np
from PIL import Image

_SIDE = 64  # of a house number
_DIGIT = 20  # side of a digit's box
_BAGS = 8
_LENGTHS = (4, 6)  # two lengths of padded bags
_FEATURES = 5


def write_house_numbers(folder: pathlib.Path, train: int, test: int) -> None:
    """Writes `train.tar.gz` and `test.tar.gz` in the format of `svhn_full`.

    An image has one to three digits, each a coloured square on noise.

    Args:
      folder: where they go; it exists.
      train, test: images of each.
    """
    draw = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        with tarfile.open(folder / f"{split}.tar.gz", "w:gz") as archive:
            digits = []
            for number in range(count):
                labels = draw.choice(10, size=1 + number % 3, replace=False)
                digits.append(labels)
                _add(archive, f"{split}/{number + 1}.png", _house_number(labels, draw))
            _add(archive, f"{split}/digitStruct.mat", _digit_struct(digits))


def write_bags(path: pathlib.Path) -> None:
    """Writes a CSV file of bags of two lengths and two classes."""
    draw = np.random.default_rng(0)
    lines = ["bag_label,bag_id," + ",".join(f"f{number}" for number in range(_FEATURES))]
    for bag in range(_BAGS):
        label, length = bag % 2, _LENGTHS[bag // 2 % 2]
        for features in draw.normal(label, 1.0, (length, _FEATURES)):
            lines.append(f"{label},b{bag}," + ",".join(f"{value:.6f}" for value in features))
    path.write_text("\n".join(lines) + "\n")


def _left_edge(place: int) -> int:
    """The left edge of the digit at a place."""
    return 1 + place * (_DIGIT + 1)


def _house_number(labels: np.ndarray, draw: np.random.Generator) -> bytes:
    pixels = draw.integers(0, 120, (_SIDE, _SIDE, 3))
    for place, label in enumerate(labels):
        square = pixels[10 : 10 + _DIGIT, _left_edge(place) : _left_edge(place) + _DIGIT]
        square += np.array([12 * label, 130 - 12 * label, 60 * (label % 3)], square.dtype)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _digit_struct(digits: list[np.ndarray]) -> bytes:
    """`digitStruct.mat` of images named by their number, with the digits of each."""
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as root:
        count = 0

        def refer(array: np.ndarray) -> h5py.Reference:
            nonlocal count
            count += 1
            return root.create_dataset(f"#refs#/{count}", data=array).ref

        names, groups = [], []
        for number, labels in enumerate(digits, start=1):
            names.append(refer(np.array([[ord(letter)] for letter in f"{number}.png"], np.uint16)))
            group = root.create_group(f"#refs#/image{number}")
            for field in ("label", "left", "top", "width", "height"):
                values = [
                    {"label": label or 10, "left": _left_edge(place), "top": 10}.get(field, _DIGIT)
                    for place, label in enumerate(labels)
                ]
                cells = [np.array([[value]], np.float64) for value in values]
                group[field] = (
                    cells[0] if len(cells) == 1 else _column([refer(cell) for cell in cells])
                )
            groups.append(group.ref)
        root["digitStruct/name"] = _column(names)
        root["digitStruct/bbox"] = _column(groups)
    return file.getvalue()


def _column(references: list) -> np.ndarray:
    import h5py

    return np.array([[reference] for reference in references], h5py.ref_dtype)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))

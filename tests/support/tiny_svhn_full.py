"""Archives like those of SVHN's full numbers, of a few images of our own."""

import io
import tarfile

import h5py
import numpy as np
from PIL import Image

from lossattn_jax import data

SPEC = data.get_spec("svhn_full")

# By split and file: (height, width), and label, left, top, width, height of each digit.
IMAGES = {
    "train": {
        "1.png": ((30, 60), [(1, 10, 5, 12, 20), (10, 25, 6, 10, 20)]),
        "2.png": ((40, 40), [(5, -4, 2, 24, 60)]),  # sticks out on the left and below
        "3.png": ((64, 90), [(k, 12 * k, 3 + k, 11, 50) for k in (1, 2, 3, 4, 5, 6)]),
        "4.png": ((20, 25), [(7, 2, 1, 9, 18), (7, 12, 1, 9, 18), (9, 25, 0, 5, 5)]),
    },
    "test": {
        "1.png": ((50, 33), [(8, 3, 3, 10, 20)]),
        "2.png": ((48, 70), [(2, 0.5, 1.25, 30, 40), (10, 31, 1, 30, 40)]),
    },
    "extra": {"1.png": ((16, 24), [(4, 4, 4, 8, 8)])},
}


def boxes(split, name):
    """Classes, and boxes as fractions of the image, of the digits that can be seen."""
    (height, width), digits = IMAGES[split][name]
    found = []
    for label, left, top, wide, high in digits:
        box = np.array([top, left, top + high, left + wide]) / (height, width, height, width)
        if left < width:
            found.append((label % 10, box.clip(0, 1)))
    return found


def pixels(split, name):
    """uint8 [height, width, 3], smooth, so that resizing keeps it much the same."""
    (height, width), _ = IMAGES[split][name]
    y, x = np.mgrid[:height, :width]
    shades = [255 * y / height, 255 * x / width, np.full(y.shape, 10.0 * int(name[0]))]
    return np.stack(shades, axis=-1).astype(np.uint8)


def struct(images):
    """The content of a `digitStruct.mat`, as MATLAB's version 7.3 lays it out."""
    file = io.BytesIO()
    with h5py.File(file, "w", userblock_size=512) as root:
        held = root.create_group("#refs#")

        def stored(value):
            return held.create_dataset(f"a{len(held)}", data=value).ref

        names, groups = [], []
        for name, (_, digits) in images.items():
            names.append(stored(np.array([[ord(letter)] for letter in name], np.uint16)))
            group = held.create_group(f"g{len(held)}")
            for k, field in enumerate(("label", "left", "top", "width", "height")):
                numbers = [np.array([[digit[k]]], np.float64) for digit in digits]
                if len(numbers) == 1:
                    group[field] = numbers[0]
                else:
                    group[field] = _references([stored(number) for number in numbers])
            groups.append(group.ref)
        root["digitStruct/name"] = _references(names)
        root["digitStruct/bbox"] = _references(groups)
    return file.getvalue()


def files(split, last=True):
    """The files of a split's archive by path; `digitStruct.mat` comes `last` or first."""
    content = {}
    for name in IMAGES[split]:
        file = io.BytesIO()
        Image.fromarray(pixels(split, name)).save(file, "PNG")
        content[f"{split}/{name}"] = file.getvalue()
    described = {f"{split}/digitStruct.mat": struct(IMAGES[split])}
    return content | described if last else described | content


def archive(content):
    """Such files as a tar.gz archive, with a folder and something else among them."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as packed:
        folder = tarfile.TarInfo("train")
        folder.type = tarfile.DIRTYPE
        packed.addfile(folder)
        for name, text in {"train/see_bboxes.m": b"load digitStruct.mat", **content}.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            packed.addfile(member, io.BytesIO(text))
    return file.getvalue()


def write(folder, splits=("train", "test", "extra")):
    """Writes the archives of `splits` into a folder."""
    for split in splits:
        content = archive(files(split, last=split == "train"))
        (folder / f"{split}.tar.gz").write_bytes(content)


def _references(items):
    return np.array([[item] for item in items], h5py.ref_dtype)

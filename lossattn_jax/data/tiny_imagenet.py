"""The data set `tiny_imagenet`: 64x64 images of 200 classes, with boxes.

Of ImageNet's classes, each image with a box; a TFDS builder.

It is read from `tiny-imagenet-200.zip` as it is published by Stanford's course CS231n, without unpacking it:

    wnids.txt                          the classes, a WordNet number a line
    train/NUMBER/images/NUMBER_I.JPEG  500 images of each class
    train/NUMBER/NUMBER_boxes.txt      their boxes: file, x1, y1, x2, y2, with tabs between
    val/images/val_I.JPEG              10,000 images of all classes
    val/val_annotations.txt            their classes and boxes: file, number, x1, y1, x2, y2

The labels of the archive's own test images are secret; its validation images are ours for testing. A label
is a class's place in `tiny_imagenet_classes`. Some images are grey; they stay as they are here and are made
RGB when they are decoded.
"""

import os
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lossattn_jax.data import archives
from lossattn_jax.data.boxes import NO_BOX, pixels_to_fractions
from lossattn_jax.data.tiny_imagenet_classes import NAMES, WNIDS

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_ROOT = "tiny-imagenet-200/"
_SIDE = 64

_DESCRIPTION = """Tiny ImageNet: 100,000 training and 10,000 validation images of 64x64 pixels, of 200 of
ImageNet's classes, each with the bounding box of an object of its class."""


def parse_box(fields: list[str]) -> tuple[float, float, float, float]:
    """Parses an image's box in the archive's annotations.

    The published corners are the first and the last pixel of the object: they go from 0 to 63, and some
    objects at an edge begin and end at the same one. So a pixel is added at the far corner.

    Args:
      fields: x1, y1, x2, y2.

    Returns:
      (ymin, xmin, ymax, xmax) in fractions of the image, cut off at its edges.

    Raises:
      ValueError: they are not four whole numbers.
    """
    x1, y1, x2, y2 = (int(field) for field in fields)
    return pixels_to_fractions((y1, x1, y2 + 1, x2 + 1), _SIDE, _SIDE)


def train_examples(archive: zipfile.ZipFile) -> Iterator[dict[str, Any]]:
    """Yields the training images of an archive.

    Args:
      archive: opened for reading.

    Yields:
      `image` JPEG bytes, `label` int, `bbox` float32 [4], `file_name`. An image that the annotations do
      not name has `NO_BOX`.

    Raises:
      KeyError, ValueError: the archive is not in the published format.
    """
    images: dict[str, list[str]] = {}
    for member in dict.fromkeys(archive.namelist()):
        if member.startswith(f"{_ROOT}train/") and member.endswith(".JPEG"):
            images.setdefault(member.split("/")[2], []).append(member)
    for (wnid,) in _rows(archive, "wnids.txt", 1):
        label = _label(wnid)
        boxes = {
            name: parse_box(corners)
            for name, *corners in _rows(archive, f"train/{wnid}/{wnid}_boxes.txt", 5)
        }
        for member in images.get(wnid, []):
            name = os.path.basename(member)
            yield _example(_content(archive, member), label, boxes.get(name, NO_BOX), name)


def validation_examples(archive: zipfile.ZipFile) -> Iterator[dict[str, Any]]:
    """Yields the validation images of an archive.

    As `train_examples` does.
    """
    for name, wnid, *corners in _rows(archive, "val/val_annotations.txt", 6):
        content = _content(archive, f"{_ROOT}val/images/{name}")
        yield _example(content, _label(wnid), parse_box(corners), name)


def _example(
    image: bytes, label: int, box: tuple[float, float, float, float], name: str
) -> dict[str, Any]:
    return {"image": image, "label": label, "bbox": np.array(box, np.float32), "file_name": name}


def _rows(archive: zipfile.ZipFile, name: str, columns: int) -> Iterator[list[str]]:
    text = _content(archive, _ROOT + name).decode()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.rstrip("\t ").split("\t")]
        if len(fields) != columns:
            raise ValueError(f"line {number} of {name} has {len(fields)} columns, not {columns}")
        yield fields


def _content(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as stream:
        size = archive.getinfo(name).file_size
        return archives.content(stream, name, size, archives.MOST_IMAGE_BYTES)


def _label(wnid: str) -> int:
    if wnid not in WNIDS:
        raise ValueError(f"{wnid} is not one of the 200 published classes")
    return WNIDS.index(wnid)


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of `tiny_imagenet`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = archives.INSTRUCTIONS

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(_SIDE, _SIDE, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=NAMES),
                    # No BBoxFeature, which cannot hold an absent box.
                    "bbox": tfds.features.Tensor(shape=(4,), dtype=np.float32),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://cs231n.stanford.edu/",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        path = archives.locate(dl_manager, {"all": URL})["all"]
        return {split: self._generate_examples(path, split) for split in ("train", "validation")}

    def _generate_examples(self, path: Any, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        examples = train_examples if split == "train" else validation_examples
        with archives.reading(path), path.open("rb") as file, zipfile.ZipFile(file) as archive:
            for example in examples(archive):
                yield example["file_name"], example

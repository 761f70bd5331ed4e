"""A tiny data set `coco` of our own images, prepared by TFDS' own builder."""

import json

import numpy as np
from PIL import Image

from lossattn_jax import data

SPEC = data.get_spec("coco")

# Prepares argv[1] with what the download would have brought in argv[2].
_PREPARE = """
import sys
import tensorflow_datasets as tfds
from lossattn_jax.data.prepare import prepare

def extracted(self, urls):
    return {key: sys.argv[2] for key in urls}

tfds.download.DownloadManager.download_and_extract = extracted
print(prepare("coco", sys.argv[1]))
"""


def _noise(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _smooth(seed, height, width):
    small = Image.fromarray(_noise(seed, height // 10, width // 10))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def _halves():
    image = np.zeros((160, 300, 3), np.uint8)
    image[:, 150:] = 255
    return image


# By split and file: the image and its objects.
IMAGES = {
    "train": {
        "plain.jpg": (np.full((48, 96, 3), (200, 30, 90), np.uint8), ["dog", "cat", "dog"]),
        "grey.jpg": (np.full((80, 70), 128, np.uint8), []),
        "halves.jpg": (_halves(), ["person", "toothbrush"]),
        "chequers.jpg": ((np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8), ["kite"]),
        "small.jpg": (_noise(0, 20, 30), ["hair drier", "traffic light"]),
    },
    "val": {
        "tall.jpg": (_noise(1, 300, 40), ["tv"]),
        "large.jpg": (_smooth(2, 480, 640), ["person"]),
        "none.jpg": (_noise(3, 64, 64), []),
    },
    "test": {"secret.jpg": (_noise(4, 64, 64), [])},
}


def _pixels(k):
    # Of an image's object k as COCO has it: left, top, width, height.
    return [k, 2 * k + 1, 10 + k, 8.5]


def box(image, k):
    """(ymin, xmin, ymax, xmax) of object k as fractions of the image."""
    left, top, width, height = _pixels(k)
    return np.array([top, left, top + height, left + width]) / (2 * image.shape[:2])


def _annotations(images):
    # COCO's numbers start at 1 and have gaps.
    numbers = {name: k + 1 + k // 9 for k, name in enumerate(SPEC.class_names)}
    listed = []
    for image, (_, objects) in enumerate(images.values()):
        for k, name in enumerate(objects):
            one = {"id": len(listed), "image_id": image, "category_id": numbers[name]}
            listed.append(one | {"area": 1.0, "iscrowd": 0, "bbox": _pixels(k)})
    return {
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "images": [
            {"id": k, "file_name": name, "height": len(image), "width": image.shape[1]}
            for k, (name, (image, _)) in enumerate(images.items())
        ],
        "annotations": listed,
    }


def prepare(folder, download, run_python):
    """Prepares 5 training and 3 test images in `folder`, by way of the empty folder `download`."""
    (download / "annotations").mkdir()
    for split, images in IMAGES.items():
        (download / f"{split}2017").mkdir()
        for name, (image, _) in images.items():
            Image.fromarray(image).save(download / f"{split}2017" / name, quality=100)
        kind = "image_info" if split == "test" else "instances"
        text = json.dumps(_annotations(images))
        (download / "annotations" / f"{kind}_{split}2017.json").write_text(text)
    done = run_python("-c", _PREPARE, folder, download)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{folder}/coco/2017/1.1.0"

"""An archive like tiny-imagenet-200.zip, of a few images of our own."""

import io
import zipfile

import numpy as np
from PIL import Image

from lossattn_jax import data

SPEC = data.get_spec("tiny_imagenet")
NAME = "tiny-imagenet-200.zip"
# In another order than the published one: an acorn, an Egyptian cat, a reel.
WNIDS = ("n12267677", "n02124075", "n04067472")
PER_CLASS, VALIDATION = 4, 5


def image(seed):
    """uint8 [64, 64, 3], or of every third seed [64, 64]."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (64, 64) if seed % 3 == 0 else (64, 64, 3), dtype=np.uint8)


def corners(seed):
    """x1, y1, x2, y2: the first and the last pixel of the object."""
    return seed, 2 * seed, 20 + 3 * seed, 63


def files():
    """The archive's content by name."""
    content = {"wnids.txt": "\n".join(WNIDS), "words.txt": "n00001740\tentity\n"}
    seed = 0
    for wnid in WNIDS:
        lines = []
        for place in range(PER_CLASS):
            name = f"{wnid}_{place}.JPEG"
            content[f"train/{wnid}/images/{name}"] = _jpeg(image(seed))
            lines.append("\t".join([name, *map(str, corners(seed))]))
            seed += 1
        content[f"train/{wnid}/{wnid}_boxes.txt"] = "\n".join(lines) + "\n"
    lines = []
    for place in range(VALIDATION):
        content[f"val/images/val_{place}.JPEG"] = _jpeg(image(100 + place))
        row = [f"val_{place}.JPEG", WNIDS[place % 3], *map(str, corners(place))]
        lines.append("\t".join(row))
    content["val/val_annotations.txt"] = "\n".join(lines) + "\n"
    content["test/images/test_0.JPEG"] = _jpeg(image(1))
    return content


def write(path, content):
    """Writes such content as a zip archive."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny-imagenet-200/", "")
        for name, text in content.items():
            archive.writestr(f"tiny-imagenet-200/{name}", text)


def _jpeg(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=100)
    return file.getvalue()

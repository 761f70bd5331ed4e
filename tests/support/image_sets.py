"""Small JPEG files in folders of classes, and a TFDS data set of the same pictures."""

import io
import pathlib

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

CLASSES = ("bee", "cat", "dog")


def picture(seed, size=(8, 8)):
    """A picture of some large blots, (height, width) as of `size`."""
    draw = np.random.default_rng(seed)
    blots = Image.fromarray(draw.integers(0, 256, (3, 3, 3)).astype(np.uint8))
    return blots.resize(size[::-1], Image.Resampling.BICUBIC)


def write(root, counts, size=(8, 8), suffix=".jpg", seed=0):
    """Writes files of each split and class: `counts` by split, or a number where there are no splits."""
    if isinstance(counts, int):
        counts = {"": counts}
    for split, count in counts.items():
        for label, name in enumerate(CLASSES):
            folder = pathlib.Path(root) / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                one = picture((seed, len(split), label, number), size)
                one.save(folder / f"{number:03d}{suffix}", quality=95)
    return pathlib.Path(root)


class JpegSet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The decoded pictures of a folder with splits, as PNG, as TFDS' own CIFAR-10 has them."""

    VERSION = tfds.core.Version("1.0.0")
    name = "jpeg_set"
    pkg_dir_path = tfds.core.Path(__file__).parent

    def __init__(self, *, root, splits=("train", "test"), size=(8, 8), **kwargs):
        self.root, self.own_splits, self.size = pathlib.Path(root), splits, size
        super().__init__(**kwargs)

    def _info(self):
        features = {
            "image": tfds.features.Image(
                shape=(*self.size, 3), dtype=np.uint8, encoding_format="png"
            ),
            "label": tfds.features.ClassLabel(names=list(CLASSES)),
            "path": tfds.features.Text(),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.own_splits}

    def _generate_examples(self, split):
        for path in sorted((self.root / split).rglob("*.jpg")):
            content = io.BytesIO()
            Image.open(path).convert("RGB").save(content, "PNG")
            content.seek(0)
            name = path.relative_to(self.root).as_posix()
            yield name, {"image": content, "label": path.parent.name, "path": name}


def prepare(root, data_dir, **settings):
    """Prepares the TFDS set of a folder's pictures."""
    builder = JpegSet(root=root, data_dir=str(data_dir), file_format="array_record", **settings)
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=config)

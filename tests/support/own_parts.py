"""A user's own parts in one file, as `write` puts it into a folder outside the package."""

import pathlib

NAME = "own_parts"
IMPORTED = "own_parts.imported"  # a file that the module leaves beside it when it is imported

SOURCE = '''
import pathlib

import jax.numpy as jnp
import numpy as np

from lossattn_jax.data import DatasetSpec
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.explain.metrics.metric_registry import Metric
from lossattn_jax.mil.estimator import BagClassifier

pathlib.Path(__file__).with_suffix(".imported").touch()

SHAPES = DatasetSpec(
    name="own_shapes",
    num_classes=2,
    class_names=("dark", "light"),
    preparation_package="",
    builder_class="own_builder:OwnShapes",
    max_boxes=1,
)
CONTRADICTORY = DatasetSpec(name="own_shapes", num_classes=3, class_names=("dark", "light"))
NUMBER = 3


def corner(subject, variables, images, classes, keys):
    """Only the upper left quarter matters."""
    rows = jnp.arange(images.shape[1]) < 16
    quarter = (rows[:, None] & rows[None]).astype(jnp.float32)
    return subject.from_pixels(jnp.tile(quarter, (len(images), 1, 1)))


def flat(subject, variables, images, classes, keys):
    return images


QUARTER = Metric(True, lambda maps: jnp.mean(maps.relevance.pixels[:, :16, :16], axis=(1, 2)))
IN_BOX = Metric(True, lambda maps: jnp.mean(maps.inside, axis=1), needs_boxes=True)
WHOLE = Metric(False, lambda maps: jnp.mean(maps.relevance.pixels))


def bags():
    random = np.random.default_rng(0)
    labels = np.arange(12) % 2
    return BagDataset.from_bags([random.normal(label, 0.1, (3, 2)) for label in labels], labels)


BAGS = bags()


class Threshold(BagClassifier):
    """The mean of a bag's instances against the mean of the training bags'."""

    def __init__(self, *, standardise=True):
        self.standardise = standardise

    def _fit(self, bags, labels):
        self.sign_ = np.sign(np.mean([bag.mean() * (2 * y - 1) for bag, y in zip(bags, labels)]))

    def _predict_proba(self, bags):
        positive = 1 / (1 + np.exp(-5 * self.sign_ * np.array([bag.mean() for bag in bags])))
        return np.stack([1 - positive, positive], axis=1)

    def _instance_scores(self, bags):
        return [self.sign_ * bag.mean(axis=1) for bag in bags]


class NeedsMore(Threshold):
    def __init__(self, size, *, standardise=True):
        self.size = size
        self.standardise = standardise
'''

# Apart, as it is imported once alone: TFDS refuses a second class of that name.
BUILDER = """
import numpy as np
import tensorflow_datasets as tfds


class OwnShapes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(32, 32, 3), dtype=np.uint8),
            "label": tfds.features.ClassLabel(num_classes=2),
            "bbox": tfds.features.BBoxFeature(),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 32), "test": self._generate_examples(1, 8)}

    def _generate_examples(self, seed, count):
        random = np.random.default_rng(seed)
        for number in range(count):
            image = random.integers(0, 60, (32, 32, 3), np.uint8)
            image[:16, :16] += np.uint8(190 * (number % 2))
            box = tfds.features.BBox(ymin=0.0, xmin=0.0, ymax=0.5, xmax=0.5)
            yield number, {"image": image, "label": number % 2, "bbox": box}
"""


def write(folder: pathlib.Path) -> None:
    """Writes the modules into a folder."""
    (folder / f"{NAME}.py").write_text(SOURCE)
    (folder / "own_builder.py").write_text(BUILDER)

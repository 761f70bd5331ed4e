"""The data set `digit_scenes`: one digit in a cluttered 32x32 scene.

In colour; a TFDS builder.

It is made on the spot from the 1,797 digits that come with scikit-learn (less the few that are hard
to read), so it needs no download, and every image has the box of its digit: where a network looks
can be checked. Training and test images are drawn from different digits.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from lossattn_jax.data.digit_rendering import render
from lossattn_jax.data.legible_digits import split_digits

_PIECES = 4  # of other digits in a scene, each 3 or 4 original pixels square
_SPLIT_KEYS = {"train": 0, "test": 1}

_DESCRIPTION = """Scenes of 32x32 pixels, each with one whole handwritten digit (its label) at a
random place, size, colour and slant, over a cluttered ground with lines, arcs and pieces of other
digits. Made from the digits of scikit-learn (UCI optical recognition of handwritten digits);
training and test scenes use different digits."""


def scenes(seed: int, split: str, count: int) -> Iterator[dict[str, Any]]:
    """Draws a split's scenes; scene i depends on (seed, split, i).

    Args:
      seed: of the data set.
      split: 'train' or 'test'.
      count: number of scenes; the ten classes take turns.

    Yields:
      `image` uint8 [32, 32, 3], `label` int, `box` float32 [4] (ymin, xmin, ymax, xmax as
      fractions), `source_index` int, the digit's place in scikit-learn's data set.
    """
    digits = split_digits(seed)[split]
    of_label = [np.flatnonzero(digits.labels == label) for label in range(10)]
    for index in range(count):
        entropy = np.random.SeedSequence([seed, _SPLIT_KEYS[split], index])
        rng = np.random.Generator(np.random.Philox(entropy))
        label = index % 10
        choice = int(rng.choice(of_label[label]))
        pieces = [
            digits.glyphs[other].piece(row, column, size)
            for other, row, column, size in zip(
                rng.integers(0, len(digits.glyphs), _PIECES),
                rng.integers(0, 5, _PIECES),
                rng.integers(1, 5, _PIECES),
                rng.integers(3, 5, _PIECES),
                strict=True,
            )
        ]
        image, box = render(rng, digits.glyphs[choice], pieces)
        yield {
            "image": image,
            "label": label,
            "box": box,
            "source_index": int(digits.sources[choice]),
        }


def _png(image: np.ndarray) -> bytes:
    # TFDS would encode an array with TensorFlow, which takes seconds to load. Noise hardly
    # compresses: left alone it is a third larger, and quicker to write and to read.
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=0)
    return file.getvalue()


class DigitScenes(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of `digit_scenes`.

    Attributes:
      num_train: training scenes to draw.
      num_test: test scenes to draw.
      seed: the data set is a function of it.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def __init__(
        self, *, num_train: int = 10_000, num_test: int = 2_000, seed: int = 0, **kwargs: Any
    ):
        self.num_train = num_train
        self.num_test = num_test
        self.seed = seed
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(32, 32, 3), dtype=np.uint8, encoding_format="png"
                    ),
                    "label": tfds.features.ClassLabel(names=list("0123456789")),
                    "bbox": tfds.features.BBoxFeature(),
                    "source_index": tfds.features.Scalar(dtype=np.int32),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing to download
        return {
            "train": self._generate_examples("train", self.num_train),
            "test": self._generate_examples("test", self.num_test),
        }

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, scene in enumerate(scenes(self.seed, split, count)):
            ymin, xmin, ymax, xmax = (float(side) for side in scene["box"])
            yield (
                index,
                {
                    "image": _png(scene["image"]),
                    "label": scene["label"],
                    "bbox": tfds.features.BBox(ymin=ymin, xmin=xmin, ymax=ymax, xmax=xmax),
                    "source_index": scene["source_index"],
                },
            )

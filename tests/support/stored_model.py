"""Writes fitted methods, for `test_stored_models.py` to read with later versions.

    python -m tests.support.stored_model tests/stored_models/NAME

The folder has a folder for each of `METHODS`, and `probabilities.json`, what they say of the bags of `bags`.
"""

import json
import pathlib
import sys

import numpy as np

from lossattn_jax.mil import methods
from lossattn_jax.train.bags.settings import Settings

SMALL = {"settings": Settings(epochs=3, learning_rate=0.01), "hidden": (4,), "ensemble": 2}
METHODS = {"mi_svm": {}, "mi_fv": {"pca_energy": 0.9}, "em_dd": {}, "loss_attention": SMALL}
CLASSES = ("healthy", "tumour")


def bags():
    """Bags of vectors, and their labels as words."""
    random = np.random.default_rng(0)
    labels = np.arange(12) % 2
    vectors = [
        random.normal(size=(2 + number % 4, 3)) + 2 * label for number, label in enumerate(labels)
    ]
    return vectors, [CLASSES[label] for label in labels]


def fit(name, **settings):
    """A method, fitted on `bags`."""
    return methods.make(name, positive=CLASSES[1], **settings).fit(*bags())


def main(folder):
    """Writes them."""
    said = {}
    for name, settings in METHODS.items():
        method = fit(name, **settings)
        method.save(folder / name)
        said[name] = method.predict_proba(bags()[0]).tolist()
    (folder / "probabilities.json").write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

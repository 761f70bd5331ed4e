"""Few small bags, and settings with which every method learns them fast."""

import numpy as np

from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.mil import methods
from lossattn_jax.train.bags.settings import Settings

FAST = Settings(epochs=10, learning_rate=0.02, batch_size=4, max_waste=4.0)
UNEQUAL = ("mi_svm", "mi_svm_bag", "em_dd", "mi_net")
CLASSICAL = tuple(name for name in methods.NAMES if methods.get(name).classical is not None)
NETWORKS = tuple(name for name in methods.NAMES if name not in CLASSICAL)
# Thirty trainings or more, or as many clusterings.
SLOW = (*NETWORKS, "mi_vlad")


def settings(name):
    """Of a method, for few and small bags."""
    if name in NETWORKS:
        return {"hidden": (8, 8, 8), "dropout": 0.0, "settings": FAST}
    return {
        "mi_vlad": {"centres": 1},
        "mi_fv": {"components": 1},
        "em_dd": {"start_bags": 2, "max_starts": 3, "max_steps": 30, "max_rounds": 3},
    }.get(name, {})


def overlapping_bags():
    """Sixteen bags of two classes that no method tells apart with certainty."""
    random = np.random.default_rng(2)
    labels = np.arange(16) % 2
    bags = [random.normal(0.7 * label, 1, (1 + i % 3, 3)) for i, label in enumerate(labels)]
    return BagDataset.from_bags(bags, labels, name="toy")


def toy(count=40, seed=0, words=("no", "yes"), shift=3.0):
    """Bags of 1 to 4 instances; a bag of the second word has an instance that is far from the others."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    bags = [random.normal(0, 0.3, (random.integers(1, 5), 3)) for _ in labels]
    for bag, label in zip(bags, labels, strict=True):
        bag[random.integers(len(bag))] += shift * label
    return bags, np.array(words)[labels]

"""Small experiments with bags, and records of folds with any probabilities."""

import numpy as np

from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.sources import Experiment
from lossattn_jax.data.bags.splits import own_folds
from lossattn_jax.files import records


def experiment_of(labels, repeats=2, folds=3, groups=None, instance_labels=None):
    """Bags of two instances, and folds that go round."""
    count = int(max(labels)) + 1
    dataset = BagDataset(
        instances=np.arange(2.0 * len(labels))[:, None],
        lengths=np.full(len(labels), 2),
        labels=np.array(labels),
        ids=[f"b{place}" for place in range(len(labels))],
        classes=("no", "yes") if count == 2 else tuple("abcdefghi"[:count]),
        instance_labels=instance_labels,
        name="own",
        groups=groups,
    )
    numbers = np.arange(len(labels)) % folds
    if groups is not None:
        numbers = np.unique(groups, return_inverse=True)[1] % folds
    return Experiment(dataset, own_folds(dataset, numbers, repeats))


def folds_of(experiment, probabilities, scores=None):
    """Records of the folds, of probabilities `[repeats, bags, K]`."""
    dataset, folds = experiment.dataset, []
    for split in experiment.splits:
        rows = np.flatnonzero(split.test)
        own = probabilities[split.repeat]
        finite = np.isfinite(own).all(axis=1)
        bags = [
            {
                "id": dataset.ids[row],
                "label": int(dataset.labels[row]),
                "prediction": int(np.argmax(own[row])) if finite[row] else None,
                "probabilities": records.without_nonfinite(own[row].tolist())[0],
                "weights": [0.25, 0.75] if scores is None else scores[row].tolist(),
            }
            for row in rows
        ]
        right = [bag["prediction"] == bag["label"] for bag in bags]
        folds.append(
            {
                "dataset": dataset.name,
                "benchmark": None,
                "method": "mi_svm",
                "rule": "final",
                "optimistic": False,
                "repeat": split.repeat,
                "fold": split.fold,
                "accuracy": float(np.mean(right)) if finite[rows].all() else None,
                "nonfinite": int((~finite[rows]).sum()),
                "epoch": None,
                "settings": {},
                "seconds": 1.0,
                "classes": [str(name) for name in dataset.classes],
                "positive": dataset.positive,
                "bags": bags,
            }
        )
    return folds


def draw(labels, repeats=2, seed=0, strength=1.0):
    random = np.random.default_rng(seed)
    weights = random.exponential(size=(repeats, len(labels), max(labels) + 1))
    weights[:, np.arange(len(labels)), labels] += strength
    return weights / weights.sum(axis=2, keepdims=True)

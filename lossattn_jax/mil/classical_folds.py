"""Folds of classical methods, one after the other."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import clone

from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.splits import Split
from lossattn_jax.data.order import derive_seed
from lossattn_jax.mil import selection
from lossattn_jax.mil.estimator import BagClassifier
from lossattn_jax.mil.fold_results import FoldResult
from lossattn_jax.mil.selection import BEST_TEST, FINAL, VALIDATION, Validation


def run(
    dataset: BagDataset,
    split: Split,
    method: BagClassifier,
    *,
    rules: Sequence[str] = (FINAL,),
    validation: Validation | None = None,
    seed: int = 0,
) -> list[FoldResult]:
    """Trains and tests a method on one fold.

    `FINAL` takes the settings as they are; the other rules choose among `method.candidates()`.

    Args:
      dataset: the bags.
      split: the fold.
      method: not fitted; it stays so.
      rules: of `selection.RULES`.
      validation: of the rule `VALIDATION`; None: its defaults.
      seed: with repeat and fold, of methods that draw.

    Returns:
      One result for each rule.

    Raises:
      UserError: there is no such rule.
    """
    selection.check_rules(tuple(rules))
    own = derive_seed(seed, split.repeat, split.fold)
    models: dict[int, tuple[BagClassifier, float]] = {}
    candidates = method.candidates()

    def fit(number: int, train: np.ndarray) -> tuple[BagClassifier, float]:
        began = time.monotonic()
        model = _with(method, candidates[number], own)
        part = dataset.select(train)
        _name_positive(model, part)
        model.fit(part.bags, part.labels)
        return model, time.monotonic() - began

    def on_all(number: int) -> tuple[BagClassifier, float]:
        if number not in models:
            models[number] = fit(number, split.train)
        return models[number]

    results = []
    for rule in rules:
        choice, seconds = 0, 0.0
        if rule == BEST_TEST:
            scores = [
                _score(dataset, on_all(number)[0], split.test) for number in range(len(candidates))
            ]
            choice = _best(scores, Validation())
        elif rule == VALIDATION:
            choice, seconds = _choose_by_validation(
                dataset, split, fit, len(candidates), validation or Validation(), own
            )
        model, own_seconds = on_all(choice)
        bags = dataset.select(split.test).bags
        results.append(
            FoldResult(
                rule=rule,
                split=split,
                probabilities=_all_classes(model, bags, dataset.num_classes),
                weights=model.instance_scores(bags),
                settings=dict(candidates[choice]),
                epoch=None,
                accuracies=None,
                seconds=seconds + own_seconds,
                model=model,
            )
        )
    return results


def _with(method: BagClassifier, settings: Mapping[str, Any], seed: int) -> BagClassifier:
    model: BagClassifier = clone(method).set_params(**settings)
    return model.set_params(seed=seed) if "seed" in model.get_params() else model


def _name_positive(model: BagClassifier, part: BagDataset) -> None:
    """Names the last class positive where only two classes are left.

    It comes after the other among all classes as well.
    """
    labels = np.unique(part.labels)
    if part.num_classes > 2 and len(labels) == 2 and "positive" in model.get_params(deep=False):
        model.set_params(positive=int(labels[-1]))


def _choose_by_validation(dataset, split, fit, candidates: int, validation: Validation, seed: int):
    began = time.monotonic()
    parts = validation.parts(dataset, split, seed)
    scores = [
        np.mean(
            [_score(dataset, fit(number, split.train & ~part)[0], part) for part in parts],
            axis=0,
        )
        for number in range(candidates)
    ]
    return _best(scores, validation), time.monotonic() - began


def _score(dataset: BagDataset, model: BagClassifier, rows: np.ndarray) -> tuple[Any, Any]:
    bags = dataset.select(rows).bags
    with np.errstate(
        divide="ignore"
    ):  # a probability of 0 is a loss of infinity, and never the best
        logits = np.log(_all_classes(model, bags, dataset.num_classes))
    return selection.accuracy_and_loss(
        np.maximum(logits, np.finfo(np.float32).min), dataset.labels[rows]
    )


def _best(scores: Sequence[Any], validation: Validation) -> int:
    accuracy, loss = np.array(scores, np.float64).T[..., None]
    return int(validation.best(accuracy, loss)[0])


def _all_classes(model: BagClassifier, bags: Sequence[np.ndarray], num_classes: int) -> np.ndarray:
    """Predicts probabilities of all classes, also those not trained on."""
    every = np.zeros((len(bags), num_classes))
    every[:, model.classes_] = model.predict_proba(bags)
    return every

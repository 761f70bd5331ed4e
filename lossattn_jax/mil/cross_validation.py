"""One method on one data set: all folds, each in a file of its own, so that a killed run goes on."""

import logging
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from lossattn_jax.mil import classical_folds, fold_results, methods, network_folds, programs
from lossattn_jax.mil import config as config_lib
from lossattn_jax.mil.bags import BagDataset
from lossattn_jax.mil.network_classifier import NetworkClassifier
from lossattn_jax.mil.splits import Split
from lossattn_jax.not_finite import DUMPS_NAME

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10


def run(
    dataset: BagDataset,
    splits: Sequence[Split],
    method: str,
    config: ConfigDict,
    rules: Sequence[str],
    folder: pathlib.Path,
) -> dict[str, list[dict[str, Any]]]:
    """Trains and tests a method on every fold that has no file yet.

    Args:
      dataset: the bags.
      splits: the folds.
      method: one of `methods.NAMES`.
      config: of the experiment, checked.
      rules: of `selection.RULES`.
      folder: gets a folder for each rule, with a file for each fold, and where a training ends in updates
        that are not finite the folder `not_finite.DUMPS_NAME`.

    Returns:
      For each rule the folds' records (`fold_results.read`), in the order of `splits`.

    Raises:
      UserError: a model has skipped too many updates in a row; see `training.train`.
    """
    missing = [
        split
        for split in splits
        if any(not fold_results.file_of(folder / rule, split).exists() for rule in rules)
    ]
    label = f"{dataset.name}, {methods.get(method).title}"
    if len(missing) < len(splits):
        log.info("%s: %d of %d folds are there", label, len(splits) - len(missing), len(splits))
    if missing:
        if methods.get(method).classical is None:
            _networks(dataset, missing, method, config, rules, folder, label)
        else:
            _classical(dataset, missing, method, config, rules, folder, label)
    return {
        rule: [fold_results.read(fold_results.file_of(folder / rule, split)) for split in splits]
        for rule in rules
    }


def classifier(method: str, config: ConfigDict) -> NetworkClassifier:
    """The network of a method as the config has it."""
    options = config.network
    return NetworkClassifier(
        method=method,
        backbone=options.backbone,
        hidden=tuple(options.hidden) or None,
        dropout=options.dropout,
        ensemble=options.ensemble,
        seed=config.seed,
        standardise=options.standardise,
        settings=config_lib.settings(config),
    )


def _networks(dataset, splits, method, config, rules, folder, label) -> None:
    model = classifier(method, config)
    results = network_folds.run(
        dataset,
        splits,
        model.network(dataset.num_classes),
        config_lib.settings(config),
        rules=rules,
        validation=config_lib.validation(config),
        ensemble=model.ensemble,
        standardise=model.standardise,
        seed=config.seed,
        label=label,
        dump_dir=folder / DUMPS_NAME,
    )
    for result in results:
        fold_results.write(result, dataset, method, folder / result.rule)
    programs.forget()


def _classical(dataset, splits, method, config, rules, folder, label) -> None:
    began = told = time.monotonic()
    for done, split in enumerate(splits, start=1):
        results = classical_folds.run(
            dataset,
            split,
            methods.make(method),
            rules=rules,
            validation=config_lib.validation(config),
            seed=config.seed,
        )
        for result in results:
            fold_results.write(result, dataset, method, folder / result.rule)
        now = time.monotonic()
        if now - told > _SECONDS_BETWEEN_LINES:
            told = now
            left = round((now - began) / done * (len(splits) - done))
            log.info(
                "%s: fold %d of %d, %.1f s each, %d:%02d left",
                label,
                done,
                len(splits),
                (now - began) / done,
                *divmod(left, 60),
            )

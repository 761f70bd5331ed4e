"""Cross-validation of one method on one data set, which resumes.

Each fold has a file of its own.
"""

import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from lossattn_jax.checkpoint import run_folder
from lossattn_jax.commands.progress import LogClock, Progress
from lossattn_jax.config import bags as config_lib
from lossattn_jax.config.options import BagOptions
from lossattn_jax.data.bags import provenance
from lossattn_jax.data.bags.sources import Experiment
from lossattn_jax.data.bags.streaming import StreamedBags
from lossattn_jax.files.records import Record
from lossattn_jax.mil import classical_folds, fold_models, fold_results, methods, network_folds
from lossattn_jax.mil.estimator import BagClassifier
from lossattn_jax.mil.fold_results import FoldResult
from lossattn_jax.mil.network_classifier import NetworkClassifier
from lossattn_jax.registry import is_reference
from lossattn_jax.train import dumps
from lossattn_jax.train.bags import programs

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10


def run(
    experiment: Experiment,
    method: str,
    options: BagOptions,
    rules: Sequence[str],
    folder: pathlib.Path,
    *,
    keep_models: bool = False,
) -> dict[str, list[Record]]:
    """Trains and tests a method on the folds without results.

    Args:
      experiment: bags and folds.
      method: one of `methods.NAMES`.
      options: of the experiment.
      rules: of `selection.RULES`.
      folder: gets a folder for each rule, where it is absent, with a file for each fold, and where a
        training ends in updates that are not finite the folder `train.dumps.FOLDER_NAME`.
      keep_models: whether the folder of a rule gets a folder for each fold, with its model.

    Returns:
      For each rule the folds' records, in the order of the splits.

    Raises:
      UserError: as of `refuse_other`, or the folder cannot be written, or a model has skipped too many
        updates in a row; see `training.train`.
    """
    dataset, splits = experiment.dataset, experiment.splits
    label = f"{dataset.name}, {methods.get(method).title}"
    inputs = _inputs(experiment, method, options, rules)
    earlier = {
        (rule, split.name): fold_results.find(folder / rule, split, inputs[rule, split.name])
        for rule in rules
        for split in splits
    }
    without_model = {
        (rule, split.name)
        for rule in rules
        for split in splits
        if keep_models and not fold_models.is_there(folder / rule, split)
    }
    missing = [
        s
        for s in splits
        if any(earlier[rule, s.name] is None or (rule, s.name) in without_model for rule in rules)
    ]
    models = fold_models.FoldModels(dataset, template(method, options)) if keep_models else None
    if len(missing) < len(splits):
        log.info("%s: %d of %d folds are there", label, len(splits) - len(missing), len(splits))

    def write(result: FoldResult) -> None:
        """Writes a fold's result where it has none.

        Of a fold that lacks one rule, the others' files stay as they are.
        """
        key = result.rule, result.split.name
        own = folder / result.rule
        if models is not None and (earlier[key] is None or key in without_model):
            models.save(result.model, result.split, result.settings, own)
        if earlier[key] is None:
            with run_folder.writing(own):
                earlier[key] = fold_results.write(
                    result,
                    dataset,
                    method,
                    own,
                    inputs[key],
                    benchmark=experiment.benchmark,
                    class_weight=options.train.class_weight,
                )

    if missing:
        # Not later: a folder that is moved away in the meantime must not come into being again.
        for rule in rules:
            with run_folder.writing(folder):
                (folder / rule).mkdir(parents=True, exist_ok=True)
        keywords: dict[str, Any] = {"rules": rules, "label": label, "write": write}
        if methods.get(method).network is not None:
            dump_dir = folder / dumps.FOLDER_NAME
            _networks(dataset, missing, method, options, dump_dir=dump_dir, **keywords)
        else:
            _classical(dataset, missing, method, options, **keywords)
    return {rule: [_there(earlier[rule, s.name]) for s in splits] for rule in rules}


def refuse_other(
    experiment: Experiment,
    method: str,
    options: BagOptions,
    rules: Sequence[str],
    folder: pathlib.Path,
    *,
    keep_models: bool = False,
) -> int:
    """Refuses to resume with folds made from other inputs; writes nothing.

    Args:
      experiment, method, options, rules, folder, keep_models: as for `run`.

    Returns:
      How many folds `run` has to make, of all rules.

    Raises:
      UserError: there is such a fold, or one that was written before there were digests.
    """
    inputs = _inputs(experiment, method, options, rules)
    usable = [
        fold_results.refuse_other(folder / rule, split, inputs[rule, split.name])
        and (not keep_models or fold_models.is_there(folder / rule, split))
        for split in experiment.splits
        for rule in rules
    ]
    return usable.count(False)


def _inputs(
    experiment: Experiment, method: str, options: BagOptions, rules: Sequence[str]
) -> dict[tuple[str, str], dict[str, Any]]:
    """Returns what each fold is made from, by rule and `Split.name`."""
    values = provenance.of_config(options)
    digest = methods.code_digest(method)
    code = {} if digest is None else {fold_results.CODE: digest}
    return {
        (rule, split.name): fold_results.of_inputs(bags, values, method, rule, split) | code
        for bags, split in zip(experiment.made_from, experiment.splits, strict=True)
        for rule in rules
    }


def _there(record: Record | None) -> Record:
    assert record is not None  # every fold was there or is written
    return record


def check_options(options: BagOptions) -> None:
    """Refuses options of methods that these have not.

    Those of a user's own code are looked at where it is used.

    Raises:
      UserError: there is no such method or option, or a value is not allowed.
    """
    for name in options.model.methods_with_options:
        if not is_reference(name):
            entry = methods.METHODS.find(name, "the method in config.model.method_options")
            entry.check_options(options.model.options_of(name), name)


def template(method: str, options: BagOptions) -> BagClassifier:
    """The method with the settings of the options, as models of folds have them."""
    entry = methods.get(method)
    if entry.network is not None:
        return classifier(method, options)
    weight = options.train.class_weight
    return entry.make() if weight is None else entry.make(class_weight=weight)


def classifier(method: str, options: BagOptions) -> NetworkClassifier:
    """Makes the network of a method with an experiment's options.

    Args:
      method: of a network, as `methods.get` takes it.
      options: of the experiment.
    """
    model = options.model
    return NetworkClassifier(
        method=methods.get(method).trained_network,
        backbone=model.backbone,
        hidden=tuple(model.hidden) or None,
        dropout=model.dropout,
        ensemble=model.ensemble,
        seed=options.seed,
        standardise=model.standardise,
        settings=config_lib.settings(options),
        max_instances=options.train.max_instances,
        options=model.options_of(method) or None,
        class_weight=options.train.class_weight,
    )


def _networks(dataset, splits, method, options, *, rules, dump_dir, label, write) -> None:
    model = classifier(method, options)
    results = network_folds.run(
        dataset,
        splits,
        model.network(dataset.num_classes),
        config_lib.settings(options),
        rules=rules,
        validation=config_lib.validation(options.validation),
        ensemble=model.ensemble,
        standardise=model.standardise,
        seed=options.seed,
        own_order=options.train.own_order,
        class_weight=options.train.class_weight,
        label=label,
        dump_dir=dump_dir,
    )
    for result in results:
        write(result)
    programs.forget()


def _classical(dataset, splits, method, options, *, rules, label, write) -> None:
    if isinstance(dataset, StreamedBags):  # these methods look at all instances at once
        dataset = dataset.load()
    progress, clock = Progress(0, len(splits)), LogClock(_SECONDS_BETWEEN_LINES)
    for count, split in enumerate(splits, start=1):
        results = classical_folds.run(
            dataset,
            split,
            template(method, options),
            rules=rules,
            validation=config_lib.validation(options.validation),
            seed=options.seed,
        )
        for result in results:
            write(result)
        if clock.is_due():
            rate = progress.measure(count)
            log.info(
                "%s: fold %d of %d, %.1f s each, %s left",
                label,
                count,
                len(splits),
                1 / rate,
                progress.time_left(count),
            )

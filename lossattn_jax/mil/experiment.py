"""What `python -m lossattn_jax.mil` does: methods on data sets, files and a table."""

import functools
import itertools
import logging
import os
import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from lossattn_jax import devices, files, run_folder
from lossattn_jax.errors import UserError
from lossattn_jax.mil import config as config_lib
from lossattn_jax.mil import (
    cross_validation,
    data_record,
    data_warnings,
    experiment_names,
    methods,
    report,
    selection,
    sources,
)
from lossattn_jax.mil.bags import BagDataset, bucket_lengths, padding_waste
from lossattn_jax.mil.columns import Choice
from lossattn_jax.mil.sources import Experiment

log = logging.getLogger(__name__)

CONFIG_NAME, TABLE_NAME = "config.json", "table.md"
WEIGHTS_NAME = "instance_weights.csv"
ALL = "all"


def run(
    datasets: Sequence[str],
    names: Sequence[str],
    rules: Sequence[str],
    config: ConfigDict,
    workdir: str,
    data_dir: str,
    download: bool = False,
    *,
    positive: Sequence[str] = (),
    choice: Choice | None = None,
) -> list[report.Summary]:
    """Runs methods on data sets, and reuses results of the same inputs.

    Writes for each data set, method and rule a folder with a JSON file for each fold, `summary.json`
    and `instance_weights.csv`, and in the workdir `config.json` and `table.md` with everything that was
    asked for. Data sets of one name are told apart, see `experiment_names.read`.

    Args:
      datasets: as `sources.experiments` takes them.
      names: of `methods.NAMES`, or "all".
      rules: of `selection.RULES`, or "all".
      config: of the experiments.
      workdir: folder for the files.
      data_dir: as `sources.experiments` takes it.
      download: likewise.
      positive: likewise, for each data set.
      choice: likewise, for each data set.

    Returns:
      A summary for each data set, method and rule. Some may lack numbers, see `report.refuse_nonfinite`.

    Raises:
      UserError: a name is unknown, a value impossible, the data cannot be read, a method takes one class for
        the positive one and which that is is not known, or the workdir has results of another config or of
        other data. Nothing was computed or written over then.
    """
    config_lib.check(config)
    for key, given in (("dataset", datasets), ("method", names), ("select", rules)):
        if not any(given):
            raise UserError(f"--{key} is empty, but must name at least one")
    names = methods.NAMES if ALL in names else tuple(names)
    rules = tuple(selection.RULES) if ALL in rules else tuple(rules)
    for name in names:
        methods.get(name)
    selection.check_rules(rules)
    folder = pathlib.Path(workdir)
    _refuse_other(config, folder)
    log.info("devices: %s", devices.describe())
    load = functools.partial(
        sources.experiments,
        data_dir=data_dir,
        config=config,
        download=download,
        positive=positive,
        choice=choice,
    )
    check = functools.partial(_check, names=names, rules=rules, config=config, folder=folder)
    summaries = []
    for experiment in experiment_names.read(datasets, load, config, folder, check):
        # Not before there are bags: a misspelled name leaves no workdir behind.
        _store_config(config, folder)
        _describe(experiment, config)
        data_warnings.warn(experiment.dataset)
        for name in names:
            summaries += _method(experiment, name, rules, config, folder)
            with run_folder.writing(folder):
                files.write(folder / TABLE_NAME, report.table(summaries).encode())
    log.info("files: %s", folder)
    return summaries


def _check(
    experiments: Sequence[Experiment],
    names: Sequence[str],
    rules: Sequence[str],
    config: ConfigDict,
    folder: pathlib.Path,
) -> None:
    """Raises the `UserError`s of experiments that can be known before they are run."""
    check_positive([experiment.dataset for experiment in experiments], names)
    for experiment, name in itertools.product(experiments, names):
        dataset = experiment.dataset
        if methods.get(name).classical is not None and dataset.instances.ndim != 2:
            raise UserError(
                f"the method {name} takes vectors, but the instances of {dataset.name} are images"
            )
        cross_validation.refuse_other(experiment, name, config, rules, folder / dataset.name / name)
    for experiment in experiments:
        data_record.refuse_other(experiment, folder / experiment.dataset.name)


def check_positive(datasets: Sequence[BagDataset], names: Sequence[str]) -> None:
    """Refuses methods that need a positive class where none is known.

    Args:
      datasets: of an experiment.
      names: of `methods.NAMES`.

    Raises:
      UserError: one sentence for all data sets and methods.
    """
    unequal = [name for name in names if methods.make(name).unequal_classes]
    unknown = [
        f"{dataset.name} ({' or '.join(sorted(repr(str(label)) for label in dataset.classes))})"
        for dataset in datasets
        if dataset.num_classes == 2 and dataset.positive is None
    ]
    if unequal and unknown:
        raise UserError(
            f"which class is positive is not known of {', '.join(unknown)}, but {', '.join(unequal)} "
            f"{'treat' if len(unequal) > 1 else 'treats'} the positive class unlike the other; name it with "
            "--positive=WORD[,WORD...], one word for each data set, or leave "
            f"{'these methods' if len(unequal) > 1 else 'this method'} out"
        )


def _method(
    experiment: Experiment,
    name: str,
    rules: Sequence[str],
    config: ConfigDict,
    folder: pathlib.Path,
) -> list[report.Summary]:
    dataset = experiment.dataset
    own = folder / dataset.name / name
    results = cross_validation.run(experiment, name, config, rules, own)
    with run_folder.writing(folder):
        data_record.write(experiment, folder / dataset.name)
    summaries = []
    for rule in rules:
        folds = [record.content for record in results[rule]]
        summary = report.summarise(folds)
        made_from: dict[str, str | None] = {"bags": experiment.digest}
        for split, record in zip(experiment.splits, results[rule], strict=True):
            made_from[split.name] = record.digest
        with run_folder.writing(own / rule):
            report.write_summary(summary, own / rule / report.SUMMARY_NAME, made_from)
            report.write_weights(folds, own / rule / WEIGHTS_NAME)
        log.info(
            "%s, %s: accuracy %s +- %s over %d folds (%s)",
            dataset.name,
            methods.get(name).title,
            report.as_text(summary.accuracy),
            report.as_text(summary.over_folds),
            summary.folds,
            selection.RULES[rule],
        )
        summaries.append(summary)
    return summaries


def _refuse_other(config: ConfigDict, folder: pathlib.Path) -> None:
    """Compares the config with the one that is there; `repeats` may change."""
    path = folder / CONFIG_NAME
    if os.path.exists(path):  # pathlib's raises where a name is too long
        stored = config_lib.read(path)
        before = dict(config_lib.leaves(stored))
        for key, value in config_lib.leaves(config):
            if before.get(key) != value and key != "repeats":
                raise UserError(
                    f"config.{key} is {value!r}, but the run in {folder} has {before.get(key)!r}; use "
                    "another workdir"
                )


def _store_config(config: ConfigDict, folder: pathlib.Path) -> None:
    run_folder.make_workdir(folder)
    with run_folder.writing(folder):
        config_lib.write(config, folder / CONFIG_NAME)


def _describe(experiment: Experiment, config: ConfigDict) -> None:
    dataset = experiment.dataset
    tops = bucket_lengths(dataset.lengths, config.training.max_waste)
    log.info(
        "%s: %d bags of %d to %d instances, %d in all, %d classes%s; padded to %s (%.2f slots an instance); "
        "%d trainings",
        dataset.name,
        len(dataset),
        dataset.lengths.min(),
        dataset.lengths.max(),
        len(dataset.instances),
        dataset.num_classes,
        _positive_text(dataset),
        ", ".join(map(str, tops)) if len(tops) < 9 else f"{len(tops)} lengths",
        padding_waste(dataset.lengths, tops),
        len(experiment.splits),
    )


def _positive_text(dataset: BagDataset) -> str:
    if dataset.num_classes != 2:
        return ""
    if dataset.positive is None:
        return (
            f" ({dataset.classes[0]} and {dataset.classes[1]}; which is positive is not known, instances are "
            f"scored for {dataset.classes[1]})"
        )
    return f" (positive: {dataset.positive})"

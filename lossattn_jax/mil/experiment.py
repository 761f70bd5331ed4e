"""Experiments with bags: methods on data sets, files and a table.

They are what `python -m lossattn_jax.mil` runs.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lossattn_jax import devices, files
from lossattn_jax.config import bags as config_lib
from lossattn_jax.config.options import BagOptions, BagTrainOptions
from lossattn_jax.data.bags import data_warnings, sources
from lossattn_jax.data.bags.bag_stream import step_lengths
from lossattn_jax.data.bags.bag_table import TableColumns
from lossattn_jax.data.bags.bags import BagDataset, bucket_lengths, padding_waste
from lossattn_jax.data.bags.columns import Choice
from lossattn_jax.data.bags.sources import Experiment
from lossattn_jax.data.bags.streaming import PlacedBags
from lossattn_jax.errors import UserError
from lossattn_jax.mil import (
    bootstrap,
    config_record,
    cross_validation,
    data_record,
    experiment_names,
    fold_results,
    method_memory,
    methods,
    metric_files,
    report,
    selection,
    stored_models,
)
from lossattn_jax.mil.workdir import TABLE_NAME, Workdir

log = logging.getLogger(__name__)

WEIGHTS_NAME = "instance_weights.csv"


def run(
    datasets: Sequence[str],
    names: Sequence[str],
    rules: Sequence[str],
    config: ConfigDict,
    workdir: str,
    data_dir: str,
    *,
    download: bool = False,
    positive: Sequence[str] = (),
    choice: Choice | None = None,
    labels: Any = None,
    columns: TableColumns | None = None,
    folds: int | str | None = None,
    memory_gib: float | None = None,
    instances_per_device: int | None = None,
    file_format: str | None = None,
    keep_models: bool = False,
    resamples: int = bootstrap.RESAMPLES,
) -> list[report.Summary]:
    """Runs methods on data sets, and reuses results of the same inputs.

    Writes for each data set, method and rule a folder with a JSON file for each fold, `summary.json`,
    `instance_weights.csv` and the files of `metric_files`, and in the workdir `config.json` and `table.md`
    with everything that was asked for. Data sets of one name are told apart, see `experiment_names.read`. A
    finished workdir that cannot be written, such as one on a read-only mount, is only read.

    Args:
      datasets: as `sources.experiments` takes them.
      names: as `methods.get` takes them, or "all" for those of the package, or "paper" for those of
        the AAAI 2020 paper's table.
      rules: of `selection.RULES`, or "all".
      config: of the experiments.
      workdir: folder for the files.
      data_dir: as `sources.experiments` takes it.
      download: likewise.
      positive: likewise, for each data set.
      choice, labels, columns, folds, memory_gib, instances_per_device, file_format: likewise, for each data
        set; see `sources.Request`.
      keep_models: whether the model of each fold stays, in a folder beside the fold's file.
      resamples: of the bootstrap, for intervals of metrics; 0: none.

    Returns:
      A summary for each data set, method and rule. Some may lack numbers, see `report.refuse_nonfinite`.

    Raises:
      UserError: a name is unknown, a value impossible, the data cannot be read, a method takes one class for
        the positive one and which that is is not known, a method needs more memory than there is, or the
        workdir has results of another config or of other data, is being written by another command, or cannot
        be written and lacks results. Nothing was computed or written over then. Or the workdir cannot be
        written any more, or was moved away.
    """
    options = config_lib.resolve(config)
    for key, values in (("dataset", datasets), ("method", names), ("select", rules)):
        if not any(values):
            raise UserError(f"--{key} is empty, but must name at least one")
    names = methods.expand_names(names)
    rules = tuple(selection.RULES) if methods.ALL in rules else tuple(rules)
    for name in names:
        methods.get(name)
    cross_validation.check_options(options)
    selection.check_rules(rules)
    selection.refuse_patience(rules, options.validation.patience)
    methods.refuse_weights(names, options.train.class_weight)
    methods.refuse_drawn_instances(names, options.train.max_instances)
    bootstrap.check_resamples(resamples)
    load = functools.partial(
        sources.experiments,
        data_dir=data_dir,
        options=options,
        download=download,
        positive=positive,
        choice=choice,
        labels=labels,
        columns=columns,
        folds=folds,
        memory_gib=memory_gib,
        instances_per_device=instances_per_device,
        file_format=file_format,
    )
    summaries: list[report.Summary] = []
    with Workdir(workdir) as folder:
        config_record.refuse_other(options, folder.path)
        log.info("devices: %s", devices.describe())
        check = functools.partial(
            _check,
            names=names,
            rules=rules,
            options=options,
            folder=folder,
            keep_models=keep_models,
        )
        for experiment in experiment_names.read(
            datasets, load, options.bags, folder.folder_of, check
        ):
            if not summaries:
                # Written once there are bags, so that a misspelled name leaves no workdir behind.
                config_record.write(options, folder)
            _describe(experiment, options.train)
            if isinstance(experiment.dataset, BagDataset):
                data_warnings.warn(experiment.dataset)
            for name in names:
                summaries += _method(
                    experiment,
                    name,
                    rules,
                    options,
                    folder,
                    keep_models=keep_models,
                    resamples=resamples,
                )
                if folder.writable:
                    with folder.writing():
                        files.write(folder.path / TABLE_NAME, report.table(summaries).encode())
        folder.refuse_moved()
        if folder.writable:
            log.info("files: %s", folder.path)
        else:
            log.warning(
                "warning: the workdir %s cannot be written: its results were read, and nothing was written",
                folder.path,
            )
    return summaries


def _check(
    experiments: Sequence[Experiment],
    names: Sequence[str],
    rules: Sequence[str],
    options: BagOptions,
    folder: Workdir,
    *,
    keep_models: bool,
) -> None:
    """Refuses experiments that cannot be run, before any runs."""
    for experiment in experiments:
        if experiment.dataset.several_labels:
            own = experiment.dataset.name
            methods.refuse_several_labels(names, own, options.train.class_weight)
    check_positive([experiment.dataset for experiment in experiments], names)
    for experiment, name in itertools.product(experiments, names):
        dataset = experiment.dataset
        if not methods.get(name).takes_images and len(dataset.shape) != 1:
            raise UserError(
                f"the method {name} takes vectors, but the instances of {dataset.name} are images"
            )
        own_folder = folder.folder_of(dataset.name) / files.safe_name(name)
        folder.refuse_links(*(own_folder / rule for rule in rules))
        if keep_models:
            stored_models.refuse_unsaveable(cross_validation.template(name, options))
        missing = cross_validation.refuse_other(
            experiment, name, options, rules, own_folder, keep_models=keep_models
        )
        if missing and not folder.writable:
            raise UserError(
                f"the workdir {folder.path} cannot be written, and {missing} of "
                f"{len(experiment.splits) * len(rules)} folds of {name} on {dataset.name} are not there; "
                "copy it to where it can be written, or use another workdir"
            )
        if missing:
            method_memory.refuse_too_large(experiment, name)
    for experiment in experiments:
        data_record.refuse_other(experiment, folder.folder_of(experiment.dataset.name))


def check_positive(datasets: Sequence[PlacedBags], names: Sequence[str]) -> None:
    """Refuses methods that need a positive class where none is known.

    Args:
      datasets: of an experiment.
      names: of `methods.NAMES`.

    Raises:
      UserError: one sentence for all data sets and methods.
    """
    unequal = [name for name in names if methods.get(name).unequal_classes]
    unknown = [
        f"{dataset.name} ({' or '.join(sorted(repr(str(label)) for label in dataset.classes))})"
        for dataset in datasets
        if dataset.num_classes == 2 and dataset.positive is None and not dataset.several_labels
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
    options: BagOptions,
    folder: Workdir,
    *,
    keep_models: bool,
    resamples: int,
) -> list[report.Summary]:
    dataset = experiment.dataset
    parent = folder.folder_of(dataset.name)
    own = parent / files.safe_name(name)
    if folder.writable:
        for rule in rules:
            folder.make_folder(own / rule)
    results = cross_validation.run(experiment, name, options, rules, own, keep_models=keep_models)
    if folder.writable:
        with folder.writing():
            data_record.write(experiment, parent)
            _refuse_lost(experiment, rules, own)
    summaries = []
    for rule in rules:
        folds = [record.content for record in results[rule]]
        summary = report.summarise(folds)
        made_from: dict[str, str | None] = {"bags": experiment.digest}
        for split, record in zip(experiment.splits, results[rule], strict=True):
            made_from[split.name] = record.digest
        if folder.writable:
            with folder.writing():
                report.write_summary(summary, own / rule / report.SUMMARY_NAME, made_from)
                report.write_weights(folds, own / rule / WEIGHTS_NAME)
        log.info(
            "%s, %s: accuracy %s +- %s over %d folds (%s)",
            dataset.name,
            summary.title,
            report.as_text(summary.accuracy),
            report.as_text(summary.over_folds),
            summary.folds,
            selection.RULES[rule],
        )
        with folder.writing() if folder.writable else contextlib.nullcontext():
            metrics = metric_files.measure(
                experiment,
                folds,
                made_from,
                own / rule,
                title=f"{dataset.name}, {summary.title}, rule {rule}",
                resamples=resamples,
                seed=options.seed,
                writable=folder.writable,
            )
        summaries.append(dataclasses.replace(summary, out_of_fold=metrics))
    return summaries


def _refuse_lost(experiment: Experiment, rules: Sequence[str], own: pathlib.Path) -> None:
    """Refuses to report results where a fold's file is gone."""
    paths = [
        fold_results.file_of(own / rule, split) for rule in rules for split in experiment.splits
    ]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} folds that this command wrote are not there any more, the first "
            f"{missing[0]}; run the command again, which makes them again"
        )


def _describe(experiment: Experiment, options: BagTrainOptions) -> None:
    dataset = experiment.dataset
    lengths = dataset.lengths
    if isinstance(dataset, BagDataset):
        tops = bucket_lengths(lengths, options.max_waste)
    else:
        lengths = np.minimum(lengths, dataset.max_instances or lengths.max())
        tops = step_lengths(lengths, options.max_waste)
        log.info("%s: bags are read one by one, for they are large", dataset.name)
    log.info(
        "%s: %d bags of %d to %d instances, %d in all, %d classes%s%s; padded to %s (%.2f slots an "
        "instance); %d trainings",
        dataset.name,
        len(dataset),
        dataset.lengths.min(),
        dataset.lengths.max(),
        dataset.lengths.sum(),
        dataset.num_classes,
        _positive_text(dataset),
        "" if dataset.groups is None else f", {len(set(dataset.groups))} groups",
        ", ".join(map(str, tops)) if len(tops) < 9 else f"{len(tops)} lengths",
        padding_waste(lengths, tops),
        len(experiment.splits),
    )


def _positive_text(dataset: PlacedBags) -> str:
    if dataset.several_labels:
        return ", of which a bag may have several"
    if dataset.num_classes != 2:
        return ""
    if dataset.positive is None:
        return (
            f" ({dataset.classes[0]} and {dataset.classes[1]}; which is positive is not known, instances are "
            f"scored for {dataset.classes[1]})"
        )
    return f" (positive: {dataset.positive})"

"""What `python -m lossattn_jax.mil` does: methods on data sets, files and a table."""

import logging
import os
import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from lossattn_jax import devices, run_folder
from lossattn_jax.errors import UserError
from lossattn_jax.mil import config as config_lib
from lossattn_jax.mil import cross_validation, data_warnings, methods, report, selection, sources
from lossattn_jax.mil.bags import BagDataset, bucket_lengths, padding_waste
from lossattn_jax.mil.columns import Choice
from lossattn_jax.mil.sources import Experiment

log = logging.getLogger(__name__)

CONFIG_NAME, TABLE_NAME = "config.json", "table.md"
SUMMARY_NAME, WEIGHTS_NAME = "summary.json", "instance_weights.csv"
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
    """Runs methods on data sets; what a run before has done in the workdir is kept.

    Writes for each data set, method and rule a folder with a JSON file for each fold, `summary.json`
    and `instance_weights.csv`, and in the workdir `config.json` and `table.md` with everything that was
    asked for.

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
      A summary for each data set, method and rule.

    Raises:
      UserError: a name is unknown, a value impossible, the data cannot be read, a method takes one class for
        the positive one and which that is is not known, or the workdir is that of another config.
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
    # All files before the first fold; generated bags, whose positive class is known, when their turn comes.
    experiments = [
        sources.experiments(dataset, data_dir, config, download, positive=positive, choice=choice)
        for dataset in datasets
    ]
    files = [own for own in experiments if isinstance(own, Sequence)]
    check_positive([one.dataset for own in files for one in own], names)
    summaries = []
    for own in experiments:
        for experiment in own:
            # Not before there are bags: a misspelled name leaves no workdir behind.
            _store_config(config, folder)
            _describe(experiment, config)
            data_warnings.warn(experiment.dataset)
            for name in names:
                summaries += _method(experiment, name, rules, config, folder)
                (folder / TABLE_NAME).write_text(report.table(summaries))
    log.info("files: %s", folder)
    return summaries


def check_positive(datasets: Sequence[BagDataset], names: Sequence[str]) -> None:
    """Refuses methods that need to know which class is positive on data sets where that is not known.

    Args:
      datasets: of an experiment.
      names: of `methods.NAMES`.

    Raises:
      UserError: one sentence for all data sets and methods.
    """
    unequal = [name for name in names if methods.get(name).unequal]
    unknown = [
        f"{dataset.name} ({' or '.join(repr(str(label)) for label in dataset.classes)})"
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
    if methods.get(name).classical is not None and dataset.instances.ndim != 2:
        raise UserError(
            f"the method {name} takes vectors, but the instances of {dataset.name} are images"
        )
    own = folder / dataset.name / name
    records = cross_validation.run(dataset, experiment.splits, name, config, rules, own)
    summaries = []
    for rule in rules:
        summary = report.summarise(records[rule])
        report.write_summary(summary, own / rule / SUMMARY_NAME)
        report.write_weights(records[rule], own / rule / WEIGHTS_NAME)
        log.info(
            "%s, %s: accuracy %.3f +- %.3f over %d folds (%s)",
            dataset.name,
            methods.get(name).title,
            summary.accuracy,
            summary.over_folds,
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
    try:
        config_lib.write(config, folder / CONFIG_NAME)
    except OSError as error:
        raise UserError(f"the workdir {folder} cannot be written: {error.strerror}") from None


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

"""Sweeps of lambda in loss attention, on generated bags.

They make Figures 2 and 3 of the AAAI 2020 paper.

Every lambda is trained on the same draws of bags from the same seeds, all in one program. Nothing of an
earlier sweep is gone on with; one of other bags or another config is not written over.
"""

import functools
import logging
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lossattn_jax import devices
from lossattn_jax.attention import poolings
from lossattn_jax.config import bags as config_lib
from lossattn_jax.config.options import BagOptions
from lossattn_jax.data.bags import provenance, sources
from lossattn_jax.data.bags.sources import Experiment
from lossattn_jax.data.order import derive_seed
from lossattn_jax.errors import Incomplete, UserError
from lossattn_jax.evaluate import nonfinite_values
from lossattn_jax.files import digests, records
from lossattn_jax.mil import (
    cross_validation,
    data_record,
    experiment_names,
    instance_figures,
    instance_metrics,
)
from lossattn_jax.mil.workdir import Workdir
from lossattn_jax.train import dumps
from lossattn_jax.train.bags import training
from lossattn_jax.train.bags.plans import weigh_classes

log = logging.getLogger(__name__)

METHOD = poolings.DEFAULT
LAMBDAS = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
METRICS_NAME = "lambdas.json"
_FIGURE_THRESHOLD = 0.5
_DRAW = "bags of draw "
# Of each lambda; see `instance_metrics.attention_metrics` and `bag_metrics`.
_METRICS = (
    *("raw", "scaled", "bag_auc", "bag_auc_bags", "pointing", "pointing_bags"),
    *(
        "average_precision",
        "average_precision_scaled",
        "bags",
        "instances",
        "true_instances",
        "bag",
    ),
)


def run(
    config: ConfigDict,
    workdir: str,
    data_dir: str,
    dataset: str = "mnist_bags",
    lambdas: Sequence[float] = LAMBDAS,
) -> dict[str, Any]:
    """Trains loss attention with each lambda, measures it, and draws figures.

    Writes for each number of training bags a folder with `lambdas.json` (mean and standard deviation over the
    draws), `thresholds.png` and `thresholds_scaled.png` (precision, recall and F-score against the
    threshold, of weights as they are and relative to the bag's highest), `lambdas.png` and `bag.png`.
    A lambda one of whose draws has outputs that are not finite has null for each metric, `nonfinite` bags,
    and no place in the figures.

    Args:
      config: of the experiment; `repeats` are draws of bags.
      workdir: folder for the files.
      data_dir: as `sources.experiments` takes it.
      dataset: of generated bags, as `sources.find` takes it.
      lambdas: values to try, each at least 0.

    Returns:
      For each experiment the content of its `lambdas.json`, a record of `lossattn_jax.files.records`.

    Raises:
      UserError: a name is unknown, a value impossible, the data cannot be read, or the workdir has results
        of other bags or a sweep of another config, cannot be written, or is being written by another command.
        Nothing was written over then.
    """
    options = config_lib.resolve(config)
    if not sources.find(dataset).is_generated:
        allowed_names = (name for name, source in sources.SOURCES.items() if source.is_generated)
        raise UserError(
            f"dataset is {dataset!r}, but must be one of {', '.join(allowed_names)}, whose instances have "
            "labels"
        )
    if not lambdas or not all(0 <= value < math.inf for value in lambdas):
        raise UserError(
            f"lambdas are {list(lambdas)}, but must be at least one, finite and none negative"
        )
    load = functools.partial(sources.experiments, data_dir=data_dir, options=options)

    def check(experiments: Sequence[Experiment]) -> None:
        for experiment in experiments:
            folder = root.folder_of(experiment.dataset.name)
            root.refuse_links(folder / dumps.FOLDER_NAME)
            _refuse_other(folder / METRICS_NAME, _inputs(experiment, options, lambdas))
            data_record.refuse_other(experiment, folder)

    sweeps = {}
    with Workdir(workdir) as root:
        if not root.writable:
            raise UserError(
                f"the workdir {workdir} cannot be written, and a sweep is always made anew; use "
                "another workdir"
            )
        log.info("devices: %s", devices.describe())
        for experiment in experiment_names.read(
            [dataset], load, options.bags, root.folder_of, check
        ):
            name = experiment.dataset.name
            root.make()
            folder = root.make_folder(root.folder_of(name))
            sweeps[name] = _measure(experiment, options, lambdas, folder)
            with root.writing():
                data_record.write(experiment, folder)
                made_from = _inputs(experiment, options, lambdas)
                records.write(folder / METRICS_NAME, sweeps[name], made_from, indent=1)
            log.info("files: %s", folder)
        root.refuse_moved()
    return sweeps


def refuse_nonfinite(sweeps: Mapping[str, Mapping[str, Any]]) -> None:
    """Ends a command whose sweep has non-finite outputs.

    Args:
      sweeps: as `run` returns them.

    Raises:
      Incomplete: there are such; the text names them.
    """
    wrong = [
        f"{name}: lambda {nonfinite_values.list_first(values)}"
        for name, sweep in sweeps.items()
        if (values := [key for key, metrics in sweep["lambdas"].items() if metrics["nonfinite"]])
    ]
    if wrong:
        raise Incomplete(
            f"outputs are not finite, and the metrics that depend on them are null: {'; '.join(wrong)}"
        )


def parse_lambdas(texts: Sequence[str]) -> tuple[float, ...]:
    """Parses lambdas of a flag; refuses what is no number."""
    values = []
    for text in texts:
        try:
            values.append(float(text))
        except ValueError:
            raise UserError(f"--lambdas has {text!r}, but must have numbers") from None
    return tuple(values)


def _measure(
    experiment: Experiment, options: BagOptions, lambdas: Sequence[float], folder: pathlib.Path
) -> dict[str, Any]:
    dataset, splits = experiment.resident, experiment.splits
    truth = dataset.instance_labels
    assert truth is not None  # generated bags have them
    settings = config_lib.settings(options)
    network = cross_validation.classifier(METHOD, options).network(dataset.num_classes)
    plans = [
        training.Plan(
            seed=derive_seed(options.seed, split.repeat, split.fold, 0),
            train=split.train,
            held_out=split.test,
            overrides={"patch_weight": value},
            name=f"lambda {value:g}, {split.name}",
        )
        for value in lambdas
        for split in splits
    ]
    models = training.train(
        dataset,
        network,
        settings,
        weigh_classes(plans, dataset.labels, dataset.num_classes, options.train.class_weight),
        standardise=options.model.standardise,
        order_seed=options.seed,
        every_epoch=False,
        label=f"{dataset.name}, {len(lambdas)} values of lambda",
        dump_dir=folder / dumps.FOLDER_NAME,
    )
    predictions = training.predict(
        dataset,
        network,
        settings,
        models.last,
        models.mean,
        models.scale,
        predict_mask=np.stack([plan.held_out for plan in plans]),
    )
    draws = len(splits)
    summaries, nonfinite = {}, {}
    for place, value in enumerate(lambdas):
        own = slice(place * draws, (place + 1) * draws)
        test_mask = np.stack([plan.held_out for plan in plans[own]])
        nonfinite[value] = _count_nonfinite(
            dataset.lengths, predictions.attention[own], predictions.logits[own], test_mask
        )
        if nonfinite[value]:
            continue
        summaries[value] = instance_metrics.mean_and_spread(
            [
                {
                    **instance_metrics.attention_metrics(
                        attention, dataset.lengths, truth, dataset.labels
                    ),
                    "bag": instance_metrics.bag_metrics(logits, dataset.labels),
                }
                for attention, logits in zip(
                    predictions.attention[own], predictions.logits[own], strict=True
                )
            ]
        )
    if summaries:
        weights = predictions.attention[draws * list(lambdas).index(min(summaries))]
        _draw(experiment, summaries, weights, folder)
    return {
        "dataset": dataset.name,
        "positive": dataset.positive,
        "draws": draws,
        "thresholds": list(instance_metrics.THRESHOLDS),
        "seconds": models.seconds,
        # Some have no precision where nothing is found: that is no output which is not finite.
        "nonfinite": sum(nonfinite.values()),
        "lambdas": {
            _key(value): {
                **instance_metrics.json_ready(summaries.get(value, dict.fromkeys(_METRICS))),
                "nonfinite": nonfinite[value],
            }
            for value in lambdas
        },
    }


def _key(value: float) -> str:
    """Formats a lambda with all its digits, and no needless ones."""
    return repr(float(value)).removesuffix(".0")


def _count_nonfinite(
    lengths: np.ndarray, attention: np.ndarray, logits: np.ndarray, test_mask: np.ndarray
) -> int:
    """Counts tested bags of all draws with a non-finite output."""
    starts = np.cumsum(lengths) - lengths
    of_bags = np.logical_and.reduceat(np.isfinite(attention), starts, axis=1)
    return int((test_mask & ~(of_bags & np.isfinite(logits).all(axis=-1))).sum())


def _inputs(
    experiment: Experiment, options: BagOptions, lambdas: Sequence[float]
) -> dict[str, Any]:
    draws = enumerate(experiment.made_from)
    return {
        **{f"{_DRAW}{number}": digests.of_json(bags) for number, bags in draws},
        **provenance.of_config(options),
        "lambdas": [float(value) for value in lambdas],
    }


def _refuse_other(path: pathlib.Path, made_from: Mapping[str, Any]) -> None:
    """Refuses to write over a sweep of other bags or another config."""
    try:
        before = provenance.rename_keys(records.read(path).made_from)
    except FileNotFoundError:
        return
    except records.DamagedRecord as error:
        log.warning("%s; it is made again", error)
        return
    ours = {key: value for key, value in made_from.items() if key != "lambdas"}
    if before is not None:
        draws = {key for key in before.keys() ^ ours.keys() if key.startswith(_DRAW)}
        before = {key: value for key, value in before.items() if key not in (*draws, "lambdas")}
        ours = {key: value for key, value in ours.items() if key not in draws}
    records.refuse_other(path, before, ours)


def _draw(
    experiment: Experiment,
    summaries: Mapping[float, Mapping[str, Any]],
    attention: np.ndarray,
    folder: pathlib.Path,
) -> None:
    for kind, name in (("raw", "thresholds"), ("scaled", "thresholds_scaled")):
        figure = instance_figures.threshold_figure(
            {value: summary[kind] for value, summary in summaries.items()},
            xlabel="threshold of the weight"
            if kind == "raw"
            else "threshold of the weight relative to the bag's highest",
        )
        instance_figures.save(figure, folder / f"{name}.png")
    series = {
        f"F-score at {_FIGURE_THRESHOLD} of the highest": {
            value: instance_figures.at_threshold(summary["scaled"]["f_score"], _FIGURE_THRESHOLD)
            for value, summary in summaries.items()
        },
        "pointing": {value: summary["pointing"] for value, summary in summaries.items()},
        "bag accuracy": {value: summary["bag"]["accuracy"] for value, summary in summaries.items()},
        "bag AUC": {value: summary["bag"]["auc"] for value, summary in summaries.items()},
    }
    instance_figures.save(instance_figures.lambda_figure(series), folder / "lambdas.png")
    dataset, test = experiment.resident, experiment.splits[0].test
    row = int(np.flatnonzero(test & (dataset.labels > 0))[0])
    within = slice(int(dataset.offsets[row]), int(dataset.offsets[row + 1]))
    labels = None if dataset.instance_labels is None else dataset.instance_labels[within]
    figure = instance_figures.bag_figure(
        dataset.bag(row),
        attention[within],
        labels,
        title=f"bag {dataset.ids[row]}, λ = {min(summaries):g}",
    )
    instance_figures.save(figure, folder / "bag.png")

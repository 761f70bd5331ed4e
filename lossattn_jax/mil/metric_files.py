"""The files of out-of-fold predictions beside a method's summary.

metrics.json        metrics with intervals, a record of `lossattn_jax.files.records`
predictions.csv     a line for each tested bag
curves.png          curves of the predictions, whose digest is in metrics.json
"""

import hashlib
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lossattn_jax import files
from lossattn_jax.data.bags import label_sets
from lossattn_jax.data.bags.sources import Experiment
from lossattn_jax.files import digests, records
from lossattn_jax.mil import curves, out_of_fold, prediction_files
from lossattn_jax.mil.bag_metrics import BAG_METRICS
from lossattn_jax.mil.out_of_fold import Folds
from lossattn_jax.mil.prediction_files import BagRow

log = logging.getLogger(__name__)

METRICS_NAME, CURVES_NAME = "metrics.json", "curves.png"

_CURVES = "curves_sha256"
# To be raised where a metric or the bootstrap gives other numbers: files of before are made again then.
_DEFINITIONS = 1


def measure(
    experiment: Experiment,
    folds: Folds,
    made_from: Mapping[str, Any],
    folder: pathlib.Path,
    *,
    title: str,
    resamples: int,
    seed: int,
    writable: bool,
) -> dict[str, Any]:
    """Computes metrics of folds and writes the files, or reads the metrics of before.

    What follows from the folds alone is never refused: metrics of other folds, of another bootstrap, or of
    metrics of an earlier release are made again, and damaged files with a warning. It takes no training.

    Args:
      experiment: bags and splits.
      folds: contents of their records under one rule, in the order of the splits.
      made_from: digests of the bags and of the folds' files.
      folder: of the files, which exists where it is `writable`.
      title: of the figure.
      resamples: of the bootstrap; 0: no intervals.
      seed: of the bootstrap.
      writable: whether files are to be written.

    Returns:
      What `out_of_fold.measure` gives, as JSON.

    Raises:
      OSError: a file cannot be written.
    """
    inputs = {
        **made_from,
        "definitions": _DEFINITIONS,
        "metrics": list(BAG_METRICS),
        "resamples": resamples,
        "seed": seed,
    }
    earlier = _find(folder, inputs)
    if earlier is not None and not writable:
        return earlier
    if writable:
        write_predictions(experiment, folds, folder / prediction_files.TABLE_NAME)
    if earlier is not None and earlier.get(_CURVES) == digests.of_file(folder / CURVES_NAME):
        return earlier
    content = out_of_fold.measure(experiment, folds, resamples, seed)
    if not writable:
        cleaned: dict[str, Any] = records.without_nonfinite(content)[0]
        return cleaned
    picture = _draw(experiment, folds, title)
    files.write(folder / CURVES_NAME, picture)
    content[_CURVES] = hashlib.sha256(picture).hexdigest()
    complete = records.complete(content, inputs)
    records.write_complete(folder / METRICS_NAME, complete, indent=1)
    return records.from_json(complete, folder / METRICS_NAME).content


def write_predictions(experiment: Experiment, folds: Folds, path: pathlib.Path) -> None:
    """Writes a line for each tested bag of each repeat.

    Args:
      experiment: bags and splits.
      folds: contents of their records, in the order of the splits.
      path: of the file.

    Raises:
      OSError: it cannot be written.
    """
    rows = []
    lengths = experiment.dataset.lengths
    for split, fold in zip(experiment.splits, folds, strict=True):
        names = fold["classes"]
        for length, bag in zip(lengths[split.test].tolist(), fold["bags"], strict=True):
            predicted = bag["prediction"]
            rows.append(
                BagRow(
                    bag=bag["id"],
                    label=label_sets.name(bag["label"], names),
                    predicted=None if predicted is None else label_sets.name(predicted, names),
                    probabilities=bag["probabilities"],
                    length=length,
                    repeat=fold["repeat"],
                    fold=fold["fold"],
                )
            )
    prediction_files.write_table(path, rows, folds[0]["classes"])


def _find(folder: pathlib.Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Finds metrics that were made from the same inputs."""
    path = folder / METRICS_NAME
    try:
        record = records.read(path)
    except FileNotFoundError:
        return None
    except records.DamagedRecord as error:
        log.warning("%s; it is made again", error)
        return None
    return None if records.difference(record.made_from, inputs) else record.content


def _draw(experiment: Experiment, folds: Folds, title: str) -> bytes:
    classes: Sequence[str] = folds[0]["classes"]
    predictions = out_of_fold.gather(experiment.splits, folds)
    return curves.draw(predictions, classes, out_of_fold.place_of_positive(folds[0]), title)

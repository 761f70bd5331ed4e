"""The record `data.json`: the bags of a folder's results."""

import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from lossattn_jax.data.bags.sources import Experiment
from lossattn_jax.files import records
from lossattn_jax.mil import fold_results
from lossattn_jax.mil.report import SUMMARY_NAME
from lossattn_jax.mil.selection import RULES

log = logging.getLogger(__name__)

RECORD_NAME = "data.json"


def refuse_other(experiment: Experiment, folder: pathlib.Path) -> None:
    """Refuses a folder with results of other bags; writes nothing.

    Where the folder does not say of which bags it is, every fold and summary in it is compared.

    Args:
      experiment: whose results are to be written.
      folder: of the data set, which need not exist.

    Raises:
      UserError: it has results of other bags, or some that were written before there were digests.
    """
    own = folder / RECORD_NAME
    try:
        record = records.read(own)
    except FileNotFoundError:
        pass
    except records.DamagedRecord as error:
        log.warning("%s; it is made again", error)
    else:
        records.refuse_other(own, record.made_from, experiment.bags)
        return
    for path, before, now in _pairs(experiment, folder):
        records.refuse_other(path, before, now)


def write(experiment: Experiment, folder: pathlib.Path) -> None:
    """Records a folder's bags where no record is.

    Not before there are results: of what was stopped without any, the bags may change.

    Args:
      experiment: that `refuse_other` has not refused.
      folder: of the data set, which exists.

    Raises:
      OSError: it cannot be written.
    """
    path = folder / RECORD_NAME
    try:
        records.read(path)
    except (FileNotFoundError, records.DamagedRecord):
        records.write(path, {"dataset": experiment.dataset.name}, experiment.bags, indent=1)


def _pairs(
    experiment: Experiment, folder: pathlib.Path
) -> Iterator[tuple[pathlib.Path, Mapping[str, Any] | None, Mapping[str, Any]]]:
    """Yields paths of summaries and folds, their bags, and the expected bags.

    Folds of a draw of generated bags that the experiment does not have are left out.
    """
    bags = {
        split.name: fold_results.bags_of(made_from)
        for split, made_from in zip(experiment.splits, experiment.made_from, strict=True)
    }
    for method in sorted(folder.glob("*/")):
        for rule in RULES:
            for path in sorted((method / rule).glob("*.json")):
                if path.name != SUMMARY_NAME and path.stem not in bags:
                    continue
                try:
                    before = records.read(path).made_from
                except (FileNotFoundError, records.DamagedRecord):
                    continue
                if path.name == SUMMARY_NAME:
                    own = None if before is None else {"bags": before.get("bags")}
                    yield path, own, {"bags": experiment.digest}
                else:
                    own = None if before is None else fold_results.bags_of(before)
                    yield path, own, bags[path.stem]

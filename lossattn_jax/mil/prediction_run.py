"""What `python -m lossattn_jax.mil.predict` does: predictions of stored models, bag by bag."""

import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from lossattn_jax import files
from lossattn_jax.checkpoint import run_folder
from lossattn_jax.commands.progress import LogClock, Progress
from lossattn_jax.data.bags import label_sets
from lossattn_jax.data.bags.bag_survey import digest_bag
from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.errors import Incomplete, UserError
from lossattn_jax.evaluate import nonfinite_values
from lossattn_jax.files import digests, records
from lossattn_jax.mil import prediction_files
from lossattn_jax.mil.ensemble import Ensemble
from lossattn_jax.mil.prediction_files import BagRow, Scores

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10


def run(
    ensemble: Ensemble,
    bags: Bags,
    out: str,
    *,
    labels: Sequence[Any] | None = None,
    instances: bool = False,
) -> Scores:
    """Predicts for bags, and reuses predictions of the same models for the same bags.

    Args:
      ensemble: the models.
      bags: which need no labels.
      out: folder for the files, see `prediction_files`.
      labels: of the bags, each one of the models' classes; None: they are not known.
      instances: whether what the models say of instances is written too.

    Returns:
      How right the predictions are. Some may lack numbers, see `refuse_nonfinite`.

    Raises:
      UserError: the bags have other features, a label is none of the classes, a bag cannot be read, or `out`
        has predictions of other models or bags or cannot be written.
    """
    ensemble.check(bags)
    words = match_labels(ensemble, bags, labels)
    folder = pathlib.Path(out)
    with files.writing_out(folder), run_folder.make_and_lock(folder):
        names = (
            prediction_files.BAGS_NAME,
            *((prediction_files.INSTANCES_NAME,) if instances else ()),
        )
        for name in names:
            files.make_folder(folder / name)
            files.remove_temporaries(folder / name)
        known = _known(ensemble, bags, folder, instances)
        missing = [row for row in range(len(bags)) if row not in known]
        if known:
            log.info("%s: %d of %d bags are there", bags.name, len(known), len(bags))
        if missing:
            for row, record in _predict(ensemble, bags.select(missing), folder, instances):
                known[missing[row]] = record
        rows = [_row(bags.ids[row], words[row], known[row].content) for row in range(len(bags))]
        prediction_files.write_table(folder / prediction_files.TABLE_NAME, rows, ensemble.classes)
    log.info("files: %s", folder)
    several = ensemble.several_labels
    return prediction_files.score(rows, ensemble.classes, several_labels=several)


def refuse_nonfinite(scores: Scores) -> None:
    """Ends a command some of whose outputs are not finite.

    Raises:
      Incomplete: the text names bags.
    """
    if scores.nonfinite:
        raise Incomplete(
            f"outputs for {len(scores.nonfinite)} bags are not finite, and empty in the table: "
            f"{nonfinite_values.list_first(scores.nonfinite)}"
        )


def match_labels(ensemble: Ensemble, bags: Bags, labels: Sequence[Any] | None) -> list[Any]:
    """The labels as the models know them; None for each where they are not known.

    Raises:
      UserError: one is none of the classes.
    """
    if labels is None:
        return [None] * len(bags)
    by_text = {str(label): label for label in ensemble.classes}
    if ensemble.several_labels:
        return [_text_of(ensemble, bag, label) for bag, label in zip(bags.ids, labels, strict=True)]
    for bag, label in zip(bags.ids, labels, strict=True):
        if str(label) not in by_text:
            raise UserError(
                f"bag {bag!r} has the label {str(label)!r}, but the classes of {ensemble.folders[0]} are "
                f"{', '.join(map(repr, by_text))}"
            )
    return [by_text[str(label)] for label in labels]


def _text_of(ensemble: Ensemble, bag: str, label: Any) -> str:
    """The text of a bag's labels: a tuple of the table's, or one word where none has several."""
    words = list(map(str, label if isinstance(label, tuple) else (label,)))
    names = list(map(str, ensemble.classes))
    unknown = [word for word in words if word not in names]
    if unknown:
        raise UserError(
            f"bag {bag!r} has the label {unknown[0]!r}, but the labels of {ensemble.folders[0]} are "
            f"{', '.join(map(repr, names))}"
        )
    return label_sets.as_text(words)


def _made_from(ensemble: Ensemble, bags: Bags, row: int) -> dict[str, Any]:
    names = None if bags.features is None else digests.of_json(list(bags.features))
    return {
        "models": list(ensemble.digests),
        "feature names": names,
        "bag": digest_bag(bags, row),
    }


def _known(
    ensemble: Ensemble, bags: Bags, folder: pathlib.Path, instances: bool
) -> dict[int, records.Record]:
    """Records that are there, by the bags' positions; nothing is computed where one is of other inputs."""
    known = {}
    for row, bag in enumerate(bags.ids):
        if prediction_files.record_path(folder, bag).exists():
            record = prediction_files.find_bag(
                folder, bag, _made_from(ensemble, bags, row), instances
            )
            if record is not None:
                known[row] = record
    return known


def _predict(
    ensemble: Ensemble, bags: Bags, folder: pathlib.Path, instances: bool
) -> Iterator[tuple[int, records.Record]]:
    """Yields positions and records of bags, as they are written."""
    progress, clock = Progress(0, len(bags)), LogClock(_SECONDS_BETWEEN_LINES)
    for prediction in ensemble.predict(bags):
        row = prediction.row
        bag = bags.ids[row]
        digest = None
        if instances:
            digest = prediction_files.write_instances(
                prediction_files.instances_path(folder, bag),
                prediction,
                bags.read_coords(row),
                {
                    "bag": bag,
                    "classes": [str(label) for label in ensemble.classes],
                    "model": list(map(str, ensemble.digests)),
                },
            )
        yield (
            row,
            prediction_files.write_bag(
                folder,
                bag,
                prediction,
                ensemble.label_of(prediction.probabilities),
                _made_from(ensemble, bags, row),
                digest,
            ),
        )
        if clock.is_due() or row + 1 == len(bags):
            rate = progress.measure(row + 1)
            log.info(
                "%s: bag %d of %d, %.1f bags a second, %s left",
                bags.name,
                row + 1,
                len(bags),
                rate,
                progress.time_left(row + 1),
            )


def _row(bag: str, label: Any, content: dict[str, Any]) -> BagRow:
    return BagRow(
        bag, label, content["predicted"], content["probabilities"], content["n_instances"]
    )

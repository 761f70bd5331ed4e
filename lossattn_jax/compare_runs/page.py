"""The page of a comparison of runs, and the files beside it.

`explain/report/runs.html` is its template; here is what the template is given.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lossattn_jax import files
from lossattn_jax.compare_runs import tables
from lossattn_jax.errors import UserError
from lossattn_jax.explain.report import templates
from lossattn_jax.explain.report.plots import Plot
from lossattn_jax.files import records

PAGE_NAME = "index.html"
RESULT_NAME = "comparison.json"
METRICS_NAME, CONFIG_NAME = "metrics.csv", "config.csv"
DISAGREEMENTS_NAME = "disagreements.csv"

_MOST_CHANGES = 20  # pairs of classes that the page lists for a pair of runs


@dataclasses.dataclass(frozen=True)
class Card:
    """Pictures of an image on which runs disagree.

    Attributes:
      row: its place among the disagreements.
      image: PNG.
      overlays: PNG of each run's attention over it, by the runs' names.
    """

    row: int
    image: bytes
    overlays: Mapping[str, bytes]


def write(
    folder: pathlib.Path,
    result: Mapping[str, Any],
    plots: Sequence[Plot],
    ranking: tables.Disagreements,
    cards: Sequence[Card],
) -> None:
    """Writes `index.html` and the files beside it into a folder.

    Tables that an earlier comparison left and this one has not are removed.

    Args:
      folder: that exists.
      result: of `comparison.compare`.
      plots: the curves.
      ranking: the images on which runs disagree.
      cards: pictures of the first of them.

    Raises:
      UserError: a file cannot be written.
    """
    beside = {CONFIG_NAME: tables.config_csv(result), METRICS_NAME: None, DISAGREEMENTS_NAME: None}
    if "pairs" in result:
        beside |= {METRICS_NAME: tables.metrics_csv(result), DISAGREEMENTS_NAME: ranking.to_csv()}
    try:
        for name, text in beside.items():
            if text is None:
                (folder / name).unlink(missing_ok=True)
            else:
                files.write(folder / name, text.encode(errors="backslashreplace"))
        records.write_complete(folder / RESULT_NAME, result, indent=1)
        files.write(folder / PAGE_NAME, render(result, plots, ranking, cards).encode())
    except OSError as error:
        raise UserError(f"the report {folder} cannot be written: {error.strerror}") from None


def render(
    result: Mapping[str, Any],
    plots: Sequence[Plot],
    ranking: tables.Disagreements,
    cards: Sequence[Card],
) -> str:
    """Renders the page as HTML 5; it loads nothing. See `write`."""
    names = [run["name"] for run in result["runs"]]
    return (
        templates.environment()
        .get_template("runs.html")
        .render(
            title=f"Comparison of {', '.join(names)}",
            facts=_facts(result),
            runs=[_describe(run) for run in result["runs"]],
            names=names,
            config=[
                (key, [tables.word(value) for value in row])
                for key, row in result["config"].items()
            ],
            metrics=[
                (
                    tables.title(name),
                    [tables.number(value) for value in own],
                    [tables.number(value, sign=True) for value in differences],
                )
                for name, own, differences in tables.list_metrics(result)
            ],
            losses=len({run.get("loss") for run in result["runs"]}) > 1,
            sentences=tables.describe_pairs(result) if "pairs" in result else [],
            pairs=[
                (name, pair["right"], _changes(pair))
                for name, pair in result.get("pairs", {}).items()
                if pair is not None
            ],
            most=_MOST_CHANGES,
            plots=plots,
            intro=_intro(result, ranking, cards),
            cards=[_card(ranking, card, result["split"]) for card in cards],
        )
    )


def _facts(result: Mapping[str, Any]) -> dict[str, str]:
    if "pairs" not in result:
        return {"compared": "configs and curves"}
    first = result["runs"][0]
    return {
        "data": f"{first['dataset']}, {result['split']}, {result['images']} images",
        "checkpoints": result["checkpoint"],
    }


def _describe(run: Mapping[str, Any]) -> dict[str, str]:
    step = f", step {run['step']:,}, {run['loss']}" if "step" in run else ""
    return {"name": run["name"], "text": f"{run['workdir']}{step}"}


def _changes(pair: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The most frequent cells of the cross table beside its diagonal."""
    beside = [cell for cell in pair["predictions"] if cell["first"] != cell["other"]]
    return sorted(beside, key=lambda cell: -cell["images"])[:_MOST_CHANGES]


def _intro(result: Mapping[str, Any], ranking: tables.Disagreements, cards: Sequence[Card]) -> str:
    if result.get("disagreements") is None:
        return ""
    count = result["disagreements"]
    if not count:
        return f"The runs predict the same for all of {result['images']} images."
    return (
        f"Predictions of {', '.join(ranking.runs)} differ on {count} of {result['images']} images. "
        f"Here are {len(cards)} of these, first where two runs are surest of different classes; all are in "
        f"{DISAGREEMENTS_NAME}."
    )


def _card(ranking: tables.Disagreements, card: Card, split: str) -> dict[str, Any]:
    row = card.row
    return {
        "name": f"{split} {ranking.index[row]}",
        "label": ranking.labels[row],
        "image": card.image,
        "runs": [
            {
                "name": name,
                "overlay": card.overlays[name],
                "predicted": ranking.predicted[row][place],
                "chance": float(ranking.probabilities[row, place]),
                "verdict": "right" if ranking.right[row, place] else "wrong",
            }
            for place, name in enumerate(ranking.runs)
        ],
    }

"""Methods for bags on the sets of `data.bags.assumption_bags`: have they learned the rule, or the clue?

    python -m benchmarks.mil_assumption --workdir=runs/assumption --out=results/mil/assumption.json \\
        --table=results/mil/assumption.md

A method is trained once for each seed, and tested on bags as in training and on shifted ones, by the area
under the ROC curve (AUC). Its training is that of `lossattn mil cv` under the rule `final`, with other epochs
and another rate. The same command goes on where it was stopped.
"""

import contextlib
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from sklearn.metrics import roc_auc_score

from benchmarks import flag_values, machine
from lossattn_jax.commands import command
from lossattn_jax.config import bags as config_lib
from lossattn_jax.config.options import BagOptions
from lossattn_jax.data.bags import assumption_bags, sources
from lossattn_jax.errors import UserError
from lossattn_jax.mil import cross_validation, methods
from lossattn_jax.mil.selection import FINAL

# Below the package's logger, which is the one that commands show.
log = logging.getLogger("lossattn_jax.benchmarks")

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scikit-learn")
# Of the bags to test on, by the word that their ids begin with.
DISTRIBUTIONS = ("training", "shifted")


def run(
    workdir: str,
    out: str,
    *,
    datasets: Sequence[str] = tuple(assumption_bags.CONTENTS),
    method: Sequence[str] = (methods.ALL,),
    train: int = 200,
    test: int = 200,
    seeds: int = 5,
    epochs: int = 20,
    learning_rate: float = 1e-3,
    table: str | None = None,
) -> dict[str, Any]:
    """Trains and tests methods one after the other; the record is written after each.

    Args:
      workdir: folder for the results of each training.
      out: JSON file for the results. What it has of the same inputs is not run again.
      datasets: of `assumption_bags.CONTENTS`.
      method: names, or "all" or "paper".
      train: bags of a training.
      test: bags of each of the two distributions, the same for all trainings.
      seeds: trainings, each with bags of its own.
      epochs: of networks.
      learning_rate: of networks.
      table: Markdown file for the table; None: it is printed only.

    Raises:
      UserError: an unknown name, an impossible number, or a file cannot be written.
    """
    path = machine.prepare(out)
    for name in datasets:
        if name not in assumption_bags.CONTENTS:
            raise UserError(
                f"--datasets has {name!r}, but allowed are {', '.join(assumption_bags.CONTENTS)}"
            )
    names = methods.expand_names(method)
    for name in names:
        methods.get(name)  # which refuses an unknown one
    config = config_lib.default_config()
    config.repeats, config.bags.train, config.bags.test = seeds, (train,), test
    config.train.epochs, config.optimizer.learning_rate = epochs, learning_rate
    # Each length that bags are padded to has programs of its own, which take longer to compile than to run.
    config.train.max_waste = 4.0
    options = config_lib.resolve(config)
    inputs = {
        "train": train,
        "test": test,
        "seeds": seeds,
        "epochs": epochs,
        "learning_rate": learning_rate,
    }
    record = _earlier(path, inputs) or {
        **machine.header("benchmarks.mil_assumption", PACKAGES),
        "commit": machine.commit(),
        "inputs": inputs,
        "results": {},
    }
    experiments = {name: draw_experiment(name, options) for name in datasets}
    for name in names:
        for dataset, experiment in experiments.items():
            own = record["results"].setdefault(dataset, {})
            if name in own:
                continue
            folder = pathlib.Path(workdir, dataset, name)
            records_of_rules = cross_validation.run(experiment, name, options, (FINAL,), folder)
            own[name] = measure([fold.content for fold in records_of_rules[FINAL]])
            log.info("%s, %s: %s", dataset, name, _cells(own[name]))
            machine.write(record, path)
    text = markdown(record["results"])
    if table is not None:
        pathlib.Path(table).write_text(text)
    print(text, end="")
    return record


def draw_experiment(name: str, options: BagOptions) -> sources.Experiment:
    """Draws the bags of a set, with a repeat for each seed.

    Args:
      name: of `assumption_bags.CONTENTS`.
      options: of the experiment: its seed, repeats, and numbers of bags.

    Returns:
      The experiment; the ids of the bags to test on begin with a word of `DISTRIBUTIONS`. Its trainings are
      those of `lossattn mil cv --dataset=NAME`.
    """
    (count,) = options.bags.train
    source = sources.SOURCES[name]
    assert isinstance(source, sources.AssumptionBags)
    train_parts = sources.draw_train_parts(source.draw, count, options)
    tests = source.draw_test_parts(options)
    test_parts = dict(zip(DISTRIBUTIONS, (tests[False], tests[True]), strict=True))
    return sources.make_experiment(f"{name}_{count}", train_parts, test_parts, positive=1)


def measure(folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Measures the area of each distribution, fold by fold.

    Args:
      folds: contents of the folds' files.

    Returns:
      For each of `DISTRIBUTIONS` the `mean`, the standard deviation `std` and the `runs`; null where a
      prediction is not finite.
    """
    measured = {}
    for word in DISTRIBUTIONS:
        areas = []
        for fold in folds:
            bags = [bag for bag in fold["bags"] if bag["id"].startswith(word)]
            scores = np.array([bag["probabilities"][1] for bag in bags])
            labels = [bag["label"] for bag in bags]
            finite = bool(np.isfinite(scores).all())
            areas.append(float(roc_auc_score(labels, scores)) if finite else None)
        finite_areas = [area for area in areas if area is not None]
        whole = len(finite_areas) == len(areas)
        measured[word] = {
            "mean": float(np.mean(finite_areas)) if whole else None,
            "std": float(np.std(finite_areas, ddof=1)) if whole and len(areas) > 1 else None,
            "runs": areas,
        }
    return measured


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats a table with a row for each method.

    Args:
      results: by data set and method what `measure` gives.
    """
    heads = [f"{dataset}, {word}" for dataset in results for word in DISTRIBUTIONS]
    lines = [f"| method | {' | '.join(heads)} |", f"|{' --- |' * (1 + len(heads))}"]
    for name in dict.fromkeys(name for own in results.values() for name in own):
        cells = [_cells(own.get(name)) for own in results.values()]
        lines.append(f"| {methods.get(name).title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(measured: Mapping[str, Any] | None) -> str:
    return " | ".join(_cell(measured and measured[word]) for word in DISTRIBUTIONS)


def _cell(area: Mapping[str, Any] | None) -> str:
    if area is None or area["mean"] is None:
        return "-"
    spread = "" if area["std"] is None else f" ({area['std']:.3f})"
    return f"{area['mean']:.3f}{spread}"


def _earlier(path: pathlib.Path, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of an earlier call with the same inputs; None where there is none."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        record: dict[str, Any] = json.loads(path.read_text())
        if record.get("inputs") == inputs:
            return record
    return None


def main() -> None:
    """The command; see the flags."""
    run(**flag_values.arguments(run))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder for the trainings' results", required=True)
    flags.DEFINE_string("out", None, "file for the results (JSON)", required=True)
    flags.DEFINE_string("table", None, "Markdown file for the table")
    flags.DEFINE_list("datasets", list(assumption_bags.CONTENTS), "which of them")
    flags.DEFINE_list("method", [methods.ALL], "names, all or paper")
    flags.DEFINE_integer("train", 200, "bags of a training", lower_bound=2)
    flags.DEFINE_integer("test", 200, "bags of each distribution to test on", lower_bound=2)
    flags.DEFINE_integer("seeds", 5, "trainings, each with bags of its own", lower_bound=1)
    flags.DEFINE_integer("epochs", 20, "of networks", lower_bound=1)
    flags.DEFINE_float("learning_rate", 1e-3, "of networks")
    command.run(main)

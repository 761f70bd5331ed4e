"""Comparison of runs: from their workdirs to numbers, tables and the page."""

import dataclasses
import itertools
import logging
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lossattn_jax import data, devices
from lossattn_jax.checkpoint import provenance, run_folder, runs
from lossattn_jax.compare_runs import curves, disagreements, page, paired_differences, tables
from lossattn_jax.compare_runs.predictions import Predictions, predict
from lossattn_jax.config import images as config_lib
from lossattn_jax.config.options import leaves
from lossattn_jax.data.subset import SPLITS
from lossattn_jax.errors import Incomplete, UserError
from lossattn_jax.evaluate import metrics
from lossattn_jax.evaluate.evaluation import EvalStep, make_eval_step
from lossattn_jax.explain import explanations
from lossattn_jax.explain.receptive_field import on_images, read_probes
from lossattn_jax.explain.report import pictures, write
from lossattn_jax.files import digests, records
from lossattn_jax.mil import bootstrap
from lossattn_jax.train.images import reporting

log = logging.getLogger(__name__)

NONE = "none"  # the split that compares configs and curves alone
MAX_IMAGES = 1000  # on one page
FOLDER_NAME = "comparison"


def compare(
    workdirs: Sequence[str],
    split: str = "test",
    checkpoint: str = "latest",
    num: int = 48,
    *,
    batch_size: int | None = None,
    data_dir: str | None = None,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
    out: str | None = None,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Compares runs with the first of them, and writes a folder with the page and the tables.

    The folder has `index.html`, `comparison.json`, `config.csv`, and of a split `metrics.csv` and
    `disagreements.csv`.

    Args:
      workdirs: folders of two or more runs.
      split: "train", "test" or "held_out", or "none": configs and curves alone, for which runs need neither
        the same images nor a checkpoint.
      checkpoint: "latest", "best" or a step, of all runs.
      num: number of images shown, from 1 to `MAX_IMAGES`.
      batch_size: images per batch; None: as in each run's config.
      data_dir: folder of the data sets; None: as in each run's config.
      resamples: of the bootstrap; 0: no intervals.
      seed: of the bootstrap.
      out: folder to write; None: `comparison` beside the first run.
      trust_code: whether code that the runs' configs name by reference is imported.

    Returns:
      The content of `comparison.json`, a `records.complete` one; see `refuse_nonfinite`.

    Raises:
      UserError: a run is there twice, or alone; there is no such run, checkpoint or data set; the runs have
        other images; or the folder cannot be written.
    """
    _check(workdirs, split, num)
    bootstrap.check_resamples(resamples)
    names = name_runs(workdirs)
    folder = pathlib.Path(out) if out else pathlib.Path(workdirs[0]).absolute().parent / FOLDER_NAME
    if (folder / run_folder.CONFIG_NAME).exists():
        raise UserError(f"{folder} is the workdir of a run; give another folder with --out")
    members: dict[str, runs.Run] = {}
    values: dict[str, dict[str, Any]] = {}
    for name, workdir in zip(names, workdirs, strict=True):
        if split == NONE:
            stored = run_folder.stored_config(workdir, trust_code=trust_code)
            values[name] = dict(leaves(config_lib.resolve(stored)))
        else:
            run = members[name] = runs.load(workdir, checkpoint, trust_code=trust_code)
            data_set = {f"data_set.{key}": value for key, value in vars(run.spec).items()}
            values[name] = dict(leaves(run.options)) | data_set
    places = dict(zip(names, map(pathlib.Path, workdirs), strict=True))
    lines = {name: reporting.read_legible_metrics(place) for name, place in places.items()}
    content: dict[str, Any] = {
        "split": split,
        "runs": [{"name": name, "workdir": str(places[name])} for name in names],
        "config": find_differences(values),
    }
    # Before the work, during which another command may write the workdirs.
    made_from: dict[str, Any] = {
        f"{name} {file}": digest
        for name, place in places.items()
        for file, digest in (
            (provenance.CONFIG_FILE, run_folder.config_digest(place)),
            (reporting.METRICS_NAME, digests.of_file(place / reporting.METRICS_NAME)),
        )
    }
    networks: dict[str, _Network] = {}
    if split != NONE:
        datasets = open_datasets(members, split, data_dir)
        networks = {
            name: _Network.of(run, datasets[name], batch_size) for name, run in members.items()
        }
        for name, run in members.items():
            inputs = provenance.of_outputs(run, datasets[name])
            made_from |= {f"{name} {key}": value for key, value in inputs.items()}
        made_from |= {"resamples": resamples, "seed": seed}
        content["checkpoint"] = checkpoint
    write.refuse_links(folder)
    with write.lock(folder, "" if out else "; give another folder with --out"):
        ranking, cards = tables.Disagreements(), []
        if networks:
            predictions = {name: _predict(name, network) for name, network in networks.items()}
            for entry in content["runs"]:
                run, results = members[entry["name"]], predictions[entry["name"]].metrics
                entry |= {"dataset": run.spec.name, "step": run.step, "loss": run.loss}
                entry["metrics"] = metrics.finite(results)
            class_names = members[names[0]].spec.class_names
            content |= measure(predictions, class_names, resamples, seed)
            ranking = tables.Disagreements.of(predictions, class_names)
            cards = _draw_cards(networks, ranking, num)
        result = records.complete(content, made_from)
        if jax.process_index() == 0:
            page.write(folder, result, curves.draw(lines), ranking, cards)
            log.info("written: %s", folder / page.PAGE_NAME)
    return result


def refuse_nonfinite(result: Mapping[str, Any]) -> None:
    """Says which runs have non-finite outputs.

    Args:
      result: of `compare`.

    Raises:
      Incomplete: there is one.
    """
    counts = {
        run["name"]: (run["metrics"][metrics.NONFINITE], run["metrics"]["num_examples"])
        for run in result["runs"]
        if metrics.NONFINITE in run.get("metrics", {})
    }
    if counts:
        sentences = ", ".join(
            f"{name} for {count} of {total} images of {result['split']}"
            for name, (count, total) in counts.items()
        )
        raise Incomplete(
            f"runs have non-finite outputs ({sentences}): their metrics are null, and they are left out of "
            "differences and disagreements"
        )


def name_runs(workdirs: Sequence[str]) -> list[str]:
    """Names runs by their folders, or by whole paths where two folders have one name."""
    names = [pathlib.Path(os.path.abspath(workdir)).name for workdir in workdirs]
    return names if len(set(names)) == len(names) else [str(workdir) for workdir in workdirs]


def find_differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Finds the keys whose values differ between runs.

    Args:
      configs: by the runs' names the values of all keys.

    Returns:
      By key the values in the order of the runs.
    """
    keys = dict.fromkeys(itertools.chain(*configs.values()))
    rows = {key: [values.get(key) for values in configs.values()] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def open_datasets(
    members: Mapping[str, runs.Run], split: str, data_dir: str | None = None
) -> dict[str, data.Dataset]:
    """Opens the split of each run; runs of one data set share it.

    Pictures may be stored at a size of its own for each run, where the data set's files say that they are
    the same pictures.

    Raises:
      UserError: a data set is not there, or the images or the classes of runs are not the same.
    """
    first_name, first = next(iter(members.items()))
    datasets = {first_name: runs.open_dataset(first, split, data_dir)}
    (digest,) = provenance.of_data(datasets[first_name])
    for name, run in members.items():
        if name == first_name:
            continue
        if run.spec.class_names != first.spec.class_names:
            raise _other_images("classes", first_name, first, name, run)
        own = runs.open_dataset(run, split, data_dir)
        if provenance.of_data(own) != [digest] and not _show_the_same(datasets[first_name], own):
            raise _other_images(f"{split} images", first_name, first, name, run)
        datasets[name] = datasets[first_name] if run.spec == first.spec else own
    return datasets


def _show_the_same(one: data.Dataset, other: data.Dataset) -> bool:
    """Whether two splits are the same pictures with the same labels, at whatever sizes."""
    return one.picture_digest() == other.picture_digest()


def measure(
    predictions: Mapping[str, Predictions], class_names: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    """Compares predictions on the same images with those of the first run.

    Args:
      predictions: of each run.
      class_names: K names.
      resamples, seed: of the bootstrap.

    Returns:
      JSON: `images`, their number; `differences`, for each run but the first of each metric that both have;
      `pairs`, likewise the difference of the share of images that are right with its interval, McNemar's
      test, counts and the cross table of predicted classes; and `disagreements`, on how many images
      predictions differ among runs with finite outputs. Of runs whose outputs are not finite all are None.
    """
    names = list(predictions)
    first, *others = predictions.values()
    finite = {name: one for name, one in predictions.items() if one.finite}
    bounds: dict[str, bootstrap.Interval] = {}
    if names[0] in finite and len(finite) > 1:
        right = [one.right for one in finite.values()]
        own_intervals = paired_differences.intervals(right, resamples, seed)
        bounds = dict(zip(list(finite)[1:], own_intervals, strict=True))
    classes = [one.predicted for one in finite.values()]
    return {
        "images": len(first.labels),
        "resamples": resamples,
        "differences": {
            name: metrics.finite(_subtract(other.metrics, first.metrics))
            for name, other in zip(names[1:], others, strict=True)
        },
        "pairs": {
            name: _describe_pair(first, predictions[name], bounds[name], class_names)
            if name in bounds
            else None
            for name in names[1:]
        },
        "disagreements": int(disagreements.find(classes).sum()) if len(classes) > 1 else None,
    }


def _check(workdirs: Sequence[str], split: str, num: int) -> None:
    if len(workdirs) < 2:
        there = workdirs[0] if workdirs else "none"
        raise UserError(f"runs are {there}, but a comparison takes the folders of two or more")
    places: dict[str, str] = {}
    for workdir in workdirs:
        place = os.path.realpath(workdir)
        if place in places:
            raise UserError(
                f"the run {workdir} is there twice (also as {places[place]}); name each run once"
            )
        places[place] = workdir
    if split not in (*SPLITS, NONE):
        raise UserError(f"split is {split!r}, but must be one of: {', '.join((*SPLITS, NONE))}")
    if not 1 <= num <= MAX_IMAGES:
        raise UserError(f"num is {num}, but a page shows 1 to {MAX_IMAGES} images")


def _other_images(
    what: str, first_name: str, first: runs.Run, name: str, run: runs.Run
) -> UserError:
    return UserError(
        f"the {what} of {name} ({run.spec.name}) are others than those of {first_name} "
        f"({first.spec.name}), so that predictions cannot be compared image by image; --split={NONE} "
        "compares configs and curves alone"
    )


def _subtract(other: Mapping[str, float], first: Mapping[str, float]) -> dict[str, float]:
    """Differences of the metrics that both have, less numbers of images."""
    counts = ("num_examples", metrics.NONFINITE)
    return {
        name: value - first[name]
        for name, value in other.items()
        if name in first and name not in counts
    }


def _describe_pair(
    first: Predictions, other: Predictions, interval: bootstrap.Interval, classes: Sequence[str]
) -> dict[str, Any]:
    counts = paired_differences.count(first.right, other.right)
    table = disagreements.cross_table(first.predicted, other.predicted, len(classes))
    return {
        "difference": counts.difference,
        **metrics.finite({"low": interval.low, "high": interval.high}),
        "p_value": counts.p_value,
        "right": dataclasses.asdict(counts),
        "differing_predictions": int(table.sum() - np.trace(table)),
        "predictions": [
            {"first": classes[row], "other": classes[column], "images": int(table[row, column])}
            for row, column in np.argwhere(table)
        ],
    }


@dataclasses.dataclass(frozen=True, eq=False)
class _Network:
    """A run, its program, its split, and how many images it takes at a time.

    The program is one for both passes: over the split, and over the images that are shown.
    """

    run: runs.Run
    eval_step: EvalStep
    dataset: data.Dataset
    batch_size: int

    @classmethod
    def of(cls, run: runs.Run, dataset: data.Dataset, batch_size: int | None) -> "_Network":
        eval_step = make_eval_step(run.model, run.spec, run.loss)
        return cls(run, eval_step, dataset, batch_size or run.options.eval.batch_size)


def _predict(name: str, network: _Network) -> Predictions:
    start = time.monotonic()
    predictions = predict(network.run, network.eval_step, network.dataset, network.batch_size)
    seconds, images = time.monotonic() - start, len(network.dataset)
    log.info(
        "%s: evaluated step %d on %d images in %.0f s", name, network.run.step, images, seconds
    )
    return predictions


def _draw_cards(
    networks: Mapping[str, _Network], ranking: tables.Disagreements, num: int
) -> list[page.Card]:
    """Draws the images on which runs disagree most, with each run's attention."""
    index = ranking.index[:num]
    if not len(index):
        return []
    overlays = {name: _draw_attention(networks[name], index) for name in ranking.runs}
    images = networks[ranking.runs[0]].dataset.read(index)["image"]
    return [
        page.Card(row, pictures.png(image), {name: overlays[name][row] for name in ranking.runs})
        for row, image in enumerate(images)
    ]


def _draw_attention(network: _Network, index: np.ndarray) -> list[bytes]:
    """Draws a run's attention over some images of the split, as its report does."""
    run, dataset = network.run, network.dataset
    fields = on_images(run.model, run.variables, read_probes(run.model, dataset), run.spec)
    batch = dataset.read(index, with_boxes=True)
    examples = data.ArrayDataset(
        run.spec,
        dataset.split,
        batch["image"],
        batch["label"],
        batch.get("box"),
        batch.get("box_label"),
    )
    outputs = explanations.explain_dataset(
        network.eval_step,
        devices.replicate(run.variables),
        examples,
        len(index),
        network.batch_size,
        run.loss,
    )
    return [
        pictures.png(pictures.draw_attention(image, attention, fields))
        for image, attention in zip(batch["image"], outputs.attention, strict=True)
    ]

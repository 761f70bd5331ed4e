"""Reports on checkpoints: attention on a data set's images or others.

The numbers come from the forward pass that evaluation runs; see `lossattn_jax.explain.explanations`.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from lossattn_jax import devices
from lossattn_jax.checkpoint import provenance, runs
from lossattn_jax.data import own_images
from lossattn_jax.errors import Incomplete, UserError
from lossattn_jax.evaluate import metrics, nonfinite_values
from lossattn_jax.evaluate.evaluation import add_sums, make_eval_step
from lossattn_jax.evaluate.metric_registry import EVALUATION_METRICS, evaluation_metrics
from lossattn_jax.explain import explanations
from lossattn_jax.explain.explanations import Explanations
from lossattn_jax.explain.receptive_field import extents, on_images, read_probes
from lossattn_jax.explain.report import page, pictures, summary
from lossattn_jax.explain.report.write import FIGURE_NAME, lock, write
from lossattn_jax.files import digests

log = logging.getLogger(__name__)

MAX_IMAGES = 1000  # on one page
PICKS = ("hardest", "first")
THRESHOLDS = (0.1, 1.0)  # the two of the TIP 2021 paper
_REPORT_NAME = "report"  # of the folder in the workdir
_OWN_PROBES = 8  # images of the user's own that receptive fields are measured on
# What the table of thresholds holds, where the data set has it.
_THRESHOLD_METRICS = tuple(
    name for name, metric in EVALUATION_METRICS.items() if metric.compares_thresholds
)


def explain_run(
    workdir: str,
    images: Sequence[str] = (),
    num: int = 64,
    split: str = "test",
    pick: str = "hardest",
    fit: str = "resize",
    *,
    checkpoint: str = "latest",
    out: str | None = None,
    data_dir: str | None = None,
    trust_code: bool = False,
) -> pathlib.Path:
    """Writes the report on a run's checkpoint.

    Args:
      workdir: folder of the run.
      images: image files and folders of them; none: images of `split`.
      num: number of images of the split.
      split: "train", "test", or "held_out" of `config.data.held_out`.
      pick: which images of the split: by turns the least certain and those with the most diffuse
        attention ("hardest"), or the "first".
      fit: how `images` are brought to the network's size; see `own_images.read`.
      checkpoint: "latest", "best" or a step.
      out: folder to write; None: `report` in the workdir.
      data_dir: folder of the data sets; None: as in the run's config.
      trust_code: whether code that the run's config names by reference is imported.

    Returns:
      The page written.

    Raises:
      UserError: there is no such run, checkpoint, data set or image, or the folder cannot be written or is
        being written by another command.
      Incomplete: some of `images` could not be read; the report on the others is written.
    """
    if pick not in PICKS:
        raise UserError(f"pick is {pick!r}, but must be one of: {', '.join(PICKS)}")
    if not 1 <= num <= MAX_IMAGES:
        raise UserError(f"num is {num}, but a report shows 1 to {MAX_IMAGES} images")
    run = runs.load(workdir, checkpoint, trust_code=trust_code)
    folder = pathlib.Path(out) if out else pathlib.Path(workdir) / _REPORT_NAME
    own = own_images.read(images, run.spec.view, fit, MAX_IMAGES) if images else None
    dataset = None if own else runs.open_dataset(run, split, data_dir)
    log.info("devices: %s", devices.describe())
    with lock(folder, "" if out else "; give another folder with --out"):
        if own:
            content = _on_files(run, workdir, own)
        else:
            content = _on_split(run, workdir, dataset, num, pick)
        if jax.process_index():
            return folder
        path = write(content, folder)
    log.info("written: %s, and %s beside it", path, FIGURE_NAME)
    if own and own.refusals:
        count = len(own.refusals) + len(own.files)
        raise Incomplete(
            f"{len(own.refusals)} of {count} images were left out of {path}: {'; '.join(own.refusals)}"
        )
    return path


def _on_split(run: runs.Run, workdir: str, dataset: Any, num: int, pick: str) -> page.Content:
    eval_step = make_eval_step(run.model, run.spec, run.loss)
    kind = run.loss
    variables = devices.replicate(run.variables)
    batch_size = run.options.eval.batch_size
    counts = summary.Summary(run.spec.num_classes, kind, run.spec.multi_label)
    totals = _Totals()

    def look(rows: explanations.Rows, sums: explanations.Sums) -> None:
        totals.add(sums)
        if not totals.nonfinite():  # else there will be no report
            counts.add(rows)

    log.info("looking at %d images of %s", len(dataset), dataset.split)
    selection = explanations.hardest(
        eval_step, variables, dataset, num, batch_size, kind, look=look
    )
    _refuse_nonfinite(run, totals.nonfinite(), len(dataset), f"images of {dataset.split}")
    if pick == "first":
        selection = explanations.explain_dataset(
            eval_step, variables, dataset, num, batch_size, kind
        )
        intro = f"The first {len(selection.names)} of {len(dataset)} images."
    else:
        intro = (
            f"{len(selection.names)} of {len(dataset)} images: by turns the one that the network is least "
            "certain of and the one whose attention is most spread out."
        )
    attentions, values_by_threshold = _thresholds(run, variables, dataset, selection, totals)
    fields = _fields(run, read_probes(run.model, dataset))
    facts: dict[str, str | float] = {
        **_facts(run, workdir, fields),
        "data": f"{run.spec.name}, {dataset.split}, {len(dataset)} images",
    }
    if not run.spec.multi_label:
        facts["calibration error"] = counts.calibration_error()
    return _content(
        run,
        selection,
        fields,
        facts=facts,
        intro=intro,
        attentions=attentions,
        plots=counts.plots(run.spec.class_names),
        thresholds=values_by_threshold,
        made_from=provenance.of_outputs(run, dataset),
    )


def _on_files(run: runs.Run, workdir: str, own: own_images.OwnImages) -> page.Content:
    kind = run.loss
    variables = devices.replicate(run.variables)

    def explain_images(model: Any) -> Explanations:
        explanation = explanations.explain_images(
            make_eval_step(model, run.spec, run.loss),
            variables,
            own.images,
            own.names,
            min(run.options.eval.batch_size, 64),
            run.spec,
            kind=kind,
        )
        finite = metrics.outputs_finite(explanation)
        wrong = [name for name, right in zip(own.names, finite, strict=True) if not right]
        _refuse_nonfinite(
            run, len(wrong), len(own.names), f"images ({nonfinite_values.list_first(wrong)})"
        )
        return explanation

    selection = explain_images(run.model)
    attentions = {_threshold_name(run.options.model.threshold): selection.attention}
    for threshold, model in _other_models(run):
        attentions[_threshold_name(threshold)] = explain_images(model).attention
    # Few images are taken several times: each time with other signs.
    fields = _fields(run, np.resize(own.images[:_OWN_PROBES], (_OWN_PROBES, *run.spec.image_shape)))
    return _content(
        run,
        selection,
        fields,
        facts=_facts(run, workdir, fields) | {"images": ", ".join(own.files)},
        intro=f"{len(selection.names)} images of {len(own.files)} files.",
        attentions=attentions,
        mosaics=_mosaics(own, selection, fields, run.spec.class_names),
        made_from={**provenance.of_run(run), "images": digests.of_arrays({"": own.images})},
    )


def _content(
    run: runs.Run, selection: Explanations, fields: np.ndarray, **rest: Any
) -> page.Content:
    """Makes the page's content from a run and the `rest`."""
    return page.Content(
        title="Where the network looks",
        explanations=selection,
        grid=run.model.patch_grid(run.spec.image_shape),
        fields=fields,
        class_names=run.spec.class_names,
        kind=run.loss,
        **rest,
    )


def _refuse_nonfinite(run: runs.Run, count: int, total: int, images: str) -> None:
    """Refuses a network with `count` non-finite outputs, unless 0.

    Of `total` `images`.
    """
    if count:
        raise UserError(
            f"there is nothing to explain at step {run.step}: "
            f"{nonfinite_values.of_outputs(count, total, images)}; name an earlier step with --checkpoint"
        )


def _facts(run: runs.Run, workdir: str, fields: np.ndarray) -> dict[str, str]:
    model = run.options.model
    sees, mostly = extents(fields)
    return {
        "workdir": workdir,
        "network": f"{model.backbone}, {model.head} head, {model.pooling}",
        "trained on": run.spec.name,
        "step": f"{run.step:,}",
        "a patch sees": f"{sees:.0%} of the image, 95 % of its dependence in {mostly:.0%}",
    }


def _fields(run: runs.Run, images: np.ndarray) -> np.ndarray:
    log.info("receptive fields of %d patches", run.model.patch_grid(run.spec.image_shape).patches)
    return on_images(run.model, run.variables, images, run.spec)


def _threshold_name(threshold: float) -> str:
    return f"threshold {threshold:g}/g"


def _other_models(run: runs.Run) -> Iterable[tuple[float, Any]]:
    """Yields the run's network with other `THRESHOLDS`.

    None where it has no threshold.
    """
    if not run.model.find_pooling().threshold:
        return
    for threshold in THRESHOLDS:
        if threshold != run.options.model.threshold:
            options = dataclasses.replace(run.options.model, threshold=threshold)
            yield threshold, runs.build_model(options, run.spec)


def _thresholds(
    run: runs.Run, variables: Any, dataset: Any, selection: Explanations, totals: "_Totals"
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """Computes attention and metrics with each threshold.

    Attention of the images shown, metrics of the whole split.
    """
    own = _threshold_name(run.options.model.threshold)
    attentions, values_by_threshold = {own: selection.attention}, {own: totals.threshold_metrics()}
    assert selection.index is not None
    for threshold, model in _other_models(run):
        log.info("the same with %s", _threshold_name(threshold))
        others = _Totals()
        attentions[_threshold_name(threshold)] = explanations.explain_at(
            make_eval_step(model, run.spec, run.loss),
            variables,
            dataset,
            selection.index,
            run.options.eval.batch_size,
            others.add,
        )
        _refuse_nonfinite(run, others.nonfinite(), len(dataset), f"images of {dataset.split}")
        values_by_threshold[_threshold_name(threshold)] = others.threshold_metrics()
    return attentions, values_by_threshold if len(values_by_threshold) > 1 else {}


class _Totals:
    """Sums of an evaluation."""

    def __init__(self) -> None:
        self._sums: Any = None

    def add(self, sums: explanations.Sums) -> None:
        self._sums = add_sums(self._sums, sums)

    def nonfinite(self) -> int:
        """Counts examples with non-finite outputs."""
        return int(self._sums[metrics.NONFINITE].total)

    def threshold_metrics(self) -> dict[str, float]:
        values = evaluation_metrics(self._sums)
        return {name: values[name] for name in _THRESHOLD_METRICS if name in values}


def _mosaics(
    own: own_images.OwnImages,
    selection: Explanations,
    fields: np.ndarray,
    class_names: Sequence[str],
) -> list[summary.Plot]:
    """Joins the tiles' attention of each file."""
    plots = []
    for file, name in enumerate(own.files):
        tiles = [image for image, place in enumerate(own.places) if place[0] == file]
        if len(tiles) < 2:
            continue
        places = [own.places[image][1:] for image in tiles]
        overlays = [
            pictures.draw_attention(selection.images[image], selection.attention[image], fields)
            for image in tiles
        ]
        words = [class_names[selection.logits[image].argmax()] for image in tiles]
        sentence = "; ".join(
            f"row {row + 1}, column {column + 1}: {word}"
            for (row, column), word in zip(places, words, strict=True)
        )
        plots.append(
            summary.Plot(
                name=f"tiles_{file:03d}",
                title=f"{name}: attention in each of {len(tiles)} tiles",
                png=pictures.png(pictures.mosaic(overlays, places)),
                alt=f"Attention in the tiles of {name}. Predictions: {sentence}.",
            )
        )
    return plots

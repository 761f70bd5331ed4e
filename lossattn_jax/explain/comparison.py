"""Comparison of a run's attention with other explainers.

How good each is, and how long it takes.

What the rows mean is in `lossattn_jax.explain.metrics.explanation_metrics`.
"""

import dataclasses
import functools
import io
import logging
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax import data, devices
from lossattn_jax.attention import losses
from lossattn_jax.checkpoint import provenance, runs
from lossattn_jax.commands.progress import LogClock, Progress
from lossattn_jax.errors import Incomplete, UserError
from lossattn_jax.evaluate import measurements, metrics
from lossattn_jax.evaluate.evaluation import EvalStep, add_sums, make_eval_step
from lossattn_jax.explain import comparison_report, explainers
from lossattn_jax.explain.metrics import map_agreement, metric_registry
from lossattn_jax.explain.metrics.explanation_metrics import (
    ExplainStep,
    MetricStep,
    Protocol,
    Relevances,
    make_explain_step,
    make_metric_step,
    mean_localisation_ap,
    metrics_of,
    randomised_variables,
)
from lossattn_jax.files import records
from lossattn_jax.registry import is_reference

log = logging.getLogger(__name__)

RESULT_NAME = "compare_explainers.json"
_PICTURE = ".png"
_LOG_SECONDS = 10.0


def compare(
    run: runs.Run,
    dataset: data.Dataset,
    names: Sequence[str] = explainers.NAMES,
    num: int = 512,
    batch_size: int = 64,
    protocol: Protocol | None = None,
    *,
    metric_names: Sequence[str] = (metric_registry.ALL,),
) -> dict[str, dict[str, Any]]:
    """Measures explainers on the first `num` images of a split.

    Args:
      run: a checkpoint.
      dataset: the split.
      names: as `explainers.make` takes them.
      num: number of images; a smaller split gives fewer.
      batch_size: images at a time over all devices, rounded up to a multiple of their number; changes
        no metric.
      protocol: how explanations are measured; None: the defaults.
      metric_names: as `metric_registry.find` takes them.

    Returns:
      For each explainer `explanation_metrics.metrics_of`; with one box an image `localisation_ap`, see
      `mean_localisation_ap`; `ms_per_image` (wall time of explaining, without compilation and transfers,
      the median of its calls); `forward_passes`, the same in units of the network's forward passes that were
      timed in between; and where the network's own attention is among them, in units of its,
      `times_attention`.

    Raises:
      UserError: there is no such explainer or metric, or one of the user's own gives other shapes.
    """
    protocol = protocol or Protocol()
    metrics_by_name = metric_registry.find(metric_names)
    lacking = [
        name
        for name in metric_names
        if name in metrics_by_name and metrics_by_name[name].needs_boxes
    ]
    if lacking and not run.spec.has_boxes:
        raise UserError(
            f"the metric {lacking[0]!r} needs boxes of the objects, and {run.spec.key} has none"
        )
    subject = explainers.Subject(run.model, run.spec.image_shape)
    explain_steps = {name: explainers.make(name, run.model, run.spec.image_shape) for name in names}
    variables = devices.replicate(run.variables)
    random_variables = {
        stage: devices.replicate(others)
        for stage, others in randomised_variables(run.variables, protocol.seed).items()
    }
    eval_step = make_eval_step(run.model, run.spec, run.loss)
    batches = [
        _looked_at(run, eval_step, variables, batch, protocol)
        for batch in _first(dataset, num, devices.round_up(min(batch_size, num)))
    ]
    kind = run.loss
    metric_step = make_metric_step(subject, run.spec, kind, protocol, metrics_by_name)
    results = {}
    calls = _Calls(len(names) * len(batches) * (2 + len(random_variables) + 1))
    for name, explain in explain_steps.items():
        began = time.monotonic()
        step = make_explain_step(subject, explain, run.spec, protocol.seed)
        results[name] = _measure(
            functools.partial(calls.count, name, step),
            eval_step,
            functools.partial(calls.count, name, metric_step),
            variables,
            random_variables,
            batches,
        )
        log.info("%s: measured in %.0f s", name, time.monotonic() - began)
    own = [name for name in results if explainers.EXPLAINERS.find(name).own_attention]
    if own:
        unit = results[own[0]]["forward_passes"]
        for own_results in results.values():
            own_results["times_attention"] = own_results["forward_passes"] / unit
    return results


def compare_run(
    workdir: str,
    names: Sequence[str] = explainers.NAMES,
    num: int = 512,
    split: str = "test",
    checkpoint: str = "latest",
    batch_size: int = 64,
    *,
    data_dir: str | None = None,
    metric_names: Sequence[str] = (metric_registry.ALL,),
    out: str | None = None,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Compares explainers on a run; writes `compare_explainers.json` and `.png` into its workdir.

    Where that may not be written, as on a read-only mount, a warning says so.

    Args:
      workdir: folder of the run.
      names: as `explainers.make` takes them.
      num: number of images of the split, from its first.
      split: "train", "test", or "held_out" of `config.data.held_out`.
      checkpoint: "latest", "best" or a step.
      batch_size: as of `compare`.
      data_dir: folder of the data sets; None: as in the run's config.
      metric_names: as `metric_registry.find` takes them.
      out: JSON file to write instead, whose folder exists; the picture gets its name with `.png`.
      trust_code: whether code that the run's config names by reference is imported.

    Returns:
      `explainers` as of `compare`, what they were measured on, and where and with which arguments; a
      `records.complete` one.

    Raises:
      UserError: there is no such run, checkpoint, data set, explainer or metric, or a file cannot be written.
    """
    measurements.check_out(out, (_PICTURE,))
    run = runs.load(workdir, checkpoint, trust_code=trust_code)
    if not names:
        raise UserError(f"explainers are none, but may be: {', '.join(explainers.NAMES)}")
    for name in names:  # before the data are read
        explainers.make(name, run.model, run.spec.image_shape)
    named_metrics = metric_registry.find(metric_names)
    dataset = runs.open_dataset(run, split, data_dir)
    log.info("devices: %s", devices.describe())
    protocol = Protocol()
    # Before the work, during which another command may write the workdir.
    made_from = {
        **provenance.of_measurement(run, dataset, workdir),
        "images": min(num, len(dataset)),
        "protocol": dataclasses.asdict(protocol),
    }
    own_metrics = {
        name: metric.higher for name, metric in named_metrics.items() if is_reference(name)
    }
    results = compare(run, dataset, names, num, batch_size, protocol, metric_names=metric_names)
    content = {
        "dataset": run.spec.name,
        "split": split,
        "step": run.step,
        "images": made_from["images"],
        "workdir": str(workdir),
        "arguments": {
            "explainers": list(names),
            "metrics": list(metric_names),
            "num": num,
            "checkpoint": checkpoint,
            "batch_size": batch_size,
            "data_dir": data_dir,
        },
        # Whether more is better of each, so that who reads this file need not import them.
        **({"own_metrics": own_metrics} if own_metrics else {}),
        "devices": devices.describe(),
        "jax": jax.__version__,
        "explainers": {name: _finite(values) for name, values in results.items()},
    }
    result = records.complete(content, made_from)
    if jax.process_index() == 0:
        picture = io.BytesIO()
        comparison_report.draw(results).savefig(picture)
        usual = pathlib.Path(workdir) / RESULT_NAME
        measurements.write(result, usual, out, {_PICTURE: picture.getvalue()})
    return result


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Images of an evaluation, as this process has them.

    Attributes:
      host: the evaluation batch.
      probabilities: `[b, K]` of the network.
      shards: the evaluation batch on the devices.
      shifted_images: its images on the devices, moved by the protocol's shift.
      classes: the predicted ones on the devices.
    """

    host: dict[str, np.ndarray]
    probabilities: np.ndarray
    shards: dict[str, jax.Array]
    shifted_images: jax.Array
    classes: jax.Array


class _Calls:
    """Counts calls of programs, and says from time to time how many are left."""

    def __init__(self, total: int):
        """Starts the clock.

        Args:
          total: number of calls.
        """
        self._done, self._total = 0, total
        self._progress, self._clock = Progress(0, total), LogClock(_LOG_SECONDS)

    def count(self, name: str, step: Callable[..., Any], *arguments: Any) -> Any:
        """Calls a step for an explainer, and waits for its result."""
        result = jax.block_until_ready(step(*arguments))
        self._done += 1
        if self._clock.is_due():
            self._progress.measure(self._done)
            remaining = self._progress.time_left(self._done)
            log.info("%s: %d of %d calls  %s left", name, self._done, self._total, remaining)
        return result


class _Stopwatch:
    """Times the calls of a step, but for the first.

    That one compiles.
    """

    def __init__(self, step: Callable[..., Any]):
        self._step = step
        self._seconds: list[float] = []

    def __call__(self, *arguments: Any) -> Any:
        began = time.perf_counter()
        result = jax.block_until_ready(self._step(*arguments))
        self._seconds.append(time.perf_counter() - began)
        return result

    def median(self) -> float:
        return float(np.median(self._seconds[1:]))


def _first(dataset: data.Dataset, num: int, batch_size: int) -> list[dict[str, np.ndarray]]:
    """Yields the first `num` images in batches of one size.

    The rest of the last one is masked.
    """
    there = min(num, len(dataset))
    batches = dataset.eval_batches(
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    first = []
    for _, batch in zip(range(0, there, batch_size), batches, strict=False):
        mask = batch["mask"] * (batch["index"] < there)
        first.append({**batch, "mask": mask.astype(np.float32)})
    return first


def _looked_at(
    run: runs.Run,
    eval_step: EvalStep,
    variables: Any,
    batch: dict[str, np.ndarray],
    protocol: Protocol,
) -> _Batch:
    """Makes a batch with the network's predictions."""
    shards = devices.shard(batch)
    logits = devices.gather(eval_step(variables, shards)[1].logits)
    classes = np.argmax(logits, axis=-1).astype(np.int32)
    shifted_images = np.asarray(map_agreement.shift(jnp.asarray(batch["image"]), *protocol.shift))
    probabilities = np.asarray(losses.probabilities(run.loss, logits))
    return _Batch(batch, probabilities, shards, *devices.shard((shifted_images, classes)))


def _measure(
    step: ExplainStep,
    eval_step: EvalStep,
    metric_step: MetricStep,
    variables: Any,
    random_variables: Mapping[str, Any],
    batches: Sequence[_Batch],
) -> dict[str, Any]:
    """Computes all metrics of one explainer."""
    totals: dict[str, metrics.Mean] | None = None
    rows: list[tuple[np.ndarray, ...]] = []
    explain, forward = _Stopwatch(step), _Stopwatch(eval_step)
    for batch in batches:
        image, index = batch.shards["image"], batch.shards["index"]
        calls = [(variables, image), (variables, batch.shifted_images)]
        calls += [(others, image) for others in random_variables.values()]
        maps = []
        for weights, pixels in calls:
            maps.append(explain(weights, pixels, batch.classes, index))
            # Timed in turn: what else a machine does slows both.
            forward(variables, batch.shards)
        relevance, of_shift, *others = maps
        relevances = Relevances(
            relevance, of_shift, dict(zip(random_variables, others, strict=True))
        )
        sums, per_image = metric_step(variables, batch.shards, batch.classes, relevances)
        totals = add_sums(totals, sums)
        # Of several classes only the predicted one is explained, and the others cannot be ranked.
        if per_image and batch.host["label"].ndim == 1:
            per_example = devices.gather(per_image)
            mask = batch.host["mask"] * per_example["has_box"]
            rows.append((mask, per_example["localised"], batch.probabilities, batch.host["label"]))
    assert totals is not None
    measurements = metrics_of(totals)
    measurements["ms_per_image"] = 1e3 * explain.median() / len(batches[0].host["mask"])
    measurements["forward_passes"] = explain.median() / forward.median()
    if rows:
        columns = [np.concatenate(column) for column in zip(*rows, strict=True)]
        mask, *rest = devices.concatenate_processes(columns)
        measurements["localisation_ap"] = mean_localisation_ap(*(part[mask > 0] for part in rest))
    return measurements


def _finite(metric_values: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces non-finite numbers by None, for JSON, in curves too."""
    numbers = {name: value for name, value in metric_values.items() if name != "curves"}
    values: dict[str, Any] = dict(metrics.finite(numbers))
    if "curves" in metric_values:
        values["curves"] = {
            name: [number if math.isfinite(number) else None for number in curve]
            for name, curve in metric_values["curves"].items()
        }
    return values


def refuse_nonfinite(result: Mapping[str, Any]) -> None:
    """Says of which explainers metrics are missing.

    Raises:
      Incomplete: there is one.
    """
    counts = {
        name: values[metrics.NONFINITE]
        for name, values in result["explainers"].items()
        if metrics.NONFINITE in values
    }
    if counts:
        by_explainer = ", ".join(f"{count} with {name}" for name, count in counts.items())
        raise Incomplete(
            f"outputs or maps are non-finite for some of {result['images']} images of {result['split']} "
            f"({by_explainer}): the metrics that hold them are null"
        )

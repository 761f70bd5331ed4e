"""Exact evaluation of a network on a split."""

import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax import data, devices
from lossattn_jax.attention import losses
from lossattn_jax.checkpoint import provenance, runs
from lossattn_jax.errors import Incomplete
from lossattn_jax.evaluate import (
    measurements,
    metric_registry,
    metrics,
    nonfinite_values,
    test_time_views,
)
from lossattn_jax.files import records
from lossattn_jax.models import ImageNetwork, Outputs

log = logging.getLogger(__name__)

EvalStep = Callable[[Any, dict[str, jax.Array]], tuple[dict[str, metrics.Mean], Outputs]]


def make_eval_step(
    model: ImageNetwork,
    spec: data.DatasetSpec,
    loss: str = losses.AUTO,
    views: str = test_time_views.ONE,
) -> EvalStep:
    """Makes the pmapped forward pass of evaluation and explanations.

    The step takes replicated variables and a sharded batch (`image` uint8 `[devices, b, H, W, C]`,
    `label` int32 or multi-hot, `mask` float32, and where there are boxes `box` `[devices, b, 4]` or
    `[devices, b, M, 4]`), and returns the batch's replicated `metric_registry.evaluation_sums` over all
    devices, and the sharded `Outputs`.

    Args:
      model: the network.
      spec: of the data set, for the normalisation and the image's shape.
      loss: the loss that is measured; see `runs.loss_kind`.
      views: of `test_time_views.VIEWS`, over which logits are averaged; patch logits and attention are those
        of the image.

    Raises:
      UnknownName: of the views.
    """
    image_views = test_time_views.VIEWS.find(views)
    centres = jnp.asarray(model.patch_grid(spec.image_shape).centres())
    kind = runs.loss_kind(model, spec, loss)

    def eval_step(variables: Any, batch: dict[str, jax.Array]) -> tuple[Any, Outputs]:
        images = data.network_input(batch["image"], spec, model.dtype)

        def predict(images: jax.Array) -> Any:
            return model.apply(variables, images, train=False)

        outputs = test_time_views.average_logits(predict, images, image_views)
        sums = metric_registry.evaluation_sums(
            outputs, batch["label"], batch["mask"], centres, batch.get("box"), kind
        )
        return jax.lax.psum(sums, devices.AXIS), outputs

    return devices.pmap(eval_step)


def evaluate(
    eval_step: EvalStep,
    variables: Any,
    dataset: data.Dataset,
    batch_size: int,
    between: Callable[[], None] = lambda: None,
    *,
    look: Callable[[dict[str, np.ndarray], Outputs], None] = lambda batch, outputs: None,
) -> dict[str, float]:
    """Computes metrics over every example, each counted once.

    Args:
      eval_step: from `make_eval_step`.
      variables: replicated "params" and "batch_stats".
      dataset: the split.
      batch_size: examples per batch over all devices, rounded up to a multiple of their number; the
        result does not depend on it.
      between: called after each batch, equally often in all processes; what it raises ends the evaluation.
      look: called with each batch of this process and the outputs for it on the devices.

    Returns:
      `metric_registry.evaluation_metrics`, and where images have several labels also
      `metric_registry.ranking_metrics`, NaN as every metric that holds a non-finite example.
    """
    totals: dict[str, metrics.Mean] | None = None
    pending = None
    score_parts: list[tuple[np.ndarray, ...]] = []
    for batch, sums, outputs in forward_batches(eval_step, variables, dataset, batch_size):
        # The sums of the batch before are fetched while this one runs.
        totals, pending = add_sums(totals, pending), sums
        if dataset.spec.multi_label:
            score_parts.append((devices.gather(outputs.logits), batch["label"], batch["mask"]))
        look(batch, outputs)
        between()
    totals = add_sums(totals, pending)
    assert totals is not None
    results = metric_registry.evaluation_metrics(totals)
    if score_parts:
        parts = [np.concatenate(arrays) for arrays in zip(*score_parts, strict=True)]
        scores, positives, mask = devices.concatenate_processes(parts)
        scores, positives = scores[mask > 0], positives[mask > 0] > 0
        if metrics.NONFINITE in results:  # though all scores may be finite
            scores = np.full_like(scores, np.nan)
        results |= metric_registry.ranking_metrics(scores, positives)
    return results


def forward_batches(
    eval_step: EvalStep,
    variables: Any,
    dataset: data.Dataset,
    batch_size: int,
    start_batch: int = 0,
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, metrics.Mean], Outputs]]:
    """Runs the network over a split, batch by batch.

    Args:
      eval_step: from `make_eval_step`.
      variables: replicated "params" and "batch_stats".
      dataset: the split.
      batch_size: examples per batch over all devices, rounded up to a multiple of their number.
      start_batch: the first batch, counted from 0.

    Yields:
      The batch of this process on the host, and the results of `eval_step` on the devices.
    """
    batches = dataset.eval_batches(
        batch_size=devices.round_up(batch_size),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        start_batch=start_batch,
    )
    with data.prefetch(batches, lambda batch: (batch, to_devices(batch))) as pairs:
        for batch, shards in pairs:
            yield batch, *eval_step(variables, shards)


def to_devices(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Shards what `eval_step` takes of a batch."""
    return devices.shard({name: array for name, array in batch.items() if name != "index"})


def add_sums(totals: Any, sums: Any) -> Any:
    """Adds a batch's sums in float64 on the host.

    No count is too large to be exact there.
    """
    if sums is None:
        return totals
    batch_sums = jax.tree.map(lambda leaf: leaf.astype(np.float64), devices.unreplicate(sums))
    return batch_sums if totals is None else metrics.merge(totals, batch_sums)


def evaluate_run(
    workdir: str,
    split: str = "test",
    checkpoint: str = "latest",
    batch_size: int | None = None,
    data_dir: str | None = None,
    *,
    out: str | None = None,
    views: str = test_time_views.ONE,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Evaluates a run's checkpoint and writes `evaluation_SPLIT.json` into its workdir.

    With other views than the image alone it is `evaluation_SPLIT_VIEWS.json`.

    Where that may not be written, as on a read-only mount, a warning says so.

    Args:
      workdir: folder of the run.
      split: "train", "test", or "held_out" of `config.data.held_out`.
      checkpoint: "latest", "best" or a step.
      batch_size: examples per batch; None: as in the run's config.
      data_dir: folder of the data sets; None: as in the run's config.
      out: file to write instead, whose folder exists.
      views: of `test_time_views.VIEWS`, over which logits are averaged.
      trust_code: whether code that the run's config names by reference is imported.

    Returns:
      The metrics, and what they were measured on: data set, split, views, step, workdir, and by digests
      (`made_from`); a `records.complete` one. Metrics that hold an example with non-finite outputs are
      None, and `nonfinite` counts these examples; see `refuse_nonfinite`.

    Raises:
      UserError: there is no such run, checkpoint or data set, or the file cannot be written.
    """
    measurements.check_out(out)
    test_time_views.VIEWS.find(views, "--views")
    run = runs.load(workdir, checkpoint, trust_code=trust_code)
    dataset = runs.open_dataset(run, split, data_dir)
    # Before the work, during which another command may write the workdir.
    made_from = provenance.of_measurement(run, dataset, workdir)
    log.info("evaluating step %d on %d images of %s", run.step, len(dataset), split)
    start = time.monotonic()
    results = evaluate(
        make_eval_step(run.model, run.spec, run.loss, views),
        devices.replicate(run.variables),
        dataset,
        batch_size or run.options.eval.batch_size,
    )
    seconds = time.monotonic() - start
    log.info("%.0f images/s, compilation included", len(dataset) / seconds)
    content = {
        "dataset": run.spec.name,
        "split": split,
        "views": views,
        "step": run.step,
        "workdir": str(workdir),
        **metrics.finite(results),
    }
    result = records.complete(content, made_from)
    if jax.process_index() == 0:
        name = "_".join([split, *test_time_views.file_words(views)])
        measurements.write(result, pathlib.Path(workdir) / f"evaluation_{name}.json", out)
    return result


def refuse_nonfinite(results: Mapping[str, Any], split: str) -> None:
    """Raises `Incomplete` where an evaluation has non-finite outputs.

    Args:
      results: of `evaluate` or `evaluate_run`.
      split: of the data set, for the sentence.

    Raises:
      Incomplete: the network has non-finite outputs for some of the images.
    """
    if count := results.get(metrics.NONFINITE):
        sentence = nonfinite_values.of_outputs(count, results["num_examples"], f"images of {split}")
        raise Incomplete(f"{sentence}: the metrics that hold them are null")

"""Compares a run's attention with other explainers: how good each is, and how long an image takes.

    python -m lossattn_jax.compare_explainers --workdir=runs/digit_scenes --num=512

What the columns mean is in `lossattn_jax.explanation_metrics`.
"""

import json
import logging
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from lossattn_jax import command, data, devices, explainers, metrics, runs
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import add_sums, make_eval_step, to_devices
from lossattn_jax.explanation_metrics import (
    Protocol,
    make_explain_step,
    make_metric_step,
)

# Named here, since `python -m` runs this module under another name.
log = logging.getLogger("lossattn_jax.compare_explainers")

_TIMED = 5  # calls, of which the median is taken
# Whether more is better; of similarity_* and of the times less is.
HIGHER = {
    "pointing": True,
    "mass_in_box": True,
    "patch_precision": True,
    "patch_recall": True,
    "patch_f": True,
    "localised": True,
    "deletion": False,
    "insertion": True,
    "road_most": False,
    "road_least": True,
    "comprehensiveness": True,
    "sufficiency": False,
    "similarity_classifier": False,
    "similarity_head": False,
    "similarity_backbone": False,
    "stability": True,
    "ms_per_image": False,
    "forward_passes": False,
}


def compare(
    run: runs.Run,
    dataset: data.Dataset,
    names: Sequence[str] = explainers.NAMES,
    num: int = 512,
    batch_size: int = 64,
    protocol: Protocol | None = None,
) -> dict[str, dict[str, float]]:
    """Measures explainers on the first `num` images of a split.

    Args:
      run: a checkpoint.
      dataset: the split.
      names: of `explainers.NAMES`.
      num: number of images; a smaller split gives fewer.
      batch_size: images at a time over all devices, rounded up to a multiple of their number; changes
        no metric.
      protocol: how explanations are measured; None: the defaults.

    Returns:
      For each explainer the means of `make_metric_step`, `ms_per_image` (wall time of explaining, without
      compilation and transfers, the median of a few batches), and `forward_passes`, the same in units of
      the network's forward pass.

    Raises:
      UserError: there is no such explainer.
    """
    subject = explainers.Subject(run.model, run.spec.image_shape)
    made = {name: explainers.make(name, run.model, run.spec.image_shape) for name in names}
    variables = devices.replicate(run.variables)
    eval_step = make_eval_step(run.model, run.spec)
    kind = runs.loss_kind(run.model, run.spec)
    batches: list[tuple[dict[str, jax.Array], jax.Array]] = []
    for batch in _first(dataset, num, devices.round_up(batch_size)):
        sharded = to_devices(batch)
        predicted = np.argmax(devices.gather(eval_step(variables, sharded)[1].logits), axis=-1)
        classes, index = devices.shard((predicted.astype(np.int32), batch["index"]))
        batches.append(({**sharded, "index": index}, classes))
    size = len(predicted)
    forward = _median_seconds(lambda: eval_step(variables, batches[0][0])) / size
    told = {}
    for name, explain in made.items():
        began = time.monotonic()
        step = make_metric_step(subject, explain, run.spec, kind, protocol or Protocol())
        totals: dict[str, metrics.Mean] | None = None
        for images, classes in batches:
            totals = add_sums(totals, step(variables, images, classes))
        assert totals is not None
        alone = make_explain_step(subject, explain, run.spec)
        first, classes = batches[0]
        inputs = (variables, first["image"], classes, first["index"])
        seconds = _median_seconds(lambda alone=alone, inputs=inputs: alone(*inputs)) / size
        told[name] = metrics.compute(totals) | {
            "ms_per_image": 1e3 * seconds,
            "forward_passes": seconds / forward,
        }
        log.info("%s: measured in %.0f s", name, time.monotonic() - began)
    return told


def compare_run(
    workdir: str,
    names: Sequence[str] = explainers.NAMES,
    num: int = 512,
    split: str = "test",
    checkpoint: str = "latest",
    batch_size: int = 64,
    data_dir: str | None = None,
) -> dict[str, Any]:
    """Compares explainers on a run; writes `compare_explainers.json` and `.png` into its workdir.

    Args:
      workdir: folder of the run.
      names: of `explainers.NAMES`.
      num: number of images of the split, from its first.
      split: "train" or "test".
      checkpoint: "latest", "best" or a step.
      batch_size: as of `compare`.
      data_dir: folder of the data sets; None: as in the run's config.

    Returns:
      `explainers` as of `compare`, and what they were measured on.

    Raises:
      UserError: there is no such run, checkpoint, data set or explainer, several classes per image, or a
        file cannot be written.
    """
    run = runs.load(workdir, checkpoint)
    if run.spec.multi_label:
        raise UserError(
            f"{run.spec.name} has several classes per image; explainers are compared for one class each"
        )
    dataset = runs.open_dataset(run, split, data_dir)
    log.info("devices: %s", devices.describe())
    measured = compare(run, dataset, names, num, batch_size)
    result = {
        "dataset": run.spec.name,
        "split": split,
        "step": run.step,
        "images": min(num, len(dataset)),
        "workdir": str(workdir),
        "explainers": {name: metrics.finite(values) for name, values in measured.items()},
    }
    path = pathlib.Path(workdir) / "compare_explainers.json"
    try:
        path.write_text(json.dumps(result, indent=2) + "\n")
        draw(measured).savefig(path.with_suffix(".png"))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    log.info("written: %s and .png", path)
    return result


def table(measured: Mapping[str, Mapping[str, float | None]]) -> str:
    """Markdown: a row for each metric with an arrow to where it is better, a column for each explainer."""
    names = list(measured)
    rows = [name for name in HIGHER if name in measured[names[0]]]
    lines = [f"| metric | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for row in rows:
        cells = [measured[name][row] for name in names]
        told = " | ".join("-" if cell is None else f"{cell:.3f}" for cell in cells)
        lines.append(f"| {row} {'↑' if HIGHER[row] else '↓'} | {told} |")
    return "\n".join(lines) + "\n"


def draw(measured: Mapping[str, Mapping[str, float]]) -> Any:
    """A matplotlib figure with a panel of bars for each metric."""
    from matplotlib.figure import Figure

    names = list(measured)
    rows = [name for name in HIGHER if name in measured[names[0]]]
    columns = 4
    height = math.ceil(len(rows) / columns)
    figure = Figure(
        figsize=(3.2 * columns, (0.8 + 0.25 * len(names)) * height), dpi=100, layout="constrained"
    )
    axes = figure.subplots(height, columns, squeeze=False).ravel()
    for axis, row in zip(axes, rows, strict=False):
        places = np.arange(len(names))[::-1]
        axis.barh(places, [measured[name][row] for name in names], color="#4477aa")
        axis.set_yticks(places, names, fontsize=7)
        axis.tick_params(axis="x", labelsize=7)
        if row in ("ms_per_image", "forward_passes"):
            axis.set_xscale("log")
        axis.set_title(f"{row} ({'higher' if HIGHER[row] else 'lower'} is better)", fontsize=8)
    for axis in axes[len(rows) :]:
        axis.set_axis_off()
    return figure


def _first(dataset: data.Dataset, num: int, batch_size: int) -> list[dict[str, np.ndarray]]:
    """The first `num` images in batches of one size, the rest of the last one masked."""
    batches = []
    left = min(num, len(dataset))
    for batch in dataset.eval_batches(batch_size=batch_size):
        if left <= 0:
            break
        mask = batch["mask"] * (np.arange(batch_size) < left)
        batches.append({**batch, "mask": mask.astype(np.float32)})
        left -= batch_size
    return batches


def _median_seconds(call: Any) -> float:
    jax.block_until_ready(call())  # compiles
    seconds = []
    for _ in range(_TIMED):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def main() -> None:
    """The command; see the flags."""
    values = flags.FLAGS
    result = compare_run(
        values.workdir,
        values.explainers,
        values.num,
        values.split,
        values.checkpoint,
        values.batch_size,
        values.data_dir,
    )
    print(table(result["explainers"]), end="")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "folder of the run", required=True)
    flags.DEFINE_list("explainers", list(explainers.NAMES), "which to compare")
    flags.DEFINE_integer("num", 512, "number of images of the split", lower_bound=1)
    flags.DEFINE_enum("split", "test", ["train", "test"], "where the images come from")
    flags.DEFINE_string("checkpoint", "latest", "latest, best or a step")
    flags.DEFINE_integer("batch_size", 64, "images at a time", lower_bound=1)
    flags.DEFINE_string("data_dir", None, "folder of the data sets; default: as in the run")
    command.run(main)

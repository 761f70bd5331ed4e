"""The paper's image networks against plain PyTorch on one CPU.

    python -m benchmarks.against_torch --out=results/benchmarks/against_torch_cpu.json

Trains and evaluates each network with loss attention in both, in turn, each in a process of its own with all
cores that this process may use (`taskset -c 0,1` gives it two). First both train on the same batch from the
same weights, and have to have the same losses. PyTorch's network is `torch_networks`, in each way that a user
may write it: NCHW or NHWC, and with capsules the units one after the other, as in the papers' code, or fused.
"""

import contextlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from benchmarks import comparison, flag_values, jax_training, machine, subprocess_worker
from benchmarks.comparison import DisagreementError
from lossattn_jax.commands import command
from lossattn_jax.config.images import check, default_config
from lossattn_jax.errors import UserError

if TYPE_CHECKING:
    from benchmarks import torch_training

# Below the package's logger, which is the one that commands show.
log = logging.getLogger("lossattn_jax.benchmarks")

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")
NETWORKS = ("resnet18/conv", "vgg11_bn/conv", "resnet18/capsule", "vgg11_bn/capsule")
# Largest difference of losses, relative, that rounding explains: of the first one, and of later ones.
FIRST_DIFFERENCE, LATER_DIFFERENCE = 1e-5, 3e-2
_AGREEMENT_STEPS = 3
# At the recipe's rate a few updates on four images take rounding apart by percents.
_AGREEMENT_RATE = 0.01

_MIB = 2**20


def run(
    out: str,
    networks: Sequence[str] = NETWORKS,
    *,
    width: float = 1.0,
    batch_size: int = 4,
    steps: int = 3,
    repeats: int = 5,
) -> dict[str, Any]:
    """Measures each network, writes the results and prints a table.

    The file is written after each network, so that what is done is kept.

    Args:
      out: JSON file for the results.
      networks: of `NETWORKS`.
      width: multiplies the channels of every layer.
      batch_size: images of an update and of a batch of evaluation.
      steps: updates, and batches, that a repeat times; its median counts.
      repeats: of everything, in turn.

    Returns:
      What is in the file. Times are wall times in seconds, memory is in MiB.

    Raises:
      UserError: PyTorch is missing, a network is unknown, or the file cannot be written.
      DisagreementError: the two do not compute the same.
    """
    comparison.check_sides()
    if not networks:
        raise UserError(f"--networks names none, but allowed are: {', '.join(NETWORKS)}")
    for name in networks:
        if name not in NETWORKS:
            raise UserError(f"--networks has {name!r}, but allowed are: {', '.join(NETWORKS)}")
        check(network_config(name, width, batch_size))
    path = machine.prepare(out)
    record: dict[str, Any] = {
        **machine.header("benchmarks.against_torch", PACKAGES),
        "batch_size": batch_size,
        "width": width,
        "steps_per_repeat": steps,
        "networks": {},
    }
    for name in networks:
        config = network_config(name, width, batch_size)
        record["networks"][name] = own = _measure(name, config, steps, repeats)
        machine.write(record, path)
        print("\n".join(table(name, own)), flush=True)
    log.info("results: %s", path)
    return record


def table(name: str, own: dict[str, Any]) -> list[str]:
    """A network's results as lines of text."""
    lines = [
        f"{name}: seconds, median (min to max); memory in MiB; ratios are JAX's by PyTorch's",
        f"  {'':28}{'update':26}{'evaluation':26}{'peak memory':14}ratios",
    ]
    for side in (own["jax"], *own["torch"]):
        cells = [
            f"{side[what]['median']:.3f} ({side[what]['min']:.3f} to {side[what]['max']:.3f})"
            for what in ("update", "evaluation")
        ]
        ratios = "  ".join(f"{ratio:.2f}" for ratio in side.get("ratios", {}).values())
        lines.append(
            f"  {side['way']:28}{cells[0]:26}{cells[1]:26}{side['peak_memory']:<14.0f}{ratios}".rstrip()
        )
    return lines


def main() -> None:
    """The command; see the flags."""
    run(**flag_values.arguments(run))


def network_config(name: str, width: float, batch_size: int) -> ConfigDict:
    """The training that is measured, of one of `NETWORKS`."""
    config = default_config()
    backbone, _, head = name.partition("/")
    config.model.update(backbone=backbone, head=head, width=width)
    config.train.batch_size = batch_size
    config.loss.patch_ramp_epochs = 0  # so that lambda is not 0 in the first epoch
    return config


def recipe(config: ConfigDict) -> "torch_training.Recipe":
    """The same training for PyTorch."""
    from benchmarks import torch_training

    return torch_training.Recipe(
        config.model.backbone,
        config.model.head,
        config.model.width,
        config.train.batch_size,
        config.optimizer.learning_rate,
        config.optimizer.momentum,
        config.optimizer.weight_decay,
        config.loss.patch_weight,
    )


def compare(actual: Sequence[float], reference: Sequence[float]) -> tuple[float, float]:
    """Relative differences of losses: the first, and the largest later one.

    Raises:
      DisagreementError: rounding does not explain them.
    """
    first, *later = (abs(a - e) / abs(e) for a, e in zip(actual, reference, strict=True))
    if first > FIRST_DIFFERENCE or max(later) > LATER_DIFFERENCE:
        raise DisagreementError(f"losses of JAX {actual} and of PyTorch {reference} differ")
    return first, max(later)


def _measure(name: str, config: ConfigDict, steps: int, repeats: int) -> dict[str, Any]:
    agreement = _agree(config)
    log.info("%s: the same losses, to %.1e and %.1e", name, *agreement["differences"])
    mine, *others = _sides(name, config, steps, repeats)
    for other in others:
        other["ratios"] = {
            **{
                what: mine[what]["median"] / other[what]["median"]
                for what in ("update", "evaluation")
            },
            "peak_memory": mine["peak_memory"] / other["peak_memory"],
        }
    return {"agreement": agreement, "jax": mine, "torch": others}


def _sides(name: str, config: ConfigDict, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Times and memory of JAX and of each way in PyTorch."""
    from benchmarks.torch_training import Trainer, Way

    ways = [Way(), Way(channels_last=True)]
    if config.model.head == "capsule":
        ways += [Way(fused=True), Way(channels_last=True, fused=True)]
    with contextlib.ExitStack() as running:
        ours = running.enter_context(
            subprocess_worker.SubprocessWorker(jax_training.Trainer, config)
        )
        compiling = {
            "first_update": ours.call("seconds", 1)[0],
            "first_evaluation": ours.call("evaluation_seconds", 1)[0],
        }
        sides = {"JAX": ours}
        for way in ways:
            process = subprocess_worker.SubprocessWorker(Trainer, recipe(config), way)
            sides[f"PyTorch, {way.name}"] = running.enter_context(process)
        update: dict[str, list[float]] = {side: [] for side in sides}
        evaluation: dict[str, list[float]] = {side: [] for side in sides}
        for process in sides.values():  # PyTorch's first steps are slow, too
            process.call("seconds", 2)
            process.call("evaluation_seconds", 2)
        for repeat in range(repeats):
            for side, process in sides.items():
                update[side].append(float(np.median(process.call("seconds", steps))))
                evaluation[side].append(float(np.median(process.call("evaluation_seconds", steps))))
            log.info(
                "%s, repeat %d of %d: seconds of an update: %s",
                name,
                repeat + 1,
                repeats,
                "; ".join(f"{side} {update[side][-1]:.3f}" for side in sides),
            )
        rows: list[dict[str, Any]] = [
            {
                "way": side,
                "update": machine.spread(update[side]),
                "evaluation": machine.spread(evaluation[side]),
                "peak_memory": process.call("peak_memory", 3) / _MIB,
            }
            for side, process in sides.items()
        ]
    rows[0] |= compiling
    return rows


def _agree(config: ConfigDict) -> dict[str, Any]:
    """Trains both on one batch from the same weights and compares losses."""
    from benchmarks.torch_training import Trainer, Way

    config = config.copy_and_resolve_references()
    config.optimizer.learning_rate = _AGREEMENT_RATE
    random = np.random.default_rng(1)
    images = random.standard_normal((config.train.batch_size, 32, 32, 3)).astype(np.float32)
    labels = random.integers(0, 10, config.train.batch_size)
    with (
        subprocess_worker.SubprocessWorker(Trainer, recipe(config), Way()) as theirs,
        subprocess_worker.SubprocessWorker(jax_training.Trainer, config) as ours,
    ):
        weights = theirs.call("weights")
        torch_losses = theirs.call("losses", images, labels, _AGREEMENT_STEPS)
        actual = ours.call("losses", weights, images, labels, _AGREEMENT_STEPS)
    return {
        "jax": actual,
        "torch": torch_losses,
        "differences": list(compare(actual, torch_losses)),
    }


if __name__ == "__main__":
    # Not where tests import several benchmarks, whose flags have the same names.
    flags.DEFINE_string("out", None, "file for the results (JSON)", required=True)
    flags.DEFINE_list("networks", list(NETWORKS), "networks: backbone/head")
    flags.DEFINE_float("width", 1.0, "times the paper's channels", lower_bound=0)
    flags.DEFINE_integer("batch_size", 4, "images", lower_bound=2)
    flags.DEFINE_integer("steps", 3, "updates that a repeat times", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "of everything, in turn", lower_bound=1)
    command.run(main)

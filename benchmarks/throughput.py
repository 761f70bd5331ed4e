"""Images a second in training and evaluation, beside the device's ceiling.

    python -m benchmarks.throughput --out=results/benchmarks/throughput_gpu.json
    python -m benchmarks.throughput --out=... --backbone=vgg11_bn --head=capsule --width=0.5,1.0

The step is that of `train.py`, augmentation and update included, on random images that lie on the devices.
"""

import dataclasses
import itertools
import logging
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from benchmarks import flag_values, machine, network_flops, product_ceiling, training_step
from lossattn_jax import devices, models
from lossattn_jax.commands import command
from lossattn_jax.config.images import default_config
from lossattn_jax.train.images import memory
from lossattn_jax.train.state import count_parameters

# Below the package's logger, which is the one that commands show.
log = logging.getLogger("lossattn_jax.benchmarks")

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
NETWORK = ("backbone", "head", "pooling", "width", "dtype")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
      warmup: steps that are not timed.
      steps: of each timed repeat.
      repeats: timed, each with a rate of its own.
    """

    warmup: int = 3
    steps: int = 10
    repeats: int = 5


def network_config(
    backbone: str, head: str, pooling: str, width: float, dtype: str, batch_size: int
) -> ConfigDict:
    """The shipped training on CIFAR-10 with another network and batch."""
    config = default_config()
    config.model.update(backbone=backbone, head=head, pooling=pooling, width=width, dtype=dtype)
    config.train.batch_size = batch_size
    return config


def row_config(row: dict[str, Any]) -> ConfigDict:
    """The config of a row of `run`."""
    return network_config(**{key: row[key] for key in (*NETWORK, "batch_size")})


def measure(config: ConfigDict, ceiling: float, plan: Plan) -> dict[str, Any]:
    """Compiles and times the training and the evaluation step of a config.

    Args:
      config: of a run; its data need not be there.
      ceiling: operations a second of a device's fastest matrix product, of the config's dtype.
      plan: how long.

    Returns:
      The network and its batch; `parameters`; `seconds_per_step` of training; `training` and `evaluation`,
      each with `images_per_second` and `tflops_per_second` over all devices, `flop_per_image`,
      `ceiling_share` of the ceiling of so many devices, and `compile_seconds`; `memory` as of
      `training_step.step_memory`; and `highest_memory`, the bytes that a device says were taken at most until
      now (None where it says nothing).
    """
    size = config.train.batch_size
    job = training_step.job(config)
    arguments = training_step.arguments(job)
    parameters = count_parameters(arguments[0].params) // jax.local_device_count()
    began = time.perf_counter()
    usage = training_step.step_memory(job, arguments)
    compile_seconds = time.perf_counter() - began
    arguments, _ = training_step.time_steps(job, arguments, plan.warmup)
    seconds = []
    for _ in range(plan.repeats):
        arguments, each = training_step.time_steps(job, arguments, plan.steps)
        seconds.append(sum(each) / plan.steps)
    flop = network_flops.per_image(config)
    return {
        **{key: config.model[key] for key in NETWORK},
        "batch_size": size,
        "parameters": parameters,
        "seconds_per_step": machine.spread(seconds),
        "training": {
            **_rates(seconds, size, flop["training"], ceiling),
            "compile_seconds": compile_seconds,
        },
        "evaluation": _evaluation(job, arguments[0].variables, flop["evaluation"], ceiling, plan),
        "memory": usage,
        "highest_memory": devices.memory_statistics().get("peak_bytes_in_use"),
    }


def run(
    out: str,
    *,
    backbone: str = "resnet18",
    head: str = "conv",
    pooling: str = "loss_attention",
    widths: Sequence[float] | None = None,
    dtypes: Sequence[str] | None = None,
    batch_sizes: Sequence[int] | None = None,
    plan: Plan | None = None,
    sides: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Measures each width, dtype and batch size, and prints a table.

    The file is written after each row, so that what is done is kept.

    Args:
      out: JSON file for the results.
      backbone: see `models.build`, as are the next two.
      head: of the network.
      pooling: of the network.
      widths: None: 1.0 on accelerators, 0.25 on CPUs.
      dtypes: None: bfloat16 and float32 on accelerators, float32 on CPUs.
      batch_sizes: over all devices; None: 128 on accelerators, 16 on CPUs.
      plan: how long to measure; None: its defaults.
      sides: of the matrices of `product_ceiling.ceiling`; None: its own.

    Returns:
      What is in the file: `rows` as of `measure`, `ceilings` by dtype, `devices` their number, and
      `memory_limit` of a device in bytes (None where it is unknown).

    Raises:
      UserError: there is no such network, a batch cannot be shared by the devices, or the file cannot be
        written.
    """
    path, plan = machine.prepare(out), plan or Plan()
    on_cpu = jax.default_backend() == "cpu"
    widths = widths or [0.25 if on_cpu else 1.0]
    dtypes = dtypes or (["float32"] if on_cpu else ["bfloat16", "float32"])
    batch_sizes = batch_sizes or [16 if on_cpu else 128]
    configs = [
        network_config(backbone, head, pooling, width, dtype, size)
        for dtype, width, size in itertools.product(dtypes, widths, batch_sizes)
    ]
    for config in configs:  # complains before anything is measured
        training_step.job(config)
        devices.per_device(config.train.batch_size, "--batch_size")
    log.info("%s", devices.describe())
    record: dict[str, Any] = {
        **machine.header("benchmarks.throughput", PACKAGES),
        "device": devices.describe(),
        "devices": jax.device_count(),
        "memory_limit": memory.limit(),
        "plan": dataclasses.asdict(plan),
        "ceilings": {dtype: product_ceiling.ceiling(dtype, sides) for dtype in dtypes},
        "rows": [],
    }
    for config in configs:
        ceiling = 1e12 * record["ceilings"][config.model.dtype]["tflops_per_second"]
        row = measure(config, ceiling, plan)
        record["rows"].append(row)
        machine.write(record, path)
        log.info(
            "width %g, %s, batch %d: %.0f images/s in training",
            row["width"],
            row["dtype"],
            row["batch_size"],
            row["training"]["images_per_second"]["median"],
        )
    print(table(record))
    log.info("results: %s", path)
    return record


def table(record: dict[str, Any]) -> str:
    """The results of `run`, as text."""
    rows = record["rows"]
    lines = [f"{rows[0][key]} {key}" for key in ("backbone", "head", "pooling")]
    lines = [", ".join(lines) + f"; {record['device']}"]
    for dtype, ceiling in record["ceilings"].items():
        rounding = f", factors rounded to {ceiling['precision']}" if "precision" in ceiling else ""
        lines.append(
            f"fastest {dtype} product: {ceiling['tflops_per_second']:.3g} TFLOP/s (side {ceiling['side']}, "
            f"precision {ceiling['precision_setting']}{rounding})"
        )
    lines.append(
        f"{'width':>6} {'dtype':<9}{'batch':>6}{'images/s':>11} {'min to max':>17}{'GFLOP/image':>13}"
        f"{'TFLOP/s':>9}{'share':>7}{'evaluation/s':>14}{'memory GB':>11}"
    )
    for row in rows:
        own, usage = row["training"], row["memory"]
        rate = own["images_per_second"]
        lines.append(
            f"{row['width']:>6g} {row['dtype']:<9}{row['batch_size']:>6}{rate['median']:>11,.1f} "
            f"{rate['min']:>8,.1f}{rate['max']:>9,.1f}{own['flop_per_image'] / 1e9:>13.3f}"
            f"{own['tflops_per_second']:>9.3g}{own['ceiling_share']:>7.1%}"
            f"{row['evaluation']['images_per_second']['median']:>14,.1f}"
            f"{'?' if usage is None else f'{sum(usage.values()) / 1e9:.2f}':>11}"
        )
    return "\n".join(lines)


def _evaluation(
    job: training_step.Job, variables: Any, flop: float, ceiling: float, plan: Plan
) -> dict[str, Any]:
    size = job.options.train.batch_size
    step, batch = training_step.evaluation(job)

    def steps(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            jax.block_until_ready(step(variables, batch))
        return time.perf_counter() - began

    first = steps(1)
    steps(plan.warmup)
    seconds = [steps(plan.steps) / plan.steps for _ in range(plan.repeats)]
    compile_time = max(0.0, first - machine.spread(seconds)["median"])
    return {**_rates(seconds, size, flop, ceiling), "compile_seconds": compile_time}


def _rates(seconds: Sequence[float], size: int, flop: float, ceiling: float) -> dict[str, Any]:
    """Of repeats with so many seconds a step."""
    rate = machine.spread([size / each for each in seconds])
    flop_rate = flop * rate["median"]
    return {
        "images_per_second": rate,
        "flop_per_image": flop,
        "tflops_per_second": flop_rate / 1e12,
        "ceiling_share": flop_rate / (ceiling * jax.device_count()),
    }


def main() -> None:
    """The command; see the flags."""
    values = flags.FLAGS
    run(
        values.out,
        backbone=values.backbone,
        head=values.head,
        pooling=values.pooling,
        widths=values.width and flag_values.parse_numbers("width", values.width, float),
        dtypes=values.dtype,
        batch_sizes=values.batch_size
        and flag_values.parse_numbers("batch_size", values.batch_size, int),
        plan=Plan(values.warmup, values.steps, values.repeats),
    )


if __name__ == "__main__":
    # Not where tests import several benchmarks, whose flags have the same names.
    flags.DEFINE_string("out", None, "file for the results (JSON)", required=True)
    flags.DEFINE_enum("backbone", "resnet18", models.BACKBONES, "of the network")
    flags.DEFINE_enum("head", "conv", models.HEADS, "of the network")
    flags.DEFINE_enum("pooling", "loss_attention", models.POOLINGS, "of the network")
    flags.DEFINE_list("width", None, "of the network; default: 1.0 on accelerators, 0.25 on CPUs")
    flags.DEFINE_list(
        "dtype",
        None,
        "default: bfloat16,float32 on accelerators, float32 on CPUs (bfloat16 is slow)",
    )
    flags.DEFINE_list(
        "batch_size", None, "over all devices; default: 128 on accelerators, 16 on CPUs"
    )
    flags.DEFINE_integer("warmup", 3, "steps that are not timed", lower_bound=1)
    flags.DEFINE_integer("steps", 10, "of each timed repeat", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "timed, each with a rate of its own", lower_bound=1)
    command.run(main)

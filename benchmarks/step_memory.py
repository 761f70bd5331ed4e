"""Memory of a training step, by XLA's analysis of the program.

Nothing is run.

    python -m benchmarks.step_memory --batch_size=128 --out=results/benchmarks/step_memory_cpu.json

For the paper's networks at full width: plain, with rematerialisation, and with the batch in four parts
besides.
"""

from typing import Any

from absl import flags
from ml_collections import ConfigDict

from benchmarks import machine, training_step
from lossattn_jax import devices
from lossattn_jax.commands import command
from lossattn_jax.config.images import default_config
from lossattn_jax.errors import UserError

NETWORKS = tuple((b, h) for b in ("resnet18", "vgg11_bn") for h in ("conv", "capsule"))
SAVINGS: tuple[dict[str, Any], ...] = ({}, {"remat": True}, {"remat": True, "accumulate": 4})


def step_memory(config: ConfigDict) -> dict[str, int]:
    """Bytes that a training step takes on each device.

    Args:
      config: of a run; its data need not be there.

    Returns:
      `state`: parameters, statistics, optimiser and the batch; `temporary`: what the step needs besides.

    Raises:
      UserError: the devices' compiler does not tell.
    """
    job = training_step.job(config)
    usage = training_step.step_memory(job, training_step.shapes(job))
    if usage is None:
        raise UserError(f"XLA tells nothing of a program's memory on {devices.describe()}")
    return usage


def measure(batch_size: int, width: float = 1.0) -> list[dict[str, Any]]:
    """`step_memory` of `NETWORKS` with each of `SAVINGS`."""
    rows = []
    for backbone, head in NETWORKS:
        for saving in SAVINGS:
            config = default_config()
            config.model.update(backbone=backbone, head=head, width=width)
            config.train.update(batch_size=batch_size, **saving)
            row = {"backbone": backbone, "head": head, **saving, **step_memory(config)}
            print(row, flush=True)
            rows.append(row)
    return rows


def main() -> None:
    """The command; see the flags."""
    values = flags.FLAGS
    path = machine.prepare(values.out)
    record = {
        **machine.header("benchmarks.step_memory", ("jax", "jaxlib")),
        "batch_size": values.batch_size,
        "devices": devices.describe(),
        "rows": measure(values.batch_size),
    }
    machine.write(record, path)


if __name__ == "__main__":
    flags.DEFINE_integer("batch_size", 128, "images over all devices", lower_bound=1)
    flags.DEFINE_string("out", None, "JSON file to write", required=True)
    command.run(main)

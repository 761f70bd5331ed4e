"""An estimate of training on many devices from one device's step.

    python -m benchmarks.throughput --out=one.json
    python -m benchmarks.scaling --steps=one.json --link=50e9 --latency=10e-6 --out=scaling.json

Nothing is run here: `docs/pods.md` has the formula and what it leaves out.
"""

import dataclasses
import json
import logging
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from benchmarks import flag_values, machine, step_memory, throughput, training_step
from lossattn_jax import devices
from lossattn_jax.commands import command
from lossattn_jax.errors import UserError

# Below the package's logger, which is the one that commands show.
log = logging.getLogger("lossattn_jax.benchmarks")

USEFUL = 0.8  # efficiency below which more devices are not worth it
_MOST_DEVICES = 2**20  # that are looked at
_BYTES = 4  # of a gradient: float32 with every compute dtype


@dataclasses.dataclass(frozen=True)
class Link:
    """What connects the devices.

    Attributes:
      bandwidth: bytes a second of the slowest link of the ring, in one direction.
      latency: seconds of a message.
    """

    bandwidth: float
    latency: float


@dataclasses.dataclass(frozen=True)
class Network:
    """What the estimate has to know of a network's training.

    Attributes:
      seconds: of a step of one device, measured.
      batch: images of a device in that step.
      gradient_bytes: that are summed over the devices in each step.
      normalisations: layers whose batch statistics are shared over the devices.
    """

    seconds: float
    batch: int
    gradient_bytes: int
    normalisations: int


def gradient_seconds(network: Network, link: Link, count: int) -> float:
    """Seconds of summing all gradients over a ring of `count` devices.

    Each device sends its parts on twice.
    """
    hops = 2 * (count - 1)
    return hops / count * network.gradient_bytes / link.bandwidth + hops * link.latency


def statistics_seconds(network: Network, link: Link, count: int) -> float:
    """Of the shared batch statistics on `count` devices.

    Each normalisation waits for a sum of a few kilobytes in the forward and in the backward pass, which goes
    up a binary tree and down again: only the latency counts.
    """
    return network.normalisations * 2 * 2 * math.ceil(math.log2(count)) * link.latency


def estimate(network: Network, link: Link, count: int) -> dict[str, float]:
    """Estimates a step on `count` devices, each with the measured batch.

    Returns:
      `devices`; `seconds` of a step, and of it those for `gradients` and `statistics`; `images_per_second`
      over all devices; `efficiency`, their share of `count` times the images of one device.
    """
    gradients = gradient_seconds(network, link, count)
    statistics = statistics_seconds(network, link, count)
    seconds = network.seconds + gradients + statistics
    return {
        "devices": count,
        "gradients": gradients,
        "statistics": statistics,
        "seconds": seconds,
        "images_per_second": count * network.batch / seconds,
        "efficiency": network.seconds / seconds,
    }


def most_useful(network: Network, link: Link, efficiency: float = USEFUL) -> int | None:
    """The most devices that reach an efficiency; None: over a million."""

    def reaches(count: int) -> bool:
        return estimate(network, link, count)["efficiency"] >= efficiency

    if reaches(_MOST_DEVICES):
        return None
    low, high = 1, _MOST_DEVICES  # one device always reaches it, and more devices never help
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if reaches(middle) else (low, middle)
    return low


def largest_batch(points: Sequence[tuple[int, int]], limit: float) -> int:
    """How many images fit into a device's memory.

    Args:
      points: two of (images, bytes).
      limit: bytes of a device.

    Returns:
      0 where not even the parameters fit.
    """
    (few, low), (many, high) = points
    slope = (high - low) / (many - few)
    return max(0, math.floor((limit - (low - slope * few)) / slope))


def describe(row: dict[str, Any]) -> Network:
    """Describes a row of `benchmarks.throughput`, measured on one device."""
    config = throughput.row_config(row)
    job = training_step.job(config)
    state = training_step.state_shapes(job)
    return Network(
        seconds=row["seconds_per_step"]["median"],
        batch=row["batch_size"],
        gradient_bytes=_BYTES * sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        # A mean and a variance of each.
        normalisations=len(jax.tree.leaves(state.batch_stats)) // 2
        if config.model.batch_norm == "cross_replica"
        else 0,
    )


def memory_points(config: ConfigDict) -> list[tuple[int, int]]:
    """Bytes of a device for two numbers of images, by XLA's analysis.

    Each is (images, bytes).

    Raises:
      UserError: XLA does not tell.
    """
    images = max(1, config.train.batch_size // 2)
    points = []
    for each in (images, 2 * images):
        config.train.batch_size = each * jax.device_count()
        points.append((each, sum(step_memory.step_memory(config).values())))
    return points


def run(
    steps: str,
    link: Link,
    counts: Sequence[int] = (1, 2, 4, 8, 16, 64, 256),
    out: str | None = None,
    memory: float | None = None,
) -> dict[str, Any]:
    """Estimates each network of a file of `benchmarks.throughput`, and prints tables.

    Args:
      steps: that file, of one device.
      link: between the devices.
      counts: numbers of devices.
      out: JSON file for the results; None: none is written.
      memory: bytes of a device; None: what the measured device has.

    Returns:
      What is in the file: for each of `rows` the `network` and its `measured` facts, `estimates` as of
      `estimate`, `useful` (the highest number of devices with an efficiency of 0.8, and their global batch),
      and `memory` (the bytes of two batches by XLA on `memory_device`, and the largest batch of a device).

    Raises:
      UserError: the file is not one of throughput's, or of several devices, or cannot be read or written.
    """
    source = _read(steps)
    numbers = {"link": link.bandwidth, "latency": link.latency, "memory": memory or 0.0}
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise UserError(f"--{name} is {value}, but must be a finite number")
    path = None if out is None else machine.prepare(out)
    log.info("%s", devices.describe())
    limit = memory or source["memory_limit"]
    if limit is None:
        raise UserError(f"{steps} does not say how much memory a device has: --memory has to")
    rows = []
    for row in source["rows"]:
        network = describe(row)
        points = memory_points(throughput.row_config(row))
        most = most_useful(network, link)
        rows.append(
            {
                "measured": {key: row[key] for key in throughput.NETWORK},
                "network": dataclasses.asdict(network),
                "estimates": [estimate(network, link, count) for count in counts],
                "useful": {"devices": most, "global_batch": most and most * network.batch},
                "memory": {"points": points, "largest_batch": largest_batch(points, limit)},
            }
        )
    record = {
        **machine.header("benchmarks.scaling", throughput.PACKAGES),
        "steps": steps,
        "steps_command": source["command"],
        "steps_machine": source["machine"],
        "steps_device": source["device"],
        "link": dataclasses.asdict(link),
        "memory_device": devices.describe(),
        "memory_limit": limit,
        "rows": rows,
    }
    if path is not None:
        machine.write(record, path)
        log.info("results: %s", path)
    print(table(record))
    return record


def table(record: dict[str, Any]) -> str:
    """The results of `run`, as text."""
    link, limit = record["link"], record["memory_limit"]
    lines = [
        f"one step measured on {record['steps_device']}; the rest is an estimate for a link of "
        f"{link['bandwidth'] / 1e9:g} GB/s and {1e6 * link['latency']:g} us"
    ]
    for row in record["rows"]:
        network, useful = row["network"], row["useful"]
        lines += [
            "",
            f"{', '.join(f'{key} {value}' for key, value in row['measured'].items())}, {network['batch']} "
            f"images per device: {1e3 * network['seconds']:.2f} ms a step, "
            f"{network['gradient_bytes'] / 1e6:.1f} MB of gradients, {network['normalisations']} "
            "normalisations",
            f"{'devices':>8}{'ms a step':>12}{'gradients':>11}{'statistics':>12}{'images/s':>13}"
            f"{'efficiency':>12}",
        ]
        for each in row["estimates"]:
            lines.append(
                f"{each['devices']:>8}{1e3 * each['seconds']:>12.2f}{1e3 * each['gradients']:>11.2f}"
                f"{1e3 * each['statistics']:>12.2f}{each['images_per_second']:>13,.0f}"
                f"{each['efficiency']:>12.1%}"
            )
        if useful["devices"] is None:
            lines.append(
                f"an efficiency of {USEFUL:.0%} has no limit up to {_MOST_DEVICES:,} devices"
            )
        else:
            lines.append(
                f"{USEFUL:.0%} up to {useful['devices']:,} devices, a global batch of "
                f"{useful['global_batch']:,}"
            )
        lines.append(
            f"{limit / 1e9:.1f} GB hold {row['memory']['largest_batch']:,} images of a device, by XLA's "
            f"analysis for {record['memory_device']}"
        )
    return "\n".join(lines)


def _read(path: str) -> dict[str, Any]:
    try:
        record = json.loads(pathlib.Path(path).read_text())
        several, rows = record["devices"], record["rows"]
        rows[0]["seconds_per_step"]["median"]
    except OSError as error:
        raise UserError(f"--steps is {path}, which cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise UserError(
            f"--steps is {path}, but must be a file of python -m benchmarks.throughput"
        ) from None
    if several != 1:
        raise UserError(f"--steps is {path}, measured on {several} devices, but must be of one")
    return record


def main() -> None:
    """The command; see the flags."""
    values = flags.FLAGS
    run(
        values.steps,
        Link(values.link, values.latency),
        flag_values.parse_numbers("devices", values.devices, int),
        values.out,
        values.memory,
    )


if __name__ == "__main__":
    # Not where tests import several benchmarks, whose flags have the same names.
    flags.DEFINE_string(
        "steps", None, "file of benchmarks.throughput, of one device", required=True
    )
    flags.DEFINE_float("link", None, "bytes a second, in one direction", 1.0, required=True)
    flags.DEFINE_float("latency", None, "seconds of a message", 0.0, required=True)
    flags.DEFINE_list("devices", ["1", "2", "4", "8", "16", "64", "256"], "numbers of devices")
    flags.DEFINE_float("memory", None, "bytes of a device; default: those of the measured one", 1.0)
    flags.DEFINE_string("out", None, "file for the results (JSON); default: none")
    command.run(main)

"""Images a second that the host delivers to the devices.

    python -m benchmarks.input_rate --out=results/benchmarks/input_cpu.json
    python -m benchmarks.input_rate --out=... --data_dir=data --dataset=digit_scenes

The first needs no data set: 50,000 random 32x32 images in memory go through the batches, the prefetching
thread and the transfer of training. The second also streams a prepared data set, decoding its images.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import flag_values, machine
from lossattn_jax import data, devices
from lossattn_jax.commands import command
from lossattn_jax.config.options import DataOptions

# Below the package's logger, which is the one that commands show.
log = logging.getLogger("lossattn_jax.benchmarks")

TARGET = 200_000  # images a second that the host should deliver, so that no device waits
PACKAGES = ("jax", "jaxlib", "numpy", "grain", "pillow")
# Batches that are read ahead, by grain's threads and the prefetching one, may be ready when the clock
# starts: so many are taken before, and so many at least while it runs.
_BEFORE, _LEAST = 8, 32

# Its name, what measures it, what opens its batches, and the images of a repeat.
_Way = tuple[str, Callable[[Iterator[Any], int, int], float], Callable[..., Iterator[Any]], int]


def random_dataset(count: int = 50_000, seed: int = 0) -> data.ArrayDataset:
    """A training split of random uint8 images `[count, 32, 32, 3]`."""
    spec, random = data.get_spec("cifar10"), np.random.default_rng(seed)
    images = random.integers(0, 256, (count, *spec.image_shape), np.uint8)
    return data.ArrayDataset(
        spec, "train", images, random.integers(0, spec.num_classes, count, np.int32)
    )


def host_rate(batches: Iterator[Any], batch_size: int, images: int) -> float:
    """Images a second of batches that nobody moves.

    Args:
      batches: without end; a few are taken before the clock starts.
      batch_size: of each.
      images: to take, rounded up to whole batches; 32 batches at least.
    """
    for _ in range(_BEFORE):
        next(batches)
    count = max(_LEAST, -(-images // batch_size))
    began = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * batch_size / (time.perf_counter() - began)


def device_rate(batches: Iterator[Any], batch_size: int, images: int) -> float:
    """Images a second that come to the devices, batch by batch.

    The consumer waits until each batch is there, and does nothing with it; see `host_rate`.
    """

    def wait_for(shards: Iterator[Any]) -> Iterator[Any]:
        for batch in shards:
            yield jax.block_until_ready(batch)

    with data.prefetch(batches, lambda batch: devices.shard_steps([batch])) as shards:
        return host_rate(wait_for(shards), batch_size, images)


def run(
    out: str,
    *,
    batch_sizes: Sequence[int] = (128, 1024),
    images: int = 400_000,
    repeats: int = 5,
    examples: int = 50_000,
    data_dir: str | None = None,
    dataset: str = "digit_scenes",
    stream_images: int = 10_000,
) -> dict[str, Any]:
    """Measures each way and batch size, writes and prints the results.

    Args:
      out: JSON file for the results.
      batch_sizes: images of a batch, each a multiple of the number of devices.
      images: of each timed repeat.
      repeats: timed repeats of each.
      examples: random images in memory.
      data_dir: folder of a prepared data set to stream as well; None: none is.
      dataset: that data set.
      stream_images: of each timed repeat of streaming.

    Returns:
      What is in the file. `rows` has the images a second of each way and batch size: "host" batches gathered
      in memory, "devices" the same prefetched and sent, "indices" what is sent where the images lie on the
      devices, "stream" batches decoded from disk and sent. `copy_gbytes_per_second` is what a core reads and
      writes of arrays as large as the images, and `copy_bound` the images a second that it could copy once.

    Raises:
      UserError: the data set is not there, a batch cannot be shared by the devices, or the file cannot be
        written.
    """
    path = machine.prepare(out)
    log.info("%s", devices.describe())
    for batch_size in batch_sizes:
        devices.per_device(batch_size, "--batch_sizes")
    memory = random_dataset(examples)
    stream_set = None
    if data_dir is not None:
        spec = data.make_spec(DataOptions(name=dataset, dir=data_dir, mode="stream"))
        stream_set = data.open_dataset(spec, "train", data_dir, mode="stream")
    bandwidth = machine.copy_bandwidth(2 * memory.images.nbytes)
    record: dict[str, Any] = {
        **machine.header("benchmarks.input_rate", PACKAGES),
        "device": devices.describe(),
        "target": TARGET,
        "image_bytes": memory.images[0].nbytes,
        "copy_gbytes_per_second": bandwidth / 1e9,
        "copy_bound": bandwidth / (2 * memory.images[0].nbytes),
        "streamed": None if stream_set is None else dataset,
        "rows": [],
    }
    ways: list[_Way] = [
        ("host", host_rate, memory.train_batches, images),
        ("devices", device_rate, memory.train_batches, images),
        ("indices", device_rate, functools.partial(memory.train_batches, places_only=True), images),
    ]
    if stream_set is not None:
        ways.append(("stream", device_rate, stream_set.train_batches, stream_images))
    for batch_size in batch_sizes:
        for way, rate, open_batches, count in ways:
            rates_of_ways = [
                rate(open_batches(batch_size=batch_size, seed=0), batch_size, count)
                for _ in range(repeats)
            ]
            rates = machine.spread(rates_of_ways)
            record["rows"].append(
                {"way": way, "batch_size": batch_size, "images_per_second": rates}
            )
            machine.write(record, path)
            log.info("%s, batches of %d: %.0f images/s", way, batch_size, rates["median"])
    print(table(record))
    log.info("results: %s", path)
    return record


def table(record: dict[str, Any]) -> str:
    """The results of `run`, as text."""
    lines = [f"{'way':<10}{'batch':>7}{'images/s':>14}   min to max"]
    for row in record["rows"]:
        rates = row["images_per_second"]
        lines.append(
            f"{row['way']:<10}{row['batch_size']:>7}{rates['median']:>14,.0f}"
            f"   {rates['min']:,.0f} to {rates['max']:,.0f}"
        )
    lines.append(
        f"a core copies {record['copy_gbytes_per_second']:.1f} GB/s (read and written), "
        f"{record['copy_bound']:,.0f} images/s; the target is {record['target']:,} images/s"
    )
    return "\n".join(lines)


def main() -> None:
    """The command; see the flags."""
    arguments = flag_values.arguments(run)
    arguments["batch_sizes"] = flag_values.parse_numbers(
        "batch_sizes", arguments["batch_sizes"], int
    )
    run(**arguments)


if __name__ == "__main__":
    # Not where tests import several benchmarks, whose flags have the same names.
    flags.DEFINE_string("out", None, "file for the results (JSON)", required=True)
    flags.DEFINE_list("batch_sizes", ["128", "1024"], "images of a batch, over all devices")
    flags.DEFINE_integer("images", 400_000, "of each timed repeat", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "timed repeats of each", lower_bound=1)
    flags.DEFINE_string("data_dir", None, "folder of a prepared data set, to stream it as well")
    flags.DEFINE_enum("dataset", "digit_scenes", sorted(data.DATASETS), "the one to stream")
    flags.DEFINE_integer("stream_images", 10_000, "of each timed repeat of it", lower_bound=1)
    command.run(main)

"""Images a second from JPEG files, beside PyTorch's DataLoader with torchvision's transforms.

    python -m benchmarks.image_files --out=results/benchmarks/image_files_cpu.json

Both read the same files of 500x375 pixels, made on the spot, for a network of 224x224, in pairs of one
after the other: ours in a process of its own as a training streams them, PyTorch's with a worker for each
core. Needs torch and torchvision.
"""

import functools
import io
import itertools
import logging
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from PIL import Image

from benchmarks import flag_values, input_rate, machine
from benchmarks.subprocess_worker import SubprocessWorker
from lossattn_jax import data
from lossattn_jax.commands import command
from lossattn_jax.config.options import DataOptions
from lossattn_jax.kernels import cpu

log = logging.getLogger("lossattn_jax.benchmarks")

TARGET = 1.0  # times PyTorch's images a second
PACKAGES = ("jax", "jaxlib", "numpy", "grain", "pillow", "torch", "torchvision")
SIZE = (375, 500)  # of the files' pictures, height and width
_SIDE = 224  # of the network's
_CLASSES = ("one", "two")


def write_files(root: pathlib.Path, count: int, seed: int = 0) -> float:
    """Writes JPEG files of pictures with detail at every scale; returns their mean size in bytes."""
    draw = np.random.default_rng(seed)
    sizes = []
    for number in range(count):
        picture = np.zeros((*SIZE, 3), np.float32)
        for side in (4, 16, 64, 256):
            noise = draw.integers(0, 256, (side, side, 3)).astype(np.uint8)
            blots = Image.fromarray(noise).resize(SIZE[::-1], Image.Resampling.BICUBIC)
            picture += np.asarray(blots, np.float32) / 4
        content = io.BytesIO()
        Image.fromarray(picture.astype(np.uint8)).save(content, "JPEG", quality=90)
        split = "test" if number % 8 < len(_CLASSES) else "train"
        folder = root / split / _CLASSES[number % len(_CLASSES)]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(content.getvalue())
        sizes.append(len(content.getvalue()))
    return float(np.mean(sizes))


class OurBatches:
    """Batches as a streamed training and a streamed test have them."""

    def __init__(self, root: str, batch_size: int, threads: int):
        self._batch_size = batch_size
        options = DataOptions(name="folder", dir=root, mode="stream")
        self._spec = data.make_spec(options)
        self._split = data.open_dataset(self._spec, "train", root, "stream", threads)

    def rate(self, way: str, images: int) -> float:
        """Images a second of "train", "train_on_device" (also cropped and normalised) or "test"."""
        ways = {
            "train": self._train,
            "train_on_device": self._augmented,
            "test": lambda: _endless(self._split.eval_batches, self._batch_size),
        }
        batches = ways[way]()
        try:
            return input_rate.host_rate(batches, self._batch_size, images)
        finally:
            batches.close()

    def seconds_of_crop(self) -> float:
        """Seconds that random parts, mirroring and normalisation of a batch take on the device."""
        batch = next(self._train())
        images, key = jax.device_put(batch["image"]), jax.random.key(0)
        augment = self._augment()
        return machine.seconds_per_call(lambda: jax.block_until_ready(augment(key, images)))

    def _train(self) -> Any:
        return self._split.train_batches(batch_size=self._batch_size, seed=0)

    def _augment(self) -> Any:
        spec = self._spec
        return jax.jit(
            functools.partial(
                data.augment,
                spec_flip=True,
                mean=spec.mean,
                std=spec.std,
                size=spec.image_shape[:2],
            )
        )

    def _augmented(self) -> Iterator[Any]:
        augment, batches = self._augment(), self._train()
        try:
            for number in itertools.count():
                key = jax.random.fold_in(jax.random.key(0), number)
                yield jax.block_until_ready(augment(key, next(batches)["image"]))
        finally:
            batches.close()


class TorchBatches:
    """Batches of PyTorch's DataLoader with torchvision's usual transforms."""

    def __init__(self, root: str, batch_size: int, workers: int):
        self._root, self._batch_size, self._workers = root, batch_size, workers

    def rate(self, way: str, images: int) -> float:
        """Images a second of "train" or "test"; see `OurBatches.rate`."""
        from torch.utils.data import DataLoader, RandomSampler
        from torchvision import datasets, transforms

        crops = {
            "train": [transforms.RandomResizedCrop(_SIDE), transforms.RandomHorizontalFlip()],
            "test": [transforms.Resize(256), transforms.CenterCrop(_SIDE)],
        }
        normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        steps = [*crops[way], transforms.ToTensor(), normalise]
        files = datasets.ImageFolder(f"{self._root}/train", transforms.Compose(steps))
        endless = RandomSampler(files, replacement=True, num_samples=10**7)
        loader = DataLoader(
            files, self._batch_size, sampler=endless, num_workers=self._workers, drop_last=True
        )
        return input_rate.host_rate(iter(loader), self._batch_size, images)


def _endless(open_batches: Any, batch_size: int) -> Iterator[Any]:
    while True:
        yield from open_batches(batch_size=batch_size)


def run(
    out: str, *, files: int = 512, batch_size: int = 32, images: int = 1024, repeats: int = 7
) -> dict[str, Any]:
    """Measures all ways in turn, so that what else the machine does meets them alike.

    Args:
      out: JSON file for the results.
      files: JPEG files to make.
      batch_size: images of a batch.
      images: of each timed repeat.
      repeats: of each way.

    Returns:
      What is in the file: of each way the images a second of both, and the ratios of each pair.

    Raises:
      UserError: the file cannot be written.
    """
    path = machine.prepare(out)
    record = machine.header("benchmarks.image_files", PACKAGES)
    cores = cpu.cores()
    with tempfile.TemporaryDirectory() as root:
        record |= {"file_bytes": write_files(pathlib.Path(root), files), "pixels": list(SIZE)}
        record |= {"target": TARGET, "batch_size": batch_size, "workers": cores, "rows": []}
        with (
            SubprocessWorker(OurBatches, root, batch_size, 2 * cores) as ours,
            SubprocessWorker(TorchBatches, root, batch_size, cores) as theirs,
        ):
            record["crop_seconds_per_image"] = ours.call("seconds_of_crop") / batch_size
            pairs = {"train": "train", "train_on_device": "train", "test": "test"}
            rates: dict[str, list[tuple[float, float]]] = {way: [] for way in pairs}
            for repeat in range(repeats):
                for way, their_way in pairs.items():
                    rates[way].append(_measure_pair(ours, theirs, (way, their_way), images, repeat))
                    log.info("%s: ours %.0f, PyTorch %.0f images/s", way, *rates[way][-1])
            for way, of_way in rates.items():
                own, other = zip(*of_way, strict=True)
                record["rows"].append(
                    {
                        "way": way,
                        "ours": machine.spread(own),
                        "torch": machine.spread(other),
                        "ratio": machine.spread([a / b for a, b in of_way]),
                    }
                )
    machine.write(record, path)
    print(table(record))
    return record


def _measure_pair(
    ours: SubprocessWorker,
    theirs: SubprocessWorker,
    ways: tuple[str, str],
    images: int,
    repeat: int,
) -> tuple[float, float]:
    """Images a second of both, PyTorch first in every second repeat."""
    calls = [
        lambda: ours.call("rate", ways[0], images),
        lambda: theirs.call("rate", ways[1], images),
    ]
    order = (0, 1) if repeat % 2 == 0 else (1, 0)
    measured = {side: calls[side]() for side in order}
    return measured[0], measured[1]


def table(record: dict[str, Any]) -> str:
    """The results of `run`, as text."""
    lines = [f"{'way':<17}{'ours':>8}{'PyTorch':>9}{'ratio':>7}   min to max"]
    for row in record["rows"]:
        ratio = row["ratio"]
        lines.append(
            f"{row['way']:<17}{row['ours']['median']:>8,.0f}{row['torch']['median']:>9,.0f}"
            f"{ratio['median']:>7.2f}   {ratio['min']:.2f} to {ratio['max']:.2f}"
        )
    milliseconds = 1e3 * record["crop_seconds_per_image"]
    lines.append(
        f"images a second, {record['workers']} cores; random parts take {milliseconds:.2f} ms an image"
    )
    return "\n".join(lines)


def main() -> None:
    """The command; see the flags."""
    run(**flag_values.arguments(run))


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "file for the results (JSON)", required=True)
    flags.DEFINE_integer("files", 512, "JPEG files to make", lower_bound=16)
    flags.DEFINE_integer("batch_size", 32, "images of a batch", lower_bound=1)
    flags.DEFINE_integer("images", 1024, "of each timed repeat", lower_bound=1)
    flags.DEFINE_integer("repeats", 7, "timed repeats of each way", lower_bound=1)
    command.run(main)

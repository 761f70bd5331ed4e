"""Time and memory of large bags, beside a plain PyTorch loop.

    python -m benchmarks.large_bags --out=results/benchmarks/large_bags_cpu.json

Bags of 3,000 to 8,000 instances of 1,024 normal numbers. Each measurement is a process of its own, whose
largest memory the kernel keeps; what it has before the bags come into being does not count.
"""

import importlib.util
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import h5py
import numpy as np
from absl import app, flags

from benchmarks import machine
from benchmarks.subprocess_worker import SubprocessWorker
from lossattn_jax.errors import UserError

BAGS = flags.DEFINE_integer("bags", 24, "in memory")
EPOCHS = flags.DEFINE_integer("epochs", 10, "of the training in memory")
FILES = flags.DEFINE_list(
    "files", ["50", "200"], "numbers of bags in files, to train two epochs on"
)
LONG = flags.DEFINE_list("long", ["20000", "100000"], "instances of one bag to predict for")
MEMORY = flags.DEFINE_float("memory", 2.0, "GiB that bags in files may take")
REPEATS = flags.DEFINE_integer("repeats", 3, "of the training in memory, in turns")
OUT = flags.DEFINE_string("out", None, "file for the record (JSON)", required=True)

FEATURES = 1024


def resident_bytes() -> int:
    """Memory of this process, by Linux."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def draw_bags(count: int, dtype: Any) -> Iterator[np.ndarray]:
    """Draws bags `[n, 1024]`, n from 3,000 to 8,000; the same for each number of them."""
    random = np.random.default_rng(0)
    for length in random.integers(3000, 8001, count):
        yield random.standard_normal((length, FEATURES), np.float32).astype(dtype)


class JaxBags:
    """Trains and predicts with this package, from its Python interface."""

    def __init__(self) -> None:
        """Imports what is not to be measured."""
        import jax

        jax.numpy.zeros(1).block_until_ready()

    def train(self, count: int, epochs: int) -> dict[str, Any]:
        """Trains loss attention on bags in memory."""
        from lossattn_jax.mil.network_classifier import NetworkClassifier
        from lossattn_jax.train.bags.settings import Settings

        method = NetworkClassifier(settings=Settings(epochs=epochs))
        measured = _train_in_memory(count, lambda bags: method.fit(bags, np.arange(count) % 2))
        return {**measured, **_waits(method)}

    def train_files(self, folder: str, epochs: int, gib: float) -> dict[str, Any]:
        """Trains loss attention on bags in files."""
        from lossattn_jax.data.bags.bag_folder import open_bags
        from lossattn_jax.mil.network_classifier import NetworkClassifier
        from lossattn_jax.train.bags.settings import Settings

        method = NetworkClassifier(settings=Settings(epochs=epochs), memory_gib=gib)
        bags = open_bags(folder)
        before, began = resident_bytes(), time.monotonic()
        peak = machine.peak_memory(lambda: method.fit(bags, np.arange(len(bags)) % 2))
        return {
            "seconds": time.monotonic() - began,
            "stored_bytes": int(bags.lengths.sum()) * FEATURES * 2,
            "peak_bytes": peak,
            "peak_beyond_start_bytes": peak - before,
            **_waits(method),
        }

    def predict(self, length: int) -> dict[str, Any]:
        """Predicts for one long bag in memory, after a fit on short ones."""
        from lossattn_jax.data.bags.lazy_bags import Bags
        from lossattn_jax.mil.network_classifier import NetworkClassifier
        from lossattn_jax.train.bags.settings import Settings

        random = np.random.default_rng(1)
        short = [random.standard_normal((9, FEATURES), np.float32) for _ in range(4)]
        method = NetworkClassifier(settings=Settings(epochs=1)).fit(short, [0, 1, 0, 1])
        bags = Bags.from_arrays([random.standard_normal((length, FEATURES), np.float32)])
        predictions: list[Any] = []
        before, began = resident_bytes(), time.monotonic()
        peak = machine.peak_memory(lambda: predictions.extend(method.predict_bags(bags)))
        seconds = time.monotonic() - began
        assert predictions[0].attention.shape == (length,)
        return {"seconds": seconds, "peak_beyond_bag_bytes": peak - before}


def _waits(method: Any) -> dict[str, Any]:
    """Computes the share of each epoch's time that a network waited for bags."""
    seconds, waiting = (
        np.asarray(getattr(method.networks_, name)) for name in ("epoch_seconds", "waiting_seconds")
    )
    return {
        "epoch_seconds": seconds.tolist(),
        "waiting_share": (waiting / seconds).tolist(),
        "waiting_share_after_first_epoch": float(waiting[1:].sum() / seconds[1:].sum()),
    }


class TorchBags:
    """Trains the same network with PyTorch, one bag after the other."""

    def __init__(self) -> None:
        """Imports what is not to be measured."""
        import torch

        torch.zeros(1)

    def train(self, count: int, epochs: int) -> dict[str, Any]:
        """Trains loss attention on bags in memory, standardised when they are used."""
        import torch

        from benchmarks.torch_bags import LossAttention, Recipe, loss

        recipe = Recipe(FEATURES, 2, (256, 128, 64), 0.5, 1e-4, 5e-4, 0.1)

        def fit(bags: Sequence[np.ndarray]) -> None:
            tensors = [torch.from_numpy(bag) for bag in bags]
            total = sum(map(len, tensors))
            mean = sum(bag.double().sum(0) for bag in tensors) / total
            squares = sum((bag.double() - mean).square().sum(0) for bag in tensors)
            scale = (squares / total).sqrt().float()
            mean = mean.float()
            network = LossAttention(recipe)
            optimizer = torch.optim.Adam(
                network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
            )
            for _ in range(epochs):
                for row in np.random.permutation(count):
                    optimizer.zero_grad()
                    own = (tensors[row] - mean) / scale
                    label = torch.tensor(int(row) % 2)
                    loss(network, own, label, recipe.patch_weight).backward()
                    optimizer.step()

        return _train_in_memory(count, fit)


def _train_in_memory(count: int, fit: Callable[[Sequence[np.ndarray]], object]) -> dict[str, Any]:
    """Time of a fit from the call, and memory with the bags."""
    bags: list[np.ndarray] = []
    seconds: list[float] = []
    cpu_seconds: list[float] = []

    def run() -> None:
        bags.extend(draw_bags(count, np.float32))
        began, used = time.monotonic(), time.process_time()
        fit(bags)
        seconds.append(time.monotonic() - began)
        cpu_seconds.append(time.process_time() - used)

    before = resident_bytes()
    peak = machine.peak_memory(run)
    data = sum(bag.nbytes for bag in bags)
    return {
        "seconds": seconds[0],
        "cpu_seconds": cpu_seconds[0],
        "data_bytes": data,
        "peak_bytes": peak,
        "peak_by_data": (peak - before) / data,
    }


def _alone(make: Any, method: str, *arguments: Any) -> dict[str, Any]:
    """What a method measures in a process of its own."""
    with SubprocessWorker(make) as worker:
        result = worker.call(method, *arguments)
    print(make.__name__, method, *arguments, result, flush=True)
    return result


def measure_memory() -> dict[str, Any]:
    """The trainings of bags in memory, in turns."""
    systems = {"jax": JaxBags, "torch": TorchBags}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in systems}
    for _ in range(REPEATS.value):
        for name, make in systems.items():
            runs[name].append(_alone(make, "train", BAGS.value, EPOCHS.value))
    median = {
        name: {
            key: float(np.median([run[key] for run in own]))
            for key, value in own[0].items()
            if isinstance(value, (int, float))
        }
        for name, own in runs.items()
    }
    return {
        "bags": BAGS.value,
        "epochs": EPOCHS.value,
        "runs": runs,
        "median": median,
        "seconds_by_torch": median["jax"]["seconds"] / median["torch"]["seconds"],
        # Of runs side by side, so that a machine that slows down for a while slows both.
        "seconds_by_torch_in_pairs": machine.spread(
            [
                ours["seconds"] / theirs["seconds"]
                for ours, theirs in zip(runs["jax"], runs["torch"], strict=True)
            ]
        ),
        "cpu_seconds_by_torch": median["jax"]["cpu_seconds"] / median["torch"]["cpu_seconds"],
    }


def measure_files() -> dict[str, Any]:
    """Trains two epochs on bags in HDF5 files of float16."""
    results = {}
    for count in map(int, FILES.value):
        with tempfile.TemporaryDirectory() as folder:
            for number, bag in enumerate(draw_bags(count, np.float16)):
                with h5py.File(f"{folder}/{number:04d}.h5", "w") as file:
                    file["features"] = bag
            results[str(count)] = _alone(JaxBags, "train_files", folder, 2, MEMORY.value)
    return {"memory_gib": MEMORY.value, "epochs": 2, "bags": results}


def main(_: Sequence[str]) -> None:
    """Measures, and writes a record."""
    if importlib.util.find_spec("torch") is None:
        raise UserError("PyTorch is needed for what is measured against: pip install torch==2.13.0")
    path = machine.prepare(OUT.value)
    packages = ("jax", "jaxlib", "flax", "optax", "torch", "numpy", "h5py", "grain")
    record = machine.header("benchmarks.large_bags", packages)
    record["in_memory"] = measure_memory()
    record["in_files"] = measure_files()
    record["prediction"] = {
        length: _alone(JaxBags, "predict", int(length)) for length in LONG.value
    }
    machine.write(record, path)


if __name__ == "__main__":
    app.run(main)

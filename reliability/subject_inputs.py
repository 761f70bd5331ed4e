"""Inputs of `subjects`: data sets, runs, weights, bags, dumps."""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from reliability import small_training

_OVERRIDES: Mapping[str, Any] = {
    **small_training.OVERRIDES,
    **{"train.epochs": 4, "train.batch_size": 20, "eval.batch_size": 20, "eval.every_epochs": 2},
}
_DIVERGING: Mapping[str, Any] = {
    "optimizer.learning_rate": 1e30,
    "optimizer.warmup_epochs": 0.0,
    "train.max_skipped": 1,
}
MIL = ("-m", "lossattn_jax.mil", "--folds=3", "--repeats=1", "--config.train.epochs=4")
THREE_METHODS = "--method=loss_attention,mi_svm,mi_kernel"


MIL_TRAIN = (
    *("-m", "lossattn_jax.mil.train", "--bags=bag_files", "--labels=bag_files.csv"),
    *("--config.train.epochs=2", "--config.model.hidden=(4,)", "--workdir=model"),
)


def train(workdir: str, **overrides: object) -> tuple[str, ...]:
    """What Python gets to train the small network; see `small_training`."""
    return tuple(small_training.arguments(workdir, "data", {**_OVERRIDES, **overrides}))


def module(name: str, *words: str) -> tuple[str, ...]:
    """What Python gets to run a command of this package."""
    return ("-m", f"lossattn_jax.{name}", *words)


def _write_images(world: pathlib.Path) -> None:
    draw = np.random.default_rng(0)
    (world / "own").mkdir()
    for name in ("a", "b", "c"):
        pixels = draw.integers(0, 256, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(world / "own" / f"{name}.png")


def _write_bags(world: pathlib.Path) -> None:
    for seed, name in enumerate(("bags", "other_bags")):
        draw = np.random.default_rng(seed)
        rows = ["bag_label,bag_id,a,b,c,d"]
        for bag in range(20):
            for features in draw.normal(bag % 2, 1.0, (3 + bag % 3, 4)):
                rows.append(f"{bag % 2},b{bag}," + ",".join(f"{value:.4f}" for value in features))
        (world / f"{name}.csv").write_text("\n".join(rows) + "\n")


def _write_bag_files(world: pathlib.Path) -> None:
    draw = np.random.default_rng(0)
    (world / "bag_files").mkdir()
    rows = ["bag_id,label,split"]
    for bag in range(9):
        features = draw.normal(bag % 2, 1.0, (3 + bag % 3, 4)).astype(np.float32)
        np.save(world / "bag_files" / f"b{bag}.npy", features)
        rows.append(f"b{bag},{bag % 2},{('train', 'train', 'test')[bag % 3]}")
    (world / "bag_files.csv").write_text("\n".join(rows) + "\n")


def _write_digits(world: pathlib.Path) -> None:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (200, 28, 28)).astype(np.uint8)
    np.savez(world / "digits.npz", image=images, label=np.arange(200) % 10)


# Inputs by the name of their file or folder, in an order in which they can be made: by these functions,
# or by a command and the exit code that it has to have.
Command = tuple[str, ...]
INPUTS: Mapping[str, Callable[[pathlib.Path], None] | tuple[Command, int]] = {
    "data": (("-m", "reliability.small_scenes", "--data_dir=data"), 0),
    "run": (train("run"), 0),
    "other": (train("other", seed=1), 0),
    "dump": (train("dump", **_DIVERGING), 2),
    "weights.npz": (module("convert", "--workdir=run", "--to=weights.npz"), 0),
    "weights.safetensors": (module("convert", "--workdir=run", "--to=weights.safetensors"), 0),
    "own": _write_images,
    "bags.csv": _write_bags,
    "other_bags.csv": lambda world: None,  # made with the other
    "digits.npz": _write_digits,
    "bag_files": _write_bag_files,
    "bag_files.csv": lambda world: None,  # made with the other
    "model": (MIL_TRAIN, 0),
    "mil": ((*MIL, THREE_METHODS, "--dataset=bags.csv", "--workdir=mil"), 0),
    "other_mil": (
        (*MIL, "--method=mi_svm,mi_kernel", "--dataset=other_bags.csv", "--workdir=other_mil"),
        0,
    ),
    "mil_dump": (
        (
            *(*MIL, "--dataset=bags.csv", "--workdir=mil_dump", "--config.train.max_skipped=1"),
            *("--config.model.standardise=False", "--config.optimizer.learning_rate=1e30"),
        ),
        2,
    ),
}


# What inputs are made from.
_NEEDS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("run", "other", "dump"), ("data",)),
    **dict.fromkeys(("weights.npz", "weights.safetensors"), ("data", "run")),
    **dict.fromkeys(("mil", "mil_dump"), ("bags.csv",)),
    "other_mil": ("bags.csv", "other_bags.csv"),
    "bag_files": ("bag_files.csv",),
    "model": ("bag_files", "bag_files.csv"),
}


def with_needs(inputs: Iterable[str]) -> set[str]:
    """Inputs and what they are made from."""
    return {name for own in inputs for name in (own, *_NEEDS.get(own, ()))}

"""The bags of an experiment and their splits, by what the user names."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lossattn_jax.data import load as load_images
from lossattn_jax.data.specs import get_spec
from lossattn_jax.errors import UserError
from lossattn_jax.mil import bag_files, benchmarks, image_bags
from lossattn_jax.mil.bags import BagDataset
from lossattn_jax.mil.selection import stream
from lossattn_jax.mil.splits import Split, cross_validation
from lossattn_jax.registry import lookup

GENERATED = ("mnist_bags", "cifar_bags")
# Ends of the names of files that are read as bags.
_ENDINGS = (".csv.gz", ".csv", ".data", ".data.Z", ".mat")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Bags, and how they are split into training and test.

    Attributes:
      dataset: the bags; its name is that of the experiment.
      splits: trainings and tests.
    """

    dataset: BagDataset
    splits: tuple[Split, ...]


def experiments(
    name: str, data_dir: str, config: ConfigDict, download: bool = False
) -> Iterator[Experiment]:
    """Yields the experiments on a data set: one, or one for each number of generated bags.

    Args:
      name: a benchmark, "mnist_bags", "cifar_bags", or the path of a file of bags.
      data_dir: folder of the benchmarks and of TFDS; for mnist_bags also an .npz file with image and label.
      config: of the experiment, checked.
      download: whether to fetch a benchmark that is not there.

    Raises:
      UserError: the bags cannot be found or read, or cannot be split so.
    """
    if name in GENERATED:
        yield from _generated(name, data_dir, config)
        return
    if name in benchmarks.BENCHMARKS:
        dataset = benchmarks.load(name, data_dir, download)
    else:
        path = pathlib.Path(name)
        ending = next((end for end in _ENDINGS if path.name.endswith(end)), None)
        if ending is None:
            known = ", ".join((*benchmarks.BENCHMARKS, *GENERATED))
            raise UserError(
                f"the data set {name!r} is not known; allowed are {known}, or a file that ends in "
                f"{', '.join(_ENDINGS)}"
            )
        dataset = dataclasses.replace(bag_files.read(path), name=path.name.removesuffix(ending))
    yield Experiment(dataset, cross_validation(dataset, config.folds, config.repeats, config.seed))


def _load_cifar(data_dir: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    loaded = load_images(get_spec("cifar10"), split, data_dir)
    return loaded.images, loaded.labels


# By name: makes bags of images and labels, and loads these by data folder and split.
_GENERATORS: dict[str, tuple[Callable[..., BagDataset], Callable[..., Any]]] = {
    "mnist_bags": (image_bags.mnist_bags, image_bags.load_digits),
    "cifar_bags": (image_bags.cifar_bags, _load_cifar),
}


def _generated(name: str, data_dir: str, config: ConfigDict) -> Iterator[Experiment]:
    """For each number of bags: `config.repeats` draws to train on, and the same bags to test all on."""
    options = config.bags
    make, load = lookup("the generated data set", name, _GENERATORS)
    pools = {split: load(data_dir, split) for split in ("train", "test")}
    shared = {"targets": tuple(options.targets), "mean_length": options.mean_length}
    tested = make(*pools["test"], options.test, stream(config.seed, 0), **shared)
    for count in options.train:
        drawn = [
            make(*pools["train"], count, stream(config.seed, 1, repeat), **shared)
            for repeat in range(config.repeats)
        ]
        first = np.cumsum([0, *(len(part) for part in drawn)])
        rows = np.arange(first[-1] + len(tested))
        yield Experiment(
            _joined(f"{name}_{count}", [*drawn, tested]),
            tuple(
                Split(
                    repeat,
                    0,
                    (rows >= first[repeat]) & (rows < first[repeat + 1]),
                    rows >= first[-1],
                )
                for repeat in range(config.repeats)
            ),
        )


def _joined(name: str, parts: list[BagDataset]) -> BagDataset:
    """All bags of several data sets with the same classes; the last part is the test's."""
    groups = [*(f"train{number}" for number in range(len(parts) - 1)), "test"]
    return BagDataset(
        instances=np.concatenate([part.instances for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        ids=tuple(
            f"{group}_{bag}" for group, part in zip(groups, parts, strict=True) for bag in part.ids
        ),
        classes=parts[0].classes,
        instance_labels=np.concatenate([part.instance_labels for part in parts]),  # type: ignore[arg-type]
        name=name,
    )

"""The bags of an experiment and their splits, by what the user names."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lossattn_jax.config.options import BagOptions, GeneratedBagOptions
from lossattn_jax.data import load as load_images
from lossattn_jax.data.bags import bag_files, benchmarks, image_bags
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.columns import Choice
from lossattn_jax.data.bags.positive import find_positive
from lossattn_jax.data.bags.splits import Split, cross_validation
from lossattn_jax.data.specs import get_spec
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests
from lossattn_jax.mil import provenance
from lossattn_jax.mil.selection import stream
from lossattn_jax.registry import lookup

log = logging.getLogger(__name__)

GENERATED = ("mnist_bags", "cifar_bags")
# Ends of the names of files that are read as bags.
_ENDINGS = (".csv.gz", ".csv", ".data", ".data.Z", ".mat")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Bags, and how they are split into training and test.

    Attributes:
      dataset: the bags; its name is that of the experiment.
      splits: trainings and tests, at least one.
      benchmark: the one of `benchmarks.BENCHMARKS` that was asked for and whose bags these are; None for
        others.
    """

    dataset: BagDataset
    splits: tuple[Split, ...]
    benchmark: str | None = None

    @functools.cached_property
    def made_from(self) -> tuple[dict[str, Any], ...]:
        """For each split, of what its results are made, as JSON; see `provenance.of_splits`."""
        return tuple(
            {**bags, "benchmark": self.benchmark}
            for bags in provenance.of_splits(self.dataset, self.splits)
        )

    @property
    def bags(self) -> dict[str, Any]:
        """Describes the first split's bags, however they are split, as JSON."""
        return {key: value for key, value in self.made_from[0].items() if key != provenance.SPLIT}

    @property
    def digest(self) -> str:
        """Of `bags`."""
        return digests.of_json(self.bags)


def names(name: str, options: GeneratedBagOptions) -> tuple[str, ...]:
    """The names of a data set's experiments, by its own; nothing is read.

    Args:
      name: as `experiments` takes it.
      options: of generated bags.

    Raises:
      UserError: it is none.
    """
    if name in GENERATED:
        return tuple(_generated_name(name, count) for count in options.train)
    if name in benchmarks.BENCHMARKS:
        return (name,)
    file = pathlib.Path(name).name
    ending = next((end for end in _ENDINGS if file.endswith(end)), None)
    if ending is None:
        known = ", ".join((*benchmarks.BENCHMARKS, *GENERATED))
        raise UserError(
            f"the data set {name!r} is not known; allowed are {known}, or a file that ends in "
            f"{', '.join(_ENDINGS)}"
        )
    return (file.removesuffix(ending) or file,)  # a file may be called .csv


def experiments(
    name: str,
    data_dir: str,
    options: BagOptions,
    download: bool = False,
    *,
    positive: Sequence[str] = (),
    choice: Choice | None = None,
) -> Sequence[Experiment] | Iterator[Experiment]:
    """Makes the experiments on a data set, several of generated bags.

    Args:
      name: a benchmark, "mnist_bags", "cifar_bags", or the path of a file of bags.
      data_dir: folder of the benchmarks and of TFDS; for mnist_bags also an .npz file with image and label.
      options: of the experiment.
      download: whether to fetch a benchmark that is not there.
      positive: classes that are positive, in this data set or others; empty: those that are known to be.
      choice: of features, for files whose columns have names.

    Raises:
      UserError: the bags cannot be found or read, or cannot be split so; they have two classes, and not
        exactly one of them is among `positive`; or features are chosen where they have no names.
    """
    if choice and (name in GENERATED or name in benchmarks.BENCHMARKS):
        raise UserError(
            f"--features and --ignore choose columns of files of bags, but {name} is none: leave it out"
        )
    if name in GENERATED:
        word = _positive(tuple(range(1 + len(options.bags.targets))), positive, name)
        return _generated(name, data_dir, options, word)
    (own,) = names(name, options.bags)
    benchmark = None
    if name in benchmarks.BENCHMARKS:
        dataset = benchmarks.load(name, data_dir, download)
        # Other bags of that name, of which `load` has warned, are not what the paper's figures are of.
        if benchmarks.has_bags_of(dataset, benchmarks.BENCHMARKS[name]):
            benchmark = name
    else:
        dataset = dataclasses.replace(bag_files.read(pathlib.Path(name), choice), name=own)
    if positive:
        word = _positive(dataset.classes, positive, dataset.name)
        dataset = dataclasses.replace(dataset, positive=word)
    # Held-out bags and parameters are drawn class by class, so other words would give other results.
    dataset = dataset.in_order_of_appearance()
    splits = cross_validation(dataset, options.folds, options.repeats, options.seed)
    return (Experiment(dataset, splits, benchmark),)


def _positive(classes: Sequence[Any], words: Sequence[str], name: str) -> Any:
    """As `find_positive`; warns where there are words, but not two classes."""
    if words and len(classes) > 2:
        log.warning(
            "%s: --positive names no class of it, for it has %d classes, and only one of two can be positive",
            name,
            len(classes),
        )
    return find_positive(classes, words, name)


def _load_cifar(data_dir: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    loaded = load_images(get_spec("cifar10"), split, data_dir)
    return loaded.images, loaded.labels


# By name: makes bags of images and labels, and loads these by data folder and split.
_GENERATORS: dict[str, tuple[Callable[..., BagDataset], Callable[..., Any]]] = {
    "mnist_bags": (image_bags.mnist_bags, image_bags.load_digits),
    "cifar_bags": (image_bags.cifar_bags, _load_cifar),
}


def _generated(
    name: str, data_dir: str, options: BagOptions, positive: int | None
) -> Iterator[Experiment]:
    """For each number of bags: `options.repeats` draws to train on, and the same bags to test all on."""
    bags = options.bags
    make, load = lookup("the generated data set", name, _GENERATORS)
    pools = {split: load(data_dir, split) for split in ("train", "test")}
    shared = {"targets": tuple(bags.targets), "mean_length": bags.mean_length}
    tested = make(*pools["test"], bags.test, stream(options.seed, 0), **shared)
    for count in bags.train:
        drawn = [
            make(*pools["train"], count, stream(options.seed, 1, repeat), **shared)
            for repeat in range(options.repeats)
        ]
        first = np.cumsum([0, *(len(part) for part in drawn)])
        rows = np.arange(first[-1] + len(tested))
        yield Experiment(
            _joined(_generated_name(name, count), [*drawn, tested], positive),
            tuple(
                Split(
                    repeat,
                    0,
                    (rows >= first[repeat]) & (rows < first[repeat + 1]),
                    rows >= first[-1],
                )
                for repeat in range(options.repeats)
            ),
        )


def _generated_name(name: str, count: int) -> str:
    return f"{name}_{count}"


def _joined(name: str, parts: list[BagDataset], positive: int | None) -> BagDataset:
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
        positive=positive,
    )

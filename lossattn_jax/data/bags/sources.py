"""Data sets of bags by name, and their experiments.

A data set of bags is one entry of `SOURCES`, or of the user's own `package.module:attribute`: a `BagDataset`,
a function that returns one, or a `Source`.
"""

import abc
import dataclasses
import functools
import inspect
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lossattn_jax.config.options import BagOptions, GeneratedBagOptions
from lossattn_jax.data import load as load_images
from lossattn_jax.data.bags import (
    assumption_bags,
    bag_files,
    benchmarks,
    image_bags,
    prepared_bags,
    provenance,
    splits,
    streaming,
)
from lossattn_jax.data.bags.bag_folder import open_bags
from lossattn_jax.data.bags.bag_table import BagTable, TableColumns, read_table
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.columns import Choice
from lossattn_jax.data.bags.feature_files import find_formats
from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.data.bags.positive import find_positive
from lossattn_jax.data.bags.splits import Split
from lossattn_jax.data.bags.streaming import PlacedBags
from lossattn_jax.data.order import derive_seed
from lossattn_jax.data.specs import get_spec
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests
from lossattn_jax.registry import Registry, is_reference

log = logging.getLogger(__name__)

# Ends of the names of files that are read as bags.
_ENDINGS = (".csv.gz", ".csv", ".tsv.gz", ".tsv", ".parquet", ".data", ".data.Z", ".mat")
# Of `--folds`, beside a number: how bags are split, of the bags and the number of repeats.
SPLITTINGS: Mapping[str, Callable[[PlacedBags, int], tuple[Split, ...]]] = {
    splits.LEAVE_ONE_GROUP_OUT: splits.leave_one_group_out
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Bags and their splits into training and test.

    Attributes:
      dataset: the bags; its name is that of the experiment.
      splits: trainings and tests, at least one.
      benchmark: the one of `benchmarks.BENCHMARKS` that was asked for and whose bags these are; None for
        others.
    """

    dataset: PlacedBags
    splits: tuple[Split, ...]
    benchmark: str | None = None

    @property
    def resident(self) -> BagDataset:
        """The bags, where they are in memory.

        Raises:
          UserError: they are read one by one.
        """
        if isinstance(self.dataset, BagDataset):
            return self.dataset
        raise UserError(
            f"the bags of {self.dataset.name} are large, so that they are read one by one, as only `mil` and "
            "`mil train` do; take fewer or smaller ones"
        )

    @functools.cached_property
    def made_from(self) -> tuple[dict[str, Any], ...]:
        """For each split the inputs of its results, as JSON.

        See `provenance.of_splits`.
        """
        return tuple(
            {**bags, "benchmark": self.benchmark}
            for bags in provenance.of_splits(self.dataset, self.splits)
        )

    @property
    def bags(self) -> dict[str, Any]:
        """Digests of the first split's bags without the split, as JSON."""
        return {key: value for key, value in self.made_from[0].items() if key != provenance.SPLIT}

    @property
    def digest(self) -> str:
        """Digest of `bags`."""
        return digests.of_json(self.bags)


@dataclasses.dataclass(frozen=True)
class Request:
    """What a command asks of a data set: folder, options, classes.

    Attributes:
      data_dir: folder of the benchmarks and of TFDS; for mnist_bags also an .npz file with image and label.
      options: of the experiment.
      download: whether to fetch a benchmark that is not there.
      positive: classes that are positive, in this data set or others; empty: those that are known to be.
      choice: of features, for files whose columns have names.
      labels: table of the bags of a folder, as `bag_table.read_table` takes it.
      columns: of that table, and of files whose columns have names those of groups, splits and folds.
      folds: what the user says of folds: a number, which is that of the options too, or one of `SPLITTINGS`;
        None: nothing.
      memory_gib: GiB that bags which are read one by one may take, see `streaming.memory_bytes`.
      instances_per_device: of a bag, see `streaming.place_bags`.
      file_format: of a folder's feature files, as `FORMATS.find` takes it; None: any of `FORMATS`.
    """

    data_dir: str
    options: BagOptions
    download: bool = False
    positive: Sequence[str] = ()
    choice: Choice | None = None
    labels: Any = None
    columns: TableColumns | None = None
    folds: int | str | None = None
    memory_gib: float | None = None
    instances_per_device: int | None = None
    file_format: str | None = None


class Source(abc.ABC):
    """A data set of bags.

    Attributes:
      is_generated: whether its bags are drawn of images, with labels of the instances; they may be many
        experiments.
      has_columns: whether its features are columns with names, among which --features and --ignore choose.
      has_labels: whether its labels are in a table, which --labels names.
      column_flags: of the flags `--PART_column` the parts that it knows.
    """

    is_generated = False
    has_columns = False
    has_labels = False
    column_flags: tuple[str, ...] = ()

    @abc.abstractmethod
    def names(self, options: GeneratedBagOptions) -> tuple[str, ...]:
        """Names its experiments; reads nothing."""

    @abc.abstractmethod
    def experiments(self, request: Request) -> Sequence[Experiment] | Iterator[Experiment]:
        """Reads or draws the bags, and splits them.

        Raises:
          UserError: they cannot be found or read, or cannot be split so; or they have two classes, and not
            exactly one of them is among `request.positive`.
        """

    def open(self, request: Request) -> Bags:
        """Opens all bags, with the split that a table gives them.

        Raises:
          UserError: they cannot be read, or are drawn anew for each experiment.
        """
        raise UserError(
            "bags that are drawn are for cross-validation: to train a model that stays, name a file, a "
            "folder of feature files or a benchmark"
        )


@dataclasses.dataclass(frozen=True)
class WholeBags(Source):
    """A data set that is read as a whole, for cross-validation.

    Attributes:
      name: of the experiment.
      load: reads them.
    """

    name: str
    load: Callable[[Request], BagDataset]

    def names(self, options: GeneratedBagOptions) -> tuple[str, ...]:
        return (self.name,)

    def experiments(self, request: Request) -> tuple[Experiment]:
        dataset, table = self._read(request)
        benchmark = self.benchmark_of(dataset)
        # Held-out bags and parameters are drawn class by class, so other words would give other results.
        dataset = dataset.in_order_of_appearance()
        return (Experiment(dataset, _split(dataset, table, request), benchmark),)

    def open(self, request: Request) -> Bags:
        dataset, table = self._read(request)
        splits = None if table is None else table.splits
        return dataclasses.replace(Bags.from_dataset(dataset), splits=splits)

    def _read(self, request: Request) -> tuple[BagDataset, BagTable | None]:
        """Reads the bags and what a table says of them."""
        dataset = self.load(request)
        if request.positive:
            word = _positive(dataset.classes, request.positive, dataset.name)
            dataset = dataclasses.replace(dataset, positive=word)
        table = self.read_parts(request)
        if table is not None:
            dataset = dataclasses.replace(dataset, groups=table.groups)
        return dataset, table

    def read_parts(self, request: Request) -> BagTable | None:
        """Reads groups, splits and folds of a table, where named."""
        return None

    def benchmark_of(self, dataset: BagDataset) -> str | None:
        """Names the benchmark whose bags these are; None for others."""
        return None


@dataclasses.dataclass(frozen=True)
class BenchmarkBags(WholeBags):
    """A data set of `benchmarks.BENCHMARKS`."""

    def benchmark_of(self, dataset: BagDataset) -> str | None:
        # Other bags of that name, of which `load` has warned, are not what the paper's figures are of.
        return (
            self.name if benchmarks.has_bags_of(dataset, benchmarks.BENCHMARKS[self.name]) else None
        )


@dataclasses.dataclass(frozen=True)
class FileOfBags(WholeBags):
    """A file of the user's.

    Attributes:
      path: of the file.
    """

    path: str

    has_columns = True
    column_flags = ("group", "split", "fold")

    def read_parts(self, request: Request) -> BagTable | None:
        """Of the columns that are named; others have no such meaning here."""
        if not request.columns:
            return None
        named = {part: getattr(request.columns, part) or "" for part in self.column_flags}
        names = TableColumns(label="", path="", **named)
        return read_table(self.path, names, labelled=False, by_instance=True)


@dataclasses.dataclass(frozen=True)
class FolderOfBags(Source):
    """A folder of feature files, for cross-validation.

    Attributes:
      name: of the experiment.
      path: of the folder.
    """

    name: str
    path: str

    has_labels = True
    column_flags = tuple(field.name for field in dataclasses.fields(TableColumns))

    def names(self, options: GeneratedBagOptions) -> tuple[str, ...]:
        return (self.name,)

    def experiments(self, request: Request) -> tuple[Experiment]:
        table = self._read_table(request)
        bags = self._open(table, request)
        word = None
        if not bags.several_labels:
            word = _positive(bags.classes, request.positive, self.name)
        if word is not None and word != bags.classes[1]:
            bags = bags.swap_classes()
        bags = dataclasses.replace(bags, positive=word).in_order_of_appearance()
        most = request.options.train.max_instances
        dataset = streaming.place_bags(bags, most, request.memory_gib, request.instances_per_device)
        return (Experiment(dataset, _split(dataset, table, request)),)

    def open(self, request: Request) -> Bags:
        table = self._read_table(request)
        return self._open(table, request, request.positive)

    def _read_table(self, request: Request) -> BagTable:
        if request.labels is None:
            raise UserError(
                f"the bags in the folder {self.path} need labels: --labels=TABLE names a table with a line "
                "for each bag, its id and its label"
            )
        return read_table(request.labels, request.columns)

    def _open(self, table: BagTable, request: Request, positive: Sequence[str] = ()) -> Bags:
        formats = find_formats(request.file_format)
        return open_bags(self.path, table, positive=positive, formats=formats, name=self.name)


@dataclasses.dataclass(frozen=True)
class GeneratedBags(Source):
    """A data set drawn from labelled images.

    Attributes:
      name: how those of its experiments begin; the number of training bags follows.
      make: makes bags of images, labels, the number of bags and a seed; keywords `targets`, `mean_length`.
      images: loads images and labels, by data folder and split "train" or "test".
    """

    name: str
    make: Callable[..., BagDataset]
    images: Callable[[str, str], tuple[np.ndarray, np.ndarray]]

    is_generated = True

    def names(self, options: GeneratedBagOptions) -> tuple[str, ...]:
        return tuple(self._name(count) for count in options.train)

    def experiments(self, request: Request) -> Iterator[Experiment]:
        classes = tuple(range(1 + len(request.options.bags.targets)))
        word = _positive(
            classes, request.positive, self.name
        )  # refused now, not when the first bag is drawn
        return self._draw(request.data_dir, request.options, word)

    def _name(self, count: int) -> str:
        return f"{self.name}_{count}"

    def _draw(
        self, data_dir: str, options: BagOptions, positive: int | None
    ) -> Iterator[Experiment]:
        """Yields an experiment for each number of bags.

        Each has `options.repeats` draws to train on, and the same bags to test on.
        """
        bags = options.bags
        pools = {split: self.images(data_dir, split) for split in ("train", "test")}
        settings = {"targets": tuple(bags.targets), "mean_length": bags.mean_length}
        draws = {
            split: functools.partial(self.make, *pool, **settings) for split, pool in pools.items()
        }
        test_bags = draw_test_part(draws["test"], options)
        for count in bags.train:
            train_parts = draw_train_parts(draws["train"], count, options)
            yield make_experiment(self._name(count), train_parts, {"test": test_bags}, positive)


@dataclasses.dataclass(frozen=True)
class AssumptionBags(Source):
    """A data set of `assumption_bags`.

    It has two experiments for each number of training bags, whose trainings are the same. The first is tested
    on bags as in training, the second on shifted ones.

    Attributes:
      name: how its experiments' names begin; the number of training bags follows, and `_shifted`.
      draw: draws bags, of their number and a seed; keyword `shifted`.
    """

    name: str
    draw: Callable[..., BagDataset]

    def names(self, options: GeneratedBagOptions) -> tuple[str, ...]:
        return tuple(
            _of_distribution(f"{self.name}_{count}", shifted)
            for count in options.train
            for shifted in (False, True)
        )

    def experiments(self, request: Request) -> tuple[Experiment, ...]:
        options = request.options
        for key in ("targets", "mean_length"):
            value = getattr(options.bags, key)
            if value != getattr(GeneratedBagOptions(), key):
                raise UserError(
                    f"config.bags.{key} is {value}, but the bags of {self.name} have no such setting; leave "
                    "it out"
                )
        word = _positive((0, 1), request.positive, self.name)
        tests = self.draw_test_parts(options)
        experiments = []
        for count in options.bags.train:
            train_parts = draw_train_parts(self.draw, count, options)
            for shifted, test_bags in tests.items():
                name = _of_distribution(f"{self.name}_{count}", shifted)
                experiments.append(make_experiment(name, train_parts, {"test": test_bags}, word))
        return tuple(experiments)

    def draw_test_parts(self, options: BagOptions) -> dict[bool, BagDataset]:
        """Draws the bags to test on, by whether they are shifted."""
        return {
            shifted: draw_test_part(functools.partial(self.draw, shifted=shifted), options)
            for shifted in (False, True)
        }


def draw_train_parts(
    draw: Callable[[int, int], BagDataset], count: int, options: BagOptions
) -> list[BagDataset]:
    """Draws the bags of each repeat's training.

    Args:
      draw: of a number of bags and a seed.
      count: bags of a training.
      options: seed and repeats.
    """
    return [draw(count, derive_seed(options.seed, 1, repeat)) for repeat in range(options.repeats)]


def draw_test_part(draw: Callable[[int, int], BagDataset], options: BagOptions) -> BagDataset:
    """Draws the bags that all repeats are tested on; see `draw_train_parts`."""
    return draw(options.bags.test, derive_seed(options.seed, 0))


def _of_distribution(name: str, shifted: bool) -> str:
    return f"{name}_shifted" if shifted else name


def make_experiment(
    name: str,
    train_parts: Sequence[BagDataset],
    test_parts: Mapping[str, BagDataset],
    positive: int | None = None,
) -> Experiment:
    """Makes an experiment with a repeat for each draw to train on.

    All are tested on the same bags.

    Args:
      name: of the experiment.
      train_parts: draws of bags, all with the same classes.
      test_parts: draws of bags by the word that their ids begin with.
      positive: see `BagDataset`.
    """
    parts = {f"train{number}": part for number, part in enumerate(train_parts)} | dict(test_parts)
    first = np.cumsum([0, *(len(part) for part in parts.values())])
    rows = np.arange(first[-1])
    repeats = len(train_parts)
    return Experiment(
        _join_bags(name, parts, positive),
        tuple(
            Split(
                repeat,
                0,
                (rows >= first[repeat]) & (rows < first[repeat + 1]),
                rows >= first[repeats],
            )
            for repeat in range(repeats)
        ),
    )


def find(name: str) -> Source:
    """Finds a data set of bags by name; reads nothing of it.

    Args:
      name: of `SOURCES`, the path of a file of bags or of a folder of feature files, or
        `package.module:attribute` of the user's own.

    Raises:
      UserError: it is none.
    """
    if name in SOURCES:
        return SOURCES[name]
    file = pathlib.Path(name).name
    ending = next((end for end in _ENDINGS if file.endswith(end)), None)
    if ending is not None:
        own = file.removesuffix(ending) or file  # a file may be called .csv
        return FileOfBags(own, lambda request: _read_file(name, own, request.choice), name)
    if os.path.isdir(name):
        return FolderOfBags(os.path.basename(os.path.abspath(name)), name)
    if not is_reference(name):
        raise UserError(
            f"the data set of bags {name!r} is not known; allowed are {', '.join(SOURCES)}, a file that ends "
            f"in {', '.join(_ENDINGS)}, a folder of feature files, or package.module:attribute of your own"
        )
    return SOURCES.find(name)


def names(name: str, options: GeneratedBagOptions) -> tuple[str, ...]:
    """Names a data set's experiments; reads nothing.

    Args:
      name: as `find` takes it.
      options: of generated bags.

    Raises:
      UserError: it is none.
    """
    return find(name).names(options)


def experiments(
    name: str,
    data_dir: str,
    options: BagOptions,
    download: bool = False,
    *,
    positive: Sequence[str] = (),
    choice: Choice | None = None,
    labels: Any = None,
    columns: TableColumns | None = None,
    folds: int | str | None = None,
    memory_gib: float | None = None,
    instances_per_device: int | None = None,
    file_format: str | None = None,
) -> Sequence[Experiment] | Iterator[Experiment]:
    """Makes the experiments on a data set; generated bags have several.

    Args:
      name: as `find` takes it.
      data_dir, options, download, positive, choice, labels, columns, folds, memory_gib,
      instances_per_device, file_format: see `Request`.

    Raises:
      UserError: as of `find` and `Source.experiments`, or features are chosen where they have no names, or a
        table or its columns are named where there is none.
    """
    source = find(name)
    request = Request(
        data_dir,
        options,
        download,
        positive,
        choice,
        labels=labels,
        columns=columns,
        folds=folds,
        memory_gib=memory_gib,
        instances_per_device=instances_per_device,
        file_format=file_format,
    )
    _refuse_unknown_parts(source, name, request)
    if isinstance(folds, str) and folds not in SPLITTINGS:
        raise UserError(
            f"--folds is {folds!r}, but must be a number of folds or {', '.join(SPLITTINGS)}"
        )
    return source.experiments(request)


def open_all(name: str, request: Request) -> Bags:
    """Opens all bags of a data set, for one training.

    Args:
      name: as `find` takes it.
      request: what is asked of it; its folds are not looked at.

    Raises:
      UserError: as of `experiments`, or the bags are drawn.
    """
    source = find(name)
    _refuse_unknown_parts(source, name, request)
    return source.open(request)


def _refuse_unknown_parts(source: Source, name: str, request: Request) -> None:
    """Refuses features, a table or columns of it where a data set has none."""
    if request.choice and not source.has_columns:
        raise UserError(
            f"--features and --ignore choose columns of files of bags, but {name} is none: leave it out"
        )
    for flag, value in (("labels", request.labels), ("file_format", request.file_format)):
        if value is not None and not source.has_labels:
            raise UserError(
                f"--{flag} is for a folder of feature files, but {name} is none: leave it out"
            )
    for field in dataclasses.fields(TableColumns):
        own = request.columns and getattr(request.columns, field.name)
        if own and field.name not in source.column_flags:
            raise UserError(
                f"--{field.name}_column names a column of a table, but {name} has none for it: leave it out"
            )


def _split(dataset: PlacedBags, table: BagTable | None, request: Request) -> tuple[Split, ...]:
    """Splits bags as their table says, or into drawn folds.

    Raises:
      UserError: the table and the command both say how bags are split, or as of the functions of `splits`.
    """
    options = request.options
    own: dict[str, Any] = {}
    if table is not None:
        parts = {"split": table.splits, "fold": table.folds}
        own = {part: values for part, values in parts.items() if values is not None}
    if table is not None and (len(own) == 2 or (own and request.folds is not None)):
        other = "has folds too" if len(own) == 2 else f"--folds is {request.folds}"
        part = next(iter(own))
        raise UserError(
            f"{table.place} says in its column of {part}s how bags are split, but {other}; leave one out "
            f"(--{part}_column= takes no such column)"
        )
    if "split" in own:
        return splits.own_split(dataset, own["split"], options.repeats)
    if "fold" in own:
        return splits.own_folds(dataset, np.array(own["fold"]), options.repeats)
    if isinstance(request.folds, str):
        return SPLITTINGS[request.folds](dataset, options.repeats)
    return splits.cross_validation(dataset, options.folds, options.repeats, options.seed)


def _read_file(path: str, name: str, choice: Choice | None) -> BagDataset:
    return dataclasses.replace(bag_files.read(pathlib.Path(path), choice), name=name)


def _own(reference: str, part: Any) -> Source:
    """Makes a data set of a user's reference, named by its attribute."""
    name = reference.rpartition(":")[2].rpartition(".")[2]
    return WholeBags(name, lambda request: _load_own(reference, part, name, request.data_dir))


def _load_own(reference: str, part: Any, name: str, data_dir: str) -> BagDataset:
    bags = part
    if callable(part):
        bags = part(data_dir) if inspect.signature(part).parameters else part()
    if not isinstance(bags, BagDataset):
        raise UserError(
            f"the data set of bags {reference!r} is a {type(bags).__name__}, but must be a "
            "lossattn_jax.data.bags.bags.BagDataset, a function that returns one (of the data folder, if it "
            "takes an argument), or a Source"
        )
    return dataclasses.replace(bags, name=name)


def _positive(classes: Sequence[Any], words: Sequence[str], name: str) -> Any:
    """Finds the positive class as `find_positive`; warns where it cannot."""
    if words and len(classes) > 2:
        log.warning(
            "%s: --positive names no class of it, for it has %d classes, and only one of two can be positive",
            name,
            len(classes),
        )
    return find_positive(classes, words, name)


def _load_cifar(data_dir: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = load_images(get_spec("cifar10"), split, data_dir)
    return arrays.images, arrays.labels


def _join_bags(name: str, parts: Mapping[str, BagDataset], positive: int | None) -> BagDataset:
    """Joins data sets with the same classes; their keys begin the ids of their bags."""
    joined = tuple(parts.values())
    return BagDataset(
        instances=np.concatenate([part.instances for part in joined]),
        lengths=np.concatenate([part.lengths for part in joined]),
        labels=np.concatenate([part.labels for part in joined]),
        ids=tuple(f"{group}_{bag}" for group, part in parts.items() for bag in part.ids),
        classes=joined[0].classes,
        instance_labels=np.concatenate([part.instance_labels for part in joined]),  # type: ignore[arg-type]
        name=name,
        positive=positive,
    )


_GENERATED_BAGS = (
    GeneratedBags("mnist_bags", image_bags.mnist_bags, image_bags.load_digits),
    GeneratedBags("cifar_bags", image_bags.cifar_bags, _load_cifar),
)

_ASSUMPTION_BAGS = tuple(
    AssumptionBags(name, functools.partial(assumption_bags.draw_bags, name))
    for name in assumption_bags.CONTENTS
)


def _benchmark(name: str) -> BenchmarkBags:
    return BenchmarkBags(
        name, lambda request: benchmarks.load(name, request.data_dir, request.download)
    )


def _prepared(name: str) -> WholeBags:
    return WholeBags(name, lambda request: prepared_bags.load(name, request.data_dir))


SOURCES: Registry[Source] = Registry(
    "data set of bags",
    Source,  # type: ignore[type-abstract]
    {
        **{name: _benchmark(name) for name in benchmarks.BENCHMARKS},
        **{source.name: source for source in _GENERATED_BAGS},
        **{source.name: source for source in _ASSUMPTION_BAGS},
        **{name: _prepared(name) for name in prepared_bags.PREPARED_BAGS},
    },
    adopt=_own,
)

"""Bags of images with labelled instances: MNIST-bags and CIFAR-bags.

    images, labels = load_digits("mnist10k.npz", "train")
    train = mnist_bags(images, labels, num_bags=200, seed=0)                           # is there a 9?
    train = mnist_bags(images, labels, num_bags=200, seed=0, targets=(3, 5, 9))        # which, if any?

Bags to train on and bags to test on have to be made of different images, as the two splits of
`load_digits` are.
"""

import os
from collections.abc import Sequence

import numpy as np

from lossattn_jax.data import prepared_split
from lossattn_jax.data.bags import digit_files
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.datasets import DatasetNotFound, resolve_data_dir
from lossattn_jax.data.specs import DatasetSpec, get_spec
from lossattn_jax.errors import UserError

# Keep the draws apart from others that are made from the same seed.
_BAGS_KEY, _SPLIT_KEY = 0xBA65, 0x591D
_TEST_SHARE = 1 / 7  # MNIST has 60,000 and 10,000 digits
_SPREAD = 5  # mean over standard deviation of the lengths, in Ilse et al. 2018

_MNIST = DatasetSpec(
    name="mnist",
    num_classes=10,
    class_names=tuple("0123456789"),
    image_shape=(28, 28),  # type: ignore[arg-type]  # Pillow gives a grey image without a channel axis
    mean=(0.1307,),
    std=(0.3081,),
    num_train=60_000,
    num_test=10_000,
)


def mnist_bags(
    images: np.ndarray,
    labels: np.ndarray,
    num_bags: int,
    seed: int,
    targets: Sequence[int] = (9,),
    mean_length: float = 10,
    *,
    std_length: float | None = None,
    balanced: bool | None = None,
) -> BagDataset:
    """Draws MNIST-bags.

    As Ilse et al. 2018 make them (one target), or the AAAI 2020 paper (several).

    With one target, a bag has the label 1 if the target is among its digits, else 0, and so has each digit.
    With several, a bag is about one of them, and no other target is among its digits; its label is 1 + the
    position of that target in `targets` if it is there, else 0, and so is each digit's.

    The length of a bag is drawn from a normal distribution and cut to a whole number, at least 1 (both
    papers' public code). Its digits are drawn without replacement from those it may have.

    Balanced bags are those of each label in equal numbers (as far as they go), in random order: as in the
    balanced one of the two loaders that Ilse et al. published, a positive bag is a random bag that holds
    the target, and a negative one a random bag of other digits. Not balanced, the digits alone decide
    (their other loader: 65% of bags with ten digits are positive), and each target is as probable as the
    others (dataloader.py of the AAAI paper's code).

    Args:
      images: uint8 `[N, 28, 28]` or `[N, 28, 28, 1]`.
      labels: int `[N]`.
      num_bags: bags to make.
      seed: of the draw, 0 or more; the bags follow from the arguments alone.
      targets: labels that are looked for; (3, 5, 9) in the AAAI paper.
      mean_length: of the distribution of lengths.
      std_length: likewise; None: a fifth of the mean, as in Ilse et al. (10 and 2, 50 and 10, 100 and 20).
      balanced: None: with one target only.

    Returns:
      The bags: instances float32 `[n, 28, 28, 1]`, (x / 255 - 0.1307) / 0.3081, with instance labels;
      classes are 0 ... number of targets.

    Raises:
      UserError: an argument out of range, a target that no image has, or bags longer than there are
        images for.
    """
    return _image_bags(
        *(images.reshape(len(images), 28, 28, 1), labels, num_bags, seed, targets),
        mean_length,
        std_length=std_length,
        balanced=balanced,
        spec=_MNIST,
        name="mnist_bags",
    )


def cifar_bags(
    images: np.ndarray,
    labels: np.ndarray,
    num_bags: int,
    seed: int,
    targets: Sequence[int] = (3, 5, 9),
    mean_length: float = 10,
    *,
    std_length: float | None = None,
    balanced: bool | None = None,
) -> BagDataset:
    """Draws bags of CIFAR-10 images, as `mnist_bags` does.

    Targets are cats, dogs and trucks.

    The AAAI 2020 paper's public code has no such bags. By its text they are made as its MNIST-bags are, with
    targets of the same places in the order of classes, and have 10 or 50 images on average.

    Args:
      images: uint8 `[N, 32, 32, 3]`, such as `lossattn_jax.data.load(get_spec("cifar10"), "train").images`.
      labels: int `[N]`.
      num_bags: bags to make, such as 500 or 5000. In memory, an instance takes 12 kB.
      seed: as for `mnist_bags`.
      targets: likewise.
      mean_length: likewise, such as 10 or 50.
      std_length: likewise.
      balanced: likewise.

    Returns:
      The bags: instances float32 `[n, 32, 32, 3]`, normalised with the means and deviations of CIFAR-10,
      with instance labels.

    Raises:
      UserError: as for `mnist_bags`.
    """
    return _image_bags(
        *(images, labels, num_bags, seed, targets),
        mean_length,
        std_length=std_length,
        balanced=balanced,
        spec=get_spec("cifar10"),
        name="cifar_bags",
    )


def split_digits(
    labels: np.ndarray, test_share: float = _TEST_SHARE, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Splits images into two disjoint parts, stratified by label.

    Args:
      labels: int `[N]`.
      test_share: of each label's images, rounded; between 0 and 1.
      seed: of the draw, 0 or more.

    Returns:
      The positions of the training and of the test images, each ascending int64.

    Raises:
      UserError: share or seed out of range.
    """
    if not 0 < test_share < 1:
        raise UserError(f"the share of test images is {test_share}, but must be between 0 and 1")
    if seed < 0:
        raise UserError(f"the seed is {seed}, but must be 0 or more")
    generator = np.random.default_rng([seed, _SPLIT_KEY])
    test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        test[generator.permutation(members)[: round(test_share * len(members))]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


def load_digits(source: str | os.PathLike[str] | None, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Loads handwritten digits for `mnist_bags`.

    Args:
      source: an `.npz` file with the arrays `image` (uint8 `[N, 28, 28]`) and `label` (`[N]`), or the
        folder of TFDS data sets with a prepared `mnist`; None: TFDS' default folder.
      split: 'train' or 'test'. TFDS has both. Of an `.npz` file, `split_digits` makes a seventh of each
        digit's images the test images, and always the same ones.

    Returns:
      Images uint8 `[n, 28, 28]` and labels int32 `[n]`; the two splits have no image in common.

    Raises:
      UserError: unknown split, no such file or data set, or a file with other content.
    """
    _MNIST.split(split)
    if source is None or not os.fspath(source).endswith(".npz"):
        return _prepared_digits(None if source is None else os.fspath(source), split)
    images, labels = digit_files.read(source)
    rows = split_digits(labels)[split == "test"]
    return images[rows], labels[rows].astype(np.int32)


def _prepared_digits(data_dir: str | None, split: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        digits = prepared_split.load(_MNIST, split, data_dir)
    except DatasetNotFound as error:
        folder = resolve_data_dir(data_dir)
        raise UserError(
            f"the data set mnist is not prepared (as array_record) in {folder}; prepare it with: "
            "python -c \"import tensorflow_datasets as tfds; tfds.builder('mnist', "
            f"data_dir={folder!r}, file_format='array_record').download_and_prepare()\""
        ) from error
    return digits.images, digits.labels


def _draw_targets(
    generator: np.random.Generator,
    lengths: np.ndarray,
    sizes: np.ndarray,
    others: int,
    balanced: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws each bag's target, and its number of target images.

    The counts are hypergeometric, as in drawing without replacement from `sizes[about]` images of the
    target and `others` of none; in a balanced draw, on the condition that there are some, or none.
    """
    about = generator.integers(len(sizes), size=len(lengths))
    if not balanced:
        return about, generator.hypergeometric(sizes[about], others, lengths)
    labels = generator.permutation(np.arange(len(lengths)) % (len(sizes) + 1))
    about = np.where(labels > 0, labels - 1, about)
    hits = np.zeros(len(lengths), np.int64)
    open_rows = np.flatnonzero(labels)
    while len(open_rows):
        counts = generator.hypergeometric(sizes[about[open_rows]], others, lengths[open_rows])
        hits[open_rows] = counts
        open_rows = open_rows[counts == 0]
    return about, hits


def _image_bags(
    images: np.ndarray,
    labels: np.ndarray,
    num_bags: int,
    seed: int,
    targets: Sequence[int],
    mean_length: float,
    *,
    std_length: float | None,
    balanced: bool | None,
    spec: DatasetSpec,
    name: str,
) -> BagDataset:
    if images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"images have to be uint8 [N, ...] and labels [N], not {images.dtype} {images.shape} and "
            f"{labels.shape}"
        )
    spread = mean_length / _SPREAD if std_length is None else std_length
    for what, value, low in (
        ("number of bags", num_bags, 1),
        ("seed", seed, 0),
        ("mean length", mean_length, 1),
        ("deviation of the lengths", spread, 0),
        ("number of targets", len(targets), 1),
    ):
        if not low <= value < np.inf:
            raise UserError(f"the {what} of {name} is {value}, but must be {low} or more")
    if len(set(targets)) < len(targets):
        raise UserError(f"the targets of {name} are {tuple(targets)}, but must differ")
    pools = [np.flatnonzero(labels == target) for target in targets]
    others = np.flatnonzero(~np.isin(labels, targets))
    for target, pool in zip(targets, pools, strict=True):
        if not len(pool):
            raise UserError(f"no image has the label {target}, which is a target of {name}")
    generator = np.random.default_rng([seed, _BAGS_KEY])
    lengths = np.maximum(generator.normal(mean_length, spread, num_bags).astype(np.int64), 1)
    if lengths.max() > len(others):
        raise UserError(
            f"a bag of {name} is to have {lengths.max()} images, but only {len(others)} images have a "
            "label that is no target"
        )
    if balanced is None:
        balanced = len(targets) == 1
    sizes = np.array([len(pool) for pool in pools])
    about, hits = _draw_targets(generator, lengths, sizes, len(others), balanced)
    rows, instance_labels = [], []
    for length, target, count in zip(lengths, about, hits, strict=True):
        parts = [
            generator.choice(pools[target], count, replace=False),
            generator.choice(others, length - count, replace=False),
        ]
        order = generator.permutation(length)
        rows.append(np.concatenate(parts)[order])
        instance_labels.append(np.where(order < count, 1 + target, 0))
    scale = 255 * np.array(spec.std, np.float32)
    instances = images[np.concatenate(rows)].astype(np.float32)
    instances -= 255 * np.array(spec.mean, np.float32)
    instances /= scale
    return BagDataset(
        instances=instances,
        lengths=lengths,
        labels=np.where(hits > 0, 1 + about, 0),
        ids=tuple(map(str, range(num_bags))),
        classes=tuple(range(len(targets) + 1)),
        instance_labels=np.concatenate(instance_labels),
        name=name,
    )

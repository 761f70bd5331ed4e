"""Differences of two networks that saw the same images: their counts, interval and test."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lossattn_jax.mil.bootstrap import Interval, draw_counts, percentile_interval


@dataclasses.dataclass(frozen=True)
class Counts:
    """Numbers of images by which of two networks is right.

    Attributes:
      both: both are.
      first: the first alone.
      other: the other alone.
      neither: neither is.
    """

    both: int
    first: int
    other: int
    neither: int

    @property
    def difference(self) -> float:
        """The share that the other has right, less that of the first."""
        return (self.other - self.first) / (self.both + self.first + self.other + self.neither)

    @property
    def p_value(self) -> float:
        """See `mcnemar`."""
        return mcnemar(self.first, self.other)


def count(first: np.ndarray, other: np.ndarray) -> Counts:
    """Counts images by which of two networks is right.

    Args:
      first, other: bool `[N]`, whether each is right.
    """
    return Counts(
        both=int(np.sum(first & other)),
        first=int(np.sum(first & ~other)),
        other=int(np.sum(~first & other)),
        neither=int(np.sum(~first & ~other)),
    )


def mcnemar(first: int, other: int) -> float:
    """Computes the two-sided p value of McNemar's exact test.

    Where the networks are equally good, each image that one of them alone has right is as likely the first's
    as the other's. The p value is twice the smaller tail of that binomial distribution, at most 1.

    Args:
      first, other: numbers of images that each alone has right.
    """
    discordant = first + other
    term = tail = 1  # the binomial coefficients, whole numbers of any size
    for chosen in range(min(first, other)):
        term = term * (discordant - chosen) // (chosen + 1)
        tail += term
    return min(1.0, 2 * tail / 2**discordant)


def intervals(right: Sequence[np.ndarray], resamples: int, seed: int) -> list[Interval]:
    """Makes bootstrap intervals of differences to the first network.

    Images are drawn with replacement, the same ones for all networks (see `mil.bootstrap`).

    Args:
      right: bool `[N]` of each network, whether it is right.
      resamples: how often images are drawn.
      seed: of the draw.

    Returns:
      95 % intervals of the share that is right less that of the first, for all networks but the first.
    """
    first, *others = (np.asarray(one, np.float64) for one in right)
    differences = np.stack([other - first for other in others], axis=1)
    images = len(first)
    draws = draw_counts(np.arange(images), resamples, seed)
    none = np.zeros((0, len(others)))
    sums = np.concatenate(
        [none, *(counts @ differences for counts in draws)]
    )  # whole numbers: exact
    return [percentile_interval(column / images, images) for column in sums.T]

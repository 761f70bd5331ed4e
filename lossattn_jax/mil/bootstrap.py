"""Bootstrap over groups of bags: resamples, and intervals of their percentiles.

Bags of a group, such as the slides of a patient, say less than as many bags of different groups. So whole
groups are drawn, as many as there are, with replacement (Davison and Hinkley 1997, section 3.8); bags without
groups are drawn one by one. The draw is not stratified: a study would not choose its patients by what the
classes are to be, and groups may have bags of several classes. A resample may therefore lack a class; the
metrics that are not defined in it leave it out, and how many did is told beside the interval.

The interval is that of percentiles (Efron and Tibshirani 1993, chapter 13). It is about which bags were there
to be tested. The models are those that were trained: what another training set or another seed would change
is not in it.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from lossattn_jax.data.order import derive_seed
from lossattn_jax.errors import UserError

RESAMPLES = 2000
FEWEST, MOST = 100, 1_000_000  # percentiles of fewer are not worth printing
PERCENTILES = (2.5, 97.5)
# Keeps the draw apart from others that are made from the same seed.
_KEY = 0xB007
_BLOCK = 1 << 22  # numbers of counts in memory at a time


@dataclasses.dataclass(frozen=True)
class Interval:
    """An interval of percentiles.

    Attributes:
      low, high: NaN where there is none.
      left_out: resamples in which the number is not defined.
      reason: why there is none; None where there is one.
    """

    low: float
    high: float
    left_out: int
    reason: str | None = None


def check_resamples(resamples: int) -> None:
    """Refuses an impossible number of resamples with a `UserError`."""
    if resamples and not FEWEST <= resamples <= MOST:
        raise UserError(
            f"the number of resamples of the bootstrap is {resamples}, but must be 0 (no intervals), or from "
            f"{FEWEST} to {MOST:,}"
        )


def draw_counts(units: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Draws groups of bags with replacement, in blocks.

    Args:
      units: `[B]` int, the group of each bag; G of them, numbered from 0.
      resamples: R, how many.
      seed: of the draw, which follows from it, G and R alone: all methods have the same groups.

    Yields:
      `[r, B]` float64, how often each bag is in each resample; R rows in all.
    """
    groups = int(units.max()) + 1
    generator = np.random.default_rng(derive_seed(seed, _KEY))
    rows = max(1, _BLOCK // max(groups, len(units)))
    for first in range(0, resamples, rows):
        count = min(rows, resamples - first)
        draws = generator.integers(groups, size=(count, groups))
        draws += groups * np.arange(count)[:, None]
        counts = np.bincount(draws.ravel(), minlength=count * groups).reshape(count, groups)
        yield counts[:, units].astype(np.float64)


def percentile_interval(values: np.ndarray, groups: int) -> Interval:
    """Makes the interval of a number's values in resamples.

    Args:
      values: `[R]` float64, NaN where the number is not defined.
      groups: that were drawn from.

    Returns:
      The 2.5th and the 97.5th percentile of the values that there are. There is none of one group, which is
      always the same, and none where more than half of the resamples are left out: the others are too
      special to say anything.
    """
    there = values[~np.isnan(values)]
    left_out = len(values) - len(there)
    reason = None
    if not len(values):
        reason = "no resamples were asked for"
    elif groups < 2:
        reason = "one group alone cannot be resampled"
    elif 2 * left_out > len(values):
        reason = f"it is not defined in {left_out} of {len(values)} resamples"
    if reason is not None:
        return Interval(np.nan, np.nan, left_out, reason)
    low, high = np.percentile(there, PERCENTILES)
    return Interval(float(low), float(high), left_out)

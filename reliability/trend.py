"""The slope of a sampled quantity, and how sure it is."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

BLOCKS = 10
_SAMPLES_OF_A_BLOCK = 3  # or there is no slope
_QUANTILE = 0.25
_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Trend:
    """A slope with its interval of 95 %.

    Attributes:
      slope: growth of the quantity for one of `places`.
      low: the interval's lower end.
      high: its upper end.
    """

    slope: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """ "within noise" where the interval holds 0, else "grows" or "shrinks"."""
        if self.low > 0:
            return "grows"
        return "shrinks" if self.high < 0 else "within noise"

    def facts(self, scale: float = 1.0) -> dict[str, float | str]:
        """The trend for a record, in units of `1 / scale`."""
        ends = {name: getattr(self, name) * scale for name in ("slope", "low", "high")}
        return {**ends, "verdict": self.verdict}


def fit(places: Sequence[float], values: Sequence[float]) -> Trend | None:
    """The slope of values over places.

    The places are cut into `BLOCKS` equally wide blocks, of each of which the lower quartile counts: what is
    still there when whatever comes and goes has gone. The slope is the mean of the increments between
    neighbouring blocks, and its error follows from how these increments differ. So a step that an allocator
    makes once is one large increment among small ones, and no slope, while a straight line through the
    samples would find one there.

    Args:
      places: rising, such as epochs.
      values: as many.

    Returns:
      None where a block has fewer than three samples.
    """
    at, what = np.asarray(places, float), np.asarray(values, float)
    if not len(at) or at[-1] <= at[0]:
        return None
    width = (at[-1] - at[0]) / BLOCKS
    block = np.minimum((at - at[0]) // width, BLOCKS - 1)
    members = [what[block == number] for number in range(BLOCKS)]
    if min(len(each) for each in members) < _SAMPLES_OF_A_BLOCK:
        return None
    increments = np.diff([np.quantile(each, _QUANTILE) for each in members]) / width
    slope = float(increments.mean())
    error = float(increments.std(ddof=1)) / math.sqrt(len(increments))
    margin = float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(increments) - 1)) * error
    return Trend(slope, slope - margin, slope + margin)

"""Surveys bags that are read one by one: moments of features, and digests.

    survey = survey_bags(bags)
    mean, scale = survey.standardisation(rows)      # of the bags at these positions

The moments of each bag are computed by themselves and joined (Chan, Golub and LeVeque 1983, "Algorithms for
computing the sample variance"), so that any choice of bags can be standardised without reading them again.
"""

import concurrent.futures
import dataclasses
import hashlib
import logging
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests
from lossattn_jax.kernels import cpu

log = logging.getLogger(__name__)

_VALUES = 1 << 18  # of a bag that are looked at together
_BAGS_BETWEEN_LINES = 100
_DIGESTED_AT_ONCE = 1 << 22  # numbers
_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True, eq=False)
class Survey:
    """What is known of the instances of B bags of D features each.

    Attributes:
      lengths: `[B]` int64, instances.
      mean: `[B, D]` float64, of each bag.
      squares: `[B, D]` float64, the sum of squared distances from that mean.
      low, high: `[B, D]` float64, the smallest and the largest value.
      digests: of each bag's shape, type and values.
    """

    lengths: np.ndarray
    mean: np.ndarray
    squares: np.ndarray
    low: np.ndarray
    high: np.ndarray
    digests: tuple[str, ...]

    def standardisation(self, rows: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Mean and scale of each feature over some bags, as `precision.standardisation` has them.

        Args:
          rows: `[n]` int positions of bags, or `[B]` bool.

        Returns:
          Two float64 arrays `[D]`; the scale of a constant feature is 1.
        """
        chosen = np.asarray(rows)
        weights = self.lengths[chosen][:, None] / self.lengths[chosen].sum()
        mean = np.sum(weights * self.mean[chosen], axis=0)
        between = np.square(self.mean[chosen] - mean) * self.lengths[chosen][:, None]
        total = np.sum(self.squares[chosen] + between, axis=0)
        spread = np.sqrt(total / self.lengths[chosen].sum())
        low, high = self.low[chosen].min(axis=0), self.high[chosen].max(axis=0)
        tiny = 4 * np.finfo(np.float64).eps * np.maximum(np.abs(low), np.abs(high))
        return mean, np.where((high > low) & (spread > tiny), spread, 1.0)


def survey_bags(bags: Bags) -> Survey:
    """Reads every bag once.

    Args:
      bags: of vectors or images; those are looked at pixel by pixel.

    Raises:
      UserError: a bag cannot be read, or holds a value that is not finite in float32.
    """
    parts = []
    # NumPy works without Python's lock; one thread more, for files.
    with concurrent.futures.ThreadPoolExecutor(cpu.cores() + 1) as pool:
        for row, part in enumerate(_in_order(pool, bags)):
            parts.append(part)
            if (row + 1) % _BAGS_BETWEEN_LINES == 0:
                log.info("%s: looked at %d of %d bags", bags.name, row + 1, len(bags))
    columns = list(zip(*parts, strict=True))
    mean, squares, low, high = map(np.stack, columns[:4])
    return Survey(bags.lengths, mean, squares, low, high, tuple(columns[4]))


def digest_bag(bags: Bags, row: int) -> str:
    """Digests a bag as `Survey` does, with a part in memory at once.

    Args:
      bags: the bags.
      row: the bag's position.

    Raises:
      UserError: it cannot be read.
    """
    reader = bags.readers[row]
    rows = max(1, _DIGESTED_AT_ONCE // max(1, int(np.prod(reader.shape[1:]))))
    content = hashlib.sha256()
    for start in range(0, reader.shape[0], rows):
        part = np.ascontiguousarray(reader.read(start, min(start + rows, reader.shape[0])))
        content.update(part.reshape(-1).view(np.uint8).data)
    return digests.of_json({"": [part.dtype.str, list(reader.shape), content.hexdigest()]})


def _in_order(pool: concurrent.futures.Executor, bags: Bags) -> Iterator[tuple]:
    """What each bag's instances are, with no more bags in memory than there are threads."""
    ahead: list[concurrent.futures.Future] = []
    for row in range(len(bags)):
        ahead.append(pool.submit(_look, bags, row))
        if len(ahead) > cpu.cores():
            yield ahead.pop(0).result()
    for future in ahead:
        yield future.result()


def _look(bags: Bags, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, str]:
    """Mean, sum of squares, lowest, highest and digest of a bag's instances."""
    instances = bags.readers[row].read()  # whose values are looked at below
    flat = instances.reshape(len(instances), -1)
    width = flat.shape[1]
    mean, squares = np.zeros(width), np.zeros(width)
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    rows = max(1, _VALUES // width)
    with np.errstate(over="ignore", invalid="ignore"):  # of what is not finite
        for start in range(0, len(flat), rows):
            block = flat[start : start + rows].astype(np.float64)
            low, high = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0))
            own = block.mean(axis=0)
            block -= own
            count = start + len(block)
            step = (own - mean) * (len(block) / count)
            squares += np.einsum("nd,nd->d", block, block) + (own - mean) * step * start
            mean += step
    # So that a NaN is refused too.
    if not (np.maximum(np.abs(low), np.abs(high)) <= _LARGEST).all():
        raise UserError(
            f"bag {bags.ids[row]!r} in {bags.readers[row].place} holds a value that is not finite in float32"
        )
    return mean, squares, low, high, digests.of_arrays({"": instances})

"""Which bags are read one by one, and how much memory that may take."""

import dataclasses
import functools
import numbers
from typing import Any

import numpy as np

from lossattn_jax.data.bags.bag_survey import Survey, survey_bags
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.errors import UserError
from lossattn_jax.kernels import cpu

# Smaller sets lie on the devices as a whole: bags of few instances are computed faster than fetched.
_SMALLEST_SET = 256 << 20  # bytes as float32
_SMALLEST_BAG = 1 << 20  # of the mean
_SHARE = 0.5  # of what is free
_UNKNOWN = 4 << 30  # where it is not known what is free


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedBags(Bags):
    """Labelled bags that networks are to read one by one.

    Attributes:
      labels: `[bags]` int32, which others may lack.
      memory: bytes that what is read ahead may take.
      max_instances: that an epoch sees of a bag, drawn anew for each; 0: all.
      instances_per_device: of a bag; longer ones lie on all devices. None: as many as a device holds.
    """

    labels: np.ndarray
    memory: int = _UNKNOWN
    max_instances: int = 0
    instances_per_device: int | None = None

    @functools.cached_property
    def survey(self) -> Survey:
        """Of all bags, which are read for it once."""
        return survey_bags(self)


PlacedBags = BagDataset | StreamedBags  # which networks are trained on


def place_bags(
    bags: Bags,
    max_instances: int,
    memory_gib: float | None,
    instances_per_device: int | None = None,
) -> PlacedBags:
    """Reads labelled bags into memory, or has networks read them one by one where that suits them.

    Args:
      bags: with labels.
      max_instances: that an epoch sees of a bag; 0: all.
      memory_gib: see `memory_bytes`.
      instances_per_device: of a bag; a set with longer ones is read one by one too. None: as many as a device
        holds.

    Raises:
      UserError: as of `Bags.load`, `check_instances` and `memory_bytes`.
    """
    if bags.labels is None:
        raise UserError(f"the bags of {bags.name} have no labels, but training needs them")
    memory = memory_bytes(memory_gib)
    check_instances(instances_per_device)
    if not is_streamed(bags, max_instances, memory, instances_per_device):
        return bags.load()
    fields: dict[str, Any] = {
        field.name: getattr(bags, field.name) for field in dataclasses.fields(Bags)
    }
    return StreamedBags(
        **fields,
        memory=memory,
        max_instances=max_instances,
        instances_per_device=instances_per_device,
    )


def is_streamed(
    bags: Bags, max_instances: int, memory: int, instances_per_device: int | None = None
) -> bool:
    """Whether bags are read one by one, or lie on the devices as a whole.

    Args:
      bags: nothing is read.
      max_instances: that an epoch sees of a bag; 0: all.
      memory: bytes that there are.
      instances_per_device: of a bag; None: as many as a device holds.

    Returns:
      True where not all instances are wanted, for sets that are larger than the memory, for large sets
      of large bags, and where the longest bag is to be split over devices.
    """
    if instances_per_device is not None and bags.lengths.max() > instances_per_device:
        return True
    if max_instances and bags.lengths.max() > max_instances:
        return True
    large = bags.nbytes >= _SMALLEST_SET and bags.nbytes >= _SMALLEST_BAG * len(bags)
    return large or bags.nbytes > memory


def check_instances(instances_per_device: Any) -> None:
    """Refuses a number of instances for each device that is none.

    Raises:
      UserError: it is neither None nor a whole number above 0.
    """
    number = instances_per_device
    whole = isinstance(number, numbers.Integral) and not isinstance(number, bool)
    if number is not None and not (whole and number > 0):
        raise UserError(f"instances_per_device is {number!r}, but must be a whole number above 0")


def memory_bytes(gib: float | None) -> int:
    """Bytes that what is read of bags may take.

    Args:
      gib: as the user has it, in GiB; None: half of what is free.

    Raises:
      UserError: it is no number above 0.
    """
    if gib is None:
        free = cpu.free_memory()
        return int(_SHARE * free) if free else _UNKNOWN
    if isinstance(gib, bool) or not isinstance(gib, numbers.Real) or not 0 < gib < float("inf"):
        raise UserError(f"memory is {gib!r}, but must be a number of GiB above 0")
    return int(gib * 2**30)

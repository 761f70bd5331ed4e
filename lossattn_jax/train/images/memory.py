"""Memory of compiled programs, by XLA's analysis, and of devices."""

import dataclasses
import logging
import os
from typing import Any

import jax

from lossattn_jax import devices
from lossattn_jax.train.images import reporting

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Usage:
    """Bytes that a program takes on each device.

    Attributes:
      arguments: of what it is given.
      program: what it needs besides: temporaries, and results that take over no argument's memory.
    """

    arguments: int
    program: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.arguments + self.program


def analyse(function: Any, *arguments: Any) -> Usage | None:
    """Analyses the memory of a pmapped function by compiling it.

    Calls with such arguments need not compile again.

    Args:
      function: from `devices.pmap`.
      arguments: arrays as it is called with, or their shapes and dtypes.

    Returns:
      None where the backend does not tell.
    """
    compiled_program = function.lower(*arguments).compile()
    try:
        analysis = compiled_program.memory_analysis()
        return Usage(
            arguments=analysis.argument_size_in_bytes,
            program=analysis.temp_size_in_bytes
            + analysis.output_size_in_bytes
            - analysis.alias_size_in_bytes,
        )
    except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        return None


def limit() -> int | None:
    """Returns each device's bytes; None if unknown.

    On CPUs its share of the machine's memory.
    """
    stats = _stats()
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if jax.default_backend() != "cpu":
        return None
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    return machine // jax.local_device_count()


def free_bytes() -> int | None:
    """Returns the free bytes of an accelerator; None if unknown."""
    stats = _stats()
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def describe(function: Any, *arguments: Any) -> None:
    """Logs the training program's memory; warns if it is too much.

    Args:
      function: from `step.make_train_step`.
      arguments: arrays as it is to be called with; they stay as they are.
    """
    usage = analyse(function, *arguments)
    if usage is None:
        return
    there = limit()
    log.info("memory: %s", sentence(usage, there))
    if there is not None and usage.total > there:
        reporting.warn(
            "warning: training needs %s of memory, but a device has %s; config.train.remat=True and a "
            "higher config.train.accumulate (parts of a batch, one after the other) need less",
            size(usage.total),
            size(there),
        )


def sentence(usage: Usage, there: int | None) -> str:
    """Describes `usage` of a device with `there` bytes.

    None: unknown.
    """
    parts = f"{size(usage.arguments)} of parameters, optimiser and images + {size(usage.program)} of the step"
    of_device = "" if there is None else f" of each device's {size(there)}"
    return f"{parts} = {size(usage.total)}{of_device}"


def size(count: int) -> str:
    """Formats a number of bytes, such as "12.3 MiB"."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.2f} MiB"


def _stats() -> dict[str, int]:
    return devices.memory_statistics()

"""Memory of a compiled program on each device, by XLA's own analysis, beside what a device has."""

import dataclasses
import logging
import os
from typing import Any

import jax

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
    """The memory of a pmapped function; compiles it, and calls with such arguments need not do so again.

    Args:
      function: from `devices.pmap`.
      arguments: arrays as it is called with, or their shapes and dtypes.

    Returns:
      None where the backend does not tell.
    """
    compiled = function.lower(*arguments).compile()
    try:
        told = compiled.memory_analysis()
        return Usage(
            arguments=told.argument_size_in_bytes,
            program=told.temp_size_in_bytes + told.output_size_in_bytes - told.alias_size_in_bytes,
        )
    except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        return None


def limit() -> int | None:
    """Bytes that each device has; on CPUs its share of the machine's memory; None if that is unknown."""
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


def left() -> int | None:
    """Bytes of an accelerator's memory that nothing is in yet; None if that is unknown."""
    stats = _stats()
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def describe(function: Any, *arguments: Any) -> None:
    """Logs what a call of the training program takes, and warns if no device has so much.

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
    """`usage` in words, of a device with `there` bytes (None: unknown)."""
    parts = f"{size(usage.arguments)} of parameters, optimiser and images + {size(usage.program)} of the step"
    known = "" if there is None else f" of each device's {size(there)}"
    return f"{parts} = {size(usage.total)}{known}"


def size(count: int) -> str:
    """So many bytes in words, such as "12.3 MiB"."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.2f} MiB"


def _stats() -> dict[str, int]:
    """What the first local device tells of its memory; CPUs tell nothing."""
    return jax.local_devices()[0].memory_stats() or {}

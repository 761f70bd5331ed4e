"""Settings of a process for speed and memory on CPUs."""

import contextlib
import ctypes
import os
import pathlib
import platform

import jaxlib

# XLA's flags, each with what it should be.
_FLAGS = {
    # The parts of a program that XLA's YNNPACK library takes over. Left to itself, jaxlib 0.10 gives it the
    # convolutions too, whose gradients then run slower.
    "--xla_cpu_experimental_ynn_fusion_type": "-individual_convolution",
    # By default XLA orders a program so that more of it could run at once, and keeps more for it. The large
    # operations use all cores by themselves.
    "--xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
}
# A jaxlib that does not know a flag ends the process, so they are given to tried versions only.
_VERSIONS = ((0, 10), (0, 12))
_DEVICES_FLAG = "--xla_force_host_platform_device_count"

# What a container may have of memory and what it uses, of Linux's control groups of versions 2 and 1.
_CONTAINER = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's <malloc.h>


def tune() -> None:
    """Settings of XLA and of the C library for training on CPUs.

    Has to be called before the first computation. Changes no result beyond rounding. A flag that the
    user has set in XLA_FLAGS stays as it is.
    """
    version = tuple(int(part) for part in jaxlib.__version__.split(".")[:2])
    if _VERSIONS[0] <= version <= _VERSIONS[1]:
        for flag, value in _FLAGS.items():
            _add_flag(flag, value)
    # XLA takes its large temporaries from malloc in every step. Kept by the process rather than
    # mapped and unmapped each time, they do not have to be filled with zeros by the kernel again.
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 2**26)


def release_memory() -> None:
    """Gives free memory of the process back to the system.

    Such as what compiling took.

    After `tune` the C library keeps it, which is good for temporaries of the next step.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def one_device_per_core() -> None:
    """Makes a device of every CPU core.

    For programs whose devices work each by itself.

    Has to be called before the first computation; changes nothing where there is an accelerator, or
    where the user has set the number in XLA_FLAGS.
    """
    _add_flag(_DEVICES_FLAG, str(cores()))


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory() -> int | None:
    """Bytes of free memory, of the machine or container; None: unknown."""
    counts = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        counts.append(int(next(line for line in lines if "MemAvailable" in line).split()[1]) << 10)
    for limit, use in _CONTAINER:
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max", no limit
            counts.append(int(pathlib.Path(limit).read_text()) - int(pathlib.Path(use).read_text()))
    if not counts:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            counts.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return max(0, min(counts)) if counts else None


def _add_flag(flag: str, value: str) -> None:
    present = os.environ.get("XLA_FLAGS", "")
    if flag not in present:
        os.environ["XLA_FLAGS"] = f"{present} {flag}={value}".strip()


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None

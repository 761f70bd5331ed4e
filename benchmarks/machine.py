"""Facts and speed of the machine, clocks, and files of records.

Nothing here knows what is measured.
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from lossattn_jax.errors import UserError
from lossattn_jax.kernels import cpu

_QUIET: dict[str, Any] = {"capture_output": True, "text": True}


def facts() -> dict[str, Any]:
    """CPU, cores of this process, memory in GiB, load, operating system."""
    return {
        "cpu": _cpu_model(),
        "cores": cpu.cores(),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        # Of the last minute; on a quiet machine near 0 when a benchmark starts.
        "load_before": os.getloadavg()[0],
        "system": platform.platform(),
    }


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of installed packages by name."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def command(module: str) -> str:
    """The command line of this process, which runs `module`."""
    return " ".join(["python", "-m", module, *sys.argv[1:]])


def header(module: str, packages: Sequence[str]) -> dict[str, Any]:
    """What every record begins with: the command, when and where it runs.

    Args:
      module: that this process runs.
      packages: whose versions are in it.
    """
    return {
        "command": command(module),
        "date": now(),
        "machine": facts(),
        "versions": versions(packages),
    }


def commit() -> str:
    """The commit of this code.

    With "+" where files were changed since; "unknown" outside of git.
    """
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], check=True, **_QUIET)
        changes = subprocess.run([*git, "status", "--short", "-uno"], check=True, **_QUIET)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.stdout.strip() + ("+" if changes.stdout.strip() else "")


def now() -> str:
    """Date and time, UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, min and max of repeated measurements, and the measurements themselves.

    Args:
      values: one at least.
    """
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "all": list(values),
    }


def seconds_per_call(
    function: Callable[[], Any], at_least: float = 0.02, repeats: int = 5
) -> float:
    """Wall time of a short call, as the median of some repeats.

    Args:
      function: is called once beforehand, untimed.
      at_least: seconds that a repeat takes; as many calls as that needs.
      repeats: of which the median is taken.
    """
    function()
    began = time.perf_counter()
    function()
    once = max(time.perf_counter() - began, 1e-7)
    calls = max(1, round(at_least / once))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(calls):
            function()
        seconds.append((time.perf_counter() - began) / calls)
    return statistics.median(seconds)


def copy_bandwidth(working_set: int) -> float:
    """Bytes read and written a second while one core copies an array.

    Args:
      working_set: bytes of source and destination together, so that the copy lives in the same caches
        as what it is compared with.
    """
    source = np.ones(max(1, working_set // 8), np.float32)
    target = np.zeros_like(source)
    return 2 * source.nbytes / seconds_per_call(lambda: np.copyto(target, source))


def product_seconds(shapes: Sequence[tuple[int, int, int]]) -> float:
    """Wall time of float32 matrix products in NumPy on one core.

    Args:
      shapes: (m, k, n) of each.
    """
    pairs = [(np.ones((m, k), np.float32), np.ones((k, n), np.float32)) for m, k, n in shapes]
    results = [np.empty((m, n), np.float32) for m, _, n in shapes]

    def multiply() -> None:
        for (left, right), result in zip(pairs, results, strict=True):
            np.matmul(left, right, out=result)

    with threadpool_limits(1):
        return seconds_per_call(multiply)


def peak_memory(function: Callable[[], Any]) -> int:
    """Largest resident memory in bytes while `function` runs; Linux only.

    Raises:
      UserError: the operating system does not tell.
    """
    try:
        # Sets what the kernel remembers as the largest to what there is now.
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        function()
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    except OSError as error:
        raise UserError(f"the memory of a process cannot be measured here: {error}") from None
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def prepare(out: str | pathlib.Path) -> pathlib.Path:
    """Makes the folder of a file of results, before hours are spent.

    Raises:
      UserError: it cannot be made, or the file is a folder.
    """
    path = pathlib.Path(out)
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder, but must be a file for the results")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    return path


def write(record: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes results as JSON; an existing file is replaced whole.

    Raises:
      UserError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(json.dumps(record, indent=2) + "\n")
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def _cpu_model() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()

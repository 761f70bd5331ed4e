"""Samples of a running training, its process and its workdir; Linux only."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator

from lossattn_jax.checkpoint import store
from lossattn_jax.train.images import reporting

# What a process holds, in the order of a sample. Memory is in bytes: what is resident, what of that the
# process alone has, and what of it no file stands behind.
PROCESS_FIELDS = ("rss", "private", "anonymous", "descriptors", "threads", "mappings")
# What a workdir holds: bytes by kind, and numbers of things.
WORKDIR_FIELDS = (
    "checkpoints",
    "metrics",
    "tensorboard",
    "others",
    "checkpoint_steps",
    "event_files",
)

_LAST_BYTES = 4096  # of a file of metrics, in which its last line lies


def measure_process(pid: int) -> dict[str, int] | None:
    """What a process holds, see `PROCESS_FIELDS`; None where it has ended."""
    folder = pathlib.Path("/proc") / str(pid)
    try:
        rollup = dict(_sizes((folder / "smaps_rollup").read_text()))
        mappings = (folder / "maps").read_text().count("\n")
        descriptors, threads = (len(os.listdir(folder / name)) for name in ("fd", "task"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    if not rollup:  # of a process that ended and was not waited for
        return None
    return {
        "rss": rollup["Rss"],
        "private": rollup["Private_Clean"] + rollup["Private_Dirty"],
        "anonymous": rollup["Anonymous"],
        "descriptors": descriptors,
        "threads": threads,
        "mappings": mappings,
    }


def measure_workdir(workdir: pathlib.Path) -> dict[str, int]:
    """What a workdir holds, see `WORKDIR_FIELDS`."""
    kinds = {
        store.CHECKPOINTS_NAME: "checkpoints",
        reporting.METRICS_NAME: "metrics",
        reporting.TENSORBOARD_NAME: "tensorboard",
    }
    sizes = dict.fromkeys(WORKDIR_FIELDS, 0)
    for path in _files(workdir):
        first, *more = path.relative_to(workdir).parts
        kind = kinds.get(first, "others")
        with contextlib.suppress(FileNotFoundError):
            sizes[kind] += path.stat().st_size
            sizes["event_files"] += kind == "tensorboard"
    with contextlib.suppress(FileNotFoundError):
        names = os.listdir(workdir / store.CHECKPOINTS_NAME)
        sizes["checkpoint_steps"] = sum(name.isdecimal() for name in names)
    return sizes


def last_epoch(workdir: pathlib.Path) -> float:
    """The last epoch in a run's metrics; 0 where there is none.

    It may be a part of one.
    """
    try:
        with (workdir / reporting.METRICS_NAME).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return 0
    whole = [line for line in lines if line.startswith(b"{") and line.endswith(b"\n")]
    return json.loads(whole[-1])["epoch"] if whole else 0


def _sizes(text: str) -> Iterator[tuple[str, int]]:
    """Names and bytes of lines like "Rss:    1024 kB"."""
    for line in text.splitlines():
        words = line.split()
        if words[-1] == "kB":
            yield words[0].rstrip(":"), 1024 * int(words[1])


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """All files below a folder from which some may vanish meanwhile."""
    for name, _, files in os.walk(folder):
        yield from (pathlib.Path(name) / file for file in files)

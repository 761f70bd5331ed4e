"""Limits the compiled programs of a process that runs many commands."""

import pathlib
import sys

_MAPS = pathlib.Path("/proc/self/maps")
# Linux gives a process 65,530 maps of memory by default, a program takes several, and where none is left XLA
# ends the process. A training takes about 800.
_MOST = 20_000


def release_many() -> None:
    """Forgets all programs where there are too many.

    What is needed again comes from the cache on disk.
    """
    if "jax" in sys.modules and _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MOST:
        sys.modules["jax"].clear_caches()

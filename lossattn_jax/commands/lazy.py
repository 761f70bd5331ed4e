"""Submodules of a package as its attributes, imported when they are first wanted."""

import importlib
import pkgutil
import sys
from collections.abc import Callable
from typing import Any


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes `__getattr__` and `__dir__` of a package, so that `import lossattn_jax` is enough.

    Args:
      package: its name; its path is known, as it is while `__init__` runs.

    Returns:
      The two functions. The first imports the submodule of a name; the second lists the submodules beside
      what the package has by itself.
    """
    here = sys.modules[package]
    names = {
        module.name
        for module in pkgutil.iter_modules(here.__path__)
        if not module.name.startswith("_")
    }

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(f"{package}.{name}")

    def listing() -> list[str]:
        return sorted(names | vars(here).keys())

    return get, listing

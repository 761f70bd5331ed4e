"""Imports: submodules on first use, moved modules under old names."""

import ast
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import pkgutil
import sys
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Where modules are today that were elsewhere in the release before: whole names, old and new.
NEW_NAMES = {
    "lossattn_jax.average_precision": "lossattn_jax.evaluate.average_precision",
    "lossattn_jax.checkpoint_integrity": "lossattn_jax.checkpoint.integrity",
    "lossattn_jax.config_file": "lossattn_jax.config.config_file",
    "lossattn_jax.config_json": "lossattn_jax.config.config_json",
    "lossattn_jax.cpu": "lossattn_jax.kernels.cpu",
    "lossattn_jax.explainers": "lossattn_jax.explain.explainers",
    "lossattn_jax.explanation_table": "lossattn_jax.explain.explanation_table",
    "lossattn_jax.faithfulness": "lossattn_jax.explain.metrics.faithfulness",
    "lossattn_jax.localisation": "lossattn_jax.explain.metrics.localisation",
    "lossattn_jax.losses": "lossattn_jax.attention.losses",
    "lossattn_jax.map_agreement": "lossattn_jax.explain.metrics.map_agreement",
    "lossattn_jax.map_store": "lossattn_jax.explain.map_store",
    "lossattn_jax.metrics": "lossattn_jax.evaluate.metrics",
    "lossattn_jax.own_images": "lossattn_jax.data.own_images",
    "lossattn_jax.pooling": "lossattn_jax.attention.pooling",
    "lossattn_jax.receptive_field": "lossattn_jax.explain.receptive_field",
    "lossattn_jax.records": "lossattn_jax.files.records",
    "lossattn_jax.routing": "lossattn_jax.attention.routing",
    "lossattn_jax.runs": "lossattn_jax.checkpoint.runs",
    "lossattn_jax.weight_files": "lossattn_jax.checkpoint.weight_files",
    "lossattn_jax.models.convolution": "lossattn_jax.kernels.convolution",
    "lossattn_jax.models.winograd": "lossattn_jax.kernels.winograd",
    "lossattn_jax.mil.bags": "lossattn_jax.data.bags.bags",
    "lossattn_jax.mil.config": "lossattn_jax.config.bags",
    "lossattn_jax.mil.convolution": "lossattn_jax.kernels.bag_convolution",
    "lossattn_jax.mil.networks": "lossattn_jax.models.bag_networks",
    "lossattn_jax.mil.settings": "lossattn_jax.train.bags.settings",
    "lossattn_jax.mil.training": "lossattn_jax.train.bags.training",
    "lossattn_jax.train.loop": "lossattn_jax.train.images.loop",
    "lossattn_jax.train.progress": "lossattn_jax.commands.progress",
    "lossattn_jax.train.step": "lossattn_jax.train.images.step",
}


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes a package's `__getattr__` and `__dir__`.

    So importing the package is enough.

    What the package's `__init__` imports under `if TYPE_CHECKING:` it offers by the same names, each imported
    when it is first wanted; and so are all submodules.

    Args:
      package: its name; its path is known, as it is while `__init__` runs.

    Returns:
      The two functions.
    """
    here = sys.modules[package]
    homes = _find_homes(here)
    submodules = {
        module.name
        for module in pkgutil.iter_modules(here.__path__)
        if not module.name.startswith("_")
    }

    def get(name: str) -> Any:
        if name in homes:
            value = getattr(importlib.import_module(homes[name]), name)
            setattr(here, name, value)  # so that this function is asked once
            return value
        whole = f"{package}.{name}"
        if name in submodules or whole in NEW_NAMES:
            return importlib.import_module(whole)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def listing() -> list[str]:
        return sorted(submodules | homes.keys() | vars(here).keys())

    return get, listing


def former_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Makes a module's `__getattr__` for former names, with a warning.

    Args:
      module: its name.
      names: former name and name of today.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(
            f"{module}.{name} is {module}.{names[name]} now; the old name works until the next release",
            FutureWarning,
            stacklevel=2,
        )
        return getattr(sys.modules[module], names[name])

    return get


def _find_homes(package: types.ModuleType) -> dict[str, str]:
    """Finds the modules of a package's names for type checkers.

    But for its submodules.
    """
    spec = package.__spec__
    assert spec is not None and isinstance(spec.loader, importlib.abc.InspectLoader)
    blocks = [
        node
        for node in ast.parse(spec.loader.get_source(package.__name__) or "").body
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    ]
    return {
        alias.name: node.module
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module and node.module != package.__name__
        for alias in node.names
    }


class MovedModules(importlib.abc.MetaPathFinder):
    """Finds the modules of `NEW_NAMES` under their old names, warning."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns the spec of a moved module, or None."""
        if fullname not in NEW_NAMES:
            return None
        home = NEW_NAMES[fullname]
        warnings.warn(
            f"{fullname} is {home} now; the old name works until the next release",
            FutureWarning,
            stacklevel=2,
        )
        spec = importlib.util.find_spec(home)
        assert spec is not None, home
        return importlib.machinery.ModuleSpec(fullname, _Alias(spec), origin=spec.origin)


class _Alias(importlib.abc.InspectLoader):
    """Loads a module under a second name, as one module."""

    def __init__(self, home: importlib.machinery.ModuleSpec):
        self._home = home

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return importlib.import_module(self._home.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self._home  # which the import of the old name has replaced

    def get_code(self, fullname: str) -> types.CodeType | None:
        """Returns the module's code, for `python -m`."""
        loader = self._home.loader
        assert isinstance(loader, importlib.abc.InspectLoader)
        return loader.get_code(self._home.name)

    def get_source(self, fullname: str) -> str | None:
        """Returns the module's source."""
        loader = self._home.loader
        assert isinstance(loader, importlib.abc.InspectLoader)
        return loader.get_source(self._home.name)

    def is_package(self, fullname: str) -> bool:
        """Whether a module is a package: no moved one is.

        None can have modules under its old name by itself.
        """
        return False

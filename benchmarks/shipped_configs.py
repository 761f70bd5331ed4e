"""Config files of this repository, as modules."""

import importlib.util
import pathlib
import types

FOLDER = pathlib.Path(__file__).parents[1] / "configs"


def load(file: str | pathlib.Path) -> types.ModuleType:
    """Runs a config file.

    Args:
      file: its name in `configs/`, as "tip.py", or a path.
    """
    path = FOLDER / file  # which is the path itself where that is an absolute one
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

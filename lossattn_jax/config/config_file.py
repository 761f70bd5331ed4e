"""Config files: the package's by name, and checks of a user's.

The check comes before ml_collections reads one.
"""

import ast
import difflib
import inspect
import os
import pathlib
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from lossattn_jax.errors import UserError

_FUNCTION = "get_config"
_PACKAGE = pathlib.Path(__file__).parents[1]
# In an installed package, and in the repository.
_FOLDER = "configs"
_PLACES = (_PACKAGE / _FOLDER, _PACKAGE.parent / _FOLDER)
_ROWS = "tip"  # the config of the TIP paper's table


def names() -> list[str]:
    """Lists the package's configs, in alphabetical order."""
    return sorted(path.stem for path in _shipped_folder().glob("*.py"))


def with_paths(args: Sequence[str]) -> list[str]:
    """Replaces names of configs in a command line by paths.

    Args:
      args: of a command line, such as `--config=tip:resnet18`.

    Returns:
      The same, with `--config=FOLDER/tip.py:resnet18`. A file that is called as the config is meant
      itself, and what names neither stays.
    """
    new_args = list(args)
    for place, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if arg == "--":
            break
        if flag not in ("--config", "-config"):
            continue
        if equals:
            new_args[place] = f"{flag}={_with_path(value)}"
        elif place + 1 < len(args):
            new_args[place + 1] = _with_path(args[place + 1])
    return new_args


def _with_path(value: str) -> str:
    name, colon, argument = value.partition(":")
    if os.path.isfile(name):
        return value
    if name in names():
        return f"{_shipped_folder() / name}.py{colon}{argument}"
    return _with_row(name, argument) or value


def _with_row(name: str, argument: str) -> str | None:
    """Finds the row of a former config file; for one release."""
    from lossattn_jax.models import table  # imported late, since it imports JAX

    path = pathlib.PurePath(name)
    row = path.stem if (path.parent.name, path.suffix) == (_FOLDER, ".py") else name
    if row not in table.NAMES:
        return None
    row = f"{row},{argument}" if argument else row
    print(f"warning: --config={name} is now --config={_ROWS}:{row}", file=sys.stderr)
    return f"{_shipped_folder() / _ROWS}.py:{row}"


def _shipped_folder() -> pathlib.Path:
    return next((folder for folder in _PLACES if folder.is_dir()), _PLACES[0])


def _hint(name: str) -> str:
    """Names the config that may be meant.

    "" where the name is clearly a path.
    """
    path = pathlib.PurePath(name)
    if path.parent.name == _FOLDER:  # of a clone, whose root is elsewhere
        name = path.stem
    if os.sep in name:
        return ""
    close = difflib.get_close_matches(name, names(), n=1)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return "" if name.endswith(".py") else f", nor is it one of: {', '.join(names())}"


def check(value: str) -> None:
    """Refuses a file that makes no config.

    It may define its function, import it, or give it a name in any other way; a file that nowhere has the
    name is not run.

    Args:
      value: of the flag --config: a path, and after a colon an argument where the function takes one.

    Raises:
      UserError: there is no such file or function, or it makes no config.
    """
    name, colon, argument = value.partition(":")
    path = pathlib.Path(name)
    if not os.path.isfile(path):  # pathlib's raises where a name is too long
        why = "is not a regular file" if os.path.exists(path) else "does not exist"
        raise UserError(f"the config file {str(path)!r} {why}{_hint(name)}")
    try:
        tree = ast.parse(path.read_text())
    except (SyntaxError, ValueError) as error:
        raise UserError(f"the config file {path} is not Python: {error}") from None
    if not {_FUNCTION, "*"} & set(_list_names(tree)):
        raise UserError(f"the config file {path} has no function {_FUNCTION}")
    # Made here for once, since ml_collections leaves what goes wrong in the file as it is.
    try:
        get_config = runpy.run_path(str(path)).get(_FUNCTION)
        if not callable(get_config):
            raise UserError(f"the config file {path} has no function {_FUNCTION}")
        if colon and not _takes(get_config, argument):
            raise UserError(f"the config file {path} takes no argument, but is given {argument!r}")
        config = get_config(*([argument] if colon else []))
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"the config file {path} makes no config ({reason})") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"the config file {path} makes {config!r}, but must make a ConfigDict")


def _list_names(node: ast.AST) -> Iterator[str]:
    """Lists a module's names; "*" where it imports all of another."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.FunctionDef):
            yield inner.name
        elif isinstance(inner, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in inner.names)
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            yield inner.id
        elif not isinstance(inner, ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield from _list_names(inner)


def _takes(function: Callable[..., Any], argument: str) -> bool:
    try:
        inspect.signature(function).bind(argument)
    except TypeError:
        return False
    except ValueError:  # of a function that says nothing of itself
        return True
    return True

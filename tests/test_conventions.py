"""What CONTRIBUTING.md asks of the tests themselves."""

import ast
import pathlib
import re
import tomllib
import warnings

import jax
import jax.numpy as jnp
import pytest

TESTS = pathlib.Path(__file__).parent
LONGEST = 60
FILES = sorted(TESTS.rglob("*.py"))
CHANGES_THE_PATH = re.compile(r"sys\.path(\.(insert|append|extend)\b|\[.*\] *=|\s*\+=)")


def test_names_fit_in_a_line():
    long = [
        f"{path.relative_to(TESTS)}: {node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and len(node.name) > LONGEST
    ]
    assert len(FILES) > 100 and not long, f"longer than {LONGEST} characters: {long}"


def test_nothing_changes_pythons_path():
    """Helpers are imported as `tests.support.NAME`, in scripts that tests run as well."""
    changing = [
        str(path.relative_to(TESTS)) for path in FILES if CHANGES_THE_PATH.search(path.read_text())
    ]
    assert not changing
    for change in (".insert(0, x)", "[:0] = [x]", " += [x]"):
        assert CHANGES_THE_PATH.search(f"sys.path{change}")


def test_warnings_are_errors():
    with pytest.raises(ResourceWarning):
        warnings.warn("a file is open", ResourceWarning, stacklevel=1)


def test_every_ignored_warning_has_its_reason():
    text = (TESTS.parent / "pyproject.toml").read_text()
    first, *ignored = tomllib.loads(text)["tool"]["pytest"]["ini_options"]["filterwarnings"]
    lines = [line.strip() for line in text.splitlines()]
    places = [number for number, line in enumerate(lines) if line.startswith('"ignore:')]
    assert first == "error" and len(places) == len(ignored)
    assert all(lines[place - 1].startswith("# ") for place in places)


def test_jax_mixes_no_dtypes():
    for one, other in ((jnp.ones(2), jnp.arange(2)), (jnp.ones(2), jnp.ones(2, jnp.bfloat16))):
        with pytest.raises(jax.dtypes.TypePromotionError):
            one + other

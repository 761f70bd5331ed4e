"""What CONTRIBUTING.md asks of the tests themselves."""

import ast
import pathlib
import re

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

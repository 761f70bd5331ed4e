"""The layout of the package: its folders, what lies at the top, and which module imports which."""

import ast
import functools
import importlib
import pathlib
import sys

import pytest

from lossattn_jax.commands import imports
from reliability import in_process

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "lossattn_jax"
FOLDERS = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)


def name_of(folder):
    return folder.relative_to(PACKAGE).as_posix()


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text())


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def statements(body):
    """Those that run on import: without functions, blocks for type checkers, and what a command does."""
    for node in body:
        if isinstance(node, ast.If):
            test = ast.dump(node.test)
            if "TYPE_CHECKING" not in test and "__name__" not in test:
                yield from statements(node.body)
            yield from statements(node.orelse)
        elif isinstance(node, ast.Try | ast.With):
            yield from statements(node.body)
        else:
            yield node


def offered(module):
    """What a folder's face offers of other modules, with the module that has it."""
    return {
        alias.name: node.module
        for block in tree_of(MODULES[module]).body
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module != module
        for alias in node.names
    }


def imported(module):
    """The modules of the package that a module imports."""
    for node in statements(tree_of(MODULES[module]).body):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(PACKAGE.name):
            continue
        homes = offered(node.module) if node.module in MODULES else {}
        for alias in node.names:
            whole = f"{node.module}.{alias.name}"
            yield whole if whole in MODULES else homes.get(alias.name, node.module)


def circle(graph):
    """A circle of imports, as the modules on it; none where there is none."""
    done = set()

    def visit(module, way):
        if module in way:
            return [*way[way.index(module) :], module]
        if module not in done:
            for other in graph.get(module, ()):
                if around := visit(other, [*way, module]):
                    return around
            done.add(module)
        return []

    return next((around for module in graph if (around := visit(module, []))), [])


# On import a module takes nothing from a folder further down in the table of docs/architecture.md, but for
# these.
EXCEPTIONS = {
    ("attention.scorers", "models.layers"),
    ("checkpoint.store", "evaluate.metric_registry"),
    ("config.bags", "mil.selection"),
    ("config.bags", "train.bags.settings"),
    ("data.prepare", "checkpoint.run_folder"),
    ("kernels.bag_convolution", "models.layers"),
    ("train.images.loop", "explain.explanations"),
    ("train.images.loop", "explain.figures"),
}


def table_of_folders():
    """The rows of the page's table: folder, what belongs in it, and its registries."""
    lines = (ROOT / "docs" / "architecture.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "/` |" in line]
    return {folder.strip("`/"): (text, registries) for folder, text, registries in rows}


def outermost_folder(module):
    return module.split(".")[1] if len(MODULES[module].relative_to(PACKAGE).parts) > 1 else ""


def test_folders_import_none_further_down_in_the_table():
    order = list(dict.fromkeys(folder.split("/")[0] for folder in table_of_folders()))
    assert set(order) == {folder.relative_to(PACKAGE).parts[0] for folder in FOLDERS}
    down = set()
    for module in MODULES:
        for other in imported(module):
            home, place = outermost_folder(module), outermost_folder(other)
            if home and place and place != "commands" and order.index(place) > order.index(home):
                down.add((module.partition(".")[2], other.partition(".")[2]))
    assert down == EXCEPTIONS


def importing(library):
    """The modules that import a library, or a part of it, anywhere in them."""
    return {
        module.partition(".")[2]
        for module, path in MODULES.items()
        for node in ast.walk(tree_of(path))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        if name.split(".")[0] == library
    }


def test_few_modules_know_of_the_libraries_for_storing():
    formats = "data.bags.feature_formats.zarr_store"
    assert importing("tensorstore") == {"checkpoint.writer", "explain.map_store", formats}
    assert importing("orbax") == {
        f"checkpoint.{module}" for module in ("integrity", "store", "writer")
    }


def test_one_module_spreads_work_over_devices():
    words = {"pmap", "shard_map", "NamedSharding", "PartitionSpec", "Mesh"}
    knowing = {
        module.partition(".")[2]
        for module, path in MODULES.items()
        for node in ast.walk(tree_of(path))
        if getattr(node, "attr", getattr(node, "id", "")) in words
        and ast.unparse(node) != "devices.pmap"
    }
    assert knowing == {"devices"}


def registries():
    """The package's registries by module and name."""
    calls = [
        (module, target.id)
        for module, path in MODULES.items()
        for node in tree_of(path).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "Registry"
        for target in ([node.target] if isinstance(node, ast.AnnAssign) else node.targets)
    ]
    return {(home, name): getattr(importlib.import_module(home), name) for home, name in calls}


def test_pages_have_every_registry():
    found = registries()
    assert len(found) > 10
    rows = table_of_folders()
    named = {
        (folder, name.strip(" `"))
        for folder, (_, names) in rows.items()
        for name in names.split(",")
        if name
    }
    homes = {(name_of(path.parent), name) for (home, name) in found for path in [MODULES[home]]}
    assert named == homes
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert all(f"`{name}`" in contributing for _, name in found)
    for registry in found.values():
        assert not registry.kind.startswith(("the ", "a ", "an "))


# Places with the same words of another meaning (what a step of a training tells, the paper's benchmarks), and
# poolings that are methods for bags by themselves.
SAME_WORDS = {
    ("train.images.step", "EVALUATION_METRICS"),
    ("train.images.reporting", "EVALUATION_METRICS"),
    ("train.images.gradients", "EVALUATION_METRICS"),
    ("mil.methods", "SOURCES"),
    ("attention.poolings", "METHODS"),
}


def listed(tree):
    """Sets of the words that stand side by side in a tuple, list, set or dictionary."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict):
            items = node.keys if isinstance(node, ast.Dict) else node.elts
            yield {item.value for item in items if isinstance(item, ast.Constant)}


def test_no_other_module_lists_names_of_a_registry():
    assert list(listed(ast.parse("x = ['mean', f('max', 1)]"))) == [{"mean"}]
    own, found = registries(), set()
    for module, path in MODULES.items():
        for words in listed(tree_of(path)):
            for (home, name), registry in own.items():
                # Files beside the registry have parts of it, whose family may share a table.
                beside = MODULES[home].parent == path.parent
                if len(words & set(registry)) > 1 and not beside:
                    found.add((module.partition(".")[2], name))
    assert found == SAME_WORDS


def test_no_modules_import_each_other_in_a_circle():
    assert circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]  # else it could not fail
    graph = {module: sorted(set(imported(module))) for module in MODULES}
    assert sum(map(len, graph.values())) > 500
    assert circle(graph) == []


def test_the_top_level_has_at_most_eight_modules():
    modules = [path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")]
    assert len(modules) <= 8, modules


def test_every_folder_is_in_the_architecture_page():
    rows = table_of_folders()
    assert sorted(rows) == sorted(map(name_of, FOLDERS))
    lines = (ROOT / "docs" / "architecture.md").read_text().splitlines()
    assert len([line for line in lines if "/` |" in line]) == len(rows)  # none stands twice


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_every_folder_says_what_belongs_in_it(folder):
    text = ast.get_docstring(tree_of(folder / "__init__.py"))
    assert text and len(text.splitlines()) >= 3


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_face_offers_what_type_checkers_see(folder):
    module = importlib.import_module(module_of(folder / "__init__.py"))
    for name, home in offered(module.__name__).items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name)
        assert name in dir(module) and name in module.__all__
        assert (
            f"{module.__name__}.{name}" not in MODULES
        )  # which would take its place once imported


@pytest.mark.parametrize("old", imports.NEW_NAMES)
def test_a_moved_module_works_under_its_old_name(old):
    sys.modules.pop(old, None)  # of another test
    with pytest.warns(FutureWarning, match=f"{old} is {imports.NEW_NAMES[old]} now"):
        moved = importlib.import_module(old)
    home = importlib.import_module(imports.NEW_NAMES[old])
    assert moved is home and home.__spec__.name == home.__name__ == imports.NEW_NAMES[old]


def test_a_moved_command_runs_under_its_old_name():
    old = "lossattn_jax.explanation_table"
    with pytest.warns(FutureWarning):
        sys.modules.pop(old, None)
        importlib.import_module(old)  # as another command in this process may have
        finished = in_process.run(["-m", old, "--helpshort"], in_process.ROOT)
    assert "--table" in finished.stdout and "Error" not in finished.stderr


def test_functions_take_at_most_six_positional_parameters():
    long = [
        f"{module}.{node.name}"
        for module, path in MODULES.items()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef)
        and len({a.arg for a in node.args.posonlyargs + node.args.args} - {"self", "cls"}) > 6
    ]
    assert not long

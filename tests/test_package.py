"""The package as pip sees it, its submodules on first use, and what belongs to its files."""

import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import lossattn_jax

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def requirements(name):
    """The lines of a file of requirements, without comments, as pyproject.toml writes them."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return {line.replace('"', "'") for line in lines if line}


def test_dependencies_are_those_of_the_requirements():
    assert requirements("requirements.txt") == {*PROJECT["dependencies"], *EXTRAS["prepare"]}
    heavy = ("tensorflow>", "tensorflow-cpu", "torch")
    assert not [name for name in PROJECT["dependencies"] if name.startswith(heavy)]


def test_the_extra_of_developers_is_their_requirements():
    assert requirements("requirements-dev.txt") - {"-r requirements.txt"} == {
        name for name in EXTRAS["dev"] if name != "lossattn_jax[prepare]"
    }
    assert "lossattn_jax[prepare]" in EXTRAS["dev"]


def test_the_version_stands_in_one_place():
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    assert "\nversion:" not in (ROOT / "CITATION.cff").read_text()
    head = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1]
    assert head.startswith(lossattn_jax.__version__)


def test_the_licence_is_apaches_and_the_papers_are_cited():
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence and "9. Accepting Warranty" in licence
    assert PROJECT["license"] == "Apache-2.0" and PROJECT["license-files"] == ["LICENSE"]
    citation = (ROOT / "CITATION.cff").read_text()
    for title in ("Interpreting Image-Level Prediction", "Deep Multiple Instance Learning"):
        assert title in citation
    assert re.findall(r"doi: (\S+)", citation) == [
        "10.1109/TIP.2020.3046875",
        "10.1609/aaai.v34i04.6030",
    ]
    assert (ROOT / "lossattn_jax" / "py.typed").exists()


def new_process(script):
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_submodules_come_when_they_are_wanted():
    script = (
        "import sys, lossattn_jax\n"
        "assert 'jax' not in sys.modules\n"
        "listed = dir(lossattn_jax)\n"
        "assert {'attention', 'data', 'mil', '__version__'} <= set(listed), listed\n"
        "assert 'jax' not in sys.modules\n"
        "print(lossattn_jax.attention.pooling.weighted_sum.__name__)\n"
        "print(lossattn_jax.train.images.loop.train.__module__, lossattn_jax.mil.methods.NAMES[0])\n"
        "print(lossattn_jax.data.prepare.prepare.__name__, lossattn_jax.models.table.__name__)"
    )
    assert new_process(script).split() == [
        "weighted_sum",
        "lossattn_jax.train.images.loop",
        "mi_svm",
        "prepare",
        "lossattn_jax.models.table",
    ]


@pytest.mark.parametrize("package", ["", ".train", ".mil", ".data", ".models"])
def test_a_name_that_no_package_has_is_refused(package):
    module = sys.modules["lossattn_jax"]
    for part in package.split(".")[1:]:
        module = getattr(module, part)
    with pytest.raises(AttributeError, match=f"'lossattn_jax{package}' has no attribute 'nothing'"):
        _ = module.nothing


def imported(text):
    """The modules that a text names as imports, or as `lossattn_jax.NAME...` in code."""
    for line in re.findall(r"^from (lossattn_jax[\w.]*) import (.+)$", text, re.MULTILINE):
        yield from (f"{line[0]}.{name.strip()}" for name in line[1].split(","))
    yield from re.findall(r"`(lossattn_jax(?:\.\w+)+)[`(\[]", text)
    yield from re.findall(r"`(lossattn_jax(?:\.\w+)+)\(", text)


def test_what_the_readme_names_is_there_after_one_import():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    names = sorted({name for page in pages for name in imported(page.read_text())})
    assert "lossattn_jax.attention.pooling" in names and len(names) > 5
    for name in names:
        value = lossattn_jax
        for part in name.split(".")[1:]:
            value = getattr(value, part)

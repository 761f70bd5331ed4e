"""README and the pages of docs/ show what works, and their links lead somewhere."""

import functools
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from lossattn_jax.attention import pooling
from lossattn_jax.commands import help_text, table
from lossattn_jax.config import bags as bag_config_lib
from lossattn_jax.config import config_file
from lossattn_jax.config import images as config_lib
from lossattn_jax.data.bags import bag_files
from lossattn_jax.data.bags.positive import find_positive
from tests.support import trained_runs

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text()
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PYTHON = [
    pytest.param(code, id=f"{name}-{number}")
    for name, text in PAGES.items()
    for number, code in enumerate(code for kind, code in _FENCE.findall(text) if kind == "python")
]


@functools.cache
def _run(code: str) -> dict:
    """Runs a block of code as a file of its own; returns its names."""
    names = {"__name__": "__main__"}
    exec(compile(code, "block", "exec"), names)
    return names


def _prose(text: str) -> str:
    """A page without its blocks of code."""
    return _FENCE.sub("", text)


@pytest.mark.parametrize("code", _PYTHON)
def test_a_block_of_python_runs_as_pasted(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "runs/digit_scenes" in code:  # a reader's own run and pictures
        trained_runs.write(tmp_path / "runs" / "digit_scenes")
        trained_runs.write_pictures(tmp_path / "folder")
        shutil.copy(tmp_path / "folder" / "00.png", tmp_path / "a.png")
    before = sorted(tmp_path.rglob("*"))
    _run(code)
    assert sorted(tmp_path.rglob("*")) == before  # nothing that a reader would not expect


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_docs_have_a_model_of_each_kind_with_loss_and_gradient(kind):
    page = PAGES["docs/own_model.md"]
    (code,) = (code for language, code in _FENCE.findall(page) if language == "python")
    names = _run(code)
    features, labels = names["features"], names["labels"]
    assert features.shape == (8, 196, 768)  # of a ViT, of whose grid the page speaks
    sizes = [float(abs(leaf).max()) for leaf in jax.tree.leaves(names[f"{kind}_gradients"])]
    assert len(sizes) == 2 and min(sizes) > 0  # kernel and bias
    outputs = {
        "linen": lambda: names["model"].apply(names["variables"], features),
        "nnx": lambda: names["NNXModel"](nnx.Rngs(0))(features),
    }[kind]()
    logits, patch_logits, attention = (np.asarray(output, np.float64) for output in outputs)
    assert attention.shape == (8, 196)
    np.testing.assert_allclose(attention.sum(axis=1), 1, rtol=1e-5)
    image = -_log_softmax(logits)[np.arange(8), labels]
    patches = -_log_softmax(patch_logits)[np.arange(8), :, labels]
    expected = (image + 0.1 * (attention * patches).sum(axis=1)).mean()
    np.testing.assert_allclose(names[f"{kind}_loss"], expected, rtol=1e-5)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_what_pages_say_of_grid_is_so():
    """`threshold / grid` off every weight, and none for patches with no more than that."""
    patch_logits = jax.random.normal(jax.random.key(0), (2, 196, 10)) ** 5
    before = pooling.loss_attention(patch_logits, grid=196, threshold=0.0)
    attention = pooling.loss_attention(patch_logits, grid=196)
    excess = np.maximum(np.asarray(before) - 0.1 / 196, 0)
    assert (excess == 0).any()
    np.testing.assert_allclose(attention, excess / excess.sum(axis=1, keepdims=True), rtol=1e-4)
    for page in ("README.md", "docs/own_model.md"):
        assert "196 patch tokens" in " ".join(PAGES[page].replace("**", "").split())


def test_the_two_functions_for_weights_undo_each_other():
    (code,) = (code for kind, code in _FENCE.findall(PAGES["docs/weights.md"]) if kind == "python")
    names = _run(code)
    jax.tree.map(np.testing.assert_array_equal, names["variables"], names["again"])


def test_readme_is_short_and_leads_to_every_page():
    assert len(README.splitlines()) <= 150
    for name in PAGES:
        assert name == "README.md" or f"({name}" in README, name


def test_the_first_commands_are_the_demo_and_the_tests():
    first = re.search(r"```\n(.*?)```", README, re.DOTALL).group(1).split("\n")
    assert first[0].startswith("make demo ")
    assert first[1].startswith("make test ")
    makefile = (ROOT / "Makefile").read_text()
    assert "\ndemo:" in makefile and "\ntest:" in makefile


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere_and_nothing_is_left_to_fill_in(name):
    text = _prose(PAGES[name])
    links = re.findall(r"\]\(([^)]+)\)", text)
    for link in links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.resolve().is_relative_to(ROOT) and target.exists(), link
        assert not anchor or anchor in _anchors(target.read_text()), link
    assert links
    assert not re.search(r"TODO|[A-Z]+_(TIME|TABLE)", PAGES[name])


def _anchors(text: str) -> set[str]:
    """What links to a page may have behind `#`, as GitHub names headings."""
    headings = re.findall(r"^#+ (.+)$", _prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _commands(text: str) -> list[list[str]]:
    """The words of every command of the package that a page shows, also within a sentence."""
    lines = [line for kind, code in _FENCE.findall(text) for line in code.splitlines() if not kind]
    lines += re.findall(r"`([^`\n]+)`", _prose(text))
    commands = [line.split("#")[0].split() for line in lines]
    return [
        words
        for words in commands
        if (words[:1] == ["lossattn"] and words[1:])
        or (words[:2] == ["python", "-m"] and words[2].startswith("lossattn_jax."))
    ]


_SHOWN = [(name, words) for name, text in PAGES.items() for words in _commands(text)]


def _flags(words: list[str]) -> set[str]:
    """The names of the flags of a command, as its help has them, or the source of a module without one."""
    if words[0] == "python":
        module = words[2]
        command = next((one for one in table.COMMANDS if one.module == module), None)
    else:
        command, _ = table.find(words[1:])
    if command is not None:
        return set(re.findall(r"^  --(?:\[no\])?(\w+)", help_text.read_text(command), re.MULTILINE))
    path = ROOT / module.replace(".", "/")
    source = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    return set(re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", source.read_text()))


@pytest.mark.parametrize(
    "words", [pytest.param(words, id=f"{name}: {' '.join(words)}") for name, words in _SHOWN]
)
def test_a_command_has_the_flags_that_are_shown(words):
    options = [word for word in words if word.startswith("--")]
    if words[1] == "COMMAND" or options == ["--version"]:
        return
    known = _flags(words)
    for flag in options:
        name, _, value = flag[2:].partition("=")
        assert name.partition(".")[0] in known, flag
        if name == "config":
            file = value.partition(":")[0]
            assert file in config_file.names() or (ROOT / file).exists(), flag


@pytest.mark.parametrize("name", PAGES)
def test_keys_of_configs_exist(name):
    of_images = {key for key, _ in config_lib.leaves(config_lib.default_config())}
    of_bags = {key for key, _ in config_lib.leaves(bag_config_lib.default_config())}
    for key in re.findall(r"--config\.([a-z_0-9.]*[a-z_0-9])", PAGES[name]):
        assert key in of_images | of_bags, key


def test_the_table_of_a_slides_features_is_read(tmp_path):
    text = PAGES["docs/bags.md"]
    (table,) = (code for _, code in _FENCE.findall(text) if code.startswith("slide_id,"))
    (tmp_path / "own.csv").write_text(table)
    bags = bag_files.read(tmp_path / "own.csv")
    assert bags.ids == ("s01", "s02") and set(bags.classes) == {"tumor", "normal"}
    assert bags.features == ("f0", "f1", "f2") and len(bags.instances) == 3
    assert "`--positive=tumor`" in text
    assert find_positive(bags.classes) is None  # so that they ask
    assert find_positive(bags.classes, ("tumor",)) == "tumor"

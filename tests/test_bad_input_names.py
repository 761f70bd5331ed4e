"""What commands make of names that no file system takes, and of JSON that is nested too deeply."""

import json

import pytest

from tests.support import bad_input

LONG = "x" * 300
CONFIG = "--config={root}/configs/digit_scenes.py"
DEEP = "[" * 100_000


def of(name, *flags):
    return ("-m", f"lossattn_jax.{name}", *flags)


TO_TABLE = ("--table={w}/t.md", "--record={w}/t.json")
CASES = [
    (("train.py", f"--config={LONG}", "--workdir={w}/new"), "does not exist"),
    (
        ("train.py", CONFIG, "--config.data.dir={w}/data", f"--workdir={{w}}/{LONG}"),
        "cannot be written: File name too long",
    ),
    (of("evaluate", f"--workdir={{w}}/{LONG}"), "File name too long"),
    (of("convert", CONFIG, f"--from={LONG}.npz", "--workdir={w}/new"), "there is no file"),
    (
        of("convert", f"--to={LONG}/a.npz", "--workdir={w}/new"),
        "cannot be written: there is no folder",
    ),
    (of("mil", "--dataset=musk1", f"--data_dir={LONG}", "--workdir={w}/new"), "musk1 is not in"),
    (
        of("mil", f"--dataset={LONG}.csv", "--workdir={w}/new"),
        "cannot be read (File name too long)",
    ),
    (of("mil.tables", f"--runs={LONG}", *TO_TABLE), "cannot be read: File name too long"),
    (
        of("mil.tables", "--runs={w}/deep.json", *TO_TABLE),
        "{w}/deep.json holds a summary that cannot",
    ),
    (of("evaluate", "--workdir={w}/deep"), "{w}/deep/config.json cannot be read as a config"),
    (of("evaluate", "--workdir={w}/dotted"), "{w}/dotted/config.json cannot be read as a config"),
    (
        of("explain.explanation_table", "--runs={w}/compared", *TO_TABLE),
        "compare_explainers.json in {w}/comp",
    ),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory, scenes_dir):
    folder = tmp_path_factory.mktemp("world")
    (folder / "data").symlink_to(scenes_dir)
    for name in ("deep", "dotted", "compared"):
        (folder / name).mkdir()
    (folder / "deep.json").write_text(DEEP)
    (folder / "deep" / "config.json").write_text(DEEP)
    (folder / "dotted" / "config.json").write_text(json.dumps({"train.epochs": 1}))
    (folder / "compared" / "config.json").write_text("{}")
    (folder / "compared" / "evaluation_test.json").write_text("{}")
    (folder / "compared" / "compare_explainers.json").write_text(DEEP)
    return folder


@pytest.mark.parametrize(("arguments", "sentence"), CASES)
def test_wrong_input_is_refused(world, arguments, sentence):
    bad_input.refused(arguments, sentence, world)

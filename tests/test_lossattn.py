"""The command `lossattn`: its table, help, versions, and what it says of a wrong word."""

import importlib.util
import pathlib
import re
import subprocess
import sys
import time
import tomllib

import pytest

from lossattn_jax import __main__ as lossattn
from lossattn_jax import __version__
from lossattn_jax.commands import help_text, table
from lossattn_jax.config import config_file
from reliability import in_process

ROOT = in_process.ROOT
WORDS = [command.words for command in table.COMMANDS]


def run(*args):
    return in_process.run(["-m", "lossattn_jax", *args], ROOT)


def test_no_words_are_a_table_of_contents():
    for args in ([], ["--help"]):
        finished = run(*args)
        assert finished.returncode == 0
        for command in table.COMMANDS:
            assert re.search(
                rf"^  lossattn {command.words} +{re.escape(command.summary)}$",
                finished.stdout,
                re.MULTILINE,
            )


def test_the_table_is_the_one_of_the_package():
    assert len(set(WORDS)) == len(WORDS)
    for command in table.COMMANDS:
        module = command.module.removeprefix("lossattn_jax.")
        assert importlib.util.find_spec(command.module) is not None
        assert command.examples
        assert command.operands or all(example.startswith("--") for example in command.examples)
        assert command.words.split()[-1].replace("-", "_") in (*module.split("."), "cv")
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert script == {"lossattn": "lossattn_jax.__main__:main"}


@pytest.mark.parametrize("words", WORDS)
def test_help_is_stored_as_the_command_prints_it(words):
    command, rest = table.find(words.split())
    assert (command.words, rest) == (words, [])
    printed = in_process.run(["-m", command.module, "--help"], ROOT)
    assert (printed.returncode, printed.stderr) == (0, "")
    stored = run(*words.split(), "--help")
    assert stored.stdout == printed.stdout, "run python -m lossattn_jax.commands"
    head, examples, *_ = stored.stdout.split("\n\n")
    assert head == f"lossattn {words}: {command.summary}."
    assert examples.startswith(f"Examples:\n  lossattn {words} {command.examples[0]}")
    assert stored.stdout.endswith(f"\nThe same: python -m {command.module}\n")


def test_examples_have_flags_that_there_are():
    for command in table.COMMANDS:
        known = set(
            re.findall(r"^  --(?:\[no\])?(\w+)", help_text.read_text(command), re.MULTILINE)
        )
        for example in command.examples:
            names = re.findall(r"--(\w+)", example)
            assert (names or command.operands) and set(names) <= known, (
                command.words,
                set(names) - known,
            )
            named = re.findall(r"--config=([a-z0-9_]+)(?:[: ]|$)", example)
            assert set(named) <= set(config_file.names())


def test_no_text_of_help_is_left_over():
    stored = {path.name for path in help_text.FOLDER.iterdir()}
    assert stored == {help_text.path_of(command).name for command in table.COMMANDS}


@pytest.mark.parametrize("args", [[], ["train", "--help"], ["mil", "cv", "--help"], ["trian"]])
def test_help_needs_no_jax_and_comes_within_a_second(args):
    script = (
        "import sys, lossattn_jax.__main__ as command\n"
        f"command.run({args!r})\n"
        "assert not {'jax', 'numpy', 'absl'} & set(sys.modules), 'imported'"
    )
    seconds = []
    for _ in range(3):  # another process may have the cores
        start = time.monotonic()
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True)
        seconds.append(time.monotonic() - start)
    assert min(seconds) < 1


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["trian"], "'trian' is not a command of lossattn; the nearest is: lossattn train."),
        (
            ["export_maps"],
            "'export_maps' is not a command of lossattn; the nearest is: lossattn export-maps.",
        ),
        (
            ["mil", "table"],
            "'mil table' is not a command of lossattn; the nearest is: lossattn mil tables.",
        ),
        (["mil", "--dataset=a"], "the nearest is: lossattn mil cv."),
        (["xyzzy"], "'xyzzy' is not a command of lossattn; there are: prepare, train, "),
        (["--halp"], "'--halp' is not a command of lossattn"),
        (["x" * 9999], "'" + "x" * 60 + "...' is not a command of lossattn"),
    ],
)
def test_a_wrong_word_is_answered_with_the_nearest(args, sentence):
    finished = run(*args)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("error: ") and finished.stderr.count("\n") == 1
    assert sentence in finished.stderr


def test_the_first_word_of_several_lists_them():
    finished = run("mil")
    assert finished.returncode == 0
    assert [line.partition(":")[0] for line in finished.stdout.splitlines()] == [
        f"lossattn {words}" for words in WORDS if words.startswith("mil ")
    ]


@pytest.mark.parametrize("words", WORDS)
def test_a_command_is_the_same_by_either_name(words, tmp_path):
    command, _ = table.find(words.split())
    by_module = in_process.run(["-m", command.module, "--speed=2"], tmp_path)
    by_word = in_process.run(["-m", "lossattn_jax", *words.split(), "--speed=2"], tmp_path)
    assert (by_word.returncode, by_word.stderr) == (2, by_module.stderr)
    assert "Unknown command line flag 'speed'" in by_word.stderr


def test_the_versions_are_told_with_the_devices():
    import jax

    finished = run("--version")
    assert finished.returncode == 0
    lines = finished.stdout.splitlines()
    assert lines[0] == f"lossattn_jax {__version__}"
    assert f"JAX {jax.__version__}" in lines
    assert re.fullmatch(r"devices: \d+ cpu device\(s\) .*", lines[-1])


def test_devices_that_cannot_be_used_are_told(monkeypatch):
    from lossattn_jax import devices

    def describe():
        raise RuntimeError("the TPU is\nalready in use")

    monkeypatch.setattr(devices, "describe", describe)
    assert lossattn.version().endswith("devices: none can be used (the TPU is already in use)")


def test_a_reader_that_goes_is_no_error():
    script = (
        "import subprocess, sys\n"
        "command = [sys.executable, '-m', 'lossattn_jax', 'train', '--help']\n"
        "made = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "made.stdout.close()\n"
        "print(made.stderr.read().decode(), made.wait())"
    )
    finished = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True)
    assert finished.stdout.split() == [b"0"]


def test_a_config_is_named_from_any_folder(tmp_path):
    command, where = ["-m", "lossattn_jax.train", "--workdir=run"], "--config.data.dir=/nowhere"
    for config in (["--config=digit_scenes"], ["--config", "tip:resnet18,cifar100"]):
        finished = in_process.run([*command, *config, where], tmp_path)
        assert finished.returncode == 2
        assert "is not prepared (as array_record) in /nowhere" in finished.stderr
    bags = ["-m", "lossattn_jax.mil", "--config=mil_best:average", "--dataset=absent.csv"]
    assert "absent.csv does not exist" in in_process.run([*bags, "--workdir=w"], tmp_path).stderr


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["train"], "--config and --workdir are missing; see the examples of --help."),
        (["evaluate"], "--workdir is missing; see the examples of --help."),
        (["train", "help"], "the argument 'help' is not a flag: say --help."),
        (["train", "digit_scenes"], "is not a flag: say --config=digit_scenes."),
        (
            ["train", "--config=digit_scenes", "--workdir="],
            "--workdir is empty, but must have a value;",
        ),
        (
            ["train", "--config", "digit_scenes", "--workdir"],
            "--workdir is empty, but must have a value;",
        ),
        (["train", "--config=", "--workdir=w"], "--config is empty, but must have a value;"),
        (
            ["mil", "lambdas", "--config=", "--workdir=w"],
            "--config is empty, but must have a value;",
        ),
        (
            ["explain", "--workdir=w", "--images="],
            "--images is empty, but must name files or folders;",
        ),
        (
            ["mil", "--dataset=own.csv"],
            "'mil' is not a command of lossattn; the nearest is: lossattn mil cv.",
        ),
        (["verison"], "mil lambdas, and --help and --version."),
    ],
)
def test_what_is_missing_or_empty_is_named_with_the_way_out(tmp_path, args, sentence):
    finished = in_process.run(["-m", "lossattn_jax", *args], tmp_path)
    assert finished.returncode == 2 and sentence in finished.stderr, finished.stderr
    assert len(finished.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args",
    [["help"], ["-h"], ["help", "train"], ["--help", "train"], ["mil", "--help"], ["mil cv", "-h"]],
)
def test_help_comes_however_it_is_asked_for(tmp_path, args):
    finished = in_process.run(["-m", "lossattn_jax", *args], tmp_path)
    assert finished.returncode == 0 and not finished.stderr
    assert finished.stdout.count("lossattn ") > 2 and ("train" in args) == (
        finished.stdout.startswith("lossattn train: ")
    )


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("digit_scene", "'digit_scene' does not exist (did you mean 'digit_scenes'?)"),
        ("configs/cifar10_smal.py", "does not exist (did you mean 'cifar10_small'?)"),
        ("own", "'own' does not exist, nor is it one of: aaai_resnet18, "),
        ("a/digit_scenes", "'a/digit_scenes' does not exist."),
        ("nothing_like_it.py", "'nothing_like_it.py' does not exist."),
        ("tip:resnet18,imagenet", "'imagenet'"),
    ],
)
def test_a_config_that_is_none_is_told(tmp_path, name, sentence):
    finished = in_process.run(
        ["-m", "lossattn_jax.train", f"--config={name}", "--workdir=w"], tmp_path
    )
    assert finished.returncode == 2 and sentence in finished.stderr


def test_ones_own_file_comes_before_a_config_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (shipped,) = config_file.with_paths(["--config=coco_resnet18"])
    assert pathlib.Path(shipped.removeprefix("--config=")).name == "coco_resnet18.py"
    (tmp_path / "tip").mkdir()  # a run's folder is no config
    (shipped,) = config_file.with_paths(["--config=tip:resnet18,svhn_cropped"])
    assert shipped.endswith("tip.py:resnet18,svhn_cropped")
    (tmp_path / "coco_resnet18").touch()
    unchanged = ["--config=coco_resnet18", "--workdir", "tip", "--", "--config=tip"]
    assert config_file.with_paths(unchanged) == unchanged


@pytest.mark.parametrize(
    ("old", "row"),
    [
        ("configs/resnet18_loss_attention.py", "resnet18_loss_attention"),
        ("/a/clone/configs/resnet50.py:cifar100", "resnet50,cifar100"),
        ("capsnet:svhn_cropped", "capsnet,svhn_cropped"),
    ],
)
def test_configs_of_rows_go_on_working_with_a_warning(tmp_path, monkeypatch, capsys, old, row):
    monkeypatch.chdir(tmp_path)
    (config,) = config_file.with_paths([f"--config={old}"])
    assert config.endswith(f"/configs/tip.py:{row}")
    name = old.partition(":")[0]
    assert capsys.readouterr().err == f"warning: --config={name} is now --config=tip:{row}\n"
    own = [f"--config={path}" for path in ("own/resnet18.py", "configs/own.py")]
    assert config_file.with_paths(own) == own

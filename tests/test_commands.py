"""Commands as a user meets them: a mistake is one sentence on stderr and exit code 2."""

import logging

import pytest

from lossattn_jax.commands import command
from reliability import in_process
from tests.support import shrunk

CONFIG = f"--config={shrunk.CONFIG}"


def assert_refused(finished, sentence):
    assert finished.returncode == 2
    assert sentence in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["--config.model.widht=2"],
            "widht is not a config key; did you mean config.model.width?",
        ),
        (["--config.train.epochs=many"], "invalid literal for int()"),
        (
            ["--config.train.epochs=0"],
            "config.train.epochs is 0, but must be a whole number, at least 1",
        ),
        (
            ["--config.model.pooling=sum"],
            "config.model.pooling is 'sum', but must be one of: mean, mi_net, max, ",
        ),
        (
            ["--config.model.head=capsule", "--config.model.pooling=mean"],
            "config.model.backbone 'small' with head 'capsule' and pooling 'mean' does not exist",
        ),
        (["--config.data.name=imagenet"], "config.data.name is 'imagenet', but must be one of"),
        (
            ["--config.data.dir=/nowhere"],
            "python -m lossattn_jax.data.prepare --dataset=digit_scenes",
        ),
        (["--speed=2"], "Unknown command line flag 'speed'"),
        (["fast"], "the argument 'fast' is not a flag"),
    ],
)
def test_a_mistake_stops_training_with_a_sentence(tmp_path, flags, sentence):
    finished = in_process.run(
        ["train.py", CONFIG, f"--workdir={tmp_path / 'run'}", *flags], in_process.ROOT
    )
    assert_refused(finished, sentence)
    assert finished.stderr.count("error: ") == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["train.py", "--config=absent.py", "--workdir=x"],
            "the config file 'absent.py' does not exist",
        ),
        (["train.py", "--config", "absent.py", "--workdir=x"], "'absent.py' does not exist"),
        (["train.py", "--config=configs", "--workdir=x"], "'configs' is not a regular file"),
        (["train.py", "--config=Makefile", "--workdir=x"], "Makefile is not Python"),
        (["train.py", "--config=train.py", "--workdir=x"], "train.py has no function get_config"),
        (["train.py", CONFIG, "--noconfig.data.extar"], "config.data.extar is not a config key"),
        (["train.py", CONFIG, "--config.nodata.extra"], "config.nodata.extra is not a config key"),
        (
            ["train.py", "--config=configs/aaai_resnet18.py:some", "--workdir=x"],
            "the config's argument is 'some', but must be all or a number of images",
        ),
        (
            ["train.py", "--config=configs/coco_resnet18.py:cifar100", "--workdir=x"],
            "configs/coco_resnet18.py takes no argument, but is given 'cifar100'",
        ),
        (["train.py", CONFIG], "workdir"),
        (
            ["-m", "lossattn_jax.evaluate", "--workdir=/nowhere"],
            "/nowhere is not a workdir of a run",
        ),
        (
            ["-m", "lossattn_jax.explain", "--workdir=/nowhere"],
            "/nowhere is not a workdir of a run",
        ),
        (
            ["-m", "lossattn_jax.replay", "--dump=/nowhere"],
            "/nowhere is not a dump of a skipped update",
        ),
        (["-m", "lossattn_jax.evaluate"], "--workdir"),
    ],
)
def test_a_missing_file_or_flag_is_a_sentence(arguments, sentence):
    finished = in_process.run(arguments, in_process.ROOT)
    assert_refused(finished, sentence)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["train.py", CONFIG, "--config.model.widht=2", "--workdir=x"],
            "widht is not a config key",
        ),
        pytest.param(
            ["-m", "lossattn_jax.evaluate", "--workdir=/nowhere"],
            "/nowhere is not a workdir",
            marks=pytest.mark.slow,
        ),
        pytest.param(["-m", "lossattn_jax.explain"], "--workdir", marks=pytest.mark.slow),
    ],
)
def test_a_process_of_its_own_ends_alike(run_python, arguments, sentence):
    finished = run_python(*arguments)
    assert_refused(finished, sentence)


def test_a_batch_that_the_devices_cannot_share_is_refused(run_python, tmp_path):
    arguments = shrunk.flags("no_data", train__batch_size=30)
    finished = run_python("train.py", *arguments, f"--workdir={tmp_path}", devices=4)
    assert finished.returncode == 2
    assert "config.train.batch_size is 30, but must be a multiple of" in finished.stderr


def test_help_names_the_flags():
    finished = in_process.run(["-m", "lossattn_jax.evaluate", "--help"], in_process.ROOT)
    assert "--workdir" in finished.stdout
    assert "--checkpoint" in finished.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-m", "lossattn_jax.evaluate", "runs/a"], "'runs/a' is not a flag: say --workdir=runs/a"),
        (
            ["-m", "lossattn_jax.evaluate", "--split", "train", "runs/a"],
            "'runs/a' is not a flag: say --workdir=runs/a",
        ),
        (["-m", "lossattn_jax.replay", "dump"], "'dump' is not a flag: say --dump=dump"),
        (["train.py", "a.py", "--workdir=x"], "'a.py' is not a flag: say --config=a.py"),
        (["-m", "lossattn_jax.evaluate", "--split", "train"], "--workdir is missing"),
    ],
)
def test_a_word_without_its_flag_is_named_with_it(tmp_path, arguments, sentence):
    assert_refused(in_process.run(arguments, tmp_path), sentence)


DEFAULT = "from lossattn_jax.config import default_config"
CONFIGS = {
    "assigned": f"{DEFAULT}\nget_config = default_config",
    "imported": f"{DEFAULT} as get_config",
    "starred": "from configs.digit_scenes import *",
    "lambda": f"{DEFAULT}\nget_config = lambda: default_config()",
    "partial": f"import functools\n{DEFAULT}\nget_config = functools.partial(default_config)",
    "tried": f"try:\n    from absent import get_config\nexcept ImportError:\n    {DEFAULT} as get_config",
    "package": (in_process.ROOT / "lossattn_jax" / "config" / "images.py").read_text()
    + "\nget_config = default_config\n",
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_may_come_by_its_function_in_any_way(tmp_path, monkeypatch, kind):
    monkeypatch.syspath_prepend(in_process.ROOT)
    (tmp_path / "c.py").write_text(CONFIGS[kind])
    arguments = ["train.py", "--config=c.py", "--workdir=run", "--config.data.dir=/nowhere"]
    assert_refused(in_process.run(arguments, tmp_path), "is not prepared (as array_record)")
    if kind != "starred":
        arguments[1] = "--config=c.py:some"
        assert_refused(
            in_process.run(arguments, tmp_path), "takes no argument, but is given 'some'"
        )


def test_the_packages_own_config_of_bags_is_one(tmp_path):
    path = in_process.ROOT / "lossattn_jax" / "config" / "bags.py"
    arguments = ["-m", "lossattn_jax.mil", f"--config={path}", "--dataset=absent.csv"]
    finished = in_process.run([*arguments, "--workdir=run"], tmp_path)
    assert_refused(finished, "absent.csv does not exist")


@pytest.mark.parametrize(
    "content",
    [
        "get_config = 3",
        "import os as get_config",
        "from lossattn_jax.errors import *",
        "class A:\n    def get_config(self):\n        pass",
        "def other():\n    get_config = 3",
    ],
)
def test_a_file_without_the_function_is_no_config(tmp_path, content):
    (tmp_path / "c.py").write_text(content)
    finished = in_process.run(["train.py", "--config=c.py", "--workdir=run"], tmp_path)
    assert_refused(finished, "the config file c.py has no function get_config")


@pytest.mark.parametrize("flags", [pytest.param("--list", marks=pytest.mark.slow), "--help"])
def test_a_reader_that_goes_is_no_error(run_python, flags):
    script = (
        "import subprocess, sys\n"
        f"command = [sys.executable, '-m', 'lossattn_jax.models', {flags!r}]\n"
        "made = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
        "made.stdout.close()\n"
        "print(made.stderr.read().decode(), made.wait())"
    )
    finished = run_python("-c", script)
    assert finished.stdout.split() == ["0"], finished.stdout


@pytest.mark.slow
def test_a_command_without_stdout_is_no_error(run_python):
    script = (
        "import subprocess, sys\n"
        "command = [sys.executable, '-m', 'lossattn_jax.models', '--list']\n"
        "print(subprocess.call(['sh', '-c', 'exec \"$@\" >&-', 'sh', *command]))"
    )
    finished = run_python("-c", script)
    assert (finished.stdout, finished.stderr) == ("0\n", "")


def test_what_is_done_in_part_has_an_exit_code_of_its_own(run_python):
    script = (
        "from lossattn_jax import errors\n"
        "from lossattn_jax.commands import command\n"
        "def main():\n"
        "    raise errors.Incomplete('1 of 2 images were left out')\n"
        "command.run(main)"
    )
    finished = run_python("-c", script)
    assert (finished.returncode, finished.stdout) == (3, "")
    assert finished.stderr.endswith("error: 1 of 2 images were left out.\n")


@pytest.mark.parametrize(
    ("level", "text", "line"),
    [
        (logging.WARNING, "fold.json is damaged", "12 warning: fold.json is damaged"),
        (logging.WARNING, "warning: it grows", "12 warning: it grows"),
        (logging.INFO, "step 1", "12 step 1"),
    ],
)
def test_a_line_of_the_log_says_where_it_is_a_warning(level, text, line):
    formatter = command._Formatter("12 %(kind)s%(message)s")
    assert formatter.format(logging.LogRecord("a", level, "a.py", 1, text, (), None)) == line

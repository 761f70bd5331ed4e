"""Keys of bags under the names of the release before: in configs, command lines, and stored results.

`workdirs/former_names` was written by that release: `lossattn mil cv --dataset=own.csv
--method=loss_attention,mi_kernel --folds=2 --repeats=1 --config.training.epochs=3
--config.training.patch_weight=0.5 --config.network.hidden=(4,) --config.training.consistency_weight=1.0
--config.validation.share=0.3`.
"""

import logging
import pathlib
import shutil

import pytest

from lossattn_jax.config import bags, former_keys
from lossattn_jax.config.options import leaves
from lossattn_jax.errors import UserError
from lossattn_jax.mil import classical_folds, experiment, network_folds

WRITTEN = pathlib.Path(__file__).parent / "workdirs" / "former_names"
METHODS = ["loss_attention", "mi_kernel"]


@pytest.fixture(autouse=True)
def every_warning(caplog):
    """Warnings that an earlier test has caused are given again."""
    former_keys.warn.cache_clear()
    caplog.set_level(logging.WARNING, logger="lossattn_jax")


@pytest.fixture
def workdir(tmp_path):
    shutil.copytree(WRITTEN / "run", tmp_path / "run")
    return tmp_path / "run"


def config_of_the_run(**changes):
    config = bags.default_config()
    config.folds, config.repeats, config.train.epochs = 2, 1, 3
    config.model.hidden, config.validation.share = (4,), 0.3
    config.loss.patch_weight, config.loss.consistency_weight = 0.5, 1.0
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return config


def run(workdir, config):
    files = [str(WRITTEN / "own.csv")]
    return experiment.run(files, METHODS, ["final"], config, str(workdir), "nowhere")


def test_a_workdir_with_former_names_is_gone_on_with(workdir, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a fold is made again")

    monkeypatch.setattr(network_folds, "run", refuse)
    monkeypatch.setattr(classical_folds, "run", refuse)
    folds = sorted(workdir.glob("*/*/*/repeat*.json"))
    assert len(folds) == 4
    before = [path.read_bytes() for path in folds]
    first, second = run(workdir, config_of_the_run())
    assert (first.accuracy, second.accuracy) == (0.5, 0.25)
    assert [path.read_bytes() for path in folds] == before
    stored = bags.read(workdir / "config.json")
    assert dict(leaves(stored)) == dict(leaves(config_of_the_run()))
    assert '"training"' not in (workdir / "config.json").read_text()
    run(workdir, config_of_the_run())  # beside the config of today


@pytest.mark.parametrize("without_config", [False, True])
@pytest.mark.parametrize(
    ("key", "value"),
    [("train__epochs", 4), ("model__hidden", (8,)), ("validation__share", 0.2)],
)
def test_another_value_is_refused_by_the_name_of_today(workdir, key, value, without_config):
    if without_config:
        (workdir / "config.json").unlink()
    with pytest.raises(UserError, match=f"config.{key.replace('__', '.')} "):
        run(workdir, config_of_the_run(**{key: value}))


def test_a_config_file_may_have_former_names(caplog):
    config = bags.default_config()
    config.training.epochs = 7
    config.training.update(learning_rate=0.5, patch_weight=2.0)
    config.network = {"hidden": (4, 3), "standardise": False}
    assert config.training.epochs == config["training"]["epochs"] == 7
    options = bags.resolve(config.copy_and_resolve_references())
    assert (options.train.epochs, options.optimizer.learning_rate) == (7, 0.5)
    assert (options.loss.patch_weight, options.model.hidden) == (2.0, (4, 3))
    assert not options.model.standardise
    assert caplog.messages == [
        f"warning: config.{former} is called config.{name} now"
        for former, name in [
            ("training.epochs", "train.epochs"),
            ("training.learning_rate", "optimizer.learning_rate"),
            ("training.patch_weight", "loss.patch_weight"),
            ("network.hidden", "model.hidden"),
            ("network.standardise", "model.standardise"),
        ]
    ]


def test_a_name_that_there_never_was_is_none():
    config = bags.default_config()
    with pytest.raises(AttributeError, match="config.training.rate is not a key"):
        config.training.rate = 1
    with pytest.raises(AttributeError, match="config.network.rate is not a key"):
        print(config.network.rate)
    with config.unlocked():
        config.other = {"epochs": 3}
    with pytest.raises(UserError, match="config.other.epochs is not a key; allowed are"):
        bags.check(config)


def test_every_former_name_has_one_of_today():
    former = {
        *("epochs", "batch_size", "learning_rate", "weight_decay", "patch_weight"),
        *("patch_ramp_epochs", "patch_reduction", "consistency_weight", "consistency_ramp_epochs"),
        *("consistency_decay", "average_epochs", "max_waste", "max_skipped", "models_at_once"),
    }
    network = {"backbone", "hidden", "dropout", "ensemble", "standardise"}
    assert set(former_keys.BAGS) == {
        *(f"training.{key}" for key in former),
        *(f"network.{key}" for key in network),
    }
    assert set(former_keys.BAGS.values()) <= bags.SCHEMA.keys()
    assert len(set(former_keys.BAGS.values())) == len(former_keys.BAGS)


@pytest.mark.parametrize(
    ("arg", "today"),
    [
        ("--config.training.epochs=3", "--config.train.epochs=3"),
        ("-config.training.learning_rate=3", "-config.optimizer.learning_rate=3"),
        ("--noconfig.network.standardise", "--noconfig.model.standardise"),
        ("--config.network.standardise", "--config.model.standardise"),
        ("--config.training.rate=3", "--config.training.rate=3"),
        ("--config.train.epochs=3", "--config.train.epochs=3"),
        ("--config=training.epochs", "--config=training.epochs"),
        ("training.epochs", "training.epochs"),
    ],
)
def test_flags_are_renamed(arg, today):
    assert former_keys.in_args([arg, "--", arg], former_keys.BAGS) == [today, "--", arg]


def test_a_command_takes_former_names_with_a_warning(workdir, run_python):
    flags = (f"--dataset={WRITTEN / 'own.csv'}", "--method=mi_kernel", "--folds=2", "--repeats=1")
    keys = ("training.epochs=3", "training.patch_weight=0.5", "network.hidden=(4,)")
    more = ("training.consistency_weight=1.0", "validation.share=0.3")
    finished = run_python(
        "-m",
        "lossattn_jax.mil",
        *flags,
        f"--workdir={workdir}",
        *(f"--config.{key}" for key in (*keys, *more)),
    )
    assert finished.returncode == 0, finished.stderr
    assert "2 of 2 folds are there" in finished.stderr
    warning = "warning: config.training.epochs is called config.train.epochs now"
    assert finished.stderr.count(warning) == 1

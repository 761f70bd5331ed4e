"""The config of experiments with bags: its defaults, its file, and what is refused."""

import json

import pytest

from benchmarks import shipped_configs
from lossattn_jax.config import bags as config_lib
from lossattn_jax.config.images import leaves
from lossattn_jax.errors import UserError
from lossattn_jax.train.bags.settings import PER_MODEL, Settings


def changed(**values):
    """The defaults with other values; `a__b` stands for `a.b`."""
    config = config_lib.default_config()
    with config.unlocked():
        for name, value in values.items():
            *groups, key = name.split("__")
            place = config
            for group in groups:
                place = place[group]
            place[key] = value
    return config


def test_the_defaults_are_allowed_and_those_of_the_settings():
    config = config_lib.get_config()
    options = config_lib.resolve(config)
    assert config_lib.settings(options) == Settings()
    validation = config_lib.validation(options.validation)
    assert (validation.share, validation.splits, validation.overrides()) == (0.2, 1, ({},))
    assert set(validation.grid) == set(PER_MODEL)


def test_values_arrive():
    config = changed(
        train__epochs=7,
        loss__patch_reduction="mean",
        validation__share=0.3,
        validation__splits=2,
        validation__patch_weight=(0.0, 1.0),
    )
    options = config_lib.resolve(config)
    assert config_lib.settings(options) == Settings(epochs=7, patch_reduction="mean")
    validation = config_lib.validation(options.validation)
    assert (validation.share, validation.splits) == (0.3, 2)
    assert validation.overrides() == ({}, {"patch_weight": 0.0}, {"patch_weight": 1.0})


def test_a_written_config_is_read_as_it_was(tmp_path):
    config = changed(seed=3, model__hidden=(8, 4), validation__learning_rate=(0.1, 0.2))
    config_lib.write(config, tmp_path / "config.json")
    found = config_lib.read(tmp_path / "config.json")
    assert dict(leaves(found)) == dict(leaves(config))
    record = json.loads((tmp_path / "config.json").read_text())
    record["train"]["epochs"] = 0
    del record["digest"]  # as of a file from before there were digests
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="config.train.epochs is 0"):
        config_lib.read(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"epochs": 3}, "config.epochs is not a key; allowed are: bags.mean_length, "),
        ({"train__rate": 3}, "config.train.rate is not a key"),
        ({"train__epochs": 0}, "config.train.epochs is 0, but must be a whole number"),
        ({"train__average_epochs": 101}, "config.train.average_epochs is 101"),
        (
            {"validation__share": 1.0},
            "config.validation.share is 1.0, but must be above 0 and below 1",
        ),
        ({"validation__splits": 0}, "config.validation.splits is 0, but must be a whole number"),
        (
            {"validation__learning_rate": (0.1, -1.0)},
            "config.validation.learning_rate is .*, but must be a tuple, each of it a positive number",
        ),
        ({"validation__weight_decay": (-1.0,)}, "config.validation.weight_decay is .-1.0,."),
        (
            {"model__dropout": 1.0},
            "config.model.dropout is 1.0, but must be at least 0 and below 1",
        ),
        (
            {"model__ensemble": 0},
            "config.model.ensemble is 0, but must be a whole number, at least 1",
        ),
        ({"folds": 0}, "config.folds is 0, but must be a whole number, at least 1"),
        ({"repeats": 0}, "config.repeats is 0, but must be a whole number, at least 1"),
        ({"seed": -1}, "config.seed is -1, but must be between 0 and 2147483647"),
        ({"seed": 2**31}, "config.seed is 2147483648"),
        ({"bags__train": ()}, "config.bags.train is .., but must be .*, and not empty"),
        ({"bags__train": (50, 0)}, "config.bags.train is .50, 0., but must be a tuple, each of"),
        ({"bags__test": 0}, "config.bags.test is 0, but must be a whole number, at least 1"),
        ({"model__backbone": "vgg"}, "config.model.backbone is 'vgg', but must be one of: dense"),
        ({"optimizer__name": "lamb"}, "config.optimizer.name is 'lamb', but must be one of: sgd"),
        ({"optimizer__schedule": "ramp"}, "config.optimizer.schedule is 'ramp', but must be one"),
        (
            {"optimizer__warmup_epochs": 100},
            "config.optimizer.warmup_epochs is 100.0, but must be below config.train.epochs, 100",
        ),
        ({"loss__patch": "off"}, "config.loss.patch is 'off', but must be 'auto'"),
    ],
)
def test_impossible_values_are_refused(values, sentence):
    with pytest.raises(UserError, match=sentence):
        config_lib.check(changed(**values))


def test_a_missing_key_is_refused():
    config = config_lib.default_config()
    with config.unlocked():
        del config.model["dropout"]
    with pytest.raises(
        UserError, match="config.model.dropout is missing; start from .*config.bags"
    ):
        config_lib.check(config)


@pytest.mark.parametrize(
    ("name", "arguments", "wrong"),
    [
        ("mil_mnist", ["binary", "multi"], "nine"),
        ("mil_cifar", ["500", "5000", "supplement", "5000,supplement"], "500,many"),
        ("mil_best", ["average", "average+ensemble", "consistency+average"], "average+luck"),
    ],
)
def test_shipped_configs_are_allowed(name, arguments, wrong):
    module = shipped_configs.load(f"{name}.py")
    for config in (module.get_config(), *map(module.get_config, arguments)):
        config_lib.check(config)
    with pytest.raises(UserError, match="the config's argument"):
        module.get_config(wrong)


def test_the_steps_of_the_best_config_are_what_they_say():
    module = shipped_configs.load("mil_best.py")
    plain, steps = config_lib.default_config(), module.get_config("average")
    assert steps.train.average_epochs == 50 and steps.model.ensemble == 1
    everything = module.get_config("+".join(module.STEPS))
    assert everything.model.ensemble == 3 and everything.loss.consistency_weight == 10
    for key in ("train.epochs", "train.batch_size", "optimizer.learning_rate", "loss.patch_weight"):
        section, name = key.split(".")
        assert everything[section][name] == plain[section][name]  # the paper's recipe stays
    tried = config_lib.validation(config_lib.resolve(everything).validation).overrides()
    assert tried[0] == {} and {"learning_rate": 3e-5, "patch_weight": 1.0} in tried

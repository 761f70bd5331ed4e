"""Configs: defaults, refusals, and storing beside the checkpoints."""

import json
import pathlib

import pytest

from benchmarks import shipped_configs
from lossattn_jax.config import bags as bags_config
from lossattn_jax.config import config_json
from lossattn_jax.config import images as config_lib
from lossattn_jax.errors import UserError
from lossattn_jax.train.images.same_run import refuse_other_run
from lossattn_jax.train.optimizer import changes_betas

ALL = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
BAGS = [path for path in ALL if path.stem.startswith("mil_")]
CONFIGS = [path for path in ALL if path not in BAGS]


def differences(stored, config, workdir):
    """What may differ between two configs of one run."""
    return refuse_other_run(config_lib.resolve(stored), config_lib.resolve(config), workdir)


def uses_patch_loss(config):
    options = config_lib.resolve(config)
    return config_lib.uses_patch_loss(options.loss, options.model.pooling)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_possible_and_says_what_it_is(path):
    module = shipped_configs.load(path)
    config_lib.check(module.get_config())
    for heading in ("python train.py --config=configs/" + path.name, "Expected", "Time"):
        assert heading in module.__doc__, heading
    assert "TODO" not in module.__doc__


@pytest.mark.parametrize("path", BAGS, ids=lambda path: path.stem)
def test_every_shipped_config_of_bags_is_too(path):
    module = shipped_configs.load(path)
    bags_config.check(module.get_config())
    command = "python -m lossattn_jax.mil --config=configs/" + path.name
    for heading in (command, "Expected", "Time"):
        assert heading in module.__doc__, heading
    assert "TODO" not in module.__doc__


def test_defaults_are_the_papers():
    config = config_lib.default_config()
    config_lib.check(config)
    given = dict(config_lib.leaves(config))
    expected = {
        "optimizer.learning_rate": 0.1,
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 5e-4,
        "optimizer.weight_decay_mask": "all",
        "optimizer.milestones": (100, 150),
        "optimizer.decay_factor": 0.1,
        "train.epochs": 200,
        "train.batch_size": 128,
        "loss.patch_weight": 0.1,
        "loss.patch_ramp_epochs": 80,
        "model.threshold": 0.1,
        "model.width": 1.0,
    }
    assert {key: given[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1),
        ("profile", "5"),
        ("profile", "9:3"),
        ("profile", "3:3"),
        ("profile", "a:b"),
        ("data.mode", "disk"),
        ("data.on_device", "yes"),
        ("data.crop_padding", -1),
        ("model.width", 0.0),
        ("model.width", float("nan")),
        ("model.threshold", 2.0),
        ("model.dtype", "float16"),
        ("model.batch_norm", "shared"),
        ("loss.patch", "yes"),
        ("loss.patch_weight", -0.1),
        ("loss.patch_weight", float("inf")),
        ("loss.patch_ramp_epochs", -1),
        ("loss.patch_reduction", "max"),
        ("loss.consistency_weight", -1.0),
        ("loss.consistency_decay", 1.0),
        ("data.num_labels", -1),
        ("optimizer.momentum_end", 1.0),
        ("optimizer.ramp_down_epochs", -1),
        ("loss.label_smoothing", 1.0),
        ("optimizer.name", "lamb"),
        ("optimizer.learning_rate", 0.0),
        ("optimizer.momentum", 1.0),
        ("optimizer.milestones", (150, 100)),
        ("optimizer.milestones", None),
        ("train.epochs", True),
        ("optimizer.warmup_epochs", 200.0),
        ("train.epochs", 0),
        ("train.batch_size", 0),
        ("train.steps_per_dispatch", 0),
        ("train.steps_per_dispatch", 1.5),
        ("log.every_steps", 0),
        ("checkpoint.keep", 0),
    ],
)
def test_an_impossible_value_is_refused_by_key_and_value(key, value):
    config = config_lib.default_config()
    section, _, name = key.rpartition(".")
    holder = config[section] if section else config
    with holder.ignore_type():
        holder[name] = value
    with pytest.raises(UserError) as refused:
        config_lib.check(config)
    assert str(refused.value).startswith(f"config.{key} is {value!r}, but must be ")


def test_what_is_streamed_is_not_kept_on_devices():
    config = config_lib.default_config()
    config.data.mode = "stream"
    config_lib.check(config)
    config.data.on_device = "on"
    with pytest.raises(UserError, match="on_device is 'on', but must be off or auto with .*stream"):
        config_lib.check(config)


def test_the_updates_to_profile_are_named_as_a_span():
    config = config_lib.default_config()
    assert config_lib.resolve(config).profile_span is None
    config.profile = "0:12"
    assert config_lib.resolve(config).profile_span == (0, 12)


def test_betas_change_together_and_with_adams_ramps_only():
    config = config_lib.default_config()
    config.optimizer.momentum_end = 0.5
    with pytest.raises(UserError, match="momentum_end is 0.5, but must be None as config.optim"):
        config_lib.check(config)
    config.optimizer.beta2_end = 0.999
    assert not changes_betas(config_lib.resolve(config).optimizer)
    config.optimizer.name, config.optimizer.schedule = "adam", "ramps"
    assert changes_betas(config_lib.resolve(config).optimizer)


def test_a_fall_longer_than_the_run_is_refused():
    config = config_lib.default_config()
    config.optimizer.schedule, config.train.epochs = "ramps", 20
    with pytest.raises(UserError, match="ramp_down_epochs is 50, but must be at most .*, 20"):
        config_lib.check(config)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("optimizer.momentum_end", 0.6, True),
        ("optimizer.schedule", "cosine", False),
        ("optimizer.restart_epochs", 2, True),
        ("optimizer.restart_epochs", 0, False),
        ("loss.consistency_weight", 300.0, True),
        ("loss.consistency_weight", 0.0, False),
        ("loss.consistency_decay", 0.9, False),
        ("data.num_labels", 100, False),
    ],
)
def test_what_shapes_the_rest_of_the_state_stays(tmp_path, key, value, allowed):
    def aaai():
        return shipped_configs.load("aaai_resnet18.py").get_config()

    stored, config = aaai(), aaai()
    section, _, name = key.rpartition(".")
    config[section][name] = value
    if allowed:
        assert len(differences(stored, config, tmp_path)) == 1
        return
    with pytest.raises(UserError, match=f"config.{key} is {value!r}, but the run in"):
        differences(stored, config, tmp_path)


def test_routing_has_no_patch_loss():
    config = config_lib.default_config()
    config.model.pooling = "dynamic_routing"
    assert not uses_patch_loss(config)
    config.loss.patch = "on"
    with pytest.raises(UserError, match="config.loss.patch is 'on', but must be off or auto"):
        config_lib.check(config)


def test_a_patch_loss_is_refused_where_the_loss_has_none():
    config = config_lib.default_config()
    config.loss.patch = "on"
    config_lib.check(config)
    config.loss.name = "margin"
    with pytest.raises(UserError, match="with config.loss.name margin, which has no loss of patch"):
        config_lib.check(config)


def test_unknown_and_missing_keys_are_named():
    config = config_lib.default_config()
    config.train.steps = 10
    with pytest.raises(UserError, match=r"config\.train\.steps is not a key; allowed are: .*train"):
        config_lib.check(config)
    config = config_lib.default_config()
    del config.train["epochs"]
    with pytest.raises(UserError, match=r"config\.train\.epochs is missing"):
        config_lib.check(config)


def test_a_stored_config_reads_back_the_same(tmp_path):
    config = config_lib.default_config()
    config.model.width = 0.5
    config.optimizer.milestones = (3, 7)
    config.data.flip = False
    config_json.write(config, tmp_path / "config.json")
    stored = config_json.read(tmp_path / "config.json")
    assert dict(config_lib.leaves(stored)) == dict(config_lib.leaves(config))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "is not a workdir of a run: it has no config.json"),
        ("{", "cannot be read as a config"),
        ('{"speed": 1}', "has the key speed, which this version does not know"),
        ('{"model": {"depth": 1}}', "has the key model.depth, which this version does not know"),
        ('{"train": {"epochs": -1}}', "config.train.epochs is -1, but must be"),
        ("[1]", "cannot be read as a config"),
        ("[" * 100_000, "cannot be read as a config"),
        ('{"train.epochs": 1}', "cannot be read as a config"),
        ('{"train": {"epochs": "many"}}', "has a wrong value of train.epochs"),
        ('{"train": {"epochs": {"a": 1}}}', "has the key train.epochs.a"),
    ],
)
def test_a_broken_stored_config_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as refused:
        config_json.read(path)
    assert sentence in str(refused.value)


def test_continuing_another_model_is_refused_else_changes_listed(tmp_path):
    stored, config = config_lib.default_config(), config_lib.default_config()
    config.optimizer.learning_rate = 0.05
    config.train.steps_per_dispatch = 8
    config.data.on_device, config.profile = "off", "1:2"
    assert differences(stored, config, tmp_path) == [
        "config.data.on_device: 'auto' -> 'off'",
        "config.optimizer.learning_rate: 0.1 -> 0.05",
        "config.profile: '' -> '1:2'",
        "config.train.steps_per_dispatch: 1 -> 8",
    ]
    config.model.width = 0.5
    with pytest.raises(UserError) as refused:
        differences(stored, config, tmp_path)
    assert "config.model.width is 0.5" in str(refused.value)
    assert "has 1.0" in str(refused.value)


def test_a_run_from_before_blocks_were_keys_is_continued(tmp_path):
    config = config_lib.default_config()
    older = config.to_dict()
    del older["model"]["bottleneck_first_kernel"]
    older["model"]["bottleneck_relu_before_add"] = False
    (tmp_path / "config.json").write_text(json.dumps(older))
    stored = config_json.read(tmp_path / "config.json")
    assert stored.model.bottleneck_first_kernel is None
    assert stored.model.bottleneck_relu_before_add is False
    assert differences(stored, config, tmp_path) == []
    assert differences(config, stored, tmp_path) == []
    config.model.bottleneck_relu_before_add = True
    with pytest.raises(
        UserError, match="config.model.bottleneck_relu_before_add is True, but the r"
    ):
        differences(stored, config, tmp_path)
    config.model.bottleneck_relu_before_add = None
    config.model.bottleneck_first_kernel = 1
    with pytest.raises(UserError, match="config.model.bottleneck_first_kernel is 1, but the run"):
        differences(stored, config, tmp_path)


@pytest.mark.parametrize(("head", "kernel", "other"), [("none", 1, 3), ("conv", 3, 1)])
def test_a_block_may_be_written_out_when_a_run_is_continued(tmp_path, head, kernel, other):
    stored = config_lib.default_config()
    stored.model.head = head
    config = stored.copy_and_resolve_references()
    config.model.bottleneck_first_kernel = kernel
    config.model.bottleneck_relu_before_add = False
    assert differences(stored, config, tmp_path) == []
    assert differences(config, stored, tmp_path) == []
    config.model.bottleneck_first_kernel = other
    with pytest.raises(UserError, match=f"config.model.bottleneck_first_kernel is {other}, but"):
        differences(stored, config, tmp_path)


@pytest.mark.parametrize("kernel", [0, 2, 5])
def test_a_first_kernel_that_no_block_has_is_refused(kernel):
    config = config_lib.default_config()
    config.model.bottleneck_first_kernel = kernel
    with pytest.raises(
        UserError, match=f"first_kernel is {kernel}, but must be one of: None, 1, 3"
    ):
        config_lib.check(config)


def test_patch_loss_is_on_by_default_with_loss_attention_only():
    config = config_lib.default_config()
    assert uses_patch_loss(config)
    config.model.pooling = "bag_loss_attention"
    assert uses_patch_loss(config)
    config.model.pooling = "mean"
    assert not uses_patch_loss(config)
    config.loss.patch = "on"
    assert uses_patch_loss(config)

"""Names that no part has: each raises a sentence with the name and the allowed ones, wherever it is used."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lossattn_jax import models
from lossattn_jax.attention import losses, poolings
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.checkpoint import torch_names
from lossattn_jax.config import bags as mil_config
from lossattn_jax.config import images as config_lib
from lossattn_jax.config.options import ModelOptions
from lossattn_jax.data.bags import sources
from lossattn_jax.errors import UnknownName, UserError
from lossattn_jax.mil import classical_folds, methods, network_folds
from lossattn_jax.mil.network_scores import instance_scores
from lossattn_jax.models import bag_networks, combinations
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.registry import Registry, lookup
from lossattn_jax.train.bags import objective
from lossattn_jax.train.images import feed, gradients
from lossattn_jax.train.optimizer import DECAY_MASKS, OPTIMIZERS, make_optimizer
from lossattn_jax.train.schedules import SCHEDULES, Length, learning_rate_schedule

IMAGES = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
BAGS = jax.ShapeDtypeStruct((1, 4, 5), jnp.float32)


def config_with(**values):
    config = config_lib.default_config()
    for key, value in values.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return config


def with_pooling(name):
    model = models.build("small", "conv", "mean", width=0.125).clone(pooling=name)
    return jax.eval_shape(model.init, jax.random.key(0), IMAGES)


def with_bags(**changes):
    return jax.eval_shape(BagNetwork(**changes).init, jax.random.key(0), BAGS)


def bag_loss(reduction):
    outputs = Outputs(jnp.zeros((1, 2)), jnp.zeros((1, 3, 2)), jnp.ones((1, 3)) / 3)
    return objective.bag_loss(outputs, jnp.array([0]), jnp.ones((1, 3), bool), 0.1, reduction)


def patch_weight(reduction):
    config = config_with(loss__patch_reduction=reduction)
    model = models.build("small", "conv", width=0.125)
    spec = types.SimpleNamespace(image_shape=(32, 32, 3))
    return gradients.patch_weight_schedule(config.loss, config.model.pooling, model, spec)


def on_devices(value):
    images = np.zeros((2, 8, 8, 3), np.uint8)
    train_set = feed.data.ArrayDataset.__new__(feed.data.ArrayDataset)
    object.__setattr__(train_set, "images", images)
    return feed.on_devices(
        types.SimpleNamespace(train_set=train_set, options=config_with(data__on_device=value))
    )


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: with_pooling("median"),
            "pooling is 'median', but must be one of 16 names, of which the nearest are: mean;",
        ),
        (lambda: with_pooling("dynamic_routing"), "pooling is 'dynamic_routing', but must be"),
        (
            lambda: with_pooling("Mean"),
            "pooling is 'Mean', but must be one of 16 names, of which .* mean;",
        ),
        (lambda: models.build("resnet20"), "backbone is 'resnet20', but must be one of 26 names"),
        (lambda: models.build(head="dense"), "head is 'dense', but must be one of: none, conv"),
        (lambda: models.build(pooling=["mean"]), r"pooling is \['mean'\], but must be one of"),
        (lambda: combinations.poolings("resnet20", "none"), "backbone is 'resnet20', but must be"),
        (lambda: combinations.poolings("small", "dense"), "head is 'dense', but must be one of"),
        (
            lambda: with_bags(method="median"),
            "method is 'median', but must be one of: mi_net, mi_net_b",
        ),
        (lambda: with_bags(backbone="vit"), "backbone is 'vit', but must be one of: dense, lenet"),
        (lambda: BagNetwork(backbone="vit").widths, "backbone is 'vit', but must be one of"),
        (lambda: BagNetwork(method="median").widths, "method is 'median', but must be one of"),
        (
            lambda: instance_scores("median", np.ones(3), np.ones((3, 2))),
            "method is 'median', but must be one of: mi_net",
        ),
        (lambda: bag_loss("max"), "patch reduction is 'max', but must be one of: sum, mean"),
        (lambda: patch_weight("max"), "patch reduction is 'max', but must be one of: sum, mean"),
        (
            lambda: make_optimizer(
                config_with(optimizer__name="lion").optimizer, lambda step: 0.1, Length(2, 10)
            ),
            "config.optimizer.name is 'lion', but must be one of: sgd, adam, adamw",
        ),
        (
            lambda: make_optimizer(
                config_with(optimizer__name="SGD").optimizer, lambda step: 0.1, Length(2, 10)
            ),
            "config.optimizer.name is 'SGD', but must be one of",
        ),
        (
            lambda: make_optimizer(
                config_with(optimizer__weight_decay_mask="biases").optimizer,
                lambda step: 0.1,
                Length(2, 10),
            ),
            "config.optimizer.weight_decay_mask is 'biases', but must be one of: all, kernels",
        ),
        (
            lambda: learning_rate_schedule(
                config_with(optimizer__schedule="poly").optimizer, Length(2, 10)
            ),
            "config.optimizer.schedule is 'poly', but must be one of: step, cosine, one_cycle",
        ),
        (
            lambda: config_lib.uses_patch_loss(config_with(loss__patch="yes").loss, "mean"),
            "config.loss.patch is 'yes', but must be one of: auto, on, off",
        ),
        (
            lambda: ModelOptions(batch_norm="sync").shares_statistics,
            "config.model.batch_norm is 'sync', but must be one of: cross_replica, local",
        ),
        (
            lambda: on_devices("always"),
            "config.data.on_device is 'always', but must be one of: on,",
        ),
        (
            lambda: sources.names("svhn_bags", mil_config.default_config()),
            "the data set of bags 'svhn_bags' is not known; allowed are musk1, musk2",
        ),
        (lambda: losses.image_loss("focal", jnp.ones((1, 2)), jnp.array([0])), "kind is 'focal'"),
        (
            lambda: methods.get("svm"),
            "method is 'svm', but must be one of .* names, of which .* mi_svm;",
        ),
        (
            lambda: classical_folds.run(None, None, None, rules=("best",)),
            "the rule 'best' is not known; allowed are final",
        ),
        (
            lambda: network_folds.run(None, (), BagNetwork(), None, rules=("final", "last")),
            "the rule 'last' is not known; allowed are final",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_the_allowed_ones(call, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


def test_an_unknown_name_is_a_wrong_value_in_python_too():
    with pytest.raises(ValueError, match="the part is None, but must be one of: a, b"):
        lookup("the part", None, {"a": 1, "b": 2})
    assert issubclass(UnknownName, UserError)
    assert lookup("the part", "b", {"a": 1, "b": 2}) == 2


def test_every_name_that_a_config_may_have_is_in_its_registry():
    for key, registry in {
        "optimizer.name": OPTIMIZERS,
        "optimizer.schedule": SCHEDULES,
        "optimizer.weight_decay_mask": DECAY_MASKS,
        "loss.patch_reduction": dict.fromkeys(losses.REDUCTIONS),
    }.items():
        section, name = key.split(".")
        for allowed in registry:
            config_lib.check(config_with(**{f"{section}__{name}": allowed}))
        with pytest.raises(UserError, match=f"config.{key} is 'other', but must be one of"):
            config_lib.check(config_with(**{f"{section}__{name}": "other"}))


class OtherBackbone(nn.Module):
    """A backbone that no state dict has names for."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Conv(4, (9, 9), padding="VALID", name="conv1")(x)


def test_an_unknown_backbone_has_no_names_in_pytorch():
    model = models.build("small", "conv", "mean", width=0.125).clone(make_backbone=OtherBackbone)
    with pytest.raises(UserError, match="a OtherBackbone is not a backbone of models.build"):
        torch_names.layout(model)


def test_a_layer_without_a_name_in_pytorch_is_refused():
    model = bag_networks.BagLeNet(method="attention")
    with pytest.raises(UserError, match="the network's layer attention/.* has no name in PyTorch"):
        torch_names.layout(model.clone(hidden=(4,)))


class Part:
    """An entry, for the tests of `Registry`."""

    def __init__(self, size):
        self.size = size


OWN_PART = Part(7)
PARTS = Registry("part", Part, {"small": Part(1), "large": Part(9)})


def test_a_registry_is_a_mapping_of_its_own_parts():
    assert list(PARTS) == ["small", "large"] and len(PARTS) == 2
    assert PARTS.find("large") is PARTS["large"]


def test_a_reference_names_a_part_of_the_users():
    assert PARTS.find(f"{__name__}:OWN_PART") is OWN_PART


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("larg", "part is 'larg', but must be one of: small, large; or package.module:attribute"),
        (["small"], r"part is \['small'\], but must be one of"),
        ("no_such:PART", "there is no module 'no_such'; it is looked for in the current folder"),
        ("json:dump_", "json has no attribute 'dump_'; the nearest is 'dump'"),
        ("json:dump", "which is a function, but must be a "),
        ("small:", "must be one of: small, large"),
    ],
)
def test_what_names_no_part_is_refused_in_a_sentence(name, sentence):
    with pytest.raises(UserError, match=sentence):
        PARTS.find(name)


def test_a_module_that_fails_is_named_with_its_error(tmp_path, monkeypatch):
    (tmp_path / "fails_in_registry.py").write_text("1 / 0")
    (tmp_path / "imports_in_registry.py").write_text("import absent_in_registry")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="importing fails_in_registry fails: ZeroDivisionError"):
        PARTS.find("fails_in_registry:PART", "config.model.part")
    with pytest.raises(UserError, match="'absent_in_registry', which module imports_in_registry"):
        PARTS.find("imports_in_registry:PART")


def test_a_part_is_found_by_its_old_name_which_no_list_has():
    parts = Registry("part", Part, {"mean": Part(1)}, old_names={"none": "mean"})
    assert parts.find("none") is parts["mean"] and list(parts) == ["mean"]
    assert parts.resolve("none") == parts.resolve("mean") == "mean"
    assert poolings.POOLINGS.find("none") is poolings.POOLINGS["mean"]


def test_adopting_makes_an_entry_of_what_a_reference_names():
    parts = Registry("part", Part, {}, adopt=lambda name, value: Part(value))
    assert parts.find("math:pi").size == pytest.approx(3.14159, abs=1e-5)


def test_many_names_are_not_all_listed():
    many = Registry("part", Part, {f"part{number}": Part(number) for number in range(20)})
    with pytest.raises(UnknownName, match="one of 20 names, of which the nearest are: part1"):
        many.find("part_1")

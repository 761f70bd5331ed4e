"""Weights from and to PyTorch: names, layouts, exact round trips, refusals, files, and the command."""

import json
import os
import pathlib
import pickle
import shutil
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from lossattn_jax import mil, models
from lossattn_jax.checkpoint import conversion, runs, store, torch_names, weight_files
from lossattn_jax.config import images as config_lib
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate.evaluation import evaluate_run
from reliability import in_process
from tests.support import shrunk
from tests.support.torch_weights import reference_shapes

# The papers' networks whose keys and shapes are known, as `models.build` makes them.
REFERENCE = {
    "conv_resnet18": lambda: models.build("resnet18", "conv"),
    "conv_resnet50": lambda: models.build(
        "resnet50", "conv", num_classes=100, bottleneck_relu_before_add=True
    ),
    "conv_resnet18_stride2": lambda: models.build("resnet18_stride2", "conv", num_classes=91),
    "capsule_vgg11": lambda: models.build("vgg11_bn", "capsule"),
    "capsule_resnet18": lambda: models.build("resnet18", "capsule", num_classes=100),
    "aaai_resnet18": lambda: models.build("resnet18", "none", "bag_loss_attention"),
    "mil_cnn": mil.BagLeNet,
}

# Every kind of backbone, head and pooling that has names of its own, narrow.
NARROW = {
    "resnet18 conv": ("resnet18", "conv", "loss_attention"),
    "resnet18 capsule": ("resnet18", "capsule", "loss_attention"),
    "resnet18 routing": ("resnet18", "capsule", "dynamic_routing"),
    "resnet18_stride2 routing": ("resnet18_stride2", "capsule", "dynamic_routing"),
    "resnet50 attention": ("resnet50", "conv", "attention"),
    "resnet50 papers": ("resnet50", "none", "none"),
    "resnet34 plain": ("resnet34", "none", "none"),
    "resnet152 plain": ("resnet152", "none", "none"),
    "vgg11 plain": ("vgg11_bn", "none", "none"),
    "vgg19 gated": ("vgg19_bn", "conv", "gated_attention"),
    "small conv": ("small", "conv", "max"),
    "small capsule": ("small", "capsule", "loss_attention"),
    "small plain": ("small", "none", "bag_loss_attention"),
    "capsnet": ("capsnet", "none", "dynamic_routing"),
    "deepcaps": ("deepcaps", "none", "biased_routing"),
    "hitnet": ("hitnet", "none", "hit_or_miss"),
}


# Of bottlenecks that begin with a 3x3 convolution, what weights do not say.
BLOCKS = {
    "resnet50 attention": {"bottleneck_relu_before_add": False},
    "resnet50 papers": {"bottleneck_first_kernel": 3, "bottleneck_relu_before_add": True},
}


def slow_where(names, *slow):
    """The names as parameters of a test, some of them for the slow tests alone."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


def narrow(name):
    return models.build(*NARROW[name], width=0.0625, **BLOCKS.get(name, {}))


def random_variables(module, image_shape=(32, 32, 3)):
    """Different numbers in every place of the variables, without compiling anything."""
    shapes = models.variable_shapes(module, image_shape)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, dtype=np.float32)), shapes
    )


def random_state_dict(shapes):
    """Different numbers in every array, also in those that take no part."""
    rng = np.random.default_rng(0)

    def value(key, shape):
        if key.endswith("num_batches_tracked"):
            return np.asarray(rng.integers(1, 2**40), np.int64)
        return rng.standard_normal(shape, dtype=np.float32)

    return {key: value(key, shape) for key, shape in shapes.items()}


def assert_same(actual, expected):
    """Dictionaries of arrays that are equal to the bit, of the same dtypes and shapes."""
    assert actual.keys() == expected.keys()
    for key, array in expected.items():
        found = np.asarray(actual[key])
        assert (found.dtype, found.shape) == (array.dtype, array.shape), key
        assert found.tobytes() == np.asarray(array).tobytes(), key


def assert_same_tree(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert_same(traverse_util.flatten_dict(actual), traverse_util.flatten_dict(expected))


@pytest.fixture(scope="module")
def small():
    """A small network, its variables, and their state dict."""
    module = narrow("small conv")
    variables = random_variables(module)
    return module, variables, conversion.to_torch_state_dict(variables, module)


@pytest.mark.parametrize(
    "network", slow_where(REFERENCE, "conv_resnet18", "conv_resnet50", "capsule_resnet18")
)
def test_the_papers_networks_come_in_and_go_out_exactly(network):
    shapes = reference_shapes()[network]
    module = REFERENCE[network]()
    state_dict = random_state_dict(shapes)
    variables = conversion.from_torch_state_dict(state_dict, module)
    assert_same(conversion.to_torch_state_dict(variables, module), state_dict)
    live = {key for key in variables if key != "unused"}
    assert live <= {"params", "batch_stats"}
    assert {leaf.dtype for leaf in jax.tree.leaves([variables[name] for name in live])} == {
        jnp.dtype("float32")
    }


def test_the_usual_bottleneck_has_the_keys_of_the_papers():
    usual = torch_names.layout(models.build("resnet50", "conv", num_classes=100))
    shapes = {slot.key: list(slot.shape) for slot in usual.slots}
    shapes |= {key: list(array.shape) for key, array in usual.unused.items()}
    assert shapes == reference_shapes()["conv_resnet50"]


@pytest.mark.parametrize(
    ("backbone", "head"),
    [("resnet50", "none"), pytest.param("resnet50", "conv", marks=pytest.mark.slow)],
)
def test_weights_of_3x3_bottlenecks_do_not_say_what_to_compute(backbone, head):
    def build(**block):
        pooling = "none" if head == "none" else "mean"
        return models.build(
            backbone, head, pooling, width=0.0625, bottleneck_first_kernel=3, **block
        )

    variables = random_variables(build())
    state_dict = conversion.to_torch_state_dict(variables, build())
    sentence = "set config.model.bottleneck_relu_before_add, .* to True .* or to False"
    with pytest.raises(UserError, match=sentence):
        conversion.from_torch_state_dict(state_dict, build())
    for choice in (False, True):
        module = build(bottleneck_relu_before_add=choice)
        assert_same_tree(conversion.from_torch_state_dict(state_dict, module), variables)
    # Blocks that begin with 1x1 take none of them, and leave nothing open themselves.
    pooling = "none" if head == "none" else "mean"
    options = dict(width=0.0625, bottleneck_first_kernel=1)
    usual = models.build(backbone, head, pooling, **options)
    both = "set config.model.bottleneck_first_kernel to 3, and config.model.bottleneck_relu_before"
    with pytest.raises(UserError, match=both):
        conversion.from_torch_state_dict(state_dict, usual)
    decided = models.build(backbone, head, pooling, bottleneck_relu_before_add=False, **options)
    with pytest.raises(UserError, match="set config.model.bottleneck_first_kernel to 3$"):
        conversion.from_torch_state_dict(state_dict, decided)
    own = random_variables(usual)
    exported = conversion.to_torch_state_dict(own, usual)
    assert_same_tree(conversion.from_torch_state_dict(exported, usual), own)


@pytest.mark.slow
@pytest.mark.parametrize("value", [None, False, True])
def test_the_command_takes_3x3_bottlenecks_only_with_their_order(tmp_path, value, scenes_dir):
    config = shrunk.config(scenes_dir)
    config.model.update(backbone="resnet50", head="none", pooling="none", width=0.0625)
    config.model.update(bottleneck_first_kernel=3, bottleneck_relu_before_add=value)
    module = runs.build_model(config.model, runs.spec_of(config.data))
    variables = random_variables(module)
    variables["batch_stats"] = jax.tree.map(
        np.abs, variables["batch_stats"]
    )  # no negative variances
    weights = tmp_path / "weights.safetensors"
    weight_files.write(conversion.to_torch_state_dict(variables, module), weights)
    if value is None:
        with pytest.raises(UserError, match="set config.model.bottleneck_relu_before_add"):
            conversion.convert_file(weights, config, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        return
    conversion.convert_file(weights, config, tmp_path / "run")
    loaded = runs.load(tmp_path / "run")
    assert loaded.options.model.bottleneck_relu_before_add is value
    assert loaded.model.make_backbone().make_block(4, 1).relu_before_add is value


@pytest.mark.parametrize(
    "name", slow_where(NARROW, "resnet34 plain", "resnet50 papers", "resnet152 plain")
)
def test_every_network_goes_out_and_comes_back_exactly(name):
    module = narrow(name)
    shape = (64, 64, 3) if "stride2" in name else (32, 32, 3)
    variables = random_variables(module, shape)
    state_dict = conversion.to_torch_state_dict(variables, module)
    assert len(set(state_dict)) >= len(jax.tree.leaves(variables))
    assert_same_tree(conversion.from_torch_state_dict(state_dict, module), variables)


def test_another_image_size_goes_out_and_comes_back():
    module = narrow("vgg11 plain")
    variables = random_variables(module, (64, 64, 3))
    state_dict = conversion.to_torch_state_dict(variables, module, (64, 64, 3))
    assert state_dict["classifier.0.weight"].shape == (256, 32 * 2 * 2)
    assert_same_tree(conversion.from_torch_state_dict(state_dict, module, (64, 64, 3)), variables)
    with pytest.raises(UserError, match="classifier.0.weight"):
        conversion.from_torch_state_dict(state_dict, module)


def test_arrays_are_laid_out_as_pytorch_has_them(small):
    _, variables, state_dict = small
    params, stats = variables["params"], variables["batch_stats"]
    kernel = np.asarray(params["head"]["conv1"]["conv"]["kernel"])
    assert state_dict["conv5.weight"][3, 2, 1, 0] == kernel[1, 0, 2, 3]
    classifier = np.asarray(params["classifier"]["kernel"])
    assert state_dict["linear.weight"][4, 5] == classifier[5, 4]
    np.testing.assert_array_equal(state_dict["linear.bias"], params["classifier"]["bias"])
    norm = params["backbone"]["bn3a"] | stats["backbone"]["bn3a"]
    theirs = ("weight", "bias", "running_mean", "running_var")
    for ours, name in zip(("scale", "bias", "mean", "var"), theirs, strict=True):
        np.testing.assert_array_equal(state_dict[f"bn3a.{name}"], norm[ours])
    assert all(array.flags.c_contiguous for array in state_dict.values())


def test_units_and_capsules_are_modules_of_their_own_in_pytorch():
    module = models.build("small", "capsule", width=0.25)  # 4 units of 8, 16 capsules of 32
    variables = random_variables(module)
    head = jax.tree.map(np.asarray, variables["params"]["head"])
    state_dict = conversion.to_torch_state_dict(variables, module)
    units = head["units"]["conv"]["conv"]["kernel"]
    np.testing.assert_array_equal(
        state_dict["units.3.conv0.weight"], units[..., 24:32].transpose(3, 2, 0, 1)
    )
    np.testing.assert_array_equal(state_dict["units.1.bn.bias"], head["units"]["bn"]["bias"][8:16])
    capsules = head["conv"]["conv"]["kernel"].reshape(8, 16, 32)  # channel, capsule, dimension
    np.testing.assert_array_equal(
        state_dict["layer5.30.conv0.weight"][..., 0, 0], capsules[:, :, 30].T
    )
    np.testing.assert_array_equal(
        state_dict["layer5.2.bn0.weight"], head["bn"]["scale"].reshape(16, 32)[:, 2]
    )
    assert state_dict["b4"].shape == (1, 8, 1, 1)
    np.testing.assert_array_equal(state_dict["b4"].ravel(), head["b4"])
    assert "units.4.conv0.weight" not in state_dict
    assert "layer5.32.conv0.weight" not in state_dict
    np.testing.assert_array_equal(state_dict["layer5.0.shortcut.0.weight"], 0)


def modules_of(name):
    """Names of the modules in a network's state dict."""
    module = narrow(name)
    shape = (64, 64, 3) if "stride2" in name else (32, 32, 3)
    keys = conversion.to_torch_state_dict(random_variables(module, shape), module)
    return {key.rpartition(".")[0] for key in keys}


def test_plain_vgg_has_the_names_of_torchvision():
    # What torchvision numbers in vgg11_bn: convolution, normalisation, ReLU, and pools between.
    numbers = (0, 1, 4, 5, 8, 9, 11, 12, 15, 16, 18, 19, 22, 23, 25, 26)
    expected = {f"features.{number}" for number in numbers}
    assert modules_of("vgg11 plain") == expected | {f"classifier.{n}" for n in (0, 3, 6)}


def test_learned_attention_has_the_names_of_its_authors():
    names = modules_of("resnet50 attention")
    assert {"attention.0", "attention.2", "conv4", "layer4.2.conv3", "bn1"} <= names
    names = modules_of("vgg19 gated")
    assert {"attention_V.0", "attention_U.0", "attention_weights"} <= names
    assert {"features.45", "features.46", "conv5", "bn6", "linear"} <= names
    assert {name for name in names if name.startswith("attention.")} == set()


def test_routing_has_units_and_weights_of_its_own():
    module = narrow("resnet18 routing")  # 1 unit of 2 channels
    state_dict = conversion.to_torch_state_dict(random_variables(module), module)
    assert state_dict["routing.weight"].shape == (72, 10, 1, 1)
    assert state_dict["units.0.bn.running_var"].shape == (2,)
    assert {"units.0.conv0", "conv1"} <= modules_of("capsnet")


def test_what_takes_no_part_is_kept_only_where_it_says_something():
    module = narrow("resnet18 capsule")
    state_dict = conversion.to_torch_state_dict(random_variables(module), module)
    np.testing.assert_array_equal(state_dict["bn1.running_var"], 1)
    assert state_dict["bn1.num_batches_tracked"].dtype == np.int64
    assert "unused" not in conversion.from_torch_state_dict(state_dict, module)
    state_dict["bn1.weight"] = np.arange(4, dtype=np.float32)
    state_dict["layer5.1.shortcut.0.bias"] = np.full(4, np.nan, np.float32)
    state_dict["units.0.bn.num_batches_tracked"] = np.asarray(2**40)
    variables = conversion.from_torch_state_dict(state_dict, module)
    assert set(variables["unused"]) == {
        "bn1.weight",
        "layer5.1.shortcut.0.bias",
        "units.0.bn.num_batches_tracked",
    }
    assert_same(conversion.to_torch_state_dict(variables, module), state_dict)


def test_the_network_does_not_mind_what_takes_no_part(small):
    module, variables, state_dict = small
    changed = state_dict | {"bn1.num_batches_tracked": np.asarray(7)}
    loaded = conversion.from_torch_state_dict(changed, module)
    assert "unused" in loaded
    images = np.ones((1, 32, 32, 3), np.float32)
    apply = jax.jit(module.apply)
    expected = apply(variables, images)
    jax.tree.map(np.testing.assert_array_equal, apply(loaded, images), expected)


def test_counters_may_be_absent_or_plain_numbers(small):
    module, variables, state_dict = small
    old = {k: v for k, v in state_dict.items() if not k.endswith("num_batches_tracked")}
    assert len(old) < len(state_dict)
    assert_same_tree(conversion.from_torch_state_dict(old, module), variables)
    plain = {k: 0 for k in state_dict.keys() - old.keys()}
    assert_same_tree(conversion.from_torch_state_dict(old | plain, module), variables)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_floats_of_any_width_become_float32(small, dtype):
    module, _, state_dict = small
    rounded = {k: v if v.dtype == np.int64 else v.astype(dtype) for k, v in state_dict.items()}
    variables = conversion.from_torch_state_dict(rounded, module)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    expected = {k: v if v.dtype == np.int64 else v.astype("f4") for k, v in rounded.items()}
    assert_same(conversion.to_torch_state_dict(variables, module), expected)


def test_loaded_variables_share_no_memory_with_the_state_dict(small):
    module, variables, state_dict = small
    own = {key: array.copy() for key, array in state_dict.items()}
    loaded = conversion.from_torch_state_dict(own, module)
    for array in own.values():
        array[...] = 0
    assert_same_tree(loaded, variables)


def test_wrappers_and_prefixes_are_taken_off(small):
    module, variables, state_dict = small
    parallel = {f"module.{key}": array for key, array in state_dict.items()}
    for given in (parallel, {"state_dict": parallel, "epoch": 3}, {"state_dict": state_dict}):
        assert_same_tree(conversion.from_torch_state_dict(given, module), variables)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {f"_orig_mod.{key}": array for key, array in s.items()},
        lambda s: {f"model.{key}": array for key, array in s.items()},
        lambda s: {f"module._orig_mod.{key}": array for key, array in s.items()},
        lambda s: {f"model.module.net._orig_mod.{key}": array for key, array in s.items()},
        # One layer was compiled by itself.
        lambda s: {key.replace("conv5.", "conv5._orig_mod."): array for key, array in s.items()},
        lambda s: {"model": s, "optimizer": {"state": {}}, "epoch": 3},
        lambda s: {"net": s, "acc": 0.9},
        lambda s: {"model_state_dict": s, "loss": np.float32(0.1)},
        lambda s: {"model": "small", "state_dict": s},
        lambda s: {"model": {"name": "small", "width": 1}, "state_dict": s},
        lambda s: {"state_dict": {"model": {f"module.{k}": v for k, v in s.items()}}},
    ],
)
def test_state_dicts_of_common_trainers_are_read(small, wrap):
    module, variables, state_dict = small
    assert_same_tree(conversion.from_torch_state_dict(wrap(state_dict), module), variables)


def test_a_state_dict_that_is_not_clear_is_refused(small):
    module, _, state_dict = small
    with pytest.raises(UserError, match="several state dicts .'model', 'net'.: save the one"):
        conversion.from_torch_state_dict({"model": state_dict, "net": state_dict}, module)
    both = state_dict | {"linear._orig_mod.bias": state_dict["linear.bias"]}
    with pytest.raises(UserError, match="hold 'linear.bias' twice, with and without '_orig_mod'"):
        conversion.from_torch_state_dict(both, module)
    itself = {}
    itself["model"] = itself
    with pytest.raises(UserError, match="the weights lack"):
        conversion.from_torch_state_dict(itself, module)


def changed(state_dict, *without, **extra):
    return {key: v for key, v in state_dict.items() if key not in without} | extra


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: changed(s, "linear.bias"), "the weights lack 'linear.bias'"),
        (
            lambda s: changed(s, "conv5.weight", "bn5.bias", "bn5.running_var"),
            "the weights lack 'bn5.running_var' and 2 more",
        ),
        (
            lambda s: changed(s, conv9=np.zeros(1)),
            "the weights have 'conv9', which this network does not have",
        ),
        (
            lambda s: changed(s, "linear.bias", a=np.zeros(1), b=np.zeros(1)),
            "the weights lack 'linear.bias', and have 'a' and 1 more, which this network does not "
            "have",
        ),
        (
            lambda s: {**s, "linear.weight": np.zeros((8, 10))},
            "'linear.weight' of the weights has shape (8, 10), but this network's has (10, 8)",
        ),
        (
            lambda s: {**s, "linear.weight": np.zeros((3, 8)), "linear.bias": np.zeros(3)},
            "'linear.bias' of the weights has shape (3,), but this network's has (10,); nor do 1 "
            "more fit",
        ),
        (
            lambda s: {**s, "linear.bias": [0.0] * 10},
            "'linear.bias' of the weights is of type list, but must be an array",
        ),
        (
            lambda s: {**s, "linear.bias": np.array(["a"] * 10)},
            "'linear.bias' of the weights has dtype <U1, but must hold numbers",
        ),
        (
            lambda s: {**s, "linear.bias": np.full(10, None)},
            "'linear.bias' of the weights has dtype object, but must hold numbers",
        ),
        (  # one number that pretends to be terabytes
            lambda s: {**s, "linear.bias": np.broadcast_to(np.float64(0), (1 << 20, 1 << 20))},
            "'linear.bias' of the weights has shape (1048576, 1048576), but this network's has (10,)",
        ),
        (lambda s: [s], "the weights are of type list, but must be a dictionary of arrays"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_a_sentence(small, change, sentence):
    module, _, state_dict = small
    with pytest.raises(UserError) as refused:
        conversion.from_torch_state_dict(change(state_dict), module)
    assert str(refused.value) == sentence


def test_variables_of_another_network_are_refused(small):
    module, variables, _ = small
    with pytest.raises(UserError, match="variables lack .*: they are of another network"):
        conversion.to_torch_state_dict({"params": variables["params"]}, module)
    wider = random_variables(models.build("small", "conv", width=0.125))
    with pytest.raises(UserError, match=r"hold .* with shape \(\d+.*, but this network's has"):
        conversion.to_torch_state_dict(wider, module)
    with pytest.raises(UserError, match="has 'conv7', which this network has no use for"):
        conversion.to_torch_state_dict({**variables, "unused": {"conv7": np.zeros(1)}}, module)
    with pytest.raises(UserError, match="a Dense is not a network of models.build"):
        conversion.to_torch_state_dict(variables, models.network.dense(2, 2, "other"))


def test_gradients_have_pytorchs_keys_too(small):
    module, variables, state_dict = small
    gradients = conversion.to_torch_parameters(variables["params"], module)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert_same(gradients, {k: v for k, v in state_dict.items() if not k.endswith(statistics)})


# Files.


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_file_comes_back_exactly(small, tmp_path, suffix):
    *_, state_dict = small
    weight_files.write(state_dict, tmp_path / f"weights{suffix}")
    assert_same(weight_files.read(tmp_path / f"weights{suffix}"), state_dict)
    assert [path.name for path in tmp_path.iterdir()] == [f"weights{suffix}"]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_safetensors_of_16_bits_are_read(small, tmp_path, dtype):
    module, _, state_dict = small
    rounded = {k: v if v.dtype == np.int64 else v.astype(dtype) for k, v in state_dict.items()}
    safetensors.numpy.save_file(rounded, tmp_path / "weights.safetensors")
    read = weight_files.read(tmp_path / "weights.safetensors")
    assert read["linear.weight"].dtype == dtype
    assert_same(read, rounded)
    conversion.from_torch_state_dict(read, module)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_file_of_pytorch_is_read(small, tmp_path, suffix):
    torch = pytest.importorskip("torch")
    module, variables, state_dict = small
    tensors = {f"module.{key}": torch.from_numpy(array) for key, array in state_dict.items()}
    path = tmp_path / f"weights{suffix}"
    torch.save({"state_dict": tensors, "epoch": 3}, path)
    assert_same_tree(conversion.from_torch_state_dict(weight_files.read(path), module), variables)
    halves = {key: t.bfloat16() if t.is_floating_point() else t for key, t in tensors.items()}
    torch.save(halves, path)
    loaded = conversion.from_torch_state_dict(weight_files.read(path), module)
    np.testing.assert_array_equal(
        loaded["params"]["classifier"]["bias"], halves["module.linear.bias"].float().numpy()
    )


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("how", ["pickle", "torch", "npz"])
def test_nothing_in_a_file_is_run(tmp_path, how):
    proof = tmp_path / "proof"
    path = tmp_path / ("weights.npz" if how == "npz" else "weights.pt")
    if how == "npz":
        np.savez(path, a=np.array([Malicious(proof)], object))
    else:
        torch = pytest.importorskip("torch")
        content = {"linear.bias": Malicious(proof)}
        if how == "torch":
            torch.save(content, path)
        else:
            path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=f"^{path} is damaged, or holds anything but .*$"):
        weight_files.read(path)
    assert not proof.exists()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt"])
@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "flipped"])
def test_a_damaged_file_is_a_sentence(small, tmp_path, suffix, damage):
    *_, state_dict = small
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch = pytest.importorskip("torch")
        torch.save({key: torch.from_numpy(array) for key, array in state_dict.items()}, path)
    else:
        weight_files.write(state_dict, path)
    whole = path.read_bytes()
    damaged = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "garbage": b"weights\n" * 100,
        "flipped": bytes(255 - byte for byte in whole[:200]) + whole[200:],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=f"^{path} is damaged, or holds anything but .*$"):
        weight_files.read(path)


def test_an_array_without_a_name_is_no_npz(tmp_path):
    np.save(tmp_path / "weights.npy", np.zeros(3))
    (tmp_path / "weights.npy").rename(tmp_path / "weights.npz")
    with pytest.raises(UserError, match="weights.npz is damaged, or holds anything but named"):
        weight_files.read(tmp_path / "weights.npz")


def test_files_that_cannot_be_used_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="there is no file .*absent.npz"):
        weight_files.read(tmp_path / "absent.npz")
    with pytest.raises(UserError, match=r"weights.bin must end in one of: .pt, .pth, .npz, .safe"):
        weight_files.read(tmp_path / "weights.bin")
    with pytest.raises(UserError, match=r"weights.pt must end in one of: .npz, .safetensors$"):
        weight_files.write({}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
        weight_files.write({"a": np.zeros(1)}, tmp_path / "absent" / "weights.npz")
    (tmp_path / "weights.pt").write_bytes(b"")
    old = types.SimpleNamespace(__version__="2.5.1+cpu")
    monkeypatch.setitem(sys.modules, "torch", old)
    with pytest.raises(UserError, match="PyTorch 2.5.1.cpu, which can be made to run what is in a"):
        weight_files.read(tmp_path / "weights.pt")
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    with pytest.raises(
        UserError,
        match=r"weights.pt: it can be read only where PyTorch is installed .*lossattn_jax\[torch\]",
    ):
        weight_files.read(tmp_path / "weights.pt")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_shapes_are_seen_before_content_is_read(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    arrays = {"a": np.zeros((2, 3), np.float32), "b": np.arange(9000)}
    weight_files.write(arrays, path)
    content = bytearray(path.read_bytes())
    content[content.index(np.arange(8990, 9000).tobytes())] ^= 1
    path.write_bytes(content)  # what is read now fails, or is seen to have been read
    names = []

    def refuse(headers):
        names.extend(
            (name, array.shape, array.dtype, array.strides) for name, array in headers.items()
        )
        raise UserError("these are others")

    with pytest.raises(UserError, match=f"^{path}: these are others$"):
        weight_files.read(path, refuse)
    assert sorted(names) == [
        ("a", (2, 3), np.float32, (0, 0)),
        ("b", (9000,), np.int64, (0,)),
    ]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pt"])
def test_only_regular_files_are_read(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    os.mkfifo(path)
    with pytest.raises(UserError, match=f"^{path} cannot be read: it is not a regular file$"):
        weight_files.read(path)


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "other").write_text("of somebody else")
    (tmp_path / "weights.npz").symlink_to(tmp_path / "other")
    weight_files.write({"a": np.zeros(2)}, tmp_path / "weights.npz")
    assert (tmp_path / "other").read_text() == "of somebody else"
    assert not (tmp_path / "weights.npz").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["other", "weights.npz"]


def test_an_array_of_no_numbers_is_refused_by_its_dtype(small):
    module, *_, state_dict = small
    bad = state_dict | {"linear.bias": np.broadcast_to(np.zeros((), "U1000000"), (10,))}
    with pytest.raises(
        UserError, match="'linear.bias' of the weights has dtype <U1000000, but must"
    ):
        conversion.from_torch_state_dict(bad, module)


def test_a_compressed_file_of_pytorch_is_refused(tmp_path):
    """PyTorch writes none, and some kB could take gigabytes."""
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "stored.pt")
    assert weight_files.read(tmp_path / "stored.pt")["a"].shape == (100_000,)
    with (
        zipfile.ZipFile(tmp_path / "stored.pt") as archive,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    with pytest.raises(UserError, match="packed.pt: it has .* bytes and would unpack to 4"):
        weight_files.read(tmp_path / "packed.pt")


# Runs.


@pytest.fixture(scope="module")
def converted(tmp_path_factory, scenes_dir):
    """A config, its network's state dict, and the run that was made of it."""
    folder = tmp_path_factory.mktemp("converted")
    config = shrunk.config(scenes_dir)
    module = runs.build_model(config.model, runs.spec_of(config.data))
    state_dict = conversion.to_torch_state_dict(random_variables(module), module)
    state_dict = {k: abs(v) if k.endswith("running_var") else v for k, v in state_dict.items()}
    state_dict["bn1.num_batches_tracked"] = np.asarray(7)
    weight_files.write(state_dict, folder / "weights.safetensors")
    conversion.convert_file(folder / "weights.safetensors", config, folder / "run")
    return config, state_dict, folder / "run"


@pytest.mark.slow
def test_a_converted_run_is_evaluated(converted):
    config, state_dict, workdir = converted
    run = runs.load(workdir)
    assert run.step == 0
    expected = conversion.from_torch_state_dict(state_dict, run.model, run.spec.image_shape)
    del expected["unused"]
    assert_same_tree(run.variables, expected)
    assert run.options == config_lib.resolve(config)
    with store.Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.best_step() is None
    result = evaluate_run(str(workdir))
    assert result["step"] == 0
    assert 0 <= result["accuracy"] <= 1


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_run_is_written_for_pytorch(converted, tmp_path, suffix):
    _, state_dict, workdir = converted
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"what was there before")
    conversion.export_file(workdir, path)
    # A checkpoint holds what takes part alone.
    assert_same(weight_files.read(path), state_dict | {"bn1.num_batches_tracked": np.asarray(0)})


def test_a_workdir_that_holds_a_run_is_refused(converted, tmp_path):
    config, _, workdir = converted
    weights = workdir.parent / "weights.safetensors"
    with pytest.raises(UserError, match="holds a run already: use another one"):
        conversion.convert_file(weights, config, workdir)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match="holds a run already"):
        conversion.convert_file(weights, config, tmp_path)


def test_weights_of_another_network_leave_nothing_behind(converted, tmp_path):
    config, state_dict, _ = converted
    path = tmp_path / "weights.npz"
    weight_files.write(changed(state_dict, "linear.bias"), path)
    with pytest.raises(UserError) as refused:
        conversion.convert_file(path, config, tmp_path / "run")
    assert str(refused.value) == f"{path}: the weights lack 'linear.bias'"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("linear.bias", np.nan, "'linear.bias' (params/classifier/bias) holds 1 of 10 values that"),
        ("linear.weight", -np.inf, "'linear.weight' (params/classifier/kernel) holds 1 of 160 val"),
        ("bn1.running_mean", np.inf, "'bn1.running_mean' (batch_stats/backbone/bn1/mean) holds 1"),
        ("bn5.running_var", -0.5, "'bn5.running_var' (batch_stats/head/bn1/var) holds a negative"),
    ],
)
def test_values_that_no_network_can_use_are_refused_both_ways(
    converted, tmp_path, key, value, sentence
):
    config, state_dict, workdir = converted
    bad = state_dict | {key: state_dict[key].copy()}
    bad[key].reshape(-1)[3] = value
    path = tmp_path / "weights.npz"
    weight_files.write(bad, path)
    with pytest.raises(UserError) as refused:
        conversion.convert_file(path, config, tmp_path / "run")
    assert str(refused.value).startswith(f"{path}: of the weights, {sentence}")
    assert not (tmp_path / "run").exists()
    run = runs.load(workdir)
    variables = conversion.from_torch_state_dict(bad, run.model, run.spec.image_shape)
    with store.Checkpoints(tmp_path / "damaged") as checkpoints:
        items = {name: variables[name] for name in ("params", "batch_stats")}
        checkpoints.save(0, {"variables": items}, None)
    shutil.copy(workdir / "config.json", tmp_path / "damaged")
    with pytest.raises(UserError) as refused:
        conversion.export_file(tmp_path / "damaged", tmp_path / "out.npz")
    assert sentence in str(refused.value) and "checkpoint 0 in" in str(refused.value)
    assert not (tmp_path / "out.npz").exists()


def test_the_command_goes_both_ways(converted, tmp_path):
    config, state_dict, workdir = converted
    convert_command = ("-m", "lossattn_jax.convert")
    weights = workdir.parent / "weights.safetensors"
    run = tmp_path / "run"
    flags = shrunk.flags(config.data.dir)
    conversion = in_process.run(
        [*convert_command, f"--from={weights}", *flags, f"--workdir={run}"], tmp_path
    )
    assert conversion.returncode == 0, conversion.stderr
    written = in_process.run(
        [*convert_command, f"--to={tmp_path / 'out.npz'}", f"--workdir={run}", "--checkpoint=0"],
        tmp_path,
    )
    assert written.returncode == 0, written.stderr
    assert weight_files.read(tmp_path / "out.npz").keys() == state_dict.keys()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--workdir=x"], "error: exactly one of --from and --to is needed."),
        (["--workdir=x", "--from=a.pt", "--to=b.npz"], "exactly one of --from and --to"),
        (["--workdir=x", "--from=a.pt"], "--from needs --config, which describes the network"),
        (["--workdir=/nowhere", "--to=b.npz"], "/nowhere is not a workdir of a run"),
        (
            [f"--config={shrunk.CONFIG}", "--workdir=x", "--from=a.npz"],
            "error: there is no file a.npz.",
        ),
    ],
)
def test_a_mistake_is_a_sentence(tmp_path, flags, sentence):
    finished = in_process.run(["-m", "lossattn_jax.convert", *flags], tmp_path)
    assert finished.returncode == 2
    assert sentence in finished.stderr
    assert "Traceback" not in finished.stderr

"""DeepCaps and HitNet: parameters by hand, layers against loops, couplings, and what training sees."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax import models
from lossattn_jax.attention import losses, routing
from lossattn_jax.checkpoint import runs
from lossattn_jax.evaluate.evaluation import evaluate_run
from lossattn_jax.explain import run_report
from lossattn_jax.models import deepcaps, table
from lossattn_jax.models.layers import BatchNorm
from lossattn_jax.train.images import loop
from tests.support import shrunk

IMAGES = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
PARTS = {row.name: row.parts for row in table.ROWS}


@functools.cache
def network(name, dtype=jnp.float32):
    """A narrow one with its variables, compiled."""
    module = models.build(*PARTS[name], num_classes=3, width=0.0625, dtype=dtype)
    return module, jax.jit(module.init)(jax.random.key(0), IMAGES), jax.jit(module.apply)


def deepcaps_parameters(side):
    """By layer; a convolution of capsules has no bias, and batch normalisation two numbers a channel."""
    stem = 3 * 3 * 3 * 128 + 128 + 2 * 128
    first = 4 * (3 * 3 * 128 * 32 * 4)  # four convolutions of 128 channels in and out
    second = 3 * 3 * 128 * 32 * 8 + 3 * (3 * 3 * 256 * 32 * 8)
    third = 4 * (3 * 3 * 256 * 32 * 8)
    # Of the fourth cell one is a 3D convolution over 8 numbers of a capsule, with a bias after routing.
    fourth = 3 * (3 * 3 * 256 * 32 * 8) + 3 * 3 * 8 * 32 * 8 + 32 * 8
    capsules = 32 * ((side // 8) ** 2 + (side // 16) ** 2)
    classes = capsules * 10 * 8 * 32 + 10 * 32
    return stem + first + second + third + fourth + classes


def test_parameters_of_deepcaps_by_hand():
    row = table.find("deepcaps")
    assert row.image_shape == (64, 64, 3)
    assert row.parameters == deepcaps_parameters(64) == 13_359_424
    at_32 = table.count_parameters(*row.parts)
    assert at_32 == deepcaps_parameters(32) == 8_444_224


def test_parameters_of_hitnet_by_hand():
    convolutions = 9 * 9 * 3 * 256 + 256 + 9 * 9 * 256 * 256 + 256
    capsules = 8 * 8 * 256 * 10 * 16 + 10 * 16  # on a map of 24x24 and one of 8x8
    normalisation = 2 * 10 * 16
    row = table.find("hitnet")
    assert row.parameters == convolutions + capsules + normalisation == 7_993_056


@pytest.mark.parametrize("name", ["deepcaps", "hitnet"])
def test_bfloat16_has_float32_parameters_and_outputs(name):
    _, variables, exact = network(name)
    _, others, rounded = network(name, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(others)} == {jnp.dtype("float32")}
    out, expected = rounded(variables, IMAGES), exact(variables, IMAGES)
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(out.logits, expected.logits, atol=0.02)
    assert np.abs(np.asarray(out.logits - expected.logits)).max() > 0


@pytest.mark.parametrize("name", ["deepcaps", "hitnet"])
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_gradients_are_finite_also_where_all_capsules_are_zero(name, scale):
    module, variables, _ = network(name)
    kind = module.find_pooling().loss
    params = jax.tree.map(lambda leaf: scale * leaf, variables["params"])

    @jax.jit
    def gradients(params):
        def loss(params):
            out, _ = module.apply(
                {**variables, "params": params}, IMAGES, train=True, mutable=["batch_stats"]
            )
            return losses.image_loss(kind, out.logits, jnp.array([0, 2])).sum()

        return jax.value_and_grad(loss)(params)

    value, leaves = gradients(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(leaves))


def test_a_3d_convolution_votes_by_kinds():
    layer = deepcaps.RoutedConvolution(kinds=2, dimension=3)
    x = np.random.default_rng(1).standard_normal((1, 3, 4, 6)).astype(np.float32)
    out, variables = layer.init_with_output(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["conv"]["conv"]["kernel"], np.float64)
    assert kernel.shape == (3, 3, 3, 6)
    padded = np.pad(x[0].astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    # Along the depth of all channels the kernel goes capsule by capsule.
    votes = np.zeros((1, 2, 3, 4, 2, 3))
    for kind, row, column in np.ndindex(2, 3, 4):
        capsule = slice(3 * kind, 3 * kind + 3)
        window = padded[row : row + 3, column : column + 3, capsule]
        vote = np.einsum("yxc,yxco->o", window, kernel)
        votes[0, kind, row, column] = vote.reshape(2, 3)
    bias = variables["params"]["bias"]
    np.testing.assert_array_equal(bias, np.full((2, 3), 0.1, np.float32))
    routed = jax.jit(routing.map_routing)(jnp.asarray(votes, jnp.float32), bias)
    np.testing.assert_allclose(out, routed.capsules.reshape(1, 3, 4, 6), rtol=1e-4, atol=1e-6)


def test_convolutional_capsules_are_squashed_one_by_one():
    layer = deepcaps.CapsuleConvolution(kinds=2, dimension=4, stride=2)
    x = 30 * np.random.default_rng(2).standard_normal((1, 6, 6, 8)).astype(np.float32)
    out, variables = layer.init_with_output(jax.random.key(0), x)
    assert out.shape == (1, 3, 3, 8)
    lengths = np.linalg.norm(np.asarray(out).reshape(1, 3, 3, 2, 4), axis=-1)
    assert (lengths < 1).all() and lengths.min() > 0.9  # of large inputs each is nearly 1 long
    kernel = variables["params"]["conv"]["conv"]["kernel"]
    # As Keras draws it: a uniform number whose variance is one by the root of the number of weights.
    limit = (3 / (3 * 3 * 8 * 8) ** 0.5) ** 0.5
    assert 0.98 * limit < np.abs(kernel).max() <= limit


def test_a_patch_of_deepcaps_has_the_capsules_of_its_place():
    head = deepcaps.DeepCapsHead(kinds=2, dimension=3)
    x = np.arange(4 * 6 * 6, dtype=np.float32).reshape(1, 4, 6, 6)
    out, _ = jax.jit(head.init_with_output, static_argnums=2)(jax.random.key(0), x, False)
    grid = head.grid((4, 6))
    assert (grid.rows, grid.cols) == (2, 3) and out.shape == (1, 6, 3, 10)
    np.testing.assert_allclose(grid.boxes()[4], [0.5, 1 / 3, 1, 2 / 3], rtol=1e-6)
    # Behind the 2 kinds of the fourth cell those of four places of the third one, row by row.
    near = np.asarray(out)[0, 4, :, 2:].T.reshape(2, 2, 2, 3)
    np.testing.assert_array_equal(near, x[0, 2:4, 2:4].reshape(2, 2, 2, 3))


def test_attention_of_deepcaps_is_its_share_of_the_couplings():
    module, variables, apply = network("deepcaps")
    out = apply(variables, IMAGES)
    assert out.attention.shape == (2, 4)

    def run_head(variables, images):
        parts = (("backbone", module.make_backbone()), ("head", module.make_head()))
        for name, part in parts:
            own = {kind: tree[name] for kind, tree in variables.items() if name in tree}
            images = part.apply(own, images, False)
        return images

    np.testing.assert_allclose(out.attention.sum(axis=1), 1, rtol=1e-5)
    params = variables["params"]
    features = jax.jit(run_head)(variables, IMAGES)
    capsules = np.asarray(features).transpose(0, 1, 3, 2).reshape(2, 4 * 10, 8)
    votes = jnp.einsum("bnd,nkde->bnke", capsules, params["transform"])
    routed = jax.jit(routing.dynamic_routing)(votes, bias=params["bias"])
    np.testing.assert_allclose(routed.couplings.sum(axis=-1), 1, rtol=1e-5)  # over the classes
    lengths = np.linalg.norm(routed.capsules, axis=-1)
    np.testing.assert_allclose(out.logits, lengths, rtol=1e-4)
    chosen = np.take_along_axis(
        np.asarray(routed.couplings), lengths.argmax(axis=1)[:, None, None], axis=2
    )
    shares = chosen.reshape(2, 4, 10).sum(axis=2)
    expected = shares / shares.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(out.attention, expected, rtol=1e-4)


def test_parts_and_bias_sum_to_class_capsules_before_squashing():
    _, variables, apply = network("deepcaps")
    bias = np.zeros((3, 2), np.float32)
    without = {**variables, "params": {**variables["params"], "bias": bias}}
    out = apply(without, IMAGES)
    lengths = np.asarray(out.logits, np.float64)
    expected = np.sqrt(lengths / (1 - lengths))
    np.testing.assert_allclose(out.patch_logits.sum(axis=1), expected, rtol=1e-3)


def test_predictions_of_hitnet_are_distances_from_the_centre():
    module = models.build(*PARTS["hitnet"], num_classes=2, width=0.1875)
    assert module.make_head().dimension == 3
    form = np.array([[[0.5, 0.5, 0.5], [1.0, 0.0, 0.5]]], np.float32)[:, None]

    class Alone(models.network.Network):
        def find_pooling(self):
            return module.find_pooling()

        @models.network.nn.compact
        def __call__(self, features):
            patches = models.network.Patches([features], None, 2, 1, 0.1, 0, None, self)
            return self.predict("class capsules", patches)

    out = Alone().apply({}, jnp.asarray(form))
    np.testing.assert_allclose(out.logits, [[1, 1 - 0.5**0.5]], rtol=1e-6)
    np.testing.assert_array_equal(out.attention, [[1]])
    np.testing.assert_array_equal(out.patch_logits[:, 0], out.logits)
    jacobian = jax.jacobian(lambda x: Alone().apply({}, x).logits)(jnp.asarray(form))
    assert np.isfinite(jacobian).all()  # also at the centre itself


def test_hitnet_flattens_its_map_as_pytorch_does():
    module, variables, _ = network("hitnet")
    head = module.make_head()
    x = np.random.default_rng(3).standard_normal((2, 8, 8, 16)).astype(np.float32)
    of_head = {kind: tree["head"] for kind, tree in variables.items()}
    out = head.apply(of_head, x, False)
    assert out.shape == (2, 1, 3, 1) and 0 < out.min() and out.max() < 1
    layer = jax.tree.map(np.asarray, of_head["params"]["dense"])
    linear = x.transpose(0, 3, 1, 2).reshape(2, -1) @ layer["kernel"] + layer["bias"]
    expected = 1 / (1 + np.exp(-linear / np.sqrt(1 + BatchNorm.epsilon)))
    np.testing.assert_allclose(out[:, 0, :, 0], expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["deepcaps", "hitnet"])
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "svhn_cropped"])
def test_configs_of_capsule_networks_build_them(name, dataset):
    config = shrunk.load(f"tip.py:{name},{dataset}")
    spec = runs.spec_of(config.data)
    model = runs.build_model(config.model, spec)
    assert spec.image_shape == table.find(name).image_shape
    assert model.patch_grid(spec.image_shape).patches == {"deepcaps": 16, "hitnet": 1}[name]
    kind = runs.loss_kind(model, spec, config.loss.name)
    assert kind == {"deepcaps": losses.MARGIN, "hitnet": losses.CENTRIPETAL}[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepcaps", "hitnet"])
def test_a_shrunk_capsule_network_learns_and_explains(scenes_dir, tmp_path, name):
    backbone, head, pooling = PARTS[name]
    config = shrunk.config(
        scenes_dir,
        model__backbone=backbone,
        model__head=head,
        model__pooling=pooling,
        optimizer__name="adam",
        optimizer__learning_rate=1e-3,
        optimizer__weight_decay=0.0,
    )
    measured = loop.train(config, tmp_path)
    text = (tmp_path / "metrics.jsonl").read_text()
    steps = [line for line in map(json.loads, text.splitlines()) if line["kind"] == "train"]
    assert steps[-1]["image_loss"] < steps[0]["image_loss"]
    assert run_report.explain_run(str(tmp_path), num=2).stat().st_size > 10_000
    again = evaluate_run(str(tmp_path))
    assert again["loss"] == pytest.approx(measured["loss"], rel=1e-5)

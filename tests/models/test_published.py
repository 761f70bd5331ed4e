"""Backbones for ImageNet's images against the originals in PyTorch, and weights read by their names."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from lossattn_jax import models
from lossattn_jax.checkpoint import pretrained, torch_names
from lossattn_jax.errors import UserError
from lossattn_jax.models import position_embeddings
from tests.support import published_networks as published

with np.load(published.OUTPUTS) as stored:
    OUTPUTS = dict(stored)
NAMES = json.loads(published.NAMES.read_text())
LEFT_OUT = ("fc.weight", "fc.bias", "head.weight", "head.bias", "mask_token")


@functools.cache
def build(name, width, head="none"):
    pooling = "bag_loss_attention" if head == "none" else "loss_attention"
    return models.build(name, head, pooling, width=width)


small = functools.cache(published.make_small)


def small_weights(name):
    return published.state_dict(json.loads(str(OUTPUTS[f"{name}.shapes"])))


@pytest.mark.parametrize("name", published.SMALL)
def test_a_backbone_computes_what_the_original_does(name, tmp_path):
    model, (*size, _) = small(name)
    backbone = read(name, small_weights(name), tmp_path)
    module = model.make_backbone()
    images = published.images(size)
    actual = jax.jit(lambda v, x: module.apply(v, x, False))(backbone.variables, images)
    assert actual.shape == OUTPUTS[name].shape
    error = np.abs(actual - OUTPUTS[name]).max()
    assert error < 1e-4 * max(1, np.abs(OUTPUTS[name]).max())


@pytest.mark.parametrize("kind", published.RESAMPLINGS)
def test_places_are_resampled_as_pytorch_does(kind):
    for grid in published.GRIDS:
        actual = position_embeddings.resample(published.places(), grid, published.RESAMPLINGS[kind])
        expected = OUTPUTS["resampled.{}.{}x{}".format(kind, *grid)]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_the_original_is_one_parameter(name):
    side = 518 if "dinov2" in name else 224
    layout = torch_names.backbone_layout(build(name, 1.0), (side, side, 3))
    ours = {slot.key: list(slot.shape) for slot in layout.slots}
    theirs = {
        key: shape
        for key, shape in NAMES[name].items()
        if key not in LEFT_OUT and not key.endswith("num_batches_tracked")
    }
    assert ours == theirs
    assert len(layout.slots) == len(ours) == len(layout.leaves)
    assert {slot.path for slot in layout.slots} == set(layout.leaves)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_out_is_named(name):
    model = build(name, 1.0)
    side = 56 if "dinov2" in name else 64
    layout = torch_names.backbone_layout(model, (side, side, 3))
    headers = {k: np.broadcast_to(np.float32(0), shape) for k, shape in NAMES[name].items()}
    of_backbone = model.make_backbone().published_weights()
    weights, left_out = pretrained._select(headers, layout, of_backbone)
    assert set(left_out) == set(LEFT_OUT) & set(headers)
    assert set(weights) == {slot.key for slot in layout.slots}


def read(name, weights, tmp_path, size=None):
    arrays = {k: v if v.dtype == np.int64 else v.astype(np.float32) for k, v in weights.items()}
    safetensors.numpy.save_file(arrays, tmp_path / "weights.safetensors")
    model, shape = small(name)
    return pretrained.read(tmp_path / "weights.safetensors", model, (*size, 3) if size else shape)


def test_weights_of_another_network_are_refused_with_names(tmp_path):
    weights = small_weights("resnet18_imagenet")
    missing = {key: value for key, value in weights.items() if not key.startswith("layer4.0.bn2.")}
    names = "'layer4.0.bn2.running_mean', 'layer4.0.bn2.running_var', 'layer4.0.bn2.bias'"
    with pytest.raises(UserError, match=f"the weights lack {names} and 1 more: take the file"):
        read("resnet18_imagenet", missing, tmp_path)
    wrong = weights | {"conv1.weight": np.zeros((8, 3, 3, 3))}
    with pytest.raises(
        UserError, match=r"'conv1.weight' of \(8, 3, 3, 3\) instead of \(8, 3, 7, 7\)"
    ):
        read("resnet18_imagenet", wrong, tmp_path)
    with pytest.raises(
        UserError, match="have 'layer1.2.conv1.weight', which this backbone has not"
    ):
        read("resnet18_imagenet", weights | {"layer1.2.conv1.weight": np.zeros(3)}, tmp_path)
    with pytest.raises(UserError, match="'bn1.weight' .* 1 of 8 values that are not finite"):
        holed = weights["bn1.weight"].copy()
        holed[2] = np.nan
        read("resnet18_imagenet", weights | {"bn1.weight": holed}, tmp_path)


@pytest.mark.parametrize("shape", [(1, 19, 128), (1, 17, 64), (17, 128), (2, 17, 128)])
def test_places_of_no_square_are_refused(shape, tmp_path):
    weights = small_weights("vit_s16") | {"pos_embed": np.zeros(shape)}
    with pytest.raises(UserError, match="'pos_embed' of"):
        read("vit_s16", weights, tmp_path)


def test_places_of_the_images_own_grid_stay(tmp_path):
    places = published.reference_value("pos_embed", (1, 17, 128), 1).astype(np.float32)
    backbone = read("vit_s16", small_weights("vit_s16") | {"pos_embed": places}, tmp_path, (64, 64))
    assert backbone.resized == ()
    np.testing.assert_array_equal(backbone.variables["params"]["positions"], places)


def test_timms_names_of_registers_are_read(tmp_path):
    """timm has the class token's place in that token, and another name of the registers."""
    name = "vit_s14_dinov2_reg4"
    weights = small_weights(name)
    expected = read(name, weights, tmp_path).variables["params"]
    places, token = weights.pop("pos_embed"), weights.pop("cls_token")
    weights["pos_embed"], weights["cls_token"] = places[:, 1:], token + places[:, :1]
    weights["reg_token"] = weights.pop("register_tokens")
    del weights["mask_token"]
    actual = read(name, weights, tmp_path).variables["params"]
    first = actual["class_token"][:, 0] + actual["positions"][:, 0]
    np.testing.assert_allclose(
        first, expected["class_token"][:, 0] + expected["positions"][:, 0], atol=1e-6
    )
    for key in ("class_token", "positions"):
        actual.pop(key), expected.pop(key)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize(
    ("name", "side", "sentence"),
    [
        ("vit_s16", 100, "the images have 100x100 pixels, .* both sides must be multiples of 16"),
        ("vit_s14_dinov2", 64, "both sides must be multiples of 14"),
        ("vit_s16", 48, "map has 3x3 positions, but the head's windows have 4x4"),
        ("resnet18_imagenet", 64, "map has 2x2 positions, but the head's windows have 3x3"),
    ],
)
def test_images_that_do_not_suit_are_refused(name, side, sentence):
    with pytest.raises(UserError, match=sentence):
        build(name, 0.1, "conv").patch_grid((side, side, 3))


@pytest.mark.parametrize(
    ("width", "channels", "heads"),
    [(1, 384, 6), (2, 768, 12), (0.5, 192, 3), (1 / 3, 128, 2), (0.125, 48, 1), (0.01, 4, 1)],
)
def test_width_scales_embedding_and_heads(width, channels, heads):
    module = build("vit_s16", width).make_backbone()
    assert (module.channels, module.heads) == (channels, heads)


@pytest.mark.parametrize("name", ["resnet18_imagenet", "vit_s14_dinov2_reg4"])
def test_bfloat16_is_near_float32(name, tmp_path):
    model, (*size, _) = small(name)
    module = model.make_backbone(dtype=jnp.bfloat16)
    if name == "resnet18_imagenet":
        narrow = models.build(name, "none", width=1 / 8, dtype=jnp.bfloat16, pooling="mean")
        module = narrow.make_backbone(stage_blocks=published.STAGE_BLOCKS)
    images = published.images(size).astype(jnp.bfloat16)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    variables = read(name, small_weights(name), tmp_path).variables
    actual = jax.jit(lambda v, x: module.apply(v, x, False))(variables, images)
    assert actual.dtype == jnp.bfloat16
    error = np.abs(actual.astype(jnp.float32) - OUTPUTS[name])
    assert 0 < error.max() < 0.05 * np.abs(OUTPUTS[name]).max()

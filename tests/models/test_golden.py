"""Our numbers against those of the papers' own code, where its golden files are at hand."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax import losses, models, pooling

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from torch_weights import reference_key, reference_variables

GOLDEN = pathlib.Path(__file__).parents[3] / "shared" / "golden"


def golden(name):
    path = GOLDEN / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"golden file {name}.npz is not beside this checkout")
    with np.load(path) as arrays:
        return dict(arrays)


def relative_error(actual, expected):
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


def test_conv_attention_layer_agrees_with_the_papers_code():
    ref = golden("layer_conv_attention")

    def total(features, w, b):
        z = features @ w.T + b[None, None]
        attention = pooling.loss_attention(z, grid=int(ref["gamma"]))
        weighted = features * attention[:, :, None]
        patch = losses.patch_cross_entropy(z, ref["y"], attention).mean()
        return jnp.mean(weighted.sum(1) ** 2) + patch, (z, attention, weighted, patch)

    grad = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))
    (value, (z, attention, weighted, patch)), gradients = grad(ref["features"], ref["w"], ref["b"])
    assert relative_error(attention, ref["alpha"]) < 1e-5
    assert relative_error(z.reshape(-1, 10), ref["patch_logits"]) < 1e-5
    assert relative_error(weighted, ref["weighted_features"]) < 1e-5
    assert patch == pytest.approx(ref["loss_patch"], rel=1e-6)
    assert value == pytest.approx(ref["total"], rel=1e-6)
    for gradient, name in zip(gradients, ("d_features", "d_w", "d_b"), strict=True):
        assert relative_error(gradient, ref[name]) < 1e-4, name


@pytest.fixture(scope="module")
def conv_resnet18():
    ref = golden("conv_resnet18_loss_attention")
    module = models.build("resnet18", "conv", "loss_attention", num_classes=10)
    shapes = jax.eval_shape(module.init, jax.random.key(0), ref["x"])
    return ref, module, reference_variables(shapes, int(ref["seed"]))


def test_resnet18_has_the_papers_parameter_count(conv_resnet18):
    _, _, variables = conv_resnet18
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert round(count / 1e6, 2) == 32.67


def test_resnet18_evaluation_agrees_with_the_papers_code(conv_resnet18):
    ref, module, variables = conv_resnet18
    out = jax.jit(module.apply)(variables, ref["x"])
    assert relative_error(out.logits, ref["eval_logits"]) < 1e-4
    assert relative_error(out.patch_logits.reshape(-1, 10), ref["eval_patch_logits"]) < 1e-4
    assert relative_error(out.attention, ref["eval_alpha"]) < 1e-4


def test_resnet18_training_agrees_with_the_papers_code(conv_resnet18):
    ref, module, variables = conv_resnet18

    def loss(params):
        out, _ = module.apply(
            {"params": params, "batch_stats": variables["batch_stats"]},
            ref["x"],
            train=True,
            mutable=["batch_stats"],
        )
        terms = losses.loss_attention_loss(
            out.logits, out.patch_logits, out.attention, ref["y"], ref["lam"]
        )
        return terms.total.mean(), (out, terms)

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (out, terms)), gradients = grad(variables["params"])
    assert relative_error(out.logits, ref["train_logits"]) < 1e-4
    assert relative_error(out.patch_logits.reshape(-1, 10), ref["train_patch_logits"]) < 1e-4
    assert relative_error(out.attention, ref["train_alpha"]) < 1e-4
    assert terms.image.mean() == pytest.approx(float(ref["loss_bag"]), rel=1e-5)
    assert terms.patch.mean() == pytest.approx(float(ref["loss_patch"]), rel=1e-5)
    assert value == pytest.approx(float(ref["loss"]), rel=1e-5)

    norms = {
        reference_key(tuple(entry.key for entry in path)): np.linalg.norm(np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradients)
    }
    expected = dict(zip(ref["grad_norm_keys"].tolist(), ref["grad_norms"], strict=True))
    live = {key: norm for key, norm in expected.items() if key in norms}
    # The reference makes a normalisation of the stem that takes no part.
    assert set(expected) - set(live) <= {"bn1.weight", "bn1.bias"}
    assert set(norms) == set(live)
    for key, norm in live.items():
        assert norms[key] == pytest.approx(norm, rel=1e-2), key

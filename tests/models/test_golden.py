"""Our numbers against those of the papers' own code, where its golden files are at hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax import mil, models
from lossattn_jax.attention import losses, pooling
from lossattn_jax.checkpoint import conversion
from tests.support.torch_weights import golden, reference_state_dict

BUILD = {
    "conv_resnet18": lambda: models.build("resnet18", "conv", "loss_attention"),
    "capsule_vgg11": lambda: models.build("vgg11_bn", "capsule", "loss_attention"),
    "aaai_resnet18": lambda: models.build("resnet18", "none", "bag_loss_attention"),
}


def relative_error(actual, expected):
    actual = np.asarray(actual).reshape(expected.shape)
    return np.abs(actual - expected).max() / np.abs(expected).max()


def load(network):
    """The golden file, our network, and its variables, made from the recipe."""
    ref = golden(f"{network}_loss_attention")
    module = mil.BagLeNet() if network == "mil_cnn" else BUILD[network]()
    state_dict = reference_state_dict(network, int(ref["seed"]))
    return ref, module, conversion.from_torch_state_dict(state_dict, module)


def assert_gradients_agree(gradients, module, ref):
    actual = conversion.to_torch_parameters(gradients, module)
    expected = dict(zip(ref["grad_norm_keys"].tolist(), ref["grad_norms"].tolist(), strict=True))
    assert set(actual) == set(expected)
    for key, norm in expected.items():
        # What a normalisation takes away again has a gradient of rounding errors alone.
        assert np.linalg.norm(actual[key]) == pytest.approx(norm, rel=1e-2, abs=1e-6), key


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
    assert relative_error(z, ref["patch_logits"]) < 1e-5
    assert relative_error(weighted, ref["weighted_features"]) < 1e-5
    assert patch == pytest.approx(ref["loss_patch"], rel=1e-6)
    assert value == pytest.approx(ref["total"], rel=1e-6)
    for gradient, name in zip(gradients, ("d_features", "d_w", "d_b"), strict=True):
        assert relative_error(gradient, ref[name]) < 1e-4, name


def test_capsule_attention_layer_agrees_with_the_papers_code():
    ref = golden("layer_capsule_attention")
    patches = int(ref["gamma"])

    def by_patch(array):  # the papers' code has capsule c of patch p at c * patches + p
        batch, _, *rest = array.shape
        return array.reshape(batch, -1, patches, *rest).swapaxes(1, 2)

    def total(features, w, b):
        z = by_patch(features @ w.T + b[None, None])
        weights, attention = pooling.capsule_loss_attention(z, patches)
        weighted = by_patch(features) * weights[..., None]
        patch_logits = z.sum(2)
        patch = losses.patch_cross_entropy(patch_logits, ref["y"], attention).mean()
        value = jnp.mean(weighted.sum((1, 2)) ** 2) + patch
        return value, (patch_logits, attention, weighted)

    grad = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))
    (value, (z, attention, weighted)), gradients = grad(ref["features"], ref["w"], ref["b"])
    assert relative_error(attention, ref["alpha"]) < 1e-5
    assert relative_error(z, ref["patch_logits"]) < 1e-5
    assert relative_error(weighted, by_patch(ref["weighted_features"])) < 1e-5
    assert value == pytest.approx(ref["total"], rel=1e-5)
    for gradient, name in zip(gradients, ("d_features", "d_w", "d_b"), strict=True):
        assert relative_error(gradient, ref[name]) < 1e-4, name


@pytest.mark.parametrize(
    ("network", "millions"),
    [("conv_resnet18", 32.67), ("capsule_vgg11", 30.75), ("aaai_resnet18", 11.17)],
)
def test_a_network_evaluates_as_the_papers_code(network, millions):
    ref, module, variables = load(network)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert round(count / 1e6, 2) == millions
    out = jax.jit(module.apply)(variables, ref["x"])
    assert relative_error(out.logits, ref["eval_logits"]) < 1e-4
    assert relative_error(out.patch_logits, ref["eval_patch_logits"]) < 1e-4
    assert relative_error(out.attention, ref["eval_alpha"]) < 1e-4


@pytest.mark.parametrize(
    "network",
    [
        "aaai_resnet18",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("conv_resnet18", "capsule_vgg11")),
    ],
)
def test_a_network_trains_as_the_papers_code(network):
    ref, module, variables = load(network)

    def loss(params):
        out, _ = module.apply(
            {**variables, "params": params}, ref["x"], train=True, mutable=["batch_stats"]
        )
        weight = ref.get("lam", 1 / out.attention.shape[1])
        terms = losses.loss_attention_loss(
            out.logits, out.patch_logits, out.attention, ref["y"], weight
        )
        return terms.total.mean(), (out, terms, weight)

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (out, terms, weight)), gradients = grad(variables["params"])
    assert relative_error(out.logits, ref["train_logits"]) < 1e-4
    assert relative_error(out.patch_logits, ref["train_patch_logits"]) < 1e-4
    assert relative_error(out.attention, ref["train_alpha"]) < 1e-4
    assert value == pytest.approx(float(ref["loss"]), rel=1e-5)
    assert terms.image.mean() == pytest.approx(float(ref["loss_bag"]), rel=1e-5)
    # The AAAI paper's code averages over the patches, and has no other weight.
    patch = terms.patch.mean() * (1 if "lam" in ref else weight)
    assert patch == pytest.approx(float(ref["loss_patch"]), rel=1e-5)
    assert_gradients_agree(gradients, module, ref)


def test_the_bag_network_agrees_with_the_papers_code():
    ref, module, variables = load("mil_cnn")
    bags, labels = ref["bag"][None], ref["y"][None]

    def loss(params):
        out = module.apply({"params": params}, bags)
        terms = losses.loss_attention_loss(
            out.logits, out.patch_logits, out.attention, labels, ref["lam"] / bags.shape[1]
        )
        return terms.total.mean(), (out, terms)

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (out, terms)), gradients = grad(variables["params"])
    assert relative_error(out.logits, ref["logits"]) < 1e-4
    assert relative_error(out.patch_logits, ref["instance_logits"]) < 1e-4
    assert relative_error(out.attention, ref["alpha"]) < 1e-4
    assert value == pytest.approx(float(ref["loss"]), rel=1e-5)
    assert terms.image.mean() == pytest.approx(float(ref["loss_bag"]), rel=1e-5)
    instance = float(terms.patch.mean()) / bags.shape[1]
    assert instance == pytest.approx(float(ref["loss_instance"]), rel=1e-5)
    assert_gradients_agree(gradients, module, ref)

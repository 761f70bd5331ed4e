"""The registries of backbones and heads: no two entries of one compute the same."""

import functools
import itertools

import jax
import jax.numpy as jnp

from lossattn_jax.mil import BagNetwork
from lossattn_jax.models.backbones import BACKBONES, BAG_BACKBONES
from lossattn_jax.models.heads import HEADS
from lossattn_jax.models.layers import BatchNorm
from lossattn_jax.models.parts import Build
from lossattn_jax.models.patch_head import MapHead

IMAGES = jax.ShapeDtypeStruct((1, 112, 112, 3), jnp.float32)  # in patches of 14 and of 16


def build_of(plain):
    return Build(width=0.0625, plain=plain, norm=functools.partial(BatchNorm), dtype=jnp.float32)


def shapes_of(module, inputs):
    """Shapes of outputs and variables: functions in which these differ are not the same."""
    tree = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, False), inputs)
    return str(jax.tree.map(lambda leaf: leaf.shape, tree))


def test_no_two_backbones_compute_the_same():
    shapes = {name: shapes_of(b.make(build_of(False))(), IMAGES) for name, b in BACKBONES.items()}
    for one, other in itertools.combinations(shapes, 2):
        assert shapes[one] != shapes[other], f"{one} and {other} have the same layers"


def test_no_two_backbones_for_bags_compute_the_same():
    def try_on(name, inputs):
        """The parameters for inputs, or None where the layers refuse them."""
        network = BagNetwork(backbone=name, hidden=(4,))
        try:
            tree = jax.eval_shape(network.init, jax.random.key(0), inputs)
        except (ValueError, TypeError):
            return None
        return str(jax.tree.map(lambda leaf: leaf.shape, tree))

    inputs = (jnp.ones((1, 2, 5)), jnp.ones((1, 2, 16, 16, 1)))
    made = {name: tuple(try_on(name, some) for some in inputs) for name in BAG_BACKBONES}
    assert all(any(some) for some in made.values())
    assert len(set(made.values())) == len(made)


def test_no_two_heads_compute_the_same():
    backbone = BACKBONES["small"]
    features = jax.ShapeDtypeStruct((1, 8, 8, 6), jnp.float32)
    shapes = {}
    for name, head in HEADS.items():
        for form in head.forms(backbone):
            shapes[name, form] = shapes_of(head.makes[form](build_of(False), backbone)(), features)
    assert {name for name, _ in shapes} == set(HEADS)
    assert len(set(shapes.values())) == len(shapes)


def test_a_plain_network_has_the_form_that_suits_its_backbone():
    none = HEADS["none"]
    forms = {name: none.forms(backbone) for name, backbone in BACKBONES.items()}
    assert forms["resnet18"] == ("map",)
    assert forms["vgg11_bn"] == ("one patch",)
    assert forms["deepcaps"] == ("squashed capsules",) and forms["hitnet"] == ("class capsules",)
    assert forms["capsnet"] == ("units",) and HEADS["conv"].forms(BACKBONES["capsnet"]) == ()
    assert none.makes["map"](build_of(True), BACKBONES["resnet18"]) is MapHead

"""The registry of poolings: nobody else names them, no two compute the same, and masks take patches out."""

import ast
import functools
import itertools
import pathlib

import jax
import numpy as np
import pytest

import lossattn_jax
from lossattn_jax import models
from lossattn_jax.attention import poolings
from lossattn_jax.attention.poolings import BAG_POOLINGS, POOLINGS, entry
from lossattn_jax.mil import BagNetwork
from lossattn_jax.models.layers import dense
from tests.support import parameters

PACKAGE = pathlib.Path(lossattn_jax.__file__).parent
# The registry, the paper's table, and the defaults of the configs.
HOMES = ("attention/poolings/", "models/table.py", "config/options.py")
NAMES = {*POOLINGS, *BAG_POOLINGS}
# Words of their own that mean something else, too.
AMBIGUOUS = {"mean", "max", "attention"}
RANDOM = np.random.default_rng(0)
BATCH, PATCHES, CLASSES, WIDTH = 2, 5, 3, 4


def named_in(tree):
    """Yields (line, name) of each pooling that a module has as a string, or compares a pooling with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in NAMES - AMBIGUOUS:
            yield node.lineno, node.value
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            words = {getattr(side, "attr", getattr(side, "id", "")) for side in sides}
            words |= {
                side.slice.value.rpartition(".")[2]
                for side in sides
                if isinstance(side, ast.Subscript) and isinstance(side.slice, ast.Constant)
                if isinstance(side.slice.value, str)
            }
            strings = {
                n.value for side in sides for n in ast.walk(side) if isinstance(n, ast.Constant)
            }
            if {"pooling", "method"} & words and strings & (NAMES | {"none"}):
                yield node.lineno, ast.unparse(node)


def test_no_other_module_lists_poolings():
    named = []
    for path in sorted(PACKAGE.rglob("*.py")):
        short = path.relative_to(PACKAGE).as_posix()
        if not short.startswith(HOMES) and not short.startswith("configs/"):
            named += [
                f"{short}:{line} {name}" for line, name in named_in(ast.parse(path.read_text()))
            ]
    assert not named


@pytest.mark.parametrize(
    "source",
    [
        "x = 'gated_attention'",
        "x = config.model.pooling == 'mean'",
        "x = method in ('max', 'b')",
        "x = config['model.pooling'] != 'none'",
    ],
)
def test_a_name_in_another_module_is_found(source):
    assert list(named_in(ast.parse(source)))


class Alone(models.network.Network):
    """One pooling on features of its own form."""

    pooling: str
    form: str

    def find_pooling(self):
        return POOLINGS.find(self.pooling)

    @models.network.nn.compact
    def __call__(self, layers, mask=None):
        patches = entry.Patches(
            layers=layers,
            mask=mask,
            num_classes=CLASSES,
            grid=PATCHES,
            threshold=0.9,
            hidden=6,
            dense=dense,
            network=self,
        )
        return self.predict(self.form, patches)


SHAPES = {
    **dict.fromkeys((entry.MAP, entry.PATCHES, entry.INSTANCES), (BATCH, PATCHES, WIDTH)),
    entry.ONE: (BATCH, 1, WIDTH),
    entry.CAPSULES: (BATCH, PATCHES, 2, WIDTH),
    entry.UNITS: (BATCH, PATCHES, 2, WIDTH),
    entry.SQUASHED: (BATCH, PATCHES, 2, WIDTH),
    entry.CLASS_CAPSULES: (BATCH, 1, CLASSES, WIDTH),
}


def make_layers(form):
    """Features of three layers, alike for all poolings."""
    random = np.random.default_rng(1)
    return [random.standard_normal(SHAPES[form]).astype(np.float32) for _ in range(3)]


def features_for(name, form):
    """Of all layers, or of the last alone where a pooling takes no other."""
    layers = make_layers(form)
    return layers if POOLINGS[name].all_layers else layers[-1:]


@functools.cache
def drawn(name, form):
    """A pooling as a network, and variables in which classifiers have the same weights for all."""
    network = Alone(pooling=name, form=form)
    return network, parameters.draw(network, features_for(name, form))


@functools.cache
def outputs():
    """What every pooling makes of the features of each of its forms, computed by one program."""
    rows = [(name, form) for name, pooling in POOLINGS.items() for form in pooling.forms()]

    @jax.jit
    def run(variables, layers):
        pairs = zip(rows, variables, layers, strict=True)
        return [drawn(*row)[0].apply(own, features) for row, own, features in pairs]

    outputs = run([drawn(*row)[1] for row in rows], [features_for(*row) for row in rows])
    return dict(zip(rows, outputs, strict=True))


def test_no_two_poolings_compute_the_same():
    of_form = {}
    for name, pooling in POOLINGS.items():
        for form in pooling.forms():
            leaves = [np.ravel(leaf) for leaf in outputs()[name, form]]
            of_form.setdefault(SHAPES[form], {})[name] = np.concatenate(leaves)
    assert {name for some in of_form.values() for name in some} == set(POOLINGS)
    for some in of_form.values():
        for (one, first), (other, second) in itertools.combinations(some.items(), 2):
            assert np.abs(first - second).max() > 1e-3, f"{one} and {other} compute the same"


def test_old_names_are_names_of_entries():
    assert POOLINGS.find("none") is POOLINGS["mean"] and "none" not in POOLINGS
    assert len({id(pooling) for pooling in POOLINGS.values()}) == len(POOLINGS)
    assert set(BAG_POOLINGS.values()) <= set(POOLINGS.values())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name == "transmil" else name
        for name in POOLINGS
    ],
)
def test_patches_that_a_mask_takes_out_have_no_say(name):
    for form in POOLINGS[name].forms():
        layers = features_for(name, form)
        network, variables = drawn(name, form)
        count = SHAPES[form][1]
        mask = np.ones((BATCH, count), bool)
        mask[1, 2:] = count == 1
        apply = jax.jit(network.apply)
        expected = apply(variables, layers, mask)
        other = [np.where(mask.reshape(BATCH, count, *[1] * (x.ndim - 2)), x, 9.0) for x in layers]
        again = apply(variables, [x.astype(np.float32) for x in other], mask)
        np.testing.assert_allclose(again.logits, expected.logits, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(again.attention, expected.attention, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(expected.attention)[~mask], 0)
        np.testing.assert_allclose(expected.attention.sum(axis=1), 1, rtol=1e-5)
        everything = apply(variables, layers, np.ones_like(mask))
        without = outputs()[name, form]
        np.testing.assert_allclose(everything.logits, without.logits, rtol=1e-6, atol=1e-7)


def test_a_network_for_images_takes_a_mask_of_patches():
    network = models.build("small", "conv", width=0.125)
    images = RANDOM.standard_normal((2, 32, 32, 3)).astype(np.float32)
    variables = parameters.draw(network, images)
    mask = np.ones((2, 36), bool)
    mask[0, 7:] = False
    out = jax.jit(network.apply)(variables, images, mask=mask)
    np.testing.assert_array_equal(out.attention[0, 7:], 0)
    np.testing.assert_allclose(out.attention.sum(axis=1), 1, rtol=1e-5)


def test_bags_and_images_return_the_same_outputs():
    bags = RANDOM.standard_normal((2, 3, 4)).astype(np.float32)
    for method in BAG_POOLINGS:
        network = BagNetwork(method=method, hidden=(2, 2, 2))
        outputs, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), bags)
        assert type(outputs) is models.Outputs and set(variables) == {"params"}
    assert poolings.DEFAULT in BAG_POOLINGS and poolings.DEFAULT in POOLINGS

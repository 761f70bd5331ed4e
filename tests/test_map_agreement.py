"""Agreement of maps against SciPy and by hand; shifts, and randomised parameters of real networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

from lossattn_jax import models
from lossattn_jax.explain.metrics import map_agreement

spearman = jax.jit(map_agreement.spearman)
top_overlap = jax.jit(map_agreement.top_overlap, static_argnums=2)
shifted = jax.jit(map_agreement.shift)
shifted_back = jax.jit(map_agreement.shift_back)


def random_pair(count=12, size=60, levels=9):
    """Pairs of maps that are somewhat alike and full of ties."""
    rng = np.random.default_rng(0)
    first = rng.integers(-levels, levels, (count, size))
    second = first + rng.integers(-levels, levels, (count, size))
    return jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32)


def test_spearman_against_scipy():
    first, second = random_pair()
    measured = spearman(first.reshape(12, 6, 10), second.reshape(12, 6, 10))
    expected = [spearmanr(a, b).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(measured, expected, atol=2e-6)


def test_spearman_of_large_maps_without_ties():
    rng = np.random.default_rng(1)
    first = rng.standard_normal((2, 128, 128)).astype(np.float32)
    second = (first + rng.standard_normal(first.shape)).astype(np.float32)
    measured = spearman(jnp.asarray(first), jnp.asarray(second))
    expected = [
        spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(first, second, strict=True)
    ]
    np.testing.assert_allclose(measured, expected, atol=1e-5)


def test_spearman_of_the_valid_places():
    first, second = random_pair()
    valid = np.random.default_rng(2).uniform(size=first.shape) < 0.6
    # What is not valid may hold anything.
    loud = jnp.where(jnp.asarray(valid), first, jnp.nan)
    measured = spearman(loud, second, jnp.asarray(valid))
    pairs = zip(np.asarray(first), np.asarray(second), valid, strict=True)
    expected = [spearmanr(a[v], b[v]).statistic for a, b, v in pairs]
    np.testing.assert_allclose(measured, expected, atol=2e-6)


def test_spearman_of_special_maps():
    first, _ = random_pair()
    flat = jnp.full_like(first, 3.0)
    # Any increasing function leaves it at 1, any decreasing one at -1.
    np.testing.assert_allclose(spearman(first, jnp.exp(first)), 1, rtol=1e-6)
    np.testing.assert_allclose(spearman(first, -first), -1, rtol=1e-6)
    np.testing.assert_array_equal(spearman(first, flat), 0)
    np.testing.assert_array_equal(spearman(flat, flat), 0)
    nothing = jnp.zeros(first.shape, bool)
    np.testing.assert_array_equal(spearman(first, first, nothing), 0)
    np.testing.assert_array_equal(top_overlap(first, first, 0.1, nothing), 0)


def test_top_overlap_by_hand():
    first = jnp.array([[9.0, 8.0, 7.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    second = jnp.array([[1.0, 5.0, 0.0, 6.0, 7.0, 0.5, 0.2, 0.1]])

    def overlap(share, a=first, b=second):
        return float(top_overlap(a, b, share)[0])

    assert overlap(0.01) == 0  # one place: 0 and 4
    assert overlap(0.25) == 0  # {0, 1}, {4, 3}
    assert overlap(0.375) == pytest.approx(1 / 3)  # {0, 1, 2}, {4, 3, 1}
    # Four: the fourth of the first map is any of five zeros, a fifth of each; {4, 3, 1, 0}.
    assert overlap(0.5) == pytest.approx((1 + 1 + 1 / 5 + 1 / 5) / 4)
    assert overlap(1.0) == 1
    for share in (0.01, 0.3, 0.5, 0.9):
        assert overlap(share, first, first) == pytest.approx(1)
        assert overlap(share, jnp.zeros((1, 8)), second) == pytest.approx(
            max(1, np.floor(8 * share + 0.5)) / 8
        )


def test_top_overlap_against_numpy_without_ties():
    rng = np.random.default_rng(3)
    first, second = rng.permuted(np.tile(np.arange(40.0), (2, 10, 1)), axis=2)
    valid = rng.uniform(size=first.shape) < 0.7
    measured = top_overlap(jnp.asarray(first), jnp.asarray(second), 0.2, valid)
    for a, b, v, value in zip(first, second, valid, measured, strict=True):
        k = int(np.floor(0.2 * v.sum() + 0.5))
        tops = [set(np.argsort(np.where(v, -x, np.inf))[:k]) for x in (a, b)]
        assert float(value) == pytest.approx(len(tops[0] & tops[1]) / k, abs=1e-6)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_top_overlap_refuses(share):
    with pytest.raises(ValueError, match="share"):
        map_agreement.top_overlap(*random_pair(), share)


def test_padding_and_order_of_examples_change_nothing():
    first, second = random_pair()

    def both(a, b):
        return spearman(a, b), top_overlap(a, b, 0.2)

    expected = both(first, second)
    junk = jnp.full((4, 60), 7.0)
    padded = jax.jit(both)(jnp.concatenate([first, junk]), jnp.concatenate([second, -junk]))
    mixed = np.random.default_rng(4).permutation(12)
    permuted = both(first[mixed], second[mixed])
    for values, more, other in zip(expected, padded, permuted, strict=True):
        assert values.dtype == jnp.float32
        np.testing.assert_allclose(more[:12], values, atol=1e-6)
        np.testing.assert_allclose(other, values[mixed], atol=1e-6)


def test_shifts_by_hand():
    image = jnp.arange(9.0).reshape(1, 3, 3, 1)
    down = map_agreement.shift(image, 1, 0)[0, :, :, 0]
    np.testing.assert_array_equal(down, [[0, 1, 2], [0, 1, 2], [3, 4, 5]])
    left = map_agreement.shift(image, 0, -2)[0, :, :, 0]
    np.testing.assert_array_equal(left, [[2, 2, 2], [5, 5, 5], [8, 8, 8]])


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (2, -1), (-3, 4), (1, 0), (9, 9)])
def test_shifting_back_restores_what_stayed_in_the_image(dy, dx):
    maps = jnp.asarray(np.random.default_rng(5).standard_normal((2, 6, 7)), jnp.float32)
    moved = shifted(maps, dy, dx)
    padding = ((0, 0), (max(dy, 0), max(-dy, 0)), (max(dx, 0), max(-dx, 0)))
    padded = np.pad(maps, padding, mode="edge")
    expected = padded[:, max(-dy, 0) : max(-dy, 0) + 6, max(-dx, 0) : max(-dx, 0) + 7]
    np.testing.assert_array_equal(moved, expected)
    back, valid = shifted_back(moved, dy, dx)
    assert valid.shape == maps.shape
    assert valid[0].sum() == max(6 - abs(dy), 0) * max(7 - abs(dx), 0)
    np.testing.assert_array_equal(np.asarray(back)[valid], np.asarray(maps)[valid])
    if valid.any():  # an explainer that moves with the image agrees fully
        agreement = spearman(back, maps, valid)
        np.testing.assert_allclose(agreement, 1, rtol=1e-6)


def shapes_of(**options):
    """Shapes of a network's parameters, in the order that checkpoints give: sorted by name."""
    network = models.build(num_classes=5, width=0.1, **options)
    images = jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(lambda: network.init(jax.random.key(0), images, train=False))
    return jax.tree.map(lambda leaf: leaf, dict(variables["params"]))


@pytest.mark.parametrize(
    ("options", "beside", "with_parameters"),
    [
        (
            dict(backbone="small", head="conv", pooling="gated_attention"),
            ("attention", "classifier"),
            True,
        ),
        (dict(backbone="small", head="capsule", pooling="loss_attention"), ("classifier",), True),
        (
            dict(backbone="capsnet", head="none", pooling="dynamic_routing"),
            ("transform",),
            True,
        ),
        (
            dict(backbone="resnet18", head="none", pooling="bag_loss_attention"),
            ("classifier",),
            False,
        ),
    ],
)
def test_stages_go_from_the_prediction_down_over_all(options, beside, with_parameters):
    params = shapes_of(**options)
    stages = map_agreement.stages(params)
    assert list(stages) == ["classifier", "head", "backbone"]
    head = ("head",) if with_parameters else ()
    assert tuple(sorted(stages["classifier"])) == beside
    assert stages["head"] == stages["classifier"] + head
    assert stages["backbone"] == stages["head"] + ("backbone",)
    assert set(stages["backbone"]) == set(params)


def test_stages_know_no_names_of_layers():
    params = {"own_scores": {}, "backbone": {"stem": {}}, "head": {"patch": {}}, "gate": {}}
    assert map_agreement.stages(params)["classifier"] == ("own_scores", "gate")
    assert map_agreement.stages(params)["backbone"] == ("own_scores", "gate", "head", "backbone")


def random_params():
    """Arrays of 400 values each, so that one program shuffles them all."""
    rng = np.random.default_rng(6)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return {
        "classifier": {"kernel": draw(20, 20), "bias": draw(400)},
        "head": {"conv1": {"conv": {"kernel": draw(2, 2, 10, 10)}}, "conv10": {"bias": draw(400)}},
        "backbone": {"bn1": {"scale": jnp.ones(400)}},
    }


def test_randomised_shuffles_the_named_layers_only():
    params, key = random_params(), jax.random.key(0)
    changed = map_agreement.randomise(params, key, ["classifier/kernel", "head/conv1"])
    assert jax.tree.structure(changed) == jax.tree.structure(params)
    for old, new, moved in (
        (params["classifier"], changed["classifier"], {"kernel"}),
        (params["head"]["conv1"]["conv"], changed["head"]["conv1"]["conv"], {"kernel"}),
        (params["head"]["conv10"], changed["head"]["conv10"], set()),
        (params["backbone"]["bn1"], changed["backbone"]["bn1"], set()),
    ):
        for name, leaf in old.items():
            assert new[name].shape == leaf.shape and new[name].dtype == leaf.dtype
            assert (name in moved) == bool((new[name] != leaf).any())
            np.testing.assert_array_equal(np.sort(new[name].ravel()), np.sort(leaf.ravel()))
    # As good as unrelated to what it was.
    kernel = changed["classifier"]["kernel"].ravel()
    assert abs(np.corrcoef(kernel, params["classifier"]["kernel"].ravel())[0, 1]) < 0.25


def test_stages_of_one_key_add_layers_to_those_before():
    params, key = random_params(), jax.random.key(1)
    names = ("classifier", "head/conv1", "backbone")
    whole = map_agreement.randomise(params, key, names)
    for count in range(4):
        part = map_agreement.randomise(params, key, names[:count])
        for layer in ("classifier", "head", "backbone"):
            expected = whole if any(name.startswith(layer) for name in names[:count]) else params
            jax.tree.map(np.testing.assert_array_equal, part[layer], expected[layer])
    traced = jax.jit(map_agreement.randomise, static_argnums=2)(params, key, names)
    jax.tree.map(np.testing.assert_array_equal, traced, whole)
    other = map_agreement.randomise(params, jax.random.key(2), names)
    assert (other["classifier"]["kernel"] != whole["classifier"]["kernel"]).any()
    with pytest.raises(ValueError, match="head/conv2"):
        map_agreement.randomise(params, key, ["head/conv2"])
    with pytest.raises(ValueError, match="'head/conv'"):
        map_agreement.randomise(params, key, ["head/conv"])

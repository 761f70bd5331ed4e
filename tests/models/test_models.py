"""Networks by name: shapes, dtypes, the properties of their outputs, and refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax import models
from lossattn_jax.attention import losses
from lossattn_jax.errors import UserError
from lossattn_jax.models import combinations, resnet
from lossattn_jax.models.layers import BatchNorm, ExampleDropout
from tests.support import parameters

IMAGES = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
NARROW = 0.125


def build(backbone="small", head="conv", pooling="loss_attention", width=NARROW, **options):
    return models.build(backbone, head, pooling, width=width, **options)


def shapes_of(module, images=IMAGES):
    """Shapes of the outputs and of the variables, without running anything."""
    return jax.eval_shape(
        lambda x: module.init_with_output(jax.random.key(0), x, train=False), images
    )


@functools.cache
def small(dtype=jnp.float32):
    """The small network, compiled: its variables, and outputs and new statistics of images."""
    module = build(dtype=dtype)

    def apply(variables, images, train=False):
        return module.apply(variables, images, train=train, mutable=["batch_stats"])

    variables = parameters.draw(module, IMAGES)
    return variables, jax.jit(apply, static_argnames="train")


ALL = [
    (backbone, head, pooling)
    for backbone in models.BACKBONES
    for head in models.HEADS
    for pooling in combinations.poolings(backbone, head)
]
# With all poolings, which know nothing of the backbone; the others have here the first of each head, and all
# in the slow tests. Of a family that differs in its depth or width alone one has all heads here.
CAPSULES = ("capsnet", "deepcaps", "hitnet")
TRIED = ("small", *CAPSULES)
ALIKE = ("resnet34", "resnet34_imagenet", "resnet18_imagenet", "vgg13_bn", "vgg16_bn", "vgg19_bn")
ALIKE += ("vit_b16", "vit_b14_dinov2", "vit_s14_dinov2")
# The table's test makes each of them once, or a smaller one of the family is tried.
DEEP = ("resnet101", "resnet152", "resnet101_imagenet", "resnet152_imagenet", "vit_b14_dinov2_reg4")
LARGE = {name: 112 for name in models.BACKBONES if name.startswith("vit") or "imagenet" in name}
SIDES = {"resnet18_stride2": 64, **LARGE}  # of images
FIRST = {(backbone, head): pooling for backbone, head, pooling in reversed(ALL)}


@pytest.mark.parametrize(
    ("backbone", "head", "pooling"),
    [
        row
        if row[0] in TRIED
        or (
            FIRST[row[:2]] == row[2]
            and row[0] not in DEEP
            and (row[0] not in ALIKE or row[1] == "none")
        )
        else pytest.param(*row, marks=pytest.mark.slow)
        for row in ALL
    ],
)
def test_every_network_gives_predictions_for_images_and_patches(backbone, head, pooling):
    module = build(backbone, head, pooling, num_classes=7)
    side = SIDES.get(backbone, 32)
    out, variables = shapes_of(module, np.zeros((2, side, side, 3), np.float32))
    grid = module.patch_grid((side, side, 3))
    patches = grid.rows * grid.cols
    if head == "none":
        expected = {
            "small": 64,
            "quick": 64,
            "capsnet": 64,
            "resnet18_stride2": 1024,
            "deepcaps": 4,
            "hitnet": 1,
        }
        of_vit = {"vit_s16": 49, "vit_b16": 49}
        usual = of_vit.get(backbone, 64) if "vit" in backbone else 1 if "vgg" in backbone else 16
        assert patches == expected.get(backbone, usual)
    elif backbone in LARGE:
        assert patches == (9 if "dinov2" in backbone else 4)
    else:
        assert patches == 36
    assert out.logits.shape == (2, 7)
    assert out.patch_logits.shape == (2, patches, 7)
    assert out.attention.shape == (2, patches)
    for leaf in jax.tree.leaves((out, variables)):
        assert leaf.dtype == jnp.float32
    assert set(variables) <= {"params", "batch_stats"}


# The others' gradients are checked by the golden files and by training (tests/train).
RUN = [("small", "conv", "gated_attention")]
SLOW = [
    row
    for row in ALL
    if row[0] in ("small", "vgg11_bn", "resnet18", "resnet50", *CAPSULES) and row not in RUN
]


@pytest.mark.parametrize(
    ("backbone", "head", "pooling"),
    [*RUN, *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW)],
)
def test_attention_sums_to_1_and_all_gradients_are_finite(backbone, head, pooling):
    module = build(backbone, head, pooling)
    labels = jnp.array([1, 2])
    kind = module.find_pooling().loss or losses.CROSS_ENTROPY

    @jax.jit
    def run(key):
        variables = module.init(key, IMAGES, train=False)

        def loss(params):
            out, _ = module.apply(
                {**variables, "params": params},
                IMAGES,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            terms = losses.loss_attention_loss(
                out.logits, out.patch_logits, out.attention, labels, 0.1, kind=kind
            )
            return terms.total.mean(), out

        return jax.grad(loss, has_aux=True)(variables["params"])

    gradients, out = run(jax.random.key(0))
    np.testing.assert_allclose(out.attention.sum(axis=1), 1, rtol=1e-5)
    assert (np.asarray(out.attention) >= 0).all()
    # A softmax does not change where one number is added to all scores: of that bias the gradient is 0.
    shift = ("attention", "score", "bias")
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all(), path
        if tuple(entry.key for entry in path) != shift:
            assert np.abs(leaf).max() > 0, path


@pytest.mark.parametrize(
    "pooling", ["loss_attention", pytest.param("mean", marks=pytest.mark.slow)]
)
def test_the_image_prediction_is_the_weighted_patch_prediction(pooling):
    # One classifier for both: W (sum a h) + b = sum a (W h + b) since the weights sum to 1.
    module = build(pooling=pooling)
    out = jax.jit(module.apply)(parameters.draw(module, IMAGES), IMAGES)
    expected = np.einsum("bp,bpk->bk", out.attention, out.patch_logits)
    np.testing.assert_allclose(out.logits, expected, rtol=1e-4, atol=1e-5)


def test_patches_come_in_row_major_order():
    variables, apply = small()
    changed = IMAGES.copy()
    changed[:, :6, -6:] += 3  # the corner at the top right: the end of the first row
    before, after = (apply(variables, x)[0].patch_logits for x in (IMAGES, changed))
    moved = np.abs(np.asarray(after - before)).max(axis=(0, 2)).reshape(6, 6)
    quadrants = moved.reshape(2, 3, 2, 3).mean(axis=(1, 3))
    assert quadrants[0, 1] > 3 * max(quadrants[0, 0], quadrants[1, 0], quadrants[1, 1])


def test_bfloat16_nears_float32_with_float32_params_and_outputs():
    variables, exact = small()
    others, rounded = small(jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(others)} == {jnp.dtype("float32")}
    (out, _), (expected, _) = rounded(variables, IMAGES), exact(variables, IMAGES)
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(out.logits, expected.logits, atol=0.02)
    assert np.abs(np.asarray(out.logits - expected.logits)).max() > 0


def test_only_training_moves_the_running_statistics():
    variables, apply = small()
    _, trained = apply(variables, IMAGES, train=True)
    moved = jax.tree.map(
        lambda a, b: bool(jnp.any(a != b)), trained["batch_stats"], variables["batch_stats"]
    )
    assert all(jax.tree.leaves(moved))
    _, kept = apply(variables, IMAGES, train=False)
    jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], variables["batch_stats"])


def test_patch_windows_of_the_paper_head():
    grid = build("resnet18").patch_grid((32, 32, 3))
    assert (grid.rows, grid.cols) == (6, 6)
    pixels = grid.boxes() * 32
    np.testing.assert_allclose(pixels[0], [0, 0, 9, 9], atol=1e-5)
    np.testing.assert_allclose(pixels[1], [0, 4, 9, 13], atol=1e-5)
    np.testing.assert_allclose(pixels[35], [20, 20, 29, 29], atol=1e-5)
    np.testing.assert_allclose(grid.centres()[7] * 32, [8.5, 8.5], atol=1e-5)


def test_routed_patches_sum_to_class_capsules_before_squashing():
    module = build(head="capsule", pooling="dynamic_routing")
    out = jax.jit(module.apply)(parameters.draw(module, IMAGES), IMAGES)
    lengths = np.asarray(out.logits, np.float64)
    assert (lengths < 1).all()
    # |v| = |s|^2 / (1 + |s|^2), so |s| = sqrt(|v| / (1 - |v|)).
    expected = np.sqrt(lengths / (1 - lengths))
    np.testing.assert_allclose(out.patch_logits.sum(axis=1), expected, rtol=1e-4)


def test_a_patchs_prediction_is_the_sum_over_its_capsules():
    module = build(head="capsule", threshold=1.0)
    variables, apply = parameters.draw(module, IMAGES), jax.jit(module.apply)
    out = apply(variables, IMAGES)
    assert (np.asarray(out.attention) == 0).any()
    # Alone, the classifier's bias predicts once for the image and for each of 8 capsules of a patch.
    classifier = variables["params"]["classifier"]
    classifier["kernel"] = jnp.zeros_like(classifier["kernel"])
    after = apply(variables, IMAGES)
    bias = np.asarray(classifier["bias"])
    np.testing.assert_allclose(after.logits, np.broadcast_to(bias, (2, 10)), rtol=1e-6)
    np.testing.assert_allclose(
        after.patch_logits, np.broadcast_to(8 * bias, (2, 36, 10)), rtol=1e-5
    )


def test_dropout_is_drawn_by_the_place_in_the_global_batch():
    module = ExampleDropout(0.5, axis_name="devices")
    x = np.ones((6, 5), np.float32)
    key = {"dropout": jax.random.key(3)}
    whole = ExampleDropout(0.5).apply({}, x, True, rngs=key)
    split = jax.vmap(lambda part: module.apply({}, part, True, rngs=key), axis_name="devices")
    np.testing.assert_array_equal(split(x.reshape(3, 2, 5)).reshape(6, 5), whole)
    assert set(np.unique(whole)) == {0.0, 2.0}
    np.testing.assert_array_equal(module.apply({}, x, False), x)


def test_the_reference_bottleneck_differs_from_the_usual_one():
    usual = build("resnet50", width=0.03125)
    reference = build("resnet50", width=0.03125, bottleneck_relu_before_add=True)
    _, variables = shapes_of(usual)
    kernel = variables["params"]["backbone"]["layer1_0"]["conv1"]["conv"]["kernel"]
    assert kernel.shape[:2] == (3, 3)
    assert jax.tree.map(jnp.shape, shapes_of(reference)[1]) == jax.tree.map(jnp.shape, variables)
    _, plain = shapes_of(build("resnet50", "none", "none", 0.03125))
    assert plain["params"]["backbone"]["layer1_0"]["conv1"]["conv"]["kernel"].shape[:2] == (1, 1)
    # One block on its own: with the ReLU it never takes anything away from a positive input.
    block = resnet.Bottleneck(2, 1, functools.partial(BatchNorm), relu_before_add=True)
    x = np.random.default_rng(1).uniform(1, 2, (1, 4, 4, 8)).astype(np.float32)
    without = block.clone(relu_before_add=False)

    @jax.jit
    def outputs(x):
        return [m.init_with_output(jax.random.key(0), x, False)[0] for m in (block, without)]

    out, other = outputs(x)
    assert (np.asarray(out) >= x).all()
    assert (np.asarray(other) < x).any()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"backbone": "resnet19"},
            "backbone is 'resnet19', but must be one of 26 names, of which the nearest are: resnet18, ",
        ),
        ({"head": "convolution"}, "head is 'convolution', but must be one of: none, conv, capsule"),
        ({"pooling": "sum"}, "pooling is 'sum', but must be one of: mean, mi_net, max, "),
        ({"num_classes": 1}, "num_classes is 1, but must be a whole number, at least 2"),
        ({"num_classes": 2.5}, "num_classes is 2.5, but must be a whole number"),
        ({"width": 0}, "width is 0, but must be a positive number"),
        ({"width": float("nan")}, "width is nan, but must be a positive number"),
        ({"width": float("inf")}, "width is inf, but must be a positive number"),
        ({"threshold": None}, "threshold is None, but must lie between 0 and 1"),
        ({"threshold": -0.1}, "threshold is -0.1, but must lie between 0 and 1"),
        ({"bottleneck_first_kernel": 2}, "bottleneck_first_kernel is 2, but must be 1, 3 or None"),
        (
            {"backbone": "vgg11_bn", "head": "none", "pooling": "max"},
            "backbone 'vgg11_bn' with head 'none' and pooling 'max' does not exist; for this "
            "backbone there is head none with pooling mean; head conv with pooling mean, max, ",
        ),
        (
            {"head": "capsule", "pooling": "attention"},
            "head capsule with pooling loss_attention, dynamic_routing",
        ),
        ({"backbone": "capsnet"}, "there is head none with pooling dynamic_routing"),
        ({"backbone": "deepcaps"}, "there is head none with pooling biased_routing"),
        ({"backbone": "hitnet"}, "there is head none with pooling hit_or_miss"),
    ],
)
def test_an_impossible_network_is_refused_with_a_sentence(options, sentence):
    with pytest.raises(UserError) as refused:
        models.build(**options)
    assert sentence in str(refused.value)


def test_images_that_are_too_small_are_refused():
    with pytest.raises(UserError, match="8x8 positions, but the head's windows have 9x9"):
        build("resnet18").patch_grid((8, 8, 3))


def test_deepcaps_refuses_images_with_an_odd_map():
    module = build("deepcaps", "none", "biased_routing")
    images = np.zeros((1, 32, 40, 3), np.float32)
    for call in (lambda: module.patch_grid((32, 40, 3)), lambda: shapes_of(module, images)):
        with pytest.raises(
            UserError, match="4x5 positions, but .* whose sides are multiples of 16"
        ):
            call()

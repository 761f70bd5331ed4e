"""TransMIL against NumPy in float64, one unpadded bag at a time, and its places, masks and gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

import lossattn_jax.mil as mil
from lossattn_jax.attention.poolings import BAG_POOLINGS, transformer
from lossattn_jax.mil import BagNetwork
from lossattn_jax.mil.network_classifier import NetworkClassifier
from lossattn_jax.train.bags.settings import Settings

CLASSES, WIDTH, FEATURES, LONGEST = 3, 8, 5, 12
HEADS, LANDMARKS, ITERATIONS, REACH = 2, 4, 3, 2
OPTIONS = (
    ("heads", HEADS),
    ("landmarks", LANDMARKS),
    ("iterations", ITERATIONS),
    ("residual_reach", REACH),
)
LENGTHS = np.array(
    [12, 9, 5, 2, 1, 0]
)  # a full square, one with two and one with four instances again
RANDOM = np.random.default_rng(0)
BAGS = RANDOM.standard_normal((len(LENGTHS), LONGEST, FEATURES)).astype(np.float32)
MASK = np.arange(LONGEST) < LENGTHS[:, None]
MODULE = BagNetwork(CLASSES, "transmil", hidden=(WIDTH,), options=OPTIONS)
APPLY = jax.jit(MODULE.apply)


@pytest.fixture(scope="module")
def variables():
    """Parameters, all of them drawn: norms of scale 1 and bias 0 would hide what they do."""
    shapes = jax.eval_shape(lambda: MODULE.init(jax.random.key(0), BAGS))
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda x: draw.normal(0.2, 0.5, x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def padded(variables):
    """Outputs of all bags, padded with NaN."""
    return APPLY(variables, np.where(MASK[..., None], BAGS, np.nan), MASK)


def linear(params, x):
    return x @ params["kernel"] + params.get("bias", 0)


def norm(params, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + 1e-5)
    return centred / deviation * params["scale"] + params["bias"]


def attend(params, x):
    """Nystrom attention of tokens `[T, D]`, with zeros in front, and the first token's weights."""
    tokens = len(x)
    long = np.concatenate([np.zeros((-tokens % LANDMARKS, WIDTH)), x])
    queries, keys, values = np.split(linear(params["projections"], long), 3, axis=1)
    kernels, heads, size = [], [], WIDTH // HEADS
    for head in range(HEADS):
        own = np.s_[:, head * size : (head + 1) * size]
        q, k = queries[own] / math.sqrt(size), keys[own]
        mean_q, mean_k = (x.reshape(LANDMARKS, -1, size).mean(axis=1) for x in (q, k))
        kernels.append(
            [softmax(a @ b.T, axis=1) for a, b in ((q, mean_k), (mean_q, mean_k), (mean_q, k))]
        )
    middle = [kernel[1] for kernel in kernels]
    scale = max(m.sum(axis=1).max() for m in middle) * max(m.sum(axis=0).max() for m in middle)
    identity, of_first = np.eye(LANDMARKS), []
    for head, (left, centre, right) in enumerate(kernels):
        inverse = centre.T / scale
        for _ in range(ITERATIONS):
            product = centre @ inverse
            inner = 15 * identity - product @ (7 * identity - product)
            inverse = inverse @ (13 * identity - product @ inner) / 4
        weights = left @ inverse @ right
        own = values[:, head * size : (head + 1) * size]
        wide = np.pad(own, ((REACH, REACH), (0, 0)))
        for place in range(len(long)):
            near = params["residual"][:, head] @ wide[place : place + 2 * REACH + 1]
            own = own if place else np.zeros_like(own)
            own[place] = weights[place] @ values[:, head * size : (head + 1) * size] + near
        heads.append(own)
        of_first.append(weights[-tokens, -tokens:])
    return linear(params["out"], np.concatenate(heads, axis=1))[-tokens:], np.mean(of_first, axis=0)


def encode_places(params, x):
    """The three convolutions and the tokens themselves, of a full square `[s * s, D]`."""
    side = math.isqrt(len(x))
    board = x.reshape(side, side, WIDTH)
    total = board.copy()
    for size in (7, 5, 3):
        wide = np.pad(board, ((size // 2, size // 2), (size // 2, size // 2), (0, 0)))
        for row in range(side):
            for column in range(side):
                near = wide[row : row + size, column : column + size]
                total[row, column] += (params[f"kernel{size}"] * near).sum(axis=(0, 1))
        total += params[f"bias{size}"]
    return total.reshape(-1, WIDTH)


def by_hand(variables, bag):
    """Logits, attention and instance logits of one unpadded bag, in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    features = np.maximum(linear(params["dense1"], bag.astype(np.float64)), 0)
    count, side = len(bag), math.ceil(math.sqrt(len(bag)))
    features = np.concatenate([features, features[: side**2 - count]])
    x = np.concatenate([params["class_token"][None], features])
    x = x + attend(params["attention1"], norm(params["norm1"], x))[0]
    x = np.concatenate([x[:1], encode_places(params["positions"], x[1:])])
    change, weights = attend(params["attention2"], norm(params["norm2"], x))
    each = linear(params["classifier"], norm(params["norm"], x + change))
    weights = np.maximum(weights[1:], 0)
    attention = weights[:count].copy()
    attention[: side**2 - count] += weights[count:]
    return each[0], attention / attention.sum(), each[1 : count + 1]


def test_padded_bags_are_as_each_by_hand(variables, padded):
    for row, length in enumerate(LENGTHS[:-1]):
        logits, attention, each = by_hand(variables, BAGS[row, :length])
        np.testing.assert_allclose(padded.logits[row], logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(padded.attention[row, :length], attention, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(padded.patch_logits[row, :length], each, rtol=1e-4, atol=1e-4)
    assert np.isfinite(padded.logits).all() and np.ptp(padded.logits[:, 0]) > 0.01
    np.testing.assert_array_equal(np.asarray(padded.attention)[~MASK], 0)
    np.testing.assert_array_equal(np.asarray(padded.patch_logits)[~MASK], 0)


def test_real_instances_may_stand_anywhere(variables, padded):
    places = np.sort(np.random.default_rng(2).permutation(LONGEST)[:5])
    bags, mask = BAGS.copy(), MASK.copy()
    bags[2] = np.nan
    bags[2, places], mask[2] = BAGS[2, :5], False
    mask[2, places] = True
    out = APPLY(variables, bags, mask)
    np.testing.assert_allclose(out.logits, padded.logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out.attention[2, places], padded.attention[2, :5], rtol=1e-5)
    np.testing.assert_allclose(
        out.patch_logits[2, places], padded.patch_logits[2, :5], rtol=1e-5, atol=1e-5
    )


def test_gradients_are_finite_and_do_not_see_padding(variables):
    def total(params, bags):
        out = MODULE.apply({"params": params}, bags, MASK)
        return jnp.sum(jnp.sin(out.logits)) + jnp.sum(out.attention * out.patch_logits[..., 0])

    bags = np.where(MASK[..., None], BAGS, np.nan)
    of_params, of_bags = jax.jit(jax.grad(total, argnums=(0, 1)))(variables["params"], bags)
    for leaf in jax.tree.leaves(of_params):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0
    np.testing.assert_array_equal(np.asarray(of_bags)[~MASK], 0)
    assert np.isfinite(of_bags).all() and (np.abs(of_bags).max(axis=-1) > 0)[MASK].all()


def test_places_in_the_square():
    real = np.array([[1, 1, 0, 1, 1, 1], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
    square = transformer.lay_square(jnp.asarray(real))
    np.testing.assert_array_equal(square.side, [3, 1, 0])
    np.testing.assert_array_equal(square.instances[0], [0, 1, 3, 4, 5, 0, 1, 3, 4])
    np.testing.assert_array_equal(square.instances[1], [1, *[0] * 8])
    np.testing.assert_array_equal(np.sum(square.full, axis=1), [9, 1, 0])
    np.testing.assert_array_equal(square.first[0], [0, 1, 0, 2, 3, 4])
    np.testing.assert_array_equal(square.second[0], [5, 6, 9, 7, 8, 9])
    counts = np.arange(41)
    sides = jax.jit(transformer.lay_square)(np.arange(40) < counts[:, None]).side
    np.testing.assert_array_equal(sides, [math.ceil(math.sqrt(count)) for count in counts])


def test_the_pseudo_inverse_comes_near_the_true_one():
    draw = np.random.default_rng(3)
    matrices = softmax(draw.normal(size=(1, 2, 4, 4)) + 4 * np.eye(4), axis=-1).astype(np.float32)
    inverse = transformer.invert_approximately(jnp.asarray(matrices), 8)
    np.testing.assert_allclose(inverse, np.linalg.inv(matrices), rtol=1e-3, atol=1e-4)
    # One scale for both heads: without iterations it shows.
    start = transformer.invert_approximately(jnp.asarray(matrices), 0)
    highest = matrices.sum(axis=-1).max() * matrices.sum(axis=-2).max()
    np.testing.assert_allclose(start, np.swapaxes(matrices, -1, -2) / highest, rtol=1e-6)


def test_options_are_as_published():
    entry = BAG_POOLINGS["transmil"]
    assert entry.complete_options({}) == {
        "heads": 8,
        "landmarks": 0,
        "iterations": 6,
        "residual_reach": 16,
    }
    assert entry.widths == (512,) and entry.several_labels
    assert entry.orders_patches and not entry.splits_patches
    shapes = jax.eval_shape(
        lambda: BagNetwork(2, "transmil").init(jax.random.key(0), jnp.zeros((1, 4, 1024)))
    )["params"]
    # Counted in the authors' code, for two classes.
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == 2_672_146


@pytest.mark.slow
def test_order_is_learned_and_options_are_stored(tmp_path):
    draw = np.random.default_rng(4)
    labels = np.arange(48) % 2
    bags = [draw.normal(size=(draw.integers(5, 9), 4)) for _ in labels]
    for bag, label in zip(bags, labels, strict=True):
        # The same two instances in all bags, next to each other or not.
        bag[1] = (4, 0, 0, 0)
        bag[2 if label else 4] = (0, 4, 0, 0)
    method = NetworkClassifier(
        method="transmil",
        hidden=(16,),
        dropout=0.0,
        options={"heads": 2, "residual_reach": 2},
        settings=Settings(epochs=40, learning_rate=3e-3, batch_size=8, max_waste=4.0),
    )
    method.fit(bags[:32], labels[:32])
    assert method.score(bags[32:], labels[32:]) >= 0.8
    method.save(tmp_path / "model")
    loaded = mil.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict_proba(bags), method.predict_proba(bags))

"""Bags, and the instances of large ones, on several devices: the same as on one.

Where a test needs no devices, `vmap` with an axis of their name stands for them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax import devices
from lossattn_jax.attention import collectives, pooling, poolings
from lossattn_jax.errors import UserError
from lossattn_jax.mil import BagNetwork
from lossattn_jax.train.bags import plans as plans_lib
from lossattn_jax.train.bags import spread as spread_lib
from lossattn_jax.train.bags import streamed_prediction, training
from lossattn_jax.train.bags.gradients import Gradients, StepBags
from lossattn_jax.train.bags.settings import Settings
from lossattn_jax.train.bags.streamed_prediction import StreamedPredictor
from tests.mil import test_streamed_training as streams
from tests.support import parameters

RANDOM = np.random.default_rng(3)
PARTS, LENGTH, REAL = 4, 12, 7  # so that a device has a single instance, and one has none
QUICK = ("loss_attention", "mi_net_ds")
METHODS = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name, entry in poolings.BAG_POOLINGS.items()
    if entry.splits_patches
]
AXIS = devices.AXIS


def instances(bags=1):
    x = RANDOM.normal(size=(bags, LENGTH, 3)).astype(np.float32)
    x[:, 4] = x[:, 1]  # equal maxima on two devices
    x[:, REAL:] = np.nan
    mask = np.broadcast_to(np.arange(LENGTH) < REAL, (bags, LENGTH))
    return x, mask


def split(array):
    """`[devices, B, N / devices, ...]` of `[B, N, ...]`."""
    return np.stack(np.split(array, PARTS, axis=1))


def joined(parts):
    return np.concatenate(list(parts), axis=1)


def close(one, other, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=atol), one, other)


@pytest.mark.parametrize("method", METHODS)
def test_split_instances_give_what_the_whole_gives(method):
    whole = BagNetwork(3, method, hidden=(5, 5, 5))
    parted = whole.clone(instance_axis=AXIS)
    x, mask = instances()
    params = parameters.draw(whole, x, mask)["params"]
    weights = RANDOM.normal(size=(1, LENGTH)).astype(np.float32)

    def score(network, params, x, mask, weights, divide):
        out = network.apply({"params": params}, x, mask)
        # Of the bag, which all devices compute, and of instances, of which each has its own.
        of_bag = jnp.sum(jnp.sin(out.logits)) / divide
        return of_bag + jnp.sum(out.attention * weights), out

    def value(network, divide):
        compute = functools.partial(score, network, divide=divide)
        return jax.value_and_grad(compute, has_aux=True)

    (total, out), gradient = jax.jit(value(whole, 1))(params, x, mask, weights)
    several = jax.vmap(value(parted, PARTS), in_axes=(None, 0, 0, 0), axis_name=AXIS)
    (totals, outs), gradients = jax.jit(several)(params, *map(split, (x, mask, weights)))
    close(np.sum(totals), total)
    for logits in outs.logits:
        close(logits, out.logits)
    close(joined(outs.attention), out.attention)
    close(joined(outs.patch_logits)[:, :REAL], out.patch_logits[:, :REAL])
    close(np.sum(outs.attention), 1)
    close(jax.tree.map(lambda leaf: leaf.sum(axis=0), gradients), gradient)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_a_bag_without_instances_weighs_nothing_on_any_device():
    scores, mask = np.ones((PARTS, 1, 3), np.float32), np.zeros((PARTS, 1, 3), bool)
    of_scores = functools.partial(pooling.softmax_attention, axis_name=AXIS)
    of_maxima = functools.partial(pooling.max_pool, axis_name=AXIS)
    weights = jax.vmap(of_scores, axis_name=AXIS)(scores, mask)
    highest = jax.vmap(of_maxima, axis_name=AXIS)(scores[..., None], mask)
    np.testing.assert_array_equal(weights, 0)
    np.testing.assert_array_equal(highest, 0)


def test_uniform_weights_count_the_instances_of_all_devices():
    logits, mask = np.zeros((1, LENGTH, 2), np.float32), np.arange(LENGTH)[None] < REAL
    of_all = functools.partial(pooling.uniform_attention, axis_name=AXIS)
    weights = joined(jax.vmap(of_all, axis_name=AXIS)(split(logits), split(mask)))
    np.testing.assert_allclose(weights, np.where(mask, 1 / REAL, 0), rtol=1e-6)


def test_the_first_highest_has_the_gradient_and_nan_is_seen():
    highest = functools.partial(collectives.of_first_highest, axis_name=AXIS)
    parts = np.array([[1, np.nan, -np.inf], [3, 5, 2], [3, 4, 2]], np.float32)
    values = jax.vmap(highest, axis_name=AXIS)(parts)
    np.testing.assert_array_equal(values, [[3, np.nan, 2]] * 3)

    def total(parts):
        return jnp.sum(jax.vmap(highest, axis_name=AXIS)(parts)[0, jnp.array([0, 2])])

    np.testing.assert_array_equal(jax.grad(total)(parts), [[0, 0, 0], [1, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize(
    "spread", [spread_lib.BAGS, spread_lib.INSTANCES], ids=["bags", "instances"]
)
def test_gradients_are_those_of_one_device(spread):
    """Of five bags, one of which is not trained on; a device that shares bags has none of them."""
    network = BagNetwork(2, hidden=(5, 5, 5), dropout=0.4)
    settings = Settings(patch_weight=0.7, patch_reduction="mean")
    bags = 5 if spread is spread_lib.INSTANCES else 8
    x, mask = instances(bags)
    noise = RANDOM.integers(0, 256, (bags, LENGTH, 15)).astype(np.uint8)
    labels = np.arange(bags, dtype=np.int32) % 2
    visible = np.isin(np.arange(bags), (0, 1, 2, 4))
    of_bags = StepBags(x, mask, labels, visible, noise, np.zeros(0, np.float32))
    plan = training.Plan(0, visible, ~visible, class_weights=np.array([1.0, 3.0]))
    moments = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)
    model = jax.tree.map(
        lambda leaf: jnp.asarray(leaf[0]), plans_lib.models_of(settings, [plan], *moments)
    )
    params = parameters.draw(network, x, mask)["params"]

    def compute(spread, of_bags):
        own = Gradients(network, settings, False, spread)
        return own(model, params, of_bags, jnp.int32(1), guard_loss=True)

    one = jax.jit(functools.partial(compute, spread_lib.MODELS))(of_bags)

    def part(name, array):
        if spread is spread_lib.BAGS:
            return array.reshape(PARTS, -1, *array.shape[1:])
        if name in ("x", "mask", "noise"):
            return split(array)
        return np.broadcast_to(array, (PARTS, *array.shape))

    named = {field.name: getattr(of_bags, field.name) for field in dataclasses.fields(StepBags)}
    target = named.pop("target")
    parts = StepBags(
        **{name: part(name, array) for name, array in named.items()},
        target=np.broadcast_to(target, (PARTS, 0)),
    )
    several = jax.jit(jax.vmap(functools.partial(compute, spread), axis_name=AXIS))(parts)
    for device in range(PARTS):
        close(several.loss[device], one.loss)
        close(jax.tree.map(lambda leaf, d=device: leaf[d], several.gradients), one.gradients)
    assert np.isfinite(one.loss) and np.abs(one.gradients["dense1"]["kernel"]).max() > 1e-3


def test_what_is_split_follows_from_models_and_bags(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: PARTS)
    monkeypatch.setattr(jax, "device_count", lambda: PARTS)
    assert spread_lib.of_training(4, 8) == spread_lib.MODELS
    assert spread_lib.of_training(3, 8) == spread_lib.BAGS
    assert spread_lib.of_training(3, 1) == spread_lib.MODELS
    assert spread_lib.of_training(3, 8, splits_bags=False) == spread_lib.MODELS
    assert spread_lib.of_prediction(3) == spread_lib.BAGS
    order = np.arange(6).reshape(1, 1, 6)
    assert spread_lib.BAGS.pad_order(order).tolist() == [[[0, 1, 2, 3, 4, 5, -1, -1]]]
    network = BagNetwork(2)
    assert not spread_lib.is_split(network, 7, 4, 7)
    assert spread_lib.is_split(network, 8, 4, 7)
    assert not spread_lib.is_split(network, 10**6, 4, None)  # CPUs have one memory
    monkeypatch.setattr(devices, "memory_bytes", lambda: 160)
    assert not spread_lib.is_split(network, 10, 4, None)
    assert spread_lib.is_split(network, 11, 4, None)


def test_a_pooling_of_whole_bags_is_not_split(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: PARTS)
    network = BagNetwork(2, f"{__name__}:pool_whole_bags")
    assert not spread_lib.is_split(network, 10**9, 10**9, None)
    with pytest.raises(UserError, match="does not pool instances that are split over devices"):
        spread_lib.is_split(network, 8, 4, 7)


def pool_whole_bags(patches):
    """A user's own, of which nothing is known."""
    return patches.weigh(pooling.uniform_attention(patches.patch_logits, patches.mask))


@pytest.mark.parametrize("number", [0, -1, 2.5, True, "many"])
def test_impossible_instances_per_device_are_refused(number):
    with pytest.raises(UserError, match="instances_per_device"):
        streams.NetworkClassifier(instances_per_device=number).fit(streams.ARRAYS, streams.LABELS)


# Few lengths are few programs to compile.
SETTINGS = {"epochs": 2, "patch_reduction": "mean", "max_waste": 6.0}


def trained(result, name):
    """What a training has made, as arrays by name."""
    leaves = jax.tree.leaves((result.last, result.best))
    named = {f"{name}/{number}": leaf for number, leaf in enumerate(leaves)}
    return {**named, f"{name}/logits": result.logits}


def of_resident(method):
    """Three bags in a step, by two models: on four devices each has one bag, or none."""
    held = np.isin(np.arange(8), (6, 7))
    plans = [streams.plan(seed, selection=held) for seed in (1, 2)]
    network = streams.NETWORK.clone(method=method, dropout=0.3)
    result = streams.resident(network, plans, batch_size=3, **SETTINGS)
    dataset = streams.BagDataset.from_bags(streams.ARRAYS, streams.LABELS)
    predictions = training.predict(
        dataset,
        network,
        Settings(),
        result.last,
        result.mean,
        result.scale,
        predict_mask=np.array([held, ~held]),
    )
    named = dataclasses.asdict(predictions)
    return {**trained(result, "resident"), **{f"predicted/{key}": named[key] for key in named}}


def of_streamed(method):
    """Bags over devices; then instances, by fewer models and by more than there are devices."""
    network = streams.NETWORK.clone(method=method, dropout=0.3)
    several = [streams.plan(seed) for seed in range(5)]
    most = {"instances_per_device": 3}
    of_bags = streams.streamed(network=network, plans=several[:2], batch_size=3, **SETTINGS)
    of_instances = streams.streamed(
        network=network, plans=several[:1], options=most, batch_size=2, **SETTINGS
    )
    of_many = streams.streamed(network=network, plans=several, options=most, **SETTINGS)
    return {
        **trained(of_bags, "bags"),
        **trained(of_instances, "instances"),
        **trained(of_many, "many models"),
    }


def of_pieces(method):
    """Predictions for bags in pieces, pooled on one device, and on all where they are longer than 5."""
    network = streams.NETWORK.clone(method=method)
    keys = jax.random.split(jax.random.key(0), 2)
    init = jax.vmap(lambda key: network.init(key, streams.ARRAYS[0][None])["params"])
    mean, scale = np.ones((2, 3), np.float32), np.full((2, 3), 0.5, np.float32)
    named = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed_prediction, "PIECE", 4)
        patch.setattr(streamed_prediction, "_LENGTHS", (2, 4))
        for most in (None, 5):
            predictor = StreamedPredictor(
                network, init(keys), mean, scale, instances_per_device=most
            )
            rows = []
            for bag in predictor.predict(streams.BAGS, range(8), 1 << 30, lambda x: x):
                rows.append(bag.row)
                for field in ("logits", "attention", "instance_logits"):
                    named[f"{most}/{bag.row}/{field}"] = getattr(bag, field)
            assert rows == list(range(8))
    return named


CASES = [
    (of_resident, "loss_attention"),
    (of_resident, "mi_net_ds"),
    (of_streamed, "loss_attention"),
    (of_streamed, "mi_net_ds"),
    (of_pieces, "gated_attention"),
    (of_pieces, "mi_net_rc"),
]
SCRIPT = """
import sys
import jax
import numpy as np
from tests.mil import test_several_devices as t
assert jax.device_count() == 4
for number, (compute, method) in enumerate(t.CASES):
    np.savez(f"{sys.argv[1]}/{number}.npz", **compute(method))
"""


@pytest.fixture(scope="module")
def of_four_devices(run_python, tmp_path_factory):
    """A folder with what four devices make of each of `CASES`."""
    folder = tmp_path_factory.mktemp("four_devices")
    finished = run_python("-c", SCRIPT, folder, devices=4)
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CASES)))
def test_four_devices_give_what_one_gives(number, of_four_devices):
    compute, method = CASES[number]
    one = compute(method)
    with np.load(of_four_devices / f"{number}.npz") as four:
        assert sorted(four.files) == sorted(one)
        for name, array in one.items():
            np.testing.assert_allclose(four[name], array, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """A folder of feature files, and a table of their labels."""
    folder = tmp_path_factory.mktemp("slides")
    random = np.random.default_rng(5)
    lines = ["bag,label"]
    for number in range(9):
        label = number % 2
        features = random.normal(label, 1, (5 + 3 * number, 4)).astype(np.float32)
        np.save(folder / f"s{number}.npy", features)
        lines.append(f"s{number},{label}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def table(path):
    lines = [line.split(",") for line in path.read_text().splitlines()]
    names = [name for name in lines[0] if name.startswith("p_")]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    return np.array([[float(row[name]) for name in names] for row in rows])


@pytest.mark.slow
@pytest.mark.parametrize("split", [(), ("--instances_per_device=10",)], ids=["bags", "instances"])
def test_commands_give_the_same_on_four_devices(split, slides, run_python, tmp_path):
    labels = f"--labels={slides / 'labels.csv'}"
    settings = ("epochs=2", "batch_size=3", "max_waste=6")
    config = tuple(f"--config.train.{setting}" for setting in settings)
    tables = {}
    for count in (1, 4):
        folder = tmp_path / str(count)
        commands = [
            ("train", f"--bags={slides}", labels, f"--workdir={folder}/model", *config),
            ("predict", f"--model={folder}/model", f"--bags={slides}", f"--out={folder}/out"),
            ("cv", f"--dataset={slides}", labels, f"--workdir={folder}/cv", *config)
            + ("--folds=2", "--repeats=1", "--bootstrap=0"),
        ]
        for name, *arguments in commands:
            finished = run_python(
                "-m", "lossattn_jax", "mil", name, *arguments, *split, devices=count
            )
            assert finished.returncode == 0, finished.stderr
        [cv] = (folder / "cv").rglob("predictions.csv")
        tables[count] = [table(path) for path in (folder / "out/predictions.csv", cv)]
    for one, four in zip(*tables.values(), strict=True):
        assert one.shape == (9, 2)
        np.testing.assert_allclose(four, one, rtol=1e-6, atol=1e-6)

"""Updates of networks for bags that are not finite: skipped, told of, and in the end a dump to replay."""

import dataclasses
import functools
import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.order import bucket_batches
from lossattn_jax.errors import UserError
from lossattn_jax.mil import BagNetwork
from lossattn_jax.mil.network_classifier import NetworkClassifier
from lossattn_jax.train import dumps
from lossattn_jax.train.bags import training
from lossattn_jax.train.bags.gradients import Gradients
from lossattn_jax.train.bags.nonfinite import BagSkips, Update
from lossattn_jax.train.bags.objective import bag_loss
from lossattn_jax.train.bags.settings import Settings
from lossattn_jax.train.replay import replay

RANDOM = np.random.default_rng(5)
BAGS = [RANDOM.normal(0, 1, (length, 3)).astype(np.float32) for length in (2, 3, 1, 3, 2, 3)]
LABELS = [0, 1, 0, 1, 1, 0]
NETWORK = BagNetwork(2, hidden=(4, 4, 4), dropout=0.0)
SETTINGS = Settings(
    epochs=2,
    learning_rate=0.01,
    patch_weight=0.5,
    patch_ramp_epochs=1,  # 0 in the first epoch
    max_waste=10.0,
    max_skipped=3,
)
BAD = 3  # the bag whose features are too large


def bags_with(largest, bad=(BAD,)):
    bags = [np.array(bag) for bag in BAGS]
    for row in bad:
        bags[row][:] = largest * np.array([1, -1, 1])[: len(bags[row]), None]
    return BagDataset.from_bags(bags, LABELS, ids=[f"b{row}" for row in range(6)], name="own")


def plan(seed, *left_out):
    used = ~np.isin(np.arange(6), left_out)
    return training.Plan(seed, used, ~used, name=f"fold{seed}")


def train(dataset, plans, network=NETWORK, dump_dir=None, **changes):
    return training.train(
        dataset,
        network,
        dataclasses.replace(SETTINGS, **changes),
        plans,
        standardise=False,
        every_epoch=False,
        label="own, Loss-Attention",
        dump_dir=dump_dir,
    )


def order_of(epoch):
    """The bags as they are visited one by one."""
    return bucket_batches(np.zeros(6, int), 1, 0, [epoch])[0, :, 0].tolist()


def model(params, number=0):
    return jax.tree.map(lambda leaf: leaf[number], params)


def equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def close(first, second, atol=1e-5):
    check = functools.partial(np.testing.assert_allclose, rtol=0, atol=atol)
    jax.tree.map(check, first, second)


@functools.cache
def plain(seed, settings, left_out):
    """One bag after the other with optax, without some of them."""
    params = jax.jit(NETWORK.init)(jax.random.key(seed), jnp.zeros((1, 2, 3)))["params"]
    decay = optax.add_decayed_weights(settings.weight_decay)
    optimizer = optax.chain(decay, optax.adam(settings.learning_rate))
    moments = optimizer.init(params)

    @jax.jit
    def update(params, moments, bag, mask, label, patch_weight):
        def loss(params):
            out = NETWORK.apply({"params": params}, bag[None], mask[None])
            return bag_loss(out, label[None], mask[None], patch_weight, "sum")[0]

        gradients = jax.grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies counts by floats
            updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments

    for epoch in range(settings.epochs):
        for row in order_of(epoch):
            if row not in left_out:
                bag = np.pad(BAGS[row], [(0, 3 - len(BAGS[row])), (0, 0)])
                mask = np.arange(3) < len(BAGS[row])
                label, patch_weight = jnp.int32(LABELS[row]), settings.patch_weight * (epoch > 0)
                params, moments = update(params, moments, bag, mask, label, patch_weight)
    return params


@pytest.mark.slow
def test_a_bag_that_is_not_finite_is_left_out_and_told_of(caplog):
    result = train(bags_with(3e38), [plan(1), plan(2, BAD), plan(8, 0)])
    np.testing.assert_array_equal(result.num_skipped, [2, 0, 2])
    close(model(result.last), plain(1, SETTINGS, (BAD,)))
    close(model(result.last, 2), plain(8, SETTINGS, (BAD, 0)))
    # The others are to the bit what they are where nothing diverges.
    equal(model(result.last, 1), model(train(bags_with(1.0), [plan(2, BAD)] * 3).last, 1))
    told = [record.message for record in caplog.records if "skipped" in record.message]
    assert told == [
        f"warning: own, Loss-Attention: 2 updates of 2 of 3 models were skipped in epoch {epoch} because "
        "loss or gradient was not finite (first of model 0 (fold1) after "
        f"{count} updates in epoch {epoch} on the bag b3)"
        for epoch, count in ((1, order_of(0).index(BAD)), (2, order_of(1).index(BAD)))
    ]


@pytest.mark.slow
def test_the_others_of_a_group_are_not_disturbed():
    wild, *others = plan(1), plan(2, BAD), plan(3, BAD, 0)
    changes = {"models_at_once": 3, "batch_size": 2}
    result = train(bags_with(3e38), [wild, *others], **changes)
    without = train(bags_with(3e38), [others[0], *others], **changes)
    np.testing.assert_array_equal(result.num_skipped, [2, 0, 0])
    np.testing.assert_array_equal(without.num_skipped, 0)
    # Nor do they notice the bag beside theirs in a batch.
    fine = train(bags_with(1.0), [wild, *others], **changes)
    for number in (1, 2):
        equal(model(result.last, number), model(without.last, number))
        close(model(result.last, number), model(fine.last, number), atol=1e-6)
    assert np.isfinite(model(result.last)["dense1"]["kernel"]).all()


def with_norm(monkeypatch, scale):
    """Makes the gradient of the bag whose first feature is 7 finite, but its norm not."""
    call = Gradients.__call__

    def steep(self, model, params, bags, epoch, *, guard_loss):
        of_bags = call(self, model, params, bags, epoch, guard_loss=guard_loss)
        factor = jnp.where(bags.x[0, 0, 0] == 7, scale, 0.0)
        gradients = jax.tree.map(lambda leaf: leaf + factor, of_bags.gradients)
        return of_bags._replace(gradients=gradients)

    monkeypatch.setattr(Gradients, "__call__", steep)
    training.programs.forget()


@pytest.mark.slow
def test_a_gradient_whose_norm_alone_overflows_is_not_used(monkeypatch):
    with_norm(monkeypatch, 1e19)  # whose square is in float32, but not the sum of four of them
    result = train(bags_with(7.0), [plan(1)])
    monkeypatch.undo()
    training.programs.forget()
    assert result.num_skipped == [2]
    close(model(result.last), plain(1, SETTINGS, (BAD,)))


@pytest.mark.slow
def test_the_average_of_a_skipped_bags_attention_stays():
    """With two bags, one of which is never used, the other's attention is pulled as if it were alone."""
    changes = {"consistency_weight": 30.0, "consistency_ramp_epochs": 0.0, "epochs": 4}
    alone = train(bags_with(1.0), [plan(1, BAD)], **changes)
    result = train(bags_with(3e38), [plan(1)], **changes)
    assert result.num_skipped == [4]
    close(model(result.last), model(alone.last))


@pytest.fixture(scope="module")
def stuck(tmp_path_factory):
    """The sentence and the dump of a model whose gradient is too large from the second epoch on."""
    folder = tmp_path_factory.mktemp("dumps")
    wild = dataclasses.replace(plan(2), overrides={"patch_weight": 3e38})
    with pytest.raises(UserError) as error:
        train(bags_with(1.0, ()), [plan(1), wild, plan(8)], dump_dir=folder)
    return str(error.value), folder / "model_1_epoch_2_update_0"


@pytest.mark.slow
def test_what_is_stuck_ends_with_a_dump_that_replays(stuck):
    sentence, folder = stuck
    told = f"of model 1 (fold2) after 0 updates in epoch 2 on the bag b{order_of(1)[0]}"
    assert sentence == (
        "own, Loss-Attention: the loss or its gradient was not finite in 3 updates in a row, the first "
        f"{told}: python -m lossattn_jax.replay --dump={folder} says what was not finite, and smaller "
        "features or a lower learning_rate than 0.01 may help"
    )
    sentences = replay(folder)
    assert sentences[0] == f"own, Loss-Attention: the update {told} was made again."
    assert sentences[2] == "Before it, parameters and the optimiser's state were finite."
    assert re.search(r"are not finite|is not in float32", sentences[3] + sentences[4])


def test_a_dump_of_other_arrays_or_without_digests_is_refused(stuck, tmp_path):
    dump = pathlib.Path(shutil.copytree(stuck[1], tmp_path / "dump"))
    update, path = dump / "dump.json", dump / "arrays.npz"
    text = update.read_text()
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **{**arrays, "batch/x": arrays["batch/x"] + 1})
    with pytest.raises(UserError, match="arrays are not those that were written with dump.json"):
        replay(dump)
    np.savez(path, **arrays)
    assert replay(dump) == replay(stuck[1])
    for name, value, sentence in (
        ("epoch", 5, "dump.json is not as it was written"),
        (None, None, "it does not say of what; the same training writes it anew"),
    ):
        edited = json.loads(text)
        if name is None:
            del edited["made_from"], edited["digest"]
        else:
            edited[name] = value
        update.write_text(json.dumps(edited))
        with pytest.raises(UserError, match=sentence):
            replay(dump)


@pytest.mark.slow
def test_what_is_dumped_is_the_model_before_and_its_bag(stuck):
    stored = dumps.read(stuck[1])
    assert (stored.content["epoch"], stored.content["settings"]["patch_weight"]) == (1, 3e38)
    state = stored.tree("state")
    close(state["params"], plain(2, dataclasses.replace(SETTINGS, epochs=1), ()))
    assert stored.arrays["state/opt_state/1/0/count"] == 6
    first = order_of(1)[0]
    np.testing.assert_array_equal(stored.arrays["batch/x"][0, : len(BAGS[first])], BAGS[first])


@pytest.mark.slow
def test_the_dumped_update_is_that_of_the_training(tmp_path):
    """With dropout, batches and consistency."""
    network = NETWORK.clone(dropout=0.5)
    changes = {"consistency_weight": 3.0, "consistency_ramp_epochs": 0.0, "batch_size": 2}
    with pytest.raises(UserError, match=r"on the bags b\d, b\d: "):
        train(bags_with(3e38), [plan(1)], network, max_skipped=1, dump_dir=tmp_path, **changes)
    (folder,) = tmp_path.iterdir()
    told = "\n".join(replay(folder))
    assert re.search(r"The losses of 1 of 2 bags are not finite: b3|is not in float32", told)
    stored = dumps.read(folder)
    assert stored.arrays["batch/noise"].shape == (2, 3, 12)
    assert stored.arrays["batch/target"].shape == (2, 3)


@pytest.mark.slow
def test_class_weights_are_in_the_dump_and_in_its_replay(tmp_path):
    weights = np.array([1.0, 1e30], np.float32)
    weighted = dataclasses.replace(plan(1), class_weights=weights)
    with pytest.raises(UserError, match="not finite in 1 updates in a row"):
        train(bags_with(1e10), [weighted], max_skipped=1, dump_dir=tmp_path)
    (folder,) = tmp_path.iterdir()
    np.testing.assert_array_equal(dumps.read(folder).arrays["batch/class_weights"], weights)
    assert re.search("bags are not finite: b3|is not in float32", "\n".join(replay(folder)))
    with pytest.raises(UserError, match="either all models have weights of classes or none has"):
        train(bags_with(1.0), [plan(1), weighted])


@pytest.mark.slow
def test_the_classifier_ends_with_a_sentence():
    bags = [np.full((2, 2), 1e30 * (-1) ** row) for row in range(4)]
    settings = Settings(epochs=1, learning_rate=1e38, max_skipped=2)
    method = NetworkClassifier(hidden=(4, 4, 4), settings=settings, standardise=False)
    with pytest.raises(
        UserError, match=r"not finite in 2 updates in a row, the first of model 0 after"
    ):
        method.fit(bags, [0, 1, 0, 1])


@pytest.mark.slow
def test_an_unwritable_dump_does_not_hide_why_a_training_ends(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="not finite in 1 updates in a row") as error:
        train(bags_with(3e38), [plan(1)], max_skipped=1, dump_dir=tmp_path / "file")
    assert "to replay it nothing was kept (the dump " in str(error.value)
    assert "cannot be written: Not a directory), and smaller features" in str(error.value)


def test_rows_of_skipped_updates_go_on_over_epochs():
    dataset = bags_with(1.0)
    used = np.array([True, True, False, False, False, False])
    plans = [training.Plan(seed, used, ~used) for seed in (1, 2)]
    skips = BagSkips(dataset.ids, plans, 3, "")
    order = np.array([[[0], [2], [1]], [[1], [0], [2]]])
    for _ in range(2):
        skipped = np.array([[[0, 0, 1], [1, 1, 0]], [[1, 0, 0], [0, 0, 0]]], bool)
        skips.add_epochs(skipped, order, np.array([4, 5]))
    np.testing.assert_array_equal(skips.total, [6, 2])
    np.testing.assert_array_equal(skips.in_a_row, [3, 0])
    first = Update(model=0, name="", epoch=4, before=1, rows=(1,), ids=("b1",))
    assert skips.first == [first, None]
    assert skips.stuck_model() == 0 and BagSkips(dataset.ids, plans, 4, "").stuck_model() is None
    skips.add_epochs(np.array([[[1, 0, 1]], [[0, 0, 0]]], bool), order[:1], np.array([6]))
    np.testing.assert_array_equal(skips.in_a_row, [5, 0])
    assert skips.first == [first, None]
    skips.clear_rows()
    assert skips.in_a_row[0] == 0 and skips.first[0] is None and skips.stuck_model() is None

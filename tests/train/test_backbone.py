"""The backbone's part in a training: its own rate, or frozen."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lossattn_jax.checkpoint import runs, warm_start
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate.evaluation import evaluate_run
from lossattn_jax.train.images import backbone, loop
from tests.support import shrunk

PARAMS = {
    "backbone": {"kernel": jnp.array([2.0, -0.0])},
    "head": {"kernel": jnp.array([4.0])},
}
GRADIENTS = {
    "backbone": {"kernel": jnp.array([1.0, 3.0])},
    "head": {"kernel": jnp.array([1.0])},
}


def updates_of(optimizer):
    state = optimizer.init(PARAMS)
    updates, state = optimizer.update(GRADIENTS, state, PARAMS)
    return updates, state


def test_the_backbones_rate_is_a_factor_of_its_updates():
    updates, _ = updates_of(backbone.scale_backbone(optax.sgd(0.5), 0.25))
    np.testing.assert_array_equal(updates["backbone"]["kernel"], [-0.125, -0.375])
    np.testing.assert_array_equal(updates["head"]["kernel"], [-0.5])


def test_a_frozen_backbone_stays_to_the_bit_and_has_no_state():
    decaying = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.5, momentum=0.9))
    updates, state = updates_of(backbone.leave_backbone(decaying))
    after = optax.apply_updates(PARAMS, updates)
    before = np.asarray(PARAMS["backbone"]["kernel"])
    assert np.asarray(after["backbone"]["kernel"]).tobytes() == before.tobytes()
    np.testing.assert_array_equal(after["head"]["kernel"], [4 - 0.5 * (1 + 0.5 * 4)])
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(1,)]


def test_parameters_are_taken_over_where_they_fit():
    own = {"params": {"backbone": {"a": np.zeros(2)}, "classifier": {"bias": np.zeros(3)}}}
    other = {
        "params": {
            "backbone": {"a": np.ones(2)},
            "classifier": {"bias": np.ones(5)},
            "gate": {"bias": np.ones(1)},
        }
    }
    start = warm_start.take_over(own, other)
    np.testing.assert_array_equal(start.variables["params"]["backbone"]["a"], 1)
    np.testing.assert_array_equal(start.variables["params"]["classifier"]["bias"], [0, 0, 0])
    assert start.afresh == ("params/classifier/bias [5] there and [3] here",)
    assert start.unused == ("params/gate/bias",)
    with pytest.raises(UserError, match=r"\[5\] there and \[3\] here, params/gate/bias only there"):
        warm_start.refuse_misfits(start)


def test_other_classes_of_the_same_number_begin_afresh():
    own = {"params": {"backbone": {"a": np.zeros(2)}, "classifier": {"bias": np.zeros(3)}}}
    other = {"params": {"backbone": {"a": np.ones(2)}, "classifier": {"bias": np.ones(3)}}}
    start = warm_start.take_over(own, other, same_classes=False)
    np.testing.assert_array_equal(start.variables["params"]["backbone"]["a"], 1)
    np.testing.assert_array_equal(start.variables["params"]["classifier"]["bias"], 0)
    assert start.afresh == ("params/classifier/bias of other classes",)


def test_another_backbone_is_refused():
    own = {"params": {"backbone": {"a": np.zeros(2)}}}
    with pytest.raises(UserError, match=r"another backbone: params/backbone/a \[1\] there and"):
        warm_start.take_over(own, {"params": {"backbone": {"a": np.zeros(1)}}})


@pytest.fixture(scope="module")
def frozen(scenes_dir, tmp_path_factory):
    """A run behind a frozen backbone, and its last test."""
    workdir = tmp_path_factory.mktemp("frozen")
    measured = loop.train(shrunk.config(scenes_dir, train__freeze="backbone"), workdir)
    return workdir, measured


def test_a_frozen_run_moves_all_but_the_backbone(frozen, scenes_dir, tmp_path):
    run = runs.load(frozen[0])
    job = loop.open_job(shrunk.config(scenes_dir, train__freeze="backbone"), tmp_path)
    start = loop.first_state(job, _NoCheckpoints())[0].variables
    for kind in ("params", "batch_stats"):
        jax.tree.map(
            np.testing.assert_array_equal,
            run.variables[kind]["backbone"],
            start[kind]["backbone"],
        )
    moved = jax.tree.map(
        lambda before, after: not np.array_equal(before, after),
        start["params"]["head"],
        run.variables["params"]["head"],
    )
    assert all(jax.tree.leaves(moved))


class _NoCheckpoints:
    """The checkpoints of a run that has none."""

    def steps_with_folder(self):
        return []


def test_the_whole_network_does_what_was_trained_on_maps(frozen):
    workdir, measured = frozen
    evaluated = evaluate_run(str(workdir))
    assert evaluated["accuracy"] == measured["accuracy"]
    names = measured.keys() - {"seconds"}
    assert any("pointing" in name for name in names)  # boxes come along
    for name in names:
        np.testing.assert_allclose(evaluated[name], measured[name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_frozen_run_resumes_with_the_maps_it_has(frozen, scenes_dir, tmp_path, caplog):
    options = {
        "train__freeze": "backbone",
        "optimizer__schedule": "constant",
        "optimizer__warmup_epochs": 0.0,
    }
    loop.train(shrunk.config(scenes_dir, **options), tmp_path / "whole")
    part = tmp_path / "part"
    loop.train(shrunk.config(scenes_dir, **options, train__epochs=1), part)
    with caplog.at_level(logging.INFO, "lossattn_jax"):
        loop.train(shrunk.config(scenes_dir, **options), part)
    assert "computing the maps" not in caplog.text
    whole, resumed = (runs.load(folder).variables for folder in (tmp_path / "whole", part))
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_damaged_maps_are_computed_again(frozen, scenes_dir, caplog):
    workdir, measured = frozen
    path = workdir / "maps" / "test.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"\0\0\0\1")
    with caplog.at_level(logging.INFO, "lossattn_jax"):
        again = loop.train(shrunk.config(scenes_dir, train__freeze="backbone"), workdir)
    assert "are not as written; computed again" in caplog.text
    assert path.read_bytes() == content
    assert again["accuracy"] == measured["accuracy"]


@pytest.mark.slow
def test_streamed_images_give_the_same_maps(frozen, scenes_dir, tmp_path):
    config = shrunk.config(scenes_dir, train__freeze="backbone", data__mode="stream")
    loop.train(config, tmp_path)
    for name in ("train", "test"):
        for end in (".npy", ".npz"):
            path = f"maps/{name}{end}"
            assert (tmp_path / path).read_bytes() == (frozen[0] / path).read_bytes()


def test_a_frozen_backbone_has_no_rate(scenes_dir, tmp_path):
    config = shrunk.config(scenes_dir, train__freeze="backbone", train__backbone_rate=0.1)
    with pytest.raises(UserError, match="backbone_rate is 0.1, but must be 1 with config.train"):
        loop.train(config, tmp_path)


@pytest.mark.slow
def test_another_pooling_begins_afresh(frozen, scenes_dir, tmp_path, caplog):
    options = {"init_from": str(frozen[0]), "model__pooling": "attention", "train__epochs": 1}
    options["optimizer__warmup_epochs"] = 0.0
    loop.train(shrunk.config(scenes_dir, **options), tmp_path / "new")
    assert "begins afresh: params/attention" in caplog.text
    with pytest.raises(UserError, match="init_strict=false lets those behind the backbone"):
        loop.train(shrunk.config(scenes_dir, **options, init_strict=True), tmp_path / "strict")


def test_maps_are_recorded_with_what_they_were_made_of(frozen):
    record = json.loads((frozen[0] / "maps" / "train.json").read_text())
    assert set(record["made_from"]) >= {"backbone", "network", "images", "dtype", "mean", "std"}

"""The systems of the papers' tables train, resume, evaluate and explain through the same functions."""

import functools
import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lossattn_jax.checkpoint import conversion, runs, weight_files
from lossattn_jax.checkpoint.store import Checkpoints
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate.average_precision import mean_average_precision
from lossattn_jax.evaluate.evaluation import evaluate_run
from lossattn_jax.explain import run_report
from lossattn_jax.models import table
from lossattn_jax.train.images import loop
from tests.support import shrunk

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def lines(workdir, kind):
    text = (workdir / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == kind]


def stored_training(workdir):
    """The newest checkpoint's parameters, optimiser state and ensemble."""
    with Checkpoints(workdir, read_only=True) as checkpoints:
        folder = workdir / "checkpoints" / str(checkpoints.latest_step())
    with ocp.StandardCheckpointer() as reader:
        return {name: reader.restore(folder / name) for name in ("variables", "training")}


@pytest.mark.parametrize(
    ("head", "pooling"),
    [
        pytest.param("capsule", "loss_attention", marks=pytest.mark.slow),
        pytest.param("capsule", "dynamic_routing", marks=pytest.mark.slow),
        pytest.param("conv", "gated_attention", marks=pytest.mark.slow),
        pytest.param("conv", "bag_loss_attention", marks=pytest.mark.slow),
        pytest.param("none", "none", marks=pytest.mark.slow),
    ],
)
def test_a_system_learns_evaluates_and_explains(scenes_dir, tmp_path, head, pooling):
    config = shrunk.config(scenes_dir, model__head=head, model__pooling=pooling, train__epochs=2)
    measured = loop.train(config, tmp_path)
    losses = [line["image_loss"] for line in lines(tmp_path, "train")]
    assert losses[-1] < losses[0]
    again = evaluate_run(str(tmp_path))
    assert again["accuracy"] == measured["accuracy"]
    assert again["loss"] == pytest.approx(measured["loss"], rel=1e-5)
    assert ("patch_loss" in again) == (pooling != "dynamic_routing")
    assert 0 <= again["calibration_error"] <= 1
    assert run_report.explain_run(str(tmp_path), num=2).stat().st_size > 10_000


AAAI = {
    "model__width": 0.125,
    "train__epochs": 2,
    "log__pictures": 0,
    "optimizer__warmup_epochs": 0.0,
    "optimizer__ramp_up_epochs": 1,
    # A fall at the end would make a shorter run another run and not the first part of this one.
    "optimizer__ramp_down_epochs": 0,
    "loss__consistency_ramp_epochs": 1,
    "model__backbone": "small",
    "data__name": "digit_scenes",
    "data__num_labels": 100,
}


@pytest.mark.slow
def test_attention_kept_consistent_resumes_with_its_ensemble(scenes_dir, tmp_path):
    def train(folder, epochs):
        options = {**AAAI, "train__epochs": epochs}
        config = shrunk.config(scenes_dir, CONFIGS / "aaai_resnet18.py", **options)
        return loop.train(config, folder)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, 2)
    train(parts, 1)
    train(parts, 2)
    stored = stored_training(whole)
    jax.tree.map(np.testing.assert_array_equal, stored, stored_training(parts))
    ensemble = stored["training"]["ensemble"]
    # 3 steps of 32 of the 100 labelled images an epoch, each of 64 positions.
    assert ensemble["current"].shape == (100, 64)
    np.testing.assert_allclose(np.sort(ensemble["current"].sum(axis=1))[-90:], 1, rtol=1e-5)
    assert (ensemble["average"].sum(axis=1) > 0.39).sum() == 96
    late = lines(whole, "train")[-1]
    assert late["epoch"] > 1 and 0 < late["consistency_loss"] < 1e-3
    # From epoch 1 on the weight is 400; the patch loss counts as a mean over the 64 positions.
    assert late["patch_weight"] == pytest.approx(1 / 64)
    total = late["image_loss"] + late["patch_loss"] / 64 + 400 * late["consistency_loss"]
    assert late["loss"] == pytest.approx(total, rel=1e-4)
    without = shrunk.config(
        scenes_dir, CONFIGS / "aaai_resnet18.py", **AAAI, loss__consistency_weight=0.0
    )
    with pytest.raises(UserError, match="config.loss.consistency_weight is 0.0, but the run in"):
        loop.train(without, whole)


@pytest.mark.parametrize("pooling", ["max", "mean", "attention", "gated_attention"])
def test_the_aaai_network_takes_the_poolings_of_its_tables(pooling):
    config = shrunk.load("aaai_resnet18.py")
    config.model.pooling = pooling
    model = runs.build_model(config.model, runs.spec_of(config.data))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    keys = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(model.init, keys, images)
    out = jax.eval_shape(functools.partial(model.apply, train=False), variables, images)
    # Of ten classes, and of the 4x4 map.
    assert [part.shape for part in out] == [(2, 10), (2, 16, 10), (2, 16)]


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["max", "mean", "attention", "gated_attention"])
def test_the_poolings_of_the_aaai_tables_train(scenes_dir, tmp_path, pooling):
    config = shrunk.config(
        scenes_dir,
        CONFIGS / "aaai_resnet18.py",
        **{**AAAI, "train__epochs": 1},
        loss__consistency_weight=0.0,
        model__pooling=pooling,
    )
    measured = loop.train(config, tmp_path)
    (late,) = lines(tmp_path, "train")[-1:]
    assert np.isfinite(late["loss"]) and "consistency_loss" not in late
    # The baselines have no loss of patches.
    assert late["loss"] == pytest.approx(late["image_loss"])
    assert measured["top_5_accuracy"] >= measured["accuracy"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("aaai_resnet18.py", AAAI),
        # Dropout too is drawn by an example's place in the global batch.
        # An epoch, after which the two are alike: later one of millions of ReLUs and maxima is at its edge.
        (
            "tip.py:vgg11_bn",
            {
                "data__name": "digit_scenes",
                "optimizer__learning_rate": 0.01,
                "train__epochs": 1,
            },
        ),
    ],
)
def test_four_devices_train_as_one(
    scenes_dir, tmp_path, run_python, users_xla_flags, name, options
):
    run = functools.partial(run_python, xla_flags=users_xla_flags)
    stored = []
    for count in (1, 4):
        workdir = tmp_path / str(count)
        path = CONFIGS / name
        arguments = shrunk.flags(scenes_dir, path, **{**options, "optimizer__warmup_epochs": 0.0})
        trained = run("train.py", *arguments, f"--workdir={workdir}", devices=count)
        assert trained.returncode == 0, trained.stderr
        stored.append(stored_training(workdir))
    one, four = stored
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4), one, four)


def test_routing_has_no_label_smoothing(scenes_dir, tmp_path):
    config = shrunk.config(
        scenes_dir,
        model__head="capsule",
        model__pooling="dynamic_routing",
        loss__label_smoothing=0.1,
    )
    with pytest.raises(UserError, match="config.loss.label_smoothing is 0.1, but must be 0 with"):
        loop.train(config, tmp_path)


@pytest.mark.slow
def test_images_of_several_classes_train_and_are_ranked(coco_dir, tmp_path):
    config = shrunk.config(
        coco_dir,
        CONFIGS / "coco_resnet18.py",
        model__backbone="small",
        train__epochs=4,
        train__batch_size=4,
        eval__batch_size=2,
        optimizer__learning_rate=0.005,
    )
    measured = loop.train(config, tmp_path)
    losses = [line["loss"] for line in lines(tmp_path, "train")]
    assert losses[-1] < losses[0]
    run = runs.load(tmp_path, "best")
    again = evaluate_run(str(tmp_path))
    names = ("map_11_point", "map_all_point", "map_exact", "map_as_published", "precision_at_1")
    for name in (*names, "localised_patch_precision", "localised_patch_recall"):
        assert 0 <= again[name] <= 1
        assert again[name] == pytest.approx(measured[name])
    assert "accuracy" not in again and again["num_examples"] == 3

    images = runs.open_dataset(run, "test")
    variables = runs.load(tmp_path).variables
    (batch,) = images.eval_batches(batch_size=3)
    pixels = (batch["image"] / np.float32(255) - 0.5) / 0.5
    out = jax.jit(run.model.apply)(variables, pixels.astype(np.float32))
    assert out.patch_logits.shape == (3, 196, 80)
    expected = mean_average_precision(np.asarray(out.logits), batch["label"] > 0)
    assert again["map_all_point"] == pytest.approx(expected, rel=1e-6)
    assert run_report.explain_run(str(tmp_path), num=3).stat().st_size > 10_000


@pytest.mark.slow
def test_training_starts_from_converted_weights(scenes_dir, tmp_path):
    config = shrunk.config(scenes_dir, log__pictures=0, optimizer__learning_rate=1e-9)
    model = runs.build_model(config.model, runs.spec_of(config.data))
    variables = jax.jit(model.init)(jax.random.key(7), np.zeros((1, 32, 32, 3), np.float32))
    weight_files.write(conversion.to_torch_state_dict(variables, model), tmp_path / "w.npz")
    conversion.convert_file(tmp_path / "w.npz", config, tmp_path / "run")
    loop.train(config, tmp_path / "run")
    run = runs.load(tmp_path / "run")
    assert run.step == 18
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        run.variables["params"],
        variables["params"],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *sorted(path.name for path in CONFIGS.glob("[!m]*.py")),
        *(f"tip.py:{row}" for row in table.NAMES),
    ],
)
def test_every_shipped_config_trains_and_evaluates_when_shrunk(
    scenes_dir, coco_dir, tmp_path, name
):
    path = CONFIGS / name
    several = shrunk.load(path).data.name == "coco"
    config = shrunk.config(
        coco_dir if several else scenes_dir,
        path,
        data__name="coco" if several else "digit_scenes",
        model__width=0.03125,
        train__epochs=2,
        train__batch_size=4 if several else 40,
        log__pictures=1,
        optimizer__warmup_epochs=0.0,
        optimizer__ramp_down_epochs=1,
    )
    measured = loop.train(config, tmp_path)
    assert np.isfinite(measured["loss"])
    assert evaluate_run(str(tmp_path))["loss"] == pytest.approx(measured["loss"], rel=1e-4)

"""Training end to end on the shrunk demo config: files, resuming, evaluation, explanation."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lossattn_jax import devices, explain, metrics, runs
from lossattn_jax.checkpoint import Checkpoints
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import evaluate, evaluate_run, make_eval_step
from lossattn_jax.train import loop

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import configs

ROOT = pathlib.Path(__file__).parents[2]


def parameters(workdir):
    run = runs.load(workdir)
    return run.step, run.variables


def assert_same_parameters(workdir, other):
    (step, variables), (other_step, others) = parameters(workdir), parameters(other)
    assert step == other_step
    jax.tree.map(np.testing.assert_array_equal, variables, others)


@pytest.fixture(scope="module")
def finished(scenes_dir, tmp_path_factory):
    """A finished run of three epochs, its workdir and its test metrics."""
    workdir = tmp_path_factory.mktemp("finished")
    measured = loop.train(configs.shrunk(scenes_dir), workdir)
    return workdir, measured


def test_a_run_writes_its_metrics_and_learns(finished):
    workdir, _ = finished
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    train_lines = [line for line in lines if line["kind"] == "train"]
    test_lines = [line for line in lines if line["kind"] == "test"]
    assert [line["epoch"] for line in test_lines] == [1, 2, 3]
    assert train_lines[-1]["image_loss"] < train_lines[0]["image_loss"] - 0.05
    assert train_lines[0]["patch_weight"] == 0
    assert train_lines[-1]["patch_weight"] > 0
    for line in train_lines:
        total = line["image_loss"] + line["patch_weight"] * line["patch_loss"]
        assert line["loss"] == pytest.approx(total, rel=1e-3)
        assert line["images_per_second"] > 0
    assert list((workdir / "tensorboard").glob("events.out.tfevents*"))


def test_the_newest_and_the_best_checkpoint_stay(finished):
    workdir, _ = finished
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    accuracy = {line["step"]: line["accuracy"] for line in lines if line["kind"] == "test"}
    newest = sorted(accuracy)[-2:]
    with Checkpoints(workdir, read_only=True) as checkpoints:
        best = checkpoints.best_step()
        assert accuracy[best] == max(accuracy.values())
        assert checkpoints.steps() == sorted({*newest, best})
    assert runs.load(workdir, "best").step == best
    assert runs.load(workdir, str(newest[0])).step == newest[0]
    with pytest.raises(UserError, match="checkpoint is '1', but must be latest, best or one of"):
        runs.load(workdir, "1")


def test_evaluation_repeats_the_runs_last_test_at_any_batch_size(finished):
    workdir, measured = finished
    for batch_size in (24, 64, 7):
        result = evaluate_run(str(workdir), batch_size=batch_size)
        assert result["num_examples"] == 60
        for name in ("accuracy", "loss", "pointing_accuracy", "calibration_error"):
            assert result[name] == pytest.approx(measured[name], rel=1e-5), name
    stored = json.loads((workdir / "evaluation_test.json").read_text())
    assert stored == result


def test_explanations_hold_the_numbers_of_evaluation(finished):
    workdir, measured = finished
    run = runs.load(workdir)
    dataset = runs.open_dataset(run, "test")
    eval_step = make_eval_step(run.model, run.spec)
    variables = devices.replicate(run.variables)
    explained = explain.explain_dataset(eval_step, variables, dataset, num=1000, batch_size=24)
    assert len(explained.images) == 60
    accuracy = np.mean(explained.logits.argmax(axis=1) == explained.labels)
    assert accuracy == pytest.approx(measured["accuracy"])
    entropy = np.mean(metrics.attention_entropy(explained.attention))
    assert entropy == pytest.approx(measured["attention_entropy"], rel=1e-5)
    again = explain.explain_images(eval_step, variables, explained.images[:3], ["a", "b", "c"])
    np.testing.assert_allclose(again.logits, explained.logits[:3], rtol=1e-5, atol=1e-5)


def test_explaining_a_run_writes_a_picture(finished, tmp_path):
    from PIL import Image

    workdir, _ = finished
    path = explain.explain_run(str(workdir), num=3, output=str(tmp_path / "three.png"))
    with Image.open(path) as picture:
        three = picture.size
    for name, mode in (("grey.png", "L"), ("alpha.png", "RGBA"), ("photo.jpg", "RGB")):
        Image.new(mode, (50, 20)).save(tmp_path / name)
    files = [str(tmp_path / name) for name in ("grey.png", "alpha.png", "photo.jpg")]
    path = explain.explain_run(str(workdir), images=files, output=str(tmp_path / "own.png"))
    with Image.open(path) as picture:
        assert picture.size == three
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="broken.png cannot be read as an image"):
        explain.explain_run(str(workdir), images=[str(tmp_path / "broken.png")])


def test_rerunning_a_finished_run_trains_no_further(finished, scenes_dir):
    workdir, measured = finished
    before = (workdir / "metrics.jsonl").read_text()
    again = loop.train(configs.shrunk(scenes_dir), workdir)
    assert again["accuracy"] == measured["accuracy"]
    assert (workdir / "metrics.jsonl").read_text() == before


def test_streaming_trains_the_same_parameters(finished, scenes_dir, tmp_path):
    loop.train(configs.shrunk(scenes_dir, data__mode="stream"), tmp_path)
    assert_same_parameters(tmp_path, finished[0])


def test_another_run_can_be_started_from(finished, scenes_dir, tmp_path):
    config = configs.shrunk(
        scenes_dir, init_from=str(finished[0]), train__epochs=1, optimizer__warmup_epochs=0.0
    )
    config.optimizer.learning_rate = 1e-9
    config.optimizer.weight_decay = 0.0
    loop.train(config, tmp_path)
    _, variables = parameters(finished[0])
    step, started = parameters(tmp_path)
    assert step == 6
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        started["params"],
        variables["params"],
    )
    wider = configs.shrunk(scenes_dir, init_from=str(finished[0]), model__width=0.25)
    with pytest.raises(UserError, match="the network of that run has other parameters"):
        loop.train(wider, tmp_path / "wider")


def test_a_workdir_of_another_model_is_refused(finished, scenes_dir):
    with pytest.raises(UserError, match=r"config\.model\.pooling is 'mean', but the run in"):
        loop.train(configs.shrunk(scenes_dir, model__pooling="mean"), finished[0])


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_other_poolings_and_bfloat16_train(scenes_dir, tmp_path, pooling, dtype):
    config = configs.shrunk(scenes_dir, model__pooling=pooling, model__dtype=dtype, train__epochs=2)
    measured = loop.train(config, tmp_path)
    assert np.isfinite(measured["loss"])
    assert {leaf.dtype for leaf in jax.tree.leaves(parameters(tmp_path)[1])} == {
        np.dtype("float32")
    }


def test_a_killed_run_resumes_to_the_same_bits(finished, scenes_dir, tmp_path, compilation_cache):
    workdir = tmp_path / "killed"
    command = [sys.executable, "train.py", *configs.flags(scenes_dir), f"--workdir={workdir}"]
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(compilation_cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log)
    first = workdir / "checkpoints" / "6"
    deadline = time.monotonic() + 240
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert 6 <= checkpoints.latest_step() < 18
    rerun = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert rerun.returncode == 0, rerun.stderr
    assert_same_parameters(workdir, finished[0])
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    test_steps = [line["step"] for line in lines if line["kind"] == "test"]
    assert test_steps == [6, 12, 18]


def test_four_devices_train_and_evaluate_as_one(scenes_dir, tmp_path, run_python):
    """With cross-replica batch normalisation, after five steps and on 60 images in batches of 7."""
    options = {"train__epochs": 1, "optimizer__warmup_epochs": 0.0, "train__batch_size": 36}
    options["optimizer__learning_rate"] = 0.05
    results = []
    for count in (1, 4):
        workdir = tmp_path / str(count)
        arguments = [*configs.flags(scenes_dir, **options), f"--workdir={workdir}"]
        trained = run_python("train.py", *arguments, devices=count)
        assert trained.returncode == 0, trained.stderr
        assert f"devices: {count} cpu device(s)" in trained.stderr
        evaluated = run_python(
            "-m", "lossattn_jax.evaluate", f"--workdir={workdir}", "--batch_size=7", devices=count
        )
        assert evaluated.returncode == 0, evaluated.stderr
        results.append((*parameters(workdir), json.loads(evaluated.stdout)))
    (step, one, one_result), (_, four, four_result) = results
    assert step == 5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5), one, four)
    for name in ("accuracy", "pointing_accuracy", "num_examples"):
        assert four_result[name] == one_result[name]
    assert four_result["loss"] == pytest.approx(one_result["loss"], rel=1e-4)
    # The same checkpoint, evaluated on another number of devices than it was trained on.
    run = runs.load(tmp_path / "4")
    here = evaluate(
        make_eval_step(run.model, run.spec),
        devices.replicate(run.variables),
        runs.open_dataset(run, "test"),
        batch_size=50,
    )
    assert here["accuracy"] == four_result["accuracy"]
    assert here["loss"] == pytest.approx(four_result["loss"], rel=1e-5)

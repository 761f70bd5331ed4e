"""Training end to end on the shrunk demo config: files, resuming, evaluation, explanation."""

import base64
import functools
import json
import logging
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tensorstore

from lossattn_jax import devices
from lossattn_jax.checkpoint import runs
from lossattn_jax.checkpoint.store import Checkpoints
from lossattn_jax.errors import Incomplete, UserError
from lossattn_jax.evaluate import evaluation as evaluate_module
from lossattn_jax.evaluate import metrics
from lossattn_jax.evaluate.evaluation import evaluate, evaluate_run, make_eval_step
from lossattn_jax.explain import comparison, explanations, map_export, receptive_field, run_report
from lossattn_jax.explain.report import write
from lossattn_jax.train.images import health, loop, reporting
from reliability import in_process
from tests.support import compilations, shrunk

ROOT = pathlib.Path(__file__).parents[2]
SAVE = Checkpoints.save
REPORT = reporting.Reporter.scalars


def parameters(workdir):
    run = runs.load(workdir)
    return run.step, run.variables


def assert_same_parameters(workdir, other):
    (step, variables), (other_step, others) = parameters(workdir), parameters(other)
    assert step == other_step
    jax.tree.map(np.testing.assert_array_equal, variables, others)


@pytest.fixture(scope="module")
def logged():
    """What the runs of this file have logged."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    log = logging.getLogger("lossattn_jax.train")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    yield lines
    log.setLevel(level)
    log.removeHandler(handler)


@pytest.fixture(scope="module")
def observed(scenes_dir, tmp_path_factory, logged):
    """A finished run of three epochs: workdir, test metrics, programs compiled by each epoch's end.

    And the names of those that were compiled before it first told anything.
    """
    workdir = tmp_path_factory.mktemp("finished")
    counts, before = [], []

    def save(self, *arguments):
        SAVE(self, *arguments)
        counts.append(len(names))

    def report(self, *arguments):
        before.append(list(names))
        REPORT(self, *arguments)

    with pytest.MonkeyPatch.context() as patch, compilations.counted() as names:
        patch.setattr(health, "UNIFORM", 0.5)  # so short a run would not get far from it
        patch.setattr(Checkpoints, "save", save)
        patch.setattr(reporting.Reporter, "scalars", report)
        measured = loop.train(shrunk.config(scenes_dir), workdir)
        counts.append(len(names))
    return workdir, measured, counts, before[0]


@pytest.fixture(scope="module")
def finished(observed):
    """The run's workdir and its test metrics."""
    return observed[:2]


def test_nothing_is_compiled_after_the_first_epoch(observed):
    """With evaluation, checkpoint and pictures after every epoch."""
    _, _, counts, _ = observed
    assert len(counts) == 4
    assert counts[0] > 0 and set(counts) == {counts[0]}


def test_few_programs_are_compiled_before_the_first_step_is_told(observed):
    """One operation by itself takes 20 ms, of which a start once had 1 s: none is kept on disk."""
    *_, programs = observed
    assert "jit(create)" in programs  # the state
    assert len(programs) <= 6, programs


def test_training_says_what_it_takes_and_where_its_images_are(finished, logged):
    (memory,) = [line for line in logged if line.startswith("memory: ")]
    assert re.search(
        r"optimiser and images \+ .* of the step = .* of each device's .* [GM]iB", memory
    )
    assert logged.count("training images: in the host's memory") == 1


def test_training_warns_once_of_attention_that_prefers_nothing(finished, logged):
    (warning,) = [
        line for line in logged if line.startswith("warning: attention is nearly uniform")
    ]
    assert "try config.model.threshold above 0.1" in warning


@pytest.mark.slow
def test_explainers_are_compared_on_a_run(finished):
    workdir, _ = finished
    result = comparison.compare_run(str(workdir), ["attention"], num=4, batch_size=4)
    assert result == json.loads((workdir / "compare_explainers.json").read_text())
    assert (result["dataset"], result["images"]) == ("digit_scenes", 4)
    assert 0 <= result["explainers"]["attention"]["pointing"] <= 1
    assert (workdir / "compare_explainers.png").stat().st_size > 1000


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
        assert 0 <= line["input_wait"] <= 1
    (events,) = (workdir / "tensorboard").glob("events.out.tfevents*")
    recorded = events.read_bytes()
    for tag in (b"train/loss", b"train/patch_weight", b"test/accuracy", b"attention", b"PNG"):
        assert tag in recorded, tag


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
    explained = explanations.explain_dataset(eval_step, variables, dataset, num=1000, batch_size=24)
    assert len(explained.images) == 60
    accuracy = np.mean(explained.logits.argmax(axis=1) == explained.labels)
    assert accuracy == pytest.approx(measured["accuracy"])
    entropy = np.mean(metrics.attention_entropy(explained.attention))
    assert entropy == pytest.approx(measured["attention_entropy"], rel=1e-5)
    again = explanations.explain_images(
        eval_step, variables, explained.images[:3], ["a", "b", "c"], batch_size=2, spec=run.spec
    )
    np.testing.assert_allclose(again.logits, explained.logits[:3], rtol=1e-5, atol=1e-5)


@pytest.fixture
def quick_report(monkeypatch):
    """Reports with what takes longest made small: other tests hold it to account.

    Receptive fields (tests/test_receptive_field.py) take 8 s, the figure (tests/test_figures.py) half a
    second for each image.
    """
    monkeypatch.setattr(receptive_field, "count_probes", lambda patches: 2)
    monkeypatch.setattr(write, "FIGURE_IMAGES", 2)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_report")
def test_evaluation_report_and_export_say_the_same_to_the_bit(finished, tmp_path, monkeypatch):
    workdir, _ = finished
    seen = []

    def watched(model, spec, loss):
        step = make_eval_step(model, spec, loss)

        def look(variables, batch):
            sums, outputs = step(variables, batch)
            seen.append(devices.gather((batch["mask"], outputs)))
            return sums, outputs

        return look

    monkeypatch.setattr(evaluate_module, "make_eval_step", watched)
    evaluate_run(str(workdir))
    evaluated = {
        name: np.concatenate([getattr(outputs, name)[mask > 0] for mask, outputs in seen])
        for name in ("logits", "patch_logits", "attention")
    }

    exported = map_export.export_run(str(workdir), str(tmp_path / "maps.zarr"))
    stored = {}
    for name in ("prediction", *evaluated):
        source = {"driver": "file", "path": str(exported / name)}
        stored[name] = (
            tensorstore.open({"driver": "zarr3", "kvstore": source}).result().read().result()
        )
    for name, array in evaluated.items():
        np.testing.assert_array_equal(stored[name], array)
    np.testing.assert_array_equal(stored["prediction"], evaluated["logits"].argmax(axis=-1))

    page = run_report.explain_run(str(workdir), num=20, out=str(tmp_path / "report"))
    told = json.loads((page.parent / "report.json").read_text())["images"]
    script = re.search(
        r'<script id="data" type="application/json">(.*?)</script>', page.read_text()
    )
    drawn = json.loads(script[1])["images"]
    assert len(told) == len(drawn) == 20
    for image, picture in zip(told, drawn, strict=True):
        place = image["index"]
        for name in ("logits", "attention"):
            np.testing.assert_array_equal(np.array(image[name], np.float32), evaluated[name][place])
        assert image["predicted"] == picture["predicted"] == stored["prediction"][place]
        for name, packed in (
            ("patch_logits", picture["patch_logits"]),
            ("attention", picture["attention"][0]),
        ):
            array = np.frombuffer(base64.b64decode(packed), "<f4")
            np.testing.assert_array_equal(array, evaluated[name][place].ravel())


@pytest.mark.usefixtures("quick_report")
def test_explaining_a_run_writes_a_report(finished, tmp_path):
    workdir, measured = finished
    path = run_report.explain_run(str(workdir), num=3, pick="first", out=str(tmp_path / "three"))
    told = json.loads((path.parent / "report.json").read_text())
    assert [image["name"] for image in told["images"]] == ["test 0", "test 1", "test 2"]
    thresholds = told["thresholds"]
    assert list(thresholds) == ["threshold 0.1/g", "threshold 1/g"]
    for name, value in thresholds["threshold 0.1/g"].items():
        assert value == pytest.approx(measured[name], rel=1e-5)
    entropies = [values["attention_entropy"] for values in thresholds.values()]
    assert entropies[1] < entropies[0]


@pytest.mark.slow
def test_a_report_on_ones_own_images_leaves_out_a_broken_one(finished, tmp_path):
    from PIL import Image

    workdir, _ = finished
    folder = tmp_path / "own"
    folder.mkdir()
    for name, mode in (("grey$^.png", "L"), ("alpha.png", "RGBA"), ("photo.jpg", "RGB")):
        Image.new(mode, (50, 70)).save(folder / name)
    (folder / "broken.png").write_bytes(b"no image")
    out = str(tmp_path / "report")
    with pytest.raises(Incomplete, match="1 of 4 images were left out of .*broken.png cannot be"):
        run_report.explain_run(str(workdir), images=[str(folder)], fit="tile", out=out)
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    assert len(told["images"]) == 3 * 2 * 3
    assert told["images"][0]["name"] == "alpha.png, tile 1, 1"
    assert (tmp_path / "report" / "tiles_000.png").stat().st_size > 500
    with pytest.raises(UserError, match="no image could be read: .*broken.png cannot be read"):
        run_report.explain_run(str(workdir), images=[str(folder / "broken.png")])


def test_rerunning_a_finished_run_trains_no_further(finished, scenes_dir):
    workdir, measured = finished
    before = (workdir / "metrics.jsonl").read_text()
    again = loop.train(shrunk.config(scenes_dir), workdir)
    assert again["accuracy"] == measured["accuracy"]
    assert (workdir / "metrics.jsonl").read_text() == before
    # A damaged line does not stay in the log, also where nothing has to be recorded.
    (workdir / "metrics.jsonl").write_text('{"kind": "train"\n' + before)
    loop.train(shrunk.config(scenes_dir), workdir)
    assert (workdir / "metrics.jsonl").read_text() == before


def test_streaming_trains_the_same_parameters(finished, scenes_dir, tmp_path):
    loop.train(shrunk.config(scenes_dir, data__mode="stream"), tmp_path)
    assert_same_parameters(tmp_path, finished[0])


@pytest.mark.slow
def test_another_run_can_be_started_from(finished, scenes_dir, tmp_path):
    config = shrunk.config(
        scenes_dir, init_from=str(finished[0]), train__epochs=1, optimizer__warmup_epochs=0.0
    )
    config.optimizer.learning_rate = 1e-9
    config.optimizer.weight_decay = 0.0
    loop.train(config, tmp_path)
    _, variables = parameters(finished[0])
    step, started = parameters(tmp_path)
    assert step == 6
    close = functools.partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(close, started["params"], variables["params"])
    # Six steps moved the running statistics half the way to those of the same network, not from 0.
    mean = variables["batch_stats"]["backbone"]["bn2"]["mean"]
    np.testing.assert_allclose(started["batch_stats"]["backbone"]["bn2"]["mean"], mean, atol=0.2)
    wider = shrunk.config(scenes_dir, init_from=str(finished[0]), model__width=0.25)
    with pytest.raises(UserError, match="the network of that run has another backbone"):
        loop.train(wider, tmp_path / "wider")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model__pooling": "mean"}, r"config\.model\.pooling is 'mean', but the run in .* has"),
        ({"train__batch_size": 20}, r"config\.train\.batch_size is 20, .* decides what each step"),
        ({"seed": 3}, r"config\.seed is 3, but the run in .* has 0"),
        ({"train__epochs": 2}, r"has done 18 steps, but config\.train\.epochs=2 makes only 12"),
    ],
)
def test_a_workdir_of_another_run_is_refused_and_stays_as_it_is(
    finished, scenes_dir, changes, sentence
):
    workdir, _ = finished
    before = (workdir / "config.json").read_text()
    with pytest.raises(UserError, match=sentence):
        loop.train(shrunk.config(scenes_dir, **changes), workdir)
    assert (workdir / "config.json").read_text() == before


@pytest.mark.slow
def test_a_finished_run_can_be_longer_and_change_what_is_safe(scenes_dir, tmp_path):
    options = {"train__epochs": 1, "optimizer__warmup_epochs": 0.5}
    loop.train(shrunk.config(scenes_dir, **options), tmp_path)
    options = {
        "train__epochs": 2,
        "optimizer__weight_decay_mask": "kernels",
        "data__mode": "stream",
    }
    loop.train(shrunk.config(scenes_dir, **options), tmp_path)
    assert parameters(tmp_path)[0] == 12


def test_the_last_step_is_saved_and_tested_at_any_interval(scenes_dir, tmp_path):
    config = shrunk.config(scenes_dir, eval__every_epochs=2, checkpoint__every_epochs=2)
    loop.train(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "test"] == [12, 18]
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [12, 18]


def test_a_run_that_cannot_start_leaves_no_run_behind(scenes_dir, tmp_path):
    config = shrunk.config(scenes_dir, init_from=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"config\.init_from is .*nothing.* is not a workdir"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_profile_beyond_the_run_is_refused(scenes_dir, tmp_path):
    with pytest.raises(UserError, match="profile is '5:19', but must end by the last update, 18"):
        loop.train(shrunk.config(scenes_dir, profile="5:19"), tmp_path)


@pytest.mark.slow
def test_a_diverging_run_stops_with_a_sentence(scenes_dir, tmp_path):
    config = shrunk.config(scenes_dir, optimizer__warmup_epochs=0.0)
    config.optimizer.learning_rate = 1e30
    sentence = r"not finite in 1\d updates in a row, the first after step \d+ on .* a lower config"
    with pytest.raises(UserError, match=sentence):
        loop.train(config, tmp_path)
    assert (next((tmp_path / "nonfinite").iterdir()) / "batch.npz").exists()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"model__pooling": "max", "loss__patch": "on", "loss__label_smoothing": 0.1},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"model__dtype": "bfloat16", "model__batch_norm": "local"}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"optimizer__name": "adamw", "optimizer__schedule": "cosine", "data__flip": True},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"model__pooling": "mean", "model__dtype": "bfloat16"}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"optimizer__name": "adam", "optimizer__schedule": "step", "data__crop_padding": 0},
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda options: " ".join(str(value) for value in options.values()),
)
def test_other_settings_train_and_evaluate(scenes_dir, tmp_path, options):
    config = shrunk.config(scenes_dir, train__epochs=2, **options)
    config.optimizer.learning_rate = 0.01
    measured = loop.train(config, tmp_path)
    _, variables = parameters(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))
    again = evaluate_run(str(tmp_path))
    assert again["accuracy"] == pytest.approx(measured["accuracy"])
    assert again["loss"] == pytest.approx(measured["loss"], rel=1e-3)


def test_ended_killed_and_damaged_runs_resume_to_the_same_bits(
    finished, scenes_dir, tmp_path, compilation_cache
):
    """In short what `reliability.crash_campaign` does often: SIGTERM, SIGKILL and a flipped bit."""
    workdir = tmp_path / "run"
    command = [sys.executable, "train.py", *shrunk.flags(scenes_dir), f"--workdir={workdir}"]
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(compilation_cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    log = tmp_path / "log"

    def start_and_send(number, when):
        with log.open("w") as file:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=file)
        deadline = time.monotonic() + 240
        while not when() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        sent = time.monotonic()
        return process.wait(60), time.monotonic() - sent

    code, seconds = start_and_send(signal.SIGTERM, lambda: "from step 0" in log.read_text())
    assert code == 0 and seconds < 10, log.read_text()
    assert "ended by SIGTERM: " in log.read_text() and "finished" not in log.read_text()

    code, _ = start_and_send(signal.SIGKILL, (workdir / "checkpoints" / "12").exists)
    assert code == -signal.SIGKILL, "the run ended before it could be killed"
    for path in (workdir / "checkpoints").iterdir():  # on a busy machine the signal came late
        if path.name.isdigit() and int(path.name) > 12:
            shutil.rmtree(path)
    newest = workdir / "checkpoints" / "12" / "variables"
    arrays = max((f for f in newest.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 1
    arrays.write_bytes(content)

    rerun = in_process.run(command[1:], ROOT)
    assert rerun.returncode == 0, rerun.stderr
    assert f"checkpoint 12 in {workdir} is damaged" in rerun.stderr
    assert "going on from the checkpoint of step 6" in rerun.stderr
    assert "Traceback" not in rerun.stderr
    assert (workdir / "damaged_checkpoints" / "12").is_dir()
    assert_same_parameters(workdir, finished[0])
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    test_steps = [line["step"] for line in lines if line["kind"] == "test"]
    assert test_steps == [6, 12, 18]


def test_four_devices_train_and_evaluate_as_one(scenes_dir, tmp_path, run_python):
    """With cross-replica batch normalisation, after five steps and on 60 images in batches of 7.

    The process with four devices also shows that both are done without TensorFlow.
    """
    options = {"train__epochs": 1, "optimizer__warmup_epochs": 0.0, "train__batch_size": 36}
    options["optimizer__learning_rate"] = 0.05
    workdirs = [tmp_path / str(count) for count in (1, 4)]
    loop.train(shrunk.config(scenes_dir, **options), workdirs[0])
    one_result = evaluate_run(str(workdirs[0]), batch_size=7)
    script = f"""
import json, sys
import jax
from lossattn_jax.evaluate import evaluation
from lossattn_jax.train.images import loop
from tests.support import shrunk
assert jax.device_count() == 4
workdir = {str(workdirs[1])!r}
loop.train(shrunk.config({str(scenes_dir)!r}, **{options!r}), workdir)
print(json.dumps(evaluation.evaluate_run(workdir, batch_size=7)))
assert "tensorflow" not in sys.modules
"""
    finished = run_python("-c", script, devices=4)
    assert finished.returncode == 0, finished.stderr
    four_result = json.loads(finished.stdout)
    (step, one), (_, four) = map(parameters, workdirs)
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
        batch_size=7,
    )
    assert here["accuracy"] == four_result["accuracy"]
    assert here["loss"] == pytest.approx(four_result["loss"], rel=1e-5)


@pytest.mark.slow
def test_four_devices_explain_without_tensorflow(finished, tmp_path, run_python):
    script = f"""
import sys
from lossattn_jax import explain
explain.explain_run({str(finished[0])!r}, num=1, out={str(tmp_path / "report")!r})
assert "tensorflow" not in sys.modules
"""
    explained = run_python("-c", script, devices=4)
    assert explained.returncode == 0, explained.stderr
    assert (tmp_path / "report" / "index.html").exists()

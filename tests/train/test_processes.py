"""Several processes, real ones that meet over loopback, do what one process with as many devices does."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lossattn_jax import devices
from lossattn_jax.checkpoint import runs
from lossattn_jax.checkpoint.store import CHECKPOINTS_NAME, DAMAGED_NAME, Checkpoints
from lossattn_jax.commands import command
from lossattn_jax.errors import UserError
from reliability import in_process
from tests.support import shrunk

ROOT = pathlib.Path(__file__).parents[2]
# Four steps an epoch; of the 60 test images the last batch holds 4, all of them the first process's.
SHORT = {
    "train__epochs": 2,
    "train__batch_size": 48,
    "eval__batch_size": 28,
    "log__every_steps": 1,
    "optimizer__warmup_epochs": 0.5,
    "optimizer__learning_rate": 0.02,
}
LAST = 8
# Seconds after which a process that is lost has to have ended the others; see devices.HEARTBEAT_SECONDS.
LOST = devices.HEARTBEAT_SECONDS + 60


@pytest.fixture
def start(compilation_cache, users_xla_flags, tmp_path):
    """Starts `python ARGS` in some processes that share the work; none outlives the test."""
    started = []

    def start(count, *arguments, devices=1, extra=None):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        flags = f"{users_xla_flags} --xla_force_host_platform_device_count={devices}"
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(compilation_cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            "XLA_FLAGS": flags,
        }
        processes = []
        for place in range(count):
            joining = [f"--coordinator={address}", f"--num_processes={count}"]
            joining = [*joining, f"--process_id={place}"] if count > 1 else []
            own = (extra or {}).get(place, [])
            number = len(started)
            with (
                (tmp_path / f"out{number}").open("w") as out,
                (tmp_path / f"err{number}").open("w") as err,
            ):
                process = subprocess.Popen(
                    [sys.executable, *map(str, arguments), *joining, *own],
                    cwd=ROOT,
                    env=environment,
                    stdout=out,
                    stderr=err,
                )
            process.told = lambda name, number=number: (tmp_path / f"{name}{number}").read_text()
            started.append(process)
            processes.append(process)
        return processes

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


def finish(processes, code=0):
    """Waits for processes that are to end with `code`; returns what each has said on stderr."""
    for process in processes:
        assert process.wait(400) == code, [p.told("err") for p in processes]
    return [process.told("err") for process in processes]


def lines(workdir):
    """metrics.jsonl, without what depends on the time."""
    read = (workdir / "metrics.jsonl").read_text().splitlines()
    timed = ("seconds", "images_per_second", "input_wait")
    return [
        {key: value for key, value in json.loads(line).items() if key not in timed} for line in read
    ]


def state(workdir, step=LAST):
    """All arrays of a checkpoint, as they lie on disk."""
    import orbax.checkpoint as ocp

    folder = workdir.absolute() / CHECKPOINTS_NAME / str(step)
    reader = ocp.StandardCheckpointer()
    return {name: reader.restore(folder / name) for name in ("variables", "training")}


def largest_difference(one, other):
    """Over all leaves, relative to the largest value of each."""
    differences = jax.tree.map(
        lambda a, b: np.abs(np.asarray(a, np.float64) - b).max() / max(np.abs(a).max(), 1e-3),
        one,
        other,
    )
    return max(jax.tree.leaves(differences))


def assert_alike(one, other):
    """Two runs have the same curves, and end alike.

    The curves, of losses and metrics, are the sharp check. Gradients themselves jump where a ReLU or the
    threshold of attention is at its edge, and rounding decides on which side it is: parameters that are
    moved by 1e-7 within a single process did so in 5 of 24 tries, and left norms of gradients 1e-4,
    parameters 1e-3 and momentum 1e-2 apart, relative to the largest of each array. Most runs end 1e-6 apart.
    """
    curve, norms = 0.0, 0.0
    for a, b in zip(lines(one), lines(other), strict=True):
        assert a.keys() == b.keys()
        assert (a.pop("kind"), a.pop("step")) == (b.pop("kind"), b.pop("step"))
        apart = {key: abs(a[key] - b[key]) / max(abs(a[key]), 1e-3) for key in a}
        norms = max(norms, apart.pop("grad_norm", 0.0))
        curve = max(curve, *apart.values())
    first, second = state(one), state(other)
    average = [run["training"].pop("ensemble", {}) for run in (first, second)]
    found = {
        "curves": curve,
        "norms of gradients": norms,
        "variables": largest_difference(first["variables"], second["variables"]),
        "ensemble": largest_difference(*average) if average[0] else 0.0,
        "optimiser": largest_difference(first["training"], second["training"]),
    }
    print(", ".join(f"{name} {value:.1e}" for name, value in found.items()))
    assert curve < 1e-5
    assert max(found["variables"], found["ensemble"]) < 1e-2
    assert max(norms, found["optimiser"]) < 5e-2


def numbers(result):
    return {key: value for key, value in result.items() if isinstance(value, int | float)}


def train_arguments(scenes_dir, workdir, **options):
    return ["train.py", *shrunk.flags(scenes_dir, **SHORT | options), f"--workdir={workdir}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "options"),
    [
        (2, {"model__batch_norm": "local"}),
        (2, {"loss__consistency_weight": 1.0, "loss__consistency_ramp_epochs": 0}),
        (2, {"data__on_device": "on", "train__steps_per_dispatch": 3}),
        (4, {}),
        (4, {"model__batch_norm": "local", "data__mode": "stream"}),
    ],
    ids=["2 local", "2 consistency", "2 on devices", "4", "4 local streamed"],
)
def test_processes_train_and_evaluate_as_one(scenes_dir, start, tmp_path, count, options):
    one, several = tmp_path / "one", tmp_path / "several"
    finish(start(1, *train_arguments(scenes_dir, one, **options), devices=count))
    trained = finish(start(count, *train_arguments(scenes_dir, several, **options)))
    assert f"{count} cpu device(s) (cpu), {count} process(es)" in trained[0]
    for other in trained[1:]:  # only the first tells what it does
        assert "step" not in other and "warning" not in other
    assert_alike(one, several)
    with Checkpoints(several, read_only=True) as checkpoints:
        assert checkpoints.steps() == [4, LAST]
    assert len(list((several / "tensorboard").iterdir())) == 1

    told = []
    for workdir, arguments in ((one, (1,)), (several, (count,))):
        evaluating = start(*arguments, "-m", "lossattn_jax.evaluate", f"--workdir={workdir}")
        finish(evaluating)
        told.append([process.told("out") for process in evaluating])
    assert told[1][1:] == [""] * (count - 1)
    whole, shared = (json.loads(out[0]) for out in told)
    assert shared["num_examples"] == whole["num_examples"] == 60
    assert numbers(shared) == pytest.approx(numbers(whole), rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_evaluation_is_exact_however_many_share_it(scenes_dir, start, tmp_path):
    """One checkpoint, on 1, 2 and 4 processes, in batches that leave some of them with nothing."""
    finish(start(1, *train_arguments(scenes_dir, tmp_path / "run", train__epochs=1)))
    results = []
    for count, batch_size in ((1, 60), (2, 28), (4, 20), (4, 7)):
        evaluate = ["-m", "lossattn_jax.evaluate", f"--workdir={tmp_path / 'run'}"]
        processes = start(count, *evaluate, f"--batch_size={batch_size}")
        finish(processes)
        results.append(json.loads(processes[0].told("out")))
    for other in results[1:]:
        assert other["num_examples"] == 60
        assert numbers(other) == pytest.approx(numbers(results[0]), rel=1e-6, abs=1e-6)


@pytest.mark.slow
def test_a_checkpoint_of_four_processes_goes_on_with_one_and_two(scenes_dir, start, tmp_path):
    options = {"loss__consistency_weight": 1.0, "loss__consistency_ramp_epochs": 0}
    whole = tmp_path / "whole"
    finish(start(4, *train_arguments(scenes_dir, whole, **options)))
    for count, per_process in ((1, 4), (2, 2), (1, 1)):
        workdir = tmp_path / f"{count} {per_process}"
        shutil.copytree(whole, workdir)
        shutil.rmtree(workdir / CHECKPOINTS_NAME / str(LAST))
        arguments = train_arguments(scenes_dir, workdir, **options)
        resumed = finish(start(count, *arguments, devices=per_process))
        assert f"{LAST} steps of 48 images, from step 4" in resumed[0]
        assert_alike(whole, workdir)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "victim"), [(2, 0), (4, 2)])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(
    scenes_dir, start, tmp_path, count, victim
):
    workdir = tmp_path / "run"
    training = start(count, *train_arguments(scenes_dir, workdir, train__epochs=500))
    wait_for(workdir / CHECKPOINTS_NAME / "8", training)
    training[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    for place, process in enumerate(training):
        code = process.wait(LOST)
        assert (code == -signal.SIGKILL) if place == victim else (code != 0)
    print(f"the others ended after {time.monotonic() - killed:.1f} s")
    steps = runs.load(workdir).step // 4
    longer = train_arguments(scenes_dir, workdir, train__epochs=steps + 1)
    resumed = finish(start(2, *longer, devices=count // 2))
    assert f"from step {4 * steps}" in resumed[0]
    assert runs.load(workdir).step == 4 * steps + 4


@pytest.mark.slow
@pytest.mark.parametrize("asked", [(1,), (0, 1)])
def test_all_save_and_end_where_one_is_asked_to(scenes_dir, start, tmp_path, asked):
    workdir = tmp_path / "run"
    training = start(2, *train_arguments(scenes_dir, workdir, train__epochs=500))
    wait_for(workdir / CHECKPOINTS_NAME / "4", training)
    began = time.monotonic()
    for place in asked:
        training[place].send_signal(signal.SIGTERM)
    told = finish(training)
    assert time.monotonic() - began < 10
    steps = runs.load(workdir).step
    assert f"ended by SIGTERM: step {steps} of 2000 is saved" in told[0]
    longer = train_arguments(scenes_dir, workdir, train__epochs=steps // 4 + 1)
    resumed = finish(start(2, *longer))
    assert f"from step {steps}" in resumed[0]


@pytest.mark.slow
def test_all_save_and_end_in_the_middle_of_a_long_test(scenes_dir, start, tmp_path):
    """Of 20 s, which is more than a process waits for the others."""
    workdir, begun = tmp_path / "run", tmp_path / "begun"
    script = (
        "import pathlib, runpy, time\n"
        "from lossattn_jax.evaluate import evaluation as evaluate\n"
        "forward = evaluate.forward_batches\n"
        "def slow(*arguments):\n"
        "    for batch in forward(*arguments):\n"
        f"        pathlib.Path({str(begun)!r}).touch()\n"
        "        time.sleep(20 / 30)\n"
        "        yield batch\n"
        "evaluate.forward_batches = slow\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
    )
    arguments = train_arguments(scenes_dir, workdir, eval__batch_size=2, log__pictures=0)
    training = start(2, "-c", script, *arguments[1:])
    wait_for(begun, training)
    asked = time.monotonic()
    training[1].send_signal(signal.SIGTERM)
    told = finish(training)
    assert time.monotonic() - asked < 10
    assert "ended by SIGTERM: step 4 of 8 is saved" in told[0]
    assert [line["kind"] for line in lines(workdir)] == ["train"] * 4
    resumed = finish(start(2, *arguments))
    assert "from step 4" in resumed[0]
    assert [line["step"] for line in lines(workdir) if line["kind"] == "test"] == [4, 8]


@pytest.mark.slow
def test_all_go_back_where_a_checkpoint_is_damaged(scenes_dir, start, tmp_path):
    workdir = tmp_path / "run"
    arguments = train_arguments(scenes_dir, workdir)
    finish(start(2, *arguments))
    whole = lines(workdir)
    damaged = workdir / CHECKPOINTS_NAME / str(LAST)
    for file in (damaged / "variables").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:-7])
    resumed = finish(start(2, *arguments))
    assert f"checkpoint {LAST} in {workdir} is damaged" in resumed[0]
    assert f"{LAST} steps of 48 images, from step 4" in resumed[0]
    assert all("Traceback" not in told for told in resumed)
    assert (workdir / DAMAGED_NAME / str(LAST)).is_dir()
    for a, b in zip(whole, lines(workdir), strict=True):
        assert a["step"] == b["step"] and a["loss"] == pytest.approx(b["loss"], rel=1e-4)


@pytest.mark.slow
def test_a_second_training_is_refused_by_all(scenes_dir, start, tmp_path):
    workdir = tmp_path / "run"
    training = start(2, *train_arguments(scenes_dir, workdir, train__epochs=500))
    wait_for(workdir / CHECKPOINTS_NAME / "4", training)
    for told in finish(start(2, *train_arguments(scenes_dir, workdir, train__epochs=500)), code=2):
        assert "is being written by another command already" in told and "Traceback" not in told
    assert all(process.poll() is None for process in training)


def wait_for(path, processes, seconds=240):
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        for process in processes:
            assert process.poll() is None, process.told("err")
        time.sleep(0.05)
    assert path.exists()


@pytest.mark.slow
def test_a_mistake_of_all_is_a_sentence_of_each(scenes_dir, start, tmp_path):
    arguments = train_arguments(scenes_dir, tmp_path / "run", train__batch_size=33)
    for place, told in enumerate(finish(start(2, *arguments), code=2)):
        who = f" (process {place})" if place else ""
        assert f"error{who}: config.train.batch_size is 33, but must be a multiple" in told
        assert "Traceback" not in told


@pytest.mark.slow
def test_a_workdir_that_is_not_shared_is_a_sentence(scenes_dir, start, tmp_path):
    """A checkpoint that only one of two sees."""
    arguments = train_arguments(scenes_dir, tmp_path / "run", train__epochs=1)
    finish(start(1, *arguments))
    other = {1: [f"--workdir={tmp_path / 'elsewhere'}"]}
    for told in finish(start(2, *arguments, extra=other), code=2):
        assert "on a file system that all hosts share" in told


@pytest.mark.slow
def test_a_report_is_written_by_the_first(scenes_dir, start, tmp_path):
    workdir = tmp_path / "run"
    finish(start(2, *train_arguments(scenes_dir, workdir, train__epochs=1)))
    explain = ["-m", "lossattn_jax.explain", f"--workdir={workdir}", "--num=3"]
    finish(start(2, *explain, f"--out={tmp_path / 'report'}"))
    finish(start(1, *explain, f"--out={tmp_path / 'alone'}"))
    two, one = (
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("report", "alone")
    )
    assert [image["name"] for image in two["images"]] == [image["name"] for image in one["images"]]
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = f"--images={tmp_path / 'broken.png'},{tmp_path / 'report' / 'explanations.png'}"
    asked = start(2, *explain, images, f"--out={tmp_path / 'own'}")
    assert [process.wait(200) for process in asked] == [3, 0]
    assert (tmp_path / "own" / "index.html").exists()


def test_a_coordinator_that_is_not_there_is_a_sentence(run_python):
    absent = [
        "--coordinator=localhost:1",
        "--num_processes=2",
        "--process_id=1",
        "--join_timeout=1",
    ]
    finished = run_python("-m", "lossattn_jax.evaluate", "--workdir=x", *absent)
    assert finished.returncode == 2
    assert finished.stderr.startswith("error (process 1): the coordinator localhost:1 and all")
    assert "within --join_timeout=1 seconds" in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_others_that_are_not_there_are_a_sentence(start):
    arguments = ["-m", "lossattn_jax.evaluate", "--workdir=x", "--join_timeout=1"]
    first, second = start(2, *arguments)
    second.kill()
    (told,) = finish([first], code=2)
    assert told.startswith("error: the coordinator localhost:") and told.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"process_id": 0},
            "but --coordinator and --num_processes are missing",
        ),
        ({"coordinator": "a:1", "num_processes": 2}, "but --process_id is missing"),
        (
            {"coordinator": "a", "num_processes": 2, "process_id": 0},
            "--coordinator is 'a', but must be HOST:PORT, with a port from 1 to 65535",
        ),
        (
            {"coordinator": "a:70000", "num_processes": 2, "process_id": 0},
            "--coordinator is 'a:70000', but must be HOST:PORT",
        ),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            "--process_id is 2, but must be below --num_processes, 2",
        ),
    ],
)
def test_flags_that_name_no_place_are_refused(given, sentence):
    nothing = dict.fromkeys(("coordinator", "num_processes", "process_id"))
    with pytest.raises(UserError, match=sentence):
        command.place_of(nothing | given)


def test_flags_name_a_place_or_none():
    given = {"coordinator": "10.0.0.1:1234", "num_processes": 4, "process_id": 3}
    assert command.place_of(given) == devices.Place("10.0.0.1:1234", 4, 3)
    assert command.place_of(dict.fromkeys(given)) is None


def test_without_a_cluster_distributed_is_refused(run_python, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "JAX_COORDINATOR", "OMPI_")):
            monkeypatch.delenv(name)
    finished = run_python("-m", "lossattn_jax.evaluate", "--workdir=x", "--distributed")
    assert finished.returncode == 2
    assert "error: --distributed found no SLURM step, TPU pod" in finished.stderr
    both = ["--distributed", "--coordinator=a:1", "--num_processes=2", "--process_id=0"]
    finished = in_process.run(["-m", "lossattn_jax.evaluate", "--workdir=x", *both], ROOT)
    assert "error: --distributed finds the processes by itself" in finished.stderr

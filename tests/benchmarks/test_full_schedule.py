"""Slices of a full schedule: where each begins and ends, rates by hand, and records of other runs."""

import json
import threading
import time

import pytest

from benchmarks import full_schedule, product_ceiling
from lossattn_jax.errors import UserError
from lossattn_jax.train.images import loop
from tests.support import shrunk


def line(step, rate, kind="train"):
    return {"kind": kind, "step": step, "images_per_second": rate}


def test_a_slice_is_what_follows_the_one_before():
    lines = [line(10, 1.0), line(20, 100.0), line(20, 0, "test"), line(30, 5.0), line(40, 300.0)]
    lines.append(line(50, 200.0))
    second = full_schedule.describe_slice(lines, first_step=20, flop=2e10, ceiling=10.0)
    # Of 5, 300 and 200 images a second the first holds the compilation; 250 x 2e10 are 5 TFLOP/s.
    assert second == {
        "first_step": 20,
        "last_step": 50,
        "images_per_second": 250.0,
        "tflops_per_second": 5.0,
        "ceiling_share": 0.5,
    }
    nothing = full_schedule.describe_slice(lines, first_step=50, flop=1.0, ceiling=1.0)
    assert (nothing["last_step"], nothing["images_per_second"]) == (50, None)


def test_a_row_has_the_papers_schedule_in_bfloat16():
    config = full_schedule.row_config("vgg11_bn_mean", "cifar100", "somewhere")
    parts = config.model.backbone, config.model.head, config.model.pooling
    assert parts == ("vgg11_bn", "conv", "mean")
    assert (config.model.dtype, config.train.epochs, config.data.name) == (
        "bfloat16",
        200,
        "cifar100",
    )
    assert config.eval.every_epochs == 20
    with pytest.raises(UserError, match="vgg12"):
        full_schedule.row_config("vgg12", "cifar10", "")


class Training:
    """Stands for `loop.train`: three steps a call, of nine in all, or until it is asked to stop."""

    def __init__(self, waits=False):
        self.steps, self._waits = 0, waits

    def __call__(self, config, workdir, stop):
        workdir.mkdir(exist_ok=True)
        while self._waits and not stop.is_asked:
            time.sleep(0.01)
        with (workdir / "metrics.jsonl").open("a") as file:
            for _ in range(3):
                self.steps += 1
                file.write(json.dumps(line(self.steps, 8.0)) + "\n")
        return {"accuracy": 0.75} if self.steps == 9 else {}


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(product_ceiling, "ceiling", lambda dtype: {"tflops_per_second": 2.0})
    return shrunk.load("digit_scenes.py")


def test_the_same_command_goes_on_to_the_end(config, tmp_path, capsys):
    out, training = tmp_path / "record.json", Training()
    for _ in range(4):  # the fourth finds it finished
        full_schedule.run(config, str(tmp_path / "run"), str(out), train=training)
    record = json.loads(out.read_text())
    steps = [(piece["first_step"], piece["last_step"]) for piece in record["slices"]]
    assert steps == [(0, 3), (3, 6), (6, 9)] and training.steps == 9
    assert record["test"] == {"accuracy": 0.75}
    flop = full_schedule.network_flops.per_image(config)["training"]
    assert record["slices"][1]["tflops_per_second"] == pytest.approx(8 * flop / 1e12)
    text = capsys.readouterr().out
    assert "not at its end" in text and text.endswith("finished: test accuracy 0.7500\n")
    config.optimizer.learning_rate = 0.5
    with pytest.raises(UserError, match="is of a run with optimizer.learning_rate 0.1, but now"):
        full_schedule.run(config, str(tmp_path / "run"), str(out), train=training)


def test_a_slice_ends_when_its_minutes_are_over(config, tmp_path):
    began = time.monotonic()
    training = Training(waits=True)
    full_schedule.run(
        config, str(tmp_path / "run"), str(tmp_path / "out.json"), minutes=0.001, train=training
    )
    assert training.steps == 3 and time.monotonic() - began < 60
    with pytest.raises(UserError, match="--minutes is 0, but must be above 0"):
        full_schedule.run(config, str(tmp_path / "run"), str(tmp_path / "out.json"), minutes=0)


@pytest.mark.slow
def test_the_real_thing_stops_and_goes_on(scenes_dir, tmp_path):
    config = shrunk.config(scenes_dir, train__epochs=40, log__every_steps=1, log__pictures=0)
    folder, out = str(tmp_path / "run"), str(tmp_path / "out.json")

    def train_a_little(config, workdir, stop):
        # By steps and not by time: how many are made in some seconds depends on the machine.
        def ask():
            log = workdir / "metrics.jsonl"
            while not log.exists() or log.read_text().count("\n") < 5:
                time.sleep(0.01)
            stop.ask()

        threading.Thread(target=ask, daemon=True).start()
        return loop.train(config, workdir, stop)

    first = full_schedule.run(config, folder, out, train=train_a_little)
    assert "test" not in first and first["slices"][0]["last_step"] < 240
    record = full_schedule.run(config, folder, out, train=loop.train)
    assert record["slices"][1]["first_step"] <= first["slices"][0]["last_step"]
    assert record["slices"][1]["last_step"] == 240 and record["test"]["accuracy"] > 0.1

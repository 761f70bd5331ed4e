"""The short schedule: configs, order, resuming, and the summary."""

import dataclasses
import json

import pytest

from benchmarks import pooling_results, short_schedule
from lossattn_jax.checkpoint import run_folder
from lossattn_jax.config import images as config_lib
from lossattn_jax.errors import UserError
from lossattn_jax.train.images import loop

RECIPE = short_schedule.Recipe(data_dir="somewhere", epochs=20, backbone="small", width=0.5)
ACCURACY = {"loss_attention": 0.9, "mean": 0.7}


class Training:
    """Stands for `loop.train`; notes its runs and may stop in one."""

    def __init__(self, stops_at=None):
        self.runs = []
        self._stops_at = stops_at

    def __call__(self, config, workdir):
        self.runs.append((config.seed, config.model.pooling))
        workdir.mkdir(exist_ok=True)
        run_folder.write_config(config, workdir)
        if len(self.runs) == self._stops_at:
            raise KeyboardInterrupt
        lines = [
            {"kind": "train", "step": 10, "images_per_second": 64.0},
            {"kind": "train", "step": 40, "images_per_second": 640.0},
            {"kind": "test", "step": 40},
        ]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        accuracy = ACCURACY[config.model.pooling] + 0.01 * config.seed**2
        return {"accuracy": accuracy, "loss": 0.5, "seconds": 1.0}


def test_runs_differ_in_the_pooling_alone():
    ours, mean = (short_schedule.run_config(RECIPE, name, 3) for name in ACCURACY)
    config_lib.check(ours)
    differences = [
        key
        for (key, value), (_, other) in zip(
            config_lib.leaves(ours), config_lib.leaves(mean), strict=True
        )
        if value != other
    ]
    assert differences == ["model.pooling"]
    assert config_lib.uses_patch_loss(ours.loss, ours.model.pooling)
    assert not config_lib.uses_patch_loss(mean.loss, mean.model.pooling)
    assert ours.loss.patch_ramp_epochs == 8 and ours.optimizer.warmup_epochs == 4.0
    assert (ours.data.name, ours.model.head, ours.seed) == ("cifar10", "conv", 3)
    with pytest.raises(UserError, match="--poolings has 'maximum', but may have: loss_attention"):
        short_schedule.run_config(RECIPE, "maximum", 0)


def test_a_stopped_comparison_goes_on_and_finished_runs_stay(tmp_path, capsys):
    interrupted = Training(stops_at=3)
    with pytest.raises(KeyboardInterrupt):
        short_schedule.run(str(tmp_path), RECIPE, seeds=(0, 1), train=interrupted)
    pairs = [(seed, pooling) for seed in (0, 1) for pooling in ACCURACY]
    assert interrupted.runs == pairs[:3]
    record = json.loads((tmp_path / "short_schedule.json").read_text())
    assert record["summary"]["differences"]["mean"]["all"] == [pytest.approx(0.2)]

    # No time is left for new runs.
    late = Training()
    record = short_schedule.run(str(tmp_path), RECIPE, seeds=(0, 1), minutes=0.0, train=late)
    assert late.runs == [] and len(record["runs"]) == 2

    again = Training()
    record = short_schedule.run(str(tmp_path), RECIPE, seeds=(0, 1), train=again)
    assert again.runs == pairs[2:]
    stored = json.loads((tmp_path / "short_schedule.json").read_text())
    assert [(each["seed"], each["pooling"]) for each in stored["runs"]] == pairs
    assert stored["summary"] == record["summary"]
    assert "loss_attention less mean, same seed: +0.2000" in capsys.readouterr().out

    other = dataclasses.replace(RECIPE, data_dir="elsewhere", learning_rate=0.2)
    with pytest.raises(
        UserError, match="a run with optimizer.learning_rate 0.1, but now it is 0.2"
    ):
        short_schedule.run(str(tmp_path), other, train=again)


def test_means_differences_and_speed_by_hand():
    runs = [
        {"pooling": pooling, "seed": seed, "test_accuracy": accuracy}
        for pooling, seed, accuracy in (
            ("mean", 0, 0.7),
            ("loss_attention", 0, 0.8),
            ("mean", 1, 0.6),
            ("loss_attention", 1, 0.9),
            ("loss_attention", 2, 0.5),  # without its pair
        )
    ]
    summary = pooling_results.summary(runs, ("loss_attention", "mean", "attention"))
    assert summary["accuracy"]["mean"]["mean"] == pytest.approx(0.65)
    assert summary["accuracy"]["mean"]["deviation"] == pytest.approx(0.1 / 2**0.5)
    assert summary["accuracy"]["loss_attention"]["mean"] == pytest.approx(2.2 / 3)
    assert "attention" not in summary["accuracy"]
    assert summary["differences"].keys() == {"mean"}
    assert summary["differences"]["mean"]["all"] == [pytest.approx(0.1), pytest.approx(0.3)]
    lines = [
        '{"kind": "train", "step": 10, "images_per_second": 64.0}',
        '{"kind": "train", "step": 40, "images_per_second": 640.0}',
    ]
    speed = pooling_results.speed(lines, batch_size=32)
    # 10 steps of 32 at 64 a second, 30 at 640.
    assert speed["training_seconds"] == pytest.approx(5 + 1.5)
    assert speed["images_per_second"] == {"median": 352.0, "min": 64.0, "max": 640.0}


@pytest.mark.slow
def test_the_real_thing_shrunk(scenes_dir, tmp_path):
    recipe = short_schedule.Recipe(
        data_dir=str(scenes_dir),
        dataset="digit_scenes",
        epochs=2,
        batch_size=20,
        backbone="small",
        width=0.05,
    )
    record = short_schedule.run(str(tmp_path), recipe, seeds=(0,))
    assert [each["pooling"] for each in record["runs"]] == ["loss_attention", "mean"]
    for each in record["runs"]:
        assert 0 <= each["test_accuracy"] <= 1 and each["training_seconds"] > 0
        assert (tmp_path / f"{each['pooling']}_seed0" / "checkpoints" / "20").is_dir()
    assert short_schedule.run(str(tmp_path), recipe, seeds=(0,), train=loop.train)["runs"] == [
        json.loads(json.dumps(each)) for each in record["runs"]
    ]

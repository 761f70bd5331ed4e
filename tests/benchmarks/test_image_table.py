"""The image table: configs, order, resuming, intervals and what an unfinished one says."""

import json

import pytest

from benchmarks import image_table
from lossattn_jax.checkpoint import run_folder
from lossattn_jax.config import images as config_lib
from lossattn_jax.errors import UserError
from tests.support import shrunk

ACCURACY = {"loss_attention": 0.9, "mean": 0.7, "dynamic_routing": 0.6, "none": 0.5}


class Training:
    """Stands for `loop.train`; notes its runs and may stop in one."""

    def __init__(self, stops_at=None):
        self.runs = []
        self._stops_at = stops_at

    def __call__(self, config, workdir):
        self.runs.append((config.seed, config.model.head, config.model.pooling))
        workdir.mkdir(exist_ok=True)
        run_folder.write_config(config, workdir)
        if len(self.runs) == self._stops_at:
            raise KeyboardInterrupt
        line = {"kind": "train", "step": 60, "images_per_second": 8.0}
        (workdir / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        accuracy = ACCURACY[config.model.pooling] + 0.01 * config.seed**2
        results = {"accuracy": accuracy, "loss": 0.5, "seconds": 1.0, "calibration_error": 0.25}
        # A plain network has no patches.
        if config.model.head != "none":
            results["patch_accuracy"] = accuracy / 2
        return results


def base():
    return shrunk.load("cifar10_small.py")


@pytest.mark.parametrize("name", image_table.SYSTEMS)
def test_runs_differ_in_head_and_pooling_alone(name):
    ours, other = (image_table.run_config(base(), n, 3) for n in ("loss_attention", name))
    pairs = zip(config_lib.leaves(ours), config_lib.leaves(other), strict=True)
    differences = {key for (key, value), (_, there) in pairs if value != there}
    assert differences <= {"model.head", "model.pooling"}
    assert (other.seed, other.eval.every_epochs) == (3, base().train.epochs)


def test_a_stopped_table_goes_on_and_says_so(tmp_path):
    systems, options = ("mean", "loss_attention", "plain"), {"extra_systems": ("mean",)}
    options |= {"seeds": (0, 1), "extra_seeds": (2,), "systems": systems}
    interrupted = Training(stops_at=6)
    with pytest.raises(KeyboardInterrupt):
        image_table.run(base(), str(tmp_path), train=interrupted, **options)
    order = [("conv", "mean"), ("conv", "loss_attention"), ("none", "none")]
    plan = [(seed, *system) for seed in (0, 1) for system in order] + [(2, "conv", "mean")]
    assert interrupted.runs == plan[:6]
    text = (tmp_path / "image_table.md").read_text()
    assert text.startswith("**5 of 7 runs: not finished.**\n")
    assert "| plain network | 1 of 2 |" in text and "| mean pooling | 2 of 3 |" in text

    late = Training()
    record = image_table.run(base(), str(tmp_path), minutes=0.0, train=late, **options)
    assert late.runs == [] and len(record["runs"]) == 5

    again = Training()
    record = image_table.run(base(), str(tmp_path), train=again, **options)
    assert again.runs == plan[5:]
    assert record["commit"] and json.loads((tmp_path / "image_table.json").read_text())["summary"]
    text = (tmp_path / "image_table.md").read_text()
    assert "not finished" not in text
    # Accuracies 0.7, 0.71 and 0.74; of the two seeds that are pairs each is lower by 0.2.
    assert "| mean pooling | 3 | 0.7167 ± 0.0208 (-0.2000, -0.2000 to -0.2000) |" in text
    # The plain network has no patches; 60 steps of 64 images at 8 a second are 8 minutes.
    assert text.count("| - | 8.0 |") == 1
    other = base()
    other.optimizer.learning_rate = 0.3
    with pytest.raises(UserError, match="optimizer.learning_rate .* but now it is 0.3"):
        image_table.run(other, str(tmp_path), train=again, **options)


def test_the_interval_of_a_mean_by_a_table_of_students_t():
    # Of 1, 2 and 3 the mean's standard error is 1 / sqrt(3); with 2 degrees of freedom t is 4.3027.
    expected = {"low": 2 - 4.3027 / 3**0.5, "high": 2 + 4.3027 / 3**0.5}
    assert image_table.interval([1.0, 2.0, 3.0]) == pytest.approx(expected, abs=1e-4)
    assert image_table.interval([1.0]) == {"low": None, "high": None}


def test_numbers_that_are_missing_or_not_finite_are_left_out():
    def result(system, seed, accuracy):
        return {"system": system, "seed": seed, "test": {"accuracy": accuracy}}

    runs = [
        result("loss_attention", 0, 0.9),
        result("loss_attention", 1, 0.8),
        result("mean", 0, 0.7),
        result("mean", 1, None),
        result("mean", 2, 0.4),  # without its pair
    ]
    summary = image_table.summarise(runs, ("mean", "loss_attention", "max"))
    assert summary["accuracy"]["mean"]["runs"] == [0.7, 0.4]
    less = summary["accuracy"]["mean"]["less_ours"]
    assert less["runs"] == [pytest.approx(-0.2)] and less["low"] is None
    assert "less_ours" not in summary["accuracy"]["loss_attention"]
    assert summary["patch_accuracy"] == {} and "max" not in summary["accuracy"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"systems": ("median",)}, "--systems is 'median', but must be one of"),
        ({"extra_seeds": (1, 5)}, "--extra_seeds has 1, which --seeds has too"),
        (
            {"systems": ("mean",), "extra_systems": ("max",)},
            "--extra_systems has 'max', but must be of --systems: mean",
        ),
        ({"minutes": float("nan")}, "--minutes is nan"),
    ],
)
def test_impossible_plans_are_refused(tmp_path, options, sentence):
    training = Training()
    with pytest.raises(UserError, match=sentence):
        image_table.run(base(), str(tmp_path / "out"), train=training, **options)
    assert training.runs == [] and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_real_thing_shrunk(scenes_dir, tmp_path):
    config = shrunk.config(scenes_dir, train__epochs=2)
    record = image_table.run(config, str(tmp_path), seeds=(0,))
    assert [each["system"] for each in record["runs"]] == list(image_table.SYSTEMS)
    for metric in image_table.METRICS:
        assert record["summary"][metric].keys() >= {"mean", "loss_attention", "capsule_routing"}

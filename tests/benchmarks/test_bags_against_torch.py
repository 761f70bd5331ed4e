"""The benchmark of bags: agreement, counts, times and records."""

import dataclasses
import functools
import json
import sys
import types

import numpy as np
import pytest

from benchmarks import bag_limits, bags_against_torch, jax_bags, machine
from lossattn_jax.data.bags import bag_files
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.errors import UserError
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train.bags.settings import Settings
from reliability import in_process

# All are padded to the longest, so that a single length is compiled.
LENGTHS = (2, 3, 3, 2, 3, 3, 2, 3)


def toy():
    random = np.random.default_rng(0)
    labels = np.arange(len(LENGTHS)) % 2
    bags = [
        random.normal(label, 1.0, (length, 3))
        for length, label in zip(LENGTHS, labels, strict=True)
    ]
    return BagDataset.from_bags(bags, labels, name="toy")


@functools.cache
def both():
    """JAX's network and settings, PyTorch's recipe, and the modules that need PyTorch."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks import bag_agreement, torch_bags

    # As a run has them, which then finds the program compiled.
    network, settings = BagNetwork(2), Settings()
    recipe = torch_bags.Recipe(3, 2, network.widths, 0.5, 1e-4, 5e-4, 0.1)
    return network, settings, recipe, bag_agreement, torch_bags


def test_the_same_weights_give_the_same_outputs():
    network, _, recipe, _, torch_bags = both()
    import jax
    import jax.numpy as jnp
    import torch

    bag = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    params = jax.jit(network.init)(jax.random.key(3), jnp.asarray(bag[None]))["params"]
    ours = jax.jit(network.apply)({"params": params}, jnp.asarray(bag[None]))
    theirs = torch_bags.LossAttention(recipe).eval()
    torch_bags.set_weights(theirs, params)
    with torch.no_grad():
        logits, instance_logits, attention = (out.numpy() for out in theirs(torch.tensor(bag)))
    np.testing.assert_allclose(logits, ours.logits[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(instance_logits, ours.patch_logits[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(attention, ours.attention[0], rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, torch_bags.weights(theirs), dict(params))


def test_training_agrees_and_another_training_does_not():
    network, settings, recipe, bag_agreement, _ = both()
    agreement = bag_agreement.check(toy(), network, settings, recipe, steps=20)
    assert agreement["steps"] == 24  # three epochs of all eight bags
    assert agreement["loss"] < 1e-5 and agreement["parameters"] < 1e-5 and agreement["moved"] < 1e-3
    assert abs(agreement["losses"][0] - agreement["losses"][1]) > 1e-4
    other = dataclasses.replace(recipe, weight_decay=0.0)
    with pytest.raises(bag_agreement.DisagreementError, match="on toy .* differ too much"):
        bag_agreement.check(toy(), network, settings, other, steps=20)


def test_a_plain_training_drops_units_and_visits_every_bag():
    _, _, recipe, _, torch_bags = both()
    data = toy()
    fold = torch_bags.Fold([bag.copy() for bag in data.bags], data.labels.tolist())
    training = torch_bags.Training(dataclasses.replace(recipe, learning_rate=0.01), fold)
    before = training.losses()
    np.testing.assert_array_equal(before, training.losses())
    training.steps(list(range(8)) * 20)
    assert training.losses().mean() < before.mean()
    trainer = torch_bags.FoldTrainer([fold, fold])
    began, end = trainer.train(recipe, epochs=1, threads=1, seed=0)
    assert end > began


class FakeWorkers:
    """PyTorch's processes, which share 3 ms a step."""

    def __init__(self, recipe, folds, count):
        assert recipe.features == 3 and [len(fold.bags) for fold in folds] == [4, 4]
        for fold in folds:
            instances = np.concatenate(fold.bags)
            np.testing.assert_allclose(instances.mean(axis=0), 0, atol=1e-6)
            np.testing.assert_allclose(instances.std(axis=0), 1, atol=1e-6)

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        pass

    def seconds_per_step(self, way, epochs, seed=0):
        return 0.003 / way.processes / (3 if way.fused else 1)


def test_speed_is_the_ratio_of_medians_without_compilation(tmp_path, monkeypatch, capsys):
    _, _, _, bag_agreement, _ = both()
    from benchmarks import torch_workers

    # Of the job: the first call compiles.
    seconds = iter([10.0, 0.032, 0.048, 0.064])
    calls = []

    def train(dataset, network, settings, plans, **options):
        calls.append((settings.epochs, settings.models_at_once, len(plans)))
        took = 0.5 if settings.models_at_once else next(seconds)
        return types.SimpleNamespace(seconds=took)

    monkeypatch.setattr(jax_bags.training, "train", train)
    monkeypatch.setattr(torch_workers, "Workers", FakeWorkers)
    monkeypatch.setattr(bags_against_torch.cpu, "cores", lambda: 2)
    agreement = {"steps": 20, "loss": 1e-6, "parameters": 1e-7}
    monkeypatch.setattr(bag_agreement, "check", lambda *arguments: agreement)
    own, out = tmp_path / "own.csv", tmp_path / "new" / "bags.json"
    bag_files.write_csv(toy(), own)
    record = bags_against_torch.run(
        [str(own)], "x", str(out), epochs=2, repeats=3, folds=2, draws=3, groups=(1, 2, 4)
    )
    assert json.loads(out.read_text()) == record
    # Six models; four of them where groups of four are compared.
    assert calls == [(2, 0, 6)] * 4 + [(4, 1, 4), (4, 2, 4), (4, 4, 4)] * 4
    measured = record["datasets"]["own"]
    ours, theirs = measured["jax"], measured["torch"]
    # Six models, two epochs, four bags each.
    assert ours["steps_per_repeat"] == 48
    assert ours["us_per_step"]["median"] == pytest.approx(1000)
    assert ours["us_per_step"]["min"] == pytest.approx(1e6 * 0.032 / 48)
    assert ours["compile_seconds"] == pytest.approx(10 - 0.048)
    assert ours["job_seconds"] == pytest.approx(10 - 0.048 + 2400 * 1e-3)
    ways = [(way["processes"], way["threads"], way["fused"]) for way in theirs]
    assert ways == [(1, 1, False), (1, 2, False), (2, 1, False), (2, 1, True)]
    assert [way["speedup"] for way in theirs] == pytest.approx([3, 3, 1.5, 0.5])
    assert [way["job_seconds"] for way in theirs] == pytest.approx([7.2, 7.2, 3.6, 1.2])
    assert [way["steps_per_repeat"] for way in theirs] == [8, 8, 16, 16]
    assert theirs[0]["speedup_in_repeats"]["all"] == pytest.approx([4.5, 3, 2.25])
    assert measured["fastest_torch"] == "2 processes of 1 thread"  # of those without fused Adam
    assert measured["speedup"] == pytest.approx(1.5)
    groups = measured["models_at_once"]
    assert [group["us_per_step"]["median"] for group in groups] == pytest.approx([5e5 / 64] * 3)
    printed = capsys.readouterr().out
    assert "own: 8 bags" in printed and "1.50 times" in printed


@pytest.mark.slow
def test_a_run_measures_and_writes(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    own, out = tmp_path / "own.csv", tmp_path / "bags.json"
    bag_files.write_csv(toy(), own)
    record = bags_against_torch.run(
        [str(own)],
        "nowhere",
        str(out),
        epochs=2,
        repeats=2,
        folds=2,
        draws=2,
        groups=(1,),
        group_epochs=1,
    )
    assert json.loads(out.read_text()) == record
    assert record["versions"]["torch"] and record["versions"]["python"].startswith("3.")
    assert record["machine"]["cpu"] and record["machine"]["cores"] >= 1
    measured = record["datasets"]["own"]
    assert measured["data"]["models"] == 4 and measured["data"]["mean_padded_length"] == 3
    for side in (measured["jax"], *measured["torch"], *measured["models_at_once"]):
        us = side["us_per_step"]
        assert 0 < us["min"] <= us["median"] <= us["max"] and len(us["all"]) == 2
    medians = [way["us_per_step"]["median"] for way in measured["torch"] if not way["fused"]]
    ours = measured["jax"]["us_per_step"]["median"]
    assert measured["speedup"] == pytest.approx(min(medians) / ours)
    assert measured["jax"]["compile_seconds"] > 0
    limits = measured["limits"]
    assert limits["products_us"] > 0 and limits["optimiser_us"] > 0
    assert limits["measured_core_us"] == pytest.approx(ours * record["jax_devices"])


@pytest.mark.parametrize(
    ("dataset", "out", "sentence"),
    [
        ("musk3", "x.json", "the data set of bags 'musk3' is not known"),
        ("musk2", "x.json", "musk2 is not in .*nowhere"),
        ("mnist_bags", "x.json", "mnist_bags has bags of images"),
        ("{own}", ".", "is a folder, but must be a file"),
        ("{own}", "own.csv/x.json", "cannot be written"),
    ],
)
def test_mistakes_are_named(tmp_path, dataset, out, sentence):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    own = tmp_path / "own.csv"
    bag_files.write_csv(toy(), own)
    with pytest.raises(UserError, match=sentence):
        bags_against_torch.run(
            [dataset.format(own=own)],
            str(tmp_path / "nowhere"),
            str(tmp_path / out),
            folds=2,
            draws=1,
        )


def test_without_pytorch_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"PyTorch is needed .*: pip install torch==2\.13\.0"):
        bags_against_torch.run(["musk3"], "nowhere", str(tmp_path / "x.json"))


def test_the_command_ends_with_a_sentence(tmp_path):
    module = ["-m", "benchmarks.bags_against_torch"]
    wrong = in_process.run([*module, f"--out={tmp_path / 'x.json'}", "--repeats=0"], tmp_path)
    assert wrong.returncode == 2 and wrong.stderr.count("error: ") == 1
    assert "--repeats" in wrong.stderr and "Traceback" not in wrong.stderr


def test_products_and_bytes_are_those_counted_by_hand():
    shapes = bag_limits.products(features=3, hidden=(5, 4), classes=2, length=7)
    # Layer by layer: output, gradient of the weights, and gradient of the input but for the first.
    first = [(7, 3, 5), (3, 7, 5)]
    second = [(7, 5, 4), (5, 7, 4), (7, 4, 5)]
    classifier = [(8, 4, 2), (4, 8, 2), (8, 2, 4)]
    assert shapes == first + second + classifier
    assert bag_limits.flops(shapes) == 2 * 2 * 105 + 3 * 2 * 140 + 3 * 2 * 64
    assert bag_limits.parameters(3, (5, 4), 2) == (3 * 5 + 5) + (5 * 4 + 4) + (4 * 2 + 2)
    assert bag_limits.optimiser_bytes(54) == 8 * 4 * 54
    limits = bag_limits.measure(3, (5, 4), 2, length=7.0, core_us=10.0)
    assert limits["flops_per_step"] == bag_limits.flops(shapes)
    assert limits["optimiser_share"] == pytest.approx(limits["optimiser_us"] / 10)
    assert limits["products_us"] > 0 and limits["copy_gbytes_per_second"] > 0
    halfway = bag_limits.measure(3, (5, 4), 2, length=7.5, core_us=10.0)["flops_per_step"]
    around = [bag_limits.flops(bag_limits.products(3, (5, 4), 2, n)) for n in (7, 8)]
    assert halfway == sum(around) / 2


def test_a_published_network_has_the_parameters_that_jax_makes():
    assert bag_limits.parameters(230, (256, 128, 64), 2) == 100_418


def test_times_and_files(tmp_path):
    assert machine.spread([3.0, 1.0, 2.0]) == {
        "median": 2.0,
        "min": 1.0,
        "max": 3.0,
        "all": [3.0, 1.0, 2.0],
    }
    calls = []
    assert machine.seconds_per_call(lambda: calls.append(1), at_least=1e-4, repeats=3) > 0
    path = machine.prepare(tmp_path / "a" / "b.json")
    machine.write({"x": 1}, path)
    assert json.loads(path.read_text()) == {"x": 1} and len(list(path.parent.iterdir())) == 1

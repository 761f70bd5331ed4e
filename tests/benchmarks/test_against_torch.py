"""The comparison of image networks with PyTorch."""

import collections
import importlib.util
import json
import mmap
import sys

import numpy as np
import pytest

from benchmarks import against_torch, machine, subprocess_worker
from lossattn_jax.errors import UserError

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@needs_torch
@pytest.mark.slow
@pytest.mark.parametrize("name", against_torch.NETWORKS)
def test_both_have_the_same_losses_from_the_same_weights(name):
    from benchmarks import jax_training, torch_training

    config = against_torch.network_config(name, width=0.05, batch_size=4)
    recipe = against_torch.recipe(config)
    theirs = torch_training.Trainer(recipe, torch_training.Way())
    ours = jax_training.Trainer(config)
    random = np.random.default_rng(1)
    images = random.standard_normal((4, 32, 32, 3)).astype(np.float32)
    labels = random.integers(0, 10, 4)
    weights = theirs.weights()
    expected = theirs.losses(images, labels, 2)
    actual = ours.losses(weights, images, labels, 2)
    assert actual[0] == pytest.approx(expected[0], rel=1e-5)
    assert actual[1] == pytest.approx(expected[1], rel=1e-2)
    assert abs(actual[1] - actual[0]) > 1e-3 * actual[0]  # the update has moved something


@needs_torch
@pytest.mark.parametrize("backbone", ["resnet18", "vgg11_bn"])
def test_fused_units_are_the_units_side_by_side(backbone):
    import torch

    from benchmarks import torch_networks

    torch.manual_seed(0)
    plain, fused = (
        torch_networks.build(backbone, "capsule", width=0.05, fused=fused).eval()
        for fused in (False, True)
    )
    own = dict(plain.named_parameters())
    fused.backbone.load_state_dict(plain.backbone.state_dict())
    state = {}
    for key in fused.head.state_dict():
        group, _, rest = key.partition(".")
        if group in ("units", "layer5"):
            name = rest.partition(".")[2]
            parts = [part.state_dict()[name] for part in getattr(plain.head, group)]
            state[key] = torch.cat(parts) if parts[0].ndim else parts[0]
        else:
            state[key] = own[f"head.{key}"]
    fused.head.load_state_dict(state)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for one, other in zip(plain(images), fused(images), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@needs_torch
@pytest.mark.slow
def test_a_run_writes_what_it_prints(tmp_path, capsys):
    out = tmp_path / "times.json"
    record = against_torch.run(
        str(out), ["vgg11_bn/capsule"], width=0.05, batch_size=2, steps=1, repeats=2
    )
    assert json.loads(out.read_text()) == record
    own = record["networks"]["vgg11_bn/capsule"]
    assert len(own["torch"]) == 4
    for other in own["torch"]:
        for what in ("update", "evaluation"):
            ratio = own["jax"][what]["median"] / other[what]["median"]
            assert other["ratios"][what] == pytest.approx(ratio)
    assert own["jax"]["peak_memory"] > 100
    printed = capsys.readouterr().out
    assert all(other["way"] in printed for other in own["torch"])


def test_without_pytorch_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install torch"):
        against_torch.run(str(tmp_path / "times.json"))


@needs_torch
def test_a_network_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(UserError, match="--networks has 'lenet'.* resnet18/conv"):
        against_torch.run(str(tmp_path / "times.json"), ["lenet"])


def test_losses_that_differ_stop_it():
    against_torch.compare([2.0, 1.0], [2.0, 1.001])
    with pytest.raises(against_torch.DisagreementError):
        against_torch.compare([2.0, 1.0], [2.001, 1.0])
    with pytest.raises(against_torch.DisagreementError):
        against_torch.compare([2.0, 1.0], [2.0, 1.1])


def test_an_object_apart_answers_and_raises():
    with subprocess_worker.SubprocessWorker(collections.deque, [1, 2, 3]) as worker:
        assert worker.call("pop") == 3
        assert worker.call("index", 2) == 1
        with pytest.raises(ValueError):
            worker.call("index", 7)


@needs_linux
def test_the_peak_of_memory_is_of_the_call():
    size = 2**27

    def take():  # from the system, and not from what this process has left free
        with mmap.mmap(-1, size) as pages:
            for start in range(0, size, 4096):
                pages[start] = 1

    before = machine.peak_memory(lambda: None)
    during = machine.peak_memory(take)
    after = machine.peak_memory(lambda: None)
    assert before + 0.9 * size < during < before + 1.5 * size
    assert after < before + 0.5 * size

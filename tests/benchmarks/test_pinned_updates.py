"""The pin of what trainings compute: how files of it compare, and a record of two configs."""

import dataclasses
import io
import json
import pathlib

import numpy as np
import pytest

from benchmarks import pinned_data, pinned_updates
from lossattn_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
ABOUT = {
    "commit": "abc",
    "versions": {"jax": "1"},
    "flags": "",
    "machine": {"cpu": "x", "cores": 2},
}


def arrays():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(4, 3)).astype(np.float32)
    logits[0, 0] = np.nan  # of a bag that was not asked about
    return {
        "conv/first/logits": logits,
        "conv/first/loss": np.array([2.5, 2.25]),
        "conv/after/params/kernel": draw.normal(size=(5, 2)).astype(np.float32),
        "conv/after/params/bias": np.zeros(3, np.float32),
        "bags_mi_net/first/losses/0": np.array([1.0], np.float32),
        "bags_mi_net/after/parameters/0/last/bias": np.array([4.0, 1e-6], np.float32),
    }


def changed(name, change):
    """The arrays, one of which is changed."""
    other = arrays()
    other[name] = change(other[name])
    return other


def compare(other):
    return pinned_updates.compare(arrays(), other)


def test_what_is_equal_to_the_bit_has_no_difference():
    found = compare(arrays())
    assert list(found) == ["conv", "bags_mi_net"]
    assert all(not one.first and not one.after and not one.fails for one in found.values())
    lines = pinned_updates.table(found).splitlines()
    assert len(lines) == 2 and all(line.count("equal bit for bit") == 2 for line in lines)


def test_a_bit_of_the_first_step_fails():
    def one_step_further(array):
        array[1, 1] = np.nextafter(array[1, 1], np.inf)
        return array

    found = compare(changed("conv/first/logits", one_step_further))
    assert found["conv"].first == ("logits",) and found["conv"].fails
    assert not found["conv"].after and not found["bags_mi_net"].fails
    assert "DIFFERENT in logits" in pinned_updates.table(found)


@pytest.mark.parametrize(
    "change",
    [
        lambda loss: -loss,
        lambda loss: loss.astype(np.float32),
        lambda loss: loss[:1],
        lambda loss: loss[:, None],
        lambda loss: loss * np.array([1, np.nan]),
    ],
    ids=["sign", "type", "length", "shape", "nan"],
)
def test_other_losses_of_the_first_step_fail(change):
    found = compare(changed("conv/first/loss", change))
    assert found["conv"].first == ("loss",) and found["conv"].fails


@pytest.mark.parametrize(("relative", "fails"), [(5e-6, False), (2e-5, True), (1.0, True)])
def test_parameters_differ_relative_to_their_largest(relative, fails):
    # The second value is tiny: what is added is a small part of the first one, and many times this one.
    name = "bags_mi_net/after/parameters/0/last/bias"
    found = compare(changed(name, lambda bias: bias + np.float32([0, 4 * relative])))
    assert found["bags_mi_net"].after == {
        "parameters/0/last/bias": pytest.approx(relative, rel=1e-3)
    }
    assert found["bags_mi_net"].fails is fails and not found["conv"].fails
    assert ("beyond 1e-05: " in pinned_updates.table(found)) is fails


def test_parameters_that_cannot_be_measured_fail():
    for change in (lambda a: a * np.nan, lambda a: a[:2], lambda a: a + np.inf):
        found = compare(changed("conv/after/params/kernel", change))
        assert found["conv"].after == {"params/kernel": np.inf} and found["conv"].fails
    found = compare(changed("conv/after/params/bias", lambda bias: bias + np.float32(1e-30)))
    assert found["conv"].after == {"params/bias": np.inf}  # all of it was 0
    found = compare(changed("conv/after/params/bias", lambda bias: -bias))
    assert found["conv"].after == {"params/bias": 0} and not found["conv"].fails


def test_what_one_side_lacks_fails():
    for name, part in (("conv/first/loss", "first"), ("conv/after/params/bias", "after")):
        fewer = arrays()
        del fewer[name]
        for found in (compare(fewer), pinned_updates.compare(fewer, arrays())):
            assert found["conv"].fails and getattr(found["conv"], part)
    only_images = {name: array for name, array in arrays().items() if name.startswith("conv")}
    for found in (compare(only_images), pinned_updates.compare(only_images, arrays())):
        assert found["bags_mi_net"].fails and not found["conv"].fails


CONFIGS = "--configs=conv,bags_mi_net"


def write(path, content, about=ABOUT):
    np.savez(path, **content, about=np.array(json.dumps(about)))
    return str(path)


def test_the_exit_code_says_whether_files_agree(tmp_path, capsys):
    before = write(tmp_path / "before.npz", arrays())
    assert pinned_updates.main(["compare", before, before, CONFIGS]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("abc (") and not told.err
    rounded = changed("conv/after/params/kernel", lambda kernel: kernel * np.float32(1 + 1e-6))
    after = write(tmp_path / "after.npz", rounded)
    assert pinned_updates.main(["compare", before, after, CONFIGS]) == 0
    assert "params/kernel" in capsys.readouterr().out
    other = changed("conv/after/params/kernel", lambda kernel: kernel * np.float32(1.001))
    after = write(tmp_path / "after.npz", other, {**ABOUT, "versions": {"jax": "2"}})
    assert pinned_updates.main(["compare", before, after, CONFIGS]) == 1
    assert "different machines, versions or XLA_FLAGS" in capsys.readouterr().err
    assert pinned_updates.main(["compare", before, after, "--configs=bags_mi_net"]) == 0
    assert pinned_updates.main(["compare", before, after]) == 2
    assert "capsule is not in both files" in capsys.readouterr().err


def test_mistakes_are_named(tmp_path, capsys):
    (tmp_path / "text.npz").write_text("text")
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    out = str(tmp_path / "out.npz")
    for arguments, sentence in (
        (["compare", str(tmp_path / "none.npz"), out], "none.npz cannot be read"),
        (["compare", str(tmp_path / "text.npz"), out], "text.npz is no file of"),
        (["compare", str(tmp_path / "other.npz"), out], "other.npz is no file of"),
        (["record", f"--tree={tmp_path}", f"--out={out}"], "must be a checked-out tree"),
        (["record", f"--tree={ROOT}", f"--out={tmp_path}"], "is a folder"),
        (["record", f"--tree={ROOT}", f"--out={out}", "--configs=x"], "--configs has 'x'"),
    ):
        assert pinned_updates.main(arguments) == 2
        error = capsys.readouterr().err
        assert sentence in error and error.count("error: ") == 1


def test_what_is_recorded_outlasts_a_later_failure(tmp_path, monkeypatch):
    def fail(*arguments):
        raise UserError("no images")

    loss = np.array([1.5])
    monkeypatch.setattr(pinned_updates, "_make_data", lambda *arguments: None)
    monkeypatch.setattr(pinned_updates, "_run_bags", lambda *arguments: {"first/loss": loss})
    monkeypatch.setattr(pinned_updates, "_run_images", fail)
    configs = {name: pinned_updates.CONFIGS[name] for name in ("bags_mi_net", "conv")}
    with pytest.raises(UserError, match="no images"):
        pinned_updates.record(ROOT, tmp_path / "x.npz", configs, fast=True)
    found, about = pinned_updates.read(tmp_path / "x.npz")
    assert found == {"bags_mi_net/first/loss": loss}
    assert "--xla_backend_optimization_level=0" in about["flags"]


def test_a_command_that_fails_in_the_tree_says_why(tmp_path):
    (tmp_path / "lossattn_jax").mkdir()
    (tmp_path / "train.py").write_text("raise SystemExit('error: no images')")
    tree = pinned_updates.Tree(tmp_path, tmp_path / "programs")
    with pytest.raises(UserError, match="failed: python train.py --x: error: no images"):
        tree.run("train.py", "--x")


def test_the_small_data_is_what_the_package_reads(tmp_path):
    pytest.importorskip("h5py", reason="h5py is not installed")
    from lossattn_jax.data import svhn_full
    from lossattn_jax.data.bags import bag_files

    pinned_data.write_house_numbers(tmp_path, train=4, test=2)
    archive = io.BytesIO((tmp_path / "train.tar.gz").read_bytes())
    counts = [len(example["objects"]) for example in svhn_full.examples(archive)]
    assert counts == [1, 2, 3, 1]
    pinned_data.write_bags(tmp_path / "bags.csv")
    bags = bag_files.read_csv(tmp_path / "bags.csv")
    assert sorted(bags.lengths) == [4] * 4 + [6] * 4
    assert np.bincount(bags.labels).tolist() == [4, 4]


@pytest.mark.slow
def test_two_configs_are_recorded_and_others_differ(tmp_path):
    names = ("conv", "bags_loss_attention")
    configs = {name: pinned_updates.CONFIGS[name] for name in names}
    out = tmp_path / "two.npz"
    recorded = pinned_updates.record(ROOT, out, configs)
    stored, about = pinned_updates.read(out)
    assert not any(one.fails for one in pinned_updates.compare(recorded, stored).values())
    assert about["versions"]["jax"] and about["machine"]["cores"]

    assert recorded["conv/first/logits"].shape == (24, 10)
    assert recorded["conv/first/patch_logits"].shape == (24, 36, 10)
    np.testing.assert_allclose(recorded["conv/first/attention"].sum(axis=1), 1, rtol=1e-5)
    assert recorded["conv/first/loss"].shape == (4,) and (recorded["conv/first/loss"] > 1).all()
    assert any(name.startswith("conv/after/params/") for name in recorded)
    assert any(name.startswith("conv/after/batch_stats/") for name in recorded)
    # Six networks, eight bags; each network was asked about the four bags of its fold.
    losses = recorded["bags_loss_attention/first/losses/0"]
    assert losses.shape == (6, 8) and (np.isfinite(losses).sum(axis=1) == 4).all()
    kernels = [
        array
        for name, array in recorded.items()
        if name.startswith("bags_loss_attention/after/parameters/") and name.endswith("kernel")
    ]
    assert kernels and all(len(kernel) == 6 for kernel in kernels)

    bags = configs["bags_loss_attention"]
    for key, value, differs in (("seed", 4, True), ("training.weight_decay", 0.1, False)):
        other = dataclasses.replace(bags, overrides={**bags.overrides, key: value})
        again = pinned_updates.record(ROOT, tmp_path / "x.npz", {"bags_loss_attention": other})
        before = {name: array for name, array in recorded.items() if name.startswith("bags")}
        (found,) = pinned_updates.compare(before, again).values()
        assert bool(found.first) is differs
        assert max(found.after.values()) > 1e-4 and found.fails

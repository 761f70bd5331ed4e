"""The comparison of runs: what it counts, draws, writes and refuses."""

import csv
import dataclasses
import json
import math
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binomtest

from lossattn_jax import data, devices
from lossattn_jax.checkpoint import provenance, run_folder, runs
from lossattn_jax.checkpoint import store as checkpoint_lib
from lossattn_jax.compare_runs import (
    comparison,
    curves,
    disagreements,
    page,
    paired_differences,
    tables,
)
from lossattn_jax.config.images import default_config, resolve
from lossattn_jax.data.split_source import SplitDigests
from lossattn_jax.errors import Incomplete, UserError
from lossattn_jax.evaluate.evaluation import evaluate, make_eval_step
from lossattn_jax.files import records
from reliability import in_process
from tests.support import toys
from tests.support.page_reader import Reader

SPEC = dataclasses.replace(toys.SPEC, class_names=("a", "b<i>", "c"))
SEVERAL = dataclasses.replace(SPEC, multi_label=True)
COUNT = 23
LINES = [
    {"kind": "train", "step": 1, "loss": 1.5, "accuracy": 0.25},
    {"kind": "test", "step": 2, "loss": None, "accuracy": 0.5, "nonfinite": 3},
    {"kind": "test", "step": 4, "loss": 0.75, "accuracy": 0.5},
]


def make_images(spec=SPEC, seed=0, count=COUNT):
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 250, (count, *SPEC.image_shape)).astype(np.uint8)
    if spec.multi_label:
        labels = draw.integers(0, 2, (count, 3)).astype(np.uint8)
    else:
        labels = draw.integers(0, 3, count).astype(np.int32)
    return data.ArrayDataset(spec, "test", images, labels)


def make_run(workdir, seed, spec=SPEC, broken=False, **changes):
    """A run's folder: config, data set, one checkpoint and lines of its metrics."""
    config = default_config()
    config.seed = seed
    config.model.update(backbone="small", width=0.1, **changes)
    config.eval.batch_size = 8
    options = resolve(config)
    workdir.mkdir()
    run_folder.write_config(options, workdir, spec)
    model = runs.build_model(options.model, spec)
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, *SPEC.image_shape))))(
        jax.random.key(seed)
    )
    if broken:
        variables = jax.tree.map(lambda leaf: leaf * jnp.nan, variables)
    with checkpoint_lib.Checkpoints(workdir) as checkpoints:
        checkpoints.save(4, {"variables": variables}, None)
    lines = "".join(json.dumps(line) + "\n" for line in LINES)
    (workdir / "metrics.jsonl").write_text(lines + '{"broken')
    return str(workdir)


@pytest.fixture(scope="module", autouse=True)
def toy_networks():
    """Whatever a config says, its network is a toy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "build_model", lambda *_: toys.Toy())
        yield


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [
        make_run(folder / "one", 1),
        make_run(folder / "two$x$", 2, pooling="mean"),
        make_run(folder / "_three", 3),
    ]


@pytest.fixture
def with_images(monkeypatch):
    """Runs find these images, by name of their data set."""
    images = {SPEC.name: make_images()}
    monkeypatch.setattr(runs, "open_dataset", lambda run, *_: images[run.spec.name])
    return images


@pytest.fixture(scope="module")
def compared(workdirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "open_dataset", lambda run, *_: make_images())
        return comparison.compare(workdirs, num=5, out=str(folder)), folder


def logits_of(workdir, images):
    run = runs.load(workdir)
    pixels = data.normalise(jnp.asarray(images.images), SPEC.mean, SPEC.std, jnp.float32)
    return np.asarray(
        jax.jit(lambda x: run.model.apply(run.variables, x, train=False).logits)(pixels)
    )


def test_counts_are_those_of_the_runs_own_predictions(workdirs, compared):
    result, folder = compared
    images = make_images()
    predicted = [logits_of(workdir, images).argmax(axis=1) for workdir in workdirs]
    names = [run["name"] for run in result["runs"]]
    assert names == ["one", "two$x$", "_three"]
    right = [own == images.labels for own in predicted]
    assert len({tuple(own) for own in predicted}) == 3  # else nothing differs
    assert result["images"] == COUNT
    for place, name in enumerate(names[1:], 1):
        pair = result["pairs"][name]
        first_only = sum(a and not b for a, b in zip(right[0], right[place], strict=True))
        other_only = sum(b and not a for a, b in zip(right[0], right[place], strict=True))
        assert (pair["right"]["first"], pair["right"]["other"]) == (first_only, other_only)
        assert sum(pair["right"].values()) == COUNT
        assert pair["difference"] == pytest.approx((other_only - first_only) / COUNT)
        assert pair["difference"] == pytest.approx(result["differences"][name]["accuracy"])
        assert pair["low"] <= pair["difference"] <= pair["high"]
        assert pair["differing_predictions"] == sum(predicted[0] != predicted[place])
        for cell in pair["predictions"]:
            row, column = (SPEC.class_names.index(cell[key]) for key in ("first", "other"))
            both = (predicted[0] == row) & (predicted[place] == column)
            assert cell["images"] == both.sum() > 0
    differing = np.any([predicted[0] != other for other in predicted[1:]], axis=0)
    assert result["disagreements"] == differing.sum()
    with (folder / "disagreements.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["index"]) for row in rows) == np.flatnonzero(differing).tolist()
    strengths = [float(row["strength"]) for row in rows]
    assert strengths == sorted(strengths, reverse=True) and strengths[0] > 0
    for row in rows:
        index = int(row["index"])
        assert row["label"] == SPEC.class_names[images.labels[index]]
        assert row["predicted two$x$"] == SPEC.class_names[predicted[1][index]]
        chances = jax.nn.softmax(logits_of(workdirs[2], images)[index])
        assert float(row["probability _three"]) == pytest.approx(float(chances.max()), rel=1e-5)


def test_metrics_are_those_of_the_evaluation(workdirs, compared):
    result, folder = compared
    images = make_images()
    for workdir, entry in zip(workdirs, result["runs"], strict=True):
        run = runs.load(workdir)
        step = make_eval_step(run.model, run.spec, run.loss)
        assert entry["metrics"] == evaluate(step, devices.replicate(run.variables), images, 8)
    first, second, _ = (entry["metrics"] for entry in result["runs"])
    less = result["differences"]["two$x$"]
    assert less["calibration_error"] == second["calibration_error"] - first["calibration_error"]
    assert "num_examples" not in less and set(less) > {"loss", "patch_accuracy"}
    with (folder / "metrics.csv").open() as file:
        rows = {row["metric"]: row for row in csv.DictReader(file)}
    assert float(rows["loss"]["two$x$ less one"]) == less["loss"]
    assert float(rows["loss"]["one"]) == first["loss"]


def test_only_what_differs_of_the_configs_is_shown(compared):
    result, folder = compared
    assert result["config"]["seed"] == [1, 2, 3]
    assert result["config"]["model.pooling"] == ["loss_attention", "mean", "loss_attention"]
    assert set(result["config"]) == {"seed", "model.pooling"}
    with (folder / "config.csv").open() as file:
        assert [row["key"] for row in csv.DictReader(file)] == sorted(result["config"])


def test_the_result_says_what_it_was_made_from(workdirs, compared):
    result, folder = compared
    record = records.read(folder / "comparison.json")
    assert record.content == {k: v for k, v in result.items() if k not in ("made_from", "digest")}
    run = runs.load(workdirs[1])
    assert record.made_from["two$x$ parameters"] == provenance.of_variables(run.variables)
    assert record.made_from["one data"] == make_images().digest()
    assert record.made_from["one config.json"] == run_folder.config_digest(workdirs[0])
    assert re.fullmatch("[0-9a-f]{64}", record.made_from["one metrics.jsonl"])


def test_the_page_is_escaped_and_loads_nothing(compared):
    result, folder = compared
    text = (folder / "index.html").read_text()
    elements = Reader(text).elements
    tags = [tag for tag, _ in elements]
    assert "script" not in tags and "i" not in tags and "b&lt;i&gt;" in text
    shown = min(5, result["disagreements"])
    assert tags.count("article") == shown > 1
    drawn = [attrs for tag, attrs in elements if tag == "img"]
    assert len(drawn) == shown * 4 + 2  # curves of loss and accuracy
    assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in drawn)
    assert all(len(attrs["alt"]) > 15 for attrs in drawn)


def test_another_call_makes_the_same_bytes(workdirs, compared, with_images, tmp_path):
    result, folder = compared
    comparison.compare(workdirs, num=5, batch_size=5, out=str(tmp_path / "again"))
    for name in ("config.csv", "index.html"):
        assert (tmp_path / "again" / name).read_text() == (folder / name).read_text(), name
    again = records.read(tmp_path / "again" / "comparison.json").content
    assert again["pairs"] == result["pairs"]


def test_a_screen_has_metrics_pairs_and_config(compared):
    result, _ = compared
    text = tables.to_markdown(result)
    lines = text.splitlines()
    assert lines[0] == "| metric | one | two$x$ | \\_three | two$x$ less one | \\_three less one |"
    assert lines[2].startswith("| accuracy ↑ | 0.")
    pair = result["pairs"]["two$x$"]
    assert f"predictions differ on {pair['differing_predictions']} of 23 images" in text
    assert "| model.pooling | loss_attention | mean | loss_attention |" in lines


def test_without_a_split_runs_need_no_images(workdirs, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("opened")

    monkeypatch.setattr(runs, "load", refuse)
    out = tmp_path / "out"
    out.mkdir()
    (out / "metrics.csv").write_text("of an earlier comparison")
    result = comparison.compare(workdirs[:2], split="none", out=str(out))
    assert "pairs" not in result and "metrics" not in result["runs"][0]
    names = {path.name for path in out.iterdir()} - {run_folder.LOCK_NAME}
    assert names == {"index.html", "comparison.json", "config.csv"}
    assert tables.to_markdown(result).startswith("| config | one | two$x$ |\n")
    assert (
        "Curves of accuracy. At the end one, train: 0.2500 after 1 updates"
        in (out / "index.html").read_text()
    )
    comparison.refuse_nonfinite(result)


def test_runs_with_other_images_are_refused(workdirs, with_images, tmp_path, monkeypatch):
    other = make_run(tmp_path / "other", 4, dataclasses.replace(SPEC, name="next"))
    with_images["next"] = make_images(seed=9)
    sentence = (
        r"the test images of other \(next\) are others than those of one .* --split=none compares"
    )
    with pytest.raises(UserError, match=sentence):
        comparison.compare([workdirs[0], other], out=str(tmp_path / "out"))
    classes = dataclasses.replace(SPEC, class_names=("x", "y", "z"))
    renamed = make_run(tmp_path / "renamed", 5, classes)
    with pytest.raises(UserError, match="the classes of renamed"):
        comparison.compare([workdirs[0], renamed], out=str(tmp_path / "out"))
    # The same images under another name are the same.
    with_images["next"] = make_images()
    result = comparison.compare([workdirs[0], other], out=str(tmp_path / "out"))
    assert result["images"] == COUNT and result["config"]["data_set.name"] == ["toy", "next"]


def test_the_same_pictures_at_two_sizes_are_compared(workdirs, tmp_path, monkeypatch):
    """The toys take one shape, so the picture's sizes here are those in the digests alone."""
    other = make_run(tmp_path / "other", 4, dataclasses.replace(SPEC, name="next"))
    images = {
        name: make_images()._with_origin(SplitDigests(examples, pictures))
        for name, examples, pictures in ((SPEC.name, "at 64", "p"), ("next", "at 128", "p"))
    }
    monkeypatch.setattr(runs, "open_dataset", lambda run, *_: images[run.spec.name])
    result = comparison.compare([workdirs[0], other], out=str(tmp_path / "out"))
    assert result["images"] == COUNT and result["pairs"]["other"]["p_value"] <= 1
    images["next"] = make_images()._with_origin(SplitDigests("at 128", "others"))
    with pytest.raises(UserError, match="the test images of other .* are others than those"):
        comparison.compare([workdirs[0], other], out=str(tmp_path / "out"))


def test_nonfinite_runs_are_counted_and_left_out(workdirs, with_images, tmp_path):
    broken = make_run(tmp_path / "broken", 4, broken=True)
    result = comparison.compare([*workdirs[:2], broken], out=str(tmp_path / "out"))
    assert result["pairs"]["broken"] is None and result["pairs"]["two$x$"]["p_value"] <= 1
    assert result["runs"][2]["metrics"]["accuracy"] is None
    assert result["differences"]["broken"]["accuracy"] is None
    assert result["disagreements"] == result["pairs"]["two$x$"]["differing_predictions"]
    with pytest.raises(Incomplete, match=r"\(broken for 23 of 23 images of test\)"):
        comparison.refuse_nonfinite(result)
    first = comparison.compare([broken, workdirs[0]], out=str(tmp_path / "first"))
    assert first["pairs"] == {"one": None} and first["disagreements"] is None
    assert "outputs are not finite, nothing is compared" in tables.to_markdown(first)


def test_images_with_several_labels_are_compared(with_images, tmp_path):
    paths = [make_run(tmp_path / name, seed, SEVERAL) for seed, name in enumerate("ab", 1)]
    images = with_images[SPEC.name] = make_images(SEVERAL)
    result = comparison.compare(paths, out=str(tmp_path / "out"))
    hits = [images.labels[range(COUNT), logits_of(p, images).argmax(axis=1)] > 0 for p in paths]
    pair = result["pairs"]["b"]
    assert pair["right"]["first"] == (hits[0] & ~hits[1]).sum()
    assert pair["difference"] == pytest.approx(result["differences"]["b"]["precision_at_1"])
    assert "map_all_point" in result["differences"]["b"]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "runs are none, but a comparison takes the folders of two or more"),
        (["one"], "runs are one, but a comparison takes the folders of two or more"),
        (["one", "./one"], r"the run ./one is there twice \(also as one\)"),
        (["one", "absent"], "absent is not a workdir of a run: it has no config.json"),
        (["one", "empty"], "there is no checkpoint in empty yet"),
        (
            ["one", "_three", "--checkpoint=3"],
            "checkpoint is '3', but must be latest, best or one of: 4",
        ),
        (["one", "_three", "--num=5000"], "num is 5000, but a page shows 1 to 1000 images"),
        (["one", "_three", "--resamples=5"], "the number of resamples of the bootstrap is 5"),
    ],
)
def test_a_mistake_is_one_sentence(workdirs, args, sentence):
    folder = pathlib.Path(workdirs[0]).parent
    (folder / "empty").mkdir(exist_ok=True)
    for name in ("config.json", "data_set.json"):
        shutil.copy(folder / "one" / name, folder / "empty")
    finished = in_process.run(["-m", "lossattn_jax.compare_runs", *args], folder)
    assert finished.returncode == 2 and re.search(sentence, finished.stderr), finished.stderr
    assert not (folder / "comparison").exists()


def test_the_command_writes_beside_the_first_run(workdirs):
    names = [pathlib.Path(workdir).name for workdir in workdirs]
    folder = pathlib.Path(workdirs[0]).parent
    args = ["-m", "lossattn_jax", "compare-runs", names[0], "--split=none", names[1]]
    finished = in_process.run(args, folder)
    assert finished.returncode == 0, finished.stderr
    assert "| seed | 1 | 2 |" in finished.stdout
    assert (folder / "comparison" / "index.html").exists()


def test_runs_of_one_name_are_called_by_their_paths():
    assert comparison.name_runs(["x/a/", "x/b"]) == ["a", "b"]
    assert comparison.name_runs(["x/a", "y/a"]) == ["x/a", "y/a"]


@pytest.mark.parametrize(("first", "other"), [(0, 0), (3, 3), (1, 9), (14, 5), (400, 471)])
def test_mcnemar_is_the_binomial_test(first, other):
    expected = binomtest(first, first + other).pvalue if first + other else 1.0
    assert paired_differences.mcnemar(first, other) == pytest.approx(expected, rel=1e-12)


def test_intervals_are_of_images_drawn_together():
    draw = np.random.default_rng(0)
    first = draw.random(400) < 0.6
    other = np.where(draw.random(400) < 0.9, first, draw.random(400) < 0.9)
    same, own = paired_differences.intervals([first, first, other], 4000, seed=3)
    assert (same.low, same.high) == (0, 0)
    difference = other.astype(float) - first
    # The normal interval of a mean, which 400 images are enough for.
    margin = 1.96 * difference.std() / math.sqrt(400)
    assert own.low == pytest.approx(difference.mean() - margin, abs=0.005)
    assert own.high == pytest.approx(difference.mean() + margin, abs=0.005)
    assert paired_differences.intervals([first, first, other], 4000, seed=3)[1] == own
    others = {paired_differences.intervals([first, other], 101, seed)[0] for seed in range(8)}
    assert len(others) > 1
    (none,) = paired_differences.intervals([first, other], 0, seed=3)
    assert math.isnan(none.low) and none.reason == "no resamples were asked for"


def test_disagreement_is_strong_where_both_are_sure():
    first = np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.9, 0.1, 0.0], [0.5, 0.3, 0.2]])
    other = np.array([[0.2, 0.8, 0.0], [0.0, 0.9, 0.1], [0.7, 0.2, 0.1], [0.3, 0.3, 0.4]])
    predicted = [first.argmax(axis=1), other.argmax(axis=1)]
    found = disagreements.strengths(predicted, [first, other])
    np.testing.assert_allclose(found, [0.6, 0.2, 0, 0.1])
    assert disagreements.find(predicted).tolist() == [True, True, False, True]
    assert disagreements.rank(predicted, [first, other]).tolist() == [0, 1, 3]
    # A third network makes it that of the two that disagree most, and equal ones come in their order.
    third = np.array([[0.0, 0.0, 1.0]] * 4)
    three = [*predicted, third.argmax(axis=1)]
    stronger = disagreements.strengths(three, [first, other, third])
    np.testing.assert_allclose(stronger, [0.9, 0.8, 0.9, 0.3])
    assert disagreements.rank(three, [first, other, third]).tolist() == [0, 2, 1, 3]
    table = disagreements.cross_table(*predicted, 3)
    assert table.tolist() == [[1, 2, 1], [0, 0, 0], [0, 0, 0]]


def test_curves_are_of_what_was_logged():
    plots = curves.draw({"one": LINES, "$_two": [], "odd": [{"kind": "test", "loss": "x"}]})
    assert [plot.name for plot in plots] == ["curve_accuracy", "curve_loss"]
    assert plots[1].alt.endswith(
        "one, train: 1.5000 after 1 updates; one, test: 0.7500 after 4 updates."
    )
    assert all(plot.png.startswith(b"\x89PNG") for plot in plots)
    assert curves.draw({"one": [], "two": []}) == []


def test_a_folder_that_cannot_be_written_is_a_sentence(workdirs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the report .* cannot be written"):
        comparison.compare(workdirs[:2], split="none", out=str(tmp_path / "file"))
    with pytest.raises(UserError, match="two.* is the workdir of a run; give another folder"):
        comparison.compare(workdirs[:2], split="none", out=workdirs[1])
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link, and what is behind it stays as it is"):
        comparison.compare(workdirs[:2], split="none", out=str(tmp_path / "link"))


def test_a_page_without_disagreements_says_so(workdirs, with_images, tmp_path):
    shutil.copytree(workdirs[0], tmp_path / "copy")
    result = comparison.compare([workdirs[0], str(tmp_path / "copy")], out=str(tmp_path / "out"))
    pair = result["pairs"]["copy"]
    assert (result["disagreements"], pair["difference"], pair["p_value"]) == (0, 0, 1)
    text = (tmp_path / "out" / page.PAGE_NAME).read_text()
    assert "The runs predict the same for all of 23 images." in text
    assert "The configs are the same." in text

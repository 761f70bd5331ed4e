"""The table of predictions for files: whole after any end, and never of other inputs."""

import csv
import json
import shutil
import signal

import h5py
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

import lossattn_jax
from lossattn_jax.checkpoint import provenance
from lossattn_jax.errors import Incomplete, UserError
from lossattn_jax.files import records
from lossattn_jax.predict import prediction_files, prediction_run
from lossattn_jax.train import preemption
from reliability import in_process
from tests.support import trained_runs

COUNT = 11


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return trained_runs.write(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def trained(workdir):
    return lossattn_jax.load(workdir)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Pictures in a folder and a folder below, in parts of three."""
    monkeypatch.setattr(prediction_run, "PART", 3)
    trained_runs.write_pictures(tmp_path / "in", 6)
    trained_runs.write_pictures(tmp_path / "in" / "sub", COUNT - 6, seed=1)
    return tmp_path / "in"


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def one_by_one(trained, folder):
    files = sorted(folder.rglob("*.png"))
    return files, [trained.predict(file) for file in files]


def test_the_table_has_a_row_for_each_file(trained, folder, tmp_path):
    out = tmp_path / "new" / "p.csv"
    summary = prediction_run.run(trained, [str(folder)], str(out))
    assert summary == prediction_run.Summary(COUNT, (), ())
    rows = read(out)
    assert list(rows[0]) == ["path", "label", "predicted", "p_a", "p_=b", "p_<i>c</i>"]
    files, expected = one_by_one(trained, folder)
    assert [row["path"] for row in rows] == list(map(str, files))
    for row, one in zip(rows, expected, strict=True):
        name = one.predicted[0]
        assert row["predicted"] == (f"'{name}" if name[0] == "=" else name) and row["label"] == ""
        numbers = [float(row[column]) for column in list(row)[3:]]
        np.testing.assert_array_equal(np.float32(numbers), one.probabilities[0])
    assert sorted(path.name for path in out.parent.iterdir()) == ["p.csv", "p.csv.json"]


def test_parquet_has_the_same_numbers(trained, folder, tmp_path):
    outs = [tmp_path / name for name in ("p.csv", "p.parquet")]
    for out in outs:
        prediction_run.run(trained, [str(folder)], str(out))
    rows, table = read(outs[0]), parquet.read_table(outs[1])
    assert table.column_names == list(rows[0]) and table["label"].null_count == COUNT
    for name in ("p_a", "p_=b"):
        numbers = np.float32([float(row[name]) for row in rows])
        np.testing.assert_array_equal(table[name].to_numpy(), numbers)
    assert table["path"].to_pylist() == [row["path"] for row in rows]


def test_attention_and_patch_logits_are_written(trained, folder, tmp_path, monkeypatch):
    out, (paths, expected) = tmp_path / "p.csv", one_by_one(trained, folder)
    (folder / "bad.png").write_bytes(b"no picture")
    prediction_run.run(trained, [str(folder)], str(out))
    table = out.read_bytes()
    calls = passes(trained, monkeypatch)
    prediction_run.run(trained, [str(folder)], str(out), attention=True)
    assert calls and out.read_bytes() == table  # the table was there, and stays as it was
    written = sorted((tmp_path / "p.csv.attention").iterdir())
    assert len(written) == COUNT and written[0].name == "05.png.h5"  # the only one of that name
    by_image = {}
    for path in written:
        with h5py.File(path) as file:
            attributes = dict(file.attrs)
            by_image[attributes["image"]] = {name: file[name][()] for name in file}
        assert list(attributes["classes"]) == list(trained.class_names)
        assert attributes["model"] == provenance.of_variables(trained.checkpoint.variables)
        assert attributes["grid"].tolist() == [trained.grid.rows, trained.grid.cols]
    for path, one in zip(paths, expected, strict=True):
        arrays = by_image[str(path)]
        np.testing.assert_array_equal(arrays["attention"], one.attention[0])
        logits = trained.explain(path).patch_logits
        np.testing.assert_array_equal(arrays["logits"], logits)
    calls.clear()
    prediction_run.run(trained, [str(folder)], str(out), attention=True)
    assert not calls  # it is complete
    written[3].write_bytes(b"damaged")
    prediction_run.run(trained, [str(folder)], str(out), attention=True)
    with h5py.File(written[3]) as file:
        assert calls and file["attention"].shape == (trained.grid.patches,)


def passes(trained, monkeypatch, most=None):
    """Counts batches; after `most` of them the process is as if killed."""
    calls, step = [], trained.forward._step

    def counted(*arguments):
        if len(calls) == most:
            raise KeyboardInterrupt
        calls.append(1)
        return step(*arguments)

    monkeypatch.setattr(trained.forward, "_step", counted)
    return calls


def test_a_killed_command_goes_on_with_what_is_missing(trained, folder, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.csv", tmp_path / "p.csv"
    prediction_run.run(trained, [str(folder)], str(whole))
    with monkeypatch.context() as patch:
        passes(trained, patch, most=2)
        with pytest.raises(KeyboardInterrupt):
            prediction_run.run(trained, [str(folder)], str(out))
    assert not out.exists()
    paths = prediction_files.paths_of(str(out))
    assert paths.part(1).exists() and not paths.part(2).exists()
    paths.part(0).write_bytes(b"damaged")
    calls = passes(trained, monkeypatch)
    prediction_run.run(trained, [str(folder)], str(out))
    assert len(calls) == 3  # the damaged one, and two of four
    assert out.read_bytes() == whole.read_bytes() and not paths.parts.exists()
    prediction_run.run(trained, [str(folder)], str(out))  # it is complete
    assert len(calls) == 3
    out.unlink()
    prediction_run.run(trained, [str(folder)], str(out))
    assert len(calls) == 7 and out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("complete", [False, True])
def test_other_inputs_are_refused(trained, folder, tmp_path, monkeypatch, complete):
    out = tmp_path / "p.csv"
    with monkeypatch.context() as patch:
        passes(trained, patch, most=None if complete else 2)
        try:
            prediction_run.run(trained, [str(folder)], str(out))
        except KeyboardInterrupt:
            assert not complete
    before = {path: path.read_bytes() for path in tmp_path.rglob("p.csv*/*") if path.suffix}
    with pytest.raises(UserError, match=r"other inputs \(other paths.*\); use another --out"):
        prediction_run.run(trained, [str(folder / "sub")], str(out))
    other = lossattn_jax.load(trained_runs.write(tmp_path / "other", step=4, seed=2))
    with pytest.raises(UserError, match="step 3 instead of 4.*use another --out"):
        prediction_run.run(other, [str(folder)], str(out))
    first = folder / "00.png"
    shutil.copy(folder / "01.png", first)
    with pytest.raises(UserError, match=r"other inputs \(other files\); use another --out"):
        prediction_run.run(trained, [str(folder)], str(out))
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_file_of_others_is_not_replaced(trained, folder, tmp_path):
    out = tmp_path / "p.csv"
    out.write_text("mine")
    with pytest.raises(UserError, match="p.csv is there already, and not of this command: use ano"):
        prediction_run.run(trained, [str(folder)], str(out))
    assert out.read_text() == "mine" and not (tmp_path / "p.csv.parts").exists()


def test_unreadable_files_are_left_out_by_name(workdir, trained, folder, tmp_path):
    (folder / "02.png").write_bytes(b"no picture")
    Image.fromarray(np.full((4, 4), 7.5, np.float32)).save(folder / "bright.tif")
    out = tmp_path / "p.csv"
    arguments = ["-m", "lossattn_jax.predict", f"--workdir={workdir}", f"--images={folder}"]
    for _ in range(2):  # the second finds it complete
        finished = in_process.run([*arguments, f"--out={out}"], tmp_path)
        assert finished.returncode == 3, finished
        last = finished.stderr.splitlines()[-1]
        assert last.startswith(f"error: 2 of {COUNT + 1} files were left out of {out}: ")
        assert "02.png cannot be read" in last and "bright.tif has floats from 7.5" in last
    assert len(read(out)) == COUNT - 1
    record = records.read(out.with_name("p.csv.json")).content
    assert record["files"] == COUNT + 1 and len(record["left_out"]) == 2


def test_outputs_that_are_not_finite_are_empty_and_counted(folder, tmp_path):
    def spoil(tree):
        params = tree["params"]
        classifier = {**params["classifier"], "bias": jnp.full(3, jnp.inf)}
        return {**tree, "params": {**params, "classifier": classifier}}

    trained = lossattn_jax.load(trained_runs.write(tmp_path / "run", change=spoil))
    for name in ("p.csv", "p.parquet"):
        out = str(tmp_path / name)
        summary = prediction_run.run(trained, [str(folder)], out)
        assert len(summary.nonfinite) == COUNT
        with pytest.raises(
            Incomplete, match=f"outputs for {COUNT} files are not finite, and empty"
        ):
            prediction_run.refuse_incomplete(summary, out)
    row = read(tmp_path / "p.csv")[0]
    assert row["predicted"] == row["p_a"] == "" and row["path"]
    assert parquet.read_table(tmp_path / "p.parquet")["p_a"].null_count == COUNT
    assert json.loads((tmp_path / "p.csv.json").read_text())["nonfinite"] == COUNT


def test_sigterm_ends_it_with_what_is_done(trained, folder, tmp_path, monkeypatch):
    out = tmp_path / "p.csv"
    step, calls = trained.forward._step, []

    def asked(*arguments):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(trained.forward, "_step", asked)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(preemption.Preemption), preemption.watch() as stop:
        prediction_run.run(trained, [str(folder)], str(out), stop)
    signal.signal(signal.SIGTERM, before)  # a second one would be ignored
    parts = prediction_files.paths_of(str(out)).parts
    assert not out.exists() and sorted(path.name for path in parts.glob("0*")) != []
    done = len(calls)
    prediction_run.run(trained, [str(folder)], str(out))
    assert len(read(out)) == COUNT and done >= 2


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--out={w}/p.txt", "--out is {w}/p.txt, but must end with one of: .csv, .parquet"),
        ("--images={w}/absent", "no image could be read"),
        ("--checkpoint=9", "checkpoint is '9', but must be latest, best or one of: 3"),
        ("--out={w}/file/p.csv", "--out={w}/file/p.csv cannot be written"),
    ],
)
def test_a_mistake_is_a_sentence(workdir, tmp_path, flag, sentence):
    (tmp_path / "file").write_text("")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    names = {"w": tmp_path}
    arguments = ["-m", "lossattn_jax.predict", f"--workdir={workdir}", f"--images={tmp_path}/a.png"]
    arguments += [f"--out={tmp_path}/p.csv", flag.format(**names)]
    finished = in_process.run(arguments, tmp_path)
    assert finished.returncode == 2, finished
    assert sentence.format(**names) in finished.stderr and "Traceback" not in finished.stderr
    assert not list(tmp_path.glob("p.csv*"))

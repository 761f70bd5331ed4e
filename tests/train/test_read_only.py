"""Runs in a folder that may not be written: evaluated and printed, or refused before any work.

Nothing stops root from writing but a mount, for which these tests have what a mount says.
"""

import errno
import json
import os

import pytest

from lossattn_jax import files
from lossattn_jax.checkpoint import run_folder
from lossattn_jax.checkpoint.store import Checkpoints
from lossattn_jax.config.images import resolve
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import measurements
from lossattn_jax.evaluate.evaluation import evaluate_run
from lossattn_jax.explain import run_report
from lossattn_jax.files import records
from lossattn_jax.train.images.job import fresh_state
from lossattn_jax.train.optimizer import make_optimizer
from lossattn_jax.train.schedules import Length, learning_rate_schedule
from tests.support.toys import SPEC, Toy, settings


@pytest.fixture
def workdir(toy_runs, tmp_path):
    """A run with one checkpoint."""
    folder, options = tmp_path / "run", resolve(settings())
    run_folder.make_workdir(folder)
    run_folder.write_config(options, folder)
    length = Length(options.train.epochs, 4)
    schedule = learning_rate_schedule(options.optimizer, length)
    optimizer = make_optimizer(options.optimizer, schedule, length)
    state = fresh_state(options, Toy(), optimizer, SPEC, 32)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(0, {"variables": state.variables}, None)
    return folder


def refuse(*_):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_evaluation_prints_where_the_workdir_may_not_be_written(
    workdir, tmp_path, monkeypatch, caplog
):
    out = tmp_path / "out.json"
    result = evaluate_run(str(workdir), out=str(out))
    assert json.loads(out.read_text()) == result
    assert not (workdir / "evaluation_test.json").exists()
    monkeypatch.setattr(records.files, "write", refuse)
    assert evaluate_run(str(workdir)) == result
    assert f"warning: {workdir}/evaluation_test.json cannot be written (Read-only" in caplog.text
    with pytest.raises(UserError, match="out.json cannot be written: Read-only file system"):
        evaluate_run(str(workdir), out=str(out))


def test_a_full_disk_is_no_read_only_one(workdir, monkeypatch, caplog):
    def fill(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(records.files, "write", fill)
    with pytest.raises(UserError, match="evaluation_test.json cannot be written: No space left"):
        evaluate_run(str(workdir))
    assert '"accuracy"' in caplog.text


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("absent/x.json", "absent/x.json cannot be written: there is no folder .*absent"),
        ("", "which is a folder, but must be a file"),
    ],
)
def test_evaluation_refuses_another_file_before_it_computes(tmp_path, out, sentence):
    with pytest.raises(UserError, match=sentence):
        evaluate_run("there is no such run", out=str(tmp_path / out))


def test_a_report_is_refused_before_it_is_computed(workdir, tmp_path, monkeypatch):
    computed = []
    monkeypatch.setattr(run_report, "_on_split", lambda *_: computed.append(1))
    with run_folder.make_and_lock(workdir / "report"):
        with pytest.raises(UserError, match="report is being written by another command already"):
            run_report.explain_run(str(workdir))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="the report .*file/x cannot be written: Not a directory$"):
        run_report.explain_run(str(workdir), out=str(tmp_path / "file" / "x"))
    monkeypatch.setattr(files, "check_writable", refuse)
    sentence = "report cannot be written: Read-only file system; give another folder with --out$"
    with pytest.raises(UserError, match=sentence):
        run_report.explain_run(str(workdir))
    assert not computed


def test_a_report_that_fails_leaves_no_folder(workdir, monkeypatch):
    def fail(*_):
        assert (workdir / "report").is_dir()
        raise UserError("it cannot be explained")

    monkeypatch.setattr(run_report, "_on_split", fail)
    with pytest.raises(UserError, match="it cannot be explained"):
        run_report.explain_run(str(workdir))
    assert not (workdir / "report").exists()


def test_a_comparison_that_may_not_be_written_is_warned_of(tmp_path, monkeypatch, caplog):
    path, picture = tmp_path / "compare_explainers.json", {".png": b"\x89PNG"}
    (tmp_path / "other").write_text("of somebody else")
    path.with_suffix(".png").symlink_to(tmp_path / "other")
    measurements.write({"explainers": {}}, path, None, picture)
    assert (tmp_path / "other").read_text() == "of somebody else"
    assert path.with_suffix(".png").read_bytes() == b"\x89PNG"
    monkeypatch.setattr(records.files, "write", refuse)
    measurements.write({"explainers": {}}, path, None, picture)
    assert f"warning: {path} cannot be written (Read-only file system)" in caplog.text


def test_a_comparison_is_written_where_it_is_wanted(tmp_path):
    out = tmp_path / "own.json"
    measurements.check_out(str(out), (".png",))
    measurements.write({"explainers": {}}, tmp_path / "usual.json", str(out), {".png": b"picture"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.json", "own.png"]
    with pytest.raises(UserError, match=r"own.png, but .png is the picture beside it; let it end"):
        measurements.check_out(str(out.with_suffix(".png")), (".png",))

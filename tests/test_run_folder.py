import json
import os
from types import SimpleNamespace

import pytest

from lossattn_jax.checkpoint import run_folder
from lossattn_jax.config import images
from lossattn_jax.errors import UserError
from lossattn_jax.train.images import loop


def test_a_second_command_is_refused_while_the_first_lasts(tmp_path):
    sentence = "is being written by another command already: wait for that to end"
    with run_folder.lock_workdir(tmp_path), pytest.raises(UserError, match=sentence):
        with run_folder.lock_workdir(tmp_path):
            pass
    with run_folder.lock_workdir(tmp_path):
        pass


def test_a_lock_may_be_beside_its_folder(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    with run_folder.lock_workdir(folder, beside=True), pytest.raises(UserError):
        with run_folder.lock_workdir(folder, beside=True):
            pass
        assert os.listdir(folder) == [] and sorted(os.listdir(tmp_path)) == [".store.lock", "store"]


def test_what_killed_commands_have_left_is_removed(tmp_path):
    temporary = tmp_path / f".config.json.{'a' * 16}.part"
    temporary.write_text("half")
    with run_folder.lock_workdir(tmp_path):
        assert not temporary.exists()


def test_an_edited_config_is_refused(tmp_path):
    run_folder.write_config(images.default_config(), tmp_path)
    path = tmp_path / run_folder.CONFIG_NAME
    assert run_folder.stored_config(tmp_path) == images.default_config()
    content = json.loads(path.read_text())
    content["model"]["threshold"] = 0.5
    path.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match="config.json is not as it was written; bring the file back"
    ):
        run_folder.stored_config(tmp_path)


def test_a_config_without_a_digest_is_read_with_a_warning(tmp_path, caplog):
    run_folder.write_config(images.default_config(), tmp_path)
    path = tmp_path / run_folder.CONFIG_NAME
    content = json.loads(path.read_text())
    del content["digest"]
    path.write_text(json.dumps(content))
    assert run_folder.stored_config(tmp_path) == images.default_config()
    assert "was written before configs carried digests" in caplog.text


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_run_that_has_lost_a_file_is_not_finished(tmp_path, name):
    run_folder.write_config(images.default_config(), tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    run_folder.check_whole(tmp_path, "metrics.jsonl")
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"has lost its {name} while this command wrote in it"):
        run_folder.check_whole(tmp_path, "metrics.jsonl")


@pytest.mark.parametrize("before", [True, False])
def test_a_failed_start_leaves_no_folder_of_its_own(tmp_path, monkeypatch, before):
    """The training has its folder, and fails before there is a state."""
    workdir = tmp_path / "run"
    if before:
        workdir.mkdir()
    keep = SimpleNamespace(checkpoint=SimpleNamespace(keep=1))
    job = SimpleNamespace(workdir=workdir, options=keep)

    def open_job(config, folder):
        run_folder.make_workdir(folder)
        return job

    def refuse(*_):
        assert (workdir / run_folder.LOCK_NAME).exists()
        raise UserError("bad weights")

    monkeypatch.setattr(loop, "open_job", open_job)
    monkeypatch.setattr(loop, "first_state", refuse)
    saver = SimpleNamespace(describe=str, save_and_describe=str)
    monkeypatch.setattr(loop, "Saver", lambda *_: saver)
    with pytest.raises(UserError, match="bad weights"):
        loop.train(None, workdir)
    assert workdir.exists() == before

"""What commands say where the system has too little of something, and of names that would play tricks."""

import errno
import logging
import os
import sys

import pytest

from lossattn_jax import files
from lossattn_jax.checkpoint import run_folder
from lossattn_jax.commands import command
from lossattn_jax.errors import UserError
from lossattn_jax.files import records


def call(monkeypatch, capsys, main):
    """Exit code and what is printed of a command that calls `main`."""
    monkeypatch.setattr(command.cpu, "tune", lambda: None)
    monkeypatch.setattr(command.devices, "keep_programs", lambda: None)
    log = logging.getLogger("lossattn_jax")
    before = log.handlers[:], log.propagate
    try:
        return command._call(main, ["command"], processes=False), capsys.readouterr().err
    finally:
        log.handlers, log.propagate = before


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.EMFILE, "this process may open no more files; raise the limit (ulimit -n)"),
        (errno.ENFILE, "the machine can open no more files; end other programs"),
        (errno.ENOMEM, "the machine has no more memory; end other programs"),
        (errno.ENOSPC, "no space is left on a disk; free some"),
    ],
)
@pytest.mark.parametrize("wrapped", ["no", "in another", "as text"])
def test_a_lack_is_a_sentence(monkeypatch, capsys, number, sentence, wrapped):
    def fail():
        if wrapped == "as text":
            raise RuntimeError(f"INTERNAL: {os.strerror(number)}")
        try:
            raise OSError(number, os.strerror(number), "some/file")
        except OSError as error:
            if wrapped == "no":
                raise
            raise ValueError("cannot be read") from error

    place = "" if wrapped == "as text" else "some/file cannot be opened or written: "
    assert call(monkeypatch, capsys, fail) == (2, f"error: {place}{sentence}.\n")


def test_other_errors_stay_bugs(monkeypatch, capsys):
    def fail():
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with pytest.raises(PermissionError):
        call(monkeypatch, capsys, fail)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_table_that_does_not_fit_on_stdouts_disk_fails(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", command._Stdout(full))
        code, text = call(monkeypatch, capsys, lambda: print("a table"))
        assert (code, text) == (2, "error: no space is left on a disk; free some.\n")
        sys.stdout.flush()  # says it once


def test_names_in_the_log_do_not_steer_a_terminal(monkeypatch, capsys):
    def tell():
        logging.getLogger("lossattn_jax.mil").info("%s is there", "a\x1b[31m\u202e.csv")

    assert call(monkeypatch, capsys, tell)[1].endswith(" a\\x1b[31m\\u202e.csv is there\n")


def test_a_lack_says_nothing_of_a_record(tmp_path, monkeypatch):
    records.write(tmp_path / "r.json", {"a": 1}, {})

    def refuse(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr(files, "open_regular", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        records.find(tmp_path / "r.json", {})


def test_devices_are_not_replaced(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    with pytest.raises(OSError, match="it is not a regular file"):
        files.write(link, b"text")
    assert link.is_symlink()


def test_a_fifo_is_replaced_and_nobody_waits_for_its_reader(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    files.write(tmp_path / "fifo", b"text")
    assert files.read(tmp_path / "fifo") == b"text"


def test_a_workdir_that_went_away_differs_from_an_unwritable_one(tmp_path):
    (tmp_path / "table.md").mkdir()
    with pytest.raises(UserError, match=r"cannot be written: Is a directory \(.*/table.md\)$"):
        with run_folder.writing(tmp_path):
            files.write(tmp_path / "table.md", b"")
    with pytest.raises(
        UserError, match="was moved, removed or replaced while this command wrote in it"
    ):
        with run_folder.writing(tmp_path / "gone"):
            files.write(tmp_path / "gone" / "table.md", b"")
    with pytest.raises(UserError, match=r"cannot be written: No space left on device$"):
        with run_folder.writing(tmp_path):
            temporary = tmp_path / f".table.md.{'a' * 16}.part"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary))

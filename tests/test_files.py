import os
import stat

import pytest

from lossattn_jax import files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "numbers"
    files.write(path, b"before")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert files.read(path) == b"before" and os.listdir(tmp_path) == ["numbers"]
    files.write(path, b"after")
    assert files.read(path) == b"after" and os.listdir(tmp_path) == ["numbers"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_link_is_replaced_and_its_target_stays(tmp_path):
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    files.write(tmp_path / "link", b"new")
    assert files.read(tmp_path / "target") == b"mine"
    assert not (tmp_path / "link").is_symlink()


def test_a_folder_is_made_but_not_behind_a_link(tmp_path):
    files.make_folder(tmp_path / "a" / "b")
    files.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    for target in ("a", "absent"):
        (tmp_path / f"to_{target}").symlink_to(tmp_path / target)
        with pytest.raises(OSError, match="it is a symbolic link, which is not followed"):
            files.make_folder(tmp_path / f"to_{target}")
    assert not (tmp_path / "absent").exists()


def test_links_to_regular_files_are_opened(tmp_path):
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert files.read(tmp_path / "link") == b"mine"


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError) as caught:
        files.open_regular(tmp_path / "fifo")
    assert caught.value.strerror == "it is not a regular file"
    with pytest.raises(OSError, match="it is not a regular file"):
        files.open_regular("/dev/null")
    with pytest.raises(IsADirectoryError):
        files.open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.open_regular(tmp_path / "absent")


def test_only_our_temporaries_are_removed(tmp_path):
    temporary = tmp_path / f".numbers.{'0' * 16}.part"
    others = [tmp_path / name for name in ("numbers.part", ".numbers.part", ".x.0123.part")]
    for path in (temporary, *others):
        path.write_bytes(b"")
    (tmp_path / f".link.{'1' * 16}.part").symlink_to(others[0])
    files.remove_temporaries(tmp_path)
    assert not temporary.exists() and all(path.exists() for path in others)
    files.remove_temporaries(tmp_path / "absent")


@pytest.mark.parametrize(
    "text",
    ["musk1", "own.v2", "a b", "a-b_c+d=e,f", "Größe", "病理", "it's (new) & [more]", "x" * 150],
)
def test_names_that_every_system_takes_stay(text):
    assert files.safe_name(text) == text


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("", "_-"),
        ("..", "__-"),
        (".hidden", "_hidden-"),
        ("-rf", "_rf-"),
        ("a/b", "a_b-"),
        ("x|y", "x_y-"),
        ("<img src=x>", "_img src=x_-"),
        ("a\nb", "a_b-"),
        ("ends.", "ends_-"),
        ("x" * 151, "x" * 150 + "-"),
        ("é" * 100, "é" * 75 + "-"),
        ("Config.JSON", "Config.JSON-"),
    ],
)
def test_other_names_become_safe_and_stay_different(text, begins):
    name = files.safe_name(text, reserved_names=("config.json",))
    assert name.startswith(begins) and len(name) == len(begins) + 8
    assert name == files.safe_name(text, reserved_names=("config.json",))


def test_names_that_differ_stay_different():
    texts = ["a|b", "a/b", "a:b", "a_b", "a\\b", ".", "..", "...", "", "\udcff"]
    assert len({files.safe_name(text) for text in texts}) == len(texts)


def test_another_folder_at_the_path_is_told_apart(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    held = files.HeldFolder(folder)
    assert held.is_there()
    folder.rmdir()
    assert not held.is_there()
    folder.mkdir()  # may get the number of the one before where nobody holds that
    assert not held.is_there()
    held.close()
    held.close()
    with pytest.raises(FileNotFoundError):
        files.HeldFolder(tmp_path / "absent")

"""A workdir of bags after damage: the same command gives its first table again, or refuses in a sentence."""

import errno
import json
import os
import shutil

import pytest

from lossattn_jax import files
from lossattn_jax.checkpoint import run_folder
from lossattn_jax.config.options import BagOptions
from lossattn_jax.errors import UserError
from lossattn_jax.mil import classical_folds, config_record, experiment, paper_table, report
from tests.support import damages

KERNEL = "own/mi_kernel/final"
FOLD, SUMMARY = f"{KERNEL}/repeat0_fold0.json", f"{KERNEL}/summary.json"
# What is refused, by damage; all else is made again.
REFUSED = {
    "sibling": "repeat0_fold0.json was made from other inputs .*fold 1 instead of 0",
    "other method": "was made from other inputs .*method 'mi_graph' instead of 'mi_kernel'",
    "before digests": "was written before results carried digests",
    "folder": "cannot be written: Is a directory .*repeat0_fold0.json",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two files of bags, `good` with the results of two methods on both, and these files' contents."""
    root = tmp_path_factory.mktemp("damaged")
    paths = [damages.write_bags(root / f"{n}.csv", s) for s, n in enumerate(damages.NAMES)]
    summaries = damages.run(paths, root / "good")
    return root, paths, summaries


@pytest.fixture
def workdir(world, tmp_path):
    return shutil.copytree(world[0] / "good", tmp_path / "run")


def assert_as_first(world, workdir):
    first, now = damages.contents(world[0] / "good"), damages.contents(workdir)
    now = {name: content for name, content in now.items() if not name.endswith("elsewhere")}
    assert now == first


@pytest.mark.parametrize("name", damages.DAMAGES)
def test_a_damaged_fold_is_made_again_or_refused(world, workdir, name, caplog):
    damages.DAMAGES[name](workdir / FOLD)
    if name in REFUSED:
        with pytest.raises(UserError, match=REFUSED[name]):
            damages.run(world[1], workdir)
        return
    with caplog.at_level("WARNING"):
        summaries = damages.run(world[1], workdir)
    assert [one.accuracies for one in summaries] == [one.accuracies for one in world[2]]
    assert_as_first(world, workdir)
    assert ("made again" in caplog.text) == (name != "gone")
    if name == "link":
        assert (workdir / KERNEL / "elsewhere").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("name", damages.DAMAGES)
def test_no_damage_to_any_file_changes_a_number(world, tmp_path, name):
    root, paths, _ = world
    tables = paper_table.markdown(paper_table.collect([str(root / "good")]))
    for file in damages.contents(root / "good"):
        workdir = shutil.copytree(root / "good", tmp_path / "run")
        damages.DAMAGES[name](workdir / file)
        if not (name == "gone" and file.endswith("summary.json")):
            try:
                assert paper_table.markdown(paper_table.collect([str(workdir)])) == tables
            except UserError:
                assert file.endswith("summary.json")
        try:
            damages.run(paths, workdir)
            assert_as_first(world, workdir)
        except UserError:
            assert name in REFUSED
        shutil.rmtree(workdir)


@pytest.mark.parametrize("name", ["cut", "bit", "seed", "list", "nested", "gone", "link"])
def test_a_damaged_config_is_made_again_where_the_folds_agree(world, workdir, name):
    damages.DAMAGES[name](workdir / "config.json")
    damages.run(world[1], workdir)
    assert_as_first(world, workdir)


@pytest.mark.parametrize("name", ["cut", "gone"])
def test_a_damaged_config_mixes_in_no_folds_of_another_config(world, workdir, name):
    """Not even those of a method that the command does not run."""
    damages.DAMAGES[name](workdir / "config.json")
    before = damages.contents(workdir)
    with pytest.raises(UserError, match="made from other inputs .config.seed 0 instead of 1"):
        damages.run(world[1], workdir, ["mi_svm"], seed=1)
    assert damages.contents(workdir) == before


@pytest.mark.parametrize("name", ["accuracy 0.99", "no digest", "half the bags", "other method"])
def test_a_damaged_summary_is_in_no_table(workdir, name):
    damages.DAMAGES[name](workdir / SUMMARY)
    with pytest.raises(UserError, match="cannot be relied on|which another run has too"):
        paper_table.collect([str(workdir)])


def test_folds_without_a_summary_are_named(workdir, caplog):
    (workdir / SUMMARY).unlink()
    assert len(paper_table.collect([str(workdir)])) == 3
    assert (
        f"{workdir / KERNEL} has folds, but no summary.json: it is not in the table" in caplog.text
    )


def test_of_two_commands_the_second_is_refused_at_once(world, workdir, monkeypatch):
    monkeypatch.setattr(experiment.experiment_names, "read", lambda *_: pytest.fail("not at once"))
    before = damages.contents(workdir)
    with run_folder.lock_workdir(workdir):
        with pytest.raises(UserError, match="is being written by another command already"):
            damages.run(world[1], workdir)
    assert damages.contents(workdir) == before


def test_what_a_killed_command_left_of_files_is_removed(world, workdir):
    (workdir / FOLD).unlink()
    leftovers = [workdir / place / f".x.json.{'a' * 16}.part" for place in (".", "own", KERNEL)]
    for path in leftovers:
        path.write_text("half")
    damages.run(world[1], workdir)
    assert not any(path.exists() for path in leftovers)


def forbid_writing(monkeypatch):
    """As a read-only mount does it, which only root could make."""
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    monkeypatch.setattr(files, "replacing", lambda path: pytest.fail(f"{path} is written"))
    monkeypatch.setattr(run_folder, "lock_workdir", lambda folder: pytest.fail("it is locked"))
    monkeypatch.setattr(classical_folds, "run", lambda *_, **__: pytest.fail("it computes"))


def test_a_finished_workdir_is_read_where_nothing_can_be_written(
    world, workdir, monkeypatch, caplog
):
    forbid_writing(monkeypatch)
    assert report.table(damages.run(world[1], workdir)) == report.table(world[2])
    assert f"the workdir {workdir} cannot be written: its results were read" in caplog.text


def test_an_unfinished_workdir_that_is_read_only_is_refused(world, workdir, monkeypatch):
    (workdir / FOLD).write_text("")
    forbid_writing(monkeypatch)
    sentence = "cannot be written, and 1 of 3 folds of mi_kernel on own are not there; copy it"
    with pytest.raises(UserError, match=sentence):
        damages.run(world[1], workdir)


def _move(workdir):
    workdir.rename(workdir.with_name("away"))


def _replace(workdir):
    _move(workdir)
    workdir.mkdir()


def _replace_by_copy(workdir):
    shutil.copytree(workdir, workdir.with_name("away"))
    shutil.rmtree(workdir)
    workdir.with_name("away").rename(workdir)


# The last fold is the second method's first. One way of each is fast.
@pytest.mark.parametrize(
    ("change", "fold"),
    [
        (_move, 0),
        (_replace, 2),
        (_replace_by_copy, 3),
        *(
            pytest.param(change, fold, marks=pytest.mark.slow)
            for change in (_move, shutil.rmtree, _replace, _replace_by_copy)
            for fold in (0, 2, 3)
            if (change, fold) not in ((_move, 0), (_replace, 2), (_replace_by_copy, 3))
        ),
    ],
)
def test_a_workdir_that_goes_away_ends_the_command(
    world, tmp_path, monkeypatch, caplog, change, fold
):
    workdir, compute, calls = tmp_path / "run", classical_folds.run, []

    def compute_and_change(*arguments, **options):
        calls.append(None)
        if len(calls) == fold + 1:
            change(workdir)
        return compute(*arguments, **options)

    with monkeypatch.context() as patch, caplog.at_level("INFO"):
        patch.setattr(classical_folds, "run", compute_and_change)
        with pytest.raises(
            UserError, match="run.* was moved, removed or replaced while this command"
        ):
            damages.run(world[1], workdir)
    assert f"files: {workdir}" not in caplog.text
    if change in (_move, shutil.rmtree):
        assert not workdir.exists()
    damages.run(world[1], workdir)
    assert_as_first(world, workdir)


def test_a_fold_that_goes_away_is_missed(world, workdir, monkeypatch):
    (workdir / FOLD).unlink()
    compute, other = classical_folds.run, workdir / KERNEL / "repeat0_fold1.json"

    def compute_and_remove(*arguments, **options):
        other.unlink()
        return compute(*arguments, **options)

    monkeypatch.setattr(classical_folds, "run", compute_and_remove)
    with pytest.raises(
        UserError, match="1 of 3 folds that this command wrote are not there any more"
    ):
        damages.run(world[1], workdir)


@pytest.mark.parametrize("name", ["repeat0_fold1.json", "instance_weights.csv", "table.md"])
def test_a_full_disk_ends_the_command_and_leaves_no_half_file(world, tmp_path, monkeypatch, name):
    workdir, replacing = tmp_path / "run", files.replacing

    def replacing_or_full(path):
        if os.path.basename(path) == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replacing(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "replacing", replacing_or_full)
        with pytest.raises(UserError, match="run.* cannot be written: No space left on device"):
            damages.run(world[1], workdir)
    assert not list(workdir.rglob(name)) and not list(workdir.rglob("*.part"))
    damages.run(world[1], workdir)
    assert_as_first(world, workdir)


def test_too_many_open_files_are_no_damage(world, workdir, monkeypatch):
    def refuse(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    before = damages.contents(workdir)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="Too many open files"):
        patch.setattr(files, "open_regular", refuse)
        config_record.refuse_other(BagOptions(), workdir)
    assert damages.contents(workdir) == before


def test_the_digest_of_a_fold_is_in_its_summary(workdir):
    fold, summary = (json.loads((workdir / name).read_text()) for name in (FOLD, SUMMARY))
    assert summary["made_from"]["repeat0_fold0"] == fold["digest"]

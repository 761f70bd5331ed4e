import importlib
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lossattn_jax import data
from lossattn_jax.checkpoint import run_folder
from lossattn_jax.data.prepare import prepare
from lossattn_jax.errors import UserError
from lossattn_jax.files import records
from reliability import in_process

TOOL = Path(__file__).parents[3] / "shared" / "tools" / "cifar10_to_tfds.py"

# Runs the command with TFDS' downloads failing as they do without a network.
_OFFLINE = """
import runpy, sys
import requests
import tensorflow_datasets as tfds

def refuse(self, urls):
    raise requests.ConnectionError("long story", request=requests.Request("GET", "https://far.org/a"))

tfds.download.DownloadManager.download_and_extract = refuse
tfds.download.DownloadManager.download = refuse
sys.argv = ["prepare", *sys.argv[1:]]
runpy.run_module("lossattn_jax.data.prepare", run_name="__main__")
"""


_PREPARE = """
import sys
import tensorflow_datasets
from lossattn_jax import data
from lossattn_jax.data import legible_digits
from lossattn_jax.data.prepare import prepare

legible_digits.split_digits(0)
print("ready", flush=True)
prepare("digit_scenes", sys.argv[1], builder_kwargs={"num_train": 400, "num_test": 50})
spec = data.get_spec("digit_scenes")
print(*[data.load(spec, split, sys.argv[1]).digest() for split in ("train", "test")])
"""


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_damaged_copy_is_to_be_removed(digits_dir, tmp_path, split):
    copy = Path(shutil.copytree(digits_dir, tmp_path / "copy"))
    (shard,) = copy.glob(f"digit_scenes/*/*-{split}.array_record*")
    shard.unlink()
    with pytest.raises(
        UserError, match=f"{shard} cannot be read .*; .* remove the folder {copy}/dig"
    ):
        prepare("digit_scenes", str(copy))


def test_a_second_call_finds_what_is_there(digits_dir, monkeypatch):
    import lossattn_jax.data.prepare as module

    def build(*args):
        raise AssertionError("built again")

    monkeypatch.setattr(module, "_build", build)
    folder = Path(prepare("digit_scenes", digits_dir))
    assert folder == Path(digits_dir) / "digit_scenes" / "1.0.0"
    assert {"cache_train.npz", "cache_test.npz"} <= {path.name for path in folder.iterdir()}
    assert list(folder.glob("*.array_record*"))


def test_the_same_scenes_are_prepared_again(digits_dir, digits_spec, tmp_path):
    prepare("digit_scenes", str(tmp_path), builder_kwargs={"num_train": 60, "num_test": 21})
    for split in ("train", "test"):
        one, two = (data.load(digits_spec, split, folder) for folder in (digits_dir, str(tmp_path)))
        np.testing.assert_array_equal(one.images, two.images)
        np.testing.assert_array_equal(one.labels, two.labels)


def test_other_settings_than_those_of_the_data_set_are_refused(tmp_path):
    sizes = {"num_train": 4, "num_test": 2}
    folder = prepare("digit_scenes", str(tmp_path), builder_kwargs=sizes)
    assert prepare("digit_scenes", str(tmp_path), builder_kwargs=sizes) == folder
    assert prepare("digit_scenes", str(tmp_path)) == folder
    for settings in ({**sizes, "num_test": 3}, {**sizes, "seed": 1}):
        with pytest.raises(
            UserError, match=r"was made with other settings \((num_test 2|seed None)"
        ):
            prepare("digit_scenes", str(tmp_path), builder_kwargs=settings)


def test_what_killed_ones_left_goes_and_the_settings_are_kept(tmp_path):
    sizes = {"num_train": 4, "num_test": 2}
    parent = tmp_path / "digit_scenes"
    for name in ("incomplete.AAAAAA_1.0.0", "incomplete.BBBBBB_1.0.0"):
        (parent / name).mkdir(parents=True)
        (parent / name / "digit_scenes-train.array_record-00000-of-00001").write_bytes(b"half")
    (parent / "preparing.json").write_text("{")
    (parent / f".preparing.json.{'0' * 16}.part").write_text("{")
    folder = prepare("digit_scenes", str(tmp_path), builder_kwargs=sizes)
    assert [path.name for path in parent.iterdir()] == ["1.0.0"]
    assert records.read(Path(folder) / "prepared.json").made_from == sizes


def test_of_two_at_once_the_second_is_refused_before_the_work(tmp_path, monkeypatch):
    module = importlib.import_module("lossattn_jax.data.prepare")
    monkeypatch.setattr(module, "_build", lambda *_: pytest.fail("built"))
    with run_folder.lock_workdir(tmp_path / "digit_scenes", beside=True):
        with pytest.raises(UserError, match="digit_scenes is being written by another command"):
            prepare("digit_scenes", str(tmp_path))
    assert not any((tmp_path / "digit_scenes").iterdir())


def test_what_another_process_has_prepared_meanwhile_is_taken(digits_dir, tmp_path, monkeypatch):
    module = importlib.import_module("lossattn_jax.data.prepare")
    monkeypatch.setattr(module, "_build", lambda *_: pytest.fail("built"))
    alone = module.run_folder.lock_workdir

    def wait(folder, beside):
        shutil.copytree(digits_dir, tmp_path, dirs_exist_ok=True)
        return alone(folder, beside=beside)

    monkeypatch.setattr(module.run_folder, "lock_workdir", wait)
    assert prepare("digit_scenes", str(tmp_path)) == str(tmp_path / "digit_scenes" / "1.0.0")


def test_a_full_disk_is_a_sentence_and_leaves_no_data_set(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = {"num_train": 60, "num_test": 2}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # less than the first shard
        with pytest.raises(UserError, match="could not be prepared .*large.*; make room or name"):
            prepare("digit_scenes", str(tmp_path), builder_kwargs=sizes)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("digit_scenes*"))


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path):
    """Each second killed one is followed by one that ends; it has the data of one that was not killed."""
    generator = random.Random(21)
    whole = _start(tmp_path / "whole")
    began = time.monotonic()
    expected, _ = whole.communicate()
    seconds = time.monotonic() - began
    assert whole.returncode == 0
    digests = expected.splitlines()[-1]
    for number in range(6):
        folder = tmp_path / str(number // 2)
        killed = _start(folder)
        time.sleep(generator.uniform(0, seconds))
        killed.kill()
        killed.communicate()
        if number % 2:
            again = _start(folder)
            output, errors = again.communicate()
            assert again.returncode == 0 and output.splitlines()[-1] == digests, errors
            assert [path.name for path in (folder / "digit_scenes").iterdir()] == ["1.0.0"]
            assert not list(folder.rglob("*.part"))
            assert list(folder.rglob("prepared.json"))


def _start(folder):
    """Starts to prepare a small data set; the process has TFDS, and says `ready` just before."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PREPARE, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=in_process.ROOT,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_folder_that_cannot_be_used_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="digit_scenes could not be prepared in .*file"):
        prepare("digit_scenes", str(tmp_path / "file"))


def test_the_command_says_where_the_data_set_is(digits_dir, tmp_path):
    flags = ["--dataset=digit_scenes", f"--data_dir={digits_dir}"]
    done = in_process.run(["-m", "lossattn_jax.data.prepare", *flags], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"digit_scenes is ready in {digits_dir}/digit_scenes/1.0.0\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--dataset=mnist"], "dataset is 'mnist', but must be one of: digit_scenes, cifar10, "),
        ([], "--dataset is missing; allowed are"),
        (["--dataset=cifar10", "--extra"], "no 'extra' split"),
    ],
)
def test_mistakes_end_in_a_sentence(flags, sentence, tmp_path):
    done = in_process.run(["-m", "lossattn_jax.data.prepare", *flags], tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("cifar10", "cifar10"),
        pytest.param("coco", "coco/2017", marks=pytest.mark.slow),
        pytest.param("svhn_full", "svhn_full/plain", marks=pytest.mark.slow),
    ],
)
def test_a_failed_download_ends_in_a_sentence(name, folder, tmp_path, run_python):
    done = run_python("-c", _OFFLINE, f"--dataset={name}", f"--data_dir={tmp_path}")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert f"data set {name} could not be prepared in {tmp_path}/{folder} (" in last
    assert "far.org cannot be reached" in last


@pytest.mark.parametrize(
    ("name", "package", "called"),
    [
        ("cifar10", "tensorflow", "TensorFlow"),
        ("coco", "tensorflow", "TensorFlow"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    name, package, called, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    arguments = ["-m", "lossattn_jax.data.prepare", f"--dataset={name}", "--data_dir=new"]
    done = in_process.run(arguments, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: data set {name} is prepared with {called}, which is not installed: "
        "pip install 'lossattn_jax[prepare]'.\n"
    )
    assert not (tmp_path / "new").exists()


# Prepares and reads where neither TensorFlow nor h5py nor PyTorch is found.
_WITHOUT = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, *rest):
        hidden = name.partition(".")[0] in ("tensorflow", "h5py", "torch")
        return None if hidden else self.finder.find_spec(name, *rest)

sys.meta_path[:] = map(Without, sys.meta_path)
from lossattn_jax import data
from lossattn_jax.data.prepare import prepare

prepare("digit_scenes", sys.argv[1], builder_kwargs={"num_train": 20, "num_test": 10})
prepare("tiny_imagenet", sys.argv[1], archives=sys.argv[2])
for name in ("digit_scenes", "tiny_imagenet"):
    print(len(data.open_dataset(data.get_spec(name), "train", sys.argv[1], mode="stream")))
"""


def test_our_own_data_sets_need_no_tensorflow(tmp_path, run_python):
    from tests.support import tiny_tiny_imagenet

    archives = tmp_path / "archives"
    archives.mkdir()
    tiny_tiny_imagenet.write(archives / tiny_tiny_imagenet.NAME, tiny_tiny_imagenet.files())
    done = run_python("-c", _WITHOUT, tmp_path / "data", archives)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["20", "12"]


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    """Real CIFAR-10 images, prepared by TFDS' own builder: 12 and 4 of every class."""
    if not TOOL.exists():
        pytest.skip("needs the CIFAR-10 images and the tool in ../shared of the repository")
    folder = tmp_path_factory.mktemp("genuine")
    command = [sys.executable, TOOL, "--data_dir", folder]
    command += ["--train_per_class", "12", "--test_per_class", "4"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.slow  # TFDS builds the set with TensorFlow
def test_genuine_cifar10(genuine, run_python):
    spec = data.get_spec("cifar10")
    folder = Path(prepare("cifar10", str(genuine)))  # found, not downloaded
    names = (folder / "label.labels.txt").read_text().split()
    assert tuple(names) == spec.class_names
    for split, per_class in (("train", 12), ("test", 4)):
        dataset = data.load(spec, split, str(genuine))
        assert dataset.images.shape == (10 * per_class, 32, 32, 3)
        assert dataset.boxes is None
        np.testing.assert_array_equal(np.bincount(dataset.labels), [per_class] * 10)
        pixels = dataset.images.reshape(-1, 3) / 255
        np.testing.assert_allclose(pixels.mean(0), spec.mean, atol=0.08)
        np.testing.assert_allclose(pixels.std(0), spec.std, atol=0.05)
        stream = data.open_dataset(spec, split, str(genuine), "stream")
        (batch,) = stream.eval_batches(batch_size=10 * per_class)
        np.testing.assert_array_equal(batch["image"], dataset.images)

    for cache in folder.glob("cache_*"):
        cache.unlink()
    script = (
        "import sys\nfrom lossattn_jax import data\n"
        "data.load(data.get_spec('cifar10'), 'train', sys.argv[1])\n"
        "assert 'tensorflow' not in sys.modules"
    )
    done = run_python("-c", script, genuine)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_decoded_images_are_those_of_tfds(genuine):
    import tensorflow_datasets as tfds

    theirs = tfds.data_source("cifar10", split="test", data_dir=str(genuine))
    ours = data.open_source(data.get_spec("cifar10"), "test", str(genuine))
    for index in range(len(theirs)):
        np.testing.assert_array_equal(ours[index]["image"], theirs[index]["image"])
        assert ours[index]["label"] == theirs[index]["label"]


def test_a_tfrecord_copy_is_told(digits_dir, tmp_path):
    copy = Path(shutil.copytree(digits_dir, tmp_path / "copy"))
    (info,) = copy.glob("digit_scenes/*/dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="could not be prepared in"):
        prepare("digit_scenes", str(copy))

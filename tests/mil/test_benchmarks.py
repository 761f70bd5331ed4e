"""The benchmarks: read from every kind of file, fetched from a local server, and told from others."""

import dataclasses
import functools
import http.server
import io
import logging
import os
import pathlib
import tarfile
import threading
import zipfile

import numpy as np
import pytest
import scipy.io

from lossattn_jax.data.bags import benchmarks
from lossattn_jax.data.bags.bag_files import write_csv
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.benchmarks import BENCHMARKS, difference, download, load
from lossattn_jax.errors import UserError

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "data" / "mil"


def few_bags(seed=0, lengths=(3, 1, 4, 2), whole=True):
    """Four bags of five features, the last two positive."""
    generator = np.random.default_rng(seed)
    bags = [generator.normal(0, 90, (length, 5)) for length in lengths]
    bags = [np.rint(bag) if whole else bag for bag in bags]
    return BagDataset.from_bags(bags, [0, 0, 1, 1], ids=["N1", "N2", "M1", "M2"])


def described(dataset, url="", **changes):
    """The `Benchmark` that a data set is."""
    exact = benchmarks.exact_digest(dataset)
    values = {
        "name": "musk1",
        "bags": len(dataset),
        "instances": len(dataset.instances),
        "features": dataset.instances.shape[1],
        "positive": int(dataset.labels.sum()),
        "url": url,
        "files": ("clean1.data", "clean1.data.Z"),
        "lengths": benchmarks.lengths_digest(dataset),
        "exact": exact,
        "moments": () if exact else tuple(benchmarks.feature_moments(dataset)),
    }
    return benchmarks.Benchmark(**{**values, **changes})


def uci_text(dataset):
    lines = []
    for bag_id, label, bag in zip(dataset.ids, dataset.labels, dataset.bags, strict=True):
        for number, values in enumerate(bag):
            features = ",".join(f"{value:.0f}" for value in values)
            lines.append(f"{bag_id},{bag_id}+{number},{features},{label}.\n")
    return "".join(lines)


def zip_of(**files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in files.items():
            packed.writestr(name, text)
    return content.getvalue()


def tgz_of(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as packed:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
    return content.getvalue()


def matlab_bytes(dataset):
    content = io.BytesIO()
    bag_ids = np.repeat(np.arange(1, len(dataset) + 1), dataset.lengths)
    labels = 2 * np.repeat(dataset.labels, dataset.lengths) - 1
    variables = {"features": dataset.instances, "bag_ids": bag_ids[None], "labels": labels[None]}
    scipy.io.savemat(content, variables)
    return content.getvalue()


@pytest.fixture
def served(tmp_path):
    """A folder, and the address of a server on this machine that gives its files."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_benchmarks_are_those_of_the_papers():
    counts = {b.name: (b.bags, b.instances, b.features, b.positive) for b in BENCHMARKS.values()}
    assert counts == {
        "musk1": (92, 476, 166, 47),
        "musk2": (102, 6598, 166, 39),
        "fox": (200, 1320, 230, 100),
        "tiger": (200, 1220, 230, 100),
        "elephant": (200, 1391, 230, 100),
    }


@pytest.mark.parametrize("name", BENCHMARKS)
def test_real_benchmarks_match_their_fingerprints(name, caplog):
    if not (SHARED / f"{name}.csv.gz").exists():
        pytest.skip(f"there is no {name}.csv.gz in {SHARED}")
    dataset = load(name, SHARED)
    assert not caplog.records and dataset.name == name and dataset.classes == (0, 1)
    others = [other for other in BENCHMARKS.values() if other.name != name]
    assert all(difference(dataset, other) for other in others)
    shift = np.zeros_like(dataset.instances)
    shift[:, 0] = 1
    changed = dataclasses.replace(dataset, instances=dataset.instances + shift)
    assert difference(changed, BENCHMARKS[name]) == "other features"


def test_a_fingerprint_does_not_depend_on_the_order():
    dataset = few_bags()
    other = dataset.select([2, 0, 3, 1])
    other = BagDataset.from_bags([bag[::-1] for bag in other.bags], other.labels)
    assert benchmarks.exact_digest(other) == benchmarks.exact_digest(dataset)
    assert difference(other, described(dataset)) is None


def test_a_fingerprint_of_rounded_features():
    dataset = few_bags(whole=False)
    benchmark = described(dataset)
    assert benchmark.exact is None
    rounded = [np.array([[float(f"{v:.6g}") for v in row] for row in bag]) for bag in dataset.bags]
    assert difference(BagDataset.from_bags(rounded, dataset.labels), benchmark) is None
    for factor in (1.001, -1):
        changed = dataclasses.replace(dataset, instances=dataset.instances * factor)
        assert difference(changed, benchmark) == "other features"


def test_feature_moments_by_hand():
    dataset = BagDataset.from_bags([[[1, -2]], [[3, 0], [-1, 4]]], [0, 1])
    negative = [1, 0.5, 3, 2.5, 5, 4.5]
    positive = [7, 1.5 + 4, 8, 2 + 4, 26, 5 + 16]
    expected = np.array([*negative, *positive]) / 3  # for each of three instances
    np.testing.assert_allclose(benchmarks.feature_moments(dataset), expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bags": 5}, "4 bags, not 5"),
        ({"instances": 11}, "10 instances, not 11"),
        ({"features": 6}, "5 features, not 6"),
        ({"positive": 1}, "2 positive bags, not 1"),
        ({"lengths": ""}, "bags of other lengths"),
        ({"exact": ""}, "other features"),
    ],
)
def test_differences(changes, words):
    assert difference(few_bags(), described(few_bags(), **changes)) == words


def test_one_changed_label_is_a_difference():
    dataset = few_bags(lengths=(2, 1, 2, 1))
    swapped = dataclasses.replace(dataset, labels=[1, 0, 0, 1])  # the lengths are the same
    assert difference(swapped, described(dataset)) == "other features"


@pytest.mark.parametrize("kind", ["csv.gz", "csv", "data", "mat"])
def test_load_takes_any_of_the_files(tmp_path, caplog, monkeypatch, kind):
    dataset = few_bags()
    benchmark = described(dataset, files=("clean1.data", "clean1.data.Z", "musk1norm_matlab.mat"))
    monkeypatch.setitem(BENCHMARKS, "musk1", benchmark)
    if kind == "data":
        (tmp_path / "clean1.data").write_text(uci_text(dataset))
    elif kind == "mat":
        (tmp_path / "musk1norm_matlab.mat").write_bytes(matlab_bytes(dataset))
    else:
        write_csv(dataset, tmp_path / f"musk1.{kind}")
    found = load("musk1", tmp_path)
    assert found.name == "musk1" and not caplog.records
    np.testing.assert_array_equal(found.instances, dataset.instances)
    np.testing.assert_array_equal(found.labels, dataset.labels)


def test_load_warns_of_a_file_that_is_not_the_benchmark(tmp_path, caplog):
    write_csv(few_bags(), tmp_path / "fox.csv")
    with caplog.at_level(logging.WARNING):
        dataset = load("fox", str(tmp_path))
    (record,) = caplog.records
    assert "fox.csv is not fox as published: it has 4 bags, not 200" in record.getMessage()
    assert len(dataset) == 4 and dataset.name == "fox"


def test_load_says_where_a_file_belongs(tmp_path):
    with pytest.raises(UserError) as caught:
        load("musk2", tmp_path)
    for words in (str(tmp_path), "musk2.csv.gz", "clean2.data.Z", "download=True", "uci.edu"):
        assert words in str(caught.value)
    with pytest.raises(UserError, match="benchmark 'wolf' is unknown; there are musk1, musk2, fox"):
        load("wolf", tmp_path)


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_download_of_a_zip(served, tmp_path, caplog, scheme):
    folder, address = served
    dataset = few_bags()
    files = {"musk/clean1.info": "words", "musk/clean1.data": uci_text(dataset)}
    (folder / "musk+version+1.zip").write_bytes(zip_of(**files))
    url = f"{address if scheme == 'http' else folder.as_uri()}/musk+version+1.zip"
    with caplog.at_level(logging.INFO):
        found = download("musk1", tmp_path / "new" / "data", described(dataset, url))
    np.testing.assert_array_equal(found.instances, dataset.instances)
    assert found.name == "musk1" and found.ids == dataset.ids
    assert os.listdir(tmp_path / "new" / "data") == ["clean1.data"]
    assert (tmp_path / "new" / "data" / "clean1.data").read_text() == uci_text(dataset)
    assert url in caplog.text


def test_load_downloads_what_is_not_there(served, tmp_path, monkeypatch):
    folder, address = served
    dataset = few_bags(whole=False)
    name = "fox_100x100_matlab.mat"
    other = {"MIL/Tiger/tiger_100x100_matlab.mat": b"x", f"MIL/Fox/{name}": matlab_bytes(dataset)}
    (folder / "all.tgz").write_bytes(tgz_of(other))
    benchmark = described(dataset, f"{address}/all.tgz", name="fox", files=(name,))
    monkeypatch.setitem(BENCHMARKS, "fox", benchmark)
    found = load("fox", tmp_path / "data", download=True)
    np.testing.assert_array_equal(found.instances, dataset.instances)
    (folder / "all.tgz").unlink()
    again = load("fox", tmp_path / "data", download=True)  # from the folder
    np.testing.assert_array_equal(again.instances, dataset.instances)
    assert again.classes == (-1, 1) and os.listdir(tmp_path / "data") == [name]


def archives():
    text = uci_text(few_bags())
    good = zip_of(**{"clean1.data": text})
    broken = bytearray(good)
    broken[60] ^= 0xFF
    tgz = tgz_of({"clean1.data": text.encode() * 50})
    return {
        "other features": (
            zip_of(**{"clean1.data": uci_text(few_bags(1))}),
            "it has other features",
        ),
        "no such file": (zip_of(**{"clean2.data": text}), "holds no clean1.data"),
        "no archive": (b"<html>Not found</html>", "is damaged"),
        "nothing": (b"", "is damaged"),
        "cut zip": (good[:-30], "is damaged"),
        "changed zip": (bytes(broken), "is damaged"),
        "cut tgz": (tgz[: len(tgz) // 2], "is damaged"),
        "no bags": (zip_of(**{"clean1.data": "a,b,c\n"}), "line 1 of .* has 3 fields"),
        "no reply": (None, "could not be fetched .*; fetch clean1.data by hand"),
    }


@pytest.mark.parametrize("kind", archives())
@pytest.mark.parametrize("before", [False, True])
def test_a_failed_download_leaves_nothing_behind(served, tmp_path, kind, before):
    folder, address = served
    content, sentence = archives()[kind]
    if content is not None:
        (folder / "musk.zip").write_bytes(content)
    data = tmp_path / "data"
    if before:
        data.mkdir()
        (data / "clean1.data").write_text("mine")
    with pytest.raises(UserError, match=sentence) as caught:
        download("musk1", data, described(few_bags(), f"{address}/musk.zip"))
    assert "\n" not in str(caught.value)
    assert data.exists() == before
    if before:
        assert os.listdir(data) == ["clean1.data"] and (data / "clean1.data").read_text() == "mine"


def test_a_download_that_ends_early(served, tmp_path, monkeypatch):
    folder, address = served
    (folder / "musk.zip").write_bytes(bytes(100_000))

    def short(self):
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.wfile.write(bytes(70_000))

    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "do_GET", short)
    with pytest.raises(UserError, match="could not be fetched"):
        download("musk1", tmp_path / "data", described(few_bags(), f"{address}/musk.zip"))
    assert not (tmp_path / "data").exists()


def test_a_folder_that_cannot_be_used(served, tmp_path):
    folder, address = served
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="musk1 cannot be kept in .*file"):
        download("musk1", tmp_path / "file" / "data", described(few_bags(), f"{address}/a.zip"))
    with pytest.raises(UserError, match="could not be fetched"):
        download("musk1", tmp_path / "data", described(few_bags(), "no address"))


def test_a_copy_with_other_words_has_the_same_positive_class(tmp_path, monkeypatch):
    dataset = few_bags()
    monkeypatch.setitem(BENCHMARKS, "musk1", described(dataset))
    words = np.where(dataset.labels == 1, "musk", "non-musk")
    write_csv(BagDataset.from_bags(dataset.bags, words, dataset.ids), tmp_path / "musk1.csv")
    found = load("musk1", tmp_path)
    assert found.classes == ("non-musk", "musk") and found.positive == "musk"
    np.testing.assert_array_equal(found.labels, dataset.labels)
    other = BagDataset.from_bags([bag + 1 for bag in dataset.bags], words, dataset.ids)
    write_csv(other, tmp_path / "musk1.csv")
    assert load("musk1", tmp_path).positive is None

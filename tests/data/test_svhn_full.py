"""The data set `svhn_full`, from archives of our own in the published format."""

import gzip
import io
import os
import tarfile

import h5py
import numpy as np
import pytest

from lossattn_jax import data
from lossattn_jax.data import archives, svhn_full
from lossattn_jax.data.digit_struct import Digit, DigitStruct
from lossattn_jax.data.prepare import prepare
from lossattn_jax.errors import UserError
from tests.support import tiny_svhn_full as tiny

SPEC = tiny.SPEC


def _found(folder, spec=SPEC):
    """The decoded examples by split and file name."""
    found = {}
    for split in ("train", "test"):
        source = data.open_source(spec, split, folder)
        for index in range(len(source)):
            found[split, source.records[index]["file_name"].decode()] = source[index]
    return found


def test_what_is_published():
    assert (SPEC.num_train, SPEC.num_test) == (33_402, 13_068)
    assert SPEC.multi_label and not SPEC.flip and SPEC.box_shape == (6, 4)
    extra = data.get_spec("svhn_full", extra=True)
    assert (extra.train_split, extra.num_train) == ("train+extra", 235_755)


def test_labels_and_boxes_are_those_of_the_digits_in_sight(svhn_full_dir):
    found = _found(svhn_full_dir)
    assert set(found) == {
        (split, name) for split in ("train", "test") for name in tiny.IMAGES[split]
    }
    for (split, name), example in found.items():
        digits = tiny.boxes(split, name)
        shown = [label for label, _ in digits]
        assert np.flatnonzero(example["label"]).tolist() == sorted(set(shown))
        assert example["box_label"].tolist() == shown + [-1] * (6 - len(shown))
        expected = np.array([box for _, box in digits])
        np.testing.assert_allclose(example["box"][: len(shown)], expected, atol=1e-6)
        assert (example["box"][len(shown) :] == np.array(data.NO_BOX, np.float32)).all()
    # One digit of train/4.png lies beside the image, and one of train/2.png sticks out of it.
    assert found["train", "4.png"]["box_label"].tolist()[:3] == [7, 7, -1]
    np.testing.assert_allclose(found["train", "2.png"]["box"][0], [0.05, 0, 1, 0.5])


def test_images_are_resized(svhn_full_dir):
    for (_, name), example in _found(svhn_full_dir).items():
        image = example["image"].astype(int)
        assert image.shape == (64, 64, 3)
        assert np.abs(image[..., 2] - 10 * int(name[0])).max() <= 1
        ramp = (np.arange(64) + 0.5) * 4
        assert np.abs(image[..., 0] - ramp[:, None]).max() <= 12
        assert np.abs(image[..., 1] - ramp[None]).max() <= 12


def test_both_modes_give_the_same_batches(svhn_full_dir):
    for split, count in (("train", 4), ("test", 2)):
        memory, stream = (
            data.open_dataset(SPEC, split, svhn_full_dir, mode=mode)
            for mode in ("memory", "stream")
        )
        assert len(memory) == len(stream) == count
        for one, other in zip(
            memory.eval_batches(batch_size=3), stream.eval_batches(batch_size=3), strict=True
        ):
            assert one.keys() == other.keys()
            assert one["box"].shape == (3, 6, 4) and one["box_label"].shape == (3, 6)
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])


def test_the_extra_images_are_a_copy_of_their_own(svhn_full_dir, tmp_path):
    spec = data.get_spec("svhn_full", extra=True)
    with pytest.raises(data.DatasetNotFound, match="in .*/svhn_full/extra; .*=svhn_full --extra"):
        data.open_source(spec, "train", svhn_full_dir)
    (tmp_path / "archives").mkdir()
    tiny.write(tmp_path / "archives")
    folder = str(tmp_path / "data")
    prepare("svhn_full", folder, extra=True, archives=str(tmp_path / "archives"))
    train = data.load(spec, "train", folder)
    assert len(train) == 5
    assert train.box_labels[4].tolist() == [4, -1, -1, -1, -1, -1]
    plain = data.load(SPEC, "train", svhn_full_dir)
    np.testing.assert_array_equal(train.images[:4], plain.images)


def test_numbers_of_one_digit_and_of_several():
    struct = DigitStruct(io.BytesIO(tiny.struct(tiny.IMAGES["train"])))
    assert struct.names == ["1.png", "2.png", "3.png", "4.png"]
    assert struct.digits("2.png") == [Digit(5, -4, 2, 24, 60)]
    assert struct.digits("1.png")[1] == Digit(0, 25, 6, 10, 20)
    assert struct.digits("1.png")[1].corners() == (6, 25, 26, 35)


def _changed(change):
    """A `digitStruct.mat` of the training images after `change(root)`."""
    file = io.BytesIO(tiny.struct(tiny.IMAGES["train"]))
    with h5py.File(file, "r+") as root:
        change(root)
    return file.getvalue()


def _group(root, place):
    return root[root["digitStruct/bbox"][place, 0]]


def _drop(path):
    return lambda root: root.__delitem__(path)


def _drop_width(root):
    del _group(root, 1)["width"]


def _label_of_eleven(root):
    _group(root, 1)["label"][...] = 11


def _no_number(root):
    _group(root, 1)["top"][...] = np.nan


def _fewer_labels(root):
    group = _group(root, 0)
    labels = group["label"][:1]
    del group["label"]
    group["label"] = labels


def _no_references(root):
    del root["digitStruct/name"]
    root["digitStruct/name"] = np.zeros((4, 1))


def _a_name_less(root):
    names = root["digitStruct/name"][1:]
    del root["digitStruct/name"]
    root["digitStruct/name"] = names


@pytest.mark.parametrize(
    ("struct", "reason"),
    [
        (b"MATLAB 5.0 MAT-file", "malformed: its names cannot be read"),
        (_changed(_drop("digitStruct")), "malformed: its names cannot be read"),
        (_changed(_drop("digitStruct/bbox")), "malformed: its names cannot be read"),
        (_changed(_no_references), "malformed: its names cannot be read"),
        (_changed(_a_name_less), "malformed: it has 3 names, but 4 boxes"),
        (_changed(_drop_width), "malformed: the digits of 2.png cannot be read"),
        (_changed(_label_of_eleven), "malformed: the digits of 2.png cannot be read"),
        (_changed(_no_number), "malformed: the digits of 2.png cannot be read"),
        (_changed(_fewer_labels), "malformed: the digits of 1.png cannot be read"),
        (tiny.struct(tiny.IMAGES["train"])[:2000], "malformed: "),
        (None, "there is no digitStruct.mat in the archive"),
    ],
)
def test_a_malformed_struct_ends_in_a_sentence(struct, reason, tmp_path):
    content = tiny.files("train")
    del content["train/digitStruct.mat"]
    if struct is not None:
        content["train/digitStruct.mat"] = struct
    with pytest.raises(UserError, match=f"archive {tmp_path} cannot be used .*{reason}") as caught:
        with archives.reading(tmp_path):
            list(svhn_full.examples(io.BytesIO(tiny.archive(content))))
    assert "\n" not in str(caught.value)


def test_an_archive_that_is_cut_off_or_lacks_an_image_is_told(tmp_path):
    content = tiny.files("train", last=False)
    whole = tiny.archive(content)
    del content["train/3.png"]
    for packed, reason in (
        (tiny.archive(content), "it lacks 1 images, such as 3.png"),
        (whole[: len(whole) // 2], ""),
        (b"<html>", "Not a gzipped file"),
        (tiny.archive({**content, "train/3.png": b"no png"}), "cannot identify image file"),
    ):
        with pytest.raises(UserError, match=f"cannot be used .*{reason}"):
            with archives.reading(tmp_path):
                list(svhn_full.examples(io.BytesIO(packed)))


def test_paths_in_an_archive_lead_nowhere(tmp_path):
    content = {f"../../{name}": text for name, text in tiny.files("train").items()}
    found = list(svhn_full.examples(io.BytesIO(tiny.archive(content))))
    assert [one["file_name"] for one in found] == list(tiny.IMAGES["train"])


def _packed(members):
    """A tar.gz archive of such members, each with its content."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as packed:
        for member, text in members:
            packed.addfile(member, io.BytesIO(text))
    return file.getvalue()


def _member(name, text=b"", kind=tarfile.REGTYPE, link=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(text)
    return member, text


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_only_regular_files_of_an_archive_are_read(kind, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(tiny.files("train")["train/1.png"])
    content = tiny.files("train")
    members = [_member(name, text) for name, text in content.items() if name != "train/1.png"]
    members.append(_member("train/1.png", kind=kind, link=str(secret)))
    with pytest.raises(ValueError, match="it lacks 1 images, such as 1.png"):
        list(svhn_full.examples(io.BytesIO(_packed(members))))


def test_a_file_that_claims_to_be_large_is_not_read(monkeypatch):
    content = tiny.files("train")
    monkeypatch.setattr(archives, "MOST_IMAGE_BYTES", 1 << 20)
    content["train/2.png"] = bytes(1 << 21)
    with pytest.raises(ValueError, match="its file train/2.png has more than 1 MiB"):
        list(svhn_full.examples(io.BytesIO(tiny.archive(content))))
    stream = io.BytesIO(b"not read")
    with pytest.raises(ValueError, match="its file a has more than 1024 MiB"):
        archives.content(stream, "a", archives.MOST_BYTES + 1)
    assert stream.tell() == 0
    with pytest.raises(ValueError, match="its file a has more than 0 MiB"):  # a size that is a lie
        archives.content(stream, "a", 1, 4)


def test_a_header_that_claims_gigabytes_is_not_read():
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, (1 << 33) - 1
    file = io.BytesIO(gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)))
    with pytest.raises(ValueError, match="a header in it claims 8589934592 bytes"):
        list(svhn_full.examples(file))


def _unstored_names(root):
    del root["digitStruct/name"]
    root.create_dataset("digitStruct/name", (1 << 40,), "u1", chunks=(1 << 16,))


def test_a_struct_that_unpacks_to_terabytes_is_malformed():
    content = tiny.files("train")
    content["train/digitStruct.mat"] = _changed(_unstored_names)
    with pytest.raises(ValueError, match="malformed: its names cannot be read"):
        list(svhn_full.examples(io.BytesIO(tiny.archive(content))))


def test_a_fifo_in_the_place_of_an_archive_is_refused(tmp_path):
    os.mkfifo(tmp_path / "train.tar.gz")
    with pytest.raises(UserError, match=f"archive {tmp_path}/train.tar.gz is not a regular file"):
        prepare("svhn_full", str(tmp_path / "data"), archives=str(tmp_path))

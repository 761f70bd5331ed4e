"""The slides of `digit_slides`: what is on them, their features, their folder, and the source."""

import hashlib
import json

import h5py
import numpy as np
import pytest
from PIL import Image

from lossattn_jax.config.options import BagOptions
from lossattn_jax.data.bags import digit_slides, prepared_bags, sources, tile_features
from lossattn_jax.data.bags.bag_folder import open_bags
from lossattn_jax.data.prepare import prepare
from lossattn_jax.errors import UserError
from lossattn_jax.mil import experiment
from reliability import in_process
from tests.mil.test_folder_source import small

SETTINGS = {"slides": 20, "seed": 1, "sides": (8, 12)}
TILE = digit_slides.TILE


@pytest.fixture(scope="module")
def slides():
    return list(digit_slides.draw_slides(digit_slides.Options(**SETTINGS)))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    assert prepare("digit_slides", str(folder), builder_kwargs=SETTINGS) == str(
        folder / "digit_slides"
    )
    return folder


def test_a_slide_is_positive_where_the_target_occurs(slides):
    for slide in slides:
        np.testing.assert_array_equal(slide.labels, slide.digits == 3)
        assert slide.labels.any() == (slide.label == "positive")
        assert slide.labels.mean() < 0.2
        assert (slide.digits >= 0).sum() >= 2
    for first in range(0, len(slides), digit_slides.SLIDES_PER_WRITER):
        own = slides[first : first + digit_slides.SLIDES_PER_WRITER]
        assert sorted(slide.label for slide in own) == ["negative"] * 2 + ["positive"] * 2
        assert len({(slide.writer, slide.split) for slide in own}) == 1
    assert len({slide.writer for slide in slides}) == 5
    assert {slide.split for slide in slides} == {"train", "validation", "test"}


def test_empty_tiles_are_left_out_and_coordinates_say_where(slides):
    for slide in slides:
        rows, columns = slide.grid
        assert 8 <= min(rows, columns) and max(rows, columns) <= 12
        column, row = slide.coords.T // TILE
        assert (slide.coords % TILE == 0).all()
        assert (row * columns + column == np.sort(row * columns + column)).all()
        assert len(np.unique(slide.coords, axis=0)) == len(slide.tiles) < rows * columns
        assert row.max() < rows and column.max() < columns
        paper = (slide.tiles != digit_slides.GLASS).mean((1, 2))
        assert paper.min() > 0.2
        # Digits lie on paper alone.
        assert paper[slide.digits >= 0].min() > 0.95


def test_a_thumbnail_has_each_tile_in_its_place(slides):
    slide = slides[3]
    whole = slide.thumbnail(1)
    assert whole.shape == (slide.grid[0] * TILE, slide.grid[1] * TILE)
    for tile, (x, y) in zip(slide.tiles, slide.coords, strict=True):
        np.testing.assert_array_equal(whole[y : y + TILE, x : x + TILE], tile)
        whole[y : y + TILE, x : x + TILE] = digit_slides.GLASS
    assert (whole == digit_slides.GLASS).all()
    means = slide.thumbnail(1).reshape(slide.grid[0] * 8, 4, -1, 4).astype(int).sum((1, 3)) // 16
    np.testing.assert_array_equal(slide.thumbnail(4), means)


def test_no_two_writers_share_an_original():
    shared = digit_slides._share_digits(digit_slides.Options())
    sources_ = np.concatenate([digits.sources for digits in shared])
    assert len(np.unique(sources_)) == len(sources_) > 1600
    for digits in shared:
        assert np.bincount(digits.labels, minlength=10).min() >= 3


def test_more_slides_leave_the_first_ones_as_they_are(slides):
    again = list(digit_slides.draw_slides(digit_slides.Options(**{**SETTINGS, "slides": 6})))
    for one, other in zip(slides, again, strict=False):
        np.testing.assert_array_equal(one.tiles, other.tiles)
        assert (one.name, one.label, one.writer) == (other.name, other.label, other.writer)
    other = next(digit_slides.draw_slides(digit_slides.Options(**{**SETTINGS, "seed": 2})))
    assert not np.array_equal(other.tiles, slides[0].tiles)


def test_another_target_makes_slides_positive():
    options = digit_slides.Options(slides=4, target=7, sides=(8, 8))
    for slide in digit_slides.draw_slides(options):
        assert (slide.digits == 7).any() == (slide.label == "positive")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"slides": 0}, "slides of digit_slides is 0, but must be a number from 1 to 160"),
        ({"target": 10}, "target of digit_slides is 10, but must be a number from 0 to 9"),
        ({"sides": (9, 8)}, "sides of digit_slides is 9, but must be a number from 8 to 8"),
        ({"seed": -1}, "seed of digit_slides is -1"),
        ({"pages": 3}, "digit_slides cannot be made so"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        prepare("digit_slides", str(tmp_path), builder_kwargs=settings)
    assert not (tmp_path / "digit_slides").exists()


def by_loops(tile):
    """The network in whole numbers of Python's size, one sum after the other."""
    values = 255 - tile[..., None].astype(np.int64)
    for layer, flat in zip(tile_features._LAYERS, tile_features._weights(), strict=True):
        inputs, kernel = values.shape[-1], layer.kernel
        weights = flat.astype(np.int64).reshape(inputs, kernel, kernel, layer.channels)
        side = -(-len(values) // layer.stride)
        out = np.zeros((side, side, layer.channels), np.int64)
        for row, column in np.ndindex(side, side):
            for i, j in np.ndindex(kernel, kernel):
                y = layer.stride * row + i - kernel // 2
                x = layer.stride * column + j - kernel // 2
                if 0 <= y < len(values) and 0 <= x < len(values):
                    out[row, column] += values[y, x] @ weights[:, i, j]
        values = np.clip(out >> layer.halvings, 0, 255)
    part = len(values) // 4
    sums = [
        values[part * i : part * (i + 1), part * j : part * (j + 1)].sum((0, 1))
        for i, j in np.ndindex(4, 4)
    ]
    return (np.concatenate(sums) / 32).astype(np.float16)


def test_features_are_those_of_whole_numbers():
    tiles = np.random.default_rng(0).integers(0, 256, (300, TILE, TILE)).astype(np.uint8)
    tiles[1], tiles[2] = 0, 255
    features = tile_features.compute_features(tiles)
    assert features.shape == (300, tile_features.WIDTH) and features.dtype == np.float16
    for number in (0, 1, 2, 299):
        np.testing.assert_array_equal(features[number], by_loops(tiles[number]))
    assert not features[2].any()  # of empty glass
    assert len(tile_features.compute_features(tiles[:0])) == 0


def test_every_machine_draws_the_same_slides(slides):
    grey = hashlib.sha256(b"".join(slide.tiles.tobytes() for slide in slides[:4])).hexdigest()
    coords = [slide.coords.astype("<i8").tobytes() for slide in slides[:4]]
    places = hashlib.sha256(b"".join(coords)).hexdigest()
    features = tile_features.compute_features(np.concatenate([s.tiles for s in slides[:4]]))
    numbers = hashlib.sha256(features.astype("<f2").tobytes()).hexdigest()
    assert (grey[:16], places[:16], numbers[:16]) == (
        "a3e16ff33cddfb16",
        "485e1314bfcbbb23",
        "9523984eac745ba5",
    )


def test_the_folder_is_as_a_users_own(data_dir, slides):
    folder = data_dir / "digit_slides"
    bags = open_bags(folder / "slides", folder / "labels.csv", check_values=True)
    assert bags.ids == tuple(slide.name for slide in slides)
    assert bags.groups == tuple(slide.writer for slide in slides)
    assert bags.splits == tuple(slide.split for slide in slides)
    assert bags.classes == ("negative", "positive") and bags.positive == "positive"
    for row, slide in enumerate(slides):
        np.testing.assert_array_equal(bags[row], tile_features.compute_features(slide.tiles))
        np.testing.assert_array_equal(bags.read_coords(row), slide.coords)
        with Image.open(folder / "thumbnails" / f"{slide.name}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), slide.thumbnail(4))
        tiles = sorted((folder / "tiles" / slide.name).glob("*.png"))
        assert len(tiles) == (len(slide.tiles) if slide.split == "test" else 0)
        with h5py.File(folder / "slides" / f"{slide.name}.h5") as file:
            np.testing.assert_array_equal(file["labels"], slide.labels)
            assert file["coords"].attrs["level0_width"] == slide.grid[1] * TILE
            assert file["coords"].attrs["patch_size_level0"] == TILE
    test = next(slide for slide in slides if slide.split == "test")
    (x, y) = test.coords[5]
    with Image.open(folder / "tiles" / test.name / f"{x}_{y}.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), test.tiles[5])


def test_the_source_has_groups_and_instance_labels(data_dir, slides):
    options = BagOptions(folds=2, repeats=1)
    (own,) = sources.experiments("digit_slides", str(data_dir), options)
    bags = own.resident
    assert bags.groups == tuple(slide.writer for slide in slides)
    np.testing.assert_array_equal(
        bags.instance_labels, np.concatenate([slide.labels for slide in slides])
    )
    assert bags.name == "digit_slides" and bags.positive == "positive"
    for split in own.splits:
        groups = np.array(bags.groups)
        assert not set(groups[split.train]) & set(groups[split.test])


def test_the_source_gives_the_numbers_of_its_folder(data_dir, tmp_path):
    shared = ["mi_kernel"], ["final"], small(repeats=1, folds=2)
    folder = data_dir / "digit_slides"
    experiment.run(["digit_slides"], *shared, str(tmp_path / "a"), str(data_dir))
    labels = tmp_path / "labels.csv"
    lines = (folder / "labels.csv").read_text().splitlines()
    labels.write_text("".join(line.rpartition(",")[0] + "\n" for line in lines))  # without split
    experiment.run([str(folder / "slides")], *shared, str(tmp_path / "b"), "", labels=str(labels))
    folds = [sorted((tmp_path / run).glob("*/*/*/repeat*.json")) for run in "ab"]
    assert len(folds[0]) == 2
    for one, other in zip(*folds, strict=True):
        first, second = (json.loads(path.read_text())["bags"] for path in (one, other))
        assert first == second


def test_a_prepared_set_is_kept_and_other_settings_refused(data_dir):
    record = data_dir / "digit_slides" / "prepared.json"
    before = record.stat().st_mtime_ns
    prepare("digit_slides", str(data_dir))
    prepare("digit_slides", str(data_dir), builder_kwargs=SETTINGS)
    assert record.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="other settings .*seed 1 instead of 2"):
        prepare("digit_slides", str(data_dir), builder_kwargs={"seed": 2})
    with pytest.raises(UserError, match="is made in a folder of this machine"):
        prepare("digit_slides", "gs://bucket/data")


def test_what_is_absent_or_damaged_is_said(tmp_path):
    with pytest.raises(UserError, match="prepare --dataset=digit_slides --data_dir="):
        prepared_bags.load("digit_slides", str(tmp_path))
    settings = {"slides": 8, "sides": (8, 8)}
    folder = tmp_path / "digit_slides"
    prepare("digit_slides", str(tmp_path), builder_kwargs=settings)
    with h5py.File(folder / "slides" / "slide_003.h5", "r+") as file:
        file["labels"][0] = 1 - file["labels"][0]
    with pytest.raises(UserError, match=r"slide_003.h5 is not as it was written\); remove"):
        prepared_bags.load("digit_slides", str(tmp_path))
    (folder / "prepared.json").unlink()
    with pytest.raises(UserError, match="it has no prepared.json"):
        prepare("digit_slides", str(tmp_path))


def test_a_stopped_preparation_is_begun_anew(tmp_path, monkeypatch):
    unfinished = tmp_path / ".digit_slides.unfinished"
    unfinished.mkdir()
    (unfinished / "left.h5").write_text("of a killed process")
    settings = {"slides": 4, "sides": (8, 8)}
    folder = prepare("digit_slides", str(tmp_path), builder_kwargs=settings)
    assert not unfinished.exists()
    assert sorted(path.name for path in (tmp_path / "digit_slides").iterdir()) == [
        "labels.csv",
        "prepared.json",
        "slides",
        "thumbnails",
        "tiles",
    ]
    assert folder == str(tmp_path / "digit_slides")


def test_the_command_says_where_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    finished = in_process.run(
        [
            "-m",
            "lossattn_jax.data.prepare",
            "--dataset=digit_slides",
            f"--data_dir={tmp_path / 'file'}",
        ],
        in_process.ROOT,
    )
    assert finished.returncode == 2
    assert "data set digit_slides could not be prepared in" in finished.stderr

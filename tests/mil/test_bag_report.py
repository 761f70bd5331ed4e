"""`mil explain`: pages of bags, their numbers, and what they say where something is not known."""

import base64
import io
import json
import re
import time
from urllib.parse import unquote

import h5py
import numpy as np
import pytest
from PIL import Image

from lossattn_jax.data.bags.bag_folder import open_bags
from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.errors import Incomplete, UserError
from lossattn_jax.mil import bag_page, bag_report
from lossattn_jax.mil.bag_page import Bag
from lossattn_jax.mil.bag_predictions import InstancePredictions
from lossattn_jax.mil.ensemble import Ensemble
from reliability import in_process
from tests.support import stored_model
from tests.support.page_reader import Reader

NASTY = '<img src=x onerror="alert(1)">{{ data }}'
SIDE = 10


def grid_coords(count, across, step=64):
    return step * np.stack([np.arange(count) % across, np.arange(count) // across], 1).astype(float)


def prediction(count, classes=2, seed=0, row=0):
    random = np.random.default_rng(seed)
    attention = random.exponential(size=count) ** 4
    return InstancePredictions(
        row,
        np.full(classes, 1 / classes),
        (attention / attention.sum()).astype(np.float32),
        random.normal(size=(count, classes)).astype(np.float32),
        random.normal(size=count),
    )


def scored(count):
    """As a classical method predicts."""
    return InstancePredictions(0, np.array([0.3, 0.7]), None, None, np.linspace(-1, 2, count))


def bag_of(count=60, **fields):
    fields = {"coords": grid_coords(count, SIDE), "prediction": prediction(count), **fields}
    return Bag(fields.pop("name", "b1"), predicted="tumour", **fields)


def render(bag, **settings):
    return bag_page.render(bag, ["healthy", "tumour"], "../index.html", **settings)


def data_of(page):
    return json.loads(Reader(page).scripts[0])


def opened(png):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA"))


def test_maps_are_those_of_attention_and_of_logits():
    bag = bag_of(57)
    data = data_of(render(bag))
    assert [(kind["by_class"], len(kind["maps"])) for kind in data["kinds"]] == [
        (False, 1),
        (True, 2),
        (True, 2),
    ]
    attention = opened(data["kinds"][0]["maps"][0]["png"])
    assert attention.shape == (6, 10, 4)
    assert (attention[..., 3] == 0).sum() == 3  # where no instance is
    brightness = attention[..., :3].sum(-1).reshape(-1)[:57]
    order = np.argsort(bag.prediction.attention)
    assert (np.diff(brightness[order]) >= -12).all() and brightness[order[-1]] > 500
    logits = bag.prediction.logits.astype(float)
    for k in range(2):
        own = opened(data["kinds"][1]["maps"][k]["png"]).reshape(-1, 4)[:57].astype(int)
        above = logits[:, k] - logits.mean(1)
        strong = np.abs(above) > 0.2 * np.abs(above).max()
        np.testing.assert_array_equal((own[:, 0] > own[:, 2])[strong], (above > 0)[strong])
        top = float(data["kinds"][1]["maps"][k]["high"])
        assert top == pytest.approx(np.abs(above).max(), rel=1e-3)


def test_the_highest_instances_are_listed_with_their_tiles():
    bag = bag_of(find_tile=lambda x, y: np.full((4, 6, 3), int(x + y) % 251, np.uint8))
    page = render(bag, top=3)
    order = np.argsort(-bag.prediction.attention)[:3]
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", page, re.DOTALL)
    assert len(rows) == 3
    for row, number in zip(rows, order, strict=True):
        x, y = bag.coords[number].astype(int)
        assert f"<td>{number}</td>" in row and f"<td>{x}</td><td>{y}</td>" in row
        assert f"{bag.prediction.attention[number] * 60:.1f}</td>" in row
        png = re.search(r"base64,([^\"]+)", row).group(1)
        assert opened(png)[0, 0, 0] == (x + y) % 251
    assert '<th scope="col">tile</th>' not in render(bag_of(), top=3)
    none = render(bag_of(find_tile=lambda x, y: None), top=3)
    assert '<th scope="col">tile</th>' not in none


def test_numbers_of_a_bag_are_those_of_its_weights():
    bag = bag_of()
    weights = np.sort(bag.prediction.attention.astype(float))[::-1]
    numbers = bag_page.measure(bag)
    n50 = numbers["n50"]
    assert weights[:n50].sum() >= 0.5 * weights.sum() > weights[: n50 - 1].sum()
    assert numbers["highest"] == weights[0] and numbers["instances"] == 60
    assert bag_page.measure(bag_of(prediction=scored(60))) == {"instances": 60, "highest": 2.0}


def test_a_page_without_coordinates_says_so():
    for coords, words in (
        (None, "has no coordinates"),
        (np.full((60, 2), np.nan), "has coordinates that are not finite"),
    ):
        page = render(bag_of(coords=coords))
        assert f"The map is left out: the file of this bag {words}" in page
        assert "<script" not in page and "Highest instances" in page and "n50" in page


def test_a_classical_method_has_a_map_of_scores():
    page = render(bag_of(prediction=scored(60)))
    data = data_of(page)
    (kind,) = data["kinds"]
    assert not kind["by_class"] and kind["maps"][0]["signed"] == 1
    assert "n50" not in page and '<th scope="col">score</th>' in page
    assert 'id="class"' not in page
    assert bag_page.draw_overview(bag_of(prediction=scored(60))) is None  # colours go both ways


def test_outputs_that_are_not_finite_have_no_map():
    broken = prediction(60)
    broken.attention[3] = np.nan
    bag = bag_of(prediction=broken)
    assert not bag.finite and bag_page.measure(bag)["n50"] is None
    page = render(bag)
    assert "are not finite, so that there are no maps" in page and "<script" not in page


ATTRIBUTES = {"level0_width": 640, "level0_height": 384, "patch_size_level0": 64}


def test_a_thumbnail_lies_under_the_map():
    thumbnail = np.full((96, 160, 3), 128, np.uint8)
    bag = bag_of(thumbnail=thumbnail, attributes=ATTRIBUTES, coords=grid_coords(60, 10))
    assert bag_page.place_thumbnail(bag) == (640, 384)
    page = render(bag)
    assert 'class="stage over" style="aspect-ratio: 640' in page
    moved = bag_of(
        20, thumbnail=thumbnail, attributes=ATTRIBUTES, coords=grid_coords(20, 5) + [64, 128]
    )
    page = render(moved)
    assert "left: 10.0%; top: 33.3333%; width: 50.0%; height: 66.6667%" in page
    picture = opened(base64.b64encode(bag_page.draw_overview(moved)))
    changed = (picture[..., :3] != 128).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (32, 95, 16, 95)


def test_a_thumbnail_of_unknown_scale_is_left_out_with_a_word():
    thumbnail = np.zeros((96, 160, 3), np.uint8)
    page = render(bag_of(thumbnail=thumbnail))
    assert "The thumbnail is left out: the scale of it is not known" in page
    assert "--thumbnail_scale says it" in page and 'class="stage"' in page
    other = render(bag_of(thumbnail=thumbnail[:, :96], attributes=ATTRIBUTES))
    assert "it has 96x96 pixels, but the slide is 640x384 units" in other
    flagged = bag_of(thumbnail=thumbnail, thumbnail_scale=8.0, attributes=ATTRIBUTES)
    assert bag_page.place_thumbnail(flagged) == (1280, 768)


def test_words_of_users_cannot_leave_their_place():
    bag = Bag(NASTY, prediction(60), predicted=NASTY, label=NASTY, coords=grid_coords(60, 10))
    page = bag_page.render(bag, [NASTY, "</script><script>"], "../index.html")
    reader = Reader(page)
    assert len([tag for tag, _ in reader.elements if tag == "script"]) == 2
    assert not any("onerror" in attrs for _, attrs in reader.elements)
    for tag, attrs in reader.elements:
        for name in ("src", "href"):
            if name in attrs:
                assert attrs[name].startswith(("data:", "#", "../index.html")), (tag, name)


@pytest.mark.slow
def test_fifty_thousand_instances_stay_small_and_quick():
    count = 50_000
    bag = bag_of(count, coords=grid_coords(count, 250, 256))
    render(bag_of())  # imports matplotlib
    start = time.process_time()
    page = render(bag)
    assert time.process_time() - start < 10
    assert len(page) < 1_500_000
    assert opened(data_of(page)["kinds"][0]["maps"][0]["png"]).shape == (200, 250, 4)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Models, and slides with coordinates but for one."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("loss_attention", "mi_svm"):
        stored_model.fit(name, **stored_model.METHODS[name]).save(folder / name)
    vectors, labels = stored_model.bags()
    (folder / "slides").mkdir()
    for row, vector in enumerate(vectors):
        with h5py.File(folder / "slides" / f"s{row:02d}.h5", "w") as file:
            file["features"] = vector
            if row != 5:
                file["coords"] = (8 * grid_coords(len(vector), 2)).astype(np.int64)
                file["coords"].attrs["level0_width"] = 1024
                file["coords"].attrs["level0_height"] = 2048
    lines = ["slide_id,label,split"]
    for row, label in enumerate(labels):
        lines.append(f"s{row:02d},{label},{'test' if row > 7 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "tiles" / "s09").mkdir(parents=True)
    for x in (0, 512):
        Image.new("RGB", (8, 8), "red").save(folder / "tiles" / "s09" / f"{x}_0.png")
    (folder / "thumbnails").mkdir()
    Image.new("L", (32, 64), 200).save(folder / "thumbnails" / "s09.png")
    return folder


def explain(world, *arguments):
    return in_process.run(["-m", "lossattn_jax.mil.explain", *arguments], world)


def test_the_command_writes_a_page_for_each_bag(world, tmp_path):
    finished = explain(
        world,
        "--model=loss_attention",
        "--bags=slides",
        "--labels=labels.csv",
        "--tiles=tiles",
        "--thumbnails=thumbnails",
        f"--out={tmp_path / 'r'}",
    )
    assert finished.returncode == 0, finished.stderr
    pages = {path.stem: path.read_text() for path in (tmp_path / "r" / "bags").glob("*.html")}
    assert sorted(pages) == [f"s{row:02d}" for row in range(12)]
    index = (tmp_path / "r" / "index.html").read_text()
    for name in pages:
        assert f'<a href="bags/{name}.html">{name}</a>' in index
    assert 'class="thumbnail"' in pages["s09"] and 'class="tile"' in pages["s09"]
    assert 'class="thumbnail"' not in pages["s08"] and 'class="tile"' not in pages["s08"]
    assert "has no coordinates" in pages["s05"]
    maps = sorted(path.stem for path in (tmp_path / "r" / "maps").glob("*.png"))
    assert maps == [f"s{row:02d}" for row in range(12) if row != 5]
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    ensemble = Ensemble.load([str(world / "loss_attention")])
    for said in ensemble.predict(open_bags(world / "slides")):
        own = report["bags"][f"s{said.row:02d}"]
        assert own["probabilities"] == said.probabilities.tolist()
        assert own["highest"] == float(said.attention.max())
        assert own["instances"] == len(said.scores)
    assert report["made_from"]["models"] == list(ensemble.digests)


def test_a_split_alone_and_a_classical_method(world, tmp_path):
    finished = explain(
        world,
        "--model=mi_svm",
        "--bags=slides",
        "--labels=labels.csv",
        "--split=test",
        f"--out={tmp_path / 'r'}",
    )
    assert finished.returncode == 0, finished.stderr
    assert len(list((tmp_path / "r" / "bags").glob("*.html"))) == 4
    assert "instance scores" in (tmp_path / "r" / "bags" / "s09.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--top=0"], "--top is 0, but must be 1 or more"),
        (["--tiles=nowhere"], "--tiles=nowhere is no folder"),
        (["--thumbnails=nowhere"], "--thumbnails=nowhere is no folder"),
        (["--thumbnail_scale=-2"], "--thumbnail_scale is -2.0, but must be a number above 0"),
        (["--split=test"], "--split=test names no bag of slides"),
    ],
)
def test_what_is_impossible_is_refused(world, tmp_path, arguments, sentence):
    out = tmp_path / "r"
    finished = explain(world, "--model=loss_attention", "--bags=slides", f"--out={out}", *arguments)
    assert finished.returncode == 2 and sentence in finished.stderr
    assert "Traceback" not in finished.stderr and not out.exists()


def test_a_damaged_tile_is_refused_by_name(world, tmp_path):
    own = tmp_path / "tiles" / "s09"
    own.mkdir(parents=True)
    for path in (world / "tiles" / "s09").iterdir():
        (own / path.name).write_bytes(path.read_bytes()[:40])
    ensemble = Ensemble.load([str(world / "loss_attention")])
    bags = open_bags(world / "slides")
    with pytest.raises(UserError, match=r"s09/\d+_0.png cannot be read as an image"):
        bag_report.run(ensemble, bags, str(tmp_path / "r"), tiles=str(tmp_path / "tiles"))


def test_bags_in_memory_have_pages_too(world, tmp_path):
    ensemble = Ensemble.load([str(world / "loss_attention")])
    names = ["a/b", NASTY]
    bags = Bags.from_arrays(stored_model.bags()[0][:2], ids=names)
    assert bag_report.run(ensemble, bags, str(tmp_path)) == ()
    index = Reader((tmp_path / "index.html").read_text())
    links = [attrs["href"] for tag, attrs in index.elements if tag == "a"]
    assert len(links) == 2
    assert all((tmp_path / unquote(link)).is_file() for link in links)


def test_bags_without_finite_outputs_are_named(world, tmp_path):
    ensemble = Ensemble.load([str(world / "loss_attention")])
    bags = Bags.from_arrays([np.full((3, 3), 3e38), stored_model.bags()[0][0]], ids=["huge", "b"])
    names = bag_report.run(ensemble, bags, str(tmp_path))
    assert names == ("huge",)
    with pytest.raises(Incomplete, match="outputs for 1 bags are not finite.*huge"):
        bag_report.refuse_nonfinite(names)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["bags"]["huge"]["highest"] is None and report["nonfinite"] > 0

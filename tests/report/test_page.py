"""The page: self-contained, escaped, and holding the numbers it is given."""

import base64
import dataclasses
import json
import pathlib
import re
import sys

import jinja2
import numpy as np
import pytest

from lossattn_jax.explain.explanations import Explanations
from lossattn_jax.explain.receptive_field import pixel_map
from lossattn_jax.explain.report import page, pictures, templates
from lossattn_jax.explain.report.write import write
from tests.support.page_reader import Reader
from tests.support.report_content import NAMES, NASTY, content


@pytest.fixture(scope="module")
def rendered():
    return page.render(content())


def test_names_and_labels_cannot_leave_their_place(rendered):
    reader = Reader(rendered)
    assert len([tag for tag, _ in reader.elements if tag == "script"]) == 2
    assert not any("onerror" in attrs for _, attrs in reader.elements)
    assert "x" not in [attrs.get("src") for tag, attrs in reader.elements if tag == "img"]
    # As HTML in the page, as JSON in the script's data; nowhere run as a template.
    assert (
        rendered.count("{{data}}")
        == len(re.findall(r"(?:&amp;|\\u0026)\{\{data\}\}\{% include", rendered))
        > 5
    )
    assert rendered.count("use strict") == 1
    data = json.loads(reader.scripts[0])
    assert data["classes"] == NAMES
    assert data["images"][2]["name"] == f"test 2 {NASTY}"


def test_style_and_script_are_the_files_themselves(rendered):
    for name in ("page.css", "page.js"):
        assert pathlib.Path(page.__file__).with_name(name).read_text() in rendered


def test_a_value_that_the_page_is_not_given_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="'title' is undefined"):
        templates.environment().get_template("page.html").render()


def test_it_loads_nothing_from_anywhere(rendered):
    reader = Reader(rendered)
    for tag, attrs in reader.elements:
        for name in ("src", "href", "data", "action", "srcset", "poster"):
            if name in attrs:
                assert attrs[name].startswith(("data:", "#")), (tag, name)
    style = rendered[rendered.index("<style>") : rendered.index("</style>")]
    assert "url(" not in style and "@import" not in style
    policy = [a["content"] for t, a in reader.elements if a.get("http-equiv")]
    assert policy[0].startswith("default-src 'none'")


def test_every_picture_says_what_it_shows(rendered):
    pictures_of = [attrs for tag, attrs in Reader(rendered).elements if tag == "img"]
    assert len(pictures_of) == 1 + 3 * 4
    assert all(len(attrs["alt"]) > 20 for attrs in pictures_of)
    drawn = [attrs for tag, attrs in Reader(rendered).elements if tag == "svg"]
    assert (
        all(attrs["role"] == "img" and attrs["aria-label"] for attrs in drawn) and len(drawn) == 4
    )


def unpacked(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def test_the_script_is_given_the_networks_numbers(rendered):
    given = content()
    data = json.loads(Reader(rendered).scripts[0])
    e = given.explanations
    for image, found in enumerate(data["images"]):
        logits = unpacked(found["patch_logits"], "<f4").reshape(6, 3)
        np.testing.assert_array_equal(logits, e.patch_logits[image])
        for packed, expected in zip(found["attention"], given.attentions.values(), strict=True):
            np.testing.assert_array_equal(unpacked(packed, "<f4"), expected[image])
        assert found["correct"] == (image != 1)
        assert found["label"] == [int(e.labels[image])]
        assert found["certainty"] == pytest.approx(e.probabilities[image].max())
    levels = unpacked(data["fields"], "<u2").reshape(6, 8, 10)
    fields = levels * np.array(data["field_scales"])[:, None, None]
    np.testing.assert_allclose(fields, given.fields, atol=2e-5)
    assert (levels[0, :4] == 0).all()


def test_evidence_is_offered_where_it_is_exact():
    given = content()
    assert page.is_exact(given.explanations)
    assert '"evidence:0">evidence for<' in page.render(given)
    other = Explanations(**{**vars(given.explanations), "logits": given.explanations.logits + 1})
    assert not page.is_exact(other)


def test_images_without_labels_have_no_filter():
    rendered = page.render(content(labelled=False))
    assert '<fieldset id="filter" hidden>' in rendered
    assert 'class="tag' not in rendered and "the label</option>" not in rendered


def test_an_overlay_by_hand():
    image = np.full((1, 2, 3), 100, np.uint8)
    heat = np.array([[0.0, 5.0]])
    colours = pictures.colours("inferno").astype(float)
    expected = 0.35 * 100 + 0.65 * colours[[0, 255]]
    np.testing.assert_allclose(pictures.overlay(image, heat)[0], expected, atol=0.51)
    flat = pictures.overlay(image, heat * 0)
    np.testing.assert_allclose(flat[0, 0], expected[0], atol=0.51)


def test_a_mosaic_puts_tiles_in_their_places():
    tiles = [np.full((2, 3, 3), value, np.uint8) for value in (1, 2, 3)]
    whole = pictures.mosaic(tiles, [(0, 0), (0, 1), (1, 0)], gap=1)
    assert whole.shape == (5, 7, 3)
    assert whole[:, :, 0].tolist()[0] == [1, 1, 1, 255, 2, 2, 2]
    assert whole[:, :, 0].tolist()[2] == [255] * 7
    assert whole[:, :, 0].tolist()[4] == [3, 3, 3, 255, 255, 255, 255]


def test_a_folder_is_written_and_written_again(tmp_path):
    from PIL import Image

    write(content(), tmp_path)
    path = write(content(count=2), tmp_path)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    found = sorted(file.name for file in (tmp_path / "images").iterdir())
    assert len(found) == 4 and all(re.fullmatch(r"000[01]_[A-Za-z0-9_]+\.png", n) for n in found)
    with Image.open(tmp_path / "images" / found[0]) as overlay:
        assert overlay.size == (80, 64)
        top = pictures.overlay(
            content(count=2).explanations.images[0],
            pixel_map(content(count=2).explanations.attention[0], content(count=2).fields),
        )
        np.testing.assert_array_equal(np.asarray(overlay)[::8, ::8], top)
    numbers = json.loads((tmp_path / "report.json").read_text())
    e = content(count=2).explanations
    for image, told in enumerate(numbers["images"]):
        np.testing.assert_array_equal(np.array(told["attention"], np.float32), e.attention[image])
        np.testing.assert_array_equal(np.array(told["logits"], np.float32), e.logits[image])
    assert {"explanations.png", "entropy.png", "index.html"} <= {f.name for f in tmp_path.iterdir()}


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX permissions")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    from lossattn_jax.errors import UserError

    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the report .*file cannot be written"):
        write(content(), tmp_path / "file")


def test_links_in_a_folder_are_not_followed(tmp_path):
    from lossattn_jax.errors import UserError

    folder, other = tmp_path / "report", tmp_path / "other"
    folder.mkdir()
    other.write_text("of somebody else")
    for name in ("index.html", "report.json", "explanations.png", "entropy.png"):
        (folder / name).symlink_to(other)
    write(content(count=2), folder)
    assert other.read_text() == "of somebody else"
    assert not [path for path in folder.rglob("*") if path.is_symlink() or path.suffix == ".part"]
    elsewhere = tmp_path / "elsewhere"
    (folder / "images").rename(elsewhere)
    (folder / "images").symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    with pytest.raises(UserError, match="images is a link, and what is behind it stays as it is"):
        write(content(count=2), folder)
    assert sorted(elsewhere.iterdir()) == before
    (tmp_path / "link").symlink_to(elsewhere)
    with pytest.raises(UserError, match="link is a link, and what is behind it stays as it is"):
        write(content(count=2), tmp_path / "link")
    assert sorted(elsewhere.iterdir()) == before


def test_a_number_among_the_facts_is_rounded_on_the_page_alone(tmp_path):
    error = 0.123456789
    write(dataclasses.replace(content(), facts={"calibration error": error}), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["facts"] == {
        "calibration error": error
    }
    assert "<dd>0.1235</dd>" in (tmp_path / "index.html").read_text()

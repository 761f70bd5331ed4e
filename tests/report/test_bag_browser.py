"""The page of a bag in headless Chromium.

Needs selenium (requirements-dev.txt) and Debian's packages chromium and chromium-driver.
"""

import numpy as np
import pytest

from lossattn_jax.mil import bag_page
from tests.mil.test_bag_report import ATTRIBUTES, NASTY, bag_of
from tests.report.test_browser import driver, find, pick, pytestmark  # noqa: F401


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bags")
    thumbnail = np.full((96, 160, 3), 128, np.uint8)
    bags = {
        "over": bag_of(thumbnail=thumbnail, attributes=ATTRIBUTES, name=NASTY),
        "alone": bag_of(50_000, coords=256.0 * np.indices((200, 250)).reshape(2, -1)[::-1].T),
        "nowhere": bag_of(coords=None),
    }
    for name, bag in bags.items():
        page = bag_page.render(bag, ["healthy", "tumour"], "../index.html")
        (folder / f"{name}.html").write_text(page)
    return {name: folder / f"{name}.html" for name in bags}


def box(driver, css):  # noqa: F811
    return driver.execute_script(
        "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
        "return [b.left, b.top, b.width, b.height]",
        css,
    )


@pytest.mark.parametrize("name", ["over", "alone", "nowhere"])
def test_every_picture_is_there_and_nothing_is_fetched(driver, paths, name):  # noqa: F811
    driver.get(paths[name].as_uri())
    images = driver.execute_script(
        "return Array.from(document.images, (i) => [i.alt, i.naturalWidth, i.complete])"
    )
    assert len(images) >= (1 if name == "nowhere" else 3)
    assert all(alt and width > 0 and complete for alt, width, complete in images)
    loaded = driver.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert all(address.startswith("data:") for address in loaded)
    assert driver.get_log("browser") == []


def test_maps_and_classes_are_chosen(driver, paths):  # noqa: F811
    driver.get(paths["over"].as_uri())
    (picture,) = find(driver, "#picture")
    assert not find(driver, "#class")[0].is_enabled()
    sources = {picture.get_attribute("src")}
    for kind in ("1", "2"):
        pick(driver, "map", kind)
        assert find(driver, "#class")[0].is_enabled()
        for number, word in (("0", "healthy"), ("1", "tumour")):
            pick(driver, "class", number)
            assert f"for {word} over {NASTY}" in picture.get_attribute("alt")
            sources.add(picture.get_attribute("src"))
            low, high = (float(find(driver, f"#{end}")[0].text) for end in ("low", "high"))
            assert low == -high < 0
    assert len(sources) == 5
    assert driver.get_log("browser") == []


def test_a_chosen_instance_is_marked_where_it_is(driver, paths):  # noqa: F811
    driver.get(paths["over"].as_uri())
    bag = bag_of()
    highest = np.argsort(-bag.prediction.attention, kind="stable")
    left, top, width, height = box(driver, ".thumbnail")
    for place in (0, 3):
        button = find(driver, ".spot")[place]
        button.click()
        x, y = bag.coords[highest[place]]
        expected = [left + width * x / 640, top + height * y / 384, width / 10, height / 6]
        np.testing.assert_allclose(box(driver, "#marker"), expected, atol=1.5)
    button.click()
    assert not find(driver, "#marker")[0].is_displayed()
    assert driver.get_log("browser") == []


def test_the_map_fades_over_the_thumbnail(driver, paths):  # noqa: F811
    driver.get(paths["over"].as_uri())
    driver.execute_script(
        "const o = document.getElementById('opacity'); o.value = 20;"
        "o.dispatchEvent(new Event('input'))"
    )
    assert find(driver, "#picture")[0].value_of_css_property("opacity") == "0.2"
    driver.get(paths["alone"].as_uri())
    assert find(driver, "#opacity") == []
    assert box(driver, "#picture")[2] > 500

"""The page in headless Chromium: what a reader does with mouse, keyboard and a phone.

Needs selenium (requirements-dev.txt) and Debian's packages chromium and chromium-driver.
"""

import base64
import io
import shutil

import numpy as np
import pytest

from lossattn_jax.explain.receptive_field import pixel_map
from lossattn_jax.explain.report import pictures
from lossattn_jax.explain.report.write import write
from tests.support.report_content import NAMES, NASTY, content

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1300,3000"
)
COUNT = 8
WRONG = 1  # the image whose label is another


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in (*OPTIONS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(content(COUNT), tmp_path_factory.mktemp("report"))


@pytest.fixture
def browser(driver, path):
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.get(path.as_uri())
    wait(driver, f"document.querySelectorAll('.patches button').length === {COUNT * 6}")
    yield driver
    assert driver.get_log("browser") == []


def wait(driver, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 10).until(lambda d: d.execute_script(f"return {condition}"))


def find(driver, css):
    return driver.find_elements("css selector", css)


def pick(driver, name, value):
    from selenium.webdriver.support.ui import Select

    Select(find(driver, f"#{name}")[0]).select_by_value(value)


def visible(driver):
    return [
        int(card.get_attribute("id").removeprefix("image-"))
        for card in find(driver, "article")
        if card.is_displayed()
    ]


def pixels(driver, image):
    from PIL import Image

    source = find(driver, f"#image-{image} .map img")[0].get_attribute("src")
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def press(driver, *keys):
    webdriver.ActionChains(driver).send_keys(*keys).perform()


def focused(driver, script="return document.activeElement"):
    return driver.execute_script(script)


def test_every_picture_is_there_and_has_words(browser):
    images = browser.execute_script(
        "return Array.from(document.images, (i) => [i.alt, i.naturalWidth, i.complete])"
    )
    assert len(images) == 1 + 3 * COUNT
    assert all(len(alt) > 20 and width > 0 and complete for alt, width, complete in images)
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert all(name.startswith("data:") for name in loaded)
    heading = find(browser, "#name-2")[0].get_property("firstChild")
    assert browser.execute_script("return arguments[0].textContent", heading) == f"test 2 {NASTY}"
    assert browser.title == f"Title {NASTY}"


def test_filters_and_orders(browser):
    assert visible(browser) == list(range(COUNT))
    for name, expected in (("wrong", [WRONG]), ("right", [i for i in range(COUNT) if i != WRONG])):
        find(browser, f"input[value={name}]")[0].click()
        assert visible(browser) == expected
        assert find(browser, "#status")[0].text == f"{len(expected)} of {COUNT} images shown"
    find(browser, "input[value=all]")[0].click()
    e = content(COUNT).explanations
    orders = {
        "certainty": np.argsort(e.probabilities.max(axis=-1), kind="stable"),
        "entropy": np.argsort(-e.entropy(), kind="stable"),
        "name": np.argsort(e.index, kind="stable"),
        "picked": np.arange(COUNT),
    }
    for name, expected in orders.items():
        pick(browser, "order", name)
        assert visible(browser) == expected.tolist(), name


def test_images_without_labels_have_no_filter(driver, tmp_path):
    driver.get(write(content(2, labelled=False), tmp_path).as_uri())
    wait(driver, "document.querySelectorAll('.patches button').length === 12")
    assert not find(driver, "#filter")[0].is_displayed()
    assert visible(driver) == [0, 1]
    assert driver.get_log("browser") == []


def test_maps_are_those_of_the_network(browser):
    given = content(COUNT)
    e = given.explanations
    for image in (0, 5):
        for which, attention in enumerate(given.attentions.values()):
            pick(browser, "map", f"attention:{which}")
            heat = pixel_map(attention[image], given.fields)
            expected = pictures.overlay(e.images[image], heat).astype(int)
            assert np.abs(pixels(browser, image) - expected).max() <= 4
        assert not find(browser, "#class")[0].is_enabled()


@pytest.mark.parametrize("picked", ["predicted", "label", "1"])
def test_maps_of_any_class(browser, picked):
    given = content(COUNT)
    e, image = given.explanations, WRONG
    before = pixels(browser, image)
    pick(browser, "map", "evidence:0")
    pick(browser, "class", picked)
    by_name = {"predicted": int(e.logits[image].argmax()), "label": int(e.labels[image])}
    k = by_name.get(picked, 1)
    part = e.attention[image] * (e.patch_logits[image, :, k] - e.patch_logits[image].mean(axis=-1))
    heat = pixel_map(part, given.fields)
    levels = (255 * (0.5 + heat / np.abs(heat).max() / 2)).round().astype(int)
    grey = e.images[image] @ np.array([0.299, 0.587, 0.114])
    expected = 0.35 * grey[..., None] + 0.65 * pictures.colours("RdBu_r")[levels]
    assert np.abs(pixels(browser, image) - expected).max() <= 4
    assert np.abs(pixels(browser, image) - before).max() > 20
    alt = find(browser, f"#image-{image} .map img")[0].get_attribute("alt")
    assert alt.startswith(f"evidence for {NAMES[k]} of test {image}")
    highest = int(part.argmax())
    assert f"row {highest // 3 + 1}, column {highest % 3 + 1}" in alt


def test_patch_predictions_of_a_class(browser):
    given = content(COUNT)
    e = given.explanations
    pick(browser, "map", "probability:0")
    pick(browser, "class", "2")
    chances = np.exp(e.patch_logits[3]) / np.exp(e.patch_logits[3]).sum(axis=-1, keepdims=True)
    highest = chances[:, 2].max()
    alt = find(browser, "#image-3 .map img")[0].get_attribute("alt")
    assert alt.startswith("patch predictions of cow of test 3") and f"{highest:.3f}" in alt


def test_all_of_it_works_with_the_keyboard_alone(browser):
    from selenium.webdriver.common.keys import Keys

    press(browser, Keys.TAB)
    assert focused(browser).text == "Skip to the images"
    press(browser, Keys.ENTER)
    assert focused(browser).get_attribute("id") == "images"
    press(browser, Keys.TAB)
    assert focused(browser).get_attribute("name") == "filter"
    press(browser, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert visible(browser) == [WRONG]
    for name in ("order", "layout", "map"):
        press(browser, Keys.TAB)
        assert focused(browser).get_attribute("id") == name
    press(browser, "e")  # the first choice that begins with it
    assert focused(browser).get_property("value") == "evidence:0"
    press(browser, Keys.TAB, Keys.ARROW_DOWN)
    assert focused(browser).get_attribute("id") == "class"
    press(browser, Keys.TAB)
    seen = focused(browser)
    assert seen.get_attribute("aria-label").startswith("Patch in row 1, column 1")
    outline = browser.execute_script("return getComputedStyle(arguments[0]).outlineStyle", seen)
    assert outline == "solid"
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    seen = focused(browser)
    assert seen.get_attribute("aria-label").startswith("Patch in row 2, column 2")
    assert seen.get_attribute("aria-pressed") == "true"
    told = find(browser, f"#image-{WRONG} .told")[0]
    assert told.text.startswith("Patch in row 2, column 2: weight 0.")
    assert "what the patch in row 2, column 2 sees" in find(browser, f"#image-{WRONG} .map")[0].text
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)  # there is no fourth column
    assert focused(browser).get_attribute("aria-label").startswith("Patch in row 2, column 3")
    press(browser, Keys.ESCAPE)
    assert told.text.startswith("Choose a patch")
    press(browser, Keys.TAB)  # one stop a card
    assert not focused(browser).get_attribute("class") == "patches"
    assert focused(browser, "return document.activeElement.closest('.patches') === null")


def test_a_patch_shows_what_it_sees(browser):
    given = content(COUNT)
    image, patch = 0, 0  # sees nothing of the upper half
    before = pixels(browser, image)
    find(browser, f"#image-{image} .patches button")[patch].click()
    after = pixels(browser, image)
    order = np.argsort(-given.fields[patch], axis=None)
    kept = np.cumsum(given.fields[patch].ravel()[order])
    inside = np.zeros(80, bool)
    inside[order[: (kept < 0.95 * kept[-1]).sum() + 1]] = True
    inside = inside.reshape(8, 10)
    np.testing.assert_array_equal(after[inside], before[inside])
    assert np.abs(after[~inside] - 0.35 * before[~inside]).max() <= 1
    assert not inside[:4].any()
    find(browser, f"#image-{image} .patches button")[patch].click()
    np.testing.assert_array_equal(pixels(browser, image), before)


@pytest.mark.parametrize("layout", ["cards", "paper", "small"])
@pytest.mark.parametrize("width", [320, 360, 768])
def test_it_can_be_read_on_a_phone(browser, layout, width):
    screen = {"width": width, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    pick(browser, "layout", layout)
    wide = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1] == width
    sizes = browser.execute_script(
        "return Array.from(document.querySelectorAll('p, label, figcaption, h3, li, td'))"
        ".filter((e) => e.checkVisibility()).map((e) => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 12
    map_width = find(browser, "#image-0 .map img")[0].size["width"]
    assert map_width >= (100 if layout != "paper" else 60)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_their_ground(browser, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    colours = browser.execute_script(
        "const of = (css, what) => getComputedStyle(document.querySelector(css))[what];"
        "return [of('body', 'color'), of('.told', 'color'), of('.tag.right', 'color'),"
        " of('.tag.wrong', 'color'), of('article', 'backgroundColor')]"
    )
    *texts, ground = [luminance(colour) for colour in colours]
    for text in texts:
        lighter, darker = max(text, ground), min(text, ground)
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5  # WCAG 2.1, AA


def luminance(colour):
    channels = np.array([int(part) for part in colour[4:-1].split(",")]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])

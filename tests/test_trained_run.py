"""A trained run in Python: the numbers of evaluation for pictures of every kind, and what is refused."""

import dataclasses
import html.parser
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import lossattn_jax
from lossattn_jax import data, devices, predict
from lossattn_jax.attention import losses
from lossattn_jax.data import own_images
from lossattn_jax.data.views import CROP, View
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate.evaluation import forward_batches, make_eval_step
from lossattn_jax.predict import predictions
from tests.support import trained_runs

SPEC = trained_runs.SPEC


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return lossattn_jax.load(trained_runs.write(tmp_path_factory.mktemp("run")))


def evaluated(run, images):
    """Outputs of evaluation for images `[N, H, W, 3]`, N a multiple of the batch."""
    labels = np.zeros((len(images), *run.spec.label_shape), run.spec.label_dtype)
    dataset = data.ArrayDataset(run.spec, "test", images, labels)
    step = make_eval_step(run.model, run.spec, run.loss)
    passes = forward_batches(step, devices.replicate(run.variables), dataset, trained_runs.BATCH)
    parts = [devices.gather(outputs) for _, _, outputs in passes]
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def test_predictions_are_evaluations_bit_for_bit(trained):
    images = trained_runs.arrays(8)
    logits, patch_logits, attention = evaluated(trained.checkpoint, images)
    result = trained.predict(images)
    np.testing.assert_array_equal(result.logits, logits)
    np.testing.assert_array_equal(result.attention, attention)
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1, rtol=1e-6)
    parts = zip(logits.reshape(2, 4, -1), patch_logits.reshape(2, 4, -1, 3), strict=True)
    for place, (whole, patches) in enumerate(parts):
        rows = slice(4 * place, 4 * place + 4)
        chances = losses.probabilities(losses.CROSS_ENTROPY, whole)
        np.testing.assert_array_equal(result.probabilities[rows], chances)
        of_patches = losses.probabilities(losses.CROSS_ENTROPY, patches)
        np.testing.assert_array_equal(result.patch_probabilities[rows], of_patches)
    assert result.predicted == tuple(SPEC.class_names[k] for k in logits.argmax(axis=1))
    assert len(set(result.predicted)) > 1
    np.testing.assert_array_equal(result.patch_classes, patch_logits.argmax(axis=-1))
    assert result.grid.patches == attention.shape[1]
    assert result.names == tuple(f"images[{n}]" for n in range(8)) and result.nonfinite == ()


def test_a_padded_batch_changes_no_prediction(trained):
    images = trained_runs.arrays(8)
    whole, part = trained.predict(images), trained.predict(images[:5])
    for field in ("logits", "probabilities", "attention", "patch_probabilities"):
        np.testing.assert_array_equal(getattr(part, field), getattr(whole, field)[:5])
    assert part.predicted == whole.predicted[:5] and len(part) == 5


def same(one, other):
    np.testing.assert_array_equal(one.logits, other.logits)


@pytest.mark.parametrize("view", [View((16, 16, 3)), View((16, 16, 3), CROP, 20)])
@pytest.mark.parametrize("size", [(16, 16), (7, 40), (90, 33)])
def test_arrays_pictures_and_files_become_the_same_image(tmp_path, view, size):
    (array,) = trained_runs.arrays(1, size)
    Image.fromarray(array).save(tmp_path / "a.png")
    of_file = own_images.read_image(tmp_path / "a.png", view)
    assert of_file.shape == (16, 16, 3)
    with Image.open(tmp_path / "a.png") as lazy:
        of_lazy = own_images.take_picture(lazy, view, "it")
    for image in (
        own_images.take_array(array, view, "it"),
        own_images.take_picture(Image.fromarray(array), view, "it"),
        of_lazy,
    ):
        np.testing.assert_array_equal(image, of_file)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_a_picture_of_any_mode_is_read_as_its_file(tmp_path, mode):
    (array,) = trained_runs.arrays(1, (9, 12))
    picture = Image.fromarray(array).convert(mode)
    if mode == "RGBA":
        picture.putalpha(Image.fromarray(array[..., 0]))
    path = tmp_path / f"a.{'tif' if mode == 'CMYK' else 'png'}"
    picture.save(path)
    image = own_images.take_picture(picture, SPEC.view, "it")
    np.testing.assert_array_equal(image, own_images.read_image(path, SPEC.view))
    assert picture.mode == mode


def test_a_turned_picture_is_turned_and_stays_as_it_is():
    picture = Image.new("RGB", (4, 8), "black")
    picture.putpixel((0, 0), (255, 255, 255))
    picture.getexif()[0x0112] = 6
    image = own_images.take_picture(picture, View((4, 8, 3)), "it")
    assert image[0, -1].tolist() == [255] * 3 and picture.size == (4, 8)


def test_values_of_arrays_are_those_of_8_bits():
    grey = np.array([[0, 51], [102, 255]], np.uint8)
    view = View((2, 2, 3))
    expected = np.repeat(grey[..., None], 3, axis=2)
    for array in (
        grey,
        grey[..., None],
        expected,
        grey.astype(np.int64),
        (grey / 255).astype(np.float32),
        (grey / 255).astype(np.float16),
        np.dstack([expected, np.full((2, 2), 255, np.uint8)]),
    ):
        np.testing.assert_array_equal(own_images.take_array(array, view, "it"), expected)
    clear = np.dstack([expected, np.zeros((2, 2), np.uint8)])
    assert (own_images.take_array(clear, view, "it") == 255).all()
    masks = own_images.take_array(grey > 60, view, "it")
    np.testing.assert_array_equal(masks[..., 0], [[0, 0], [255, 255]])


WRONG = {
    "floats above 1": (np.full((4, 4), 1.5), "floats from 1.5 to 1.5, of which only 0 to 1"),
    "floats below 0": (np.full((4, 4), -0.5), "floats from -0.5 to -0.5"),
    "NaN": (np.array([[0.5, np.nan]]), "1 of 2 values that are not finite"),
    "negative": (np.full((4, 4), -1), "integers of 64 bits from -1 to -1, of which only 0 to 255"),
    "wide": (np.full((4, 4), 256, np.int32), "integers of 32 bits from 256 to 256"),
    "16 bits": (np.zeros((4, 4), np.uint16), "integers of 16 bits, whose white is not known"),
    "texts": (np.array([["a"]]), "has the dtype <U1, but must hold uint8, or floats in [0, 1]"),
    "one axis": (np.zeros(4, np.uint8), "has the shape (4,), but must be [H, W], or [H, W, C]"),
    "two channels": (np.zeros((4, 4, 2), np.uint8), "shape (4, 4, 2), but must be"),
    "five axes": (np.zeros((1, 1, 4, 4, 3), np.uint8), "shape (1, 1, 4, 4, 3), but must be"),
    "no pixel": (np.zeros((0, 4, 3), np.uint8), "shape (0, 4, 3), in which there is no pixel"),
    "no picture": (np.zeros((0, 4, 4, 3), np.uint8), "images is empty"),
    "nothing": ([], "images is empty, but must have a picture"),
    "a number": (7, "image is of type int, but must be an array"),
    "a number among others": (
        [np.zeros((4, 4), np.uint8), None],
        "images[1] is of type NoneType, but must be",
    ),
    "no file": ("absent.png", "the image absent.png does not exist"),
}


@pytest.mark.parametrize(("images", "sentence"), WRONG.values(), ids=WRONG)
def test_what_is_no_picture_is_a_sentence(trained, images, sentence):
    with pytest.raises(UserError) as error:
        trained.predict(images)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_all_kinds_of_inputs_go_together(trained, tmp_path):
    pictures = trained_runs.write_pictures(tmp_path / "deep" / "er", 2)
    (small,) = trained_runs.arrays(1, (5, 6), seed=3)
    (tmp_path / "deep" / "cut.jpg").write_bytes(b"no picture")
    result = trained.predict([tmp_path / "deep", small, Image.fromarray(small), jnp.asarray(small)])
    names = [str(tmp_path / "deep" / "er" / f"0{n}.png") for n in range(2)]
    assert result.names == (*names, "images[1]", "images[2]", "images[3]")
    (why,) = result.refusals.values()
    assert list(result.refusals) == [str(tmp_path / "deep" / "cut.jpg")] and "cut.jpg cannot" in why
    same(result, trained.predict([*pictures, small, small, small]))
    for one in (str(tmp_path / "deep" / "er" / "00.png"), pictures[0], pictures[0] / 255):
        np.testing.assert_array_equal(trained.predict(one).logits, result.logits[:1])


def test_a_table_of_pandas_has_the_conventions_columns(trained, monkeypatch):
    class Frame:
        def __init__(self, columns):
            self.columns = columns

    fake = type(sys)("pandas")
    fake.DataFrame = Frame
    monkeypatch.setitem(sys.modules, "pandas", fake)
    result = trained.predict(trained_runs.arrays(3))
    table = result.to_pandas().columns
    assert list(table) == ["path", "label", "predicted", "p_a", "p_=b", "p_<i>c</i>"]
    assert table["predicted"] == result.predicted and table["label"] == [None] * 3
    np.testing.assert_array_equal(table["p_=b"], result.probabilities[:, 1])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="needs pandas, which is not installed"):
        result.to_pandas()


def test_of_several_classes_all_above_one_half_are_predicted(tmp_path):
    spec = dataclasses.replace(SPEC, multi_label=True)
    trained = lossattn_jax.load(trained_runs.write(tmp_path, spec))
    result = trained.predict(trained_runs.arrays(4))
    expected = losses.probabilities(losses.SIGMOID, result.logits)
    np.testing.assert_array_equal(result.probabilities, expected)
    for logits, words in zip(result.logits, result.predicted, strict=True):
        above = sorted(np.array(SPEC.class_names)[logits > 0])
        assert words == (";".join(above) or ";")


def test_labels_are_chosen_by_the_highest_logit_or_one_half():
    chances = np.array([0.5, 0.6, 0.7], np.float32)
    names = ["z", "y", "x"]
    assert predictions.label_of(chances, chances, names, several=True) == "x;y"
    assert predictions.label_of(-chances, chances, names, several=False) == "z"


def test_outputs_that_are_not_finite_are_none_and_nan(tmp_path):
    def spoil(tree):
        params = tree["params"]
        classifier = {**params["classifier"], "bias": jnp.full(3, jnp.nan)}
        return {**tree, "params": {**params, "classifier": classifier}}

    trained = lossattn_jax.load(trained_runs.write(tmp_path, change=spoil))
    result = trained.predict(trained_runs.arrays(2))
    assert result.predicted == (None, None) and result.nonfinite == ("images[0]", "images[1]")
    assert np.isnan(result.probabilities).all() and np.isnan(result.attention).all()
    with pytest.raises(UserError, match="nothing to explain at step 3: .* not finite"):
        trained.explain(trained_runs.arrays(1))


class Reader(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, text):
        self.texts.append(text)


def test_an_explanation_shows_itself(trained, tmp_path):
    image = trained_runs.arrays(1, (30, 20))[0]
    path = tmp_path / "<script>alert(1).png"
    Image.fromarray(image).save(path)
    result = trained.explain(path)
    expected = trained.predict(image)
    np.testing.assert_array_equal(result.logits, expected.logits[0])
    np.testing.assert_array_equal(result.attention, expected.attention[0])
    assert result.predicted == expected.predicted[0]
    np.testing.assert_allclose(result.evidence.sum(axis=0), result.logits, rtol=1e-4, atol=1e-5)
    own = result.attention[:, None] * result.patch_logits
    np.testing.assert_array_equal(result.evidence, own)
    assert result.attention_map().shape == result.evidence_map("=b").shape == (16, 16)
    shown = Reader(result._repr_html_())
    assert set(shown.tags) == {"div", "p", "strong", "figure", "img", "figcaption"}
    assert shown.tags.count("img") == 5
    assert all(source.startswith("data:image/png;base64,") for source in shown.sources)
    assert str(path) in shown.texts
    for name, chance in zip(SPEC.class_names, result.probabilities, strict=True):
        assert f"{name}: {chance:.4f}" in shown.texts


def test_only_one_picture_is_explained(trained):
    with pytest.raises(UserError, match="explain takes one picture, but was given 2"):
        trained.explain(trained_runs.arrays(2))


def test_the_package_offers_it_and_comes_at_once():
    assert lossattn_jax.load is predict.load and lossattn_jax.TrainedRun is predict.TrainedRun
    script = "import sys, lossattn_jax; print('jax' in sys.modules, 'load' in dir(lossattn_jax))"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.stdout.split() == ["False", "True"], finished.stderr


def test_results_describe_themselves_in_a_line(trained):
    images = trained_runs.arrays(2)
    several = trained.predict(images)
    patches = several.attention.shape[1]
    assert repr(several) == f"<Predictions of 2 pictures, 3 classes, {patches} patches>"
    one = trained.explain(images[0])
    chance = several.probabilities[0].max()
    assert repr(one) == (
        f"<Explanation of image: {several.predicted[0]}, highest probability {chance:.3f}, "
        f"{patches} patches>"
    )


def test_a_run_says_what_it_is(trained):
    assert repr(trained).startswith("<TrainedRun of toy, 3 classes: small, conv head, loss_atten")
    assert trained.class_names == SPEC.class_names and trained.image_shape == (16, 16, 3)
    assert trained.forward.batch_size == trained_runs.BATCH


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True, "8", 10**9])
def test_an_impossible_batch_is_refused(tmp_path, batch_size):
    with pytest.raises(
        UserError, match=f"batch_size is {batch_size!r}, but must be a whole number"
    ):
        lossattn_jax.load(tmp_path / "nowhere", batch_size=batch_size)

"""Views of an image whose logits an evaluation averages."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax.errors import UnknownName
from lossattn_jax.evaluate import test_time_views
from lossattn_jax.evaluate.evaluation import evaluate_run
from lossattn_jax.evaluate.test_time_views import VIEWS, average_logits
from lossattn_jax.models import Outputs
from lossattn_jax.train.images import loop
from tests.support import shrunk


def pixels(*shape):
    return jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        (1, [[4, 3, 4], [1, 0, 1], [4, 3, 4]]),
        (-1, [[4, 5, 4], [7, 8, 7], [4, 5, 4]]),
        (0, [[0, 1, 2], [3, 4, 5], [6, 7, 8]]),
    ],
)
def test_a_moved_image_has_its_mirror_image_at_the_edge(shift, expected):
    image = test_time_views.move(pixels(1, 3, 3, 1), shift)
    np.testing.assert_array_equal(image[0, :, :, 0], expected)


def test_left_and_right_are_exchanged():
    image = test_time_views.mirror(pixels(1, 2, 3, 1))
    np.testing.assert_array_equal(image[0, :, :, 0], [[2, 1, 0], [5, 4, 3]])


@pytest.mark.parametrize(("name", "number"), [("one", 1), ("mirror", 2), ("mirror_and_move", 6)])
def test_all_views_differ_and_the_first_is_the_image(name, number):
    images = pixels(2, 5, 4, 3)
    results = [np.asarray(view(images)) for view in VIEWS.find(name)]
    np.testing.assert_array_equal(results[0], images)
    assert len({result.tobytes() for result in results}) == number
    assert {result.shape for result in results} == {images.shape}


def corners(images):
    """A network whose logits are the two upper corners, and whose patches are the columns."""
    logits = images[:, 0, [0, -1], 0] ** 2
    columns = images[:, :2, :, 0].swapaxes(1, 2)
    return Outputs(logits, columns, images[:, 0, :, 0])


def test_logits_are_averaged_and_patches_are_those_of_the_image():
    images = pixels(2, 3, 3, 1)
    outputs = jax.jit(lambda x: average_logits(corners, x, VIEWS.find("mirror")))(images)
    # Upper corners of both images: 0 and 2, 9 and 11; of a mirrored one they change places.
    np.testing.assert_array_equal(outputs.logits, [[2, 2], [101, 101]])
    alone = corners(images)
    np.testing.assert_array_equal(outputs.patch_logits, alone.patch_logits)
    np.testing.assert_array_equal(outputs.attention, alone.attention)


UPSIDE_DOWN = (test_time_views.keep, lambda images: images[:, ::-1])


def test_a_run_is_evaluated_with_views_and_apart_from_without(scenes_dir, tmp_path):
    config = shrunk.config(scenes_dir, train__epochs=2, log__pictures=0, eval__every_epochs=9)
    measured = loop.train(config, tmp_path)
    of_image = evaluate_run(str(tmp_path))
    mirrored = evaluate_run(str(tmp_path), views="mirror")
    assert of_image["views"] == "one" and of_image["loss"] == pytest.approx(measured["loss"])
    assert mirrored["views"] == "mirror" and mirrored["loss"] != of_image["loss"]
    for name in ("patch_accuracy", "attention_entropy"):
        assert mirrored[name] == pytest.approx(of_image[name], rel=1e-5)
    own = evaluate_run(str(tmp_path), views=f"{__name__}:UPSIDE_DOWN")
    assert own["loss"] not in (of_image["loss"], mirrored["loss"])
    losses = {
        path.name: json.loads(path.read_text())["loss"] for path in tmp_path.glob("evaluation*")
    }
    assert losses == {
        "evaluation_test.json": of_image["loss"],
        "evaluation_test_mirror.json": mirrored["loss"],
        "evaluation_test_own_views.json": own["loss"],
    }
    with pytest.raises(UnknownName, match="--views is 'turn', but must be one of: one, mirror, "):
        evaluate_run(str(tmp_path), views="turn")

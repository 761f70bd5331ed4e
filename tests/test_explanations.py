"""Which images are explained, and that what is said of them is what the forward pass says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax import data, devices, models
from lossattn_jax.attention import losses
from lossattn_jax.evaluate import metrics
from lossattn_jax.evaluate.evaluation import make_eval_step
from lossattn_jax.explain import explanations

SPEC = data.DatasetSpec("toy", 3, ("a", "b", "c"), image_shape=(16, 16, 3), max_boxes=1)
DRAW = np.random.default_rng(0)
COUNT = 11


@pytest.fixture(scope="module")
def network():
    model = models.build("small", num_classes=3, width=0.1, threshold=0.0)
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, 16, 16, 3))))(jax.random.key(1))
    return make_eval_step(model, SPEC), devices.replicate(variables)


@pytest.fixture(scope="module")
def images():
    low = DRAW.uniform(0, 0.6, (COUNT, 2))
    return data.ArrayDataset(
        SPEC,
        "test",
        DRAW.integers(0, 256, (COUNT, 16, 16, 3), np.uint8),
        DRAW.integers(0, 3, COUNT).astype(np.int32),
        np.concatenate([low, low + 0.4], axis=1).astype(np.float32),
    )


@pytest.fixture(scope="module")
def everything(network, images):
    return explanations.explain_dataset(*network, images, num=COUNT, batch_size=4)


def test_several_boxes_come_along(network, images, everything):
    absent = np.tile(np.array(data.NO_BOX, np.float32), (COUNT, 1))
    several = dataclasses.replace(
        images,
        boxes=np.stack([images.boxes, absent], axis=1),
        box_labels=np.stack([images.labels, np.full(COUNT, -1, np.int32)], axis=1),
    )
    sums = []
    look = {"look": lambda rows, sum: sums.append(devices.unreplicate(sum))}
    found = explanations.hardest(*network, several, COUNT, batch_size=4, **look)
    np.testing.assert_array_equal(found.boxes, several.boxes[found.index])
    np.testing.assert_array_equal(found.attention, everything.attention[found.index])
    explanations.hardest(*network, images, COUNT, batch_size=4, **look)
    for one, other in zip(sums[:3], sums[3:], strict=True):
        assert {name: mean.total.tolist() for name, mean in one.items()} == {
            name: mean.total.tolist() for name, mean in other.items()
        }


def by_turns(first, second, num):
    taken = []
    for pair in zip(first, second, strict=True):
        taken += [place for place in pair if place not in taken]
    return taken[:num]


@pytest.mark.parametrize("num", [1, 4, 50])
def test_the_hardest_are_those_of_a_sorted_split(network, images, everything, num):
    seen = []
    found = explanations.hardest(
        *network, images, num, batch_size=4, look=lambda rows, sums: seen.append((rows, sums))
    )
    uncertain = np.argsort(everything.probabilities.max(axis=-1), kind="stable")
    diffuse = np.argsort(-everything.entropy(), kind="stable")
    expected = by_turns(uncertain, diffuse, num)
    assert found.index.tolist() == expected
    assert found.names == tuple(f"test {place}" for place in expected)
    assert found.reasons[0] == "least certain"
    for place, reason in zip(expected, found.reasons, strict=True):
        rank = list(uncertain).index(place), list(diffuse).index(place)
        assert reason == ("least certain" if rank[0] <= rank[1] else "most diffuse")
    for name in ("images", "labels", "boxes", "logits", "patch_logits", "attention"):
        np.testing.assert_array_equal(getattr(found, name), getattr(everything, name)[expected])
    assert np.concatenate([rows["index"] for rows, _ in seen]).tolist() == list(range(COUNT))
    assert sum(float(devices.unreplicate(sums)["loss"].count) for _, sums in seen) == COUNT


def test_attention_of_chosen_places(network, images, everything):
    found = explanations.explain_at(*network, images, np.array([9, 0, 4]), batch_size=4)
    np.testing.assert_array_equal(found, everything.attention[[9, 0, 4]])


def test_images_of_ones_own_are_explained_as_those_of_a_split(network, images, everything):
    names = [f"n{place}" for place in range(7)]
    own = explanations.explain_images(*network, images.images[:7], names, batch_size=4, spec=SPEC)
    assert own.names == tuple(names) and own.labels is None and own.index is None
    # To rounding: the split's program computes metrics too.
    np.testing.assert_allclose(own.logits, everything.logits[:7], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(own.attention, everything.attention[:7], rtol=1e-5, atol=1e-6)
    assert own.correct(0) is None and own.classes(0) == []


def test_right_and_wrong_with_one_class_and_with_several(everything):
    predicted = everything.logits.argmax(axis=-1)
    assert [everything.correct(i) for i in range(COUNT)] == (
        predicted == everything.labels
    ).tolist()
    labels = np.zeros((COUNT, 3), np.uint8)
    labels[0] = [1, 1, 1]
    several = explanations.Explanations(
        **{**vars(everything), "labels": labels, "probabilities": everything.probabilities}
    )
    assert several.correct(0) is True and several.classes(0) == [0, 1, 2]
    assert several.correct(1) is False and several.classes(1) == []


def test_entropy_is_a_share_of_the_highest():
    attention = np.array([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]], np.float32)
    np.testing.assert_allclose(explanations.relative_entropy(attention), [1, 0, 0.5], atol=1e-7)
    np.testing.assert_array_equal(explanations.relative_entropy(np.ones((2, 1), np.float32)), 0)


def test_what_is_said_is_what_the_network_says(network, images, everything):
    step, variables = network
    model = models.build("small", num_classes=3, width=0.1, threshold=0.0)
    pixels = data.normalise(jnp.asarray(images.images), SPEC.mean, SPEC.std, jnp.float32)
    outputs = jax.jit(lambda v, x: model.apply(v, x, train=False))(
        devices.unreplicate(variables), pixels
    )
    np.testing.assert_allclose(everything.logits, outputs.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(everything.patch_logits, outputs.patch_logits, rtol=1e-4, atol=1e-5)
    chances = losses.probabilities(losses.CROSS_ENTROPY, everything.logits)
    np.testing.assert_array_equal(everything.probabilities, chances)
    mean = float(np.mean(everything.entropy()) * np.log(everything.attention.shape[1]))
    expected = float(np.mean(metrics.attention_entropy(outputs.attention)))
    assert mean == pytest.approx(expected, rel=1e-5)

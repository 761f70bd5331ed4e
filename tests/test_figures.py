"""Pictures: where attention lands in pixels, and that a figure shows what it is given."""

import dataclasses
import io

import numpy as np

from lossattn_jax import data
from lossattn_jax.explain.explanations import Explanations
from lossattn_jax.explain.figures import draw_explanations
from lossattn_jax.explain.receptive_field import pixel_map
from lossattn_jax.models import PatchGrid

# Windows of 2x2 map positions, step 1, on a 3x3 map: 2x2 patches that overlap in the middle.
GRID = PatchGrid(rows=2, cols=2, map_size=(3, 3), kernel=2, stride=1)


def test_attention_over_windows_by_hand():
    # Patch 1 holds the top right 2x2 positions of 3x3; each position is 2x2 pixels.
    heat = pixel_map(np.array([0.0, 1.0, 0.0, 0.0]), GRID.coverage((6, 6)))
    positions = np.array([[0, 1 / 2, 1], [0, 1 / 4, 1 / 2], [0, 0, 0]])
    np.testing.assert_allclose(heat, positions.repeat(2, 0).repeat(2, 1))


def test_attention_over_windows_is_flat_for_equal_weights():
    heat = pixel_map(np.full(4, 0.25), GRID.coverage((12, 9)))
    np.testing.assert_allclose(heat, 0.25)


def explanations(labels):
    rng = np.random.default_rng(0)
    logits = np.array([[0, np.log(3)], [np.log(4), 0]], np.float32)
    return Explanations(
        names=("first", "second"),
        images=rng.integers(0, 256, (2, 6, 6, 3)).astype(np.uint8),
        labels=labels,
        boxes=np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]], np.float32),
        logits=logits,
        probabilities=np.array([[1 / 4, 3 / 4], [4 / 5, 1 / 5]], np.float32),
        patch_logits=rng.standard_normal((2, 4, 2)).astype(np.float32),
        attention=np.array([[0.7, 0.1, 0.1, 0.1], [0, 0, 0, 1]], np.float32),
    )


def test_the_figure_orders_predictions_with_their_probabilities():
    figure = draw_explanations(explanations(np.array([1, 1])), GRID, ["cat", "dog"])
    bars = figure.axes[3].patches
    np.testing.assert_allclose([bar.get_width() for bar in bars], [0.75, 0.25], rtol=1e-6)
    assert [label.get_text() for label in figure.axes[3].get_yticklabels()] == ["dog", "cat"]
    assert figure.axes[0].get_xlabel() == "first: dog"
    assert figure.axes[1].get_xlabel() == "highest weight: 2.8 x uniform"
    # The right class is green, a wrong one red.
    assert bars[0].get_facecolor() != bars[1].get_facecolor()


def test_all_boxes_are_drawn_and_absent_ones_are_not():
    shown = explanations(np.array([1, 1]))
    here, there = shown.boxes
    boxes = np.array([[here, data.NO_BOX, there], [data.NO_BOX] * 3], np.float32)
    figure = draw_explanations(dataclasses.replace(shown, boxes=boxes), GRID, ["cat", "dog"])
    for axis in figure.axes[:2]:
        assert [box.get_bbox().bounds for box in axis.patches] == [
            (-0.5, -0.5, 3, 3),
            (2.5, 2.5, 3, 3),
        ]
    assert not figure.axes[4].patches
    assert len(draw_explanations(shown, GRID, ["cat", "dog"]).axes[4].patches) == 1


def test_images_without_a_known_class_are_drawn_too():
    figure = draw_explanations(explanations(None), GRID, ["$\\cat$", "dog"])
    figure.savefig(io.BytesIO())  # a name is no formula
    assert figure.axes[0].get_xlabel() == "first"
    colours = {bar.get_facecolor() for bar in figure.axes[3].patches}
    assert len(colours) == 1


def test_an_image_of_several_classes_names_them_all():
    figure = draw_explanations(explanations(np.array([[1, 1], [0, 0]])), GRID, ["cat", "dog"])
    assert figure.axes[0].get_xlabel() == "first: cat, dog"
    assert len({bar.get_facecolor() for bar in figure.axes[3].patches}) == 1
    assert figure.axes[4].get_xlabel() == "second"

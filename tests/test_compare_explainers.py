"""The comparison of explainers: exact over batches, and what it measures, prints and draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax import compare_explainers, data, models, runs
from lossattn_jax.config import default_config
from lossattn_jax.errors import UserError
from lossattn_jax.explanation_metrics import Protocol

SPEC = data.DatasetSpec("toy", 3, ("a", "b", "c"), image_shape=(16, 16, 3), has_boxes=True)
PROTOCOL = Protocol(steps=4, road_shares=(0.3,))
DRAW = np.random.default_rng(0)


@pytest.fixture(scope="module")
def run():
    model = models.build("small", num_classes=3, width=0.1)
    variables = jax.jit(lambda key: model.init(key, jnp.zeros((1, 16, 16, 3))))(jax.random.key(1))
    return runs.Run(default_config(), SPEC, model, variables, step=7)


@pytest.fixture(scope="module")
def images():
    low = DRAW.uniform(0, 0.6, (7, 2))
    return data.ArrayDataset(
        SPEC,
        "test",
        DRAW.integers(0, 256, (7, 16, 16, 3), np.uint8),
        DRAW.integers(0, 3, 7).astype(np.int32),
        np.concatenate([low, low + 0.4], axis=1).astype(np.float32),
    )


@pytest.fixture(scope="module")
def measured(run, images):
    return compare_explainers.compare(
        run, images, ["attention", "smooth_grad"], num=7, batch_size=7, protocol=PROTOCOL
    )


@pytest.mark.slow
def test_every_metric_is_there(measured):
    assert list(measured) == ["attention", "smooth_grad"]
    for values in measured.values():
        assert set(values) == set(compare_explainers.HIGHER)
        assert np.isfinite(list(values.values())).all()
        assert values["ms_per_image"] > 0 and values["forward_passes"] > 0
        for name in ("pointing", "mass_in_box", "deletion", "insertion", "road_most", "localised"):
            assert 0 <= values[name] <= 1


@pytest.mark.slow
def test_batches_and_padding_change_no_metric(run, images, measured):
    parts = compare_explainers.compare(
        run, images, ["attention", "smooth_grad"], num=7, batch_size=3, protocol=PROTOCOL
    )
    for name, values in measured.items():
        for metric in set(values) - {"ms_per_image", "forward_passes"}:
            assert parts[name][metric] == pytest.approx(values[metric], abs=1e-5), (name, metric)


@pytest.mark.slow
def test_pointing_is_that_of_the_forward_pass_and_only_the_first_images_count(run, images):
    pixels = (images.images[:5] / 255 - 0.5) / 0.25
    outputs = run.model.apply(run.variables, jnp.asarray(pixels, jnp.float32))
    tops = np.asarray(outputs.attention).argmax(axis=1)
    centres = run.model.patch_grid(SPEC.image_shape).centres()[tops]
    boxes = images.boxes[:5]
    expected = ((centres >= boxes[:, :2]) & (centres <= boxes[:, 2:])).all(axis=1).mean()
    found = compare_explainers.compare(
        run, images, ["attention"], num=5, batch_size=3, protocol=PROTOCOL
    )
    assert found["attention"]["pointing"] == pytest.approx(expected)


@pytest.mark.slow
def test_a_data_set_without_boxes_has_no_localisation(run, images):
    blind = dataclasses.replace(images, boxes=None)
    found = compare_explainers.compare(
        run, blind, ["attention"], num=3, batch_size=3, protocol=PROTOCOL
    )
    assert "pointing" not in found["attention"] and "deletion" in found["attention"]


def test_the_table_says_what_is_better_and_the_figure_has_a_panel_for_each_metric():
    values = {name: 0.5 + place for place, name in enumerate(compare_explainers.HIGHER)}
    told = {"attention": {**values, "stability": None}, "smooth_grad": values}
    lines = compare_explainers.table(told).splitlines()
    assert lines[0] == "| metric | attention | smooth_grad |"
    assert lines[2] == "| pointing ↑ | 0.500 | 0.500 |"
    assert any(line.startswith("| deletion ↓ | ") for line in lines)
    assert any(line.startswith("| stability ↑ | - | ") for line in lines)
    assert len(lines) == 2 + len(compare_explainers.HIGHER)
    figure = compare_explainers.draw({"attention": values, "smooth_grad": values})
    titled = [axis.get_title() for axis in figure.axes]
    assert "deletion (lower is better)" in titled
    assert sum(bool(title) for title in titled) == len(compare_explainers.HIGHER)


def test_an_unknown_explainer_is_named(run, images):
    with pytest.raises(UserError, match="the explainer 'shap' is not known"):
        compare_explainers.compare(run, images, ["shap"])

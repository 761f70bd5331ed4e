"""The comparison of explainers: exact over batches, and what it measures, prints and draws."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from lossattn_jax import data, models
from lossattn_jax.checkpoint import runs
from lossattn_jax.config.images import default_config, resolve
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate.metrics import Mean
from lossattn_jax.explain import comparison, comparison_report
from lossattn_jax.explain.metrics import explanation_metrics, localisation
from lossattn_jax.explain.metrics.maps import Protocol, above_mean
from lossattn_jax.explain.metrics.metric_registry import METRICS
from tests.support import parameters

SPEC = data.DatasetSpec("toy", 3, ("a", "b", "c"), image_shape=(16, 16, 3), max_boxes=1)
PROTOCOL = Protocol(steps=4, road_shares=(0.3,))
DRAW = np.random.default_rng(0)
above_mean_jitted = jax.jit(above_mean)


@pytest.fixture(scope="module")
def run():
    model = models.build("small", num_classes=3, width=0.1)
    variables = parameters.draw(model, np.zeros((1, 16, 16, 3), np.float32))
    return runs.Run(resolve(default_config()), SPEC, model, variables, step=7)


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
    return comparison.compare(
        run, images, ["attention", "smooth_grad"], num=7, batch_size=7, protocol=PROTOCOL
    )


@pytest.mark.slow
def test_every_metric_is_there(measured):
    assert list(measured) == ["attention", "smooth_grad"]
    for values in measured.values():
        curves = values["curves"]
        assert set(values) - {"curves"} == set(METRICS)
        assert np.isfinite([values[name] for name in METRICS]).all()
        assert curves["threshold"] == list(localisation.THRESHOLDS)
        half = curves["threshold"].index(PROTOCOL.patch_threshold)
        for name in ("precision", "recall", "f"):
            assert curves[name][half] == pytest.approx(values[f"patch_{name}"])
        assert curves["recall"] == sorted(curves["recall"], reverse=True)
        assert values["patch_f_best"] == max(curves["f"])
        assert values["ms_per_image"] > 0 and values["forward_passes"] > 0
        for name in ("pointing", "mass_in_box", "deletion", "insertion", "road_most", "localised"):
            assert 0 <= values[name] <= 1
    first, second = measured.values()
    assert first["times_attention"] == 1
    assert second["times_attention"] == pytest.approx(
        second["forward_passes"] / first["forward_passes"]
    )


@pytest.mark.slow
def test_batches_and_padding_change_no_metric(run, images, measured):
    parts = comparison.compare(
        run, images, ["attention", "smooth_grad"], num=7, batch_size=3, protocol=PROTOCOL
    )
    for name, values in measured.items():
        for metric in set(values) - {"curves", "ms_per_image", "forward_passes", "times_attention"}:
            assert parts[name][metric] == pytest.approx(values[metric], abs=1e-5), (name, metric)
        for metric, curve in values["curves"].items():
            assert parts[name]["curves"][metric] == pytest.approx(curve, abs=1e-5), (name, metric)


@pytest.mark.slow
def test_localisation_is_of_the_forward_pass_on_the_first_images(run, images):
    boxes = images.boxes.copy()
    boxes[::2] = [0, 0, 1, 1]  # half of a patch lies in few of the others
    images = dataclasses.replace(images, boxes=boxes)
    pixels = (images.images[:5] / 255 - 0.5) / 0.25
    outputs = run.model.apply(run.variables, jnp.asarray(pixels, jnp.float32))
    tops = np.asarray(outputs.attention).argmax(axis=1)
    grid = run.model.patch_grid(SPEC.image_shape)
    boxes, labels = boxes[:5], images.labels[:5]
    centres = grid.centres()[tops]
    expected = ((centres >= boxes[:, :2]) & (centres <= boxes[:, 2:])).all(axis=1).mean()
    right = np.asarray(localisation.is_localised(outputs.attention, boxes, grid.boxes())) > 0
    scores = np.asarray(jax.nn.softmax(outputs.logits))
    # Scikit-learn's is the mean over those localised, ours over those that show the class.
    ranked = []
    for label in np.unique(labels):
        own = labels == label
        hits = right & own
        ap = average_precision_score(hits, scores[:, label]) if hits.any() else 0.0
        ranked.append(ap * hits.sum() / own.sum())
    assert 0 < np.mean(ranked) < 1
    found = comparison.compare(run, images, ["attention"], num=5, batch_size=3, protocol=PROTOCOL)
    assert found["attention"]["pointing"] == pytest.approx(expected)
    assert found["attention"]["localised"] == pytest.approx(right.mean())
    assert found["attention"]["localisation_ap"] == pytest.approx(np.mean(ranked))


@pytest.mark.slow
def test_a_data_set_without_boxes_has_no_localisation(run, images):
    blind = dataclasses.replace(images, boxes=None)
    found = comparison.compare(run, blind, ["contribution"], num=3, batch_size=3, protocol=PROTOCOL)
    absent = {"pointing", "curves", "patch_f_best", "localisation_ap", "times_attention"}
    assert not absent & set(found["contribution"]) and "deletion" in found["contribution"]
    assert not any(axis.get_legend() for axis in comparison_report.draw(found).axes)


def test_calls_are_counted_with_the_time_left(caplog, monkeypatch):
    monkeypatch.setattr(comparison, "_LOG_SECONDS", 0.0)
    caplog.set_level("INFO")
    calls = comparison._Calls(2)
    assert [calls.count("attention", lambda x: x + 1, number) for number in (1, 2)] == [2, 3]
    assert "attention: 1 of 2 calls  0:00:00 left" in caplog.text
    assert "attention: 2 of 2 calls  0:00:00 left" in caplog.text


def test_table_says_what_is_better_and_figure_has_all_metrics():
    values = {name: 0.5 + place for place, name in enumerate(METRICS)}
    told = {"attention": {**values, "stability": None}, "smooth_grad": values}
    lines = comparison_report.table(told).splitlines()
    assert lines[0] == "| metric | attention | smooth_grad |"
    assert lines[2] == "| pointing ↑ | 0.500 | 0.500 |"
    assert any(line.startswith("| deletion ↓ | ") for line in lines)
    assert any(line.startswith("| stability ↑ | - | ") for line in lines)
    assert any(line.startswith("| patch_f_best_threshold | ") for line in lines)
    assert len(lines) == 2 + len(METRICS)
    curves = {name: [0.1, 0.9] for name in ("threshold", "precision", "recall", "f")}
    slow = {**values, "curves": curves, "ms_per_image": 1e3}
    figure = comparison_report.draw(
        {"attention": {**values, "curves": curves}, "smooth_grad": slow}
    )
    titled = [axis.get_title() for axis in figure.axes]
    assert "deletion (lower is better)" in titled and "patch_f_best_threshold" in titled
    assert sum(bool(title) for title in titled) == len(METRICS) + 3
    scales = {
        axis.get_title().split()[0]: axis.get_xscale() for axis in figure.axes if axis.get_title()
    }
    assert (scales["ms_per_image"], scales["forward_passes"]) == ("log", "linear")
    (legend,) = [axis.get_legend() for axis in figure.axes if axis.get_legend()]
    assert [text.get_text() for text in legend.get_texts()] == ["attention", "smooth_grad"]


def test_patches_above_the_mean_by_hand():
    # Weights that sum to 1, where the mean is 1/4; a mean of 7/4; and so on.
    patches = [
        [0.26, 0.24, 0.3, 0.2],
        [4.0, 2.0, 1.0, -9.0],
        [1e30, 0.0, 0.0, 0.0],
        [0.25] * 4,
        [-1.0, -2.0, -3.0, 0.0],
        [0.0] * 4,
    ]
    inside = [[True, True, False, False], [True, False, True, True], [False] * 4, *[[True] * 4] * 3]
    precision, recall, f = above_mean_jitted(jnp.array(patches), jnp.array(inside))
    np.testing.assert_allclose(precision, [1 / 2, 1 / 2, 0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(recall, [1 / 2, 1 / 3, 0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(f, [1 / 2, 2 / 5, 0, 0, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("patches", [3, 36, 1024])
def test_no_patch_of_a_flat_map_is_above_its_mean(patches):
    flat = jnp.full((1, patches), 1 / patches)
    np.testing.assert_array_equal(above_mean_jitted(flat, jnp.ones((1, patches), bool)), 0)


def test_curves_and_their_best_threshold_by_hand():
    count = np.full(9, 4.0)
    f = np.array([1, 2, 3, 3, 2, 1, 1, 0, 0.0])
    sums = {
        "curve_precision": Mean(np.arange(9.0), count),
        "curve_recall": Mean(np.arange(9.0)[::-1], count),
        "curve_f": Mean(f, count),
        "patch_f": Mean(np.float64(2), np.float64(4)),
    }
    found = explanation_metrics.metrics_of(sums)
    assert found["patch_f"] == 0.5
    # The first of the two highest is the third threshold.
    assert (found["patch_f_best"], found["patch_f_best_threshold"]) == (0.75, 0.3)
    assert found["curves"] == {
        "threshold": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        "precision": [place / 4 for place in range(9)],
        "recall": [place / 4 for place in reversed(range(9))],
        "f": (f / 4).tolist(),
    }
    assert explanation_metrics.metrics_of({"deletion": sums["patch_f"]}) == {"deletion": 0.5}


def test_mean_localisation_ap_by_hand():
    labels, localised = np.array([0, 0, 2, 1]), np.array([1.0, 0.0, 1.0, 0.0])
    probabilities = np.array(
        [[0.5, 0.3, 0.2], [0.4, 0.3, 0.3], [0.7, 0.2, 0.1], [0.0, 0.1, 0.9]],
    )
    # Class 0: the third image ranks first and shows another class, the first one comes second; the second
    # is not localised: (1/2) / 2. Class 1 has nothing localised. Class 2: its image is the last.
    found = explanation_metrics.mean_localisation_ap(localised, probabilities, labels)
    assert found == pytest.approx((1 / 4 + 0 + 1 / 4) / 3)
    # A class that no image shows does not count.
    found = explanation_metrics.mean_localisation_ap(localised[:2], probabilities[:2], labels[:2])
    assert found == pytest.approx(1 / 2)
    probabilities[1, 2] = np.nan
    assert math.isnan(explanation_metrics.mean_localisation_ap(localised, probabilities, labels))


@pytest.mark.slow
def test_randomised_parts_of_the_network_add_up(run):
    stages = explanation_metrics.randomised_variables(run.variables, seed=0)
    assert list(stages) == ["classifier", "head", "backbone"]

    def changed(variables):
        parts = {}
        for part, before in run.variables["params"].items():
            pairs = jax.tree.map(np.array_equal, before, variables["params"][part])
            parts[part] = not all(jax.tree.leaves(pairs))
        return {part for part, changed in parts.items() if changed}

    assert changed(stages["classifier"]) == {"classifier"}
    assert changed(stages["head"]) == {"classifier", "head"}
    assert changed(stages["backbone"]) == {"classifier", "head", "backbone"}
    assert all(stage["batch_stats"] is run.variables["batch_stats"] for stage in stages.values())


def test_an_unknown_explainer_is_named(run, images):
    with pytest.raises(UserError, match="explainer is 'shap', but must be one of: attention"):
        comparison.compare(run, images, ["shap"])


@pytest.mark.slow
def test_of_several_objects_those_of_the_predicted_class_count(run, images):
    several = dataclasses.replace(SPEC, max_boxes=2, multi_label=True)
    run = dataclasses.replace(run, spec=several)
    pixels = (images.images / 255 - 0.5) / 0.25
    outputs = run.model.apply(run.variables, jnp.asarray(pixels, jnp.float32))
    predicted = np.asarray(outputs.logits).argmax(axis=1)
    # The whole image is of another class, a part of it, or nothing of the third image, of the predicted one.
    boxes = np.stack([np.tile([0, 0, 1, 1], (7, 1)), images.boxes], axis=1).astype(np.float32)
    box_labels = np.stack([(predicted + 1) % 3, predicted], axis=1).astype(np.int32)
    boxes[2, 1], box_labels[2, 1] = data.NO_BOX, -1
    labels = np.zeros((7, 3), np.uint8)
    images = dataclasses.replace(
        images, spec=several, labels=labels, boxes=boxes, box_labels=box_labels
    )
    (found,) = comparison.compare(
        run, images, ["attention"], num=7, batch_size=4, protocol=PROTOCOL
    ).values()
    tops = np.asarray(outputs.attention).argmax(axis=1)
    centres = run.model.patch_grid(SPEC.image_shape).centres()[tops]
    inside = ((centres >= boxes[:, 1, :2]) & (centres <= boxes[:, 1, 2:])).all(axis=1)
    assert found["pointing"] == pytest.approx(np.delete(inside, 2).mean(), abs=1e-6)
    assert "localisation_ap" not in found and 0 <= found["deletion"] <= 1

"""Figures of instance metrics: that lines, labels, bars and frames are those of the values given."""

import json
import os

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from lossattn_jax.errors import UserError
from lossattn_jax.mil.instance_figures import (
    at_threshold,
    bag_figure,
    lambda_figure,
    save,
    threshold_figure,
)
from lossattn_jax.mil.instance_metrics import THRESHOLDS, json_ready, mean_and_spread

NAMES = ("precision", "recall", "f_score")


def summary(seed, runs=3):
    """Of random runs, as read back from JSON; no precision at the last threshold."""
    rng = np.random.default_rng(seed)
    drawn = [{name: rng.uniform(0.2, 0.9, 9) for name in NAMES} for _ in range(runs)]
    for run in drawn:
        run["precision"][-1] = np.nan
    return json.loads(json.dumps(json_ready(mean_and_spread(drawn))))


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def lightness(colour):
    return np.dot(to_rgb(colour), [0.2126, 0.7152, 0.0722])


def test_threshold_figure_draws_lambdas_from_dark_to_light():
    curves = {value: summary(seed) for seed, value in enumerate((1.0, 0, 1e-4, 100))}
    figure = threshold_figure(curves)
    figure.draw_without_rendering()
    assert [axis.get_title() for axis in figure.axes] == ["precision", "recall", "F-score"]
    assert legend(figure) == ["0", "0.0001", "1", "100"]
    assert figure.legends[0].get_title().get_text() == "λ"
    for axis, name in zip(figure.axes, NAMES, strict=True):
        assert [label.get_text() for label in axis.get_xticklabels()] == [
            f"{t}" for t in THRESHOLDS
        ]
        assert len(axis.lines) == len(axis.collections) == 4
        for line, key in zip(axis.lines, sorted(curves), strict=True):
            np.testing.assert_allclose(line.get_xdata(), THRESHOLDS)
            expected = np.array(curves[key][name]["mean"], float)
            np.testing.assert_allclose(line.get_ydata(), expected)
        shades = [lightness(line.get_color()) for line in axis.lines]
        assert shades == sorted(shades) and shades[-1] < 0.8
        assert len({line.get_marker() for line in axis.lines}) == 4


def test_the_band_is_one_deviation_to_either_side():
    one = {"mean": [0.5, 0.95], "std": [0.1, 0.2]}
    figure = threshold_figure({"only": dict.fromkeys(NAMES, one)}, [0.2, 0.8])
    (path,) = figure.axes[1].collections[0].get_paths()
    corners = {(round(x, 9), round(y, 9)) for x, y in path.vertices}
    assert corners == {(0.2, 0.4), (0.2, 0.6), (0.8, 0.75), (0.8, 1.0)}  # no score is above 1


def test_a_single_run_has_no_band():
    figure = threshold_figure({0: summary(0, runs=1)})
    assert [len(axis.collections) for axis in figure.axes] == [0, 0, 0]


def test_methods_keep_their_order_and_differ():
    curves = {f"method {number}": summary(number) for number in (3, 1, 2, *range(4, 12))}
    figure = threshold_figure(curves, legend_title="method")
    assert legend(figure) == list(curves)
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == len(curves)


def test_threshold_figure_rejects_what_it_cannot_draw():
    with pytest.raises(ValueError, match="no curve"):
        threshold_figure({})
    with pytest.raises(ValueError, match=r"0.1 has \(9,\) means"):
        threshold_figure({0.1: summary(0)}, [0.1, 0.2])


def test_lambda_figure_has_zero_at_the_left_of_its_log_axis():
    values = (10.0, 0, 1e-2, 1e-1, 1)
    f_scores = {value: {"mean": 0.5 + 0.01 * n, "std": 0.1} for n, value in enumerate(values)}
    accuracy = {value: {"mean": 0.9, "std": None} for value in (0, 1)}
    figure = lambda_figure({"F-score": f_scores, "bag accuracy": accuracy}, ylabel="score")
    figure.draw_without_rendering()
    axis = figure.axes[0]
    assert legend(figure) == ["F-score", "bag accuracy"]
    assert axis.get_ylabel() == "score"
    assert [text.get_text() for text in axis.get_xticklabels()] == ["0", "0.01", "0.1", "1", "10"]
    np.testing.assert_array_equal(axis.lines[0].get_xdata(), [0, 1e-2, 1e-1, 1, 10])
    np.testing.assert_allclose(axis.lines[0].get_ydata(), [0.51, 0.52, 0.53, 0.54, 0.5])
    np.testing.assert_array_equal(axis.lines[1].get_xdata(), [0, 1])
    assert len(axis.collections) == 1  # accuracy has no deviation
    across = axis.transData.transform([(tick, 0) for tick in axis.get_xticks()])[:, 0]
    steps = np.diff(across)
    assert (steps > 0).all()
    np.testing.assert_allclose(steps[1:], steps[1], rtol=1e-6)  # a decade each
    assert 0.8 < steps[0] / steps[1] < 1.3
    low, high = axis.get_xlim()
    assert low < 0 and high > 10


@pytest.mark.parametrize("values", [(0,), (1e-3,), (0.5, 0.7)])
def test_lambda_figure_of_few_values(values):
    by_lambda = dict.fromkeys(values, {"mean": 0.5, "std": 0.1})
    axis = lambda_figure({"F-score": by_lambda}).axes[0]
    low, high = axis.get_xlim()
    assert low < min(values) and max(values) < high
    np.testing.assert_array_equal(axis.get_xticks(), values)


@pytest.mark.parametrize("value", [-1.0, np.inf])
def test_lambda_figure_rejects_what_has_no_place(value):
    with pytest.raises(ValueError, match="must be 0 or more"):
        lambda_figure({"F-score": {value: {"mean": 0.5, "std": 0.1}}})
    with pytest.raises(ValueError, match="at least one"):
        lambda_figure({"F-score": {}})


def test_at_threshold():
    whole = mean_and_spread([{"f": np.arange(9.0)}, {"f": np.arange(9.0) + 2}])["f"]
    part = at_threshold(whole, 0.3)
    assert part["mean"] == 3 and part["std"] == pytest.approx(np.sqrt(2)) and part["runs"] == 2
    with pytest.raises(ValueError, match="threshold is 0.35"):
        at_threshold(whole, 0.35)


def frames(axis):
    return [patch.get_x() + 0.46 for patch in axis.patches if isinstance(patch, Rectangle)]


def test_bag_figure_shows_images_weights_and_truth():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 6, 6, 1)).astype(np.uint8)
    weights = np.array([0.1, 0.2, 0.4, 0.25, 0.05])
    names = ["", "three", "nine"]
    figure = bag_figure(
        images, weights, [0, 1, 0, 2, 0], class_names=names, title="bag 7", columns=3
    )
    assert figure.get_suptitle() == "bag 7"
    first, first_bars, second, second_bars = figure.axes
    assert [len(axis.images) for axis in figure.axes] == [3, 0, 2, 0]
    np.testing.assert_allclose(first.images[1].get_array(), images[1, ..., 0] / 255)
    np.testing.assert_allclose(second.images[1].get_array(), images[4, ..., 0] / 255)
    np.testing.assert_allclose(frames(first), [1])
    np.testing.assert_allclose(frames(second), [0])
    assert [text.get_text() for text in first.texts] == ["", "three", ""]
    bars = [*first_bars.patches, *second_bars.patches]
    np.testing.assert_allclose([bar.get_height() for bar in bars], weights)
    assert [text.get_text() for text in first_bars.texts] == ["0.10", "0.20", "0.40"]
    assert first_bars.get_ylim() == second_bars.get_ylim()
    true, other = bars[1].get_facecolor(), bars[0].get_facecolor()
    assert [bar.get_facecolor() for bar in bars] == [other, true, other, true, other] != [true] * 5
    # Each bar is under its image, which is square.
    for images_axis, bars_axis in ((first, first_bars), (second, second_bars)):
        above, below = images_axis.get_position(), bars_axis.get_position()
        assert (above.x0, above.x1) == (below.x0, below.x1) and below.y1 <= above.y0
        assert images_axis.get_xlim() == bars_axis.get_xlim()
        size = figure.get_size_inches() * above.size
        assert size[0] / size[1] == pytest.approx(len(images_axis.images))


def test_bag_figure_undoes_a_normalisation():
    pixels = np.random.default_rng(0).random((3, 4, 4, 3))
    pixels[0, 0, 0], pixels[2, 1, 1] = 0, 1
    normalised = (pixels - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    figure = bag_figure(normalised, np.full(3, 1 / 3))
    for shown, image in zip(figure.axes[0].images, pixels, strict=True):
        np.testing.assert_allclose(shown.get_array(), image, atol=1e-12)
    assert not frames(figure.axes[0]) and not figure.axes[0].texts


def test_bag_figure_rejects_what_does_not_fit():
    images = np.zeros((2, 4, 4))
    with pytest.raises(ValueError, match="one for each of 2 images"):
        bag_figure(images, [1.0])
    with pytest.raises(ValueError, match="1 or 3 channels"):
        bag_figure(np.zeros((2, 4, 4, 2)), [0.5, 0.5])
    with pytest.raises(ValueError, match="finite"):
        bag_figure(images, [0.5, np.nan])


def test_save(tmp_path):
    figure = bag_figure(np.zeros((2, 4, 4)), [0.5, 0.5])
    path = save(figure, tmp_path / "bag.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    for wrong in ("none/bag.png", "bag.unknown"):
        with pytest.raises(UserError, match="cannot be written"):
            save(figure, tmp_path / wrong)


def test_a_figure_replaces_a_link(tmp_path):
    (tmp_path / "bag.png").symlink_to(tmp_path / "elsewhere")
    scores = {value: {"mean": 0.5, "std": 0.1} for value in (0.0, 1.0)}
    save(lambda_figure({"pointing": scores}), tmp_path / "bag.png")
    assert not (tmp_path / "bag.png").is_symlink() and os.listdir(tmp_path) == ["bag.png"]

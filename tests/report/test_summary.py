"""Counts over a split by hand, and that batches change nothing."""

import numpy as np
import pytest

from lossattn_jax.attention import losses
from lossattn_jax.evaluate import metric_registry
from lossattn_jax.explain.report.summary import WEIGHT_EDGES, Summary, weight_names

LN = np.log


def rows():
    """Three images of two classes and four patches."""
    patch = np.zeros((3, 4, 2), np.float32)
    patch[0, :, 0] = 1  # all predict class 0
    patch[1, :2, 1] = 1  # two predict class 1, two class 0 (ties go to the first)
    patch[2, :, 1] = 1
    return {
        "label": np.array([0, 1, 0], np.int32),
        "logits": np.array([[LN(3), 0], [0, LN(9)], [0, LN(4)]], np.float32),
        "patch_logits": patch,
        "attention": np.array([[1, 0, 0, 0], [0.25] * 4, [0.6, 0.2, 0.2, 0]], np.float32),
    }


def counted(*batches):
    summary = Summary(2, losses.CROSS_ENTROPY, multi_label=False)
    for batch in batches:
        summary.add(batch)
    return summary


def test_counts_by_hand():
    summary = counted(rows())
    assert summary.images == 3
    assert summary.confusion.tolist() == [[1, 1], [0, 1]]
    assert summary.entropy[0] == 1 and summary.entropy[-1] == 1 and summary.entropy.sum() == 3
    # Weights over 1/4: image 0 has 4 and three 0; image 1 four times 1; image 2 has 2.4, .8, .8, 0.
    found = dict(
        zip(weight_names(), zip(summary.patches, summary.right_patches, strict=True), strict=True)
    )
    assert found == {
        "0 (cut)": (4, 3),
        "0 to 0.25": (0, 0),
        "0.25 to 0.5": (0, 0),
        "0.5 to 1": (6, 2),
        "1 to 2": (0, 0),
        "2 to 4": (2, 1),
        "4 to 8": (0, 0),
        "above 8": (0, 0),
    }
    assert len(weight_names()) == len(WEIGHT_EDGES) + 1
    # Confidences .75, .9, .8 in bins 11, 13 and 12 of 15; the last one is wrong.
    assert np.flatnonzero(summary.confidences).tolist() == [11, 12, 13]
    assert summary.right[[11, 12, 13]].tolist() == [1, 0, 1]
    assert summary.calibration_error() == pytest.approx((0.25 + 0.8 + 0.1) / 3, abs=1e-6)


def test_batches_change_nothing():
    whole = rows()
    parts = [
        {name: array[part] for name, array in whole.items()} for part in (slice(1), slice(1, 3))
    ]
    one, two = counted(whole), counted(*parts)
    assert vars(one).keys() == vars(two).keys()
    for name, value in vars(one).items():
        np.testing.assert_allclose(value, vars(two)[name]) if name != "_kind" else None


def test_several_classes_per_image():
    batch = {**rows(), "label": np.array([[1, 1], [1, 0], [0, 0]], np.uint8)}
    summary = Summary(2, losses.SIGMOID, multi_label=True)
    summary.add(batch)
    assert summary.right.sum() == 1  # the second image predicts class 1, the third has none
    assert summary.right_patches.sum() == 4 + 2
    assert [plot.name for plot in summary.plots(["a", "b"])] == ["entropy", "patches"]


def test_calibration_is_that_of_evaluation():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(500, 2), scale=2).astype(np.float32)
    labels = draw.integers(0, 2, 500).astype(np.int32)
    batch = {
        "label": labels,
        "logits": logits,
        "patch_logits": logits[:, None],
        "attention": np.ones((500, 1), np.float32),
    }
    from lossattn_jax.models import Outputs

    outputs = Outputs(logits, logits[:, None], np.ones((500, 1), np.float32))
    sums = metric_registry.evaluation_sums(
        outputs, labels, np.ones(500, np.float32), np.zeros((1, 2))
    )
    expected = metric_registry.evaluation_metrics(sums)["calibration_error"]
    assert counted(batch).calibration_error() == pytest.approx(expected, abs=1e-5)


def test_plots_say_what_they_show():
    plots = {plot.name: plot for plot in counted(rows()).plots(["<cat>$\\x$", "dog"])}
    assert list(plots) == ["entropy", "patches", "confusion", "reliability"]
    assert (
        "2 of 3 images on the diagonal. <cat>$\\x$ taken for dog 1 times" in plots["confusion"].alt
    )
    assert "weight 2 to 4: 0.500 of 2 patches" in plots["patches"].alt
    assert "confidence 0.80: 0.00 right of 1" in plots["reliability"].alt
    assert all(plot.png.startswith(b"\x89PNG") and len(plot.png) > 2000 for plot in plots.values())

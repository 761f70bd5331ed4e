"""Data sets of 64x64 images with boxes: networks that suit them, and a run from start to end."""

import pathlib

import jax
import numpy as np
import pytest

from lossattn_jax.checkpoint import runs
from lossattn_jax.evaluate.evaluation import evaluate_run
from lossattn_jax.explain import run_report
from lossattn_jax.train.images import loop
from tests.support import shrunk

NAMES = ("svhn_full", "tiny_imagenet")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("backbone", "patches"), [("resnet18_stride2", 36), ("small", 196)])
def test_networks_fit_the_images(name, backbone, patches):
    config = shrunk.config("nowhere", data__name=name, model__backbone=backbone, model__width=1.0)
    spec = runs.spec_of(config.data)
    model = runs.build_model(config.model, spec)
    images = np.zeros((1, *spec.image_shape), np.float32)
    outputs, _ = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), images, train=False)
    )
    assert outputs.logits.shape == (1, spec.num_classes)
    assert outputs.attention.shape == (1, patches)
    assert model.patch_grid(spec.image_shape).patches == patches


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet18_stride2", "small"])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_trains_evaluates_and_is_explained(name, backbone, request, tmp_path):
    config = shrunk.config(
        request.getfixturevalue(f"{name}_dir"),
        data__name=name,
        model__backbone=backbone,
        model__width=0.0625,
        train__epochs=2,
        train__batch_size=4,
        eval__batch_size=2,
        optimizer__warmup_epochs=0.0,
        log__pictures=1,
    )
    measured = loop.train(config, tmp_path)
    again = evaluate_run(str(tmp_path))
    for metric in ("loss", "pointing_accuracy", "attention_in_box", "patches_in_box"):
        assert again[metric] == pytest.approx(measured[metric], rel=1e-4)
    assert 0 < again["patches_in_box"] < 1
    page = pathlib.Path(run_report.explain_run(str(tmp_path), num=2))
    assert page.stat().st_size > 10_000

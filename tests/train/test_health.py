"""When a run is told that its attention has collapsed, and what it is told to try."""

import math

import pytest

from lossattn_jax.config.images import default_config, resolve
from lossattn_jax.train.images.health import AttentionWatch

EPOCH = 100
HIGHEST = math.log(36)
UNIFORM, FINE, ONE = 0.995 * HIGHEST, 0.5 * HIGHEST, 0.01 * HIGHEST


def watch(patches=36, **changes):
    config = default_config()
    config.train.epochs = 20
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return AttentionWatch(resolve(config), patches, EPOCH)


def test_it_is_said_once_and_again_after_a_recovery():
    watched = watch()
    said = [
        watched.look(entropy, 2 * EPOCH + step)
        for step, entropy in enumerate([FINE, UNIFORM, UNIFORM, FINE, ONE, ONE, UNIFORM])
    ]
    assert [bool(sentence) for sentence in said] == [False, True, False, False, True, False, True]
    assert (
        "attention is nearly uniform" in said[1] and "attention lies nearly on one patch" in said[4]
    )
    assert "its entropy is 3.566 of 3.584 nats (log P) by step 201" in said[1]


def test_a_beginning_is_not_a_collapse():
    watched = watch()  # a tenth of 20 epochs
    assert watched.look(UNIFORM, 2 * EPOCH - 1) is None
    assert watched.look(UNIFORM, 2 * EPOCH) is not None
    short = watch(train__epochs=3)
    assert short.look(UNIFORM, EPOCH - 1) is None
    assert short.look(UNIFORM, EPOCH) is not None


@pytest.mark.parametrize(
    "pooling, entropy, changes, advice",
    [
        (
            "loss_attention",
            UNIFORM,
            {},
            "threshold above 0.1 (at most 1), or config.loss.patch_weight ",
        ),
        ("loss_attention", UNIFORM, {}, "(lambda) above 0.1, such as 1"),
        (
            "loss_attention",
            UNIFORM,
            {"model__threshold": 1.0},
            "try config.loss.patch_weight (lambda) above",
        ),
        ("loss_attention", UNIFORM, {"loss__patch_weight": 0.0}, "above 0, such as 0.1"),
        ("loss_attention", UNIFORM, {"loss__patch": "off"}, "config.loss.patch=off leaves"),
        (
            "loss_attention",
            ONE,
            {},
            "threshold below 0.1, or config.loss.patch_weight (lambda) below 0.1",
        ),
        (
            "loss_attention",
            ONE,
            {"model__threshold": 0.0},
            "try config.loss.patch_weight (lambda) below 0.1",
        ),
        ("bag_loss_attention", UNIFORM, {}, "a shorter config.loss.patch_ramp_epochs than 80"),
        ("bag_loss_attention", ONE, {}, "such as 0.01"),
        ("attention", UNIFORM, {}, "config.loss.patch=on"),
        ("gated_attention", ONE, {}, "try config.model.pooling=loss_attention"),
        (
            "attention",
            ONE,
            {"loss__patch": "on"},
            "try config.loss.patch_weight (lambda) below 0.1",
        ),
    ],
)
def test_what_to_try(pooling, entropy, changes, advice):
    assert advice in watch(model__pooling=pooling, **changes).look(entropy, 10 * EPOCH)


@pytest.mark.parametrize("pooling", ["mean", "max", "none", "dynamic_routing"])
def test_attention_that_nothing_could_mend_is_not_watched(pooling):
    assert watch(model__pooling=pooling).look(UNIFORM, 10 * EPOCH) is None


def test_one_patch_and_a_diverged_run_are_not_watched():
    assert watch(patches=1).look(0.0, 10 * EPOCH) is None
    assert watch().look(math.nan, 10 * EPOCH) is None

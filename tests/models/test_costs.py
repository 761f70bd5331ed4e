"""What networks cost at a size of images: counts by hand, and sizes that are refused."""

import pytest

from lossattn_jax import models
from lossattn_jax.errors import UnknownName
from lossattn_jax.models import costs
from reliability import in_process


def test_costs_of_a_small_network_by_hand():
    side, width = 16, 1 / 8
    first, second, classes = 6, 12, 10
    cost = costs.of_network(models.build("small", "none", "mean", width=width), (side, side, 3))
    assert cost.patches == 16
    convolutions = 4 * 4 * 3 * first + 4 * 4 * first * second + 4 * 9 * second * second
    norms = 2 * (first + 5 * second)
    assert cost.parameters == convolutions + norms + second * classes + classes
    # Pairs of a pixel and a weight; of 4 taps at 8 or 4 places one at either end falls outside, of 3 one.
    products = 3 * first * (4 * 8 - 2) ** 2 + first * second * (4 * 4 - 2) ** 2
    products += 4 * second * second * (3 * 4 - 2) ** 2
    assert 2 * products < cost.operations < 2.5 * products
    assert cost.seconds is None


def test_values_that_are_kept_grow_with_the_image():
    model = models.build("small", "none", "mean", width=1 / 8)
    small, large = (costs.of_network(model, (side, side, 3)).kept_bytes for side in (16, 32))
    maps = 4 * (16 * 16 * 3 + 8 * 8 * 6 + 5 * 4 * 4 * 12)  # at least the inputs of all convolutions
    assert maps < small < 10 * maps
    assert 3.5 * small < large < 4.5 * small


def test_the_command_prints_costs_and_refusals(tmp_path):
    def run(*flags):
        return in_process.run(["-m", "lossattn_jax.models", *flags], tmp_path)

    finished = run("--list", "--image_size=32", "--backbones=small,vit_s14_dinov2", "--time")
    assert finished.returncode == 0, finished.stderr
    rows = [line.split() for line in finished.stdout.splitlines()]
    assert rows[0] == "backbone head patches parameters GFLOP weights training time".split()
    assert rows[2][:4] == ["small", "none", "64", "0.41"] and float(rows[2][-1]) > 0
    assert rows[3][:3] == ["small", "conv", "36"]
    assert " ".join(rows[4]).startswith("vit_s14_dinov2 none refused: the images have 32x32 pixels")
    alone = run("--time")
    assert (
        alone.returncode == 2 and "--time is about costs, which need --image_size" in alone.stderr
    )
    assert run("--image_size=0").returncode == 2


def test_an_unknown_backbone_is_refused_at_once():
    with pytest.raises(UnknownName, match="vit_s17"):
        next(costs.lines(224, ["small", "vit_s17"], ["none"]))

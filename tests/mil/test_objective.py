"""The loss of bags by hand: which terms each method has, and what lambda multiplies."""

import jax.numpy as jnp
import numpy as np
import pytest

from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.train.bags.objective import bag_loss

# Odds for class 0: 3 to 1 of the bag; 1 to 1 and 1 to 3 of its instances, and of padding.
BAG = np.array([[3, 1]])
INSTANCES = np.array([[[1, 1], [1, 3], [9, 1]]])
ATTENTION = np.array([[0.75, 0.25, 0.0]])
MASK = np.array([[True, True, False]])
BAG_LOSS, WEIGHTED = np.log(4 / 3), 0.75 * np.log(2) + 0.25 * np.log(4)


def loss(patch_weight, reduction, attention=ATTENTION, mask=MASK, side=None):
    outputs = Outputs(jnp.log(BAG), jnp.log(INSTANCES), jnp.asarray(attention, jnp.float32))
    side = None if side is None else jnp.log(side)
    return bag_loss(outputs, jnp.array([0]), jnp.asarray(mask), patch_weight, reduction, side)


@pytest.mark.parametrize(
    ("patch_weight", "reduction", "expected"),
    [
        (None, "mean", BAG_LOSS),
        (0.5, "sum", BAG_LOSS + 0.5 * WEIGHTED),
        (0.5, "mean", BAG_LOSS + 0.25 * WEIGHTED),  # two instances are real
    ],
)
def test_lambda_weighs_the_loss_of_instances(patch_weight, reduction, expected):
    np.testing.assert_allclose(loss(patch_weight, reduction), [expected], rtol=1e-6)


def test_a_bag_without_instances_has_its_own_loss_alone():
    alone = loss(0.5, "mean", attention=0 * ATTENTION, mask=MASK & False)
    np.testing.assert_allclose(alone, [BAG_LOSS], rtol=1e-6)


def test_side_classifiers_have_the_sum_of_their_losses():
    together = loss(0.5, "sum", side=INSTANCES[:, :2])
    np.testing.assert_allclose(together, [np.log(2) + np.log(4)], rtol=1e-6)

"""Makes an update of a network for bags again that a training has skipped, and says what was not finite:

python -m lossattn_jax.mil.replay --dump=runs/mil/musk1/loss_attention/nonfinite/model_3_epoch_2_update_12
"""

import pathlib
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from lossattn_jax.commands import command
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import nonfinite_values
from lossattn_jax.train.bags import dumps
from lossattn_jax.train.bags.dumps import Dump
from lossattn_jax.train.bags.gradients import Gradients, decayed
from lossattn_jax.train.bags.settings import PER_MODEL
from lossattn_jax.train.bags.states import Models


def replay(dump: str | pathlib.Path, *, trust_code: bool = False) -> list[str]:
    """Computes loss and gradient of a dumped update again, with its dropout.

    Args:
      dump: a folder of `lossattn_jax.train.bags.dumps`.
      trust_code: whether code that it names by reference is imported.

    Returns:
      Sentences: how large the bags' features are, and what of the model before the update, of the bags'
      losses and of the gradient is not finite.

    Raises:
      UserError: there is no such dump, or it cannot be read.
    """
    folder = pathlib.Path(dump)
    stored = dumps.read(folder, trust_code=trust_code)
    try:
        per_bag, gradient = jax.jit(lambda state, bags: _update(stored, state, bags))(
            dict(stored.state), dict(stored.bags)
        )
        largest, taken = _largest(stored.bags)
        of_losses = nonfinite_values.of_losses(np.asarray(per_bag), stored.ids, "bags")
    except (KeyError, TypeError, ValueError, flax.errors.FlaxError) as error:
        raise UserError(
            f"{folder / dumps.ARRAYS_NAME} does not hold an update of the network in {dumps.UPDATE_NAME}: "
            f"{error}"
        ) from None
    return [
        f"{stored.training}: the update {stored.update} was made again.",
        f"The largest feature is {largest:.3g} in size, and {taken:.3g} as the network gets it.",
        nonfinite_values.of_state(dict(stored.state), "parameters and Adam's moments"),
        of_losses,
        nonfinite_values.of_gradient(jax.tree.map(np.asarray, gradient)),
    ]


def _update(stored: Dump, state: Any, bags: Any) -> tuple[jax.Array, Any]:
    """Loss of each bag, and the gradient that Adam takes the squares of."""
    settings = stored.settings
    model = Models(
        seed=None,
        mean=bags["mean"],
        inverse_scale=bags["inverse_scale"],
        train=None,
        held=None,
        scored=None,
        keep_epoch=None,
        class_weights=bags.get("class_weights"),
        **{name: jnp.float32(getattr(settings, name)) for name in PER_MODEL},
    )
    (_, (_, per_bag)), gradient = Gradients(stored.network, settings, stored.consistency)(
        bags["labels"],
        jnp.int32(stored.epoch),
        bags["x"],
        bags["mask"],
        True,
        model,
        state["params"],
        jnp.ones(len(stored.ids), bool),
        bags["noise"],
        bags["target"],
    )
    return per_bag, decayed(model, state["params"], gradient)


def _largest(bags: Any) -> tuple[float, float]:
    """The largest feature in size, as it is in the data set and standardised."""
    given = bags["x"][bags["mask"]]
    with np.errstate(over="ignore", invalid="ignore"):
        taken = (given - bags["mean"]) * bags["inverse_scale"]
    return float(np.abs(given).max()), float(np.abs(taken).max())


def main() -> None:
    """The command; see the flags."""
    print("\n".join(replay(flags.FLAGS.dump, trust_code=flags.FLAGS.trust_code)))


if __name__ == "__main__":
    flags.DEFINE_string("dump", None, "folder that the training named when it ended", required=True)
    command.define_trust_code()
    command.run(main)

"""Replay of a skipped update of a network for bags."""

from collections.abc import Mapping
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax.config.options import OptimizerOptions
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import nonfinite_values
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.registry import refuse_untrusted
from lossattn_jax.train.bags.gradients import BagGradients, Gradients, StepBags, with_decay
from lossattn_jax.train.bags.settings import PER_MODEL, Settings
from lossattn_jax.train.bags.states import Models
from lossattn_jax.train.dumps import ARRAYS_NAME, RECORD_NAME, Dump


def replay_update(dump: Dump, trust_code: bool = False) -> list[str]:
    """Recomputes loss and gradient of a dumped update.

    Args:
      dump: of `train.bags.nonfinite`.
      trust_code: whether code that it names by reference is imported.

    Returns:
      Sentences: how large the bags' features are, and what of the model before the update, of the bags'
      losses and of the gradient is not finite.

    Raises:
      UserError: the dump does not hold an update of its network.
    """
    content = dump.content
    # Each value under its own key, so that none hides behind another; ids of bags may look like code.
    parts = [(name, content[name]) for name in ("network", "settings")]
    refuse_untrusted(parts, dump.folder / RECORD_NAME, trust_code)
    state, batch = dump.tree("state"), dump.tree("batch")
    try:
        compute = jax.jit(lambda state, batch: _compute_gradients(content, state, batch))
        per_bag, gradients = compute(state, batch)
        raw_size, input_size = _largest_features(batch)
        of_losses = nonfinite_values.of_losses(np.asarray(per_bag), content["ids"], "bags")
    except (KeyError, TypeError, ValueError, UserError, flax.errors.FlaxError) as error:
        raise UserError(
            f"{dump.folder / ARRAYS_NAME} does not hold an update of the network in {RECORD_NAME}: {error}"
        ) from None
    return [
        f"{content['training']}: the update {content['update']} was made again.",
        f"The largest feature is {raw_size:.3g} in size, and {input_size:.3g} as the network gets it.",
        nonfinite_values.of_state(state, "parameters and the optimiser's state"),
        of_losses,
        nonfinite_values.of_gradient(jax.tree.map(np.asarray, gradients)),
    ]


def network_of(content: Mapping[str, Any]) -> BagNetwork:
    """Makes the network of a dump's record."""
    hidden = content["network"]["hidden"]
    return BagNetwork(**{**content["network"], "hidden": None if hidden is None else tuple(hidden)})


def settings_of(content: Mapping[str, Any]) -> Settings:
    """Makes the settings of a dump's record.

    Records of the release before had no optimiser but Adam.
    """
    values = dict(content["settings"])
    if "optimizer" in values:
        options: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values["optimizer"].items()
        }
        values["optimizer"] = OptimizerOptions(**options)
    return Settings(**values)


def _compute_gradients(content: Mapping[str, Any], state: Any, batch: Any) -> tuple[jax.Array, Any]:
    """Computes each bag's loss, and the gradient with its L2 term."""
    settings = settings_of(content)
    model = Models(
        seed=None,
        mean=batch["mean"],
        inverse_scale=batch["inverse_scale"],
        train=None,
        held_out=None,
        selection=None,
        keep_epoch=None,
        class_weights=batch.get("class_weights"),
        **{name: jnp.float32(getattr(settings, name)) for name in PER_MODEL},
    )
    bags = StepBags(
        x=batch["x"],
        mask=batch["mask"],
        labels=batch["labels"],
        visible=jnp.ones(len(content["ids"]), bool),
        noise=batch["noise"],
        target=batch["target"],
    )
    compute = Gradients(network_of(content), settings, bool(content["consistency"]))
    epoch = jnp.int32(content["epoch"])
    of_bags: BagGradients = compute(model, state["params"], bags, epoch, guard_loss=True)
    return of_bags.losses, with_decay(model, state["params"], of_bags.gradients)


def _largest_features(batch: Any) -> tuple[float, float]:
    """Finds the largest absolute feature, raw and standardised."""
    raw = batch["x"][batch["mask"]]
    with np.errstate(over="ignore", invalid="ignore"):
        inputs = (raw - batch["mean"]) * batch["inverse_scale"]
    return float(np.abs(raw).max()), float(np.abs(inputs).max())

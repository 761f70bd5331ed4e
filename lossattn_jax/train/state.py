"""The state of a training run, for resuming with its config."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossattn_jax.attention.ensemble import Ensemble
from lossattn_jax.models import ImageNetwork


@flax.struct.dataclass
class TrainState:
    """Everything that a train step changes.

    Attributes:
      step: int32 scalar, updates done or skipped. Data order, augmentation, learning rate and the patch
        loss' weight follow from it and the config.
      params: parameters, float32.
      batch_stats: running statistics of the batch normalisations, float32.
      opt_state: the optimiser's state.
      ensemble: the attention of the training images over the epochs, where the loss keeps it
        consistent, else None.
      skipped: int32 scalar, how many of the last updates in a row were skipped because they were not
        finite; see `step.make_train_step`. Not one of `items`; a checkpoint has it beside the sums, see
        `checkpoint_items`.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    ensemble: Ensemble | None = None
    skipped: Any = flax.struct.field(default_factory=lambda: np.zeros((), np.int32))

    def items(self) -> dict[str, Any]:
        """Returns the parts that a checkpoint stores.

        Evaluation reads "variables" alone.
        """
        training = {"step": self.step, "opt_state": self.opt_state}
        if self.ensemble is not None:
            training["ensemble"] = self.ensemble
        return {"variables": self.variables, "training": training}

    @classmethod
    def from_items(cls, items: dict[str, Any]) -> "TrainState":
        """The state whose `items()` these are."""
        return cls(**items["variables"], **items["training"])

    @property
    def variables(self) -> dict[str, Any]:
        """What `module.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    model: ImageNetwork,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    seed: int,
    ensemble: Ensemble | None = None,
) -> TrainState:
    """Makes a new state, a pure function of its arguments.

    Args:
      model: the network.
      optimizer: from `make_optimizer`.
      image_shape: (height, width, channels) of the images.
      seed: of the parameters.
      ensemble: from `ensemble.create`, where the loss needs one.
    """

    @jax.jit  # one program, where every array of zeros would be one by itself; the same for all seeds
    def create(seed: jax.Array) -> tuple[Any, optax.OptState]:
        images = jnp.zeros((1, *image_shape), jnp.float32)
        variables = model.init(jax.random.key(seed), images)
        return variables, optimizer.init(variables["params"])

    variables, opt_state = create(np.uint32(seed))
    return TrainState(
        step=np.zeros((), np.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=opt_state,
        ensemble=ensemble,
    )


def count_parameters(params: Any) -> int:
    """Number of scalars in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))

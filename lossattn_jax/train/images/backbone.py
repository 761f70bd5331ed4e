"""The backbone's part in a training: as the rest, at another rate, or none."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from lossattn_jax.config.options import ImageOptions
from lossattn_jax.models.network import BACKBONE
from lossattn_jax.train.optimizer import make_optimizer
from lossattn_jax.train.schedules import Length


def make_image_optimizer(
    options: ImageOptions, learning_rate: optax.Schedule, length: Length
) -> optax.GradientTransformation:
    """Makes the optimiser of a run of images.

    As `make_optimizer`, with the backbone's rate; that of a frozen backbone holds nothing for it.

    Raises:
      UserError: as of `make_optimizer`.
    """
    optimizer = make_optimizer(options.optimizer, learning_rate, length)
    if options.train.freeze:
        return leave_backbone(optimizer)
    if options.train.backbone_rate != 1:
        return scale_backbone(optimizer, options.train.backbone_rate)
    return optimizer


def scale_backbone(
    optimizer: optax.GradientTransformation, factor: float
) -> optax.GradientTransformation:
    """Multiplies the backbone's updates by a factor; the state is the same."""

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradients, state, params)
        scaled = jax.tree.map(lambda leaf: leaf * factor, updates[BACKBONE])
        return {**updates, BACKBONE: scaled}, state

    return optax.GradientTransformation(optimizer.init, update)


def leave_backbone(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Updates all but the backbone, which no weight decay moves either."""

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        rest = None if params is None else _without_backbone(params)
        updates, state = optimizer.update(_without_backbone(gradients), state, rest)
        # -0.0 is the only number that leaves every parameter as it is to the bit.
        still = jax.tree.map(lambda leaf: jnp.full_like(leaf, -0.0), gradients[BACKBONE])
        return {**updates, BACKBONE: still}, state

    return optax.GradientTransformation(
        lambda params: optimizer.init(_without_backbone(params)), update
    )


def _without_backbone(params: Any) -> dict[str, Any]:
    return {name: tree for name, tree in params.items() if name != BACKBONE}

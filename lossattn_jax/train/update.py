"""One update of a network, applied or skipped as non-finite.

Pure functions of explicit state, for traced code: `train.images.step` maps them over devices, and
`train.bags.steps` over models. An update that is not finite is skipped: what it would have changed stays as
it was, and only the counts that schedules go by advance.

Why not `optax.apply_if_finite`: it holds back parameters and the optimiser's state only, while running
statistics and the average of attention would take in what is not finite; it holds back the count that the
learning rate goes by; it does not see the loss; and after its limit it applies what is not finite.
"""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from lossattn_jax.train.optimizer import at_step

T = TypeVar("T")


class ModelState(NamedTuple):
    """Parameters and optimiser state of a model.

    Attributes:
      params: parameters, float32.
      opt_state: the optimiser's state.
    """

    params: Any
    opt_state: Any


def apply_update(
    optimizer: optax.GradientTransformation,
    gradients: Any,
    before: ModelState,
    step: jax.Array,
    applies: jax.Array | None = None,
) -> ModelState:
    """Applies an update, or all but the schedules' counts.

    Args:
      optimizer: of the training.
      gradients: as the parameters.
      before: the state before the update.
      step: int32 scalar, the updates before this one, applied or skipped: what schedules go by.
      applies: bool scalar, whether the update is applied; None: it is, whatever its values.
    """
    opt_state = at_step(before.opt_state, step)
    updates, opt_state = optimizer.update(gradients, opt_state, before.params)
    after = ModelState(optax.apply_updates(before.params, updates), opt_state)
    if applies is not None:
        after = choose(applies, after, before)
    return after._replace(opt_state=at_step(after.opt_state, step + 1))


def is_applied(values: Any, num_skipped: jax.Array, max_skipped: int) -> jax.Array:
    """Whether an update is applied.

    After so many skipped updates in a row every further one is skipped, whatever it is, so that the state is
    that of before the first of them whenever the host looks.

    Args:
      values: tree of arrays that have to be finite: the loss, the gradients' norm, and what else is taken
        over. A finite gradient whose norm overflows float32 is not applied either: Adam would keep its
        square, which is infinite, for ever, and not move these parameters any more.
      num_skipped: int32 scalar, how many of the last updates in a row were num_skipped.
      max_skipped: at which a training ends.

    Returns:
      A bool scalar.
    """
    return all_finite(values) & (num_skipped < max_skipped)


def count_skipped(applies: jax.Array, num_skipped: jax.Array) -> jax.Array:
    """Counts skipped updates in a row.

    That is `num_skipped` and this one, or 0 where it `applies`.
    """
    return jnp.where(applies, 0, num_skipped + 1)


def choose(use_new: jax.Array, after: T, before: T) -> T:
    """Selects one of two trees.

    Element by element and by what is there already, so that XLA still updates in place.
    """
    return jax.tree.map(lambda new, old: jnp.where(use_new, new, old), after, before)


def all_finite(tree: Any) -> jax.Array:
    """Whether all values of a tree are finite."""
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]).all()


def gradient_norm(gradients: Any) -> jax.Array:
    """The L2 norm of all gradients together.

    The last layers' come first, as in the backward pass. Every update waits for the norm, and on CPUs XLA
    orders a program by such sums: from the first layer on, it kept up to half as much memory again.
    """
    leaves = reversed(jax.tree.leaves(gradients))
    return jnp.sqrt(jnp.sum(jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in leaves])))

"""One update of a network: whether it is finite, the optimiser, and what is skipped.

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


class Trained(NamedTuple):
    """What the optimiser changes.

    Attributes:
      params: parameters, float32.
      opt_state: the optimiser's state.
    """

    params: Any
    opt_state: Any


def apply_update(
    optimizer: optax.GradientTransformation,
    gradients: Any,
    before: Trained,
    step: jax.Array,
    applied: jax.Array | None = None,
) -> Trained:
    """Applies an update, or leaves all but the counts that schedules go by.

    Args:
      optimizer: of the training.
      gradients: as the parameters.
      before: the state before the update.
      step: int32 scalar, the updates before this one, applied or skipped: what schedules go by.
      applied: bool scalar, whether the update is applied; None: it is, whatever its values.
    """
    opt_state = at_step(before.opt_state, step)
    updates, opt_state = optimizer.update(gradients, opt_state, before.params)
    after = Trained(optax.apply_updates(before.params, updates), opt_state)
    if applied is not None:
        after = choose(applied, after, before)
    return after._replace(opt_state=at_step(after.opt_state, step + 1))


def is_applied(values: Any, skipped: jax.Array, max_skipped: int) -> jax.Array:
    """Decides whether an update is applied.

    After so many skipped updates in a row every further one is skipped, whatever it is, so that the state is
    that of before the first of them whenever the host looks.

    Args:
      values: tree of arrays that have to be finite: the loss, the gradients' norm, and what else is taken
        over. A finite gradient whose norm overflows float32 is not applied either: Adam would keep its
        square, which is infinite, for ever, and not move these parameters any more.
      skipped: int32 scalar, how many of the last updates in a row were skipped.
      max_skipped: at which a training ends.

    Returns:
      A bool scalar.
    """
    return all_finite(values) & (skipped < max_skipped)


def count_skipped(applied: jax.Array, skipped: jax.Array) -> jax.Array:
    """Counts the skipped updates in a row: `skipped` and this one, or none where it is `applied`."""
    return jnp.where(applied, 0, skipped + 1)


def choose(applied: jax.Array, after: T, before: T) -> T:
    """Takes the one tree or the other.

    Element by element and by what is there already, so that XLA still updates in place.
    """
    return jax.tree.map(lambda new, old: jnp.where(applied, new, old), after, before)


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

"""Optimisers by name, all optax; a user's own too.

To add one, write a function as `_sgd` and put an `Optimizer` into `OPTIMIZERS`; a new hyper-parameter is a
key of `config.options.OptimizerOptions`, which the entry names among its `parameters`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from lossattn_jax.config.options import OptimizerOptions
from lossattn_jax.errors import UserError
from lossattn_jax.registry import Registry, lookup, wrong_part
from lossattn_jax.train.promotion import with_usual_promotion
from lossattn_jax.train.schedules import SCHEDULES, Betas, Length, beta_schedules

Mask = Callable[[Any], Any]  # parameters to a tree of bools: which of them decay


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimiser.

    Attributes:
      make: the optax transformation of options, of the learning rate by step, and of the betas by step where
        they change.
      parameters: the keys of `config.optimizer` that it takes, besides those of the learning rate.
      state: names of what it holds that has the size of the parameters, as optax calls it.
      changes_betas: whether its betas can change with a schedule that has some.
    """

    make: Callable[[OptimizerOptions, optax.Schedule, Betas | None], optax.GradientTransformation]
    parameters: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    changes_betas: bool = False


class RestartState(NamedTuple):
    """State of an optimiser that begins anew; see `restart`.

    Attributes:
      count: int32 scalar, updates before the next one, applied or skipped.
      start: int32 scalar, the count at which what `inner_state` holds began.
      inner_state: the optimiser's own.
    """

    count: Any
    start: Any
    inner_state: Any


def make_optimizer(
    options: OptimizerOptions, learning_rate: optax.Schedule, length: Length
) -> optax.GradientTransformation:
    """The optimiser of a training.

    "sgd" and "adam" add `weight_decay * parameter` to the gradient before anything else, as PyTorch's
    `weight_decay` does; "adamw" decays apart from the gradient. The papers' setting is "sgd" with
    momentum 0.9 and 5e-4 on every parameter.

    Args:
      options: of the optimiser.
      learning_rate: from `learning_rate_schedule`.
      length: of the training, for betas that change; see `beta_schedules`.

    Returns:
      An optax transformation whose state is a pytree of arrays.

    Raises:
      UserError: there is no such optimiser, or a function of the user's makes none.
    """
    optimizer = OPTIMIZERS.find(options.name, "config.optimizer.name")
    betas = beta_schedules(options, length) if changes_betas(options) else None
    transformation = optimizer.make(options, learning_rate, betas)
    if not isinstance(transformation, optax.GradientTransformation):
        raise UserError(
            f"config.optimizer.name is {options.name!r}, which makes a {type(transformation).__name__}, "
            "but must make an optax.GradientTransformation"
        )
    transformation = transformation._replace(
        init=with_usual_promotion(transformation.init),
        update=with_usual_promotion(transformation.update),
    )
    if not options.restart_epochs:
        return transformation
    return restart(transformation, options.restart_epochs * length.steps_per_epoch)


def restart(optimizer: optax.GradientTransformation, period: int) -> optax.GradientTransformation:
    """Begins an optimiser's state anew every `period` updates.

    Moments are 0 then, and Adam corrects them for their start as in its first updates. Schedules go on: they
    go by the count of all updates.

    The first update that is applied in a period begins it, also where those before it were skipped. Where a
    run resumes with another period, moments that began after the last start of one stay.

    Args:
      optimizer: from `make_optimizer`.
      period: 1 or more, updates from one beginning to the next.
    """

    def init(params: Any) -> RestartState:
        return RestartState(jnp.int32(0), jnp.int32(0), optimizer.init(params))

    def update(gradients: Any, state: RestartState, params: Any = None) -> tuple[Any, RestartState]:
        start = state.count // period * period
        fresh = at_step(optimizer.init(params), state.count)
        inner = jax.tree.map(
            lambda new, old: jnp.where(state.start < start, new, old), fresh, state.inner_state
        )
        updates, inner = optimizer.update(gradients, inner, params)
        return updates, RestartState(state.count + 1, jnp.maximum(state.start, start), inner)

    return optax.GradientTransformation(init, update)


def describe_optimizer(options: OptimizerOptions) -> str:
    """Describes optimiser and learning rate with their parameters."""
    optimizer = OPTIMIZERS.find(options.name, "config.optimizer.name")
    schedule = SCHEDULES.find(options.schedule, "config.optimizer.schedule")
    sentences = [_with_values(options.name, optimizer.parameters, options)]
    if optimizer.state:
        sentences.append(f"which holds {' and '.join(optimizer.state)}")
    if options.restart_epochs:
        sentences.append(f"begun anew every {options.restart_epochs} epochs")
    rate = _with_values(options.schedule, schedule.parameters, options)
    warmup = f", warm-up {options.warmup_epochs:g} epochs" if options.warmup_epochs else ""
    return f"{', '.join(sentences)}; learning rate {options.learning_rate:g}, {rate}{warmup}"


def _with_values(name: str, keys: tuple[str, ...], options: OptimizerOptions) -> str:
    values = {key: getattr(options, key) for key in keys}
    values_text = [f"{key} {value}" for key, value in values.items() if value is not None]
    return f"{name} ({', '.join(values_text)})" if values_text else name


def changes_betas(options: OptimizerOptions) -> bool:
    """Whether betas follow the ramps.

    The optimiser's state then holds them.
    """
    if options.momentum_end is None:
        return False
    optimizer = OPTIMIZERS.find(options.name, "config.optimizer.name")
    if not optimizer.changes_betas:
        return False
    return SCHEDULES.find(options.schedule, "config.optimizer.schedule").changes_betas


def _decay(options: OptimizerOptions) -> Mask:
    """Makes the mask of parameters that decay.

    A mask either way, so that the state's shape does not depend on it.
    """
    return lookup("config.optimizer.weight_decay_mask", options.weight_decay_mask, DECAY_MASKS)


def _sgd(
    options: OptimizerOptions, learning_rate: optax.Schedule, betas: Betas | None
) -> optax.GradientTransformation:
    del betas
    update = optax.sgd(learning_rate, options.momentum, options.nesterov)
    return optax.chain(optax.add_decayed_weights(options.weight_decay, _decay(options)), update)


def _adam(
    options: OptimizerOptions, learning_rate: optax.Schedule, betas: Betas | None
) -> optax.GradientTransformation:
    adam = functools.partial(optax.adam, nesterov=options.nesterov)
    if betas is not None:
        inject = optax.inject_hyperparams(adam, static_args=("nesterov",))
        update = inject(learning_rate=learning_rate, b1=betas[0], b2=betas[1])
    else:
        update = adam(learning_rate, b1=options.momentum, b2=options.beta2)
    return optax.chain(optax.add_decayed_weights(options.weight_decay, _decay(options)), update)


def _adamw(
    options: OptimizerOptions, learning_rate: optax.Schedule, betas: Betas | None
) -> optax.GradientTransformation:
    del betas
    return optax.adamw(
        learning_rate,
        b1=options.momentum,
        b2=options.beta2,
        weight_decay=options.weight_decay,
        mask=_decay(options),
        nesterov=options.nesterov,
    )


def _muon(
    options: OptimizerOptions, learning_rate: optax.Schedule, betas: Betas | None
) -> optax.GradientTransformation:
    """Muon for kernels but the classifier's, AdamW for all else (Jordan et al. 2024).

    An update of a kernel is its momentum with singular values near 1, times sqrt(max(1, outputs / inputs)).
    """
    del betas
    matrices = optax.contrib.muon(
        learning_rate,
        beta=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
        muon_weight_dimension_numbers=functools.partial(jax.tree.map, _matrix_axes),
    )
    others = optax.adamw(
        lambda step: options.others_rate * learning_rate(step),
        b2=options.beta2,
        weight_decay=options.weight_decay,
        mask=_decay(options),
        nesterov=options.nesterov,
    )
    return optax.partition({"matrix": matrices, "other": others}, _label_matrices)


def _label_matrices(params: Any) -> Any:
    """Labels kernels of two axes or more, but those of classifiers, "matrix", and all else "other"."""

    def label(path: Any, leaf: Any) -> str:
        is_matrix = path[-1].key == "kernel" and leaf.ndim > 1
        is_last = any("classifier" in part.key for part in path)
        return "matrix" if is_matrix and not is_last else "other"

    return jax.tree_util.tree_map_with_path(label, params)


def _matrix_axes(kernel: Any) -> optax.contrib.MuonDimensionNumbers:
    """Takes all axes of a kernel but the last, its outputs, for the inputs."""
    last = kernel.ndim - 1
    return optax.contrib.MuonDimensionNumbers(tuple(range(last)), last)


def everything(params: Any) -> Any:
    """A tree of bools, all True."""
    return jax.tree.map(lambda _: True, params)


def kernels_only(params: Any) -> Any:
    """Marks kernels True, biases and normalisations False."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _adopt(name: str, part: Any) -> Optimizer:
    """Makes the entry of a user's function.

    It takes options and a learning rate by step.
    """
    if not callable(part):
        requirement = (
            "a function of OptimizerOptions and a learning rate by step that makes an "
            "optax.GradientTransformation"
        )
        raise wrong_part("config.optimizer.name", name, part, requirement)
    return Optimizer(lambda options, learning_rate, betas: part(options, learning_rate))


_DECAY = ("weight_decay", "weight_decay_mask")
_ADAM = ("momentum", "beta2", "nesterov", *_DECAY)

OPTIMIZERS = Registry(
    "optimiser",
    Optimizer,
    {
        "sgd": Optimizer(_sgd, ("momentum", "nesterov", *_DECAY), ("trace",)),
        "adam": Optimizer(
            _adam, (*_ADAM, "momentum_end", "beta2_end"), ("mu", "nu"), changes_betas=True
        ),
        "adamw": Optimizer(_adamw, _ADAM, ("mu", "nu")),
        "muon": Optimizer(_muon, (*_ADAM, "others_rate"), ("mu",)),
    },
    _adopt,
)
DECAY_MASKS: dict[str, Mask] = {"all": everything, "kernels": kernels_only}

# States of optax that count steps for schedules; other counts, such as Adam's own, are of updates in moments.
_SCHEDULE_STATES = (
    RestartState,
    optax.ScaleByScheduleState,
    optax.InjectHyperparamsState,
    optax.schedules.InjectStatefulHyperparamsState,
)


def at_step(opt_state: Any, step: Any) -> Any:
    """Moves the schedules of an optimiser's state to `step`.

    int32 scalar; as if all updates were made.

    Adam's own count stays, of the updates that are in its moments: it corrects these for their start at 0.
    """

    def move(node: Any) -> Any:
        if not isinstance(node, _SCHEDULE_STATES):
            return node
        parts: dict[str, Any] = node._asdict() | {"count": step}
        if "inner_state" in parts:
            parts["inner_state"] = at_step(parts["inner_state"], step)
        if (
            "hyperparams_states" in parts
        ):  # a schedule's state each, whose class optax keeps to itself
            parts["hyperparams_states"] = jax.tree_util.tree_map_with_path(
                lambda path, leaf: step if getattr(path[-1], "name", "") == "count" else leaf,
                parts["hyperparams_states"],
            )
        return type(node)(**parts)

    return jax.tree.map(move, opt_state, is_leaf=lambda node: isinstance(node, _SCHEDULE_STATES))

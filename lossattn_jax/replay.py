"""Makes an update again that a run has skipped, and says what was not finite; the command for a run's dump:

python -m lossattn_jax.replay --dump=runs/digit_scenes/nonfinite/step_120
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from lossattn_jax import checkpoint as checkpoint_lib
from lossattn_jax import command, data, devices, runs
from lossattn_jax.errors import UserError
from lossattn_jax.models import ImageNetwork
from lossattn_jax.train.gradients import Found, make_gradients
from lossattn_jax.train.job import build_network, fresh_state
from lossattn_jax.train.nonfinite import read_batch, shown
from lossattn_jax.train.optimizer import make_optimizer
from lossattn_jax.train.schedules import learning_rate_schedule
from lossattn_jax.train.state import TrainState


def replay(dump: str | pathlib.Path) -> list[str]:
    """Runs loss and gradient of a dumped update again, on all devices of this process.

    The update is the run's own, with its augmentation and dropout. On another number of devices than the
    run's it is another one only with `config.model.batch_norm` local.

    Args:
      dump: a folder of `lossattn_jax.train.nonfinite`.

    Returns:
      Sentences: what of the state before the update, of the images' losses, of the gradient and of the
      running statistics after it is not finite, images by their places in the training set.

    Raises:
      UserError: there is no such dump, it cannot be read, or the devices cannot share its batch equally.
    """
    folder = pathlib.Path(dump)
    config = checkpoint_lib.stored_config(folder)
    batch = read_batch(folder)
    examples = int(batch.pop("training_examples"))
    spec = runs.spec_of(config)
    model = build_network(config, spec)
    devices.per_device(len(batch["index"]), "the number of images in the dump")
    steps_per_epoch = data.steps_per_epoch(examples, config.train.batch_size)
    state = _state(folder, config, model, spec, examples, steps_per_epoch)
    find = devices.pmap(make_gradients(model, spec, config, steps_per_epoch))
    found: Found = find(devices.replicate(state), devices.shard(batch))
    return [
        f"The update after step {int(state.step)} was made again on {len(batch['index'])} images.",
        _sentence_of_state(state),
        _sentence_of_losses(devices.gather(found.seen["loss"]), batch["index"]),
        _sentence_of_gradient(devices.unreplicate(found.gradients)),
        *_sentence_of_statistics(devices.unreplicate(found.batch_stats)),
    ]


def _state(
    folder: pathlib.Path,
    config: ConfigDict,
    model: ImageNetwork,
    spec: data.DatasetSpec,
    examples: int,
    steps_per_epoch: int,
) -> TrainState:
    learning_rate = learning_rate_schedule(config, steps_per_epoch)
    optimizer = make_optimizer(config, learning_rate, steps_per_epoch)
    like = jax.eval_shape(lambda: fresh_state(config, model, optimizer, spec, examples).items())
    with checkpoint_lib.Checkpoints(folder, read_only=True) as checkpoints:
        step = checkpoints.latest_step()
        if step is None:
            raise UserError(f"{folder} is not a dump of a skipped update: it has no checkpoint")
        return TrainState.from_items(checkpoints.restore(step, like))


def _sentence_of_state(state: TrainState) -> str:
    names = _not_finite(state.items())
    if names:
        return f"Already before it, these were not finite: {shown(names)}."
    return "Before it, parameters, running statistics and the optimiser's state were finite."


def _sentence_of_losses(losses: np.ndarray, places: np.ndarray) -> str:
    wrong = [
        f"{place} ({loss})"
        for place, loss in zip(places.tolist(), losses.tolist(), strict=True)
        if not np.isfinite(loss)
    ]
    if not wrong:
        return f"The losses of all images are finite, {losses.mean():.6g} on average."
    return (
        f"The losses of {len(wrong)} of {len(losses)} images are not finite, by their places in the training "
        f"set: {shown(wrong)}."
    )


def _sentence_of_gradient(gradients: Any) -> str:
    names, count = _not_finite(gradients), len(jax.tree.leaves(gradients))
    if names:
        return (
            f"The gradients of {len(names)} of {count} parameters are not finite: {shown(names)}."
        )
    squares = {
        name: float(np.sum(np.square(leaf.astype(np.float64)))) for name, leaf in _named(gradients)
    }
    norm = float(np.sqrt(sum(squares.values())))
    if norm**2 > float(jnp.finfo(jnp.float32).max):
        largest = max(squares, key=lambda name: squares[name])
        return (
            f"The gradient is finite, but its norm of {norm:.3g} is not in float32, whose squares end at "
            f"{jnp.finfo(jnp.float32).max:.3g}; most of it comes from {largest}."
        )
    return f"The gradient is finite, with a norm of {norm:.6g}."


def _sentence_of_statistics(batch_stats: Any) -> list[str]:
    names = _not_finite(batch_stats)
    return [f"After it, these running statistics are not finite: {shown(names)}."] if names else []


def _not_finite(tree: Any) -> list[str]:
    return [name for name, leaf in _named(tree) if not np.isfinite(np.asarray(leaf)).all()]


def _named(tree: Any) -> list[tuple[str, Any]]:
    """The leaves by name, such as "backbone/conv1/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def main() -> None:
    """The command; see the flags."""
    print("\n".join(replay(flags.FLAGS.dump)))


if __name__ == "__main__":
    flags.DEFINE_string("dump", None, "folder that the run named when it ended", required=True)
    command.run(main)

"""How a training of networks for bags ends whose updates are not finite: a sentence and a dump."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossattn_jax import devices
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.errors import UserError
from lossattn_jax.evaluate import nonfinite_values
from lossattn_jax.files import digests
from lossattn_jax.train.bags import dumps
from lossattn_jax.train.bags.device_bags import on_device
from lossattn_jax.train.bags.skipping import Place, Skips
from lossattn_jax.train.bags.states import Models, State
from lossattn_jax.train.bags.steps import Steps


def error(
    skips: Skips,
    model: int,
    dataset: BagDataset,
    steps: Steps,
    overrides: Mapping[str, float],
    models: Models,
    states: State,
    epochs: int,
    dump_dir: pathlib.Path | None,
) -> UserError:
    """What ends a training since a model has skipped so many updates in a row; the first of them is dumped.

    Args:
      skips: what was skipped.
      model: the number of the model.
      dataset: the bags.
      steps: of the training.
      overrides: the model's own values of settings.
      models, states: of all models, on the devices.
      epochs: that are done.
      dump_dir: gets a folder with the update; None: nothing is written. Where it cannot be written, the
        error says so.
    """
    place = skips.first[model]
    assert place is not None  # it skips
    changes: dict[str, Any] = dict(overrides)
    own = dataclasses.replace(steps.settings, **changes)
    replay = ""
    if dump_dir is not None:
        name = f"model_{model}_epoch_{place.epoch + 1}_update_{place.updates}"
        folder = pathlib.Path(dump_dir) / name
        dump = dumps.Dump(
            training=skips.label,
            update=skips.told(place),
            ids=tuple(dataset.ids[row] for row in place.rows),
            network=steps.network,
            settings=own,
            consistency=steps.consistency,
            seed=int(devices.gather(models.seed)[model]),
            epoch=place.epoch,
            data=digests.of_arrays(
                {name: getattr(dataset, name) for name in ("instances", "lengths", "labels")}
            ),
            **_arrays(place, dataset, steps, models, states, epochs),
        )
        write = functools.partial(dumps.write, dump)
        replay = f"{nonfinite_values.write_dump(write, folder, 'lossattn_jax.mil.replay')}, and "
    return UserError(
        f"{skips.label}: the loss or its gradient was not finite in {own.max_skipped} updates in a row, the "
        f"first {skips.told(place)}: {replay}smaller features or a lower learning_rate than "
        f"{own.learning_rate:g} may help"
    )


def _arrays(
    place: Place, dataset: BagDataset, steps: Steps, models: Models, states: State, epochs: int
) -> dict[str, Any]:
    """`count`, `state` and `bags` of a dump."""
    model, state = jax.tree.map(lambda leaf: leaf[place.model], devices.gather((models, states)))
    rows = np.array(place.rows)
    length = int(dataset.lengths[rows].max())
    padded = dataset.padded(rows, length)

    def cut(values: Any) -> np.ndarray:
        starts = dataset.offsets[rows]
        return np.stack([np.asarray(values)[start : start + length] for start in starts])

    data = jax.tree.map(jnp.asarray, on_device(dataset, steps.tops))
    target = np.zeros(0, np.float32)
    if steps.consistency:
        # Since the update was skipped, no epoch has changed the average but in how much of it there is.
        decay = steps.settings.consistency_decay
        target = cut(state.ensemble) * np.float32((1 - decay**place.epoch) / (1 - decay**epochs))
    weights = {} if model.class_weights is None else {"class_weights": model.class_weights}
    return {
        "count": int(optax.tree.get(state.moments, "count")),
        "state": {
            "params": state.params,
            "mu": optax.tree.get(state.moments, "mu"),
            "nu": optax.tree.get(state.moments, "nu"),
        },
        "bags": {
            "x": padded.instances,
            "mask": padded.mask,
            "labels": padded.labels,
            "noise": cut(steps.noise(model, data, jnp.int32(place.epoch))),
            "target": target,
            "mean": model.mean,
            "inverse_scale": model.inverse_scale,
            **weights,
        },
    }

"""Non-finite updates of networks for bags: reports, dumps and the training's end.

`steps.Steps.checked_epochs` skips them on the devices, and here the host looks at its result. A training that
ends writes a dump (see `train.dumps`), of which `lossattn_jax.replay` computes the update again.

The content of a dump: `training` and `update`, what messages call them; `ids` of the b bags; `network`,
`settings` (the model's own values among them) and `consistency`; `seed` of the model; `epoch`, from 0. Its
state is the trees `params` and `opt_state`. Its batch: `x` `[b, length, features...]` float32 as in the data
set, `mask` `[b, length]` bool, `labels` `[b]` int32, `noise` `[b, length, units]` uint8 of the dropout,
`target` `[b, length]` float32 (of `State.ensemble`; without consistency `[0]`), `mean` and `inverse_scale` of
the model's standardisation, and `class_weights` `[K]` float32 where it has some.
"""

import abc
import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossattn_jax import devices
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests
from lossattn_jax.train import dumps
from lossattn_jax.train.bags.device_bags import pack
from lossattn_jax.train.bags.plans import Plan
from lossattn_jax.train.bags.states import Models, State
from lossattn_jax.train.bags.steps import Steps
from lossattn_jax.train.skips import Skips

# Fields of a network that a dump holds; it computes in float32.
_NETWORK = ("num_classes", "method", "backbone", "hidden", "dropout")


@dataclasses.dataclass(frozen=True)
class Update:
    """An update of a model, with a text for messages.

    The text is "of model 3 (fold3) after 12 updates in epoch 2 on the bag m7".

    Attributes:
      model: its number.
      name: of the model; empty where it has none.
      epoch: from 0.
      before: updates of the model in this epoch before it.
      rows: the bags that it is made of.
      ids: of these bags.
    """

    model: int
    name: str
    epoch: int
    before: int
    rows: tuple[int, ...]
    ids: tuple[str, ...]

    def __str__(self) -> str:
        name = f" ({self.name})" if self.name else ""
        return (
            f"of model {self.model}{name} after {self.before} updates in epoch {self.epoch + 1} on the "
            f"bag{'s' if len(self.ids) > 1 else ''} {', '.join(self.ids)}"
        )


class BagSkips(Skips[Update]):
    """Counts the skipped updates of a training of bags."""

    def __init__(self, ids: Sequence[str], plans: Sequence[Plan], max_skipped: int, label: str):
        """Nothing is skipped yet.

        Args:
          ids: of the bags.
          plans: M, of the models.
          max_skipped: updates in a row at which a training ends.
          label: what messages call the training.
        """
        self.label = label or "a training of bags"
        super().__init__(len(plans), max_skipped, self.label)
        self._ids, self._plans = ids, plans

    def add_epochs(self, skip_mask: np.ndarray, order: np.ndarray, epochs: np.ndarray) -> None:
        """Counts the skipped updates of some epochs, and warns of them.

        Args:
          skip_mask: `[M, epochs, steps]` bool.
          order: `[epochs, steps, batch_size]` int, the bags of each step, -1 for none.
          epochs: `[epochs]` int, their numbers, from 0.
        """
        firsts: dict[int, Update] = {}
        for model, plan in enumerate(self._plans):
            visible = plan.train[np.maximum(order, 0)] & (order >= 0)
            update = functools.partial(self._update, model, visible, order, epochs)
            flat = skip_mask[model].ravel()
            self.add(model, flat, visible.any(axis=-1).ravel(), update)
            if flat.any():
                step = int(flat.argmax())
                firsts.setdefault(step, update(step))
        if firsts:
            models = int(skip_mask.any(axis=(1, 2)).sum())
            span = sorted({int(epochs[0]) + 1, int(epochs[-1]) + 1})
            self.warn(
                int(skip_mask.sum()),
                f"updates of {models} of {len(skip_mask)} models",
                firsts[min(firsts)],
                f" in epoch{'s' if len(epochs) > 1 else ''} {'-'.join(map(str, span))}",
            )

    def _update(
        self, model: int, visible: np.ndarray, order: np.ndarray, epochs: np.ndarray, step: int
    ) -> Update:
        epoch, step = divmod(step, order.shape[1])
        rows = order[epoch, step][visible[epoch, step]].tolist()
        before = int(visible[epoch, :step].any(axis=-1).sum())
        ids = tuple(self._ids[row] for row in rows)
        name = self._plans[model].name
        return Update(model, name, int(epochs[epoch]), before, tuple(rows), ids)


class DumpWriter(abc.ABC):
    """Writes the update with which a training ends.

    Attributes:
      plans: of the models.
      steps: of the training, with the settings of all models.
      folder: gets a folder with the update; None: nothing is written.
    """

    def __init__(self, plans: Sequence[Plan], steps: Steps, folder: pathlib.Path | None):
        """Takes what a dump says beside the update's bags."""
        self.plans, self.steps, self.folder = plans, steps, folder

    @abc.abstractmethod
    def digest(self) -> str:
        """Of the data set."""

    @abc.abstractmethod
    def batch(self, update: Update, model: Models, state: State, epochs: int) -> dict[str, Any]:
        """The tree `batch` of a dump, without what is the model's own.

        Args:
          update: of which it is.
          model, state: of the update's model, on the host, without the leading axis.
          epochs: that are done.
        """

    def error(
        self, skips: BagSkips, model: int, models: Models, states: State, epochs: int
    ) -> UserError:
        """Makes the error that ends a training; dumps the first skipped update.

        Args:
          skips: what was skipped.
          model: the number of the model.
          models, states: of all models, on the devices.
          epochs: that are done.
        """
        update = skips.first[model]
        assert update is not None  # it skips
        changes: dict[str, Any] = dict(self.plans[model].overrides)
        settings = dataclasses.replace(self.steps.settings, **changes)
        content = {
            "training": skips.label,
            "update": str(update),
            "ids": update.ids,
            "network": {name: getattr(self.steps.network, name) for name in _NETWORK},
            "settings": dataclasses.asdict(settings),
            "consistency": self.steps.program.consistency,
            "seed": self.plans[model].seed,
            "epoch": update.epoch,
        }

        def write(folder: pathlib.Path) -> None:
            of_model, state = jax.tree.map(
                lambda leaf: leaf[model], devices.gather((models, states))
            )
            weights = of_model.class_weights
            trees = {
                "state": {"params": state.params, "opt_state": state.opt_state},
                "batch": {
                    **self.batch(update, of_model, state, epochs),
                    "mean": of_model.mean,
                    "inverse_scale": of_model.inverse_scale,
                    **({} if weights is None else {"class_weights": weights}),
                },
            }
            dumps.write(folder, "bags", content, trees, self.digest())

        name = f"model_{model}_epoch_{update.epoch + 1}_update_{update.before}"
        remedy = (
            f"smaller features or a lower learning_rate than {settings.learning_rate:g} may help"
        )
        return skips.error(
            model, remedy, write, None if self.folder is None else self.folder / name
        )


class DatasetDumpWriter(DumpWriter):
    """Writes dumps of bags that lie on the devices as one flat array.

    Attributes:
      dataset: the bags, in float32.
    """

    def __init__(
        self,
        dataset: BagDataset,
        plans: Sequence[Plan],
        steps: Steps,
        folder: pathlib.Path | None,
    ):
        """Takes what a dump says."""
        super().__init__(plans, steps, folder)
        self.dataset = dataset

    def digest(self) -> str:
        """Of instances, lengths and labels."""
        return digests.of_arrays(
            {name: getattr(self.dataset, name) for name in ("instances", "lengths", "labels")}
        )

    def batch(self, update: Update, model: Models, state: State, epochs: int) -> dict[str, Any]:
        """See `DumpWriter.batch`."""
        dataset, steps = self.dataset, self.steps
        rows = np.array(update.rows)
        bucket = dataset.pad(rows, int(dataset.lengths[rows].max()))

        def cut_values(values: Any) -> np.ndarray:
            starts = dataset.offsets[rows]
            length = bucket.mask.shape[1]
            return np.stack([np.asarray(values)[start : start + length] for start in starts])

        data = jax.tree.map(jnp.asarray, pack(dataset, steps.program.tops))
        target = np.zeros(0, np.float32)
        if steps.program.consistency:
            # A skipped update leaves the average but for its factor, 1 - decay**epochs.
            decay = steps.settings.consistency_decay
            share = (1 - decay**update.epoch) / (1 - decay**epochs)
            target = cut_values(state.ensemble) * np.float32(share)
        return {
            "x": bucket.instances,
            "mask": bucket.mask,
            "labels": bucket.labels,
            "noise": cut_values(steps.noise(model, data, jnp.int32(update.epoch))),
            "target": target,
        }

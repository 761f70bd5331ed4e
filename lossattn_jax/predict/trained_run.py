"""A trained run, opened for use."""

import functools
import pathlib
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from lossattn_jax.checkpoint import runs
from lossattn_jax.errors import UserError
from lossattn_jax.models import PatchGrid
from lossattn_jax.predict.explanation import Explanation
from lossattn_jax.predict.forward import Forward, Rows, check_batch_size
from lossattn_jax.predict.inputs import list_inputs
from lossattn_jax.predict.predictions import Predictions, label_of


class TrainedRun:
    """A checkpoint of a run that predicts for any pictures; see `load`.

    Attributes:
      checkpoint: its config, network and variables.
      forward: the passes of its network.
    """

    def __init__(self, checkpoint: runs.Run, batch_size: int | None = None):
        """Places the network on this process' devices.

        Args:
          checkpoint: of the run.
          batch_size: as of `Forward`.
        """
        self.checkpoint = checkpoint
        self.forward = Forward(checkpoint, batch_size)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes, in the order of the logits."""
        return self.checkpoint.spec.class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images that the network takes."""
        return self.checkpoint.spec.image_shape

    @functools.cached_property
    def grid(self) -> PatchGrid:
        """Places of the network's patches."""
        return self.checkpoint.model.patch_grid(self.image_shape)

    def predict(self, images: Any) -> Predictions:
        """Predicts for pictures of any size, each brought to the network's as in testing.

        Args:
          images: an array, a picture of Pillow, a path of a file or folder, or a list of them; see
            `inputs.list_inputs`. Values of arrays are uint8, or floats in [0, 1].

        Returns:
          A row for each picture. Files that cannot be read are left out; see `Predictions.refusals`.

        Raises:
          UserError: there is no picture, none of the files can be read, or an array is no picture.
        """
        inputs = list_inputs(images, self.checkpoint.spec.view)
        return self._join(self.forward.batches(inputs))

    def explain(self, image: Any) -> Explanation:
        """Explains what the network says of one picture; a notebook shows it.

        Args:
          image: as one of those of `predict`.

        Raises:
          UserError: as of `predict`; there are several pictures, or an output is not finite.
        """
        inputs = list_inputs(image, self.checkpoint.spec.view)
        if len(inputs) > 1:
            raise UserError(f"explain takes one picture, but was given {len(inputs)}")
        (rows,) = self.forward.batches(inputs)
        _refuse_unreadable([rows])
        if not rows.finite.all():
            raise UserError(
                f"there is nothing to explain at step {self.checkpoint.step}: the network has outputs for "
                f"{rows.names[0]} that are not finite"
            )
        spec = self.checkpoint.spec
        return Explanation(
            name=rows.names[0],
            image=rows.images[0],
            class_names=spec.class_names,
            logits=rows.logits[0],
            probabilities=rows.probabilities[0],
            predicted=self.labels(rows)[0] or "",
            attention=rows.attention[0],
            patch_logits=rows.patch_logits[0],
            patch_probabilities=rows.patch_probabilities[0],
            grid=self.grid,
        )

    def labels(self, rows: Rows) -> list[str | None]:
        """Names what is predicted of each picture; None where an output is not finite."""
        spec = self.checkpoint.spec
        triples = zip(rows.logits, rows.probabilities, rows.finite, strict=True)
        return [
            label_of(logits, chances, spec.class_names, spec.multi_label) if finite else None
            for logits, chances, finite in triples
        ]

    def _join(self, batches: Iterable[Rows]) -> Predictions:
        parts = list(batches)
        _refuse_unreadable(parts)

        def join(name: str) -> np.ndarray:
            return np.concatenate([getattr(rows, name) for rows in parts])

        wrong = ~join("finite")
        probabilities, attention = join("probabilities"), join("attention")
        probabilities[wrong], attention[wrong] = np.nan, np.nan
        return Predictions(
            names=tuple(name for rows in parts for name in rows.names),
            class_names=self.class_names,
            logits=join("logits"),
            probabilities=probabilities,
            predicted=tuple(label for rows in parts for label in self.labels(rows)),
            attention=attention,
            patch_probabilities=join("patch_probabilities"),
            grid=self.grid,
            refusals={name: why for rows in parts for name, why in rows.refusals.items()},
        )

    def __repr__(self) -> str:
        run = self.checkpoint
        model = run.options.model
        return (
            f"<TrainedRun of {run.spec.name}, {len(self.class_names)} classes: {model.backbone}, "
            f"{model.head} head, {model.pooling}, step {run.step}>"
        )


def load(
    workdir: str | pathlib.Path,
    checkpoint: str = "latest",
    *,
    batch_size: int | None = None,
    trust_code: bool | Collection[str] = False,
) -> TrainedRun:
    """Opens a trained run.

    Its data set need not be there.

    Args:
      workdir: folder of the run.
      checkpoint: "latest", "best" (by test accuracy, or mean average precision) or a step.
      batch_size: pictures that the devices take at once; None: as in the run's config, but 64 at most.
      trust_code: whether code that the config names by reference is imported, or which references are.

    Raises:
      UntrustedCode: the config names code that is not trusted; nothing was imported.
      UserError: there is no such run or checkpoint, it does not fit its config, or `batch_size` is no whole
        number from 1.
    """
    check_batch_size(batch_size)  # before anything is read
    return TrainedRun(runs.load(workdir, checkpoint, trust_code=trust_code), batch_size)


def _refuse_unreadable(parts: Iterable[Rows]) -> None:
    """Refuses to go on where no picture could be read."""
    parts = list(parts)
    if not any(rows.names for rows in parts):
        sentences = [sentence for rows in parts for sentence in rows.refusals.values()]
        raise UserError("no image could be read: " + "; ".join(sentences))

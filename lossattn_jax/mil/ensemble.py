"""Models that are stored in folders, predicting together: the mean of their probabilities."""

import dataclasses
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Self

import numpy as np

from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.data.bags.streaming import check_instances, memory_bytes
from lossattn_jax.errors import UserError
from lossattn_jax.mil import stored_models
from lossattn_jax.mil.bag_predictions import InstancePredictions
from lossattn_jax.mil.estimator import BagClassifier
from lossattn_jax.mil.network_classifier import NetworkClassifier


@dataclasses.dataclass(frozen=True, eq=False)
class Ensemble:
    """Fitted methods with the same classes.

    Attributes:
      folders: where they are stored.
      digests: of their records, which say by content what they are.
      methods: fitted.
    """

    folders: tuple[str, ...]
    digests: tuple[str | None, ...]
    methods: tuple[BagClassifier, ...]

    @classmethod
    def load(
        cls,
        folders: Sequence[str],
        *,
        memory_gib: float | None = None,
        instances_per_device: int | None = None,
        trust_code: bool | Collection[str] = False,
    ) -> Self:
        """Reads the models of folders.

        Args:
          folders: one for each model, at least one.
          memory_gib: GiB that what is read of bags may take in all; None: half of what is free.
          instances_per_device: of a bag; longer ones lie on all devices. None: as many as a device holds.
          trust_code: as `stored_models.load` takes it.

        Raises:
          UserError: as of `stored_models.load`, or classes are not the same.
        """
        if not any(folders):
            raise UserError("--model is empty, but must name a folder with a model at least")
        for place, folder in enumerate(folders):
            if os.path.realpath(folder) in map(os.path.realpath, folders[:place]):
                raise UserError(f"--model names {folder} twice, but each model counts once")
        fitted = tuple(stored_models.load(folder, trust_code=trust_code) for folder in folders)
        digests = tuple(stored_models.read(folder).digest for folder in folders)
        first = fitted[0]
        for folder, method in zip(folders, fitted, strict=True):
            for what in _classes(first):
                one, other = _classes(first)[what], _classes(method)[what]
                if one != other:
                    raise UserError(
                        f"{folder} has the {what} {other}, but {folders[0]} has {one}; models predict "
                        "together where these are the same"
                    )
        check_instances(instances_per_device)
        gib = memory_bytes(memory_gib) / len(folders) / 2**30
        for method in fitted:
            if isinstance(method, NetworkClassifier):
                method.memory_gib = gib
                method.instances_per_device = instances_per_device
        return cls(tuple(folders), digests, fitted)

    @property
    def classes(self) -> list[Any]:
        """K labels, in the order of probabilities."""
        return self.methods[0].classes_.tolist()

    @property
    def positive(self) -> Any:
        """The positive one; None where it is not known."""
        return self.methods[0].positive_

    @property
    def several_labels(self) -> bool:
        """Whether a bag may have any number of the labels."""
        return self.methods[0].several_labels_

    def label_of(self, probabilities: np.ndarray) -> Any:
        """The predicted label; see `BagClassifier.label_of`."""
        return self.methods[0].label_of(probabilities)

    def check(self, bags: Bags) -> None:
        """Refuses bags that a model cannot predict for; reads no instance.

        Raises:
          UserError: one lacks a feature, or instances have another width.
        """
        for folder, method in zip(self.folders, self.methods, strict=True):
            try:
                method.open_features(bags)
            except UserError as error:
                raise UserError(f"{folder}: {error}") from None

    def predict(self, bags: Bags) -> Iterator[InstancePredictions]:
        """Predicts for bags one after the other; what is said of one does not depend on the others.

        Attention and logits are None where a model has none. All are means over the models.
        """
        for predictions in zip(
            *(method.predict_bags(bags) for method in self.methods), strict=True
        ):
            yield InstancePredictions(
                predictions[0].row,
                np.mean([one.probabilities for one in predictions], axis=0),
                _mean([one.attention for one in predictions]),
                _mean([one.logits for one in predictions]),
                np.mean([one.scores for one in predictions], axis=0),
            )


def _classes(method: BagClassifier) -> dict[str, Any]:
    classes = ", ".join(repr(label) for label in method.classes_.tolist())
    return {
        "classes": classes,
        "positive": repr(method.positive_),
        "several labels of a bag": str(method.several_labels_),
    }


def _mean(parts: list[np.ndarray | None]) -> np.ndarray | None:
    arrays = [part for part in parts if part is not None]
    return np.mean(arrays, axis=0) if len(arrays) == len(parts) else None

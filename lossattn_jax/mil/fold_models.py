"""Models of a cross-validation's folds that stay: each in a folder beside its fold's file."""

import copy
import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lossattn_jax.data.bags import label_sets
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.splits import Split
from lossattn_jax.data.bags.streaming import PlacedBags
from lossattn_jax.files import digests
from lossattn_jax.mil import stored_models
from lossattn_jax.mil.estimator import BagClassifier, describe_data
from lossattn_jax.mil.network_classifier import NetworkClassifier
from lossattn_jax.train.bags.training import TrainedModels


def folder_of(rule_folder: pathlib.Path, split: Split) -> pathlib.Path:
    """Where the model of a fold is."""
    return rule_folder / split.name


def is_there(rule_folder: pathlib.Path, split: Split) -> bool:
    """Whether the model of a fold was written."""
    return (folder_of(rule_folder, split) / stored_models.RECORD_NAME).exists()


@dataclasses.dataclass(frozen=True)
class FoldModels:
    """Makes models of folds what `stored_models` writes.

    Attributes:
      dataset: of all folds.
      template: a method with the settings of the experiment, not fitted.
    """

    dataset: PlacedBags
    template: BagClassifier

    def save(
        self,
        model: BagClassifier | TrainedModels,
        split: Split,
        settings: Mapping[str, Any],
        rule_folder: pathlib.Path,
    ) -> None:
        """Writes the model of a fold, also over one that is there.

        Args:
          model: a classifier that was fitted on numbers of classes, or networks.
          split: the fold.
          settings: that were chosen for it.
          rule_folder: of the fold's file.

        Raises:
          UserError: as of `stored_models.save`.
        """
        named = (
            self._of_networks(model, settings)
            if isinstance(model, TrainedModels)
            else self._of_classifier(model)
        )
        named.feature_names_ = self.dataset.features
        rows = np.flatnonzero(split.train)
        labels = label_sets.names(self.dataset.labels[rows], self.dataset.classes)
        named.trained_on_ = describe_data([self._digests[row] for row in rows], labels)
        stored_models.save(named, folder_of(rule_folder, split), replace=True)

    def _of_classifier(self, model: BagClassifier) -> BagClassifier:
        """A copy of a classifier that knows the classes by their names."""
        named = copy.copy(model)
        classes = self.dataset.classes
        numbers = model.numbered_classes()
        positive = None
        if len(classes) == 2:
            positive = self.dataset.positive
        elif model.positive_ is not None:
            positive = classes[int(model.positive_)]
        named.name_classes([classes[int(number)] for number in numbers], positive)
        if "positive" in named.get_params(deep=False):
            named.set_params(positive=positive)
        return named

    def _of_networks(
        self, networks: TrainedModels, settings: Mapping[str, Any]
    ) -> NetworkClassifier:
        """The networks behind the interface of all methods."""
        named = copy.copy(self.template)
        assert isinstance(named, NetworkClassifier)
        nested = {f"settings__{name}": value for name, value in settings.items()}
        named.set_params(positive=self.dataset.positive, **nested)
        named.name_classes(self.dataset.classes, self.dataset.positive)
        named.several_labels_ = self.dataset.several_labels
        named.adopt(networks, self.dataset.shape)
        return named

    @functools.cached_property
    def _digests(self) -> tuple[str, ...]:
        """Digests of all bags."""
        if isinstance(self.dataset, BagDataset):
            return tuple(digests.of_arrays({"": bag}) for bag in self.dataset.bags)
        return self.dataset.survey.digests

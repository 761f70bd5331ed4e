"""The networks for bags behind the interface of all methods."""

import pathlib
from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from lossattn_jax.errors import UserError
from lossattn_jax.mil import training
from lossattn_jax.mil.bags import BagDataset
from lossattn_jax.mil.estimator import BagClassifier
from lossattn_jax.mil.network_scores import instance_scores
from lossattn_jax.mil.networks import BACKBONES, METHODS, BagNetwork
from lossattn_jax.mil.selection import stream
from lossattn_jax.mil.settings import Settings


class NetworkClassifier(BagClassifier):
    """One of the seven networks of the AAAI 2020 paper's Table 1; see `networks.BagNetwork`.

    `instance_scores` are the attention weights of the methods that learn one; of the others, the
    probability that the classifier gives the instance for a class other than the first.

    Attributes:
      method: one of `networks.METHODS`.
      backbone: "dense" for vectors, "lenet" for images.
      hidden: widths of the layers; None: as published.
      dropout: share of features that is dropped in training.
      ensemble: networks from different seeds, whose probabilities and scores are averaged.
      seed: of parameters, dropout and the order of the bags.
      standardise: see `BagClassifier`.
      settings: of the training, a `Settings`; None: its defaults.
      dump_dir: folder for the update that `fit` ended with, where too many in a row were not finite; see
        `lossattn_jax.mil.replay`. None: nothing is written.
      networks_: after `fit`, the `training.Trained` networks.
    """

    def __init__(
        self,
        *,
        method: str = "loss_attention",
        backbone: str = "dense",
        hidden: tuple[int, ...] | None = None,
        dropout: float = 0.5,
        ensemble: int = 1,
        seed: int = 0,
        standardise: bool = True,
        settings: Settings | None = None,
        dump_dir: str | None = None,
    ) -> None:
        self.method = method
        self.backbone = backbone
        self.hidden = hidden
        self.dropout = dropout
        self.ensemble = ensemble
        self.seed = seed
        self.standardise = standardise
        self.settings = settings
        self.dump_dir = dump_dir

    def network(self, num_classes: int) -> BagNetwork:
        """The network for K classes.

        Raises:
          UserError: a setting is impossible.
        """
        if self.method not in METHODS:
            raise UserError(f"method is {self.method!r}, but must be one of {', '.join(METHODS)}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}, but must be at least 0 and below 1")
        if self.ensemble < 1:
            raise UserError(f"ensemble is {self.ensemble}, but must be 1 or more")
        if self.backbone not in BACKBONES:
            raise UserError(
                f"backbone is {self.backbone!r}, but must be one of {', '.join(BACKBONES)}"
            )
        if min(self.hidden or (1,)) < 1:
            raise UserError(f"hidden is {self.hidden}, but must be widths of 1 or more")
        return BagNetwork(num_classes, self.method, self.backbone, self.hidden, self.dropout)

    def _fit(self, bags: list[np.ndarray], labels: np.ndarray) -> None:
        if self.standardise:  # in float64, after which float32 will do
            bags = _float32(bags)
        dataset = BagDataset.from_bags(bags, labels)
        everything = np.ones(len(bags), bool)
        plans = [
            training.Plan(stream(self.seed, member), everything, ~everything)
            for member in range(self.ensemble)
        ]
        self.networks_ = training.train(
            dataset,
            self.network(len(self.classes_)),
            self.settings or Settings(),
            plans,
            standardise=False,  # the base class has done so
            order_seed=self.seed,
            every_epoch=False,
            label=self.method,
            dump_dir=None if self.dump_dir is None else pathlib.Path(self.dump_dir),
        )

    def _predict_proba(self, bags: list[np.ndarray]) -> np.ndarray:
        logits = self._said(bags).logits.astype(np.float64)
        return softmax(logits, axis=-1).mean(axis=0)

    def _instance_scores(self, bags: list[np.ndarray]) -> list[np.ndarray]:
        said = self._said(bags)
        scores = instance_scores(self.method, said.attention, said.instance_logits).mean(axis=0)
        return np.split(scores, np.cumsum([len(bag) for bag in bags])[:-1])

    def _said(self, bags: Sequence[np.ndarray]) -> training.Predictions:
        dataset = BagDataset.from_bags(_float32(bags), np.zeros(len(bags), int), classes=(0,))
        return training.predict(
            dataset,
            self.network(len(self.classes_)),
            self.settings or Settings(),
            self.networks_.last,
            self.networks_.mean,
            self.networks_.scale,
            np.ones((self.ensemble, len(bags)), bool),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "networks_")


def _float32(bags: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [bag.astype(np.float32) for bag in bags]

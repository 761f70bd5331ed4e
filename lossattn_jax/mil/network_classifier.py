"""Networks for bags as classifiers of scikit-learn."""

import dataclasses
import math
import numbers
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import numpy as np
from numpy.typing import ArrayLike

from lossattn_jax.attention import poolings
from lossattn_jax.data.bags import streaming
from lossattn_jax.data.bags.bag_survey import digest_bag, survey_bags
from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.invalid import InvalidInput
from lossattn_jax.data.bags.label_sets import find_lacking
from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.data.bags.splits import Split
from lossattn_jax.data.order import derive_seed
from lossattn_jax.errors import UserError
from lossattn_jax.mil import network_folds, network_scores
from lossattn_jax.mil.bag_predictions import InstancePredictions
from lossattn_jax.mil.embeddings import check_whole
from lossattn_jax.mil.estimator import BagClassifier, check_bags, describe_parts
from lossattn_jax.mil.network_scores import instance_scores
from lossattn_jax.mil.selection import Validation
from lossattn_jax.models.backbones import BAG_BACKBONES
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.models.shapes import variable_shapes
from lossattn_jax.train.bags import streamed_training, training
from lossattn_jax.train.bags.settings import Settings

_SETTINGS_PREFIX = "settings__"
# What of `training.TrainedModels` is stored, beside the parameters.
_MOMENTS = ("mean", "scale", "num_skipped")


class NetworkClassifier(BagClassifier):
    """A network for bags; see `BagNetwork`.

    `instance_scores` are the attention weights of the methods that learn one; of the others, the
    probability that the classifier gives the instance for a class other than the first.

    Each of the training's settings is a parameter of its own, too, `settings__learning_rate` for instance, as
    those of an estimator within another are; they are there for `settings=None` as well.

    Attributes:
      method: one of `poolings.BAG_POOLINGS`, or a pooling of one's own, as `package.module:attribute`.
      backbone: "dense" for vectors, "lenet" or "lenet_tanh" for images, or one of one's own.
      hidden: widths of the layers; None: as published.
      dropout: share of features that is dropped in training.
      ensemble: networks from different seeds, whose probabilities and scores are averaged.
      seed: of parameters, dropout and the order of the bags.
      standardise, positive: see `BagClassifier`; of two classes mi_net has to know the positive one.
      class_weight: None, or "balanced" for losses of bags in inverse proportion to the number of their
        class' bags, or a dictionary with the weight of each label, 1 for those that it has not.
      settings: of the training, a `Settings`; None: its defaults.
      validation: how epoch and settings are chosen on held-out bags; None: the last epoch, and `settings`.
        Of `Bags` those with the split "validation" are held out, and never trained on. Of others part of the
        bags is drawn, which divides no group, and after the choice all are trained on.
      max_instances: that an epoch sees of a bag, drawn anew for each; 0: all.
      options: of the method's own by name, beyond those that were published; None: none. See
        `poolings.Pooling.options`.
      memory_gib: GiB that what is read of bags may take; None: half of what is free.
      instances_per_device: of a bag; longer ones lie on all devices, each with a part of the instances. None:
        as many as a device holds. Of this machine: it is not stored with the method.
      dump_dir: folder for the update that `fit` ended with, where too many in a row were not finite; see
        `lossattn_jax.replay`. None: nothing is written.
      networks_: after `fit`, the networks, as `training.TrainedModels`.
    """

    not_stored = ("instances_per_device",)

    def __init__(
        self,
        *,
        method: str = poolings.DEFAULT,
        backbone: str = "dense",
        hidden: tuple[int, ...] | None = None,
        dropout: float = 0.5,
        ensemble: int = 1,
        seed: int = 0,
        standardise: bool = True,
        settings: Settings | None = None,
        dump_dir: str | None = None,
        class_weight: str | Mapping[Any, float] | None = None,
        positive: Any = None,
        max_instances: int = 0,
        memory_gib: float | None = None,
        options: Mapping[str, float] | None = None,
        validation: Validation | None = None,
        instances_per_device: int | None = None,
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
        self.class_weight = class_weight
        self.positive = positive
        self.max_instances = max_instances
        self.memory_gib = memory_gib
        self.options = options
        self.validation = validation
        self.instances_per_device = instances_per_device

    @property
    def unequal_classes(self) -> bool:  # type: ignore[override]
        """Whether one of two classes has to be positive."""
        return poolings.BAG_POOLINGS.find(self.method).unequal_classes

    @property
    def takes_several_labels(self) -> bool:  # type: ignore[override]
        """Whether bags may have any number of labels."""
        return poolings.BAG_POOLINGS.find(self.method).several_labels

    @property
    def _name(self) -> str:
        return f"{type(self).__name__}(method={self.method!r})"

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Returns the constructor's parameters; with `deep` those of `settings`, too."""
        params = super().get_params(deep=deep)
        settings = Settings() if self.settings is None else self.settings
        if deep and isinstance(settings, Settings):
            for field in dataclasses.fields(settings):
                params[_SETTINGS_PREFIX + field.name] = getattr(settings, field.name)
        return params

    def set_params(self, **params: Any) -> Self:
        """Sets parameters; replaces `settings`, so that copies keep theirs.

        Raises:
          UserError: there is no parameter of that name, or a setting is impossible.
        """
        setting_values = {
            name.removeprefix(_SETTINGS_PREFIX): value
            for name, value in params.items()
            if name.startswith(_SETTINGS_PREFIX)
        }
        own = {
            name: value for name, value in params.items() if not name.startswith(_SETTINGS_PREFIX)
        }
        if setting_values:
            own["settings"] = _replace_settings(own.get("settings", self.settings), setting_values)
        return super().set_params(**own)

    def network(self, num_classes: int) -> BagNetwork:
        """Makes the network for K classes.

        Raises:
          UserError: a setting is impossible.
        """
        if not isinstance(self.dropout, numbers.Real) or not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout!r}, but must be at least 0 and below 1")
        if not isinstance(self.ensemble, numbers.Integral) or self.ensemble < 1:
            raise UserError(f"ensemble is {self.ensemble!r}, but must be 1 or more")
        BAG_BACKBONES.find(self.backbone)
        # A search may hold widths as a list or an array; a network's have to be hashable.
        hidden = () if self.hidden is None else np.asarray(self.hidden).tolist()
        if np.ndim(hidden) != 1 or not all(
            isinstance(width, int) and width > 0 for width in hidden
        ):
            raise UserError(f"hidden is {self.hidden}, but must be widths of 1 or more")
        if self.options is not None and not isinstance(self.options, Mapping):
            raise UserError(
                f"options is {self.options!r}, but must be None or a dictionary of numbers by name"
            )
        network = BagNetwork(
            num_classes,
            self.method,
            self.backbone,
            tuple(hidden) or None,
            self.dropout,
            options=tuple(sorted((self.options or {}).items())),
        )
        network.find_pooling().complete_options(dict(network.options), self.method)
        return network

    def check_params(self) -> None:
        """See `BagClassifier.check_params`."""
        self.network(2)
        _settings(self.settings)
        check_whole("max_instances", self.max_instances, 0)
        check_whole("seed", self.seed, 0)

    def fit(self, bags: Sequence[ArrayLike], labels: ArrayLike | None = None) -> Self:
        """Learns from labelled bags, see `BagClassifier.fit`.

        Large ones (`streaming.is_streamed`) are not copied, and `Bags` of files are read as they are needed.
        """
        check_whole("max_instances", self.max_instances, 0)
        if self.validation is not None:
            return self._fit_validated(bags, labels, self.validation)
        lazy = self._streamed(bags, self.max_instances)
        if lazy is None:
            return super().fit(bags, labels)
        labels = lazy.named_labels() if labels is None else labels
        encoded = self._learn_classes(labels, len(lazy))
        network = self.network(len(self.classes_))
        check_whole("seed", self.seed, 0)
        self._learn_features(lazy.shape, lazy.features)
        settings, plans = _settings(self.settings), self._plans(len(lazy))
        options: dict[str, Any] = {
            "max_instances": self.max_instances,
            "instances_per_device": self.instances_per_device,
            "standardise": self.standardise,
        }
        ahead = {**options, "every_epoch": self._training["every_epoch"]}
        ahead["label_shape"] = encoded.shape[1:]
        with streamed_training.compiled_ahead(lazy, network, settings, plans, **ahead):
            survey = survey_bags(lazy)
        self._note_data(survey.digests, encoded)
        lazy = dataclasses.replace(
            lazy, labels=encoded, classes=tuple(self.classes_[self._order].tolist()), positive=None
        )
        self.networks_ = streamed_training.train(
            lazy,
            survey,
            network,
            settings,
            plans,
            memory=streaming.memory_bytes(self.memory_gib),
            **options,
            **self._training,
        )
        return self

    def _fit_validated(
        self, bags: Sequence[ArrayLike], labels: ArrayLike | None, validation: Validation
    ) -> Self:
        """Chooses on held-out bags, and trains; as a fold of cross-validation does."""
        lazy = bags if isinstance(bags, Bags) else Bags.from_arrays(check_bags(list(bags)))
        labels = lazy.named_labels() if labels is None else labels
        encoded = self._learn_classes(labels, len(lazy))
        network = self.network(len(self.classes_))
        check_whole("seed", self.seed, 0)
        self._learn_features(lazy.shape, lazy.features)
        self._note_data((digest_bag(lazy, row) for row in range(len(lazy))), encoded)
        self.trained_on_ |= describe_parts(lazy)
        parts = np.full(len(lazy), "train") if lazy.splits is None else np.array(lazy.splits)
        own = parts == "validation"
        split = Split(0, 0, parts == "train", parts == "test", own if own.any() else None)
        lacking = find_lacking(encoded, split.train)
        if len(lacking):
            raise UserError(
                f"no bag of {lazy.name} that is trained on has the label "
                f"{self.numbered_classes()[lacking[0]]!r}, but every label must be among them"
            )
        # Numbers for classes, of which the last is the positive one whatever words say.
        numbered = dataclasses.replace(
            lazy, labels=encoded, classes=tuple(range(len(self.classes_))), positive=None
        )
        self.networks_, choice = network_folds.fit(
            streaming.place_bags(numbered, self.max_instances, self.memory_gib),
            split,
            network,
            _settings(self.settings),
            validation,
            ensemble=self.ensemble,
            standardise=self.standardise,
            seed=self.seed,
            class_weight=self._numbered_weights(),
            label=self.method,
            dump_dir=self._training["dump_dir"],
        )
        self.chosen_ = {
            "epoch": choice.epoch,
            "settings": dict(choice.overrides),
            **dict(choice.history or {}),
        }
        return self

    def _numbered_weights(self) -> str | dict[int, float] | None:
        """`class_weight` with the method's numbers in the place of labels."""
        if not isinstance(self.class_weight, Mapping):
            return self.class_weight
        return {
            number: float(self.class_weight.get(label, 1))
            for number, label in enumerate(self.numbered_classes())
        }

    def _fit(self, bags: list[np.ndarray], labels: np.ndarray) -> None:
        network = self.network(len(self.classes_))
        check_whole("seed", self.seed, 0)
        if self.standardise:  # in float64, after which float32 will do
            bags = _float32(bags)
        if self.several_labels_:
            dataset = BagDataset(
                instances=np.concatenate(bags),
                lengths=np.array([len(bag) for bag in bags]),
                labels=labels,
                ids=tuple(map(str, range(len(bags)))),
                classes=tuple(range(labels.shape[1])),
            )
        else:
            dataset = BagDataset.from_bags(bags, labels)
        self.networks_ = training.train(
            dataset,
            network,
            _settings(self.settings),
            self._plans(len(bags)),
            standardise=False,  # the base class has done so
            **self._training,
        )

    @property
    def _training(self) -> dict[str, Any]:
        """Arguments of both ways of training."""
        return {
            "order_seed": self.seed,
            "every_epoch": False,
            "label": self.method,
            "dump_dir": None if self.dump_dir is None else pathlib.Path(self.dump_dir),
        }

    def _plans(self, bags: int) -> list[training.Plan]:
        everything = np.ones(bags, bool)
        return [
            training.Plan(
                derive_seed(self.seed, member),
                everything,
                ~everything,
                class_weights=self._class_weights,
            )
            for member in range(self.ensemble)
        ]

    def parameter_shapes(self) -> Any:
        """Shapes and dtypes of `networks_.last`; nothing is computed.

        Raises:
          UserError: a setting is impossible.
        """
        network = self.network(len(self.classes_))
        shapes = variable_shapes(network, (1, *self._features))["params"]
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((self.ensemble, *leaf.shape), leaf.dtype), shapes
        )

    def _state(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(getattr(self.networks_, name)) for name in _MOMENTS}

    def _restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Makes networks whose parameters are still to be put in place by `set_parameters`."""
        self.networks_ = training.TrainedModels(
            last=None,
            best=None,
            at_keep_epoch=None,
            best_epochs=None,
            logits=np.empty((self.ensemble, 0, 0, len(self.classes_)), np.float32),
            mean=state["mean"],
            scale=state["scale"],
            num_skipped=state["num_skipped"],
            seconds=math.nan,  # which would make two models of the same training differ
        )

    def adopt(self, networks: training.TrainedModels, shape: tuple[int, ...]) -> None:
        """Takes networks that were trained elsewhere, standardisation included.

        Args:
          networks: `ensemble` of them.
          shape: of an instance.
        """
        self._learn_features(shape, None)
        self.networks_ = networks

    def set_parameters(self, parameters: Any) -> None:
        """Gives restored networks their parameters, a tree of `parameter_shapes`."""
        self.networks_ = dataclasses.replace(
            self.networks_, last=jax.tree.map(np.asarray, parameters)
        )

    def _probabilities(self, bags: Sequence[ArrayLike]) -> np.ndarray:
        lazy = self._streamed(bags)
        if lazy is None:
            return super()._probabilities(bags)
        return np.concatenate([bag.probabilities[None] for bag in self._read(lazy)])

    def _scores(self, bags: Sequence[ArrayLike]) -> list[np.ndarray]:
        lazy = self._streamed(bags)
        if lazy is None:
            return super()._scores(bags)
        return [bag.scores for bag in self._read(lazy)]

    def predict_bags(self, bags: Bags) -> Iterator[InstancePredictions]:
        """Predicts for bags one after the other, in bounded memory.

        Args:
          bags: which need no labels.

        Yields:
          What the networks say of each bag, for the classes in the order of `classes_`.

        Raises:
          UserError: the method was not fitted, instances have another width, or a bag cannot be read.
        """
        order = np.argsort(self._order)
        for bag in self._read(bags):
            assert bag.logits is not None  # of a network
            yield dataclasses.replace(
                bag,
                probabilities=bag.probabilities[order],
                logits=bag.logits[:, order],
                scores=self._orient_scores(bag.scores),
            )

    def _read(self, bags: Bags) -> Iterator[InstancePredictions]:
        """Predictions for the classes as the method numbers them."""
        bags = self.open_features(bags)
        mean = self.networks_.mean + np.asarray(self._mean)  # one of the two is 0, and one scale 1
        scale = self.networks_.scale * np.asarray(self._scale)
        mean, scale = (
            np.broadcast_to(x, (self.ensemble, *np.shape(x)[1:])).astype(np.float64)
            for x in (mean, scale)
        )
        predictor, convert = streamed_training.predictor_of(
            self.network(len(self.classes_)),
            self.networks_.last,
            mean,
            scale,
            instances_per_device=self.instances_per_device,
        )
        rows = range(len(bags))
        for bag in predictor.predict(bags, rows, streaming.memory_bytes(self.memory_gib), convert):
            several = {"several_labels": self.several_labels_}
            probabilities = network_scores.probabilities(bag.logits, **several).mean(axis=0)
            own = instance_scores(self.method, bag.attention, bag.instance_logits, **several)
            yield InstancePredictions(
                bag.row,
                probabilities,
                bag.attention.mean(axis=0),
                bag.instance_logits.mean(axis=0),
                own.mean(axis=0).astype(np.float64),
            )

    def _streamed(self, bags: Sequence[ArrayLike], max_instances: int = 0) -> Bags | None:
        """The bags as `Bags`, where they are large enough to be read one by one."""
        if isinstance(bags, Bags):
            lazy = bags
        elif len(bags) and all(_is_plain(bag) for bag in bags):
            lazy = Bags.from_arrays(bags)
        else:  # which the base class looks at more closely
            return None
        memory, most = streaming.memory_bytes(self.memory_gib), self.instances_per_device
        streaming.check_instances(most)
        return lazy if streaming.is_streamed(lazy, max_instances, memory, most) else None

    def _predict_proba(self, bags: list[np.ndarray]) -> np.ndarray:
        logits = self._predict_networks(bags).logits
        several = self.several_labels_
        return network_scores.probabilities(logits, several_labels=several).mean(axis=0)

    def _instance_scores(self, bags: list[np.ndarray]) -> list[np.ndarray]:
        predictions = self._predict_networks(bags)
        scores = instance_scores(
            self.method,
            predictions.attention,
            predictions.instance_logits,
            several_labels=self.several_labels_,
        ).mean(axis=0)
        return np.split(scores, np.cumsum([len(bag) for bag in bags])[:-1])

    def _for_the_other_class(self, scores: np.ndarray) -> np.ndarray:
        # Attention speaks for both.
        by_attention = poolings.BAG_POOLINGS.find(self.method).scores_by_attention
        return scores if by_attention else 1 - scores

    def _predict_networks(self, bags: Sequence[np.ndarray]) -> training.Predictions:
        dataset = BagDataset.from_bags(_float32(bags), np.zeros(len(bags), int), classes=(0,))
        return training.predict(
            dataset,
            self.network(len(self.classes_)),
            _settings(self.settings),
            self.networks_.last,
            self.networks_.mean,
            self.networks_.scale,
            predict_mask=np.ones((self.ensemble, len(bags)), bool),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "networks_")


def _settings(value: Any) -> Settings:
    """Returns the settings, or the defaults for None."""
    if value is None:
        return Settings()
    if isinstance(value, Settings):
        return value
    raise InvalidInput(f"settings is {value!r}, but must be a Settings or None")


def _replace_settings(value: Any, changes: Mapping[str, Any]) -> Settings:
    """Replaces some fields of settings."""
    settings = _settings(value)
    names = [field.name for field in dataclasses.fields(settings)]
    for name in changes:
        if name not in names:
            raise InvalidInput(
                f"settings has no parameter {name!r}; those that it has are {', '.join(names)}"
            )
    try:
        return dataclasses.replace(settings, **changes)
    except UserError as error:
        raise InvalidInput(f"{_SETTINGS_PREFIX}{error}") from None


def _is_plain(bag: ArrayLike) -> bool:
    """Whether it is an array of real floats of two axes or more, with instances and features."""
    return isinstance(bag, np.ndarray) and bag.dtype.kind == "f" and bag.ndim > 1 and bag.size > 0


def _float32(bags: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [bag.astype(np.float32) for bag in bags]

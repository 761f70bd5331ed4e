"""All folds and repeats of a network, trained in one program, or each by itself."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.data.bags.splits import Split
from lossattn_jax.data.bags.streaming import PlacedBags
from lossattn_jax.data.order import derive_seed
from lossattn_jax.mil import network_scores, selection
from lossattn_jax.mil.fold_results import FoldResult
from lossattn_jax.mil.network_scores import instance_scores
from lossattn_jax.mil.selection import BEST_TEST, FINAL, VALIDATION, Validation
from lossattn_jax.models.bag_networks import BagNetwork
from lossattn_jax.train.bags import streamed_training, training
from lossattn_jax.train.bags.plans import weigh_classes
from lossattn_jax.train.bags.settings import Settings

# The parameters that each rule takes; see `training.TrainedModels`.
_PARAMS = {FINAL: "last", BEST_TEST: "best", VALIDATION: "at_keep_epoch"}
_ORDER = 0x0D3  # keeps the draw of a fold's own order apart from those of its parameters


@dataclasses.dataclass(frozen=True)
class Choice:
    """What held-out bags have chosen for a fold.

    Attributes:
      overrides: the settings, {} for those of the training.
      epoch: from 1; None where nothing was chosen.
      history: what the choice was made by, as JSON: the metric, patience, how many bags were held out, and
        loss and accuracy on them after each epoch of the training with these settings.
    """

    overrides: Mapping[str, float]
    epoch: int | None
    history: Mapping[str, Any] | None = None


def run(
    dataset: PlacedBags,
    splits: Sequence[Split],
    network: BagNetwork,
    settings: Settings,
    *,
    rules: Sequence[str] = (FINAL,),
    validation: Validation | None = None,
    ensemble: int = 1,
    standardise: bool = True,
    seed: int = 0,
    own_order: bool = False,
    class_weight: str | None = None,
    label: str = "",
    dump_dir: pathlib.Path | None = None,
) -> list[FoldResult]:
    """Trains and tests a network on every fold.

    Args:
      dataset: the bags.
      splits: the folds.
      network: of one of `poolings.BAG_POOLINGS`.
      settings: of the training.
      rules: of `selection.RULES`; those that need the same training share it.
      validation: of the rule `VALIDATION`; None: its defaults.
      ensemble: networks of each fold, from different seeds, whose probabilities are averaged.
      standardise: whether features are standardised on the training folds.
      seed: of the order of the bags; with repeat and fold, of parameters and dropout.
      own_order: whether the order of the bags follows from repeat and fold too, so that the folds are trained
        one after the other and not in one program.
      class_weight: None, or "balanced", by the labels of the bags that a network is trained on.
      label: what the log calls this.
      dump_dir: gets a folder with the update that a training ended with; see `training.train`.

    Returns:
      For each rule and split a result. The test bags take no part in the choices of `FINAL` and
      `VALIDATION`.

    Raises:
      UserError: there is no such rule, or a model has skipped `settings.max_skipped` updates in a row.
    """
    selection.check_rules(tuple(rules))
    if own_order and len(splits) > 1:
        each = [
            run(
                dataset,
                [split],
                network,
                settings,
                rules=rules,
                validation=validation,
                ensemble=ensemble,
                standardise=standardise,
                seed=seed,
                own_order=True,
                class_weight=class_weight,
                label=f"{label}, {split.name}",
                dump_dir=dump_dir,
            )
            for split in splits
        ]
        return [results[number] for number in range(len(rules)) for results in each]
    choices = [Choice({}, None)] * len(splits)
    validation = validation or Validation()
    keywords: dict[str, Any] = {
        "standardise": standardise,
        "order_seed": _order_seed(splits[0], seed) if own_order else seed,
        "dump_dir": dump_dir,
    }
    seconds = {rule: 0.0 for rule in rules}
    if VALIDATION in rules:
        choices, seconds[VALIDATION] = _choose(
            dataset,
            splits,
            network,
            settings,
            validation,
            seed,
            label=label,
            class_weight=class_weight,
            keywords=keywords,
        )
    plans, members = _plans(splits, rules, choices, ensemble, seed)
    plans = weigh_classes(plans, dataset.labels, dataset.num_classes, class_weight)
    ends = np.full(len(plans), settings.epochs)
    if validation.patience:  # and then no epoch after the chosen one is looked at
        for place, choice in enumerate(choices):
            others = [members[rule, place] for rule in rules if rule != VALIDATION]
            for member in members[VALIDATION, place] if VALIDATION in rules else ():
                if not any(member in own for own in others):
                    ends[member] = choice.epoch
    models = _train(
        dataset,
        network,
        settings,
        plans,
        has_ended=lambda logits: logits.shape[1] >= ends,
        every_epoch=BEST_TEST in rules or VALIDATION in rules,
        label=f"{label}, training",
        **keywords,
    )
    results = []
    for rule in rules:
        own = [members[rule, place] for place in range(len(splits))]
        flat = np.concatenate(own)
        predictions = _predict(
            dataset,
            network,
            settings,
            (
                jax.tree.map(lambda leaf, flat=flat: leaf[flat], getattr(models, _PARAMS[rule])),
                models.mean[flat],
                models.scale[flat],
            ),
            splits,
            ensemble,
        )
        for place, split in enumerate(splits):
            among = slice(place * ensemble, (place + 1) * ensemble)
            first = own[place][0]
            curve = models.logits[own[place]]
            if rule == VALIDATION and validation.patience:
                curve = curve[:, : choices[place].epoch]
            epochs = {FINAL: settings.epochs, VALIDATION: choices[place].epoch}
            if models.best_epochs is not None:
                epochs[BEST_TEST] = int(models.best_epochs[first])
            probabilities = network_scores.probabilities(
                predictions.logits[among][:, split.test], several_labels=dataset.several_labels
            ).mean(axis=0)
            results.append(
                FoldResult(
                    rule=rule,
                    split=split,
                    probabilities=probabilities,
                    weights=predictions.weights[place],
                    settings=choices[place].overrides if rule == VALIDATION else {},
                    epoch=epochs[rule],
                    accuracies=_curve(dataset, split, curve),
                    seconds=(models.seconds + seconds[rule]) / len(splits),
                    model=_models_of(models, _PARAMS[rule], own[place]),
                    validation=choices[place].history if rule == VALIDATION else None,
                )
            )
    return results


def fit(
    dataset: PlacedBags,
    split: Split,
    network: BagNetwork,
    settings: Settings,
    validation: Validation,
    *,
    ensemble: int = 1,
    standardise: bool = True,
    seed: int = 0,
    class_weight: str | Mapping[int, float] | None = None,
    label: str = "",
    dump_dir: pathlib.Path | None = None,
) -> tuple[training.TrainedModels, Choice]:
    """Trains the networks of one fold under the rule `VALIDATION`; tests nothing.

    Args:
      dataset: the bags.
      split: of training and validation; its test is not looked at.
      network, settings, validation, ensemble, standardise, seed, label, dump_dir: as of `run`.
      class_weight: None, "balanced", or the weight of each label.

    Returns:
      The networks, with the parameters of the chosen epoch as `last`; and the choice.

    Raises:
      UserError: as of `run`.
    """
    keywords = {"standardise": standardise, "order_seed": seed, "dump_dir": dump_dir}
    choices, _ = _choose(
        dataset,
        [split],
        network,
        settings,
        validation,
        seed,
        label=label,
        class_weight=class_weight,
        keywords=keywords,
    )
    split = dataclasses.replace(split, test=np.zeros_like(split.test))
    plans, members = _plans([split], (VALIDATION,), choices, ensemble, seed)
    plans = weigh_classes(plans, dataset.labels, dataset.num_classes, class_weight)
    models = _train(
        dataset,
        network,
        settings,
        plans,
        has_ended=lambda logits: np.full(len(plans), logits.shape[1] >= choices[0].epoch),
        every_epoch=False,
        label=f"{label}, training",
        **keywords,
    )
    return _models_of(models, _PARAMS[VALIDATION], members[VALIDATION, 0]), choices[0]


def _models_of(
    models: training.TrainedModels, params: str, members: np.ndarray
) -> training.TrainedModels:
    """Some of the networks, with the parameters that a rule takes."""
    return training.TrainedModels(
        last=jax.tree.map(lambda leaf: leaf[members], getattr(models, params)),
        best=None,
        at_keep_epoch=None,
        best_epochs=None,
        logits=models.logits[members, :0],
        mean=models.mean[members],
        scale=models.scale[members],
        num_skipped=models.num_skipped[members],
        seconds=models.seconds,
    )


def _choose(
    dataset, splits, network, settings, validation, seed, *, label, class_weight, keywords
) -> tuple[list[Choice], float]:
    """Chooses settings and epoch of each split by held-out bags."""
    grid = _grid(validation, network)
    plans = []
    for split in splits:
        own = derive_seed(seed, split.repeat, split.fold)
        parts = validation.parts(dataset, split, own)
        for validation_mask in parts:
            for overrides in grid:
                plans.append(
                    training.Plan(
                        seed=derive_seed(seed, split.repeat, split.fold, 0),
                        train=split.train & ~validation_mask,
                        held_out=validation_mask,
                        overrides=overrides,
                        name=split.name,
                    )
                )
    plans = weigh_classes(plans, dataset.labels, dataset.num_classes, class_weight)
    # One split of a user's has bags for validation, or none has.
    shape = (len(splits), len(parts), len(grid))

    def score(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means over parts of accuracy and loss on the held-out bags, `[splits, grid, epochs]`."""
        pairs = [
            selection.accuracy_and_loss(own[:, plan.held_out], dataset.labels[plan.held_out])
            for plan, own in zip(plans, logits, strict=True)
        ]
        accuracy, loss = (
            np.array([pair[i] for pair in pairs]).reshape(*shape, -1).mean(axis=1) for i in range(2)
        )
        return accuracy, loss

    def has_ended(logits: np.ndarray) -> np.ndarray:
        """The networks of a split and of settings end together: where the mean over parts says so."""
        accuracy, loss = score(logits)
        ended = np.zeros(shape, bool)
        for place, number in np.ndindex(len(splits), len(grid)):
            end = validation.end_of(accuracy[place, number], loss[place, number])
            ended[place, :, number] = end is not None
        return ended.ravel()

    models = _train(
        dataset,
        network,
        settings,
        plans,
        has_ended=has_ended if validation.patience else None,
        label=f"{label}, validation",
        **keywords,
    )
    accuracy, loss = score(models.logits)
    choices = []
    for place in range(len(splits)):
        number, epoch = validation.best(accuracy[place], loss[place])
        curves = accuracy[place, number], loss[place, number]
        count = validation.end_of(*curves) or settings.epochs
        own_parts = plans[place * len(parts) * len(grid) :: len(grid)][: len(parts)]
        history = {
            "metric": validation.compared_by,
            "patience": validation.patience,
            "bags": [int(np.count_nonzero(plan.held_out)) for plan in own_parts],
            selection.ACCURACY: curves[0][:count].tolist(),
            selection.LOSS: curves[1][:count].tolist(),
        }
        choices.append(Choice(grid[number], int(epoch) + 1, history))
    return choices, models.seconds


def _order_seed(split: Split, seed: int) -> int:
    """Derives the seed of the order in which a fold of its own visits the bags."""
    return derive_seed(seed, split.repeat, split.fold, _ORDER)


def _grid(validation: Validation, network: BagNetwork) -> tuple[Mapping[str, float], ...]:
    """Returns the settings to try; lambda only with a loss of instances."""
    useless = () if network.find_pooling().patch_loss else ("patch_weight",)
    choices = [
        {name: value for name, value in overrides.items() if name not in useless}
        for overrides in validation.overrides()
    ]
    return tuple({tuple(sorted(one.items())): one for one in choices}.values())


def _plans(
    splits: Sequence[Split],
    rules: Sequence[str],
    choices: Sequence[Choice],
    ensemble: int,
    seed: int,
) -> tuple[list[training.Plan], dict[tuple[str, int], np.ndarray]]:
    """Makes the plans of all models, and each rule's models by split."""
    plans: list[training.Plan] = []
    members: dict[tuple[str, int], np.ndarray] = {}
    for place, (split, choice) in enumerate(zip(splits, choices, strict=True)):
        members_by_settings: dict[tuple, np.ndarray] = {}
        for rule in rules:
            overrides = choice.overrides if rule == VALIDATION else {}
            key = tuple(sorted(overrides.items()))
            if key not in members_by_settings:
                members_by_settings[key] = len(plans) + np.arange(ensemble)
                plans.extend(
                    training.Plan(
                        seed=derive_seed(seed, split.repeat, split.fold, member),
                        train=split.train,
                        held_out=split.test,
                        selection=split.test if BEST_TEST in rules else None,
                        keep_epoch=choice.epoch,
                        overrides=overrides,
                        name=split.name,
                    )
                    for member in range(ensemble)
                )
            members[rule, place] = members_by_settings[key]
    return plans, members


@dataclasses.dataclass(frozen=True)
class _FoldPredictions:
    """What the models of some splits say of the test bags.

    Attributes:
      logits: `[M, bags, K]` float32; NaN of bags that a model does not test.
      weights: for each split, of each test bag the instances' scores, `[n]` float64 means over the ensemble.
    """

    logits: np.ndarray
    weights: list[list[np.ndarray]]


def _train(
    dataset: PlacedBags,
    network: BagNetwork,
    settings: Settings,
    plans: Sequence[training.Plan],
    **keywords: Any,
) -> training.TrainedModels:
    """Trains on bags that lie on the devices, or that are read one by one."""
    if isinstance(dataset, BagDataset):
        return training.train(dataset, network, settings, plans, **keywords)
    return streamed_training.train(
        dataset,
        dataset.survey,
        network,
        settings,
        plans,
        memory=dataset.memory,
        max_instances=dataset.max_instances,
        instances_per_device=dataset.instances_per_device,
        **keywords,
    )


def _predict(
    dataset: PlacedBags,
    network: BagNetwork,
    settings: Settings,
    models: tuple[Any, np.ndarray, np.ndarray],
    splits: Sequence[Split],
    ensemble: int,
) -> _FoldPredictions:
    """Predicts each split's test bags.

    Args:
      dataset, network, settings: of the training.
      models: parameters, mean and scale of M models, those of a split one after the other.
      splits: of the models.
      ensemble: models of a split.
    """
    predict_mask = np.repeat(np.stack([split.test for split in splits]), ensemble, axis=0)
    if isinstance(dataset, BagDataset):
        predictions = training.predict(
            dataset, network, settings, *models, predict_mask=predict_mask
        )
        scores = instance_scores(
            network.method,
            predictions.attention,
            predictions.instance_logits,
            several_labels=dataset.several_labels,
        )
        offsets = dataset.offsets
        weights = []
        for place, split in enumerate(splits):
            own = scores[place * ensemble : (place + 1) * ensemble].mean(axis=0)
            weights.append(
                [
                    own[offsets[row] : offsets[row + 1]].astype(np.float64)
                    for row in np.flatnonzero(split.test)
                ]
            )
        return _FoldPredictions(predictions.logits, weights)
    logits = np.full((len(predict_mask), len(dataset), network.num_classes), np.nan, np.float32)
    by_row: list[dict[int, np.ndarray]] = [{} for _ in splits]
    rows = np.flatnonzero(predict_mask.any(axis=0)).tolist()
    predictor, convert = streamed_training.predictor_of(
        network, *models, instances_per_device=dataset.instances_per_device
    )
    for bag in predictor.predict(dataset, rows, dataset.memory, convert, predict_mask):
        of_bag = predict_mask[:, bag.row]
        logits[of_bag, bag.row] = bag.logits[of_bag]
        for place, split in enumerate(splits):
            if split.test[bag.row]:
                among = slice(place * ensemble, (place + 1) * ensemble)
                scores = instance_scores(
                    network.method,
                    bag.attention[among],
                    bag.instance_logits[among],
                    several_labels=dataset.several_labels,
                )
                by_row[place][bag.row] = scores.mean(axis=0).astype(np.float64)
    return _FoldPredictions(logits, [[own[row] for row in sorted(own)] for own in by_row])


def _curve(dataset: PlacedBags, split: Split, logits: np.ndarray) -> np.ndarray | None:
    """Computes test accuracy after each epoch, `[epochs]`.

    It is averaged over an ensemble's members.

    None where an epoch's logits are not known or not finite.
    """
    test_logits = logits[:, :, split.test]
    if not np.isfinite(test_logits).all():
        return None
    return selection.accuracy_and_loss(test_logits, dataset.labels[split.test])[0].mean(axis=0)

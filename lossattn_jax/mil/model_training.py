"""What `python -m lossattn_jax.mil.train` does: a method is fitted on bags, and stays in a folder."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lossattn_jax import devices, files
from lossattn_jax.checkpoint import run_folder
from lossattn_jax.config import bags as config_lib
from lossattn_jax.config.options import BagOptions
from lossattn_jax.data.bags import label_sets, streaming
from lossattn_jax.data.bags.bag_survey import digest_bag
from lossattn_jax.data.bags.lazy_bags import Bags
from lossattn_jax.errors import UserError
from lossattn_jax.files import digests, records
from lossattn_jax.mil import (
    cross_validation,
    method_memory,
    methods,
    prediction_files,
    selection,
    stored_models,
)
from lossattn_jax.mil.ensemble import Ensemble
from lossattn_jax.mil.estimator import BagClassifier, describe_data, describe_parts
from lossattn_jax.mil.network_classifier import NetworkClassifier
from lossattn_jax.mil.prediction_files import BagRow, Scores
from lossattn_jax.mil.workdir import Workdir
from lossattn_jax.train import dumps

log = logging.getLogger(__name__)

_TABLE = "predictions_sha256"  # in the record of a test
TEST_NAME, EPOCHS_NAME = "test.json", "epochs.jsonl"
TRAIN, VALIDATION, TEST = "train", "validation", "test"


@dataclasses.dataclass(frozen=True)
class Request:
    """How a model is trained, besides the config.

    Attributes:
      method: as `methods.get` takes it.
      select: of `selection.RULES` the one by which epochs and settings are chosen.
      memory_gib: GiB that what is read of bags may take; None: half of what is free.
      instances_per_device: of a bag; longer ones lie on all devices. None: as many as a device holds.
    """

    method: str
    select: str = selection.FINAL
    memory_gib: float | None = None
    instances_per_device: int | None = None


def run(bags: Bags, request: Request, options: BagOptions, workdir: str) -> Scores | None:
    """Trains a model, or reads the one that is there already.

    With splits it is trained on the bags of "train" and tested on those of "test".

    Args:
      bags: with labels.
      request: how it is trained.
      options: of the config.
      workdir: gets the model as `stored_models.save` writes it, `epochs.jsonl` with the time of each epoch
        where bags were read one by one, and of a test `test.json` and `predictions.csv`.

    Returns:
      What the test gave; None without bags to test.

    Raises:
      UserError: a setting is impossible, the method does not take such bags, or the workdir has a model of
        other data or settings, or something else, or cannot be written. Nothing was computed then.
    """
    _refuse_selection(request, options)
    train, test = _parts(bags, request)
    method = make(request, options, bags)
    _refuse(train, method, request)
    with Workdir(workdir) as folder:
        log.info("devices: %s", devices.describe())
        _describe(train, test, methods.get(request.method).title)
        is_there = _has_model(folder.path)
        if is_there:
            _refuse_other(folder.path, train, method)
            log.info("%s has this model already: it is read, and left as it is", folder.path)
        else:
            folder.make()
            if not folder.writable:
                raise UserError(f"the workdir {folder.path} cannot be written; use another one")
            _fit(method, train, folder, request)
        scores = None if test is None else _test(folder, test, request, again=is_there)
        folder.refuse_moved()
        log.info("files: %s", folder.path)
    return scores


def make(request: Request, options: BagOptions, bags: Bags) -> BagClassifier:
    """The method, ready for `fit`, with all settings that its class has.

    Args:
      request: how it is trained.
      options: of the config.
      bags: to be trained on, for the positive class.

    Raises:
      UserError: it has no such setting, or needs to know the positive class.
    """
    entry = methods.get(request.method)
    cross_validation.check_options(options)
    methods.refuse_weights([request.method], options.train.class_weight)
    methods.refuse_drawn_instances([request.method], options.train.max_instances)
    method = cross_validation.template(request.method, options)
    if request.select == selection.VALIDATION:
        method.set_params(validation=config_lib.validation(options.validation))
    if entry.network is None:
        own = method.get_params(deep=False)
        settings: dict[str, Any] = {"seed": options.seed, "standardise": options.model.standardise}
        method.set_params(**{name: value for name, value in settings.items() if name in own})
    if len(bags.classes) == 2 and bags.positive is not None:
        method.set_params(positive=bags.positive)
    return method


def _refuse_selection(request: Request, options: BagOptions) -> None:
    """Refuses rules that are not for models that stay."""
    selection.check_rules((request.select,))
    if request.select == selection.BEST_TEST:
        raise UserError(
            f"--select={request.select} is not for models that stay, whose test chooses nothing; take "
            f"{selection.FINAL} or {selection.VALIDATION}"
        )
    selection.refuse_patience((request.select,), options.validation.patience)
    if request.select == selection.VALIDATION and methods.get(request.method).network is None:
        raise UserError(
            f"--select={request.select} chooses epochs of networks, but {request.method} has none; leave it "
            "out, and choose settings by cross-validation, lossattn mil cv"
        )


def _parts(bags: Bags, request: Request) -> tuple[Bags, Bags | None]:
    """The bags to train on, and those to test."""
    if bags.labels is None:
        raise UserError(f"the bags of {bags.name} have no labels, but training needs them")
    if bags.folds is not None:
        log.info("%s: the folds of its table are for lossattn mil cv, and not looked at", bags.name)
    if bags.splits is None:
        return bags, None
    rows = {part: np.array(bags.splits) == part for part in (TRAIN, VALIDATION, TEST)}
    if not rows[TRAIN].any():
        raise UserError(f"no bag of {bags.name} has the split {TRAIN}, but some must be trained on")
    if request.select == selection.VALIDATION:
        rows[TRAIN] |= rows[VALIDATION]
    elif rows[VALIDATION].any():
        log.info(
            "%s: %d bags with the split %s are neither trained on nor tested",
            bags.name,
            np.count_nonzero(rows[VALIDATION]),
            VALIDATION,
        )
    return bags.select(rows[TRAIN]), bags.select(rows[TEST]) if rows[TEST].any() else None


def _refuse(bags: Bags, method: BagClassifier, request: Request) -> None:
    """Raises the `UserError`s that can be known before instances are read."""
    entry = methods.get(request.method)
    if not entry.takes_images and len(bags.shape) > 1:
        raise UserError(
            f"the method {request.method} takes vectors, but the instances of {bags.name} are images"
        )
    assert bags.labels is not None
    if bags.several_labels:
        methods.refuse_several_labels([request.method], bags.name, method.class_weight)
        absent = np.flatnonzero(~bags.labels.any(axis=0))
        if len(absent):
            raise UserError(
                f"no bag of {bags.name} that is trained on has the label {bags.classes[absent[0]]!r}; leave "
                "it out"
            )
    elif len(np.unique(bags.labels)) < 2:
        raise UserError(
            f"all bags of {bags.name} that are trained on have the label "
            f"{bags.classes[bags.labels[0]]!r}, but there must be two"
        )
    if (
        not bags.several_labels
        and entry.unequal_classes
        and len(bags.classes) == 2
        and bags.positive is None
    ):
        raise UserError(
            f"which class of {bags.name} is positive is not known, {bags.classes[0]!r} or "
            f"{bags.classes[1]!r}, but {request.method} treats the positive class unlike the other; name it "
            "with --positive=WORD"
        )
    method_memory.refuse_large_parts(
        request.method, bags, [(bags.lengths, bags.labels)], "the model"
    )
    streaming.memory_bytes(request.memory_gib)
    streaming.check_instances(request.instances_per_device)
    if isinstance(method, NetworkClassifier):
        method.network(len(bags.classes))
    stored_models.refuse_unsaveable(method)


def _describe(train: Bags, test: Bags | None, title: str) -> None:
    width = " x ".join(map(str, train.shape))
    names = "" if train.features is None else f" ({train.features[0]} to {train.features[-1]})"
    positive = "" if len(train.classes) != 2 else f" (positive: {_positive_text(train)})"
    if train.several_labels:
        positive = ", of which a bag may have several"
    log.info(
        "%s on %s: %d bags of %d to %d instances, %d in all, %s features%s; classes %s%s; %s",
        title,
        train.name,
        len(train),
        train.lengths.min(),
        train.lengths.max(),
        train.lengths.sum(),
        width,
        names,
        ", ".join(map(str, train.classes)),
        positive,
        "none tested" if test is None else f"{len(test)} tested",
    )


def _positive_text(bags: Bags) -> str:
    return "not known" if bags.positive is None else str(bags.positive)


def _has_model(folder: pathlib.Path) -> bool:
    """Whether there is a model; refuses folders of other commands."""
    if (folder / run_folder.CONFIG_NAME).exists():
        raise UserError(
            f"the workdir {folder} has a {run_folder.CONFIG_NAME}, and so is another command's; use another "
            "one"
        )
    return (folder / stored_models.RECORD_NAME).exists()


def _refuse_other(folder: pathlib.Path, bags: Bags, method: BagClassifier) -> None:
    """Refuses a workdir whose model follows from something else.

    Raises:
      UserError: the sentence says what differs, or the model is damaged.
    """
    record = stored_models.read(folder)
    now = describe_data((digest_bag(bags, row) for row in range(len(bags))), _labels(bags))
    if method.get_params(deep=False).get("validation") is not None:
        now |= describe_parts(bags)
    expected = stored_models.inputs_of(stored_models.describe(method), now)
    before = stored_models.inputs_of(record.content, record.made_from or {})
    records.refuse_other(folder / stored_models.RECORD_NAME, before, expected)


def _labels(bags: Bags) -> list[Any]:
    """As the user knows them; of several their text."""
    assert bags.labels is not None
    return label_sets.names(bags.labels, bags.classes)


def _fit(method: BagClassifier, bags: Bags, folder: Workdir, request: Request) -> None:
    """Fits the method, and writes it."""
    of_place: Mapping[str, Any] = {
        "memory_gib": None,
        "instances_per_device": None,
        "dump_dir": None,
    }
    if isinstance(method, NetworkClassifier):
        method.set_params(
            memory_gib=request.memory_gib,
            instances_per_device=request.instances_per_device,
            dump_dir=str(folder.path / dumps.FOLDER_NAME),
        )
    method.fit(bags)
    if method.chosen_ is not None:
        log.info(
            "epoch %d of %d was chosen by the %s of %s held-out bags",
            method.chosen_["epoch"],
            len(method.chosen_["loss"]),
            method.chosen_["metric"],
            " and ".join(map(str, method.chosen_["bags"])),
        )
    if isinstance(method, NetworkClassifier):
        method.set_params(**of_place)  # which say nothing of the model
    folder.refuse_moved()
    method.save(folder.path)
    if isinstance(method, NetworkClassifier) and method.networks_.epoch_seconds is not None:
        with folder.writing():
            files.write(folder.path / EPOCHS_NAME, _epoch_lines(method))


def _epoch_lines(method: NetworkClassifier) -> bytes:
    """A line of JSON for each epoch of a training that has read its bags one by one."""
    networks = method.networks_
    assert networks.epoch_seconds is not None and networks.waiting_seconds is not None
    times = zip(networks.epoch_seconds.tolist(), networks.waiting_seconds.tolist(), strict=True)
    lines = [
        json.dumps({"epoch": epoch, "seconds": seconds, "waiting_seconds": waiting})
        for epoch, (seconds, waiting) in enumerate(times, start=1)
    ]
    return "".join(line + "\n" for line in lines).encode()


def _test(folder: Workdir, bags: Bags, request: Request, again: bool) -> Scores:
    """Tests the model of a folder; `again` reads what its test gave, where that is there."""
    path = folder.path / TEST_NAME
    ensemble = Ensemble.load(
        [str(folder.path)],
        memory_gib=request.memory_gib,
        instances_per_device=request.instances_per_device,
        trust_code=(request.method,),
    )
    made_from = {
        "model": ensemble.digests[0],
        "bags": digests.of_json([digest_bag(bags, row) for row in range(len(bags))]),
        "labels": digests.of_json(_labels(bags)),
        "ids": digests.of_json(list(bags.ids)),
    }
    table = folder.path / prediction_files.TABLE_NAME
    record = records.find(path, made_from) if again else None
    if record is not None:
        there = digests.of_file(table)
        if record.content.get(_TABLE, there) == there:  # records of before have none
            return _scores(record.content)
        log.warning("warning: %s is not as it was written; it is made again", table)
    rows = [
        BagRow(
            bags.ids[prediction.row],
            label,
            ensemble.label_of(prediction.probabilities),
            records.without_nonfinite(prediction.probabilities.tolist())[0],
            len(prediction.scores),
        )
        for prediction, label in zip(ensemble.predict(bags), _labels(bags), strict=True)
    ]
    several = ensemble.several_labels
    scores = prediction_files.score(rows, ensemble.classes, several_labels=several)
    if folder.writable:
        with folder.writing():
            prediction_files.write_table(table, rows, ensemble.classes)
            content = {**dataclasses.asdict(scores), _TABLE: digests.of_file(table)}
            records.write(path, content, made_from, indent=1)
    return scores


def _scores(content: Mapping[str, Any]) -> Scores:
    numbers = {
        name: float("nan" if content[name] is None else content[name])
        for name in ("accuracy", "auc")
    }
    return Scores(bags=content["bags"], nonfinite=tuple(content["nonfinite"]), **numbers)

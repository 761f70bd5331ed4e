"""The configuration of a run: every key with its default, and the check of a filled-in one.

A config file under `configs/` starts from `default_config()` and sets what differs. All keys exist in
the defaults, so an override of an unknown one is refused; `check` refuses impossible values.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict, config_dict

from lossattn_jax.errors import UserError


def default_config() -> ConfigDict:
    """The TIP 2021 paper's training of ResNet18 with loss attention on CIFAR-10 (section IV-A).

    Returns:
      A config; see the comments here for each key.
    """
    config = ConfigDict()
    config.seed = 0  # of the parameters, the data order and the augmentation
    config.init_from = ""  # workdir of another run whose parameters to start from

    config.data = ConfigDict()
    config.data.name = "cifar10"  # digit_scenes, cifar10, cifar100 or svhn_cropped
    config.data.dir = ""  # folder of the TFDS data sets; empty: TFDS' default
    config.data.extra = False  # svhn_cropped: train on its extra split too
    config.data.mode = "memory"  # memory: all images as uint8 in RAM; stream: grain
    config.data.crop_padding = 4  # pixels around an image before the random crop; 0: no crop
    config.data.flip = config_dict.placeholder(bool)  # None: as suits the data set

    config.model = ConfigDict()
    config.model.backbone = "resnet18"
    config.model.head = "conv"
    config.model.pooling = "loss_attention"  # mean, max or loss_attention
    config.model.width = 1.0  # times the paper's channels
    config.model.threshold = 0.1  # t of the loss attention
    config.model.dtype = "float32"  # or bfloat16: compute dtype; parameters stay float32
    config.model.batch_norm = "cross_replica"  # or local: statistics of each device's own batch

    config.loss = ConfigDict()
    config.loss.patch = "auto"  # on, off, or auto: on with loss attention
    config.loss.patch_weight = 0.1  # lambda at the end of its ramp
    config.loss.patch_ramp_epochs = (
        80  # lambda(e) = weight * exp(-5 (1 - e / ramp)^2), 0 in epoch 0
    )
    config.loss.label_smoothing = 0.0

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # sgd, adam or adamw
    config.optimizer.learning_rate = 0.1  # the highest of the schedule
    config.optimizer.momentum = 0.9  # sgd; adam's beta 1
    config.optimizer.beta2 = 0.999  # adam
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 5e-4  # L2 added to the gradient; decoupled with adamw
    config.optimizer.weight_decay_mask = "all"  # or kernels: not on biases and normalisations
    config.optimizer.schedule = "step"  # step, cosine, one_cycle or constant
    config.optimizer.milestones = (100, 150)  # epochs of the step schedule
    config.optimizer.decay_factor = 0.1  # of the learning rate at each milestone
    config.optimizer.warmup_epochs = 0.0  # linear rise from 0; the rise of one_cycle

    config.train = ConfigDict()
    config.train.epochs = 200
    config.train.batch_size = 128  # over all devices

    config.eval = ConfigDict()
    config.eval.batch_size = 500  # over all devices
    config.eval.every_epochs = 1

    config.log = ConfigDict()
    config.log.every_steps = 50
    config.log.pictures = 8  # test images in TensorBoard after each evaluation; 0: none

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 1
    config.checkpoint.keep = 2  # the newest; the best by test accuracy is kept besides

    return config


@dataclasses.dataclass(frozen=True)
class _Rule:
    accepts: Callable[[Any], bool]
    allowed: str


def _one_of(*values: Any) -> _Rule:
    return _Rule(lambda v: v in values, "one of: " + ", ".join(str(v) for v in values))


def _finite(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _at_least(low: float) -> _Rule:
    return _Rule(lambda v: _finite(v) and v >= low, f"a number, at least {low}")


def _between(low: float, high: float) -> _Rule:
    return _Rule(lambda v: _finite(v) and low <= v <= high, f"between {low} and {high}")


_POSITIVE = _Rule(lambda v: _finite(v) and v > 0, "a positive number")
_BELOW_ONE = _Rule(lambda v: _finite(v) and 0 <= v < 1, "at least 0 and below 1")

# Names of data sets, backbones, heads and poolings are checked where they are looked up.
_RULES = {
    "seed": _between(0, 2**31 - 1),
    "data.mode": _one_of("memory", "stream"),
    "data.crop_padding": _between(0, 16),
    "model.width": _POSITIVE,
    "model.threshold": _between(0, 1),
    "model.dtype": _one_of("float32", "bfloat16"),
    "model.batch_norm": _one_of("cross_replica", "local"),
    "loss.patch": _one_of("auto", "on", "off"),
    "loss.patch_weight": _at_least(0),
    "loss.patch_ramp_epochs": _POSITIVE,
    "loss.label_smoothing": _BELOW_ONE,
    "optimizer.name": _one_of("sgd", "adam", "adamw"),
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.momentum": _BELOW_ONE,
    "optimizer.beta2": _BELOW_ONE,
    "optimizer.weight_decay": _at_least(0),
    "optimizer.weight_decay_mask": _one_of("all", "kernels"),
    "optimizer.schedule": _one_of("step", "cosine", "one_cycle", "constant"),
    "optimizer.milestones": _Rule(
        lambda v: (
            isinstance(v, tuple)
            and all(_finite(e) and e > 0 for e in v)
            and list(v) == sorted(set(v))
        ),
        "a rising tuple of positive epochs",
    ),
    "optimizer.decay_factor": _POSITIVE,
    "optimizer.warmup_epochs": _at_least(0),
    "train.epochs": _at_least(1),
    "train.batch_size": _at_least(1),
    "eval.batch_size": _at_least(1),
    "eval.every_epochs": _at_least(1),
    "log.every_steps": _at_least(1),
    "log.pictures": _between(0, 64),
    "checkpoint.every_epochs": _at_least(1),
    "checkpoint.keep": _at_least(1),
}


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of every leaf, in the order of the keys' names."""
    for key in sorted(config.keys()):
        value = config[key]
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def check(config: ConfigDict) -> None:
    """Refuses a config with a missing or unknown key or an impossible value.

    Raises:
      UserError: a sentence that names the key, the value and what is allowed.
    """
    known = dict(leaves(default_config()))
    given = dict(leaves(config))
    for key in given.keys() - known.keys():
        raise UserError(f"config.{key} is not a key; allowed are: {', '.join(sorted(known))}")
    for key in known.keys() - given.keys():
        raise UserError(f"config.{key} is missing; start from lossattn_jax.config.default_config()")
    for key, rule in _RULES.items():
        if not rule.accepts(given[key]):
            raise UserError(f"config.{key} is {given[key]!r}, but must be {rule.allowed}")
    if given["optimizer.warmup_epochs"] >= given["train.epochs"]:
        raise UserError(
            f"config.optimizer.warmup_epochs is {given['optimizer.warmup_epochs']}, but must be "
            f"below config.train.epochs, {given['train.epochs']}"
        )


def uses_patch_loss(config: ConfigDict) -> bool:
    """Whether the patch loss takes part: the papers' baselines have none."""
    if config.loss.patch == "auto":
        return config.model.pooling == "loss_attention"
    return config.loss.patch == "on"


def write(config: ConfigDict, path: pathlib.Path) -> None:
    """Writes the resolved config as JSON, readable with `read`; an existing file is replaced whole."""
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text + "\n")
    part.replace(path)


def read(path: pathlib.Path) -> ConfigDict:
    """Reads what `write` wrote. Keys that came later than the file have their defaults.

    Raises:
      UserError: there is no such file, or it is not a config.
    """
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path.parent} is not a workdir of a run: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a config: {error}") from None
    if not isinstance(stored, dict):
        raise UserError(f"{path} cannot be read as a config: it holds no keys")
    config = default_config()
    for key, value in leaves(ConfigDict(stored)):
        section, _, name = key.rpartition(".")
        parent = config.get(section) if section else config
        if not isinstance(parent, ConfigDict) or name not in parent:
            raise UserError(f"{path} has the key {key}, which this version does not know")
        try:
            parent[name] = tuple(value) if isinstance(value, list) else value
        except TypeError as error:
            raise UserError(f"{path} has a wrong value of {key}: {error}") from None
    check(config)
    return config


# What must agree for a run to be continued, and why.
_FIXED = {
    "model.": "shapes the model",
    "data.name": "shapes the model",
    "optimizer.name": "shapes the optimiser's state",
    "seed": "decides what each step sees",
    "data.extra": "decides what each step sees",
    "train.batch_size": "decides what each step sees",
}


def refuse_other_run(stored: ConfigDict, config: ConfigDict, workdir: pathlib.Path) -> list[str]:
    """Stops a run that would continue the checkpoints of another one.

    Args:
      stored: config beside the checkpoints.
      config: config of the run to continue with.
      workdir: for the message.

    Returns:
      Descriptions of the differences that are allowed, one per key.

    Raises:
      UserError: they differ in something that shapes the model or the order of the data.
    """
    before = dict(leaves(stored))
    differing = [(k, before[k], v) for k, v in leaves(config) if before[k] != v]
    for key, was, value in differing:
        for fixed, reason in _FIXED.items():
            if key.startswith(fixed):
                raise UserError(
                    f"config.{key} is {value!r}, but the run in {workdir} has {was!r}, and it "
                    f"{reason}: use another workdir (config.init_from can start it from this run)"
                )
    return [f"config.{key}: {was!r} -> {value!r}" for key, was, value in differing]

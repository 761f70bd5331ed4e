"""The configuration of a run: every key with its default, and the check of a filled-in one.

A config file under `configs/` starts from `default_config()` and sets what differs. All keys exist in
the defaults, so an override of an unknown one is refused; `check` refuses impossible values.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict, config_dict

from lossattn_jax.errors import UserError
from lossattn_jax.registry import lookup


def default_config() -> ConfigDict:
    """The TIP 2021 paper's training of ResNet18 with loss attention on CIFAR-10 (section IV-A).

    Returns:
      A config; see the comments here for each key.
    """
    config = ConfigDict()
    config.seed = 0  # of the parameters, the data order and the augmentation
    config.init_from = ""  # workdir of another run whose parameters to start from
    # "start:stop": traces the updates after the start-th until the stop-th into WORKDIR/profile; empty: none.
    config.profile = ""

    config.data = ConfigDict()
    config.data.name = "cifar10"  # one of `lossattn_jax.data.DATASETS`
    config.data.dir = ""  # folder of the TFDS data sets; empty: TFDS' default
    config.data.extra = False  # svhn_cropped and svhn_full: train on the extra split too
    config.data.num_labels = 0  # train on so many images, equally many of each class; 0: on all
    config.data.label_seed = 0  # which ones
    config.data.mode = "memory"  # memory: all images as uint8 in RAM; stream: grain
    # Training images on every device, as uint8: on, off, or auto: with accelerators whose memory they suit.
    config.data.on_device = "auto"
    config.data.crop_padding = 4  # pixels around an image before the random crop; 0: no crop
    config.data.flip = config_dict.placeholder(bool)  # None: as suits the data set

    config.model = ConfigDict()
    config.model.backbone = "resnet18"
    config.model.head = "conv"  # none, conv or capsule
    config.model.pooling = "loss_attention"  # see lossattn_jax.models.build
    config.model.width = 1.0  # times the paper's channels
    config.model.threshold = 0.1  # t of the loss attention
    # Of resnet50 and deeper; see lossattn_jax.models.build. As the papers' code: 3 and True.
    config.model.bottleneck_first_kernel = config_dict.placeholder(int)  # None: 1, 3 with a head
    config.model.bottleneck_relu_before_add = config_dict.placeholder(bool)  # None: False
    config.model.dtype = "float32"  # or bfloat16: compute dtype; parameters stay float32
    config.model.batch_norm = "cross_replica"  # or local: statistics of each device's own batch

    config.loss = ConfigDict()
    config.loss.patch = "auto"  # on, off, or auto: on with loss attention
    config.loss.patch_weight = 0.1  # lambda at the end of its ramp
    # lambda(e) = weight * exp(-5 (1 - e / ramp)^2), 0 in epoch 0; ramp 0: the weight from the start.
    config.loss.patch_ramp_epochs = 80
    config.loss.patch_reduction = "sum"  # of the weighted patch losses of an image; mean: AAAI 2020
    config.loss.consistency_weight = 0.0  # of attention with its average over epochs; 0: none
    config.loss.consistency_ramp_epochs = 80  # as patch_ramp_epochs
    config.loss.consistency_decay = 0.6  # of that average, per epoch
    config.loss.label_smoothing = 0.0  # of cross-entropies only

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # sgd, adam or adamw
    config.optimizer.learning_rate = 0.1  # the highest of the schedule
    config.optimizer.momentum = 0.9  # sgd; adam's beta 1
    config.optimizer.beta2 = 0.999  # adam
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 5e-4  # L2 added to the gradient; decoupled with adamw
    config.optimizer.weight_decay_mask = "all"  # or kernels: not on biases and normalisations
    # Adam with ramps: the last beta 1, and beta 2 after the ramp-up; None: they stay.
    config.optimizer.momentum_end = config_dict.placeholder(float)
    config.optimizer.beta2_end = config_dict.placeholder(float)
    config.optimizer.schedule = "step"  # step, cosine, one_cycle, ramps or constant
    config.optimizer.milestones = (100, 150)  # epochs of the step schedule
    config.optimizer.decay_factor = 0.1  # of the learning rate at each milestone
    config.optimizer.warmup_epochs = 0.0  # linear rise from 0; the rise of one_cycle
    config.optimizer.ramp_up_epochs = 80  # of the schedule ramps
    config.optimizer.ramp_down_epochs = 50  # of the schedule ramps, at the end of the run

    config.train = ConfigDict()
    config.train.epochs = 200
    config.train.batch_size = 128  # over all devices
    config.train.steps_per_dispatch = 1  # updates in one call of the compiled program (lax.scan)
    # Both save memory: parts of a batch whose gradients are averaged (batch normalisation sees a part at a
    # time), and computing normalisations and activations again in the backward pass.
    config.train.accumulate = 1
    config.train.remat = False
    config.train.max_skipped = 10  # updates in a row that are not finite, at which the run stops

    config.eval = ConfigDict()
    config.eval.batch_size = 500  # over all devices
    config.eval.every_epochs = 1

    config.log = ConfigDict()
    config.log.every_steps = 50
    config.log.pictures = 8  # test images in TensorBoard after each evaluation; 0: none

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 1
    config.checkpoint.keep = 2  # the newest; the best by test accuracy, or mAP, is kept besides

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


def _count(value: Any) -> bool:
    return _finite(value) and isinstance(value, int) and value >= 1


def _at_least(low: float) -> _Rule:
    return _Rule(lambda v: _finite(v) and v >= low, f"a number, at least {low}")


def _between(low: float, high: float) -> _Rule:
    return _Rule(lambda v: _finite(v) and low <= v <= high, f"between {low} and {high}")


def _span(text: Any) -> tuple[int, int] | None:
    """The two numbers of "start:stop" where start < stop, else None."""
    found = re.fullmatch(r"([0-9]{1,15}):([0-9]{1,15})", str(text))
    start, stop = map(int, found.groups()) if found else (0, 0)
    return (start, stop) if start < stop else None


_POSITIVE = _Rule(lambda v: _finite(v) and v > 0, "a positive number")
_COUNT = _Rule(_count, "a whole number, at least 1")
_BELOW_ONE = _Rule(lambda v: _finite(v) and 0 <= v < 1, "at least 0 and below 1")
_BELOW_ONE_OR_NONE = _Rule(
    lambda v: v is None or _BELOW_ONE.accepts(v), f"None, or {_BELOW_ONE.allowed}"
)

# Names of data sets, backbones, heads and poolings are checked where they are looked up.
_RULES = {
    "seed": _between(0, 2**31 - 1),
    "profile": _Rule(
        lambda v: not v or _span(v) is not None, "empty or START:STOP, updates with START < STOP"
    ),
    "data.num_labels": _at_least(0),
    "data.label_seed": _between(0, 2**31 - 1),
    "data.mode": _one_of("memory", "stream"),
    "data.on_device": _one_of("auto", "on", "off"),
    "data.crop_padding": _between(0, 16),
    "model.width": _Rule(lambda v: _finite(v) and 0 < v <= 100, "a positive number, at most 100"),
    "model.threshold": _between(0, 1),
    "model.bottleneck_first_kernel": _one_of(None, 1, 3),
    "model.bottleneck_relu_before_add": _one_of(None, False, True),
    "model.dtype": _one_of("float32", "bfloat16"),
    "model.batch_norm": _one_of("cross_replica", "local"),
    "loss.patch": _one_of("auto", "on", "off"),
    "loss.patch_weight": _at_least(0),
    "loss.patch_ramp_epochs": _at_least(0),
    "loss.patch_reduction": _one_of("sum", "mean"),
    "loss.consistency_weight": _at_least(0),
    "loss.consistency_ramp_epochs": _at_least(0),
    "loss.consistency_decay": _BELOW_ONE,
    "loss.label_smoothing": _BELOW_ONE,
    "optimizer.name": _one_of("sgd", "adam", "adamw"),
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.momentum": _BELOW_ONE,
    "optimizer.beta2": _BELOW_ONE,
    "optimizer.weight_decay": _at_least(0),
    "optimizer.weight_decay_mask": _one_of("all", "kernels"),
    "optimizer.momentum_end": _BELOW_ONE_OR_NONE,
    "optimizer.beta2_end": _BELOW_ONE_OR_NONE,
    "optimizer.schedule": _one_of("step", "cosine", "one_cycle", "ramps", "constant"),
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
    "optimizer.ramp_up_epochs": _at_least(0),
    "optimizer.ramp_down_epochs": _at_least(0),
    "train.epochs": _at_least(1),
    "train.batch_size": _at_least(1),
    "train.accumulate": _COUNT,
    "train.steps_per_dispatch": _COUNT,
    "train.remat": _one_of(False, True),
    "train.max_skipped": _COUNT,
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
            f"below config.train.epochs, {given['train.epochs']}; --config.optimizer.warmup_epochs=0 is none"
        )
    if given["data.on_device"] == "on" and given["data.mode"] == "stream":
        raise UserError(
            "config.data.on_device is 'on', but must be off or auto with config.data.mode stream"
        )
    parts, batch_size = given["train.accumulate"], given["train.batch_size"]
    if batch_size % parts:
        raise UserError(
            f"config.train.accumulate is {parts}, but must divide config.train.batch_size, {batch_size}"
        )
    ends = ("optimizer.momentum_end", "optimizer.beta2_end")
    for key, other in zip(ends, reversed(ends), strict=True):
        if given[key] is not None and given[other] is None:
            raise UserError(f"config.{key} is {given[key]}, but must be None as config.{other} is")
    falls, epochs = given["optimizer.ramp_down_epochs"], given["train.epochs"]
    if given["optimizer.schedule"] == "ramps" and falls > epochs:
        raise UserError(
            f"config.optimizer.ramp_down_epochs is {falls}, but must be at most config.train.epochs, "
            f"{epochs}: a fall that has begun before the run leaves no learning rate"
        )
    if given["loss.patch"] == "on" and not _has_patch_logits(config):
        raise UserError(
            "config.loss.patch is 'on', but must be off or auto with config.model.pooling "
            f"{given['model.pooling']}, whose patch predictions are not logits"
        )


def uses_patch_loss(config: ConfigDict) -> bool:
    """Whether the patch loss takes part: the papers' baselines have none."""
    auto = _pooling(config).patch_loss
    return lookup("config.loss.patch", config.loss.patch, {"auto": auto, "on": True, "off": False})


def _pooling(config: ConfigDict) -> Any:
    from lossattn_jax.attention import poolings  # which takes JAX

    return poolings.POOLINGS.find(config.model.pooling, "config.model.pooling")


def _has_patch_logits(config: ConfigDict) -> bool:
    from lossattn_jax.attention.losses import LOSSES  # which takes JAX

    kind = _pooling(config).loss
    return not kind or LOSSES.find(kind).patch is not None


def profiled(config: ConfigDict) -> tuple[int, int] | None:
    """The updates to trace: those after the first number until the second; None: no updates."""
    return _span(config.profile)


def shares_statistics(config: ConfigDict) -> bool:
    """Whether batch normalisations take their statistics over all devices in training."""
    shared = {"cross_replica": True, "local": False}
    return lookup("config.model.batch_norm", config.model.batch_norm, shared)


def changes_betas(config: ConfigDict) -> bool:
    """Whether Adam's betas change along with the ramps; the optimiser's state then holds them."""
    options = config.optimizer
    ramps = options.name == "adam" and options.schedule == "ramps"
    return ramps and options.momentum_end is not None


def uses_consistency(config: ConfigDict) -> bool:
    """Whether attention is kept near its average over epochs, which is then part of the state."""
    return config.loss.consistency_weight > 0

"""Every key of the two configurations: default, rule and meaning.

The sections that images and bags share are one class each, so that a key is the same wherever it occurs. A
`ConfigDict` is made of them (`to_config`) for config files and flags, and resolved into them again
(`resolve`) where a command begins; what is called from there takes the section that it needs.
"""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

from ml_collections import ConfigDict, config_dict

from lossattn_jax.config import rules
from lossattn_jax.config.rules import Rule
from lossattn_jax.registry import lookup

T = TypeVar("T")

_RULE = "rule"


def key(default: Any, rule: Rule | None = None) -> Any:
    """Makes a key with default and rule.

    None: its value is looked up where it is used.
    """
    return dataclasses.field(default=default, metadata={_RULE: rule})


def section(options: Any) -> Any:
    """Makes a section with its defaults."""
    return dataclasses.field(default=options)


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Images, and how they come to the devices."""

    # One of `lossattn_jax.data.DATASETS`, of which folder is your own images in data.dir; or tfds:NAME.
    name: str = key("cifar10")
    dir: str = key("")  # folder of the TFDS data sets, empty: TFDS' default; or of your own images
    # Of your own images: the table that lists them, in data.dir; empty: images.csv,
    # images.parquet, or folders of classes.
    table: str = key("")
    # Where there is no split, the share of images that is tested; and which ones.
    test_share: float = key(0.2, rules.SHARE)
    split_seed: int = key(0, rules.SEED)
    # Side of square images in pixels; 0: the data set's own, 224 for images of any size.
    image_size: int = key(0, rules.SIDE)
    # Mean and deviation: those that the data set states, else of its training images; or always one of these.
    normalisation: str = key("auto", rules.one_of("auto", "training", "imagenet", "cifar10"))
    extra: bool = key(False)  # svhn_cropped and svhn_full: train on the extra split too
    # Train on so many images, equally many of each class; 0: on all. And which ones.
    num_labels: int = key(0, rules.at_least(0))
    # Take so many of the training images, equally many of each class, out of the training, and test on them
    # in place of the test images: to choose between settings. 0: none.
    held_out: int = key(0, rules.at_least(0))
    label_seed: int = key(0, rules.SEED)
    # All images as uint8, or grain; auto: the former where they take half of the free memory at most.
    mode: str = key("auto", rules.one_of("auto", "memory", "stream"))
    # Whether an epoch leaves out the batch that its images do not fill; else that is a smaller one.
    drop_last: bool = key(True, rules.BOOLEAN)
    # Training images on every device, as uint8: on, off, or auto: with accelerators whose memory they suit.
    on_device: str = key("auto", rules.one_of("auto", "on", "off"))
    crop_padding: int = key(4, rules.between(0, 16))  # pixels around an image; 0: no crop
    # Of images that are stored larger than the network's: the smallest random part to crop; 0: their centre.
    crop_area: float = key(0.08, rules.between(0, 1))
    flip: bool | None = key(None)  # None: as suits the data set
    # Which images an epoch mirrors: drawn anew, or those that it did not the epoch before.
    flip_order: str = key("random", rules.one_of("random", "alternate"))


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """A network for images; see `lossattn_jax.models.build`."""

    backbone: str = key("resnet18")
    head: str = key("conv")  # none, conv or capsule
    pooling: str = key("loss_attention")
    width: float = key(1.0, rules.positive(100))  # times the paper's channels
    threshold: float = key(0.1, rules.between(0, 1))  # t of the loss attention
    # Of resnet50 and deeper. As the papers' code: 3 and True. None: 1, 3 with a head; and False.
    bottleneck_first_kernel: int | None = key(None, rules.one_of(None, 1, 3))
    bottleneck_relu_before_add: bool | None = key(None, rules.one_of(None, False, True))
    dtype: str = key("float32", rules.one_of("float32", "bfloat16"))  # parameters stay float32
    # File of PyTorch's weights that the backbone starts from (torchvision's, timm's, DINOv2's); empty: drawn.
    pretrained: str = key("")
    # Or local: statistics of each device's own batch.
    batch_norm: str = key("cross_replica", rules.one_of("cross_replica", "local"))

    @property
    def shares_statistics(self) -> bool:
        """Whether batch normalisations share statistics over devices in training."""
        choices = {"cross_replica": True, "local": False}
        return lookup("config.model.batch_norm", self.batch_norm, choices)


@dataclasses.dataclass(frozen=True)
class BagModelOptions:
    """A network for bags; its pooling is its method's."""

    backbone: str = key("dense")  # or lenet, lenet_tanh, for images
    # Widths of the layers; empty: as each method was published.
    hidden: tuple[int, ...] = key((), rules.every(rules.COUNT))
    dropout: float = key(0.5, rules.BELOW_ONE)
    ensemble: int = key(1, rules.COUNT)  # networks of each fold whose probabilities are averaged
    standardise: bool = key(True, rules.BOOLEAN)  # features, on the training fold
    # Of methods that have options (`Pooling.options`), as "METHOD.OPTION=NUMBER,..."; empty: as published.
    method_options: str = key("", rules.ASSIGNMENTS)

    def options_of(self, method: str) -> dict[str, float]:
        """Returns the options of a method that are not as published."""
        return (rules.parse_assignments(self.method_options) or {}).get(method, {})

    @property
    def methods_with_options(self) -> tuple[str, ...]:
        """Returns the methods that `method_options` names."""
        return tuple(rules.parse_assignments(self.method_options) or {})


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """The loss of images or bags; their parts are patches or instances."""

    # One of `attention.losses.LOSSES` that takes the labels, or package.module:attribute. auto: as suits the
    # network and the labels; of bags that is all there is, the pooling's loss or the cross-entropy.
    name: str = key("auto")
    patch: str = key("auto", rules.one_of("auto", "on", "off"))  # auto: on with loss attention
    patch_weight: float = key(0.1, rules.at_least(0))  # lambda at the end of its ramp
    # lambda(e) = weight * exp(-5 (1 - e / ramp)^2), 0 in epoch 0; ramp 0: the weight from the start.
    patch_ramp_epochs: float = key(80, rules.at_least(0))
    # Of the weighted losses of all patches; mean: AAAI 2020, as its code for MNIST-bags.
    patch_reduction: str = key("sum", rules.one_of("sum", "mean"))
    consistency_weight: float = key(0.0, rules.at_least(0))  # of attention and its average; 0: none
    consistency_ramp_epochs: float = key(80, rules.at_least(0))  # as patch_ramp_epochs
    consistency_decay: float = key(0.6, rules.BELOW_ONE)  # of that average, per epoch
    label_smoothing: float = key(0.0, rules.BELOW_ONE)  # of cross-entropies only

    @property
    def uses_consistency(self) -> bool:
        """Whether attention has the consistency loss, and a state for it."""
        return self.consistency_weight > 0


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """The optimiser, its learning rate, and how both change."""

    # One of `train.optimizer.OPTIMIZERS`, or package.module:attribute: a function of these options and of a
    # learning rate by step that makes an `optax.GradientTransformation`.
    name: str = key("sgd")
    learning_rate: float = key(0.1, rules.POSITIVE)  # the highest of the schedule
    momentum: float = key(0.9, rules.BELOW_ONE)  # sgd; adam's beta 1
    beta2: float = key(0.999, rules.BELOW_ONE)  # adam
    # muon: the learning rate of AdamW, which moves all but the kernels before the classifier, times theirs.
    others_rate: float = key(0.1, rules.POSITIVE)
    nesterov: bool = key(False)
    weight_decay: float = key(5e-4, rules.at_least(0))  # L2; decoupled with adamw
    # Or kernels: not on biases and normalisations.
    weight_decay_mask: str = key("all", rules.one_of("all", "kernels"))
    # Adam with ramps: the last beta 1, and beta 2 after the ramp-up; None: they stay.
    momentum_end: float | None = key(None, rules.none_or(rules.BELOW_ONE))
    beta2_end: float | None = key(None, rules.none_or(rules.BELOW_ONE))
    # Moments begin at 0 again, with Adam's correction for that, after so many epochs each; 0: never. 1: as
    # the AAAI paper's code for images, which makes a new Adam in each epoch. Schedules go on.
    restart_epochs: int = key(0, rules.COUNT_FROM_ZERO)
    # One of `train.schedules.SCHEDULES`, or package.module:attribute.
    schedule: str = key("step")
    milestones: tuple[float, ...] = key((100, 150), rules.RISING_EPOCHS)  # of the step schedule
    decay_factor: float = key(0.1, rules.POSITIVE)  # of the learning rate at each milestone
    warmup_epochs: float = key(0.0, rules.at_least(0))  # linear rise from 0; that of one_cycle
    ramp_up_epochs: float = key(80, rules.at_least(0))  # of the schedule ramps
    ramp_down_epochs: float = key(50, rules.at_least(0))  # likewise, at the end of the run


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Options that every training has."""

    epochs: int = key(200, rules.COUNT)  # passes over the training images or bags
    batch_size: int = key(128, rules.COUNT)  # images over all devices, or bags of an update
    max_skipped: int = key(10, rules.COUNT)  # non-finite updates in a row at which training stops


@dataclasses.dataclass(frozen=True)
class ImageTrainOptions(TrainOptions):
    """The training of a network for images."""

    steps_per_dispatch: int = key(1, rules.COUNT)  # updates in one call of the program (lax.scan)
    # Both save memory: parts of a batch whose gradients are averaged (batch normalisation sees a part at a
    # time), and computing normalisations and activations again in the backward pass.
    accumulate: int = key(1, rules.COUNT)
    remat: bool = key(False, rules.BOOLEAN)
    # backbone: it stays as it begins, its maps of the pictures' centres computed once. Empty: nothing.
    freeze: str = key("", rules.one_of("", "backbone"))
    backbone_rate: float = key(
        1.0, rules.positive(100)
    )  # the backbone's learning rate, times the others'


@dataclasses.dataclass(frozen=True)
class BagTrainOptions(TrainOptions):
    """The training of networks for bags."""

    # Predict with the mean of the parameters at the ends of so many last epochs; 0: with the last.
    average_epochs: int = key(0, rules.COUNT_FROM_ZERO)
    max_waste: float = key(1.25, rules.at_least(1))  # padded slots for each instance
    # Instances that an epoch sees of a bag, drawn anew for each; 0: all. A bag is tested with all of them.
    max_instances: int = key(0, rules.COUNT_FROM_ZERO)
    # Whether each fold of a cross-validation visits the bags in an order of its own; else all folds and
    # repeats have one order an epoch, each leaving out its test bags, and are trained in one program.
    own_order: bool = key(False, rules.BOOLEAN)
    # Of the losses or errors of bags by their labels; None: all are 1. balanced: in inverse proportion to the
    # bags of a class, of those that a model is trained on. Classical methods have it too.
    class_weight: str | None = key(None, rules.one_of(None, "balanced"))
    # Models that a device computes together; 0: one on CPUs, whose cache has its parameters, else all.
    models_at_once: int = key(0, rules.COUNT_FROM_ZERO)


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """Tests during a training of images."""

    batch_size: int = key(500, rules.at_least(1))  # over all devices
    every_epochs: int = key(1, rules.at_least(1))


@dataclasses.dataclass(frozen=True)
class LogOptions:
    """What a training of images writes about itself."""

    every_steps: int = key(50, rules.at_least(1))
    pictures: int = key(8, rules.between(0, 64))  # test images in TensorBoard; 0: none


@dataclasses.dataclass(frozen=True)
class CheckpointOptions:
    """Checkpoints of a training of images."""

    every_epochs: int = key(1, rules.at_least(1))
    keep: int = key(2, rules.at_least(1))  # the newest; the best by accuracy or mAP comes besides


@dataclasses.dataclass(frozen=True)
class ValidationOptions:
    """Options of the rule validation; see `lossattn_jax.mil.selection.Validation`."""

    share: float = key(0.2, rules.SHARE)  # of the training fold's bags that are held out
    splits: int = key(1, rules.COUNT)  # how many times
    # Of networks: epochs without a better one after which a training on the other bags ends; 0: all epochs.
    patience: int = key(0, rules.COUNT_FROM_ZERO)
    # By which the epoch is chosen; None: loss with patience, else accuracy (of equal ones the lower loss).
    metric: str | None = key(None, rules.one_of(None, "loss", "accuracy"))
    # Values that are tried besides those of the training; () for none. Networks only.
    learning_rate: tuple[float, ...] = key((), rules.every(rules.POSITIVE))
    weight_decay: tuple[float, ...] = key((), rules.every(rules.at_least(0)))
    patch_weight: tuple[float, ...] = key((), rules.every(rules.at_least(0)))
    consistency_weight: tuple[float, ...] = key((), rules.every(rules.at_least(0)))


@dataclasses.dataclass(frozen=True)
class GeneratedBagOptions:
    """Bags that are drawn, such as those of mnist_bags."""

    # Bags of each training: one experiment for each number.
    train: tuple[int, ...] = key((50,), rules.non_empty(rules.every(rules.COUNT)))
    test: int = key(1000, rules.COUNT)  # the same bags for all of them
    targets: tuple[int, ...] = key((9,))  # of images: digits, or classes, that make a bag positive
    mean_length: int = key(10)  # of bags of images


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """The configuration of a run of images."""

    seed: int = key(0, rules.SEED)  # of the parameters, the data order and the augmentation
    init_from: str = key("")  # workdir of another run whose parameters to start from
    # Whether all parameters of that run have to fit; else those behind the backbone may begin afresh.
    init_strict: bool = key(False, rules.BOOLEAN)
    # "start:stop": traces the updates after the start-th until the stop-th into WORKDIR/profile; empty: none.
    profile: str = key("", rules.SPAN)
    data: DataOptions = section(DataOptions())
    model: ModelOptions = section(ModelOptions())
    loss: LossOptions = section(LossOptions())
    optimizer: OptimizerOptions = section(OptimizerOptions())
    train: ImageTrainOptions = section(ImageTrainOptions())
    eval: EvalOptions = section(EvalOptions())
    log: LogOptions = section(LogOptions())
    checkpoint: CheckpointOptions = section(CheckpointOptions())

    @property
    def profile_span(self) -> tuple[int, int] | None:
        """Returns the span of updates to trace, or None.

        After the first number until the second.
        """
        return rules.parse_span(self.profile)


@dataclasses.dataclass(frozen=True)
class BagOptions:
    """The configuration of experiments with bags."""

    seed: int = key(0, rules.SEED)  # of folds or bags, of parameters, dropout and order
    folds: int = key(10, rules.COUNT)  # of cross-validation
    repeats: int = key(5, rules.COUNT)  # of all folds, drawn anew; of generated bags
    model: BagModelOptions = section(BagModelOptions())
    loss: LossOptions = section(LossOptions(patch_ramp_epochs=0))
    optimizer: OptimizerOptions = section(
        OptimizerOptions(name="adam", learning_rate=1e-4, schedule="constant")
    )
    train: BagTrainOptions = section(BagTrainOptions(epochs=100, batch_size=1))
    validation: ValidationOptions = section(ValidationOptions())
    bags: GeneratedBagOptions = section(GeneratedBagOptions())


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, value) of a config or of options.

    In the order of the keys' names.
    """
    if isinstance(values, ConfigDict):
        names = values.keys()
    else:
        names = [field.name for field in dataclasses.fields(values)]
    for name in sorted(names):
        value = getattr(values, name)
        if isinstance(value, ConfigDict) or dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def to_config(options: Any, config: ConfigDict | None = None) -> ConfigDict:
    """Makes a config of options, whose values can be changed.

    Args:
      options: a dataclass of this module.
      config: an empty one to fill; None: a `ConfigDict`.
    """
    config = ConfigDict() if config is None else config
    types = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            value = to_config(value)
        elif value is None:  # a key whose default is None still has a type
            (of_value,) = {*typing.get_args(types[field.name])} - {type(None)}
            value = config_dict.placeholder(of_value)
        config[field.name] = value
    return config


def resolve(cls: type[T], config: ConfigDict) -> T:
    """Makes options of a config.

    Args:
      cls: of the options.
      config: with every key of them, checked.
    """
    defaults: Any = cls()
    values = {}
    for field in dataclasses.fields(defaults):
        value, default = config[field.name], getattr(defaults, field.name)
        if dataclasses.is_dataclass(default):
            value = resolve(type(default), value)
        values[field.name] = value
    return cls(**values)


def rules_of(options: Any, prefix: str = "") -> dict[str, Rule]:
    """Returns the rules of all keys by dotted keys."""
    by_key: dict[str, Rule] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            by_key |= rules_of(value, f"{prefix}{field.name}.")
        elif field.metadata.get(_RULE) is not None:
            by_key[prefix + field.name] = field.metadata[_RULE]
    return by_key

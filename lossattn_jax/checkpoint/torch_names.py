"""Where the arrays of our networks stand in a PyTorch state dict of the papers' code.

Names and shapes are those of the papers' code where it has the network (TIP 2021: ResNets, VGGs and
capsules; AAAI 2020: ResNet18 and LeNet), torchvision's for the plain VGGs, Ilse et al.'s for learned
attention, and our own for the rest. Convolutions are OIHW in PyTorch and HWIO here; linear layers are
[out, in] there and [in, out] here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import linen as nn
from flax import traverse_util

from lossattn_jax.errors import UserError
from lossattn_jax.models import resnet, small, vgg
from lossattn_jax.models.bag_networks import BagLeNet
from lossattn_jax.models.capsules import CapsNetBackbone, CapsuleHead, PrimaryUnits
from lossattn_jax.models.network import ImageNetwork, PatchNetwork
from lossattn_jax.models.patch_head import ConvPatchHead, DenseHead
from lossattn_jax.models.shapes import variable_shapes

Path = tuple[str, ...]
# By the path of a module of ours, the modules that the state dict has for it, and the channels of each.
Modules = dict[str, dict[str, slice]]

COUNTER = "num_batches_tracked"  # of every normalisation in PyTorch; nothing here reads it

_IMAGE_SHAPE = (32, 32, 3)
_LARGE_IMAGE_SHAPE = (64, 64, 3)
_BAG_SHAPE = (1, 28, 28, 1)

_ALL = slice(None)
_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_KERNEL_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}  # by the number of axes
_PARAMETER_KEYS = {"b4": "b4", "transform": "routing.weight"}  # parameters that belong to no layer
_FIRST_OF_BLOCK = "layer1.0.conv1.weight"
_BLOCK_NAMES = {
    **{part: part for number in "123" for part in (f"conv{number}", f"bn{number}")},
    "shortcut_conv": "shortcut.0",
    "shortcut_bn": "shortcut.1",
}
_ATTENTION_NAMES = {"tanh": "attention.0", "score": "attention.2"}
_GATED_ATTENTION_NAMES = {
    "tanh": "attention_V.0",
    "gate": "attention_U.0",
    "score": "attention_weights",
}
_LENET_NAMES = {
    "conv1": "feature_extractor_part1.0",
    "conv2": "feature_extractor_part1.3",
    "dense": "feature_extractor_part2.0",
    "classifier": "linear",
}


@dataclasses.dataclass(frozen=True)
class Slot:
    """One array of a state dict that takes part, and where its values stand here.

    Attributes:
      key: in the state dict.
      shape: in the state dict.
      path: of the leaf in our variables, the collection first.
      channels: the channels of the leaf, its last axis, that the array holds. The papers' code has a
        module for each unit of a capsule layer where we have one for all.
      axes: of the leaf, in the state dict's order.
    """

    key: str
    shape: tuple[int, ...]
    path: Path
    channels: slice
    axes: tuple[int, ...]

    def read(self, leaf: np.ndarray) -> np.ndarray:
        """The array for the state dict, a copy."""
        array = leaf[..., self.channels].transpose(self.axes).reshape(self.shape)
        return np.array(array, order="C")

    def write(self, leaf: np.ndarray, array: np.ndarray) -> None:
        """Puts an array of the state dict into the leaf."""
        part = leaf[..., self.channels]
        transposed = array.reshape([part.shape[axis] for axis in self.axes])
        part[...] = transposed.transpose(np.argsort(self.axes))


@dataclasses.dataclass(frozen=True)
class Layout:
    """A network's arrays here and in PyTorch.

    Attributes:
      leaves: shape of each leaf of our variables, by its path.
      slots: the arrays that take part.
      unused: those that the papers' code stores besides and never uses: what `to_torch_state_dict`
        writes for them, by key. Normalisations are as PyTorch makes them, the rest is 0.
    """

    leaves: dict[Path, tuple[int, ...]]
    slots: tuple[Slot, ...]
    unused: dict[str, np.ndarray]


def check_bottlenecks(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Refuses weights of bottlenecks that begin with 3x3 where the network leaves open what they compute.

    Such weights fit a block that rectifies before the addition and one that does not; the logits differ by
    about 1 %.

    Args:
      model: the network to be.
      state_dict: arrays by key, not checked yet.

    Raises:
      UserError: the weights' bottlenecks begin with a 3x3 convolution, and the network's do not, or the
        order of the last rectification and the addition is not decided.
    """
    backbone = model.make_backbone() if isinstance(model, ImageNetwork) else None
    block = backbone.make_block(1, 1) if isinstance(backbone, resnet.ResNet) else None
    if not isinstance(block, resnet.Bottleneck):
        return
    if tuple(getattr(state_dict.get(_FIRST_OF_BLOCK), "shape", ()))[2:] != (3, 3):
        return
    missing = []
    if block.first_kernel != 3:
        missing.append("config.model.bottleneck_first_kernel to 3")
    if block.relu_before_add is None:
        missing.append(
            "config.model.bottleneck_relu_before_add, which is not in the weights, to True (rectified "
            "before the shortcut is added, as in the papers' code) or to False"
        )
    if missing:
        raise UserError(
            f"the weights' bottlenecks begin with a 3x3 convolution: set {', and '.join(missing)}"
        )


def layout(model: nn.Module, image_shape: tuple[int, int, int] | None = None) -> Layout:
    """The layout of a network of `models.build`, or of `mil.BagLeNet`.

    Args:
      model: the network.
      image_shape: (height, width, channels) of its images, on which the weights of dynamic routing and
        of a plain VGG's first dense layer depend. None: 64x64 for "resnet18_stride2", else 32x32.

    Raises:
      UserError: it is another module.
    """
    if isinstance(model, BagLeNet):
        modules = _whole("", _LENET_NAMES)
        input_shape: tuple[int, ...] = _BAG_SHAPE
    elif isinstance(model, ImageNetwork):
        modules = _modules(model)
        input_shape = image_shape or _usual_image_shape(model)
    else:
        raise UserError(
            f"a {type(model).__name__} is not a network of models.build or mil.BagLeNet, and has no "
            "names in PyTorch"
        )
    tree = variable_shapes(model, input_shape)
    leaves = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree).items()}
    slots = tuple(slot for path, shape in leaves.items() for slot in _slots(path, shape, modules))
    return Layout(leaves, slots, _unused(model, slots))


def _slots(path: Path, shape: tuple[int, ...], modules: Modules) -> list[Slot]:
    """The arrays that make up one leaf."""
    *_, name = path
    axes = _KERNEL_AXES[len(shape)] if name == "kernel" else tuple(range(len(shape)))
    if name in _PARAMETER_KEYS:
        torch_shape = (1, *shape, 1, 1) if name == "b4" else shape
        return [Slot(_PARAMETER_KEYS[name], torch_shape, path, _ALL, axes)]
    module = "/".join(path[1:-1]).removesuffix("/conv")  # `layers.Conv` wraps one of Flax
    if module not in modules:
        raise UserError(f"the network's layer {module} has no name in PyTorch")
    slots = []
    for torch_module, channels in modules[module].items():
        part = (*shape[:-1], len(range(shape[-1])[channels]))
        key = f"{torch_module}.{_LEAF_NAMES.get(name, name)}"
        slots.append(Slot(key, tuple(part[axis] for axis in axes), path, channels, axes))
    return slots


def _unused(model: Any, slots: tuple[Slot, ...]) -> dict[str, np.ndarray]:
    unused: dict[str, np.ndarray] = {}
    if isinstance(model, BagLeNet):
        unused["att_layer.linear.weight"] = np.zeros((1, model.hidden[0]), np.float32)
        unused["att_layer.linear.bias"] = np.zeros(1, np.float32)
        return unused
    backbone = model.make_backbone()
    if isinstance(backbone, resnet.ResNet) and not backbone.norm_stem:
        channels = backbone.stage_channels[0]
        unused["bn1.weight"] = np.ones(channels, np.float32)
        unused["bn1.bias"] = np.zeros(channels, np.float32)
        unused["bn1.running_mean"] = np.zeros(channels, np.float32)
        unused["bn1.running_var"] = np.ones(channels, np.float32)
        unused[f"bn1.{COUNTER}"] = np.zeros((), np.int64)
    for slot in slots:
        if slot.key.endswith(".running_mean"):
            key = f"{slot.key.removesuffix('running_mean')}{COUNTER}"
            unused[key] = np.zeros((), np.int64)
        elif slot.key.startswith("layer5.") and ".conv0." in slot.key:
            unused[slot.key.replace(".conv0.", ".shortcut.0.")] = np.zeros(slot.shape, np.float32)
    return unused


def _modules(model: ImageNetwork) -> Modules:
    backbone, head = model.make_backbone(), model.make_head()
    modules = _whole("backbone/", _backbone_names(backbone))
    if isinstance(head, CapsuleHead):
        modules |= _unit_modules("head/units/", head.make_units())
        dimensions = range(head.dimension)  # they change fastest in our channels
        every = {d: slice(d, None, head.dimension) for d in dimensions}
        modules["head/conv"] = {f"layer5.{d}.conv0": channels for d, channels in every.items()}
        modules["head/bn"] = {f"layer5.{d}.bn0": channels for d, channels in every.items()}
    elif isinstance(head, PrimaryUnits):
        modules |= _unit_modules("head/", head)
    elif isinstance(head, ConvPatchHead):
        names = {"conv1": "conv5", "bn1": "bn5", "conv2": "conv6", "bn2": "bn6"}
        modules |= _whole("head/", names)
    elif isinstance(head, DenseHead):
        modules |= _whole("head/", {"dense1": "classifier.0", "dense2": "classifier.3"})
    classifier = "classifier.6" if isinstance(head, DenseHead) else "linear"
    modules |= _whole("", {"classifier": classifier})
    if isinstance(model, PatchNetwork):
        gated = model.pooling == "gated_attention"
        modules |= _whole("attention/", _GATED_ATTENTION_NAMES if gated else _ATTENTION_NAMES)
    return modules


def _whole(prefix: str, names: dict[str, str]) -> Modules:
    """Modules that correspond one to one."""
    return {prefix + ours: {theirs: _ALL} for ours, theirs in names.items()}


def _unit_modules(prefix: str, units: PrimaryUnits) -> Modules:
    size = units.channels
    every = {unit: slice(unit * size, (unit + 1) * size) for unit in range(units.units)}
    return {
        f"{prefix}conv": {f"units.{unit}.conv0": channels for unit, channels in every.items()},
        f"{prefix}bn": {f"units.{unit}.bn": channels for unit, channels in every.items()},
    }


def _backbone_names(backbone: nn.Module) -> dict[str, str]:
    """Names of a backbone's layers in a state dict, by ours."""
    for kind, names in _NAMES_OF_BACKBONES.items():
        if isinstance(backbone, kind):
            return names(backbone)
    raise UserError(
        f"a {type(backbone).__name__} is not a backbone of models.build, and has no names in PyTorch"
    )


def _small_names(backbone: small.SmallBackbone) -> dict[str, str]:
    numbers = ["1", "2", *(f"{b + 3}{part}" for b in range(backbone.blocks) for part in "ab")]
    return {f"{layer}{n}": f"{layer}{n}" for n in numbers for layer in ("conv", "bn")}


def _capsnet_names(backbone: CapsNetBackbone) -> dict[str, str]:
    del backbone
    return {"conv1": "conv1"}


def _vgg_names(backbone: vgg.VGG) -> dict[str, str]:
    names = {}
    number = position = 0
    for stage in backbone.stages:
        for _ in stage:
            number += 1
            names[f"conv{number}"] = f"features.{position}"
            names[f"bn{number}"] = f"features.{position + 1}"
            position += 3  # with the ReLU
        position += backbone.pool
    return names


def _resnet_names(backbone: resnet.ResNet) -> dict[str, str]:
    names = {"conv1": "conv1", "bn1": "bn1", "reduce_conv": "conv4", "reduce_bn": "bn4"}
    for stage, blocks in enumerate(backbone.stage_blocks, start=1):
        for block in range(blocks):
            for ours, theirs in _BLOCK_NAMES.items():
                names[f"layer{stage}_{block}/{ours}"] = f"layer{stage}.{block}.{theirs}"
    return names


_NAMES_OF_BACKBONES: dict[type[nn.Module], Callable[[Any], dict[str, str]]] = {
    vgg.VGG: _vgg_names,
    resnet.ResNet: _resnet_names,
    small.SmallBackbone: _small_names,
    CapsNetBackbone: _capsnet_names,
}


def _usual_image_shape(model: ImageNetwork) -> tuple[int, int, int]:
    backbone = model.make_backbone()
    large = isinstance(backbone, resnet.ResNet) and backbone.strides == resnet.STRIDE2_STRIDES
    return _LARGE_IMAGE_SHAPE if large else _IMAGE_SHAPE

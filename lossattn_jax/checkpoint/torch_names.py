"""Names of our networks' arrays in PyTorch state dicts.

Those of the papers' code.

Names and shapes are those of the papers' code where it has the network (TIP 2021: ResNets, VGGs and
capsules; AAAI 2020: ResNet18 and LeNet), torchvision's for the plain VGGs, Ilse et al.'s for learned
attention, and our own for the rest. Convolutions are OIHW in PyTorch and HWIO here; linear layers are
[out, in] there and [in, out] here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn
from flax import traverse_util

from lossattn_jax.errors import UserError
from lossattn_jax.models import resnet
from lossattn_jax.models.bag_networks import BagLeNet
from lossattn_jax.models.network import BACKBONE, HEAD, ImageNetwork
from lossattn_jax.models.parts import TorchModules, whole_modules
from lossattn_jax.models.shapes import variable_shapes

Path = tuple[str, ...]

COUNTER = "num_batches_tracked"  # of every normalisation in PyTorch; nothing here reads it

_IMAGE_SIDE = 32  # of the images that most networks are made for
_BAG_SHAPE = (1, 28, 28, 1)

_ALL = slice(None)
_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_KERNEL_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}  # by the number of axes
_CAPSULE_BIAS = "b4"  # a parameter of the capsule head that belongs to no layer
_FIRST_OF_BLOCK = "layer1.0.conv1.weight"
_LENET_NAMES = {  # of the papers' code, which has its own pooling alone
    "conv1": "feature_extractor_part1.0",
    "conv2": "feature_extractor_part1.3",
    "dense": "feature_extractor_part2.0",
    "classifier": "linear",
}


@dataclasses.dataclass(frozen=True)
class Slot:
    """An array of a state dict, and its place here.

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
        """Copies the array for the state dict."""
        array = leaf[..., self.channels].transpose(self.axes).reshape(self.shape)
        return np.array(array, order="C")

    def write(self, leaf: np.ndarray, array: np.ndarray) -> None:
        """Writes an array of the state dict into the leaf."""
        part = leaf[..., self.channels]
        view = array.reshape([part.shape[axis] for axis in self.axes])
        part[...] = view.transpose(np.argsort(self.axes))


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
    """Refuses weights of 3x3 bottlenecks without `bottleneck_relu_before_add`.

    The network leaves open what such bottlenecks compute.

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
    """Makes the layout of a network of `models.build` or `mil.BagLeNet`.

    Args:
      model: the network.
      image_shape: (height, width, channels) of its images, on which the weights of dynamic routing and
        of a plain VGG's first dense layer depend. None: 64x64 for "resnet18_stride2", else 32x32.

    Raises:
      UserError: it is another module.
    """
    if isinstance(model, BagLeNet):
        modules = whole_modules(_LENET_NAMES)
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
    return Layout(leaves, slots, _unused_arrays(model, slots))


def backbone_layout(model: ImageNetwork, image_shape: tuple[int, int, int]) -> Layout:
    """Makes the layout of a network's backbone alone, whatever is behind it.

    Args:
      model: the network.
      image_shape: (height, width, channels) of its images.

    Raises:
      UserError: the backbone has no names in PyTorch.
    """
    modules = _add_prefix(f"{BACKBONE}/", _modules_of(model.make_backbone(), "backbone"))
    tree = traverse_util.flatten_dict(variable_shapes(model, image_shape))
    leaves = {path: leaf.shape for path, leaf in tree.items() if path[1] == BACKBONE}
    slots = tuple(slot for path, shape in leaves.items() for slot in _slots(path, shape, modules))
    return Layout(leaves, slots, {})


def _slots(path: Path, shape: tuple[int, ...], modules: TorchModules) -> list[Slot]:
    """Makes the slots of one leaf."""
    *_, name = path
    axes = _KERNEL_AXES[len(shape)] if name == "kernel" else tuple(range(len(shape)))
    if name == _CAPSULE_BIAS:
        return [Slot(name, (1, *shape, 1, 1), path, _ALL, axes)]
    whole = "/".join(path[1:])
    if whole in modules:  # a parameter that belongs to no layer
        return [Slot(key, shape, path, _ALL, axes) for key in modules[whole]]
    module = "/".join(path[1:-1]).removesuffix("/conv")  # `layers.Conv` wraps one of Flax
    if module not in modules:
        raise UserError(
            f"the network's layer {module or name} has no name in PyTorch; a pooling of your own gives names "
            "by Pooling.torch_names"
        )
    slots = []
    for torch_module, channels in modules[module].items():
        part = (*shape[:-1], len(range(shape[-1])[channels]))
        key = f"{torch_module}.{_LEAF_NAMES.get(name, name)}"
        slots.append(Slot(key, tuple(part[axis] for axis in axes), path, channels, axes))
    return slots


def _unused_arrays(model: Any, slots: tuple[Slot, ...]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    if isinstance(model, BagLeNet):
        arrays["att_layer.linear.weight"] = np.zeros((1, model.hidden[0]), np.float32)
        arrays["att_layer.linear.bias"] = np.zeros(1, np.float32)
        return arrays
    of_backbone = getattr(model.make_backbone(), "torch_unused", None)
    if of_backbone is not None:
        arrays |= of_backbone()
    for slot in slots:
        if slot.key.endswith(".running_mean"):
            key = f"{slot.key.removesuffix('running_mean')}{COUNTER}"
            arrays[key] = np.zeros((), np.int64)
        elif slot.key.startswith("layer5.") and ".conv0." in slot.key:
            arrays[slot.key.replace(".conv0.", ".shortcut.0.")] = np.zeros(slot.shape, np.float32)
    return arrays


def _modules(model: ImageNetwork) -> TorchModules:
    backbone, head = model.make_backbone(), model.make_head()
    classifier = getattr(head, "torch_classifier", "linear")
    return {
        **_add_prefix(f"{BACKBONE}/", _modules_of(backbone, "backbone")),
        **_add_prefix(f"{HEAD}/", _modules_of(head, "head")),
        **whole_modules({"classifier": classifier, **model.find_pooling().torch_names}),
    }


def _add_prefix(prefix: str, modules: TorchModules) -> TorchModules:
    return {prefix + path: of_path for path, of_path in modules.items()}


def _modules_of(part: nn.Module, kind: str) -> TorchModules:
    """Returns a part's layers in a state dict."""
    names = getattr(part, "torch_modules", None)
    if names is None:
        raise UserError(
            f"a {type(part).__name__} is not a {kind} of models.build, and has no names in PyTorch: one of "
            "your own gives them by a method torch_modules"
        )
    return names()


def _usual_image_shape(model: ImageNetwork) -> tuple[int, int, int]:
    side = getattr(model.make_backbone(), "image_side", _IMAGE_SIDE)
    return side, side, 3

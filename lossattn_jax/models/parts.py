"""Entries of backbones and heads, and what builds them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax.attention.poolings.entry import MAP, PATCHES
from lossattn_jax.errors import UserError
from lossattn_jax.registry import is_function, name_entry, wrong_part

MakeModule = Callable[..., nn.Module]  # of a name

# By the path of a module of ours, the modules that a PyTorch state dict has for it, and the channels of each.
# A backbone or head that can be converted says it by a method `torch_modules`.
TorchModules = dict[str, dict[str, slice]]


def whole_modules(names: Mapping[str, str]) -> TorchModules:
    """Modules that correspond one to one, by our paths."""
    return {ours: {theirs: slice(None)} for ours, theirs in names.items()}


@dataclasses.dataclass(frozen=True)
class Resizing:
    """How an array of a file is made one for images of another size.

    Attributes:
      suits: whether an array of a shape can be.
      resize: makes of such an array, float32, and of the map's (height, width) the network's.
    """

    suits: Callable[[tuple[int, ...]], bool]
    resize: Callable[[np.ndarray, tuple[int, int]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """What files of a backbone's published weights have otherwise than `torch_modules` says.

    A backbone whose files do says it by a method `published_weights`.

    Attributes:
      left_out: what the names of arrays begin with that are not the backbone's.
      renamed: PyTorch's names by others of the same arrays.
      resized: arrays of a size that depends on the images', by name.
    """

    left_out: tuple[str, ...] = ()
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    resized: Mapping[str, Resizing] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Build:
    """What the parts of one network for images have in common.

    Attributes:
      width: multiplies the channels of every layer.
      plain: whether the network is a plain one, without a head that makes patches.
      norm: makes a batch normalisation layer.
      dtype: compute dtype.
      axis_name: pmap axis that training batches are split over, or None.
      num_classes: of the predictions.
      first_kernel: as `bottleneck_first_kernel` of `models.build`.
      relu_before_add: as `bottleneck_relu_before_add` there.
    """

    width: float
    plain: bool
    norm: MakeModule
    dtype: Dtype
    axis_name: str | None = None
    num_classes: int = 10
    first_kernel: int | None = None
    relu_before_add: bool | None = None

    def scale(self, channels: int) -> int:
        """The channels of a layer that has so many at width 1."""
        return max(1, round(channels * self.width))


@dataclasses.dataclass(frozen=True)
class PatchConvolution:
    """The convolution that cuts a backbone's map into patches, at width 1.

    Attributes:
      kernel: its side, in map positions.
      stride: in map positions.
      channels: of the patch features.
      use_bias: whether it and the 1x1 convolution behind it have one.
    """

    kernel: int = 9
    stride: int = 4
    channels: int = 512
    use_bias: bool = False


@dataclasses.dataclass(frozen=True)
class Units:
    """The primary capsules on a backbone's map, at width 1.

    Attributes:
      dimension: of each, one unit of convolution for each dimension.
      channels: of each unit.
      kernel, stride: of the convolution; None: as the patch convolution's.
      norm: whether batch normalisation and ReLU follow.
    """

    dimension: int = 16
    channels: int = 32
    kernel: int | None = None
    stride: int | None = None
    norm: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
    """A backbone of networks for images.

    Attributes:
      make: makes of a `Build` what makes the module, from images `[B, H, W, 3]` and `train` to a map
        `[B, H', W', C]`.
      plain_form: the form of features that poolings get of it in a network without a head that makes patches:
        `MAP`, `ONE`, `UNITS`, `SQUASHED` or `CLASS_CAPSULES` of `attention.poolings.entry`, or `PATCHES`,
        where each position of the map is a patch for every pooling, and not for those of the papers' plain
        networks alone.
      takes_heads: whether it goes with heads that make patches.
      patches: how such a head cuts its map.
      units: of its primary capsules.
      from_images: makes of its statistics, the collection "batch_stats", and of training images
        `[N, H, W, C]`, float32 and normalised, the statistics that a training begins with; None: they do not
        depend on the images.
    """

    make: Callable[[Build], MakeModule]
    plain_form: str = MAP
    takes_heads: bool = True
    patches: PatchConvolution = PatchConvolution()
    units: Units = Units()
    from_images: Callable[[Any, np.ndarray], Any] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """A head of networks for images.

    Attributes:
      makes: by the form of features that a pooling takes, what makes of a `Build` and the backbone's entry
        what makes the module: from a map `[B, H, W, C]` and `train` to features of that form. It has a
        method `grid(map_size)`, see `geometry.PatchGrid`.
      plain: whether it makes no patches: it is that of a plain network, and of its forms makes only the
        backbone's `plain_form`.
    """

    makes: Mapping[str, Callable[[Build, Backbone], Callable[..., Any]]]
    plain: bool = False

    def forms(self, backbone: Backbone) -> tuple[str, ...]:
        """The forms of features that it makes of a backbone's map."""
        if self.plain:
            return (backbone.plain_form,) if backbone.plain_form in self.makes else ()
        return tuple(self.makes) if backbone.takes_heads else ()


@dataclasses.dataclass(frozen=True, eq=False)
class BagBackbone:
    """A backbone of networks for bags.

    Attributes:
      layers: makes of a network, instances `[B, N, ...]`, `train` and random bytes `[B, N, sum(widths)]`, or
        None, the features in float32 that are pooled: of the last layer, or of all that the pooling looks at.
        Its layers become the network's.
      widths: of its layers, as published; None: as each pooling was.
      attention_hidden: outputs of the layers that score instances, where a pooling has them.
      first_layer: name of the dense layer that comes first, where `layers` takes its `FirstProduct` in place
        of instances too, and computes each instance by itself; None: it does not.
    """

    layers: Callable[[Any, Any, bool, jax.Array | None], list[jax.Array]]
    widths: tuple[int, ...] | None = None
    attention_hidden: int = 64
    first_layer: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class FirstProduct:
    """Instances times the weights of the first layer, where these are computed elsewhere.

    Attributes:
      values: `[B, N, F]`, without bias.
      features: of an instance.
    """

    values: jax.Array
    features: int


def adopt_backbone(reference: str, part: Any) -> Backbone:
    """Makes an entry of a user's Flax module, a backbone.

    It is made without arguments, of one width.

    Raises:
      UserError: it is no class of modules.
    """
    module = _module_class("backbone", reference, part, Backbone)
    return Backbone(lambda build: module, plain_form=PATCHES)


def adopt_head(reference: str, part: Any) -> Head:
    """Makes an entry of a user's Flax module, a head.

    It maps a map to `[B, P, D]`.

    Raises:
      UserError: it is no class of modules, or has no method `grid`.
    """
    module = _module_class("head", reference, part, Head)
    if not callable(getattr(module, "grid", None)):
        raise UserError(
            f"head is {reference!r}, but has no method grid(map_size), which says where its patches lie"
        )
    return Head({PATCHES: lambda build, backbone: module})


def adopt_layers(reference: str, part: Any) -> BagBackbone:
    """Makes an entry of a user's function; see `BagBackbone.layers`.

    Raises:
      UserError: it is no function.
    """
    if not is_function(part):
        requirement = f"{name_entry(BagBackbone)}, or a function that makes the layers of one"
        raise wrong_part("backbone", reference, part, requirement)
    return BagBackbone(part)


def _module_class(kind: str, reference: str, part: Any, entry: type) -> Any:
    if isinstance(part, type) and issubclass(part, nn.Module):
        return part
    requirement = f"{name_entry(entry)} or a class of flax.linen.Module"
    raise wrong_part(kind, reference, part, requirement)

"""Vision transformers over patches of an image (Dosovitskiy et al. 2021), and DINOv2's (Oquab et al. 2023).

Their map is what they make of the patches, without the class token and the registers (Darcet et al. 2024).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax.attention.poolings.entry import PATCHES
from lossattn_jax.errors import UserError
from lossattn_jax.models.layers import Conv, LayerNorm
from lossattn_jax.models.parts import (
    Backbone,
    Build,
    MakeModule,
    PatchConvolution,
    PublishedWeights,
    Resizing,
    TorchModules,
    whole_modules,
)
from lossattn_jax.models.position_embeddings import Resampling, resample

HEAD_CHANNELS = 64  # of an attention head at width 1
EXPANSION = 4  # of a block's hidden layer
REGISTERS = 4  # of the networks that have any
_EPSILON = 1e-6  # of layer normalisation
_LARGEST_SIDE = 256  # of the grid of a file's position embeddings, in patches

_POSITIONS, _CLASS_TOKEN, _REGISTER_TOKENS = "pos_embed", "cls_token", "register_tokens"
_TIMM_REGISTER_TOKENS = "reg_token"
_TORCH_NAMES_OF_BLOCK = {
    "norm1": "norm1",
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "scale1": "ls1",
    "norm2": "norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "scale2": "ls2",
}

_init = nn.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class Variant:
    """What tells one vision transformer from another.

    Attributes:
      patch: side of a patch, in pixels.
      heads: of attention at width 1; tokens have `HEAD_CHANNELS` for each.
      resampling: of its stored position embeddings, for other images than they were trained on.
      registers: further tokens, which have no place in the image.
      branch_scale: first value of the factors that each branch is multiplied by (LayerScale); None: none.
      depth: number of blocks.
    """

    patch: int
    heads: int
    resampling: Resampling
    registers: int = 0
    branch_scale: float | None = None
    depth: int = 12


class BranchScale(nn.Module):
    """A factor for each channel of a branch (LayerScale, Touvron et al. 2021).

    Attributes:
      first_value: before training.
      dtype: compute dtype.
    """

    first_value: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Multiplies `[B, T, C]`."""
        first = nn.initializers.constant(self.first_value)
        gamma = self.param("gamma", first, (x.shape[-1],), jnp.float32)
        return x * gamma.astype(self.dtype)[None, None]


class Block(nn.Module):
    """Attention between tokens, then two dense layers, both beside shortcuts.

    Attributes:
      heads: of attention; they divide the channels.
      branch_scale: as of `Variant`.
      dtype: compute dtype; attention and normalisation are float32.
    """

    heads: int
    branch_scale: float | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens `[B, T, C]` to as many."""
        channels = x.shape[-1]
        x = x + self._scaled("scale1", self._attend(_norm(self.dtype, "norm1")(x)))
        y = _norm(self.dtype, "norm2")(x)
        y = nn.gelu(_dense(EXPANSION * channels, self.dtype, "fc1")(y), approximate=False)
        return x + self._scaled("scale2", _dense(channels, self.dtype, "fc2")(y))

    @nn.nowrap
    def _attend(self, x: jax.Array) -> jax.Array:
        batch, tokens, channels = x.shape
        projections = _dense(3 * channels, self.dtype, "qkv")(x)
        projections = projections.reshape(batch, tokens, 3, self.heads, -1)
        query, key, value = (projections[:, :, part] for part in range(3))
        query = query * query.shape[-1] ** -0.5
        scores = jnp.einsum("bqhc,bkhc->bhqk", query, key, preferred_element_type=jnp.float32)
        weights = nn.softmax(scores, axis=-1).astype(self.dtype)
        mixed = jnp.einsum("bhqk,bkhc->bqhc", weights, value)
        return _dense(channels, self.dtype, "proj")(mixed.reshape(batch, tokens, channels))

    @nn.nowrap
    def _scaled(self, name: str, x: jax.Array) -> jax.Array:
        if self.branch_scale is None:
            return x
        return BranchScale(self.branch_scale, self.dtype, name=name)(x)


def _dense(features: int, dtype: Dtype, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=dtype, kernel_init=_init, name=name)


def _norm(dtype: Dtype, name: str) -> LayerNorm:
    return LayerNorm(_EPSILON, dtype, name=name)


class VisionTransformer(nn.Module):
    """Patches as tokens with learned places, blocks of attention, and a normalisation.

    Attributes:
      variant: which one it is.
      channels: C, of a token.
      heads: of attention.
      dtype: compute dtype; parameters are float32.
    """

    variant: Variant
    channels: int
    heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps images `[B, H, W, 3]` to `[B, H / patch, W / patch, C]`.

        Raises:
          UserError: the images are not cut into whole patches.
        """
        del train
        side = self.variant.patch
        _refuse_parts_of_patches(x.shape[1:3], side)
        x = Conv(self.channels, side, side, 0, self.dtype, use_bias=True, name="patches")(x)
        batch, *grid, _ = x.shape
        tokens = x.reshape(batch, -1, self.channels)
        tokens = jnp.concatenate([self._tokens("class_token", 1, batch), tokens], axis=1)
        positions = self.param("positions", _init, (1, *tokens.shape[1:]), jnp.float32)
        tokens = tokens + positions.astype(self.dtype)
        registers = self.variant.registers
        if registers:
            parts = [
                tokens[:, :1],
                self._tokens("register_tokens", registers, batch),
                tokens[:, 1:],
            ]
            tokens = jnp.concatenate(parts, axis=1)
        for block in range(self.variant.depth):
            tokens = Block(self.heads, self.variant.branch_scale, self.dtype, name=f"block{block}")(
                tokens
            )
        tokens = _norm(self.dtype, "norm")(tokens)
        return tokens[:, 1 + registers :].reshape(batch, *grid, self.channels)

    @nn.nowrap
    def _tokens(self, name: str, count: int, batch: int) -> jax.Array:
        shape = (1, count, self.channels)
        tokens = self.param(name, nn.initializers.normal(1e-6), shape, jnp.float32)
        return jnp.broadcast_to(tokens.astype(self.dtype), (batch, *shape[1:]))

    @nn.nowrap
    def torch_modules(self) -> TorchModules:
        """Its layers in PyTorch, under timm's and DINOv2's names."""
        names = {
            "class_token": _CLASS_TOKEN,
            "positions": _POSITIONS,
            "register_tokens": _REGISTER_TOKENS,
            "patches": "patch_embed.proj",
            "norm": "norm",
        }
        for block in range(self.variant.depth):
            for ours, theirs in _TORCH_NAMES_OF_BLOCK.items():
                names[f"block{block}/{ours}"] = f"blocks.{block}.{theirs}"
        return whole_modules(names)

    @nn.nowrap
    def published_weights(self) -> PublishedWeights:
        """What timm's and DINOv2's files have otherwise: heads, the mask's token, and other grids."""
        positions = Resizing(self._suits, self._resize)
        return PublishedWeights(
            left_out=("head.", "mask_token", "pre_logits."),
            renamed={_TIMM_REGISTER_TOKENS: _REGISTER_TOKENS},
            resized={_POSITIONS: positions},
        )

    @nn.nowrap
    def _suits(self, shape: tuple[int, ...]) -> bool:
        """Whether position embeddings are of a square grid, with or without the class token's."""
        if len(shape) != 3 or shape[0] != 1 or shape[2] != self.channels:
            return False
        sides = (_side(shape[1]), _side(shape[1] - 1))
        return any(side is not None and 0 < side <= _LARGEST_SIDE for side in sides)

    @nn.nowrap
    def _resize(self, positions: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """Makes position embeddings `[1, 1 + rows * columns, C]` of the grid."""
        if _side(positions.shape[1]) is not None:
            # timm's networks with registers have added the class token's to that token.
            positions = np.concatenate([np.zeros_like(positions[:, :1]), positions], axis=1)
        side = _side(positions.shape[1] - 1)
        if side is None or grid == (side, side):
            return positions
        square = positions[0, 1:].reshape(side, side, self.channels)
        places = resample(square, grid, self.variant.resampling)
        places = places.reshape(1, -1, self.channels)
        return np.concatenate([positions[:, :1], places], axis=1)

    @property
    def image_side(self) -> int:
        """Pixels of the square images that it is made for."""
        return 224


def _side(count: int) -> int | None:
    """The side of a square of so many places; None where there is none."""
    side = round(count**0.5)
    return side if side * side == count else None


def _refuse_parts_of_patches(size: tuple[int, ...], side: int) -> None:
    if any(length % side for length in size):
        raise UserError(
            f"the images have {size[0]}x{size[1]} pixels, but this network cuts them into patches of "
            f"{side}x{side}: both sides must be multiples of {side}"
        )


def _make(variant: Variant, build: Build) -> MakeModule:
    heads = build.scale(variant.heads)
    # A narrow network has one head of fewer channels.
    of_head = max(1, round(HEAD_CHANNELS * variant.heads * build.width / heads))
    return functools.partial(
        VisionTransformer, variant=variant, channels=heads * of_head, heads=heads, dtype=build.dtype
    )


_SMALL, _BASE = 6, 12  # heads
_TIMM = Resampling(antialias=True)
# As the authors' code, which adds a tenth of a patch to the grid in the networks without registers.
_DINOV2 = functools.partial(
    Variant, 14, resampling=Resampling(antialias=False, offset=0.1), branch_scale=1e-5
)
_DINOV2_REG4 = functools.partial(
    Variant, 14, resampling=Resampling(antialias=True), registers=REGISTERS, branch_scale=1e-5
)

VARIANTS = {
    "vit_s16": Variant(16, _SMALL, _TIMM),
    "vit_b16": Variant(16, _BASE, _TIMM),
    "vit_s14_dinov2": _DINOV2(_SMALL),
    "vit_b14_dinov2": _DINOV2(_BASE),
    "vit_s14_dinov2_reg4": _DINOV2_REG4(_SMALL),
    "vit_b14_dinov2_reg4": _DINOV2_REG4(_BASE),
}
# 6x6 patches, as the TIP paper's, on the 14x14 map of 224x224 images and patches of 16; 7x7 on one of 16x16.
BACKBONES = {
    name: Backbone(
        functools.partial(_make, variant),
        plain_form=PATCHES,
        patches=PatchConvolution(kernel=4, stride=2),
    )
    for name, variant in VARIANTS.items()
}

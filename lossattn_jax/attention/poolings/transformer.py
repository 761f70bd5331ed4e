"""Two layers of self-attention with a class token (TransMIL, Shao et al. 2021).

"TransMIL: Transformer based correlated multiple instance learning for whole slide image classification",
NeurIPS 2021. Its self-attention is the Nystrom approximation of Xiong et al., "Nystromformer", AAAI 2021.

From the paper are the instances in a square, which is filled with the first of them again, the class token,
attention before and behind the position encoding, and its three convolutions. From the authors' code
(github.com/szc19990412/TransMIL) and the package that it calls (github.com/lucidrains/nystrom-attention) are
the numbers, that the class token is drawn from N(0, 1), that the sequence gets zeros in front until the
landmarks divide it, and that one scale for all heads starts the iterations of the pseudo-inverse.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from lossattn_jax.attention.initialisers import torch_bias_init
from lossattn_jax.attention.normalisation import normalise_weights
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.attention.poolings.entry import INSTANCES, Option, Patches, Pooling

_KERNELS = (7, 5, 3)  # sides of the position encoding's kernels, the widest first
_EPSILON = 1e-5  # added to variances, as torch.nn.LayerNorm does
_EXACT = jax.lax.Precision.HIGHEST


class Square(NamedTuple):
    """A bag's instances, row by row in the smallest square that holds them.

    What is left of the square has the first instances again. Arrays have the places of the largest square
    of bags of that length, S = ceil(sqrt(N)); those behind a bag's own square are empty.

    Attributes:
      side: `[B]` int32, ceil(sqrt(n)) for n real instances.
      instances: `[B, S * S]` int32, the instance at each place of the square; 0 in empty places.
      full: `[B, S * S]` bool, False for empty places.
      first: `[B, N]` int32, the place of each instance; 0 for one that is not real.
      second: `[B, N]` int32, the place where it stands again; S * S where it does not.
    """

    side: jax.Array
    instances: jax.Array
    full: jax.Array
    first: jax.Array
    second: jax.Array


def lay_square(real: jax.Array) -> Square:
    """Finds the places of instances in a square; the order is that of the bag.

    Args:
      real: `[B, N]` bool, True for a real instance; others may stand between them.
    """
    most = math.isqrt(real.shape[1] - 1) + 1
    count = jnp.sum(real, axis=1, keepdims=True, dtype=jnp.int32)
    # A root of floats may be rounded to the wrong side of a whole number.
    roots = jnp.arange(most, dtype=jnp.int32)[None]
    side = jnp.sum(jnp.square(roots) < count, axis=1, keepdims=True, dtype=jnp.int32)
    places = jnp.arange(most**2, dtype=jnp.int32)[None]
    full = places < jnp.square(side)
    in_order = jnp.argsort(~real, axis=1, stable=True).astype(jnp.int32)
    number = jnp.where(places < count, places, places - count)
    instances = jnp.take_along_axis(in_order, jnp.where(full, number, 0), axis=1)
    own = jnp.cumsum(real, axis=1, dtype=jnp.int32) - 1
    again = real & (own + count < jnp.square(side))
    return Square(
        side[:, 0],
        jnp.where(full, instances, 0),
        full,
        jnp.where(real, own, 0),
        jnp.where(again, own + count, most**2),
    )


def invert_approximately(matrices: jax.Array, iterations: int) -> jax.Array:
    """Approximates pseudo-inverses of matrices of attention.

    `Z' = Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4` again and again, from the transposed A over the
    product of its highest sum of a row and of a column, among all heads of a bag.

    Args:
      matrices: `[B, H, M, M]` float32 A, not negative.
      iterations: 0 or more.
    """
    rows, columns = (
        jnp.max(jnp.sum(matrices, axis=axis), axis=(1, 2))[:, None, None, None] for axis in (-1, -2)
    )
    inverse = jnp.swapaxes(matrices, -1, -2) / (rows * columns)
    identity = jnp.eye(matrices.shape[-1])[None, None]

    def improve(inverse: jax.Array, _: None) -> tuple[jax.Array, None]:
        product = jnp.matmul(matrices, inverse, precision=_EXACT)
        inner = 7 * identity - product
        for factor in (15, 13):
            inner = factor * identity - jnp.matmul(product, inner, precision=_EXACT)
        return jnp.matmul(inverse, inner, precision=_EXACT) / 4, None

    return jax.lax.scan(improve, inverse, length=iterations)[0]


class NystromAttention(nn.Module):
    """Self-attention by landmarks, and a convolution of the values along the sequence.

    With queries Q, keys K, values V of a head and the means Q', K' of M segments of the sequence, which gets
    zeros in front until they are of one length: `softmax(Q K'^T) softmax(Q' K'^T)^+ softmax(Q' K^T) V`,
    queries divided by the root of their width.

    Attributes:
      heads: H, each of max(1, D // H) numbers.
      landmarks: M.
      iterations: of the pseudo-inverse.
      reach: of the convolution to either side; its kernel has 2 reach + 1 weights for each head.
    """

    heads: int
    landmarks: int
    iterations: int
    reach: int

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Attends.

        Args:
          x: `[B, T, D]` float32 tokens.
          real: `[B, T]` bool, True for each bag's own tokens, which are the first.

        Returns:
          `[B, T, D]`, of other tokens any finite numbers, and the weights `[B, T]` of the tokens for the
          first one, the mean over heads: about a softmax, but some may be negative, and zeros in front
          have a share.
        """
        size = max(1, x.shape[-1] // self.heads)
        inner = self.heads * size
        project = nn.Dense(
            3 * inner, use_bias=False, kernel_init=torch_bias_init(x.shape[-1]), name="projections"
        )
        x = jnp.where(real[..., None], x, 0.0)
        length = jnp.sum(real, axis=1, keepdims=True, dtype=jnp.int32)
        segment = (length + self.landmarks - 1) // self.landmarks
        in_front = segment * self.landmarks - length
        # Zeros in front have queries, keys and values of 0, for there is no bias: they count in the
        # segments' means and in the last softmax, and nowhere else.
        number = (jnp.arange(x.shape[1], dtype=jnp.int32)[None] + in_front) // segment
        segments = jnp.arange(self.landmarks, dtype=jnp.int32)[None, :, None]
        member = number[:, None] == segments
        member = (member & real[:, None]).astype(jnp.float32) / segment.astype(jnp.float32)[
            ..., None
        ]
        means = jnp.matmul(member, x, precision=_EXACT)

        def split(projected: jax.Array) -> list[jax.Array]:
            parts = jnp.split(projected, 3, axis=-1)
            return [part.reshape(*part.shape[:2], self.heads, size) for part in parts]

        queries, keys, values = split(project(x))
        mean_queries, mean_keys, _ = split(project(means))
        scale = size**-0.5

        def products(left: jax.Array, right: jax.Array) -> jax.Array:
            return jnp.einsum("bthd,bmhd->bhtm", left * scale, right, precision=_EXACT)

        to_means = jax.nn.softmax(products(queries, mean_keys))
        inverse = invert_approximately(
            jax.nn.softmax(products(mean_queries, mean_keys)), self.iterations
        )
        from_means = _softmax_with_zeros(products(mean_queries, keys), real, in_front)
        summaries = jnp.einsum("bhmt,bthd->bhmd", from_means, values, precision=_EXACT)
        summaries = jnp.matmul(inverse, summaries, precision=_EXACT)
        out = jnp.einsum("bhtm,bhmd->bthd", to_means, summaries, precision=_EXACT)
        limit = torch_bias_init(2 * self.reach + 1)
        kernel = self.param("residual", limit, (2 * self.reach + 1, self.heads))
        out, values = (part.reshape(*x.shape[:2], inner) for part in (out, values))
        of_channels = jnp.repeat(kernel, size, axis=1)[:, None]
        out += convolve_channels(values[:, :, None], of_channels)[:, :, 0]
        layer = nn.Dense(
            x.shape[-1],
            kernel_init=torch_bias_init(inner),
            bias_init=torch_bias_init(inner),
            name="out",
        )
        out = layer(out)
        of_first = jnp.matmul(to_means[:, :, :1], inverse, precision=_EXACT)
        of_first = jnp.matmul(of_first, from_means, precision=_EXACT)[:, :, 0]
        return out, jnp.mean(of_first, axis=1)


def _softmax_with_zeros(scores: jax.Array, real: jax.Array, zeros: jax.Array) -> jax.Array:
    """Computes a softmax of real tokens beside scores of 0.

    The weights of those are left out.

    Args:
      scores: `[B, H, M, T]`.
      real: `[B, T]` bool, with a True in each row.
      zeros: `[B, 1]` int32.
    """
    real, zeros = real[:, None, None], zeros.astype(jnp.float32)[:, :, None, None]
    scores = jnp.where(real, scores, jnp.finfo(scores.dtype).min)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    highest = jax.lax.stop_gradient(jnp.where(zeros > 0, jnp.maximum(highest, 0.0), highest))
    weights = jnp.where(real, jnp.exp(scores - highest), 0.0)
    of_zeros = zeros * jnp.exp(jnp.where(zeros > 0, -highest, 0.0))
    return weights / (jnp.sum(weights, axis=-1, keepdims=True) + of_zeros)


def convolve_channels(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves each channel by its own kernel, with zeros outside.

    Row by row of the kernel and not as a convolution of groups, which XLA makes slowly on CPUs; a gradient
    takes no copies of the map for each weight.

    Args:
      x: `[B, R, C, D]` float32.
      kernel: `[r, c, D]`, r and c odd.

    Returns:
      `[B, R, C, D]`, `y[i, j] = sum_kl kernel[k, l] x[i + k - (r - 1) / 2, j + l - (c - 1) / 2]`.
    """
    height, width = x.shape[1:3]
    rows, columns = kernel.shape[:2]
    tall = jnp.pad(x, ((0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2), (0, 0)))

    @jax.checkpoint
    def convolve_row(tall: jax.Array, number: jax.Array, weights: jax.Array) -> jax.Array:
        row = jax.lax.dynamic_slice_in_dim(tall, number, height, axis=1)
        shifted = [row[:, :, column : column + width] for column in range(columns)]
        each = [one * weights[place][None, None, None] for place, one in enumerate(shifted)]
        return sum(each[1:], start=each[0])

    def add(total: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + convolve_row(tall, *step), None

    numbers = jnp.arange(rows, dtype=jnp.int32)
    return jax.lax.scan(add, jnp.zeros_like(x), (numbers, kernel))[0]


class PositionEncoding(nn.Module):
    """The paper's PPEG: the square's tokens and three convolutions of them, channel by channel."""

    @nn.compact
    def __call__(self, x: jax.Array, side: jax.Array) -> jax.Array:
        """Adds to each token what its neighbours in the square are.

        Args:
          x: `[B, S * S, D]` tokens, row by row of a square of each bag's own side; 0 behind it.
          side: `[B]` int32.

        Returns:
          `[B, S * S, D]`; behind the bag's square anything finite.
        """
        width, most = x.shape[-1], math.isqrt(x.shape[1])
        # Together they are one kernel of the widest's size.
        kernel, bias = jnp.zeros((_KERNELS[0], _KERNELS[0], width)), jnp.zeros(width)
        for size in _KERNELS:
            init = torch_bias_init(size**2)  # of a convolution of one channel
            margin = (_KERNELS[0] - size) // 2
            own = self.param(f"kernel{size}", init, (size, size, width))
            kernel += jnp.pad(own, ((margin, margin), (margin, margin), (0, 0)))
            bias += self.param(f"bias{size}", init, (width,))
        side = side[:, None]
        every = jnp.arange(most**2, dtype=jnp.int32)[None]
        row, column = every // most, every % most
        inside = (row < side) & (column < side)
        places = jnp.where(inside, row * side + column, 0)
        board = jnp.where(inside[..., None], _take(x, places), 0.0)
        board = board.reshape(-1, most, most, width)
        encoded = board + convolve_channels(board, kernel) + bias[None, None, None]
        own_side = jnp.maximum(side, 1)
        row, column = every // own_side, every % own_side
        back = jnp.where(row < side, row * most + column, 0)
        return _take(encoded.reshape(x.shape), back)


def _take(x: jax.Array, places: jax.Array) -> jax.Array:
    """Takes rows `[B, n]` of `[B, T, ...]`."""
    return jnp.take_along_axis(x, places.reshape(*places.shape, *(1 for _ in x.shape[2:])), axis=1)


def _transmil(patches: Patches) -> Outputs:
    """Classifies a class token that has attended to the instances.

    With features h_n of a layer over instances, in a square (see `Square`), and a class token c:
    `X = [c, h]`, `X = X + A_1(norm X)`, the position encoding of all but c, `X = X + A_2(norm X)`, and
    c behind a last norm is classified; A as of `NystromAttention`.

    The attention is that of c to the instances in A_2, the mean over heads; an instance that stands twice
    has the sum, what is negative by the approximation counts as 0, and the rest is scaled to sum 1. An
    instance's logits are what the norm and the classifier make of its own token behind A_2.
    """
    options, features = patches.options, patches.features
    width = features.shape[-1]
    real = jnp.ones(features.shape[:2], bool) if patches.mask is None else patches.mask.astype(bool)
    square = lay_square(real)
    tokens = jnp.where(square.full[..., None], _take(features, square.instances), 0.0)
    token = patches.network.param("class_token", nn.initializers.normal(1.0), (width,))
    token = jnp.broadcast_to(token, (tokens.shape[0], 1, width))
    own = jnp.pad(square.full, ((0, 0), (1, 0)), constant_values=True)

    def norm(name: str) -> nn.LayerNorm:
        return nn.LayerNorm(epsilon=_EPSILON, use_fast_variance=False, name=name)

    def attend(number: int, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        attention = NystromAttention(
            int(options["heads"]),
            int(options["landmarks"]) or max(1, width // 2),
            int(options["iterations"]),
            int(options["residual_reach"]),
            name=f"attention{number}",
        )
        change, weights = attention(norm(f"norm{number}")(x), own)
        return jnp.where(own[..., None], x + change, 0.0), weights

    x, _ = attend(1, jnp.concatenate([token, tokens], axis=1))
    encoded = PositionEncoding(name="positions")(x[:, 1:], square.side)
    x, weights = attend(2, jnp.concatenate([x[:, :1], encoded], axis=1))
    each = patches.classifier(norm("norm")(x))
    patch_logits = jnp.where(real[..., None], _take(each[:, 1:], square.first), 0.0)
    weights = jnp.maximum(jnp.pad(weights[:, 1:], ((0, 0), (0, 1))), 0.0)  # and one place for none
    attention = _take(weights, square.first) + _take(weights, square.second)
    return Outputs(each[:, 0], patch_logits, normalise_weights(attention, real))


TRANSMIL = Pooling(
    _transmil,
    takes=(INSTANCES,),
    warns_of_collapse=True,
    learns_scores=True,
    orders_patches=True,
    widths=(512,),
    title="TransMIL",
    options={
        "heads": Option(8, least=1, whole=True),
        "landmarks": Option(0, whole=True),  # 0: half of the features' width
        "iterations": Option(6, whole=True),  # of the pseudo-inverse
        "residual_reach": Option(16, whole=True),  # a kernel of 33
    },
)

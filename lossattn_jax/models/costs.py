"""Costs of networks for images of one size: patches, parameters, operations, memory and time.

Operations are XLA's count before optimisation, so that nothing is compiled. A multiplication and an addition
are two; products with the zeros of a padding are not counted. Convolutions count as JAX's own, however
`kernels.convolution` computes them, so that a network has one number on all devices: a way that needs fewer
multiplications, as Winograd's, is not less work done but a higher rate.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lossattn_jax.attention.poolings import DEFAULT
from lossattn_jax.errors import UserError
from lossattn_jax.models import combinations
from lossattn_jax.models.factory import build
from lossattn_jax.models.network import ImageNetwork
from lossattn_jax.models.shapes import variable_shapes

_REPEATS = 5  # of which the median time is taken
_BYTES = 4  # of a parameter
# Images of a batch of which only shapes are computed: a prime number above all other sides of arrays, so that
# values of the images differ from parameters, which are the same for any batch.
_BATCH = 65_537
_COLUMNS = (
    ("backbone", 20),
    ("head", 7),
    ("patches", 7),
    ("parameters", 10),
    ("GFLOP", 8),
    ("weights", 8),
    ("training", 8),
    ("time", 8),
)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
      patches: of an image.
      parameters: their number, of 10 classes.
      operations: of the forward pass for one image.
      kept_bytes: of an image's values that the forward pass keeps for the backward one, float32, before XLA's
        optimisation.
      seconds: of the forward pass for one image on the first device; None: not measured.
    """

    patches: int
    parameters: int
    operations: float
    kept_bytes: int
    seconds: float | None = None


def of_network(
    model: ImageNetwork, image_shape: tuple[int, int, int], measure_time: bool = False
) -> Cost:
    """Counts what a network costs, and compiles it only where its time is measured.

    Raises:
      UserError: the network does not take such images.
    """
    patches = model.patch_grid(image_shape).patches
    shapes = variable_shapes(model, image_shape)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

    def forward(variables: Any, images: jax.Array) -> Any:
        return model.apply(variables, images, train=False)

    with nn.intercept_methods(with_jax_convolutions):
        operations = of_program(forward, shapes, images)
    seconds = _measure(forward, shapes, images) if measure_time else None
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    return Cost(
        patches, parameters, operations, _backward_bytes(model, shapes, image_shape), seconds
    )


def of_program(function: Callable[..., Any], *arguments: Any) -> float:
    """Operations of a function.

    A loop is counted as one pass through its body.

    Args:
      function: of arrays.
      arguments: of it; `jax.ShapeDtypeStruct` will do for each array.
    """
    analysis: Any = jax.jit(function).lower(*arguments).cost_analysis()
    return float(analysis["flops"])


def with_jax_convolutions(
    call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
) -> Any:
    """For `nn.intercept_methods`: puts JAX's convolution in the place of another one."""
    module = context.module
    if isinstance(module, nn.Conv) and module.conv_general_dilated is not None:
        return module.clone(parent=module.scope, conv_general_dilated=None)(*args, **kwargs)
    return call(*args, **kwargs)


def lines(
    side: int, backbones: Sequence[str], heads: Sequence[str], measure_time: bool = False
) -> Iterator[str]:
    """Formats the costs of networks for square images, line by line as they are found.

    Args:
      side: of the images, in pixels.
      backbones: names of backbones.
      heads: of heads; combinations that do not exist are left out.
      measure_time: whether each network is compiled and its time measured.

    Raises:
      UnknownName: there is no such backbone or head.
    """
    pairs = [
        (backbone, head, combinations.poolings(backbone, head))
        for backbone in backbones
        for head in heads
    ]
    columns = _COLUMNS if measure_time else _COLUMNS[:-1]
    yield _join([name for name, _ in columns])
    yield _join(["-" * width for _, width in columns])
    for backbone, head, poolings in pairs:
        if not poolings:
            continue
        pooling = DEFAULT if DEFAULT in poolings else poolings[0]
        try:
            cost = of_network(build(backbone, head, pooling), (side, side, 3), measure_time)
        except UserError as error:
            yield _join([backbone, head, f"refused: {error}"])
            continue
        cells = [backbone, head, str(cost.patches), f"{cost.parameters / 1e6:.2f}"]
        cells += [f"{cost.operations / 1e9:.2f}", f"{_BYTES * cost.parameters / 1e6:.0f}"]
        cells += [f"{cost.kept_bytes / 1e6:.0f}"]
        if cost.seconds is not None:
            cells.append(f"{1e3 * cost.seconds:.1f}")
        yield _join(cells)
    yield ""
    yield f"For images of {side}x{side} pixels and 10 classes. Parameters in millions."
    yield "GFLOP: of the forward pass for an image, XLA's count; an update takes about three times that."
    yield "Weights in MB; an update needs three to four times that, with gradients and the optimiser's state."
    yield "Training: MB that the forward pass keeps of each image for the backward one, before optimisation."
    if measure_time:
        yield "Time: ms of the forward pass for one image on this machine, compiled."


def _join(cells: Sequence[str]) -> str:
    widths = [width for _, width in _COLUMNS]
    return "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=False)).rstrip()


def _backward_bytes(model: ImageNetwork, shapes: Any, image_shape: tuple[int, int, int]) -> int:
    """Counts the bytes of an image's values that the backward pass needs."""

    def backward(variables: Any, images: jax.Array) -> Any:
        def of_params(params: Any) -> Any:
            streams = {"dropout": jax.random.key(0)}
            collections = {**variables, "params": params}
            return model.apply(
                collections, images, train=True, mutable=["batch_stats"], rngs=streams
            )[0]

        return jax.vjp(of_params, variables["params"])[1]

    images = jax.ShapeDtypeStruct((_BATCH, *image_shape), jnp.float32)
    residuals = jax.tree.leaves(jax.eval_shape(backward, shapes, images))
    of_images = [leaf for leaf in residuals if any(side % _BATCH == 0 for side in leaf.shape)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in of_images) // _BATCH


def _measure(function: Callable[..., Any], *shapes: Any) -> float:
    """Median seconds of a compiled function, on values that are all alike."""
    program = jax.jit(function).lower(*shapes).compile()
    arguments = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), shapes)
    times = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # without the first, which warms up

"""Lower bounds of the time of a training step on bags.

Two bounds for one core: the matrix products of the layers, at the rate at which NumPy does products of
the same shapes, and Adam's passes over the parameters, at the rate at which a core copies memory.
"""

from typing import Any

from benchmarks import machine

_FLOAT = 4
# Adam reads parameters, both moments and the gradient, and each of them is written once a step.
_PASSES = 8
# Arrays as large as the parameters that a step works on.
_ARRAYS = 4


def products(
    features: int, hidden: tuple[int, ...], classes: int, length: int
) -> list[tuple[int, int, int]]:
    """The matrix products of a step's forward and backward pass.

    Those of the layers only: the attention's sums over instances and all work on single elements are
    left out.

    Args:
      features: D of an instance.
      hidden: widths of the dense layers.
      classes: K.
      length: instances of the bag, padding included.

    Returns:
      (m, k, n) of each `[m, k] x [k, n]`: of each layer the product itself, the gradient of its weights
      and, of all but the first, that of its input. The classifier sees the bag as one more row.
    """
    widths = (features, *hidden)
    layers = [(length, *pair) for pair in zip(widths, widths[1:], strict=False)]
    layers.append((length + 1, widths[-1], classes))
    shapes = []
    for number, (rows, before, after) in enumerate(layers):
        shapes += [(rows, before, after), (before, rows, after)]
        if number:
            shapes.append((rows, after, before))
    return shapes


def flops(shapes: list[tuple[int, int, int]]) -> int:
    """Floating-point operations of matrix products, a multiplication and an addition being two."""
    return sum(2 * m * k * n for m, k, n in shapes)


def parameters(features: int, hidden: tuple[int, ...], classes: int) -> int:
    """Weights and biases of the network."""
    widths = (features, *hidden, classes)
    return sum((before + 1) * after for before, after in zip(widths, widths[1:], strict=False))


def optimiser_bytes(count: int) -> int:
    """Bytes that an update of `count` float32 parameters reads and writes."""
    return _PASSES * _FLOAT * count


def measure(
    features: int, hidden: tuple[int, ...], classes: int, length: float, core_us: float
) -> dict[str, Any]:
    """Measures both bounds on this machine, and compares a step with them.

    Args:
      features: D of an instance.
      hidden: widths of the dense layers.
      classes: K.
      length: mean instances of a bag, padding included.
      core_us: what a step was measured to take on one core, in microseconds.

    Returns:
      Counts for a step, rates of one core, the times in microseconds that follow from them, and which
      share of the measured step each is.
    """
    # Operations grow evenly with the length, so that the mean may be between two whole ones.
    whole = max(1, round(length))
    shapes = products(features, hidden, classes, whole)
    low, high = (flops(products(features, hidden, classes, n)) for n in (0, 1))
    operations = low + (high - low) * length
    rate = flops(shapes) / machine.product_seconds(shapes)
    count = parameters(features, hidden, classes)
    num_bytes = optimiser_bytes(count)
    bandwidth = machine.copy_bandwidth(_ARRAYS * _FLOAT * count)
    products_us, bytes_us = 1e6 * operations / rate, 1e6 * num_bytes / bandwidth
    return {
        "parameters": count,
        "flops_per_step": operations,
        "optimiser_bytes_per_step": num_bytes,
        "product_gflops_per_second": rate / 1e9,
        "copy_gbytes_per_second": bandwidth / 1e9,
        "products_us": products_us,
        "optimiser_us": bytes_us,
        "measured_core_us": core_us,
        "products_share": products_us / core_us,
        "optimiser_share": bytes_us / core_us,
        "larger_bound": "optimiser traffic" if bytes_us > products_us else "matrix products",
    }

"""Convolutions whose gradients are computed by a function of their own.

`jax.custom_vjp` would do that too, but leaves no forward mode.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Convolve = Callable[[jax.Array, jax.Array], jax.Array]
# Of the results' gradient, the map, the kernel, and whether that to the map and that to the kernel are used.
Gradients = Callable[[jax.Array, jax.Array, jax.Array, tuple[bool, bool]], tuple[Any, Any]]


def give_gradients(name: str, convolve: Convolve, gradients: Gradients) -> Convolve:
    """Gives a convolution its gradients, and leaves it to all transformations of JAX.

    Args:
      name: of the operation in programs.
      convolve: maps `[B, H, W, C]` and a kernel `[k, k, C, F]` to `[B, H, W, F]`, linear in each.
      gradients: of the results' gradient, `x`, `kernel` and which of both gradients are used, gives those to
        `x` and `kernel`; what is not used may be None.
    """

    @jax.custom_jvp
    def operation(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve(x, kernel)

    @operation.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return operation(*primals), tangent.bind(*tangents, *primals)

    def apply(
        moved_x: jax.Array, moved_kernel: jax.Array, x: jax.Array, kernel: jax.Array
    ) -> jax.Array:
        return operation(moved_x, kernel) + operation(x, moved_kernel)

    def transpose(
        gradient: Any, moved_x: Any, moved_kernel: Any, x: jax.Array, kernel: jax.Array
    ) -> list[Any]:
        used = ad.is_undefined_primal(moved_x), ad.is_undefined_primal(moved_kernel)
        both = gradients(ad.instantiate_zeros(gradient), x, kernel, used)
        return [g if u else None for g, u in zip(both, used, strict=True)] + [None, None]

    def batch(arguments: Any, axes: Any) -> Any:
        return jax.vmap(apply, axes)(*arguments), 0

    tangent = Primitive(f"{name}_tangent")
    tangent.def_impl(jax.jit(apply))
    tangent.def_abstract_eval(lambda x, kernel, *_: x.update(shape=(*x.shape[:3], kernel.shape[3])))
    mlir.register_lowering(tangent, mlir.lower_fun(apply, multiple_results=False))
    batching.primitive_batchers[tangent] = batch
    ad.primitive_transposes[tangent] = transpose
    ad.primitive_jvps[tangent] = lambda primals, tangents: jax.jvp(
        apply, primals, [ad.instantiate_zeros(tangent) for tangent in tangents]
    )

    def of_same_axes(x: jax.Array, kernel: jax.Array) -> jax.Array:
        # As all operations of JAX have it: in `jax.shard_map` devices may share a kernel, and not the map.
        axes = _axes(x) | _axes(kernel)
        return operation(_varying(x, axes), _varying(kernel, axes))

    return of_same_axes


def _axes(array: jax.Array) -> frozenset[Any]:
    """The axes of devices along which an array differs."""
    # Under another name before JAX 0.10, and not documented.
    kind = getattr(jax.typeof(array), "manual_axis_type", None)
    return frozenset() if kind is None else kind.varying


def _varying(array: jax.Array, axes: frozenset[Any]) -> jax.Array:
    missing = tuple(axes - _axes(array))
    return jax.lax.pcast(array, missing, to="varying") if missing else array

"""Floating-point operations of a network, by XLA's count before optimisation.

Nothing is compiled, so that a network of any size takes a second. A multiplication and an addition are two;
products with the zeros of a padding are not counted. Convolutions count as JAX's own, however
`models.convolution` computes them, so that a network has one number on all devices: a way that needs fewer
multiplications, as Winograd's, is not less work done but a higher rate.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from benchmarks import training_step
from lossattn_jax.checkpoint import runs
from lossattn_jax.config import images as config_lib

_IMAGES = 2  # of the batch that is counted; an image's part hardly depends on it


def of_program(function: Callable[..., Any], *arguments: Any) -> float:
    """Operations of a function.

    A loop is counted as one pass through its body.

    Args:
      function: of arrays.
      arguments: of it; `jax.ShapeDtypeStruct` will do for each array.
    """
    analysis: Any = jax.jit(function).lower(*arguments).cost_analysis()
    return float(analysis["flops"])


def per_image(config: ConfigDict) -> dict[str, float]:
    """Operations of a network for one image.

    Args:
      config: of a run; its data need not be there. Those of `config.train.remat`, which computes parts of
        the forward pass twice, are not counted twice.

    Returns:
      `training`: forward and backward pass, without augmentation and update; `evaluation`: the forward pass
      alone.
    """
    options = config_lib.resolve(config)
    spec = runs.spec_of(options.data)
    model = runs.build_model(options.model, spec)
    images = jax.ShapeDtypeStruct((_IMAGES, *spec.image_shape), jnp.float32)
    labels = jax.ShapeDtypeStruct((_IMAGES, *spec.label_shape), spec.label_dtype)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    loss = training_step.make_loss(options, spec, model)

    def gradients(variables: Any, images: jax.Array, labels: jax.Array) -> Any:
        def of_params(params: Any) -> jax.Array:
            return loss({**variables, "params": params}, images, labels)[0]

        return jax.value_and_grad(of_params)(variables["params"])

    def forward(variables: Any, images: jax.Array) -> Any:
        return model.apply(variables, images, train=False)

    with nn.intercept_methods(_with_jax_convolutions):
        return {
            "training": of_program(gradients, variables, images, labels) / _IMAGES,
            "evaluation": of_program(forward, variables, images) / _IMAGES,
        }


def _with_jax_convolutions(
    call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
) -> Any:
    """For `nn.intercept_methods`: puts JAX's convolution in the place of another one."""
    module = context.module
    if isinstance(module, nn.Conv) and module.conv_general_dilated is not None:
        return module.clone(parent=module.scope, conv_general_dilated=None)(*args, **kwargs)
    return call(*args, **kwargs)

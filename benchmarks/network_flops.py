"""Floating-point operations of a network in training, as `lossattn_jax.models.costs` counts them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from benchmarks import training_step
from lossattn_jax.checkpoint import runs
from lossattn_jax.config import images as config_lib
from lossattn_jax.models import costs

_IMAGES = 2  # of the batch that is counted; an image's part hardly depends on it


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

    with nn.intercept_methods(costs.with_jax_convolutions):
        return {
            "training": costs.of_program(gradients, variables, images, labels) / _IMAGES,
            "evaluation": costs.of_program(forward, variables, images) / _IMAGES,
        }

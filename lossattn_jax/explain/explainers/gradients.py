"""Explanations by the gradient of a class's score by pixels."""

from typing import Any

import jax
import jax.numpy as jnp

from lossattn_jax import devices
from lossattn_jax.arguments import check_number
from lossattn_jax.explain.explainers.subject import Relevance, Subject


def gradient_x_input(
    subject: Subject, variables: Any, images: jax.Array, classes: jax.Array, keys: jax.Array
) -> Relevance:
    """Computes gradient times input (Shrikumar et al. 2016).

    `sum_channels x * d score / dx`; x is 0 at the data set's mean colour.
    """
    del keys
    return subject.from_pixels(
        jnp.sum(images * _gradient(subject, variables, images, classes), axis=-1)
    )


def integrated_gradients(
    subject: Subject,
    variables: Any,
    images: jax.Array,
    classes: jax.Array,
    keys: jax.Array,
    steps: int = 32,
) -> Relevance:
    """Integrates gradients from the mean colour to the image.

    Times the image.

    Sundararajan et al. 2017, with the middle of each of `steps` equal parts of the line: the pixels sum to
    `score(image) - score(mean colour)`, up to the error of that sum.
    """
    del keys
    check_number("steps", steps, 1, whole=True, static=True)

    def step(total: jax.Array, place: jax.Array) -> tuple[jax.Array, None]:
        return total + _gradient(subject, variables, place * images, classes), None

    places = ((jnp.arange(steps, dtype=jnp.float32) + 0.5) / steps).astype(images.dtype)
    total, _ = jax.lax.scan(
        step, jnp.zeros_like(images), places, unroll=devices.unroll_length(steps)
    )
    return subject.from_pixels(jnp.sum(images * total / steps, axis=-1))


def smooth_grad(
    subject: Subject,
    variables: Any,
    images: jax.Array,
    classes: jax.Array,
    keys: jax.Array,
    samples: int = 32,
    *,
    noise: float = 0.15,
) -> Relevance:
    """Averages absolute gradients over noisy images.

    Of the channels the largest.

    Smilkov et al. 2017, with their noise of 10% to 20% of the image's range as the deviation, and the
    absolute value that they take for images of natural colours.
    """
    check_number("samples", samples, 1, whole=True, static=True)
    check_number("noise", noise, 0)
    spread = jnp.max(images, axis=(1, 2, 3)) - jnp.min(images, axis=(1, 2, 3))
    deviation = noise * spread[:, None, None, None]

    def step(total: jax.Array, sample: jax.Array) -> tuple[jax.Array, None]:
        normal = jax.vmap(
            lambda k: jax.random.normal(
                jax.random.fold_in(k, sample), images.shape[1:], images.dtype
            )
        )(keys)
        gradient = _gradient(subject, variables, images + deviation * normal, classes)
        return total + jnp.max(jnp.abs(gradient), axis=-1).astype(jnp.float32), None

    total, _ = jax.lax.scan(
        step,
        jnp.zeros(images.shape[:3]),
        jnp.arange(samples),
        unroll=devices.unroll_length(samples),
    )
    return subject.from_pixels(total / samples)


def _gradient(subject: Subject, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
    # Evaluation treats every image by itself, so that the sum's gradient is each image's own.
    return jax.grad(lambda x: jnp.sum(subject.score(variables, x, classes)))(images)

"""Explainers behind one interface: attention, and others to compare.

explain = explainers.make("attention", model, image_shape)
relevance = explain(variables, images, classes, keys)    # Relevance: patches [B, P], pixels [B, H, W]

To add one, write a function in a file here and put an `ExplainerSpec` into `EXPLAINERS`:

    def explain(subject: Subject, variables, images, classes, keys) -> Relevance

`occlusion` is one to copy. Of the user's own, `package.module:attribute` is such a function or an
`ExplainerSpec`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from lossattn_jax.arguments import NUMBERS, WHOLE, check_arrays
from lossattn_jax.errors import UserError
from lossattn_jax.explain.explainers.attention import attention, contribution
from lossattn_jax.explain.explainers.grad_cam import grad_cam
from lossattn_jax.explain.explainers.gradients import (
    gradient_x_input,
    integrated_gradients,
    smooth_grad,
)
from lossattn_jax.explain.explainers.occlusion import occlusion
from lossattn_jax.explain.explainers.subject import Relevance, Subject
from lossattn_jax.models import ImageNetwork
from lossattn_jax.registry import Registry, is_function

__all__ = ["EXPLAINERS", "NAMES", "Explainer", "ExplainerSpec", "Relevance", "Subject", "make"]

Explainer = Callable[[Any, jax.Array, jax.Array, jax.Array], Relevance]


@dataclasses.dataclass(frozen=True)
class ExplainerSpec:
    """An explainer, and what others have to know of it.

    Attributes:
      explain: makes, of a `Subject`, its variables, images `[B, H, W, C]` (float, normalised), classes `[B]`
        int and random keys `[B]`, the `Relevance`; it is traced, and may take options as keywords.
      title: what it is, in words.
      uses_gradients: whether it differentiates the network.
      uses_randomness: whether it draws with its keys.
      of_patches: whether it scores patches, and pixels have the scores of their patches; otherwise it scores
        pixels, and patches have the means over their windows.
      own_attention: whether it is the network's own attention, in units of whose time others are given.
    """

    explain: Callable[..., Relevance]
    title: str
    uses_gradients: bool = False
    uses_randomness: bool = False
    of_patches: bool = False
    own_attention: bool = False


def _adopt(reference: str, part: Any) -> ExplainerSpec:
    """An explainer of a function of the user's."""
    if not is_function(part):
        raise UserError(
            f"the explainer {reference!r} is a {type(part).__name__}, but must be a function like "
            "lossattn_jax.explain.explainers.occlusion.occlusion, or an ExplainerSpec"
        )
    return ExplainerSpec(part, reference.rpartition(":")[2])


EXPLAINERS = Registry(
    "explainer",
    ExplainerSpec,
    {
        "attention": ExplainerSpec(
            attention, "the patches' weights", of_patches=True, own_attention=True
        ),
        "contribution": ExplainerSpec(
            contribution, "what each patch adds to the class's logit", of_patches=True
        ),
        "gradient_x_input": ExplainerSpec(
            gradient_x_input, "gradient times input", uses_gradients=True
        ),
        "integrated_gradients": ExplainerSpec(
            integrated_gradients, "integrated gradients", uses_gradients=True
        ),
        "smooth_grad": ExplainerSpec(
            smooth_grad,
            "mean gradient of noisy images",
            uses_gradients=True,
            uses_randomness=True,
        ),
        "grad_cam": ExplainerSpec(grad_cam, "Grad-CAM on the backbone's map", uses_gradients=True),
        "occlusion": ExplainerSpec(occlusion, "fall of the score under a square"),
    },
    adopt=_adopt,
)
NAMES = tuple(EXPLAINERS)


def make(
    name: str, model: ImageNetwork, image_shape: tuple[int, int, int], **options: Any
) -> Explainer:
    """An explainer of a network.

    Args:
      name: one of `NAMES`, or `package.module:attribute` of the user's own.
      model: the network.
      image_shape: (height, width, channels) of its images.
      **options: of the explainer, beyond its defaults.

    Returns:
      A pure function of variables, images `[B, H, W, C]` (float, normalised), classes `[B]` int and random
      keys `[B]`, for those that use randomness. Each image is explained as if it were alone, so that
      padding or splitting a batch changes nothing.

      It raises a `ValueError` with a sentence where images or classes are of another shape or dtype.

    Raises:
      UserError: there is no such explainer; or, when it is called, one of the user's own gives something
        else than the relevance of patches and pixels.
    """
    subject = Subject(model, image_shape)
    explain = functools.partial(EXPLAINERS.find(name).explain, subject, **options)
    layout = " ".join(("B", *(str(size) for size in image_shape)))

    def explain_images(
        variables: Any, images: jax.Array, classes: jax.Array, keys: jax.Array
    ) -> Relevance:
        check_arrays(images=(images, layout, NUMBERS), classes=(classes, "B", WHOLE))
        relevance = explain(variables, images, classes, keys)
        if name not in EXPLAINERS:
            _check_relevance(name, relevance, subject, len(images))
        return relevance

    return explain_images


def _check_relevance(name: str, relevance: Any, subject: Subject, count: int) -> None:
    """Refuses a user's explanation of another form or number."""
    height, width, _ = subject.image_shape
    patches = subject.model.patch_grid(subject.image_shape).patches
    shapes = {"patches": (count, patches), "pixels": (count, height, width)}
    for part, shape in shapes.items():
        actual_shape = getattr(getattr(relevance, part, None), "shape", None)
        if actual_shape != shape:
            raise UserError(
                f"the explainer {name!r} gives {part} of shape {actual_shape}, but must give a Relevance "
                f"with {shape}, such as of subject.from_patches or subject.from_pixels"
            )

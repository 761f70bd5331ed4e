"""Networks: features, one classifier, and a pooling."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from lossattn_jax.arguments import Kind, check_arrays
from lossattn_jax.attention import pooling as pooling_lib
from lossattn_jax.attention import poolings
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.attention.poolings.entry import PATCHES, Patches
from lossattn_jax.attention.scorers import HIDDEN
from lossattn_jax.errors import UnknownName
from lossattn_jax.models.geometry import PatchGrid
from lossattn_jax.models.layers import dense

# What a network for images calls its backbone and its head among its parameters. Beside them are the
# classifier and what layers the pooling has, under the names that the pooling gives them.
BACKBONE, HEAD = "backbone", "head"

# Whole numbers are the values of a file, which were not normalised.
_IMAGE_VALUES = Kind("normalised values, which are floats", (jnp.floating,))


class Network(nn.Module):
    """A network that predicts for patches and for their weighted whole.

    Patches of images, or instances of bags.

    What `ImageNetwork` and `BagNetwork` have in common: behind their features come a linear classifier and
    a pooling, which know nothing of where the features are from.
    """

    @nn.nowrap
    def find_pooling(self) -> poolings.Pooling:
        """The entry of the network's pooling.

        Raises:
          UnknownName: there is no such pooling.
        """
        raise NotImplementedError

    @nn.nowrap
    def predict(self, form: str, patches: Patches) -> Outputs:
        """Classifies and pools features.

        To be called where the module makes its layers.

        Args:
          form: of the features; see `poolings.entry`.
          patches: the features.

        Returns:
          `Outputs` in float32.

        Raises:
          UserError: the pooling has no such option, or allows no such value.
        """
        pooling = self.find_pooling()
        options = pooling.complete_options(patches.options)
        return pooling.pool_form(form)(dataclasses.replace(patches, options=options))


class ImageNetwork(Network):
    """An image classifier that classifies and weighs every patch.

    TIP 2021, figure 2.

    One linear classifier predicts for each patch's features and for their weighted sum.

    Attributes:
      make_backbone: makes the module from images `[B, H, W, 3]` to a map `[B, H', W', C]`.
      make_head: makes the module from that map to patches; it has a method `grid(map_size)`.
      num_classes: K.
      dtype: compute dtype of backbone and head; classifier, attention and routing are float32.
      pooling: one of `POOLINGS`, or a reference.
      threshold: t of the loss attention.
      attention_hidden: outputs of the pooling's own layers, where it has any.
      form: of the features that the head makes; see `poolings.entry`.
    """

    make_backbone: Callable[..., nn.Module]
    make_head: Callable[..., Any]
    num_classes: int
    dtype: Dtype = jnp.float32
    pooling: str = poolings.DEFAULT
    threshold: float = pooling_lib.DEFAULT_THRESHOLD
    attention_hidden: int = HIDDEN
    form: str = PATCHES

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, mask: jax.Array | None = None
    ) -> Outputs:
        """Predicts for a batch.

        Args:
          images: `[B, H, W, 3]` float, normalised.
          train: True normalises by the batch's statistics and updates the running ones in the
            collection "batch_stats", which must then be mutable. VGG's dense layers then need the
            random stream "dropout".
          mask: `[B, P]`, True or 1 for a patch that counts, in row-major order of `patch_grid`; the others
            have no weight in the prediction. None: all count.

        Returns:
          `Outputs` in float32.

        Raises:
          UnknownName: there is no such pooling.
          ValueError: images of another shape, or that are not floats.
        """
        self.find_pooling()
        backbone_map = self.make_map(images, train)
        features = self.make_head(name=HEAD)(backbone_map, train).astype(jnp.float32)
        return self.predict(
            self.form,
            Patches(
                layers=[features],
                mask=mask,
                num_classes=self.num_classes,
                grid=backbone_map.shape[1] * backbone_map.shape[2],
                threshold=self.threshold,
                hidden=self.attention_hidden,
                dense=dense,
                network=self,
            ),
        )

    @nn.nowrap
    def find_pooling(self) -> poolings.Pooling:
        """The entry of the network's pooling.

        Raises:
          UnknownName: there is no such pooling, or it takes no features of `form`.
        """
        pooling = poolings.POOLINGS.find(self.pooling)
        if self.form not in pooling.forms():
            raise UnknownName(
                f"pooling is {self.pooling!r}, but must be one that takes {self.form}, as the head makes them"
            )
        return pooling

    @nn.nowrap
    def patch_grid(self, image_shape: tuple[int, int, int]) -> PatchGrid:
        """Returns patches' places in images; runs nothing.

        Of `image_shape` (height, width, channels).

        Raises:
          UserError: the images are too small for the network.
        """
        height, width, _ = self.map_shape(image_shape)
        return self.make_head().grid((height, width))

    @nn.nowrap
    def map_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Returns the shape (H', W', C) of an image's map; runs nothing.

        Of `image_shape` (height, width, channels).

        Raises:
          UserError: the images are of a size that the backbone does not take.
        """
        backbone = self.make_backbone()
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        shapes, _ = jax.eval_shape(
            lambda x: backbone.init_with_output(jax.random.key(0), x, False), images
        )
        height, width, channels = shapes.shape[1:]
        return height, width, channels

    @nn.nowrap
    def make_map(self, images: jax.Array, train: bool) -> jax.Array:
        """Computes the backbone's map `[B, H', W', C]` of images.

        Raises:
          ValueError: images of another shape, or that are not floats.
        """
        check_arrays(images=(images, "B H W C", _IMAGE_VALUES))
        return self.make_backbone(name=BACKBONE)(images.astype(self.dtype), train)


class GivenMap(nn.Module):
    """A backbone without layers: what it is given is the map already."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the map `[B, H, W, C]`."""
        del train
        return x


def without_backbone(model: ImageNetwork) -> ImageNetwork:
    """The same network behind its backbone: it takes maps for images.

    Its parameters are the model's but for the backbone's, which it leaves alone where they are given.
    """
    return model.clone(make_backbone=GivenMap)


def backbone_variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the backbone's collections of a network's variables, as its own module takes them."""
    return {kind: tree[BACKBONE] for kind, tree in variables.items() if BACKBONE in tree}


PatchNetwork = ImageNetwork  # its name when capsules had networks of their own

"""The entry of a pooling in its registry, and its inputs."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn

from lossattn_jax.attention import pooling
from lossattn_jax.attention.losses import LOSSES
from lossattn_jax.attention.outputs import Outputs
from lossattn_jax.errors import UserError
from lossattn_jax.registry import is_function, name_entry, wrong_part

# What a network makes for its pooling, each of B images or bags:
ONE = "one patch"  # [B, 1, D], the whole image
MAP = "map"  # [B, P, D], each position of the backbone's map
PATCHES = "patches"  # [B, P, D], of a head that cuts the map into patches
INSTANCES = "instances"  # [B, N, D], of a bag
CAPSULES = "capsules"  # [B, P, C, D], C capsules at each patch
UNITS = "units"  # [B, P, units, channels], primary capsules that are not squashed yet
SQUASHED = "squashed capsules"  # [B, P, units, channels], primary capsules that are
CLASS_CAPSULES = "class capsules"  # [B, 1, K, E], one for each class, of the whole image

# The collection for what a pooling gives the training besides predictions: under the name "logits" the
# log-probabilities `[B, S, K]` of classifiers that have losses of their own, under "losses" the loss `[B, K]`
# of each bag for each label that it may have. A network makes it where the call says that it is mutable.
SUPERVISION = "supervision"


@dataclasses.dataclass(frozen=True)
class Patches:
    """A pooling's inputs: features, their mask, and the classifier.

    Layers that a pooling makes become the network's, under the names that it gives them.

    Attributes:
      layers: features in float32, of shapes that the forms `ONE` to `CLASS_CAPSULES` say. The last are
        classified; there are others only with `Pooling.all_layers`.
      mask: `[B, P]`, True or 1 for a real patch; None: all are real.
      num_classes: K.
      grid: positions of the backbone's map, of which patches may be parts; of a bag its padded length.
      threshold: t of the config.
      hidden: outputs of the pooling's own layers.
      dense: makes a `flax.linen.Dense` of (outputs, inputs, name), initialised as PyTorch's.
      network: the Flax module, for parameters (`network.param`) and collections.
      options: of the pooling's own, by name; `Network.predict` fills in those that are not given.
      axis_name: pmap axis that the patches are split over, with `Pooling.splits_patches` alone; None: all
        are here.
    """

    layers: list[jax.Array]
    mask: jax.Array | None
    num_classes: int
    grid: int
    threshold: float
    hidden: int
    dense: Callable[[int, int, str], nn.Dense]
    network: nn.Module
    options: Mapping[str, float] = dataclasses.field(default_factory=dict)
    axis_name: str | None = None

    @property
    def features(self) -> jax.Array:
        """Returns the classified features: those of the last layer."""
        return self.layers[-1]

    @functools.cached_property
    def classifier(self) -> nn.Dense:
        """Makes the linear classifier of patches and of pooled features."""
        return self.dense(self.num_classes, self.features.shape[-1], "classifier")

    @functools.cached_property
    def patch_logits(self) -> jax.Array:
        """Predicts patches, `[B, P, K]` float32."""
        return self.classifier(self.features)

    def weigh(self, attention: jax.Array) -> Outputs:
        """Predicts the features' sum, weighted by `attention` `[B, P]`."""
        patch_logits = self.patch_logits
        summary = pooling.weighted_sum(self.features, attention, self.axis_name)
        return Outputs(self.classifier(summary), patch_logits, attention)

    def supervise(self, logits: jax.Array) -> None:
        """Gives training the log-probabilities `[B, S, K]` of supervised classifiers.

        These have losses of their own.
        """
        self._give_training("logits", logits)

    def replace_loss(self, losses: jax.Array) -> None:
        """Gives training the losses `[B, K]` of bags for each label.

        Of a bag that of its label is its loss, in the place of the cross-entropy of its prediction.
        """
        self._give_training("losses", losses)

    def _give_training(self, name: str, values: jax.Array) -> None:
        if not self.network.is_initializing():
            self.network.sow(
                SUPERVISION, name, values, reduce_fn=lambda _, new: new, init_fn=lambda: None
            )


Pool = Callable[[Patches], Outputs]


@dataclasses.dataclass(frozen=True)
class Option:
    """A number that a pooling's user may choose.

    Attributes:
      default: as published.
      least, most: bounds, both allowed.
      whole: whether it counts something.
    """

    default: float
    least: float = 0.0
    most: float = math.inf
    whole: bool = False

    @property
    def requirement(self) -> str:
        """Says what is allowed, as the end of "but must be"."""
        kind = "a whole number" if self.whole else "a number"
        if self.most == math.inf:
            return f"{kind}, at least {self.least:g}"
        return f"{kind} from {self.least:g} to {self.most:g}"

    def accepts(self, value: Any) -> bool:
        """Whether a value is allowed."""
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            return False
        number = float(value)
        is_whole = not self.whole or number.is_integer()
        return math.isfinite(number) and self.least <= number <= self.most and is_whole


@dataclasses.dataclass(frozen=True)
class PaperRow:
    """A pooling's row in the AAAI 2020 paper's Table 1.

    Attributes:
      method: what networks for bags call it.
      title: as the paper prints it.
      accuracy: as printed, on musk1, musk2, fox, tiger and elephant.
    """

    method: str
    title: str
    accuracy: tuple[float, ...]


@dataclasses.dataclass(
    frozen=True, eq=False
)  # equal only to itself: entries are told apart by identity
class Pooling:
    """A pooling, and what the rest of the package asks of it.

    Attributes:
      pool: makes predictions of `Patches`.
      takes: the forms of features that `pool` works on.
      pool_capsules: the same for the form `CAPSULES`; None: it does not go with capsules.
      patch_loss: whether patches have a loss where the config leaves that open.
      threshold: whether it cuts weights at `Patches.threshold`.
      warns_of_collapse: whether training warns of attention that has collapsed.
      learns_scores: whether layers of its own score the patches.
      hidden: outputs of its own layers, in networks for images of width 1.
      loss: the name of the loss that its predictions need; empty: as the labels ask for.
      torch_names: modules of a PyTorch state dict by the paths of its own layers; those of parameters that
        belong to no layer by their names. A network with a layer that has none is not converted.
      all_layers: whether, of a network for bags, it looks at all layers, or at the last one.
      dropout_at_pooling: whether networks for bags drop units where they pool, or between the layers.
      unequal_classes: whether class 0 is what a bag is where no instance speaks for another.
      scores_by_attention: whether an instance's score is its attention, or the probability that the
        classifier gives it for another class than 0.
      widths: of the layers over instances, in networks for bags.
      splits_patches: whether it computes the same where the patches of an example are split over devices: all
        that it computes of several patches goes by `Patches.axis_name`, as `Patches.weigh` and the functions
        of `attention.pooling` do.
      orders_patches: whether it computes something else where patches come in another order, as they stand in
        a bag's file.
      paper: as a network for bags of the paper's table; None: it is none.
      one_label: whether its own loss (`Patches.replace_loss`) is of one label of an example.
      title: of a method for bags that is not in the paper's table, for tables; empty: its name.
      options: its own, by name, with the values that were published.
    """

    pool: Pool
    takes: tuple[str, ...] = (MAP, PATCHES, INSTANCES)
    pool_capsules: Pool | None = None
    patch_loss: bool = False
    threshold: bool = False
    warns_of_collapse: bool = False
    learns_scores: bool = False
    hidden: int = 0
    loss: str = ""
    torch_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    all_layers: bool = False
    dropout_at_pooling: bool = False
    unequal_classes: bool = False
    scores_by_attention: bool = True
    widths: tuple[int, ...] = (256, 128, 64)
    splits_patches: bool = False
    orders_patches: bool = False
    paper: PaperRow | None = None
    one_label: bool = False
    title: str = ""
    options: Mapping[str, Option] = dataclasses.field(default_factory=dict)

    def complete_options(self, values: Mapping[str, Any], name: str = "") -> dict[str, float]:
        """Completes options with their defaults.

        Args:
          values: by name.
          name: of the pooling, for sentences.

        Returns:
          All of them, as floats.

        Raises:
          UserError: there is no such option, or a value is not allowed.
        """
        for key, value in values.items():
            if key not in self.options:
                own = (
                    f"one of: {', '.join(self.options)}"
                    if self.options
                    else "left out: it has none"
                )
                raise UserError(f"the option {key!r} of {name or 'the pooling'} must be {own}")
            if not self.options[key].accepts(value):
                raise UserError(
                    f"the option {key!r} of {name or 'the pooling'} is {value!r}, but must be "
                    f"{self.options[key].requirement}"
                )
        defaults = {key: option.default for key, option in self.options.items()}
        return {key: float(value) for key, value in {**defaults, **values}.items()}

    @property
    def several_labels(self) -> bool:
        """Whether its predictions may be logits of labels of which an example has any number."""
        # Of unequal classes one says that nothing is there.
        if self.unequal_classes or self.one_label:
            return False
        return not self.loss or LOSSES.find(self.loss).several_labels

    def forms(self) -> tuple[str, ...]:
        """Returns the forms of features that the pooling takes."""
        return self.takes if self.pool_capsules is None else (*self.takes, CAPSULES)

    def pool_form(self, form: str) -> Pool:
        """Returns the function that pools features of a form."""
        if form == CAPSULES and self.pool_capsules is not None:
            return self.pool_capsules
        return self.pool


def adopt(reference: str, part: Any) -> Pooling:
    """Makes an entry of a user's function of `Patches`.

    Raises:
      UserError: it is no function.
    """
    if not is_function(part):
        requirement = f"{name_entry(Pooling)}, or a function from Patches to Outputs"
        raise wrong_part("pooling", reference, part, requirement)
    return Pooling(part)

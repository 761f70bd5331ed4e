"""Which mean and deviation a data set's images are normalised by."""

from collections.abc import Callable

from lossattn_jax.data import pixel_statistics
from lossattn_jax.data.specs import get_spec
from lossattn_jax.registry import lookup

Moments = tuple[tuple[float, ...], tuple[float, ...]]

# Of the data set itself where it has them; of its training split; of ImageNet; and of CIFAR-10, which the
# published code of the TIP paper has for CIFAR-100 too.
AUTO, TRAINING, IMAGENET, CIFAR10 = "auto", "training", "imagenet", "cifar10"
CHOICES = (AUTO, TRAINING, IMAGENET, CIFAR10)


def choose(name: str, own: Moments | None, measure: Callable[[], Moments]) -> Moments:
    """Chooses mean and deviation of each channel.

    Args:
      name: one of `CHOICES`.
      own: those that the data set states; None: it states none.
      measure: computes those of the training split, which may take a pass over it.
    """
    ways: dict[str, Callable[[], Moments]] = {
        AUTO: measure if own is None else lambda: own,
        TRAINING: measure,
        IMAGENET: lambda: pixel_statistics.IMAGENET,
        CIFAR10: _of_cifar10,
    }
    return lookup("config.data.normalisation", name, ways)()


def _of_cifar10() -> Moments:
    spec = get_spec("cifar10")
    return spec.mean, spec.std

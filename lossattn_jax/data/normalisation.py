"""Which mean and deviation a data set's images are normalised by."""

from collections.abc import Callable

from lossattn_jax.data import pixel_statistics
from lossattn_jax.registry import lookup

Moments = tuple[tuple[float, ...], tuple[float, ...]]

# Of the data set itself where it has them; of its training split; and of ImageNet.
AUTO, TRAINING, IMAGENET = "auto", "training", "imagenet"
CHOICES = (AUTO, TRAINING, IMAGENET)


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
    }
    return lookup("config.data.normalisation", name, ways)()

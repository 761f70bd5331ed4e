"""Bags whose labels follow from their instances, with a misleading clue in training.

After the three tests of E. Raff and J. Holt, Reproducibility in Multiple Instance Learning: A Case For
Algorithmic Unit Tests, NeurIPS 2023 (arXiv 2310.17867). A rule that holds for all bags says by their
instances which are positive. In training a clue goes along with the label that has no part in the rule; in
shifted bags it goes along with the other label. A method that has learned the rule ranks both kinds of bags
alike.

    set               positive is a bag with        the clue in training            in shifted bags
    single_concept    an instance of the concept    poison in all negative bags,    poison in all positive
                                                    in no positive one              bags, in no negative one
    multi_concept     instances of both concepts    poison in all negative bags,    poison in all positive
                                                    in a tenth of the others        bags, in no negative one
    false_frequency   instances of both concepts    one instance of a concept in    35 to 39 instances of one
                                                    negative bags, two in others    concept in negative bags

Distributions and counts are those of the authors' notebook (ReproducibilityMIL.ipynb of the repository
AlgorithmicUnitTestsMIL), but that `single_concept` draws both kinds of its concept: there
`randint(0, 1) == 0` is always true, so that all have the mean 0 and the deviation 3.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from lossattn_jax.data.bags.bags import BagDataset
from lossattn_jax.errors import UserError

FEATURES = 16

# Keeps the draws apart from others that are made from the same seed.
_BAGS_KEY = 0xA55
_POISON_IN_POSITIVES = 0.1  # the share of multi_concept's positive training bags with poison


@dataclasses.dataclass(frozen=True)
class Kind:
    """A normal distribution of instances, the same for every feature.

    Attributes:
      mean, deviation: of each feature.
    """

    mean: float
    deviation: float


BACKGROUND, POISON = Kind(0, 1), Kind(-10, 0.1)
# Of single_concept: one concept, of which an instance is either kind.
WIDE, HIGH = Kind(0, 3), Kind(1, 1)
# The two concepts of multi_concept, and those of false_frequency.
NEAR, FAR = Kind(2, 0.1), Kind(3, 0.1)
LOW, UPPER = Kind(-2, 0.1), Kind(2, 0.1)

# Draws the kinds of a bag's instances: of the generator, whether it is positive, and whether it is shifted.
Content = Callable[[np.random.Generator, bool, bool], list[Kind]]


def draw_bags(name: str, num_bags: int, seed: int, shifted: bool = False) -> BagDataset:
    """Draws bags, half of them positive.

    They follow from the arguments alone.

    Args:
      name: of `CONTENTS`.
      num_bags: bags to draw, at least 2; of an odd number one more is negative.
      seed: of the draw, 0 or more.
      shifted: whether the clue of training misleads.

    Returns:
      The bags: instances float32 `[n, 16]`, classes 0 and 1 (positive). The label of an instance is 1 where
      it is of a concept in a positive bag, else 0.

    Raises:
      UserError: an argument out of range.
    """
    for what, value, low in (("number of bags", num_bags, 2), ("seed", seed, 0)):
        if value < low:
            raise UserError(f"the {what} of {name} is {value}, but must be {low} or more")
    # Nothing of one set, or of the shifted bags, is drawn again for another.
    number = list(CONTENTS).index(name)
    generator = np.random.default_rng([seed, _BAGS_KEY, number, shifted])
    labels = generator.permutation(np.arange(num_bags) % 2)
    bags, own = [], []
    for positive in labels == 1:
        content = CONTENTS[name](generator, bool(positive), shifted)
        kinds = [content[place] for place in generator.permutation(len(content))]
        means = np.array([kind.mean for kind in kinds])[:, None]
        deviations = np.array([kind.deviation for kind in kinds])[:, None]
        noise = generator.standard_normal((len(kinds), FEATURES))
        bags.append((means + deviations * noise).astype(np.float32))
        own.append([positive and kind not in (BACKGROUND, POISON) for kind in kinds])
    return BagDataset.from_bags(
        bags,
        labels,
        instance_labels=[np.array(part, np.int64) for part in own],
        name=name,
        classes=(0, 1),
        positive=1,
    )


def _draw_single_concept(
    generator: np.random.Generator, positive: bool, shifted: bool
) -> list[Kind]:
    kinds = [POISON] * (positive == shifted)
    if positive:
        kinds += [
            (WIDE, HIGH)[number] for number in generator.integers(2, size=_count(generator, 4))
        ]
    return kinds + [BACKGROUND] * _count(generator, 5 if positive else 10)


def _draw_multi_concept(
    generator: np.random.Generator, positive: bool, shifted: bool
) -> list[Kind]:
    if positive:
        poisoned = shifted or generator.random() < _POISON_IN_POSITIVES
        kinds = [NEAR] * _count(generator, 5) + [FAR] * _count(generator, 5)
    else:
        poisoned = not shifted
        kinds = [(NEAR, FAR)[generator.integers(2)]]
    return [POISON] * poisoned + kinds + [BACKGROUND] * _count(generator, 5)


def _draw_false_frequency(
    generator: np.random.Generator, positive: bool, shifted: bool
) -> list[Kind]:
    if positive:
        kinds = [LOW, UPPER]
    else:
        often = int(generator.integers(35, 40)) if shifted else 1
        kinds = [(LOW, UPPER)[generator.integers(2)]] * often
    return kinds + [BACKGROUND] * _count(generator, 10)


def _count(generator: np.random.Generator, end: int) -> int:
    """Draws a number from 1 to `end - 1`."""
    return int(generator.integers(1, end))


CONTENTS: Mapping[str, Content] = {
    "single_concept": _draw_single_concept,
    "multi_concept": _draw_multi_concept,
    "false_frequency": _draw_false_frequency,
}

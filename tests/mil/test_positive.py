import numpy as np
import pytest

from lossattn_jax.data.bags.positive import find_positive
from lossattn_jax.errors import UserError


@pytest.mark.parametrize(
    "classes, positive",
    [
        ((0, 1), 1),
        ((-1, 1), 1),
        ((1, -1), 1),
        (("negative", "positive"), "positive"),
        (("POS", "NEG"), "POS"),
        (("No", "Yes"), "Yes"),
        ((False, True), True),
        (("FALSE", "TRUE"), "TRUE"),
        (("0", "1"), "1"),
        ((0.0, 1.0), 1.0),
        ((np.int64(-1), np.int64(1)), 1),
        ((np.False_, np.True_), True),
    ],
)
def test_known_words_need_no_naming(classes, positive):
    assert find_positive(classes) == positive


@pytest.mark.parametrize(
    "classes",
    [("healthy", "cancer"), (1, 2), (0, 2), ("musk", "non-musk"), ("0", "yes"), (0, 1, 2)],
)
def test_other_words_are_not_guessed(classes):
    assert find_positive(classes) is None


def test_the_word_that_is_a_class_is_positive():
    assert find_positive(("cancer", "healthy"), ["tumor", "cancer"]) == "cancer"
    assert find_positive((1, 2), ["1"]) == 1
    assert find_positive((0, 1), ["0"]) == 0  # against what is known
    assert find_positive((1.0, 2.0), [1]) == 1.0
    assert find_positive(("a", "b", "c"), ["a"]) is None


@pytest.mark.parametrize("words", [["tumor"], ["cancer", "healthy"], ["Cancer"]])
def test_exactly_one_word_has_to_be_a_class(words):
    with pytest.raises(UserError, match="'healthy' or 'cancer'; name one of them"):
        find_positive(("healthy", "cancer"), words)

"""The positive one of two classes, found by its name."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lossattn_jax.errors import UserError

# Pairs whose second word is positive without being named, in small letters.
WORD_PAIRS = (
    ("0", "1"),
    ("-1", "1"),
    ("false", "true"),
    ("no", "yes"),
    ("negative", "positive"),
    ("neg", "pos"),
)


def find_positive(classes: Sequence[Any], words: Sequence[Any] = (), name: str = "bags") -> Any:
    """Finds the positive one of two classes.

    Args:
      classes: K different labels, numbers or text.
      words: labels that are positive, in this data set or in others: of two classes exactly one has to
        be among them. Without any, the pairs of `WORD_PAIRS` (in any case, and as numbers) are understood.
      name: of the data set, for the message.

    Returns:
      The one of `classes`; None for more than two, and where no word was given and none is known.

    Raises:
      UserError: there are two classes, and none or both of them are among `words`.
    """
    if len(classes) != 2:
        return None
    texts = [_text(value) for value in classes]
    if len(words):
        positive_texts = [_text(word) for word in words]
        among = [place for place, text in enumerate(texts) if text in positive_texts]
        if len(among) == 1:
            return classes[among[0]]
        raise UserError(
            f"positive names {', '.join(map(repr, positive_texts))}, of which {'both' if among else 'none'} "
            f"{'are' if among else 'is'} a class of {name}, {texts[0]!r} or {texts[1]!r}; name one of them"
        )
    for negative, positive in WORD_PAIRS:
        lowercase = [text.lower() for text in texts]
        if sorted(lowercase) == sorted((negative, positive)):
            return classes[lowercase.index(positive)]
    return None


def _text(value: Any) -> str:
    """Turns a label into a word; whole numbers get no fraction."""
    if isinstance(value, str):
        return value.strip()
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if whole else str(value)

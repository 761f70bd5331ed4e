"""Look-up of parts by their names."""

from collections.abc import Mapping
from typing import Any, TypeVar

from lossattn_jax.errors import UnknownName

T = TypeVar("T")


def lookup(what: str, name: Any, registry: Mapping[str, T]) -> T:
    """The part of a name.

    Args:
      what: of which kind it is, such as "config.optimizer.name", for the sentence.
      name: of the part.
      registry: the parts by their names.

    Raises:
      UnknownName: there is no part of that name; the sentence has the name and the allowed ones.
    """
    # What is no string may not even be hashable.
    if not isinstance(name, str) or name not in registry:
        raise UnknownName(f"{what} is {name!r}, but must be one of: {', '.join(registry)}")
    return registry[name]

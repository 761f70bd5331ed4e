"""Registries: parts by name, and a user's own by reference.

A reference is `package.module:attribute`.

    POOLINGS = Registry("pooling", Pooling, {"mean": Pooling(...), ...})
    POOLINGS.find("mean")                          # the entry
    POOLINGS.find("my.code:POOLING")               # imports my/code.py; its attribute POOLING is the entry
    POOLINGS.find("median")                        # UnknownName, with the nearest names

An entry is one object that says all that the rest of the package wants to know of a part, so that no other
module lists names.
"""

import difflib
import hashlib
import importlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from lossattn_jax.errors import UnknownName, UntrustedCode, UserError

T = TypeVar("T")

# "tfds:NAME" is a data set's name, and code of no module is run for it.
_REFERENCE = re.compile(r"(?!tfds:)[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_MOST_LISTED = 14  # names that a sentence lists without a nearest one among them


class Registry(Mapping[str, T], Generic[T]):
    """The parts of one kind by name; a mapping.

    Attributes:
      kind: what a part is, such as "pooling", without an article, for sentences.
    """

    def __init__(
        self,
        kind: str,
        entry: type[T],
        parts: Mapping[str, T],
        adopt: Callable[[str, Any], T] | None = None,
        old_names: Mapping[str, str] | None = None,
    ):
        """Makes a registry.

        Args:
          kind: what a part is.
          entry: the class of the entries; what a reference names has to be one.
          parts: the package's own entries by name.
          adopt: makes an entry of a reference and what it names, where that is no entry itself, or raises
            `UserError`; None: it has to be an entry.
          old_names: names under which parts are found too, and those that they are listed by.
        """
        self.kind = kind
        self._entry = entry
        self._parts = dict(parts)
        self._adopt = adopt
        self._old_names = dict(old_names or {})

    def __getitem__(self, name: str) -> T:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def find(self, name: Any, key: str = "") -> T:
        """The entry of a name or of a reference.

        Args:
          name: of the part, or `package.module:attribute`, which is imported.
          key: what the sentence calls the value, such as "config.model.pooling"; default: the kind.

        Raises:
          UnknownName: there is no part of that name; the sentence has the nearest names, or all.
          UserError: the reference cannot be imported, or names something else than such a part.
        """
        name = self.resolve(name)
        if isinstance(name, str) and name in self._parts:
            return self._parts[name]
        if not is_reference(name):
            raise UnknownName(
                f"{key or self.kind} is {name!r}, but must be {self._list_choices(name)}"
            )
        part = import_part(name, key or self.kind)
        if isinstance(part, self._entry):
            return part
        if self._adopt is not None:
            return self._adopt(name, part)
        raise wrong_part(key or self.kind, name, part, name_entry(self._entry))

    def resolve(self, name: Any) -> Any:
        """Returns today's name of a part; any other value stays."""
        return self._old_names.get(name, name) if isinstance(name, str) else name

    def _list_choices(self, name: Any) -> str:
        """Lists the names that may be meant, or all."""
        near = difflib.get_close_matches(str(name).lower(), self._parts, n=3)
        names = f"one of: {', '.join(self._parts)}"
        if near and len(self._parts) > _MOST_LISTED:
            names = f"one of {len(self._parts)} names, of which the nearest are: {', '.join(near)}"
        return f"{names}; or package.module:attribute of your own"


def name_entry(entry: type) -> str:
    """Names the class of a registry's entries in a sentence."""
    return f"a {entry.__module__}.{entry.__qualname__}"


def is_function(part: Any) -> bool:
    """Whether a part can be called and is no class."""
    return callable(part) and not isinstance(part, type)


def wrong_part(key: str, reference: str, part: Any, requirement: str) -> UserError:
    """Makes the error of a reference to a wrong part.

    Args:
      key: what the sentence calls the value.
      reference: the value.
      part: what it names.
      requirement: what it may name, as the end of "but must be".
    """
    return UserError(
        f"{key} is {reference!r}, which is a {type(part).__name__}, but must be {requirement}"
    )


def is_reference(value: Any) -> bool:
    """Whether a value has the form of `package.module:attribute`."""
    return isinstance(value, str) and _REFERENCE.fullmatch(value) is not None


def references(entries: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yields key and reference of entries that name code.

    Or hold such names at any depth.
    """
    for key, value in entries:
        if isinstance(value, Mapping):
            yield from references((f"{key}.{name}", item) for name, item in value.items())
        elif isinstance(value, tuple | list):
            yield from references((key, item) for item in value)
        elif is_reference(value):
            yield key, value


def refuse_untrusted(
    entries: Iterable[tuple[str, Any]], place: object, trust_code: bool | Collection[str]
) -> None:
    """Refuses stored names of a user's own code; imports nothing.

    Args:
      entries: keys and values of what is stored.
      place: where it is stored, for the sentence.
      trust_code: True: all code is trusted; else the references that are, such as those of the command line.

    Raises:
      UntrustedCode: a reference is not trusted.
    """
    if trust_code is True:
        return
    trusted_references = trust_code or ()
    for key, reference in references(entries):
        if reference not in trusted_references:
            raise UntrustedCode(place, key, reference)


def import_part(reference: str, key: str) -> Any:
    """Imports what `package.module:attribute` names.

    Args:
      reference: to the attribute; its module is found as by `import`.
      key: what the sentence calls the value.

    Raises:
      UserError: there is no such module or attribute, or importing the module fails.
    """
    module_name, _, attributes = reference.partition(":")
    try:
        part: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        where = "" if missing == module_name else f", which module {module_name} imports"
        raise UserError(
            f"{key} is {reference!r}, but there is no module {missing!r}{where}; it is looked for in the "
            "current folder, in PYTHONPATH and among the installed packages"
        ) from None
    except Exception as error:  # the user's code may raise anything
        raise UserError(
            f"{key} is {reference!r}, but importing {module_name} fails: {type(error).__name__}: {error}"
        ) from error
    for attribute in attributes.split("."):
        if not hasattr(part, attribute):
            near = difflib.get_close_matches(attribute, dir(part), n=1)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise UserError(
                f"{key} is {reference!r}, but {module_name} has no attribute {attributes!r}{hint}"
            )
        part = getattr(part, attribute)
    return part


def source_digest(reference: str) -> str | None:
    """Digests the file of a reference's module; None without one.

    SHA-256, of that file alone.
    """
    module = importlib.import_module(reference.partition(":")[0])
    try:
        with open(module.__file__ or "", "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (AttributeError, OSError):
        return None


def lookup(what: str, name: Any, choices: Mapping[str, T]) -> T:
    """Looks up a named value that is no part.

    Args:
      what: of which kind it is, such as "config.loss.patch", for the sentence.
      name: of the choice.
      choices: the values by their names.

    Raises:
      UnknownName: there is no choice of that name; the sentence has the name and the allowed ones.
    """
    # What is no string may not even be hashable.
    if not isinstance(name, str) or name not in choices:
        allowed = ", ".join(choice or "''" for choice in choices)
        raise UnknownName(f"{what} is {name!r}, but must be one of: {allowed}")
    return choices[name]

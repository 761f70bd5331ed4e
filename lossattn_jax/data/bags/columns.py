"""The columns of a table of bags: labels, ids and features.

    columns = find("mine.csv", header, Choice(features=("area", "colour_*")))

A column whose name is one of `ROLES`, in any case of letters, says what a row is, and is no feature. Every
other column of numbers is one.
"""

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence

from lossattn_jax.errors import UserError, name_first

# Of several that there are, the first is taken.
LABELS, IDS, INSTANCE_LABELS = (
    ("bag_label", "label"),
    ("bag_id", "bag", "slide_id"),
    ("instance_label",),
)

ROLES = frozenset(
    {
        *(*LABELS, *IDS, *INSTANCE_LABELS, "instance_id"),
        *("group", "patient", "patient_id", "case_id", "split", "fold"),
        *("x", "y", "coord_x", "coord_y", "path"),
    }
)
SEPARATORS = (",", ";", "\t")

# What pandas calls columns without a name when it reads them.
_PANDAS_INDEX = re.compile(r"(Unnamed: \d+(\.\d+)*)?")
_MOST_NAMED = 8


@dataclasses.dataclass(frozen=True)
class Choice:
    """Names and patterns of the columns that are features.

    Attributes:
      features: names and patterns (`fnmatch`) of the columns that are, whatever their role; empty: all
        columns of numbers that have none.
      ignore: names and patterns of columns that are not, whatever else says so.
    """

    features: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.features or self.ignore)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Places of a table's columns, from 0.

    Attributes:
      label, bag_id: of what each bag has.
      instance_label: of the instances' own labels; None where there is none.
      features: that are to be features, if they hold numbers.
      exact: of these, the ones that `Choice.features` names in full: they have to hold numbers.
      indices: without a name, which may do no more than count the rows.
      others: all the rest.
    """

    label: int
    bag_id: int
    instance_label: int | None
    features: tuple[int, ...]
    exact: frozenset[int]
    indices: tuple[int, ...]
    others: tuple[int, ...]


def separator(header: str) -> str:
    """Finds which of `SEPARATORS` separates the names of a header.

    Where none does, it is the one that there is most of, or a comma.
    """

    def names(mark: str) -> list[str]:
        return [name.strip().strip('"').strip().lower() for name in header.split(mark)]

    def rank(mark: str) -> tuple[int, int]:
        header_names = names(mark)
        return sum(not set(role).isdisjoint(header_names) for role in (LABELS, IDS)), len(
            header_names
        )

    return max(SEPARATORS, key=rank)


def find(path: object, header: Sequence[str], choice: Choice) -> Columns:
    """Finds the role of each column of a table.

    Args:
      path: of the table, for messages.
      header: the columns' names, without blanks around them.
      choice: of features.

    Raises:
      UserError: there is no column of labels or of ids, two have the same name, one has no name, a pattern
        matches none, a label or an id is to be a feature or ignored, or there is no feature.
    """
    if not any(header):
        raise UserError(f"{path} is empty or its first line is, but must be the header")
    label, bag_id = (find_first(path, header, role) for role in (LABELS, IDS))
    for role, place in ((LABELS, label), (IDS, bag_id)):
        if place is None:
            raise UserError(
                f"the first line of {path} names no column {role[0]!r} (nor {' or '.join(role[1:])}; names "
                f"are separated by commas, semicolons or tabs), but names {_some(header)}"
            )
    assert label is not None and bag_id is not None
    own = find_first(path, header, INSTANCE_LABELS)
    for place, name in enumerate(header):
        if name and name in header[:place]:
            raise UserError(f"{path} has two columns {name!r}, but names must differ")
        if not name and place:
            raise UserError(f"column {place + 1} of {path} has no name; name it, or take it out")
    with_role = {label, bag_id} if own is None else {label, bag_id, own}
    matching, exact = _places_of(path, header, "features", choice.features, with_role)
    without, _ = _places_of(path, header, "ignore", choice.ignore, with_role)
    indices = [
        place
        for place, name in enumerate(header)
        if _PANDAS_INDEX.fullmatch(name) and place not in exact | without
    ]
    free = [
        place for place in range(len(header)) if place not in with_role | without | set(indices)
    ]
    features = [
        place
        for place in free
        if (place in matching if choice.features else header[place].lower() not in ROLES)
    ]
    if not features:
        raise UserError(
            f"{path} has no column but {_some(header)}, so no feature{_way_out(header, free)}"
        )
    return Columns(
        label,
        bag_id,
        own,
        tuple(features),
        frozenset(exact),
        tuple(indices),
        tuple(
            place for place in range(len(header)) if place not in {*with_role, *indices, *features}
        ),
    )


def find_first(path: object, header: Sequence[str], names: Sequence[str]) -> int | None:
    """Finds the column with the first of these names that there is, in any case of letters.

    Args:
      path: of the table, for messages.
      header: the columns' names.
      names: in small letters.

    Raises:
      UserError: two columns have that name.
    """
    lowercase = [name.lower() for name in header]
    for name in names:
        if lowercase.count(name) > 1:
            raise UserError(f"{path} has two columns {name!r}, but names must differ")
        if name in lowercase:
            return lowercase.index(name)
    return None


def _places_of(
    path: object, header: Sequence[str], flag: str, patterns: Iterable[str], with_role: set[int]
) -> tuple[set[int], set[int]]:
    """Finds the columns that patterns match, and those named in full."""
    places, exact_places = set[int](), set[int]()
    for pattern in patterns:
        exact = _among(header, lambda name, p=pattern: name == p)  # type: ignore[misc]
        own = exact or _among(header, lambda name, p=pattern: fnmatch.fnmatchcase(name, p))  # type: ignore[misc]
        if not own:
            near = difflib.get_close_matches(pattern, header, _MOST_NAMED, 0.5)
            lowercase = pattern.lower()
            near = near or [name for name in header if name and lowercase in name.lower()]
            raise UserError(
                f"--{flag} has {pattern!r}, which is no column of {path}; "
                f"{'near are' if near else 'its columns are'} {_some(near or header)}"
            )
        if exact & with_role or not own - with_role:
            raise UserError(
                f"--{flag} has {pattern!r}, but bags of {path} have their labels or ids from that column"
            )
        places |= own - with_role
        exact_places |= exact
    return places, exact_places


def _among(header: Sequence[str], match: Callable[[str], bool]) -> set[int]:
    return {place for place, name in enumerate(header) if name and match(name)}


def _way_out(header: Sequence[str], free: Sequence[int]) -> str:
    with_role = [header[place] for place in free]
    if not with_role:
        return ""
    return f" (columns such as {with_role[0]!r} are none by their names; --features={with_role[0]} takes it)"


def _some(names: Iterable[str]) -> str:
    nonempty = [name for name in names if name]
    return name_first(nonempty, _MOST_NAMED)

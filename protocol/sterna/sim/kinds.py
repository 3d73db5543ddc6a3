"""Things that are made of parts, by number: which there are, and which of them are alike.

There are few different parts, and many things made of them: each part has a number, and a thing is the
numbers of its parts in a row. `Likeness` says which things have the same parts at some places. It is exact:
parts are mixed to one number, by others drawn at random, and where two come out the same, they are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from sterna.sim.recall import Recall, States

T = TypeVar("T")
Widths: TypeAlias = tuple[int, int, int, int, int]
"""Bits that the number of each of the five things of a world has: 64 together."""
WIDTHS: Final[Widths] = (19, 19, 15, 6, 5)
ROUNDS_WIDTHS: Final[Widths] = (20, 18, 15, 6, 5)
"""Where rounds go on, it is the source's host that there are most different ones of."""
THINGS: Final = ("first hosts", "second hosts", "sets of connections", "stores", "judges")
"""What the five are, in words."""

Truths: TypeAlias = npt.NDArray[np.bool_]

Key: TypeAlias = Callable[..., Hashable]
"""What makes two parts equal."""

Look: TypeAlias = Callable[..., tuple[Hashable, object]]
"""What is seen of a part without looking at all of it: what makes two equal, and one."""


class Table(Generic[T]):
    """All parts of a kind that were met, by number.

    Args:
        width: bits that a number has.
        what: they are, for messages.
    """

    def __init__(self, width: int = 32, what: str = "parts of a kind") -> None:
        self.parts: Final[list[T]] = []
        self._what: Final = what
        self._numbers: Final[dict[Hashable, int]] = {}
        self._most: Final = 1 << width

    def number(self, key: Hashable, part: T) -> int:
        """The number of the part with this key: that of the first one that was like it."""
        found = self._numbers.setdefault(key, len(self.parts))
        if found == len(self.parts):
            if found == self._most:
                detail = f"more than {found} different {self._what} have no number"
                raise OverflowError(f"{detail}: explore with fewer faults, or with some kinds of them only")
            self.parts.append(part)
        return found


class Column:
    """Numbers, or rows of numbers, of which there are more and more.

    Args:
        width: of a row.
    """

    def __init__(self, width: int = 1) -> None:
        self._all = np.zeros((64, width), np.uint64)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def extend(self, rows: npt.ArrayLike) -> None:
        """Some more."""
        more = np.array(rows, np.uint64).reshape(-1, self._all.shape[1])
        size = self._size + len(more)
        if size > len(self._all):
            grown = np.zeros((2 * size, self._all.shape[1]), np.uint64)
            grown[: self._size] = self.rows
            self._all = grown
        self._all[self._size : size] = more
        self._size = size

    @property
    def rows(self) -> States:
        """All of them."""
        return self._all[: self._size]

    @property
    def numbers(self) -> States:
        """All of them, of rows of one."""
        return self._all[: self._size, 0]


class Likeness:
    """What is the same about some things: a number for each, by which parts it has at some places.

    Args:
        kind: of things.
        places: of the parts.
    """

    def __init__(self, kind: Kind, places: list[int]) -> None:
        self._kind: Final = kind
        self._places: Final = places
        self._numbers: Final = Column()
        self._known: Final = Recall()
        self._first: Final = Column()  # thing of each number

    def numbers(self) -> States:
        """Of each thing of its kind that was met."""
        rows, start = self._kind.rows.rows, len(self._numbers)
        if start < len(rows):
            new = rows[start:, self._places]
            keys = np.zeros(len(new), np.uint64)
            for at, place in enumerate(self._places):
                keys ^= self._kind.marks(place)[new[:, at]]
            found = self._known.find(keys)
            misses = np.flatnonzero(found < 0)
            if misses.size:
                unknown, first = np.unique(keys[misses], return_index=True)
                numbers = len(self._known) + np.arange(len(unknown))
                self._known.learn(unknown, numbers)
                self._first.extend(start + misses[first])
                found = self._known.find(keys)
            if (rows[self._first.numbers[found]][:, self._places] != new).any():
                raise OverflowError("two sets of parts have one mark: explore with other marks")
            self._numbers.extend(found)
        return self._numbers.numbers


class Kind:
    """All things of a kind that were met.

    Attributes:
        rows: of each thing, the numbers of its parts and of what is seen of them.

    Args:
        place: which of the five it is.
        keys: of each of its parts, what makes two equal.
        seen: what can be seen of a part without looking at all of it: of which, and how that is made.
        widths: bits that the number of each of the five has.
    """

    def __init__(
        self,
        place: int,
        keys: tuple[Key, ...],
        seen: tuple[tuple[int, Look], ...] = (),
        *,
        widths: Widths = WIDTHS,
    ) -> None:
        self.shift: Final = np.uint64(sum(widths[:place]))
        self.mask: Final = np.uint64((1 << widths[place]) - 1)
        self.sizes: Final = len(keys)
        self.tables: Final = [Table[object]() for _ in (*keys, *seen)]
        self.rows: Final = Column(len(self.tables))
        self._things: Final = Table[None](widths[place], THINGS[place])
        self._keys: Final = keys
        self._seen: Final = seen
        self._seen_of: Final[list[list[int]]] = [[] for _ in seen]
        self._views: Final[dict[int, Likeness]] = {}
        self._marks: Final = [Column() for _ in self.tables]
        self._dice: Final = np.random.default_rng(place)
        # A part makes what it reveals superfluous.
        self._implied: Final = [
            sum(1 << self.sizes + number for number, (of, _) in enumerate(seen) if of == part)
            for part in range(self.sizes)
        ]

    def part(self, place: int, part: object) -> int:
        """The number of a part."""
        table = self.tables[place]
        number = table.number(self._keys[place](part), part)
        if number + 1 == len(table.parts):
            for which, (of, look) in enumerate(self._seen):
                if of == place and number == len(self._seen_of[which]):
                    self._seen_of[which].append(self.tables[self.sizes + which].number(*look(part)))
        return number

    def thing(self, parts: tuple[int, ...]) -> int:
        """The number of what is made of parts of these numbers."""
        number = self._things.number(parts, None)
        if number == len(self.rows):
            self.rows.extend(
                [*parts, *[self._seen_of[at][parts[of]] for at, (of, _) in enumerate(self._seen)]]
            )
        return number

    def marks(self, place: int) -> States:
        """A number drawn at random for each part that there can be at a place."""
        column, size = self._marks[place], len(self.tables[place].parts)
        if len(column) < size:
            column.extend(self._dice.integers(1 << 64, size=2 * size - len(column), dtype=np.uint64))
        return column.numbers

    def least(self, read: int) -> int:
        """The same reading, without what follows from the rest of it."""
        for place, implied in enumerate(self._implied):
            if read >> place & 1:
                read &= ~implied
        return read

    def view(self, read: int) -> States:
        """A number for each thing: the same for those of which the same would be read."""
        view = self._views.get(read)
        if view is None:
            places = [place for place in range(len(self.tables)) if read >> place & 1]
            view = self._views[read] = Likeness(self, places)
        return view.numbers()


class Flags:
    """Whether something is so about things of a kind, by what is seen of them.

    Args:
        kind: of things.
        places: of parts that are true or false.
        what: is so, of things by these parts.
    """

    def __init__(self, kind: Kind, places: tuple[int, ...], what: Callable[[Truths], Truths]) -> None:
        self._kind: Final = kind
        self._places: Final = places
        self._what: Final = what
        self._known: Final = Column()

    def where(self, things: States) -> npt.NDArray[np.intp]:
        """The places among these things of those about which it is so."""
        new = self._kind.rows.rows[len(self._known) :]
        if len(new):
            parts = [np.array(self._kind.tables[at].parts, bool)[new[:, at]] for at in self._places]
            self._known.extend(self._what(np.array(parts)))
        return np.flatnonzero(self._known.numbers[things])

"""What is remembered of a page table from the moment its places were given out until its bytes have come."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from functools import partial
from typing import Final, Generic, TypeVar

from sterna.wire.records import Pages

T = TypeVar("T")


class ByTable(Generic[T]):
    """Something for each of some tables. It goes with its table, whose connection is gone."""

    def __init__(self) -> None:
        self._found: Final[dict[int, tuple[T, weakref.ref[Pages]]]] = {}

    def put(self, table: Pages, value: T) -> None:
        """Keep this for a table, in the place of what there is."""
        key = id(table)
        self._found[key] = value, weakref.ref(table, partial(self._forget, key))

    def get(self, table: Pages) -> T | None:
        """What is kept for the table; None if there is nothing."""
        found = self._found.get(id(table))
        return None if found is None else found[0]

    def pop(self, table: Pages) -> T | None:
        """What is kept for the table, which is kept no longer; None if there is nothing."""
        found = self._found.pop(id(table), None)
        return None if found is None else found[0]

    def values(self) -> Iterator[T]:
        """What is kept for any table. Who goes through it may find that one of them is gone meanwhile."""
        return (value for value, _ in list(self._found.values()))

    def __len__(self) -> int:
        return len(self._found)

    def _forget(self, key: int, of: weakref.ref[Pages]) -> None:
        if key in self._found and self._found[key][1] is of:
            del self._found[key]

"""A set of very many numbers, of eight bytes each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_Numbers = npt.NDArray[np.uint64]


def in_order(numbers: _Numbers) -> _Numbers:
    """Each of these numbers once, in order. Of very many, that is quicker than `np.unique`, which hashes."""
    ordered = np.sort(numbers)
    other = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=other[1:])
    return ordered[other]


class Known:
    """See the module's text. Numbers stand in order, in a few rows of which each is longer than the next."""

    def __init__(self) -> None:
        self._rows: list[_Numbers] = []

    def __len__(self) -> int:
        return sum(map(len, self._rows))

    def add(self, numbers: _Numbers) -> _Numbers:
        """Those of these numbers that are new, in order; from now on they are not."""
        new = in_order(numbers)
        for row in self._rows:
            at = np.searchsorted(row, new)
            at[at == len(row)] = 0
            new = new[row[at] != new]
        if len(new):
            self._rows.append(new)
            while len(self._rows) > 1 and len(self._rows[-2]) < 2 * len(self._rows[-1]):
                last = self._rows.pop()
                self._rows[-1] = np.sort(np.concatenate([self._rows[-1], last]))
        return new

"""Numbers by keys, looked up for very many keys at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

States: TypeAlias = npt.NDArray[np.uint64]
Numbers: TypeAlias = npt.NDArray[np.int64]
MISSING: Final = -1


class Recall:
    """See the module's text. Keys stand in order. What is `fresh` is found after `merge` only."""

    def __init__(self) -> None:
        self.fresh: Final[dict[int, int]] = {}
        self._keys: States = np.zeros(0, np.uint64)
        self._numbers: Numbers = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, keys: States) -> Numbers:
        """The number for each of these keys, -1 where there is none."""
        if not len(self._keys):
            return np.full(len(keys), MISSING)
        at = np.searchsorted(self._keys, keys)
        at[at == len(self._keys)] = 0
        return np.where(self._keys[at] == keys, self._numbers[at], MISSING)

    def look(self, keys: States, resolve: Callable[[int], int]) -> Numbers:
        """The number for each of these keys; `resolve` says one that is not known."""
        found = self.find(keys)
        misses = np.flatnonzero(found < 0)
        if misses.size:
            for key in np.unique(keys[misses]).tolist():
                self.fresh[key] = resolve(key)
            self.merge()
            found[misses] = self.find(keys[misses])
        return found

    def merge(self) -> None:
        """Let what is fresh be found."""
        if self.fresh:
            keys = np.fromiter(self.fresh.keys(), np.uint64)
            numbers = np.fromiter(self.fresh.values(), np.int64)
            order = np.argsort(keys)
            self.learn(keys[order], numbers[order])
            self.fresh.clear()

    def learn(self, keys: States, numbers: Numbers) -> None:
        """Some more, which are not known yet, in the order of their keys."""
        at = np.searchsorted(self._keys, keys)
        self._keys = np.insert(self._keys, at, keys)
        self._numbers = np.insert(self._numbers, at, numbers)

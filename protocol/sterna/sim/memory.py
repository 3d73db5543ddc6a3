"""What has come of an action, looked up for very many worlds at once.

A `Memory` has what came of one action in each world in which that was found out, by what the action has read
there, see `sterna.sim.parted`. Only worlds of which nothing is known yet are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from sterna.sim.parted import PartedWorld
from sterna.sim.parts import Parts, State
from sterna.sim.recall import MISSING, Numbers, Recall, States


class Memory:
    """See the module's text.

    Args:
        parts: of all worlds.
        action: what is done with a world; a number for what came of it.
    """

    def __init__(self, parts: Parts, action: Callable[[PartedWorld], int]) -> None:
        self._parts: Final = parts
        self._action: Final = action
        # By which parts were read; what is the same in two worlds is found under the same key.
        self._ways: Final[dict[int, Recall]] = {}

    def look(self, states: States) -> Numbers:
        """What comes of the action in each of these worlds."""
        found = self._find(states)
        misses = np.flatnonzero(found < 0)
        while misses.size:
            some = states[misses]
            self._learn_all(self._different(some))
            found[misses] = self._find(some)
            misses = misses[found[misses] < 0]
        return found

    def _learn_all(self, states: States) -> None:
        """Look at each of these, unless what it would read was met in one before it."""
        known = np.zeros(len(states), np.bool_)
        groups: dict[int, _Groups] = {}
        for at, state in enumerate(states.tolist()):
            if not known[at]:
                read, number = self._learn(state)
                if read not in groups:
                    groups[read] = _Groups(self._parts.keys(states, read))
                key = int(groups[read].keys[at])
                self._ways.setdefault(read, Recall()).fresh[key] = number
                known[groups[read].places(key)] = True
        for way in self._ways.values():
            way.merge()

    def _find(self, states: States) -> Numbers:
        found = np.full(len(states), MISSING)
        left = np.arange(len(states))
        for read, way in self._ways.items():
            found[left] = way.find(self._parts.keys(states[left], read))
            left = left[found[left] < 0]
            if not left.size:
                break
        return found

    def _different(self, states: States) -> States:
        """Of these, one for all that are the same as far as the action has ever looked."""
        read = 0
        for each in self._ways:
            read |= each
        if not self._ways:
            return states[:1]
        _, first = np.unique(self._parts.keys(states, self._parts.least(read)), return_index=True)
        return states[first]

    def _learn(self, state: State) -> tuple[int, int]:
        """What is read in a world, and what comes of the action there."""
        world = PartedWorld(self._parts, state)
        number = self._action(world)
        return self._parts.least(world.read), number


class _Groups:
    """Where which keys stand in an array of them."""

    def __init__(self, keys: States) -> None:
        self.keys: Final = keys
        self._order: Final = np.argsort(keys)
        self._ordered: Final = keys[self._order]

    def places(self, key: int) -> npt.NDArray[np.intp]:
        """Where this one does."""
        first, end = (np.searchsorted(self._ordered, np.uint64(key), side) for side in _SIDES)
        return self._order[first:end]


_SIDES: Final = ("left", "right")

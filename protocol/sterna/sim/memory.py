"""What has come of an action, looked up for very many worlds at once.

A `Memory` has what came of one action in each world in which that was found out, by what the action has read
there, see `sterna.sim.parted`. Only worlds of which nothing is known yet are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

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
        keys = {read: self._parts.keys(states, read).tolist() for read in self._ways}
        for at, state in enumerate(states.tolist()):
            if not any(keys[read][at] in self._ways[read].fresh for read in keys):
                read = self._learn(state)
                if read not in keys:
                    keys[read] = self._parts.keys(states, read).tolist()
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

    def _learn(self, state: State) -> int:
        """What was read."""
        world = PartedWorld(self._parts, state)
        number = self._action(world)
        read = self._parts.least(world.read)
        self._ways.setdefault(read, Recall()).fresh[self._parts.key(state, read)] = number
        return read

"""Every interleaving of a handover, with every fault that there is, up to so many of them.

From LOADED on, one attempt and what follows from it. A state of the world has one successor for each step
that can come next; faults are steps too, as long as there are any left. States that are equal are looked at
once, whatever led to them. What makes two of them equal is computed from all that is in them.

In each state in which nothing is left to be done by anybody, what must be so in the end is checked; in each
step, what must never happen is. The machines in it are real ones, see `sterna.sim.machines`.

What is left out, because it leads nowhere new: time (a deadline is a connection that is given up at any
moment), a store that is slow or out of reach (a claim that waits), a record that is written slowly (a record
that waits), and everything before LOADED, where a failure ends in a roll-back [CON-62].
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from sterna.core.policy import Switchover
from sterna.core.tables import DestinationState, SourceState
from sterna.sim.defects import Defect
from sterna.sim.faults import Fault, Step, possible
from sterna.sim.hosts import Task
from sterna.sim.judge import Violation
from sterna.sim.makers import RecallingMakers, Shape
from sterna.sim.rest import check_rest
from sterna.sim.world import World

FAULTS: Final = (
    Fault.CUT, Fault.DEADLINE, Fault.SOURCE_KILLED, Fault.DESTINATION_KILLED, Fault.SOURCE_FROZEN,
    Fault.DESTINATION_FROZEN, Fault.SOURCE_HOLDER_KILLED, Fault.DESTINATION_HOLDER_KILLED,
    Fault.RECORD_FAILS, Fault.RECORD_LIES, Fault.MARK_FAILS, Fault.LOCKS_REFUSED, Fault.REPLY_LOST,
    Fault.CLAIM_LATE, Fault.BESIDE,
)  # fmt: skip

LOOK_S: Final = 5.0
_LOOK_STATES: Final = 2048


@dataclass(slots=True)
class Explored:
    """What an exploration has found.

    Attributes:
        store: whether there was one.
        faults: how many there could be.
        states: that were different.
        steps: that were taken from them.
        machines: how many different ones there were, of the real ones.
        ends: states in which nothing was left to be done, by where the guest was.
        violation: the first one, None if all is well.
        path: the steps that led to it.
    """

    store: bool
    faults: int
    states: int = 0
    steps: int = 0
    machines: int = 0
    seconds: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)
    violation: Violation | None = None
    path: tuple[Step, ...] = ()


def loaded(makers: RecallingMakers, *, store: bool, defects: frozenset[Defect] = frozenset()) -> World:
    """A world in which the destination has just said LOADED, and everything went well until then."""
    world = World(makers, store=store, defects=defects)
    world.begin(0)
    while not _is_loaded(world):
        world.take(world.steps()[0])
    return world


def _is_loaded(world: World) -> bool:
    states = {task.machine.state for task in _tasks(world) if task.machine is not None}
    return states == {SourceState.SEALED, DestinationState.LOADED}


def _tasks(world: World) -> Iterator[Task]:
    for host in world.hosts:
        for process in host.processes:
            yield from process.tasks


class Exploration:
    """See the module's text.

    Args:
        store: whether the hosts have a lease store.
        faults: how many there may be.
        kinds: which.
        defects: what endpoints do wrong.
        switchover: of the migration; with one by bitmap, or post-copy, pages follow the guest.
    """

    def __init__(
        self,
        *,
        store: bool,
        faults: int,
        kinds: tuple[Fault, ...] = FAULTS,
        defects: frozenset[Defect] = frozenset(),
        switchover: Switchover = "stop-and-copy",
    ) -> None:
        self.found: Final = Explored(store, faults)
        self._kinds: Final = kinds
        self._makers: Final = RecallingMakers(Shape(store, switchover=switchover))
        self._seen: Final[set[int]] = set()
        # By the number of faults that have led there.
        self._stacks: Final[list[list[_State]]] = [[] for _ in range(faults + 1)]
        self._add(loaded(self._makers, store=store, defects=defects), 0, None)

    def run(self, say: Callable[[Explored], None] = lambda _: None) -> Explored:
        """Look at every state that can be reached; stop at the first violation.

        Those that few faults lead to come first, because from there more can go wrong.

        Args:
            say: is told every few seconds how far it is.
        """
        found, started = self.found, time.monotonic()
        said = started
        for used, stack in enumerate(self._stacks):
            while stack and found.violation is None:
                self._look(stack.pop(), used)
                if found.states % _LOOK_STATES == 0 and time.monotonic() - said > LOOK_S:
                    said = time.monotonic()
                    found.seconds = said - started
                    say(found)
        found.machines = self._makers.machines
        found.seconds = time.monotonic() - started
        return found

    def _add(self, world: World, used: int, path: _Path | None) -> None:
        key = hash(world.key())
        if key not in self._seen:
            self._seen.add(key)
            self._stacks[used].append((world, path))

    def _look(self, state: _State, used: int) -> None:
        """Everything that can come next: without a fault and, if there may be more of them, with one."""
        world, path = state
        found = self.found
        found.states += 1
        steps = world.steps()
        try:
            if not steps:
                found.ends[check_rest(world).value] += 1
            for step in (*steps, *world.chances()):
                path = _Path(step, state[1])
                self._take(world, step, used, path)
            if used + 1 < len(self._stacks):
                for kind in self._kinds:
                    for step in possible(world, kind, 0):
                        path = _Path(step, state[1])
                        self._take(world, step, used + 1, path)
        except Violation as violation:
            found.violation, found.path = violation, () if path is None else path.steps()

    def _take(self, world: World, step: Step, used: int, path: _Path) -> None:
        after = world.copy()
        self.found.steps += 1
        after.take(step)
        self._add(after, used, path)


@dataclass(frozen=True, slots=True)
class _Path:
    """How a state was reached: the last step, and what came before."""

    step: Step
    before: _Path | None

    def steps(self) -> tuple[Step, ...]:
        """All of it, the first step first."""
        found: list[Step] = []
        here: _Path | None = self
        while here is not None:
            found.append(here.step)
            here = here.before
        return tuple(reversed(found))


_State: TypeAlias = tuple[World, _Path | None]


def explore(
    *,
    store: bool,
    faults: int,
    kinds: tuple[Fault, ...] = FAULTS,
    defects: frozenset[Defect] = frozenset(),
    switchover: Switchover = "stop-and-copy",
    say: Callable[[Explored], None] = lambda _: None,
) -> Explored:
    """An `Exploration`, run."""
    exploration = Exploration(store=store, faults=faults, kinds=kinds, defects=defects, switchover=switchover)
    return exploration.run(say)


def told(path: tuple[Step, ...]) -> list[str]:
    """A path in words, a line a step."""
    return [" ".join((step[0], *map(str, step[1:]))) for step in path]

"""Every interleaving of a handover, with every fault that there is, up to so many of them.

From LOADED on, or from the first round on (`rounds`), one migration and what follows from it. A state of the
world has one successor for each step that can come next; faults are steps too, as long as there are any left.
States that are equal are looked at once, whatever led to them. What makes two of them equal is computed from
all that is in them.

In each state in which nothing is left to be done by anybody, what must be so in the end is checked; in each
step, what must never happen is. The machines in it are real ones, see `sterna.sim.machines`.

Sessions may outlive connections (`resume`). Then a source takes its session up after a loss. While its guest
is still here, that runs on, an instruction of it is executed if it was paused, and a new attempt begins with
what the destination does not hold [RES-8] [RES-9]; a process of the source that is killed there takes the
session along. Once the guest runs at the destination, one that was killed and started again goes on from what
its holder keeps [RES-19]. A destination that was killed and started again has nothing but new room [RES-7];
after RUNNING it finds in its holder what is installed, and lets the source send the rest [RES-16]. A source
that is refused tries again when there is something new, or its session is kept, or it was turned away for a
moment, and nobody does anything: that stands for trying again after a while.

Whoever takes a session up goes on from what is left of it, and not from all that was ever said in it. So two
losses that leave the same are one from there on, see `sterna.sim.kept`.

The first round has four groups, of which one may arrive when the connection is lost behind it. With a
switchover by bitmap two groups follow, one of them zeros, in memory in which a round has left other pages.
Either may be installed when the connection is lost or the destination killed. With one by post-copy all pages
follow, and are one group.

What is left out, because it leads nowhere new: time (a deadline is a connection that is given up at any
moment), a store that is slow or out of reach (a claim that waits), a record that is written slowly (a record
that waits), and everything before the first round, where a failure ends in a roll-back [CON-62]. A guest
writes nothing while a round is read, but behind it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np

from sterna.core.policy import Switchover
from sterna.core.tables import DestinationState, SourceState
from sterna.core.tables import State as MachineState
from sterna.sim.defects import Defect
from sterna.sim.faults import Fault, Step
from sterna.sim.hosts import Task
from sterna.sim.judge import Violation
from sterna.sim.kinds import ROUNDS_WIDTHS, WIDTHS
from sterna.sim.known import Known
from sterna.sim.makers import RecallingMakers, Shape
from sterna.sim.parts import State
from sterna.sim.recall import States
from sterna.sim.spaces import Parted, Plain, Space
from sterna.sim.world import World

FAULTS: Final = (
    Fault.CUT, Fault.TORN, Fault.DEADLINE, Fault.SOURCE_KILLED, Fault.DESTINATION_KILLED, Fault.SOURCE_FROZEN,
    Fault.DESTINATION_FROZEN, Fault.SOURCE_HOLDER_KILLED, Fault.DESTINATION_HOLDER_KILLED,
    Fault.RECORD_FAILS, Fault.RECORD_LIES, Fault.MARK_FAILS, Fault.LOCKS_REFUSED, Fault.REPLY_LOST,
    Fault.CLAIM_LATE, Fault.BESIDE,
)  # fmt: skip

KINDS: Final = (*FAULTS, Fault.OPENED_ANEW)
"""Those, and what is tried with a few of them only: it begins a whole migration more."""

LOOK_S: Final = 5.0
_WRITTEN: Final = 3
"""So many instructions are executed in the first round. They write two groups, one of them zeros."""
_AT_ONCE: Final = 1 << 17
"""So many states are looked at together."""


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


def sent(makers: RecallingMakers, *, store: bool, defects: frozenset[Defect] = frozenset()) -> World:
    """A world in which the first round is on its way, and the guest has written since it was read.

    With a switchover by post-copy there is no round: then the switchover has begun.
    """
    world = World(makers, store=store, defects=defects)
    world.begin(0)
    _go(world, {SourceState.ACKING, SourceState.PREPARING}, {DestinationState.STANDBY})
    for _ in range(_WRITTEN):
        world.judge.executes(world.hosts[0].holders[0])
    return world


def loaded(makers: RecallingMakers, *, store: bool, defects: frozenset[Defect] = frozenset()) -> World:
    """The same once the destination has just said LOADED, and everything went well until then."""
    world = sent(makers, store=store, defects=defects)
    _go(world, {SourceState.SEALED}, {DestinationState.LOADED})
    return world


def _go(world: World, *until: Container[MachineState]) -> None:
    """Take one step after the other until each machine is in one of these states, the source's first."""
    while not all(state in wanted for state, wanted in zip(_states(world), until, strict=True)):
        world.take(world.steps()[0])


def _states(world: World) -> list[MachineState]:
    return [task.machine.state for task in _tasks(world) if task.machine is not None]


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
        resume: whether sessions outlive connections, and processes [RES-7] [RES-16] [RES-19].
        rounds: begin in the first round, and not where the destination has just said LOADED.
        plain: every step is carried out in every world, see `sterna.sim.spaces`.
    """

    def __init__(
        self,
        *,
        store: bool,
        faults: int,
        kinds: tuple[Fault, ...] = FAULTS,
        defects: frozenset[Defect] = frozenset(),
        switchover: Switchover = "stop-and-copy",
        resume: bool = False,
        rounds: bool = False,
        plain: bool = False,
    ) -> None:
        self.found: Final = Explored(store, faults)
        self._makers: Final = RecallingMakers(Shape(store, resume=resume, switchover=switchover))
        world = (sent if rounds else loaded)(self._makers, store=store, defects=defects)
        widths = ROUNDS_WIDTHS if rounds else WIDTHS
        self._space: Final[Space] = Plain(world, kinds) if plain else Parted(world, kinds, widths)
        # Every state that was reached, and those in rows: with so many faults, so many steps behind the last.
        self._known: Final = Known()
        self._reached: Final[list[list[States]]] = []
        self._say: Callable[[Explored], None] = lambda _: None
        self._started = self._said = time.monotonic()

    def run(self, say: Callable[[Explored], None] = lambda _: None) -> Explored:
        """Look at every state that can be reached; stop at the first violation.

        First come all those that need no fault, then those that need one, and so on: so each is looked at
        with as many faults left as there can be.

        Args:
            say: is told every few seconds how far it is.
        """
        self._say, self._started, self._said = say, time.monotonic(), time.monotonic()
        found = self.found
        try:
            states = self._known.add(np.array([self._space.first], np.uint64))
            for left in reversed(range(found.faults + 1)):
                self._reached.append([states])
                self._follow(last=not left)
                states = self._go_wrong() if left else states
        except Violation as violation:
            found.violation, found.path = violation, self._path()
        self._count()
        return found

    def _follow(self, *, last: bool) -> None:
        """Everything that can come next without a fault, and next, until there is nothing new."""
        rows = self._reached[-1]
        while rows[-1].size:
            rows.append(self._new(rows[-1], partial(self._space.after, last=last)))

    def _go_wrong(self) -> States:
        """What comes of one fault in any state in which there have been most so far."""
        return np.concatenate([self._new(row, self._space.faulty) for row in self._reached[-1]])

    def _new(self, states: States, become: Callable[[States], States]) -> States:
        """What these become, and has not been reached before."""
        found = []
        for start in range(0, len(states), _AT_ONCE):
            self._tell()
            found.append(self._known.add(become(states[start : start + _AT_ONCE])))
        return np.concatenate([*found, np.zeros(0, np.uint64)])

    def _tell(self) -> None:
        if time.monotonic() - self._said > LOOK_S:
            self._said = time.monotonic()
            self._count()
            self._say(self.found)

    def _count(self) -> None:
        self.found.states = len(self._known)
        self.found.steps = self._space.steps
        self.found.ends = self._space.ends
        self.found.machines = self._makers.machines
        self.found.seconds = time.monotonic() - self._started

    def _path(self) -> tuple[Step, ...]:
        """How the state that is looked at was reached, and what was done in it if anything was."""
        state, last = self._space.doing
        steps = [] if last is None else [last]
        while state != self._space.first:
            state, step = self._way(state)
            steps.append(step)
        return tuple(steps[::-1])

    def _way(self, to: State) -> tuple[State, Step]:
        """The state from which this one was reached, and by which step."""
        faults, row = next(
            (faults, number)
            for faults, rows in enumerate(self._reached)
            for number, row in enumerate(rows)
            if (row == np.uint64(to)).any()
        )
        rows = [self._reached[faults][row - 1]] if row else self._reached[faults - 1]
        parts = (part for each in rows for part in np.array_split(each, len(each) // _AT_ONCE + 1))
        return next(way for part in parts if (way := self._space.way(part, to, faulty=not row)))


def explore(
    *,
    store: bool,
    faults: int,
    kinds: tuple[Fault, ...] = FAULTS,
    defects: frozenset[Defect] = frozenset(),
    switchover: Switchover = "stop-and-copy",
    resume: bool = False,
    rounds: bool = False,
    plain: bool = False,
    say: Callable[[Explored], None] = lambda _: None,
) -> Explored:
    """An `Exploration`, run."""
    return Exploration(
        store=store,
        faults=faults,
        kinds=kinds,
        defects=defects,
        switchover=switchover,
        resume=resume,
        rounds=rounds,
        plain=plain,
    ).run(say)


def told(path: tuple[Step, ...]) -> list[str]:
    """A path in words, a line a step."""
    return [" ".join((step[0], *map(str, step[1:]))) for step in path]

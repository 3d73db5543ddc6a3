"""All worlds that a world can become: what comes next in each, and which of them are equal.

An exploration needs a number for each world, and the numbers of those that come next. There are two ways to
have them. `Parted` knows each part once and does each step once for all worlds in which it does the same, see
`sterna.sim.parted`; what it is asked for, it finds for many thousand worlds at once. `Plain` takes every step
in a copy of the world, and two worlds are one when their keys hash alike. It is many times slower; it is
there so that the other can be compared with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final, NamedTuple, Protocol, TypeAlias

import numpy as np

from sterna.sim.faults import Fault, Step, possible, possible_at, possible_between
from sterna.sim.kinds import WIDTHS, Column, Flags, Table, Truths, Widths
from sterna.sim.memory import Memory
from sterna.sim.parted import PartedWorld
from sterna.sim.parts import HOST, OTHERS_REST, RESTS, TASKS_MAX, THERE, Parts, State
from sterna.sim.recall import Numbers, Recall, States
from sterna.sim.rest import check_rest
from sterna.sim.world import World, are_idle

SOURCE: Final = 0
"""The host that the guest comes from."""


class Space(Protocol):
    """See the module's text.

    Attributes:
        first: the world to begin with.
        doing: the world that is looked at, and the step that is being taken in it; None for its end.
        steps: that were taken so far.
        ends: worlds that were met in which nothing comes next, by where the guest was.
    """

    first: State
    doing: tuple[State, Step | None]
    steps: int
    ends: Counter[str]

    def after(self, states: States, *, last: bool) -> States:
        """What can come next without a fault; `last`: and nobody will ask for those with one.

        Raises:
            Violation: a step, `doing`, must not have happened; or what there is when all is over.
        """
        ...

    def faulty(self, states: States) -> States:
        """What can come of one more fault.

        Raises:
            Violation: as above.
        """
        ...

    def way(self, states: States, to: State, *, faulty: bool) -> tuple[State, Step] | None:
        """From which of these one comes to a state, and by which step."""
        ...


class Choice(NamedTuple):
    """What can be done next as far as some parts of a world go.

    Attributes:
        actions: by their numbers: steps and chances.
        steps: whether there are steps among them; `idle`: none but that somebody wakes.
    """

    actions: tuple[int, ...]
    steps: bool
    idle: bool


class Choices:
    """Every choice that was met, by number, and each one's actions in one row behind those of others."""

    def __init__(self) -> None:
        self._table: Final = Table[Choice]()
        self._first, self._count, self._actions = Column(), Column(), Column()
        self._steps, self._idle = Column(), Column()

    def number(self, choice: Choice) -> int:
        """Of a choice."""
        number = self._table.number(choice, choice)
        if number == len(self._first):
            self._first.extend([len(self._actions)])
            self._count.extend([len(choice.actions)])
            self._actions.extend(choice.actions)
            self._steps.extend([choice.steps])
            self._idle.extend([choice.idle])
        return number

    def are_steps(self, choices: Numbers) -> Numbers:
        """1 for each of them that has steps."""
        return self._steps.numbers[choices].astype(np.int64)

    def are_idle(self, choices: Numbers) -> Numbers:
        """1 for each of them that has none but that somebody wakes."""
        return self._idle.numbers[choices].astype(np.int64)

    def spread(self, places: Numbers, choices: Numbers) -> tuple[Numbers, Numbers]:
        """Each action of each choice, and the place of that choice beside it."""
        count = self._count.numbers[choices].astype(np.int64)
        first = self._first.numbers[choices].astype(np.int64)
        before = np.cumsum(count) - count
        at = np.arange(count.sum()) + np.repeat(first - before, count)
        return np.repeat(places, count), self._actions.numbers[at].astype(np.int64)


class Changes:
    """Every change that a step has made, by number, and what a world is after one."""

    def __init__(self, parts: Parts) -> None:
        self._parts: Final = parts
        self._table: Final = Table[None]()
        self._patches: Final = tuple([Column() for _ in parts.kinds])
        self._patched: Final = tuple([Recall() for _ in parts.kinds])

    def number(self, patches: tuple[int, ...]) -> int:
        """Of a change, as `PartedWorld.changes` tells it."""
        number = self._table.number(patches, None)
        if number == len(self._patches[0]):
            for column, patch in zip(self._patches, patches, strict=True):
                column.extend([patch])
        return number

    def done(self, states: States, changes: Numbers) -> States:
        """These worlds, each after the change beside it."""
        after = states.copy()
        for place, kind in enumerate(self._parts.kinds):
            patches = self._patches[place].numbers[changes]
            some = np.flatnonzero(patches)
            if some.size:
                things = states[some] >> kind.shift & kind.mask
                keys = patches[some] << _THING | things
                new = self._patched[place].look(keys, partial(self._patch, place)).astype(np.uint64)
                after[some] += (new - things) << kind.shift
        return after

    def _patch(self, place: int, key: int) -> int:
        return self._parts.patched(place, key & (1 << int(_THING)) - 1, (key >> int(_THING)) - 1)


_THING: Final = np.uint64(24)
_Steps: TypeAlias = Iterable[Step]
_Settles: TypeAlias = Callable[[PartedWorld, int], None]


class Parted:
    """See the module's text.

    Args:
        world: to begin with.
        kinds: of faults.
        widths: see `Parts`.
    """

    def __init__(self, world: World, kinds: tuple[Fault, ...], widths: Widths = WIDTHS) -> None:
        self._parts: Final = Parts(world, widths)
        self._choices: Final = Choices()
        self._changes: Final = Changes(self._parts)
        self._steps: Final = Table[Step]()
        self._actions: Final[list[Memory]] = []
        self.first = self._parts.first
        self.doing: tuple[State, Step | None] = self.first, None
        self.steps = 0
        self.ends: Counter[str] = Counter()
        self._next: Final = [self._choice(partial(_at_host, host=host)) for host in (0, 1)]
        self._next.append(self._choice(lambda world: (world.steps_on_lines(), world.chances_on_lines())))
        self._next.append(self._choice(lambda world: ((), world.chances_at_store())))
        self._again: Final = [self._choice(partial(_again_at, host=host)) for host in (0, 1)]
        # A process beside another one befalls one host, and depends on both.
        alone = tuple(kind for kind in kinds if kind is not Fault.BESIDE)
        beside = tuple(kind for kind in kinds if kind is Fault.BESIDE)
        self._wrong: Final = [self._choice(partial(_wrong_between, kinds=alone))]
        for host, some in ((0, alone), (0, beside), (1, alone), (1, beside)):
            if some:
                self._wrong.append(self._choice(partial(_wrong_at, host=host, kinds=some)))
        self._settling: Final = [
            (kind, Flags(kind, places, what), Memory(self._parts, partial(self._settles, how=how, host=host)))
            for host, kind in enumerate(self._parts.kinds[: len(HOST)])
            for places, what, how in _SETTLING
        ]

    def _choice(self, what: Callable[[World], tuple[_Steps, _Steps]]) -> Memory:
        def found(world: PartedWorld) -> int:
            steps, chances = map(tuple, what(world))
            actions = tuple([self._action(step) for step in steps + chances])
            return self._choices.number(Choice(actions, bool(steps), are_idle(steps)))

        return Memory(self._parts, found)

    def _action(self, step: Step) -> int:
        number = self._steps.number(step, step)
        if number == len(self._actions):
            self._actions.append(Memory(self._parts, partial(self._takes, step=step)))
        return number

    def _takes(self, world: PartedWorld, step: Step) -> int:
        self.doing = world.state, step
        world.take(step)
        return self._changes.number(world.changes())

    def _settles(self, world: PartedWorld, how: _Settles, host: int) -> int:
        how(world, host)
        return self._changes.number(world.changes())

    def _may(self, states: States) -> tuple[Numbers, Numbers, States]:
        """All that can come next: places of worlds, and an action beside each; and worlds without steps."""
        places = np.arange(len(states))
        choices = [memory.look(states) for memory in self._next]
        steps = np.sum([self._choices.are_steps(each) for each in choices], axis=0)
        idle = np.flatnonzero(np.all([self._choices.are_idle(each) for each in choices], axis=0))
        found = [self._choices.spread(places, each) for each in choices]
        for memory in self._again if idle.size else ():
            more = memory.look(states[idle])
            steps[idle] += self._choices.are_steps(more)
            found.append(self._choices.spread(idle, more))
        at, actions = (np.concatenate(each) for each in zip(*found, strict=True))
        return at, actions, states[steps == 0]

    def _may_go_wrong(self, states: States) -> tuple[Numbers, Numbers]:
        places = np.arange(len(states))
        found = [self._choices.spread(places, memory.look(states)) for memory in self._wrong]
        at, actions = (np.concatenate(each) for each in zip(*found, strict=True))
        return at, actions

    def _take(self, before: States, actions: Numbers) -> States:
        """Each of these worlds, after the action beside it."""
        self.steps += len(actions)
        changes = np.empty(len(actions), np.int64)
        order = np.argsort(actions.astype(np.uint16), kind="stable")
        borders = np.flatnonzero(np.diff(actions[order])) + 1
        for some in np.split(order, borders) if order.size else ():
            changes[some] = self._actions[int(actions[some[0]])].look(before[some])
        return self._settled(self._changes.done(before, changes))

    def _settled(self, states: States) -> States:
        """The same worlds, in which tasks have closed up, and nobody keeps what he never sees again."""
        for kind, flags, memory in self._settling:
            some = flags.where(states >> kind.shift & kind.mask)
            if some.size:
                states[some] = self._changes.done(states[some], memory.look(states[some]))
        return states

    def after(self, states: States, *, last: bool) -> States:
        """See `Space`."""
        at, actions, over = self._may(states)
        for state in over.tolist():
            self.doing = state, None
            self.ends[check_rest(PartedWorld(self._parts, state)).value] += 1
        return self._take(states[at], actions)

    def faulty(self, states: States) -> States:
        """See `Space`."""
        at, actions = self._may_go_wrong(states)
        return self._take(states[at], actions)

    def way(self, states: States, to: State, *, faulty: bool) -> tuple[State, Step] | None:
        """See `Space`."""
        at, actions = self._may_go_wrong(states) if faulty else self._may(states)[:2]
        there = np.flatnonzero(self._take(states[at], actions) == np.uint64(to))
        return (int(states[at[there[0]]]), self._steps.parts[actions[there[0]]]) if there.size else None


def _has_gap(there: Truths) -> Truths:
    """Whether somebody comes behind a place where nobody is."""
    return _is_any(there[1:] & ~there[:-1])


def _is_any(flags: Truths) -> Truths:
    found: Truths = np.logical_or.reduce(flags)
    return found


_SETTLING: Final[tuple[tuple[tuple[int, ...], Callable[[Truths], Truths], _Settles], ...]] = (
    (tuple(range(THERE, THERE + TASKS_MAX)), _has_gap, PartedWorld.close_up),
    ((RESTS, OTHERS_REST), _is_any, PartedWorld.forget),
)
"""What is done at a host after each step: of which parts it goes by, of what is so about them, and it."""


def _at_host(world: World, host: int) -> tuple[_Steps, _Steps]:
    return world.steps_at(host), world.chances_at(host)


def _again_at(world: World, host: int) -> tuple[_Steps, _Steps]:
    return world.again_at(host), ()


def _wrong_at(world: World, host: int, kinds: Sequence[Fault]) -> tuple[_Steps, _Steps]:
    return (step for kind in kinds for step in possible_at(world, kind, SOURCE, host)), ()


def _wrong_between(world: World, kinds: Sequence[Fault]) -> tuple[_Steps, _Steps]:
    return (step for kind in kinds for step in possible_between(world, kind)), ()


class Plain:
    """See the module's text.

    Args:
        world: to begin with.
        kinds: of faults.
    """

    def __init__(self, world: World, kinds: tuple[Fault, ...]) -> None:
        self.first = _hashed(world)
        self.doing: tuple[State, Step | None] = self.first, None
        self.steps = 0
        self.ends: Counter[str] = Counter()
        self._kinds: Final = kinds
        self._worlds: Final = {self.first: world}
        self._ways: Final[dict[State, tuple[State, Step]]] = {}

    def after(self, states: States, *, last: bool) -> States:
        """See `Space`."""
        return np.fromiter(self._after(states, last=last), np.uint64)

    def _after(self, states: States, *, last: bool) -> Iterator[State]:
        for state in states.tolist():
            world = self._worlds.pop(state) if last else self._worlds[state]
            steps = world.steps()
            if not steps:
                self.doing = state, None
                self.ends[check_rest(world).value] += 1
            yield from self._take(state, world, [*steps, *world.chances()])

    def faulty(self, states: States) -> States:
        """See `Space`."""
        return np.fromiter(self._faulty(states), np.uint64)

    def _faulty(self, states: States) -> Iterator[State]:
        for state in states.tolist():
            world = self._worlds.pop(state)
            steps = [step for kind in self._kinds for step in possible(world, kind, SOURCE)]
            yield from self._take(state, world, steps)

    def _take(self, before: State, world: World, steps: list[Step]) -> Iterator[State]:
        for step in steps:
            self.steps += 1
            self.doing = before, step
            after = world.copy()
            after.take(step)
            state = _hashed(after)
            if state not in self._ways and state != self.first:
                self._worlds[state] = after
                self._ways[state] = before, step
            yield state

    def way(self, states: States, to: State, *, faulty: bool) -> tuple[State, Step] | None:
        """See `Space`. The first one, whatever it is asked for."""
        return self._ways.get(to)


def _hashed(world: World) -> State:
    return hash(world.key()) & (1 << 64) - 1

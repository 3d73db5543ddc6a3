"""All worlds that a world can become: what comes next in each, and which of them are equal.

An exploration needs a number for each world, and the numbers of those that come next. There are two ways to
have them. `Parted` knows each part once and does each step once for all worlds in which it does the same, see
`sterna.sim.parts`. `Plain` takes every step in a copy of the world, and two worlds are one when their keys
hash alike. It is several times slower; it is there so that the other can be compared with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Final, NamedTuple, Protocol, TypeAlias

from sterna.sim.faults import Fault, Step, possible, possible_at, possible_between
from sterna.sim.parts import At, Memory, Parts, State
from sterna.sim.rest import check_rest
from sterna.sim.world import World, are_idle

SOURCE: Final = 0
"""The host that the guest comes from."""


class Space(Protocol):
    """See the module's text.

    Attributes:
        first: the world to begin with.
        doing: the step that is being taken, or was last; None while a world is looked at.
        ends: worlds that were met in which nothing comes next, by where the guest was.
    """

    first: State
    doing: Step | None
    ends: Counter[str]

    def after(self, state: State, *, last: bool) -> Iterable[State]:
        """What can come next without a fault; `last`: and nobody will ask for those with one.

        Raises:
            Violation: a step, `doing`, must not have happened; or what there is when all is over.
        """
        ...

    def faulty(self, state: State) -> Iterable[State]:
        """What can come of one more fault.

        Raises:
            Violation: as above.
        """
        ...

    def path(self, states: list[State]) -> list[Step]:
        """The steps that lead from each of these to the next one; the first one is `first`."""
        ...


class Action(Memory[tuple[int, bool]]):
    """A step, and what is known to come of it."""

    __slots__ = ("step",)

    def __init__(self, step: Step) -> None:
        super().__init__(lambda world: world.take(step))
        self.step = step


class Choice(NamedTuple):
    """What can be done next as far as some parts of a world go.

    Attributes:
        actions: steps and chances.
        steps: whether there are steps among them; `idle`: none but that somebody wakes.
    """

    actions: tuple[Action, ...]
    steps: bool
    idle: bool


_Steps: TypeAlias = Iterable[Step]


class Parted:
    """See the module's text.

    Args:
        world: to begin with.
        kinds: of faults.
    """

    def __init__(self, world: World, kinds: tuple[Fault, ...]) -> None:
        self._parts: Final = Parts(world)
        self._actions: Final[dict[Step, Action]] = {}
        self.first = self._parts.first
        self.doing: Step | None = None
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
            self._wrong.append(self._choice(partial(_wrong_at, host=host, kinds=some)))

    def _choice(self, what: Callable[[World], tuple[_Steps, _Steps]]) -> Memory[Choice]:
        def found(world: World) -> Choice:
            steps, chances = map(tuple, what(world))
            actions = [self._actions.setdefault(step, Action(step)) for step in steps + chances]
            return Choice(tuple(actions), bool(steps), are_idle(steps))

        return Memory(found)

    def _may(self, at: At) -> tuple[tuple[Action, ...], bool]:
        """All that can come next, and whether there is a step among it."""
        found: tuple[Action, ...] = ()
        steps, idle = False, True
        for choice in self._next:
            actions, some, quiet = self._parts.look(choice, at)
            found += actions
            steps |= some
            idle &= quiet
        for again in self._again if idle else ():
            actions, some, _ = self._parts.look(again, at)
            found += actions
            steps |= some
        return found, steps

    def _may_go_wrong(self, at: At) -> tuple[Action, ...]:
        found: tuple[Action, ...] = ()
        for choice in self._wrong:
            found += self._parts.look(choice, at).actions
        return found

    def _take(self, actions: tuple[Action, ...], state: State, at: At) -> list[State]:
        take, found = self._parts.take, []
        for action in actions:
            self.doing = action.step
            found.append(take(action, state, at))
        return found

    def after(self, state: State, *, last: bool) -> list[State]:
        """See `Space`."""
        at = self._parts.at(state)
        actions, steps = self._may(at)
        if not steps:
            self.doing = None
            self.ends[check_rest(self._parts.whole(state)).value] += 1
        return self._take(actions, state, at)

    def faulty(self, state: State) -> list[State]:
        """See `Space`."""
        at = self._parts.at(state)
        return self._take(self._may_go_wrong(at), state, at)

    def path(self, states: list[State]) -> list[Step]:
        """See `Space`."""
        found = []
        for before, after in pairwise(states):
            at = self._parts.at(before)
            actions = (*self._may(at)[0], *self._may_go_wrong(at))
            found.append(next(each.step for each in actions if self._parts.take(each, before, at) == after))
        return found


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
        self.first = hash(world.key())
        self.doing: Step | None = None
        self.ends: Counter[str] = Counter()
        self._kinds: Final = kinds
        self._world: Final = world
        self._worlds: Final = {self.first: world}

    def after(self, state: State, *, last: bool) -> Iterator[State]:
        """See `Space`."""
        world = self._worlds.pop(state) if last else self._worlds[state]
        steps = world.steps()
        if not steps:
            self.doing = None
            self.ends[check_rest(world).value] += 1
        yield from self._take(world, [*steps, *world.chances()])

    def faulty(self, state: State) -> Iterator[State]:
        """See `Space`."""
        world = self._worlds.pop(state)
        return self._take(world, self._faults(world))

    def _faults(self, world: World) -> list[Step]:
        return [step for kind in self._kinds for step in possible(world, kind, SOURCE)]

    def _take(self, world: World, steps: list[Step]) -> Iterator[State]:
        for step in steps:
            self.doing = step
            after = world.copy()
            after.take(step)
            state = hash(after.key())
            self._worlds.setdefault(state, after)
            yield state

    def path(self, states: list[State]) -> list[Step]:
        """See `Space`."""
        world, found = self._world, []
        for state in states[1:]:
            for step in (*world.steps(), *world.chances(), *self._faults(world)):
                after = world.copy()
                after.take(step)
                if hash(after.key()) == state:
                    found.append(step)
                    world = after
                    break
        return found

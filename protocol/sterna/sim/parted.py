"""A world that is fetched part by part, and knows which parts it was asked for.

What happens in a step depends on some of a world's parts only; which, is not declared but observed. A
`PartedWorld` has no parts at first. Whatever the step asks for is fetched, and that is noted: these parts the
step has read, and of all others it has changed none without having been the same whatever they were. The code
of a step is a function of what it has read, so in every other world with the same of these parts it reads the
same and does the same. This is why nothing is lost when a step is not carried out a second time.

Three things would make parts differ that are alike, and are seen to here:

- Numbers of processes. In a `World` no two have the same, ever. Here the lowest one that means nothing on a
  host is taken again, an endpoint has the same one always, and what has named the dead names nobody any more.
- Numbers of tasks. Here they have no gaps: when one is done, those after it close up (`close_up`). For the
  first process of a host that is not a part of the step: what those after it do makes no difference to it.
- What recovery has seen when it came to its end (`Process.rest`). It matters only whether that is what is to
  be seen now. If it never can be again - records and slots only become more, the dead stay dead - nothing is
  kept of it (`forget`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final, cast, overload

from sterna.core.records import Claiming
from sterna.sim.fetched import FetchedHost
from sterna.sim.hosts import NEVER, NOBODY, Guests, Host, Line, Task
from sterna.sim.parts import (
    CLAIMED,
    GUESTS,
    JUDGE,
    LINES,
    LINES_MAX,
    READS,
    RECORDS,
    STORE,
    Parts,
    State,
    first_number,
)
from sterna.sim.world import World

_NO_PATCH: Final = 0


class PartedWorld(World):
    """See the module's text.

    Attributes:
        state: its number.
        read: a bit for each part that was fetched.
    """

    def __init__(self, parts: Parts, state: State) -> None:
        self.__dict__.update(parts.shared, ends=[])
        self.state: Final = state
        self.read = 0
        self._parts = parts
        self._things = parts.things(state)
        self._held: list[FetchedHost | None] = [None, None]
        self._looks: list[FetchedHost | None] = [None, None]
        self._lines: dict[int, Line | None] = {}
        self.hosts = _Hosts(self)

    def fetch(self, thing: int, place: int) -> object:
        """A part, or what is seen of one."""
        self.read |= 1 << READS * thing + place
        return self._parts.kinds[thing].tables[place].parts[self._things[thing][place]]

    def __getattr__(self, name: str) -> object:
        """What is asked for, as a copy that may be changed; from then on it is there."""
        match name:
            case "store":
                store = cast("Any", self.fetch(STORE, 0))
                found = None if store is None else store.copy()
            case "judge":
                found = cast("Any", self.fetch(JUDGE, 0)).copy()
            case "lines":
                # Not kept: what is found is, and connections come and go.
                lines = map(self.line, range(1, LINES_MAX + 1))
                return [each for each in lines if each is not None]
            case _:
                raise AttributeError(name)
        self.__dict__[name] = found
        return cast("object", found)

    # ---- connections ----

    def line(self, number: int) -> Line | None:
        """See `World`. A copy that may be changed."""
        if not 0 < number <= LINES_MAX:
            return None
        if number not in self._lines:
            line = cast("Line | None", self.fetch(LINES, number - 1))
            self._lines[number] = line and line.copy()
        return self._lines[number]

    def line_numbers(self) -> set[int]:
        """See `World`."""
        return {number for number in range(1, LINES_MAX + 1) if self._is_there(number)}

    def _is_there(self, number: int) -> bool:
        if number in self._lines:
            return self._lines[number] is not None
        return bool(self.fetch(LINES, LINES_MAX + number - 1))

    def add_line(self, line: Line) -> None:
        """See `World`."""
        if line.number > LINES_MAX:
            raise OverflowError(f"more than {LINES_MAX} connections: explore with fewer faults")
        self._lines[line.number] = line

    def forget_line(self, line: Line) -> None:
        """See `World`."""
        self._lines[line.number] = None

    # ---- hosts ----

    def host(self, number: int) -> FetchedHost:
        """A host to look at."""
        host = self._held[number] or self._looks[number]
        if host is None:
            host = self._looks[number] = FetchedHost(number, partial(self.fetch, number), own=False)
        return host

    def own(self, number: int) -> FetchedHost:
        """A host that is about to change."""
        host = self._held[number]
        if host is None:
            host = self._held[number] = FetchedHost(number, partial(self.fetch, number), own=True)
        return host

    def frozen(self, number: int, process: int) -> bool | None:
        """See `World`."""
        found = self.host(number).process(process)
        return None if found is None else found.frozen

    def guests(self, number: int) -> Guests:
        """What there is of the guest at a host, without having looked at all of it."""
        host = self._held[number]
        if host is not None and host.has("holders"):
            holders = tuple(host.holders)
        else:
            holders = cast("Any", self.fetch(number, GUESTS))
        if host is not None and host.has("history"):
            claimed = frozenset([each.epoch for each in host.history.each(Claiming)])
        else:
            claimed = cast("Any", self.fetch(number, CLAIMED))
        return Guests(holders, claimed)

    def next_process(self, number: int, *, beside: bool) -> int:
        """The lowest one that means nothing here; the very lowest is for an endpoint."""
        host = self.host(number)
        named = {each.number for each in host.processes} | {host.lock}
        for holder in host.holders:
            named |= {holder.controller, holder.granter}
        lowest = first_number(number) + 2 * beside
        return next(each for each in range(lowest, lowest + 2 * len(named) + 2, 2) if each not in named)

    def kill(self, number: int, process: int) -> None:
        """Nothing names the dead any more."""
        super().kill(number, process)
        for holder in self.own(number).holders:
            if holder.granter == process:
                holder.granter = NOBODY

    def forget(self, number: int) -> None:
        """What recovery at a host has seen, if it is never to be seen again."""
        host = self.own(number)
        slots, peer = None if self.store is None else len(self.store.slots), self.front(1 - number)
        records = cast("int", self.fetch(number, RECORDS))  # its history does not change here
        for process in host.processes:
            if process.rest and not process.rest.may_be_again(records, slots, peer):
                process.rest = None
            if process.refused and not process.refused.may_be_again(records, slots, peer):
                process.refused = NEVER

    def close_up(self, number: int) -> None:
        """The tasks of the first process of a host, if there is a gap in their numbers."""
        self.own(number).close_up(self._renamed)

    # ---- what has become of it ----

    def changes(self) -> tuple[int, ...]:
        """For each thing of the world, the number of its change, counted from 1; 0 for none."""
        for host in self._held:
            if host is not None:
                host.close_up_others(self._renamed)
        found = [
            _NO_PATCH if host is None else self._patch(at, host.parts()) for at, host in enumerate(self._held)
        ]
        found.append(self._patch(LINES, ((number - 1, line) for number, line in self._lines.items())))
        for place, name in ((STORE, "store"), (JUDGE, "judge")):
            found.append(self._patch(place, [(0, vars(self)[name])]) if name in vars(self) else _NO_PATCH)
        return tuple(found)

    def _renamed(self, host: int, process: int, task: Task, number: int) -> None:
        """A task has another number from now on."""
        before, now = (host, process, task.number), (host, process, number)
        task.number = number
        line = self.line(task.line)
        if line is not None:
            line.ends = (now, line.ends[1]) if line.ends[0] == before else (line.ends[0], now)

    def _patch(self, thing: int, parts: Iterable[tuple[int, object]]) -> int:
        kind, changed = self._parts.kinds[thing], []
        for place, part in parts:
            number = kind.part(place, part)
            was_read = self.read >> READS * thing + place & 1
            if not was_read or number != self._things[thing][place]:
                changed.append((place, number))
        return self._parts.patch(thing, tuple(sorted(changed))) + 1 if changed else _NO_PATCH


class _Hosts(Sequence[Host]):
    """Both hosts of a world in parts, each fetched when it is asked for."""

    def __init__(self, world: PartedWorld) -> None:
        self._world: Final = world

    @overload
    def __getitem__(self, number: int) -> Host: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[Host]: ...

    def __getitem__(self, number: int | slice) -> Host | Sequence[Host]:
        assert isinstance(number, int)
        return self._world.host(number)

    def __iter__(self) -> Iterator[Host]:
        return iter((self._world.host(0), self._world.host(1)))

    def __len__(self) -> int:
        return 2

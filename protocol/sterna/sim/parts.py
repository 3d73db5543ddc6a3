"""A world in parts, of which each is looked at once.

A world is two hosts, what others see of each, the store, the connections and the judge. There are few
different ones of each, and very many worlds that are made of them. So each part has a number, a world is the
numbers of its parts, and what was found out about a few parts holds in every world that has these.

What happens in a step depends on some of the parts only; which, is not declared anywhere but observed. A
`PartedWorld` has no parts at first. Whatever the step asks for is fetched, and that is noted: these parts the
step has read, and it has changed no others. The code of a step is a function of what it has read, so in every
other world with the same of these parts it reads the same and does the same. This is why nothing is lost: no
step is left out and no order of steps, they only are not carried out a second time.

Two things would make parts differ that are alike, and are seen to here:

- Numbers of processes. In a `World` no two have the same, ever. Here the lowest one that means nothing on a
  host is taken again, and what has named a dead process names nobody any more.
- What recovery has seen when it came to its end (`Process.rest`). It matters only whether that is what is to
  be seen now. If it never can be again - records and slots only become more, the dead stay dead - nothing is
  kept of it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from operator import itemgetter
from typing import Final, Generic, TypeAlias, TypeVar, overload

from sterna.sim.hosts import Front, Guests, Host, Line, Process
from sterna.sim.judge import Judge
from sterna.sim.store import SlotStore
from sterna.sim.world import World

T = TypeVar("T")
State: TypeAlias = int
"""A world: the numbers of its parts, one beside the other."""

At: TypeAlias = tuple[int, int, int, int, int, int, int, int, int]
"""The same for looking up: both hosts, both fronts, store, connections, judge, guests at both hosts."""

_FRONT, _STORE, _LINES, _JUDGE, _GUESTS = 2, 4, 5, 6, 7
# How many bits the number of a part has, and where they are; fronts and guests follow from hosts.
_WIDTHS: Final = {0: 20, 1: 20, _LINES: 20, _STORE: 12, _JUDGE: 12}
_SHIFTS: Final = {0: 0, 1: 20, _LINES: 40, _STORE: 60, _JUDGE: 72}
_MASK, _SMALL_MASK = (1 << 20) - 1, (1 << 12) - 1


class Table(Generic[T]):
    """All parts of a kind that were met, by number."""

    def __init__(self, width: int) -> None:
        self.parts: Final[list[T]] = []
        self._numbers: Final[dict[Hashable, int]] = {}
        self._most: Final = 1 << width

    def number(self, key: Hashable, part: T) -> int:
        """The number of the part with this key: that of the first one that was like it."""
        found = self._numbers.setdefault(key, len(self.parts))
        if found == len(self.parts):
            if found == self._most:
                raise OverflowError(f"more than {found} parts of a kind: explore with fewer faults")
            self.parts.append(part)
        return found


class Memory(Generic[T]):
    """What came of one action, in every world in which that was found out.

    Args:
        action: what is done with a world.
    """

    __slots__ = ("action", "ways")

    def __init__(self, action: Callable[[World], T | None]) -> None:
        self.action = action
        # For each set of parts that were read: how these are picked, and what came of which. Who reads this
        # looks for himself, at the cost of no call: it is done some hundred million times.
        self.ways: list[tuple[int, Callable[[At], Hashable], dict[Hashable, T]]] = []

    def learns(self, at: At, read: int, found: T) -> None:
        """What came of it in this world, of which it has read these parts."""
        way = next((each for each in self.ways if each[0] == read), None)
        if way is None:
            places = [place for place in range(9) if read >> place & 1]
            way = (read, itemgetter(*places) if places else _nothing, {})
            self.ways.append(way)
        way[2][way[1](at)] = found


def _nothing(_: At) -> int:
    return 0


class Parts:
    """Every part that there is, and worlds made of them.

    Args:
        world: one to begin with, which says what all others have alike.
    """

    def __init__(self, world: World) -> None:
        self.shared: Final = {name: value for name, value in vars(world).items() if name not in _OWN}
        self.hosts: Final = (Table[Host](20), Table[Host](20))
        self.fronts: Final = (Table[Front](20), Table[Front](20))
        self.guests: Final = (Table[Guests](20), Table[Guests](20))
        self.stores: Final = Table[SlotStore | None](12)
        self.lines: Final = Table[tuple[Line, ...]](20)
        self.judges: Final = Table[Judge](12)
        # Of each host, by its number: those of its front and guests, and whether it knows what it has seen.
        self.front_of: Final[tuple[list[int], list[int]]] = ([], [])
        self.guests_of: Final[tuple[list[int], list[int]]] = ([], [])
        self.knows: Final[tuple[list[bool], list[bool]]] = ([], [])
        self._settled: Final[dict[tuple[int, int, int, int], int]] = {}
        numbers = [self.host(place, host) for place, host in enumerate(world.hosts)]
        self.first: Final[State] = self.settle(
            numbers[0]
            | numbers[1] << _SHIFTS[1]
            | self.number_of_lines(world.lines) << _SHIFTS[_LINES]
            | self.number_of_store(world.store) << _SHIFTS[_STORE]
            | self.judges.number(world.judge.key(), world.judge) << _SHIFTS[_JUDGE]
        )

    def at(self, state: State) -> At:
        """The numbers of its parts, one by one."""
        one, two = state & _MASK, state >> 20 & _MASK
        return (
            one,
            two,
            self.front_of[0][one],
            self.front_of[1][two],
            state >> 60 & _SMALL_MASK,
            state >> 40 & _MASK,
            state >> 72,
            self.guests_of[0][one],
            self.guests_of[1][two],
        )

    def host(self, place: int, host: Host) -> int:
        """The number of a host."""
        table = self.hosts[place]
        number = table.number(_host_key(host), host)
        if number == len(self.front_of[place]):
            front = host.front()
            self.front_of[place].append(self.fronts[place].number(front, front))
            guests = host.guests()
            self.guests_of[place].append(self.guests[place].number(_guests_key(guests), guests))
            self.knows[place].append(any(each.rest is not None for each in host.processes))
        return number

    def number_of_lines(self, lines: Sequence[Line]) -> int:
        """The number of connections."""
        return self.lines.number(tuple([_line_key(each) for each in lines]), tuple(lines))

    def number_of_store(self, store: SlotStore | None) -> int:
        """The number of a store."""
        return self.stores.number(None if store is None else store.key(), store)

    def settle(self, state: State) -> State:
        """The same world, in which nobody keeps what he never sees again."""
        if self.knows[0][state & _MASK] or self.knows[1][state >> 20 & _MASK]:
            at = self.at(state)
            for place in (0, 1):
                number = at[place]
                if self.knows[place][number]:
                    known = (place, number, at[_FRONT + 1 - place], at[_STORE])
                    other = self._settled.get(known)
                    if other is None:
                        other = self._settled[known] = self._forgets(*known)
                    state += other - number << _SHIFTS[place]
        return state

    def _forgets(self, place: int, number: int, front: int, store: int) -> int:
        host = self.hosts[place].parts[number]
        peer, slots = self.fronts[1 - place].parts[front], self.stores.parts[store]
        now = len(host.history.records), None if slots is None else len(slots.slots), peer
        old = [each.number for each in host.processes if each.rest and not each.rest.may_be_again(*now)]
        if not old:
            return number
        host = host.copy()
        for process in host.processes:
            if process.number in old:
                process.rest = None
        return self.host(place, host)

    # ---- doing something ----

    def look(self, memory: Memory[T], at: At) -> T:
        """What an action finds that only looks."""
        for _, pick, known in memory.ways:
            if (found := known.get(pick(at))) is not None:
                return found
        world = PartedWorld(self, at)
        found = memory.action(world)
        assert found is not None
        memory.learns(at, world.read, found)
        return found

    def take(self, memory: Memory[tuple[int, bool]], state: State, at: At) -> State:
        """The world after a step.

        Raises:
            Violation: it must not have happened.
        """
        for _, pick, known in memory.ways:
            if (found := known.get(pick(at))) is not None:
                break
        else:
            world = PartedWorld(self, at)
            memory.action(world)
            found = world.changes()
            memory.learns(at, world.read, found)
        change, settles = found
        return self.settle(state + change) if settles else state + change

    def whole(self, state: State) -> World:
        """A world with all of its parts, to look at."""
        return PartedWorld(self, self.at(state))


class PartedWorld(World):
    """A world that has its parts when it is asked for them, and knows which.

    Attributes:
        read: a bit for each part that was fetched.
    """

    def __init__(self, parts: Parts, at: At) -> None:
        self.__dict__.update(parts.shared, ends=[])
        self.read = 0
        self._parts = parts
        self._at = at
        self._held: list[Host | None] = [None, None]
        self.hosts = _Hosts(self)

    def __getattr__(self, name: str) -> object:
        """A part that is asked for, as a copy that may be changed; from then on it is there."""
        found: object
        match name:
            case "store":
                self.read |= 1 << _STORE
                store = self._parts.stores.parts[self._at[_STORE]]
                found = None if store is None else store.copy()
            case "lines":
                self.read |= 1 << _LINES
                found = [each.copy() for each in self._parts.lines.parts[self._at[_LINES]]]
            case "judge":
                self.read |= 1 << _JUDGE
                found = self._parts.judges.parts[self._at[_JUDGE]].copy()
            case _:
                raise AttributeError(name)
        self.__dict__[name] = found
        return found

    def host(self, number: int) -> Host:
        """A host to look at."""
        self.read |= 1 << number
        return self._held[number] or self._parts.hosts[number].parts[self._at[number]]

    def own(self, number: int) -> Host:
        """A host that is about to change."""
        host = self._held[number]
        if host is None:
            host = self._held[number] = self.host(number).copy()
        return host

    def front(self, number: int) -> Front:
        """What can be seen of a host from outside, without having looked at all of it."""
        host = self._held[number]
        if host is not None:
            return host.front()
        self.read |= 1 << _FRONT + number
        return self._parts.fronts[number].parts[self._at[_FRONT + number]]

    def guests(self, number: int) -> Guests:
        """What there is of the guest at a host, without having looked at all of it."""
        host = self._held[number]
        if host is not None:
            return host.guests()
        self.read |= 1 << _GUESTS + number
        return self._parts.guests[number].parts[self._at[_GUESTS + number]]

    def next_process(self, number: int) -> int:
        """The lowest one that means nothing here."""
        host = self.host(number)
        named = {each.number for each in host.processes} | {host.lock}
        for holder in host.holders:
            named |= {holder.controller, holder.granter}
        return next(each for each in range(2 + number, 2 * len(named) + 4, 2) if each not in named)

    def kill(self, number: int, process: int) -> None:
        """Nothing names the dead any more."""
        super().kill(number, process)
        for holder in self.own(number).holders:
            if holder.granter == process:
                holder.granter = _NOBODY
        for line in self.lines:
            for end in (0, 1):
                if line.ends[end][:2] == (number, process):
                    gone = (number, _NOBODY, line.ends[end][2])
                    line.ends = (gone, line.ends[1]) if end == 0 else (line.ends[0], gone)

    def changes(self) -> tuple[int, bool]:
        """What the step has made of the number of the world, and whether somebody might see something new."""
        parts, at, change, settles = self._parts, self._at, 0, False
        for place in (0, 1):
            host = self._held[place]
            if host is not None:
                number = parts.host(place, host)
                change += number - at[place] << _SHIFTS[place]
                settles |= parts.knows[place][number]
                settles |= parts.front_of[place][number] != at[_FRONT + place]
        if "store" in vars(self):
            number = parts.number_of_store(self.store)
            change += number - at[_STORE] << _SHIFTS[_STORE]
            settles |= number != at[_STORE]
        if "lines" in vars(self):
            change += parts.number_of_lines(self.lines) - at[_LINES] << _SHIFTS[_LINES]
        if "judge" in vars(self):
            judged = parts.judges.number(self.judge.key(), self.judge)
            change += judged - at[_JUDGE] << _SHIFTS[_JUDGE]
        return change, settles


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


_OWN: Final = frozenset({"hosts", "store", "lines", "judge", "ends", "_shared"})
_NOBODY: Final = -1


def _host_key(host: Host) -> Hashable:
    """All of a host that anything depends on."""
    themselves = {0: 0, **{each.number: each.number for each in host.processes}}
    return (
        host.history.records,
        tuple([each.key(themselves) for each in host.holders]),
        tuple([_process_key(each) for each in host.processes]),
        host.lock,
        host.armed,
        host.settled is not None and host.settled.lost,
    )


def _guests_key(guests: Guests) -> Hashable:
    """All of it that the judge goes by."""
    holders = tuple([(*each.key({}), each.paused_at) for each in guests.holders])
    return (holders, guests.claimed)


def _process_key(process: Process) -> Hashable:
    return (process.number, process.rest, process.key())


def _line_key(line: Line) -> Hashable:
    return (
        line.number, line.ends, tuple(line.pipes), tuple(line.closed), tuple(line.crashed), tuple(line.gone),
        line.broken,
    )  # fmt: skip

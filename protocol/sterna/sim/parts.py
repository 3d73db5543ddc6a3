"""What worlds are made of: parts, of which each is there once, and a number for each world.

A world is two hosts, the store, the connections and the judge; a host is its records, holders, processes and
a few things more, and connections are one by one. There are few different ones of each such part, and very
many worlds that are made of them. So each part has a number, what is made of parts has one too, and a world
is 64 bits: the numbers of the five things that it is made of, one beside the other.

Millions of worlds are an array of such numbers, and what is asked of them is asked of all at once: which part
do they have there (`Parts.keys`), and what would they be with another one (`Parts.patched`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from sterna.core.history import History
from sterna.core.records import Claiming, Start
from sterna.sim.holder import Holder
from sterna.sim.hosts import Hold, Host, Line, Op, Process, Reach, Task, View, Write, settled_key
from sterna.sim.kinds import WIDTHS, Key, Kind, Look, Table, Widths
from sterna.sim.recall import States
from sterna.sim.world import World

State: TypeAlias = int
"""A world: the numbers of its things, one beside the other."""

HOST, LINES, STORE, JUDGE = (0, 1), 2, 3, 4

# What a host is made of, each by itself, and behind it what is seen of that without looking at all of it.
TASKS_MAX: Final = 6
HISTORY, HOLDERS, LOCK, ARMED, SETTLED, SESSIONS, OTHERS, SHOWN, KNOWS, REST, KEPT, TASKS = range(12)
_SIZE: Final = TASKS + TASKS_MAX
RECORDS, CLAIMED, GUESTS, RESTS, OTHERS_REST, THERE = range(_SIZE, _SIZE + 6)
GLANCES: Final = THERE + TASKS_MAX
FIELDS: Final = {
    "history": HISTORY, "sent": HISTORY, "openings": HISTORY, "holders": HOLDERS, "lock": LOCK,
    "armed": ARMED, "settled": SETTLED, "sessions": SESSIONS,
}  # fmt: skip
LINES_MAX: Final = 6
READS: Final = 48
"""So many bits the reading of a thing has, one for each of its parts."""


class Glance(NamedTuple):
    """What is seen of a task without what its machine was told, and what exactly it has under way."""

    kind: str
    image: bytes
    op: Op | None
    landed: bool


class Parts:
    """Every part that there is, and worlds made of them.

    Args:
        world: one to begin with, which says what all others have alike.
        widths: bits that the numbers of its five things have.
    """

    def __init__(self, world: World, widths: Widths = WIDTHS) -> None:
        own = {"hosts", "store", "lines", "judge", "ends", "_shared"}
        self.shared: Final = {name: value for name, value in vars(world).items() if name not in own}
        line = tuple([_line_key] * LINES_MAX)
        there = tuple([(number, _is_there) for number in range(LINES_MAX)])
        self.kinds: Final = (
            Kind(0, _HOST_KEYS, _HOST_SEEN, widths=widths),
            Kind(1, _HOST_KEYS, _HOST_SEEN, widths=widths),
            Kind(LINES, line, there, widths=widths),
            Kind(STORE, (lambda store: None if store is None else store.key(),), widths=widths),
            Kind(JUDGE, (lambda judge: judge.key(),), widths=widths),
        )
        self._patches: Final = tuple([Table[tuple[tuple[int, int], ...]]() for _ in self.kinds])
        self.first: Final = self._first(world)

    def _first(self, world: World) -> State:
        lines: list[object] = [world.line(number) for number in range(1, LINES_MAX + 1)]
        wholes: tuple[list[object], ...] = (*map(fields_of, world.hosts), lines, [world.store], [world.judge])
        found = 0
        for kind, whole in zip(self.kinds, wholes, strict=True):
            parts = tuple([kind.part(place, part) for place, part in enumerate(whole)])
            found |= kind.thing(parts) << int(kind.shift)
        return found

    def things(self, state: State) -> tuple[tuple[int, ...], ...]:
        """Of each thing of a world, the numbers of its parts."""
        rows = [kind.rows.rows[state >> int(kind.shift) & int(kind.mask)] for kind in self.kinds]
        return tuple([tuple(row.tolist()) for row in rows])

    def keys(self, states: States, read: int) -> States:
        """A number for each world: the same for those of which the same would be read."""
        found = np.zeros(len(states), np.uint64)
        for place, kind in enumerate(self.kinds):
            some = read >> READS * place & (1 << READS) - 1
            if some:
                number = states >> kind.shift & kind.mask
                found |= kind.view(some)[number] << kind.shift
        return found

    def least(self, read: int) -> int:
        """The same reading, without what follows from the rest of it."""
        masks = [read >> READS * place & (1 << READS) - 1 for place in range(len(self.kinds))]
        pairs = zip(self.kinds, masks, strict=True)
        return sum(kind.least(some) << READS * place for place, (kind, some) in enumerate(pairs))

    # ---- changing ----

    def patch(self, place: int, parts: tuple[tuple[int, int], ...]) -> int:
        """The number of a change of a thing: which of its parts are others, and which."""
        return self._patches[place].number(parts, parts)

    def patched(self, place: int, thing: int, patch: int) -> int:
        """The number of a thing after a change."""
        kind = self.kinds[place]
        parts = kind.rows.rows[thing, : kind.sizes].tolist()
        for which, part in self._patches[place].parts[patch]:
            parts[which] = part
        return kind.thing(tuple(parts))


def first_number(place: int) -> int:
    """The lowest number that a process of a host can have."""
    return 2 + place


def parts_of(process: Process | None) -> Iterator[tuple[int, object]]:
    """The parts of the first process of a host, or of there being none."""
    yield SHOWN, process and (process.beside, process.frozen)
    yield KNOWS, process and (process.stale, process.undecided, process.heard)
    yield REST, process and (process.rest, process.looked, process.refused)
    yield KEPT, process and process.kept
    for number in range(1, TASKS_MAX + 1):
        yield TASKS + number - 1, process and process.task(number)


def fields_of(host: Host) -> list[object]:
    """The parts of a host, in order."""
    first = host.process(first_number(host.place))
    others = [each for each in host.processes if each is not first]
    parts = [
        (host.history, host.sent, host.openings), host.holders, host.lock, host.armed, host.settled,
        host.sessions, others,
    ]  # fmt: skip
    return [*parts, *[part for _, part in parts_of(first)]]


def _holders_key(holders: list[Holder]) -> Hashable:
    return tuple([(*each.key({}), each.granter, each.controller) for each in holders])


def _guests(holders: list[Holder]) -> tuple[Hashable, object]:
    return tuple([(*each.key({}), each.paused_at) for each in holders]), tuple(holders)


def _processes_key(processes: list[Process]) -> Hashable:
    return tuple([(each.number, each.rest, each.refused, each.key()) for each in processes])


def _claimed(history: tuple[History, object, object]) -> tuple[Hashable, object]:
    claimed = frozenset([each.epoch for each in history[0].each(Claiming)])
    return claimed, claimed


def _rests(rest: tuple[View | None, bool, View | None] | None) -> tuple[Hashable, object]:
    rests = rest is not None and (rest[0] is not None or rest[2] is not None)
    return rests, rests


def _others_rest(processes: list[Process]) -> tuple[Hashable, object]:
    rests = any(each.rest is not None or each.refused is not None for each in processes)
    return rests, rests


def _kept_key(kept: Mapping[bytes, object] | None) -> Hashable:
    return None if kept is None else frozenset(kept.items())


def _task_key(task: Task | None) -> Hashable:
    return task and task.key()


def _records(history: tuple[History, object, object]) -> tuple[Hashable, object]:
    number = len(history[0].records)
    return number, number


def _history_key(history: tuple[History, object, Mapping[bytes, object]]) -> Hashable:
    return history[0].records, tuple(history[2])


def _itself(part: Hashable) -> Hashable:
    return part


def _is_there(part: object) -> tuple[Hashable, object]:
    return part is not None, part is not None


_SOME_RECORD: Final = Write(Start(0))


def glance_of(task: Task | None) -> tuple[Hashable, object]:
    """What is seen of a task in passing; two that look the same are one."""
    if task is None:
        return None, None
    op = task.op
    match op:
        case Write():
            op = _SOME_RECORD
        case Hold():
            op = Hold(op.verb, b"")
        case Reach():
            op = Reach(op.verb, 0)
        case _:
            pass
    found = Glance(task.kind, task.image, op, task.landed)
    return found, found


def _line_key(line: Line | None) -> Hashable:
    return line and line.key()


_HOST_KEYS: Final[tuple[Key, ...]] = (
    _history_key, _holders_key, _itself, _itself, settled_key, _itself, _processes_key, _itself, _itself,
    _itself, _kept_key, *[_task_key] * TASKS_MAX,
)  # fmt: skip
_HOST_SEEN: Final[tuple[tuple[int, Look], ...]] = (
    (HISTORY, _records), (HISTORY, _claimed), (HOLDERS, _guests), (REST, _rests), (OTHERS, _others_rest),
    *[(TASKS + number, _is_there) for number in range(TASKS_MAX)],
    *[(TASKS + number, glance_of) for number in range(TASKS_MAX)],
)  # fmt: skip

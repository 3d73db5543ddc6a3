"""What a world has besides holders and store: hosts, processes, what these are busy with, connections.

All of it is plain data that can be copied (`copy`) and compared (`key`). What happens to it is `World`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, TypeAlias

from sterna.core.history import History
from sterna.core.records import Claiming, Record
from sterna.core.recovery import Settled
from sterna.core.reopening import Opening
from sterna.core.verdict import Store
from sterna.registry import Owner
from sterna.sim.holder import GUEST_ID, Holder
from sterna.sim.kept import Kept, Left, Noted
from sterna.sim.machines import Driven
from sterna.wire.records import NO_RUNNER, Runner

NAMES: Final = ("alpha", "beta")
"""Of the two hosts. The guest is at the first one."""

# ---- what a process has under way outside of itself ----


@dataclass(frozen=True, slots=True)
class Write:
    """Make a record durable."""

    record: Record


@dataclass(frozen=True, slots=True)
class Hold:
    """Have the holder of an image do something."""

    verb: str
    image: bytes
    epoch: int = 0
    runner: Runner = NO_RUNNER


@dataclass(frozen=True, slots=True)
class Reach:
    """Ask the store: `claim` a slot, `read` it and the one behind, or the `newest` one."""

    verb: str
    epoch: int
    runner: Runner = NO_RUNNER


@dataclass(frozen=True, slots=True)
class TakeLocks:
    """Take the guest's storage locks."""


@dataclass(frozen=True, slots=True)
class GiveWay:
    """Wait until these sessions have ended, and free what is kept of them; its answer is itself [ONE-13]."""

    sessions: tuple[bytes, ...]


End: TypeAlias = tuple[int, int, int]
"""Of a connection: host, process and task."""

NOBODY: Final = -1
"""What was a process that is no more."""

GONE: Final = -1
"""What was a connection that a task does not listen on any more."""

Op: TypeAlias = Write | Hold | Reach | TakeLocks | GiveWay


class Front(NamedTuple):
    """What can be seen of a host from outside.

    Attributes:
        records: how many it has.
        processes: who is there, and whether he is frozen.
        lock: who has the records.
        keeps: whether somebody who is not frozen keeps a session that can be taken up.
    """

    records: int
    processes: tuple[tuple[int, bool], ...]
    lock: int
    keeps: bool = False

    def frozen(self, process: int) -> bool | None:
        """Whether a process is; None if it is not there."""
        return next((frozen for number, frozen in self.processes if number == process), None)


class Guests(NamedTuple):
    """What there is of the guest at a host: its holders, and the epochs that it has claimed."""

    holders: tuple[Holder, ...]
    claimed: frozenset[int]


class View(NamedTuple):
    """What recovery goes by: its host, the store, and the peer if it would ask it."""

    records: int
    holders: tuple[tuple[str, int, int, int], ...]
    slots: tuple[int, bool] | None
    peer: Front | None

    def may_be_again(self, records: int, slots: int | None, peer: Front) -> bool:
        """Whether this may be what is to be seen, now or later.

        Not when there are more records by now, or slots: they never become fewer. Not when somebody who was
        there at the peer is there no more: who comes after him is another.
        """
        if (records, slots) != (self.records, None if self.slots is None else self.slots[0]):
            return False
        if self.peer is None:
            return True
        there = {number for number, _ in peer.processes}
        return self.peer.records == peer.records and all(number in there for number, _ in self.peer.processes)

    def named(self, names: Mapping[int, int], peers: Mapping[int, int]) -> View:
        """The same with other names for the processes of this host, and of its peer."""
        holders = tuple([(*each, names.get(controller, -1)) for *each, controller in self.holders])
        peer = self.peer and Front(
            self.peer.records,
            tuple([(peers.get(number, -1), frozen) for number, frozen in self.peer.processes]),
            peers.get(self.peer.lock, -1),
            self.peer.keeps,
        )
        return View(self.records, holders, self.slots, peer)  # type: ignore[arg-type]  # a tuple as it was


NEVER: Final = View(-1, (), None, None)
"""What stands for all that was seen and is never to be seen again."""


class Task:
    """One thing that a process does: a session, an answer to a question, or recovery.

    Attributes:
        kind: `source`, `destination` or `recovery`.
        machine: that it drives; recovery has one while it asks.
        line: number of its connection, 0 for none; `GONE` once it does not listen there any more.
        op: what is under way; `landed` once it has taken effect, and then `answer` is on its way back.
        results: of the request that is being carried out, so far.
        session: that recovery is about.
        image: the id of the image that it is about.
        held: CLAIMING that is to be written with what rests on it; it follows from what the machine was told.
        peer, complete, store: what recovery has learned, see `sterna.core.recovery`.
        failed: whether something that recovery has tried may work another time.
        stuck: whether the last thing that it has tried has failed, so that it ends.
    """

    __slots__ = (
        "answer", "complete", "failed", "held", "image", "kind", "landed", "line", "machine", "number", "op",
        "peer", "results", "session", "store", "stuck",
    )  # fmt: skip

    def __init__(self, number: int, kind: str, machine: Driven | None = None, image: bytes = b"") -> None:
        self.number = number
        self.kind = kind
        self.machine = machine
        self.line = 0
        self.op: Op | None = None
        self.landed = False
        self.answer: Hashable = None
        self.results: tuple[Hashable, ...] = ()
        self.session = b""
        self.image = image
        self.held: Claiming | None = None
        self.peer: Owner | None = None
        self.complete: bool | None = None
        self.store: Store | None = None
        self.failed = False
        self.stuck = False

    def copy(self) -> Task:
        """One that goes its own way."""
        other = object.__new__(Task)
        other.number, other.kind, other.machine, other.line = self.number, self.kind, self.machine, self.line
        other.op, other.landed, other.answer = self.op, self.landed, self.answer
        other.results, other.session, other.image = self.results, self.session, self.image
        other.held, other.peer, other.complete = self.held, self.peer, self.complete
        other.store, other.failed, other.stuck = self.store, self.failed, self.stuck
        return other

    @property
    def claims(self) -> bool:
        """Whether a claim of its own is on its way to the store."""
        return isinstance(self.op, Reach) and self.op.verb == "claim" and not self.landed

    def key(self) -> tuple[object, ...]:
        """Equal for tasks that go on alike, but for their number."""
        machine = None if self.machine is None else self.machine.key()
        kind = self.op.record.kind if isinstance(self.op, Write) else ""
        return (
            self.kind, machine, self.line, kind, self.op, self.landed, self.answer, self.results,
            self.session, self.image, self.peer, self.complete, self.store, self.failed,
        )  # fmt: skip


class Process:
    """An endpoint, or what stands beside one.

    Attributes:
        number: of the process, in the world.
        beside: it is not the endpoint, and stays only for what it was started for.
        frozen: it does nothing, though it is there.
        tasks: what it does.
        kept: sessions whose link is lost, by id; a source's stands under nothing.
        tries: how often the source's was taken up again, if there is a clock.
        refused: what there was to be seen when it could not be; None if it is to be taken up at any time.
            Where none is kept: it cannot be in this process any more.
        looked: recovery has come to an end at a source, and has changed nothing on the way.
        rest: what there was to be seen when recovery last came to its end; None if it is to look again.
        stale: the records as it knows them, if another process has them by now, as must never be.
        undecided: the session that ended so in this process last; empty if none did.
        heard: what the peer has said of who owns the guest, in that session.
    """

    __slots__ = (
        "beside",
        "frozen",
        "heard",
        "kept",
        "looked",
        "number",
        "refused",
        "rest",
        "stale",
        "tasks",
        "tries",
        "undecided",
    )

    def __init__(self, number: int, *, beside: bool = False) -> None:
        self.number = number
        self.beside = beside
        self.frozen = False
        self.tasks: list[Task] = []
        self.kept: Mapping[bytes, Kept | Left | Noted] = {}
        self.tries = 0
        self.refused: View | None = None
        self.looked = False
        self.rest: View | None = None
        self.stale: History | None = None
        self.undecided = b""
        self.heard: Owner | None = None

    def copy(self) -> Process:
        """One that goes its own way."""
        other = object.__new__(Process)
        other.number, other.beside, other.frozen = self.number, self.beside, self.frozen
        other.rest, other.heard, other.undecided = self.rest, self.heard, self.undecided
        other.stale, other.looked = self.stale, self.looked
        other.kept, other.tries, other.refused = self.kept, self.tries, self.refused
        other.tasks = [each.copy() for each in self.tasks]
        return other

    def key(self) -> tuple[object, ...]:
        """Equal for processes that go on alike, as far as they have seen the same."""
        knows = self.heard, self.undecided, self.stale, tuple(sorted(self.kept.items(), key=_first))
        tasks = tuple([each.key() for each in self.tasks])
        return (self.beside, self.frozen, self.looked, self.refused is not None, knows, tasks)

    def claims(self) -> list[Reach]:
        """Its claims that are on their way to the store."""
        return [each.op for each in self.tasks if isinstance(each.op, Reach) and each.claims]

    @property
    def next_number(self) -> int:
        """For its next task."""
        return max((each.number for each in self.tasks), default=0) + 1

    def task(self, number: int) -> Task | None:
        """The task of this number."""
        return next((each for each in self.tasks if each.number == number), None)


def _first(pair: tuple[bytes, object]) -> bytes:
    return pair[0]


def settled_key(settled: Settled | None) -> Hashable:
    """What counts of how recovery has ended, when nothing is left to be done [ONE-42]."""
    return settled and (settled.lost, settled.judgement.owner)


class Host:
    """One of the two.

    Attributes:
        history: the durable records.
        holders: that were ever started here.
        openings: what was noted of sessions that others have opened, by id [RES-16]. A session has one.
        sent: which image was sent in which session: what an operator would say on the command line.
        processes: the endpoint, if it runs, and what stands beside it.
        starts: how many processes were started here.
        lock: the process that has the guest's records, 0 for none.
        settled: where recovery came to its end last.
        sessions: how many were admitted here.
        armed: what goes wrong next, by name; and `turned-away`, if a source is to come again [RES-18].
        cached: of the key, None when something may have changed.
    """

    __slots__ = (
        "armed", "cached", "history", "holders", "lock", "name", "openings", "processes", "sent",
        "sessions", "settled", "starts",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.history = History(GUEST_ID)
        self.holders: list[Holder] = []
        self.sent: tuple[tuple[bytes, bytes], ...] = ()
        self.openings: Mapping[bytes, Opening] = {}
        self.processes: list[Process] = []
        self.starts = 0
        self.lock = 0
        self.settled: Settled | None = None
        self.sessions = 0
        self.armed: frozenset[str] = frozenset()
        self.cached: int | None = None

    def copy(self) -> Host:
        """One that goes its own way."""
        other = object.__new__(Host)
        other.name, other.history, other.sent = self.name, self.history, self.sent
        other.lock, other.sessions, other.armed = self.lock, self.sessions, self.armed
        other.settled, other.starts, other.openings = self.settled, self.starts, self.openings
        other.cached = None
        other.holders = [each.copy() for each in self.holders]
        other.processes = [each.copy() for each in self.processes]
        return other

    def key(self, sees: Callable[[View], Hashable]) -> tuple[object, ...]:
        """Equal for hosts that go on alike. `sees`: what is left of what recovery has seen."""
        if self.cached is None:
            names = self.names()
            self.cached = hash(
                (
                    # By kind too: a START and a HANDBACK of one epoch have one hash.
                    tuple([(each.kind, each) for each in self.history.records]),
                    tuple([each.key(names) for each in self.holders]),
                    tuple([each.key() for each in self.processes]),
                    names.get(self.lock, -1),
                    self.sessions,
                    tuple(self.openings),
                    self.armed,
                    settled_key(self.settled),
                )
            )
        seen = [view for each in self.processes for view in (each.rest, each.refused)]
        return (self.cached, *[view and sees(view) for view in seen])

    def front(self) -> Front:
        """What can be seen of it from outside."""
        processes = tuple([(each.number, each.frozen) for each in self.processes])
        keeps = any(each.kept and not each.frozen for each in self.processes)
        return Front(len(self.history.records), processes, self.lock, keeps)

    def guests(self) -> Guests:
        """What there is of the guest here."""
        claimed = frozenset([each.epoch for each in self.history.each(Claiming)])
        return Guests(tuple(self.holders), claimed)

    def names(self) -> dict[int, int]:
        """Processes by what they are here and now, not by how many came before."""
        ordered = sorted(self.processes, key=lambda each: each.beside)
        return {0: 0, **{each.number: place for place, each in enumerate(ordered, 1)}}

    def ends(self) -> dict[End, End]:
        """Of each task that there is, what connections call it, and what it is called here and now."""
        names, place = self.names(), self.place
        return {
            (place, process.number, task.number): (place, names[process.number], rank)
            for process in self.processes
            for rank, task in enumerate(process.tasks, 1)
        }

    @property
    def place(self) -> int:
        """Which one of the two it is."""
        return NAMES.index(self.name)

    def may_lock(self, process: Process) -> bool:
        """Whether no other process has the guest's records."""
        return self.lock in {0, process.number}

    def rests(self, process: Process) -> None:
        """A process without anything to do lets go of the records; one that stood beside ends."""
        if process.tasks:
            return
        if self.lock == process.number:
            self.lock = 0
        if process.beside and not process.frozen:
            self.processes.remove(process)

    @property
    def endpoint(self) -> Process | None:
        """The process that serves and recovers here, if there is one."""
        return next((each for each in self.processes if not each.beside), None)

    def process(self, number: int) -> Process | None:
        """The process of this number, if it is there still."""
        return next((each for each in self.processes if each.number == number), None)

    def holder(self, image: bytes) -> Holder | None:
        """The holder of an image."""
        return next((each for each in self.holders if each.image == image), None)

    def image_of(self, session: bytes) -> bytes:
        """The image of a session, on either side: at a destination its id is the session's [ONE-52]."""
        return dict(self.sent).get(session, session)


def peer_of(host: Host) -> str:
    """The name of the other one."""
    return NAMES[1 - host.place]


def write(host: Host, process: Process, record: Record) -> None:
    """Append a record, if what the process knows of the records allows it.

    Raises:
        RecordConflict: it does not.
    """
    if process.stale is None:
        host.history = host.history.after(record)
    else:
        process.stale = process.stale.after(record)
        host.history = replace(host.history, records=(*host.history.records, record))


class Line:
    """A connection. End 0 has opened it.

    Attributes:
        ends: host, process and task at each end; of one that is gone its host only.
        pipes: what is on its way to each end, in the order in which it comes, and of what pieces.
        closed: whether an end will say no more; `crashed`, because its process is dead.
        gone: whether an end does not listen any more.
        broken: it is cut: nothing more is sent, and each end will notice.
    """

    __slots__ = ("broken", "closed", "crashed", "ends", "gone", "number", "pipes")

    def __init__(self, number: int, ends: tuple[End, End]) -> None:
        self.number = number
        self.ends = ends
        self.pipes: list[tuple[tuple[bytes, ...], ...]] = [(), ()]
        self.closed = [False, False]
        self.crashed = [False, False]
        self.gone = [False, False]
        self.broken = False

    def copy(self) -> Line:
        """One that goes its own way."""
        other = object.__new__(Line)
        other.number, other.ends, other.broken = self.number, self.ends, self.broken
        other.pipes, other.closed = list(self.pipes), list(self.closed)
        other.crashed, other.gone = list(self.crashed), list(self.gone)
        return other

    def key(self, names: Mapping[End, End] | None = None) -> tuple[object, ...]:
        """Equal for connections that go on alike.

        Whether an end was closed or has crashed makes a difference only to bytes that are on their way: how
        it was lost is the same to who is at the other end, see `RecalledMachine`.

        Args:
            names: of their ends, if these do not have one that means the same everywhere.
        """
        ends = self.ends if names is None else tuple([names.get(end, end) for end in self.ends])
        crashed = tuple([self.crashed[end] and self.pipes[1 - end] != () for end in (0, 1)])
        return (self.number, ends, tuple(self.pipes), crashed, tuple(self.gone), self.broken)

    def push(self, end: int, data: tuple[bytes, ...]) -> None:
        """Send to an end; what is in pieces may be torn there."""
        if data and not (self.broken or self.gone[end] or self.closed[1 - end]):
            self.pipes[end] = (*self.pipes[end], data)

    def leaves(self, end: int, *, crashed: bool = False) -> None:
        """An end is done: it says no more and hears no more."""
        self.closed[end], self.gone[end] = True, True
        self.crashed[end] |= crashed
        gone = (self.ends[end][0], NOBODY, 0)
        self.ends = (gone, self.ends[1]) if end == 0 else (self.ends[0], gone)
        self.pipes[end] = ()

    def cut(self) -> None:
        """What is on its way is lost."""
        self.broken = True
        self.pipes = [(), ()]

    def tear(self, end: int) -> None:
        """The same, but the first piece of what comes to an end next arrives."""
        first = self.pipes[end][0][:1]
        self.cut()
        self.pipes[end] = (first,)

"""The real machines, in two ways of holding one.

A `Driven` machine is told `Input`s, and afterwards there is what it says to its peer and what it asks of its
host. `LiveMachine` is the machine itself, changed by every input: for one run. `RecalledMachine` stands for
all machines that were told the same: telling it something gives another one, and telling it the same twice
gives the same, so a world that holds it can be copied, compared and tried in every direction at the price of
a pointer. What it does was done by a real machine once: the one that has gone furthest is kept, and a new
turn is taken by a fresh machine that is told everything from the start. What one leaves of its session when
the link is lost, others go on with many times over: of that they have copies.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias, cast

from sterna.core.carry import DestinationCarry, SourceCarry, Ticket
from sterna.core.destination import DestinationMachine
from sterna.core.events import (
    CollectDirty,
    Expect,
    Installed,
    KeepNotes,
    Prepare,
    Readmit,
    Request,
    Reserve,
    Result,
    RunGuest,
    SaveState,
)
from sterna.core.history import RecordConflict
from sterna.core.records import Record
from sterna.core.reopening import Opening
from sterna.core.session import Session
from sterna.core.source import SourceMachine
from sterna.core.tables import State
from sterna.errors import GuestError, RecordError, SternaError, StoreUnavailable, TransportError
from sterna.limits import HEADER_BYTES
from sterna.registry import ErrorCode, FrameType
from sterna.sim.copied import copied, written
from sterna.sim.holder import (
    PAGES,
    REGION,
    Collected,
    Holder,
    bitmap_of,
    is_left,
    leave,
    new_room,
    pages_in,
    state_of,
)
from sterna.sim.judge import Violation
from sterna.sim.kept import Found, Fresh, Kept, Left, value_of
from sterna.wire.header import decode_header
from sterna.wire.records import Guest


@dataclass(frozen=True, slots=True)
class Trouble:
    """A request that failed: what the machine is told instead of an answer.

    Attributes:
        code: of the error.
        existing: the record that stands in the way.
    """

    code: ErrorCode
    existing: Record | None = None

    def error(self) -> SternaError:
        """As the driver would raise it."""
        if self.existing is not None:
            return RecordConflict("another record stands against it", self.existing)
        match self.code:
            case ErrorCode.RECORD_FAILED:
                return RecordError("it cannot be written")
            case ErrorCode.UNDECIDED:
                return StoreUnavailable("no answer")
            case _:
                return GuestError("it did not", self.code)


@dataclass(frozen=True, slots=True)
class Start:
    """Open a session."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask about one."""

    session: bytes
    token: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of the peer."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection is lost, or (`closed`) was closed by the peer."""

    closed: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """A newer session takes the place of this one."""


@dataclass(frozen=True, slots=True)
class Done:
    """The oldest request is done. For values that cannot be compared stand those that they are made from."""

    answer: Hashable = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The oldest request failed."""

    trouble: Trouble


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; a timer may have run out."""


@dataclass(frozen=True, slots=True)
class Touch:
    """The guest waits for this page."""

    page: int


Input: TypeAlias = Start | Ask | Data | Lost | Cancel | Done | Failed | Tick | Touch


class Driven(Protocol):
    """A machine, and what it has said and asked for since it was told something.

    Attributes:
        said: bytes for the peer, of the last input: together, or cut off between two pieces.
        asked: requests that are not answered, oldest first.
        room: the memory that it fills, of a destination.
        notes: what it has noted for the next process; the same object as long as nothing new is.
        opening: of a destination, what a later process has to know of the session, once that is known.
        ticket: of a destination, what its session can be taken up again with, once it has one.
    """

    @property
    def said(self) -> tuple[bytes, ...]:
        """See above."""
        ...

    @property
    def asked(self) -> tuple[Request, ...]:
        """See above."""
        ...

    @property
    def room(self) -> bytearray | bytes:
        """See above."""
        ...

    @property
    def notes(self) -> bytearray | bytes | None:
        """See above."""
        ...

    @property
    def opening(self) -> Opening | None:
        """See above."""
        ...

    @property
    def ticket(self) -> Ticket | None:
        """See above."""
        ...

    @property
    def state(self) -> State:
        """The machine's."""
        ...

    @property
    def result(self) -> Result | None:
        """The machine's."""
        ...

    @property
    def timer(self) -> float | None:
        """When it wants a `Tick`."""
        ...

    def told(self, what: Input, now: float) -> Driven:
        """The machine after this."""
        ...

    def kept(self, image: bytes) -> Kept | Left:
        """What a machine whose link is lost leaves of the session of this image."""
        ...

    def key(self) -> Hashable:
        """Equal for machines that were told the same."""
        ...


class LiveMachine:
    """A machine that changes.

    Args:
        machine: the real one.
        notes: that it goes on with.
        still: the holder that a source reads pages from, if that is to change only where writes of its guest
            are collected.
    """

    def __init__(self, machine: Session, notes: bytearray | None = None, still: Holder | None = None) -> None:
        self.machine: Final = machine
        self._still: Final = still
        self.said: tuple[bytes, ...] = ()
        self.asked: tuple[Request, ...] = ()
        self.room = bytearray()
        self.notes = notes
        self._place: bytearray | None = None  # of notes that are to come
        self.opening: Opening | None = None
        self._stale: frozenset[int] = frozenset()
        self._theirs: frozenset[int] = frozenset()  # pages in the room that are the guest's by now

    @property
    def state(self) -> State:
        """The machine's."""
        return self.machine.state

    @property
    def result(self) -> Result | None:
        """The machine's."""
        return self.machine.result

    @property
    def timer(self) -> float | None:
        """When it wants a `Tick`."""
        return self.machine.poll_timeout()

    @property
    def ticket(self) -> Ticket | None:
        """The machine's."""
        return self.machine.ticket if isinstance(self.machine, DestinationMachine) else None

    def key(self) -> Hashable:
        """Itself: nothing else is like it."""
        return id(self)

    def told(self, what: Input, now: float) -> LiveMachine:
        """The machine itself, after this."""
        machine = self.machine
        match what:
            case Start():
                assert isinstance(machine, SourceMachine)
                machine.start(now)
            case Ask(session, token):
                assert isinstance(machine, SourceMachine)
                machine.ask(session, token, now)
            case Data(data):
                machine.receive_data(data, now)
            case Lost(closed):
                error = None if closed else TransportError(ErrorCode.CONNECTION_LOST, "cut")
                machine.connection_lost(error, now)
            case Cancel():
                machine.cancel(now, "a newer session has taken the place of this one")
            case Done(answer):
                request = self.asked[0]
                machine.complete(request, self._real(request, answer), now)
                self.asked = self.asked[1:]
                self._lets_go(request)
            case Failed(trouble):
                machine.fail(self.asked[0], trouble.error(), now)
                self.asked = self.asked[1:]
            case Tick():
                machine.handle_timeout(now)
            case Touch(page):
                assert isinstance(machine, DestinationMachine)
                machine.fault(REGION.id, page, 1, now)
        self._drain(now)
        if not is_left(self.room, self._theirs):
            raise Violation("same-memory", "an endpoint writes to a page that the guest has by now")
        return self

    def _lets_go(self, request: Request) -> None:
        """From now on the guest may write to these pages, and nobody else."""
        match request:
            case RunGuest():
                self._theirs = frozenset(range(PAGES)) - self._stale
            case Installed():
                installed = (range(each.first, each.first + each.count) for each in request.pages)
                self._theirs |= {page for pages in installed for page in pages}
            case _:
                return
        leave(self.room, self._theirs)

    def kept(self, image: bytes) -> Kept:
        """What a machine whose link is lost leaves."""
        assert isinstance(self.machine, (SourceMachine, DestinationMachine))
        carry = self.machine.carry
        return Kept(carry, self.room, image, self.notes, self._theirs, self.opening, self._still)

    def _real(self, request: Request, answer: Hashable) -> object:
        """The answer that an answer stands for."""
        match request:
            case CollectDirty():
                assert isinstance(answer, Collected)
                if self._still is not None:
                    self._still.count = answer.executed
                return {0: bitmap_of(answer.pages)}
            case SaveState():
                assert isinstance(answer, int)
                return state_of(answer)
            case Reserve():
                pages, self.room = new_room()
                return pages
            case Prepare(notes_bytes=size_bytes) if size_bytes:
                self.notes = self._place = bytearray(size_bytes)  # the holder's, so it may be read [HOL-45]
                return memoryview(self._place)
            case Expect(stale=stale, notes=notes, ahead=ahead):
                self._stale = pages_in(stale.get(REGION.id))
                self.notes = self._place if stale else None
                if self.notes is not None and not ahead:
                    notes.move_to(self.notes)
                return None
            case KeepNotes(size_bytes=size_bytes) if answer is not None:
                self.notes = bytearray(size_bytes)
                return memoryview(self.notes)
            case Readmit() if isinstance(answer, (Kept, Left, Found, Fresh)):
                return self._takes_up(answer)
            case _:
                return answer

    def _takes_up(self, answer: Kept | Left | Found | Fresh) -> SourceCarry | DestinationCarry:
        kept = answer if isinstance(answer, Kept) else answer.again()
        self.room, self._theirs = kept.room, kept.theirs
        self.notes, self.opening = kept.notes, kept.opening
        return kept.carry

    def _drain(self, now: float) -> None:
        machine, said = self.machine, [b""]
        while True:
            while (request := machine.poll_request()) is not None:
                self.asked = (*self.asked, request)
                if isinstance(request, Reserve) and isinstance(machine, DestinationMachine):
                    self.opening = _opening(machine, request.guest)
            while machine.poll_event() is not None:
                pass
            buffers = machine.poll_transmit(now)
            if not buffers:
                break
            unit = b"".join(bytes(buffer) for buffer in buffers)
            machine.transmitted(len(unit), now)
            said[-1] += unit
            if _carries_pages(unit):
                said.append(b"")  # one group may come, and the next one be lost
        self.said = tuple([piece for piece in said if piece])


def _carries_pages(unit: bytes) -> bool:
    is_frame = len(unit) >= HEADER_BYTES  # and not the preface
    return is_frame and decode_header(unit[:HEADER_BYTES]).type == FrameType.PAGES


def _opening(machine: DestinationMachine, guest: Guest) -> Opening:
    """What is noted of a session before its ACCEPT [RES-16]."""
    assert machine.ticket is not None
    return Opening(machine.ticket.hello, machine.ticket.welcome, guest, machine.runner)


class Recollection:
    """All machines of one kind that have been told anything, as a tree.

    Args:
        name: of the kind.
        fresh: makes a new one.
    """

    def __init__(self, name: Hashable, fresh: Callable[[], LiveMachine]) -> None:
        self.name: Final = name
        self.fresh: Final = fresh
        self.number = 0  # of machines that were made
        self.root: Final = RecalledMachine(self, (), fresh())

    def again(self, path: tuple[Input, ...]) -> LiveMachine:
        """A new machine that was told all of this, at the beginning of time."""
        live = self.fresh()
        for what in path:
            live.told(what, 0.0)
        return live


def _as_before(now: bytearray | bytes | None, before: bytes | None) -> bytes | None:
    return before if now is None or now == before else bytes(now)


class RecalledMachine:
    """A machine that was told this and that. It does not change. See the module's text."""

    def __init__(
        self,
        tree: Recollection,
        path: tuple[Input, ...],
        live: LiveMachine,
        before: RecalledMachine | None = None,
    ) -> None:
        tree.number += 1
        self.number: Final = tree.number
        self.said: Final = live.said
        self.asked: Final = live.asked
        self.state: Final = live.state
        self.result: Final = live.result
        # Where nothing is new it is the same object.
        self.room: Final[bytes] = _as_before(live.room, None if before is None else before.room) or b""
        self.notes: Final[bytes | None] = _as_before(live.notes, None if before is None else before.notes)
        self.timer: Final = None
        self.opening: Final = live.opening
        self.ticket: Final = live.ticket
        self._tree: Final = tree
        self._path: Final = path
        self._next: Final[dict[Input, RecalledMachine]] = {}
        self._live: LiveMachine | None = live
        self._value: bytes | None = None  # of what it leaves, once that was asked for
        self._left: bytes | None = None  # what copies of it are made from

    def key(self) -> Hashable:
        """Equal for machines that were told the same."""
        return (self._tree.name, self.number)

    def again(self) -> LiveMachine:
        """A real machine that was told all of this."""
        return self._tree.again(self._path)

    def kept(self, image: bytes) -> Left:
        """What a machine whose link is lost leaves."""
        if self._value is None:
            self._value = value_of(self.again().kept(image))
        return Left(self, image, self._value)

    def left(self, image: bytes) -> Kept:
        """What that stands for, for whoever needs one of his own: a copy of what was left once."""
        if self._left is None:
            self._left = written(self.again().kept(image))
        return cast("Kept", copied(self._left))

    def told(self, what: Input, now: float) -> RecalledMachine:
        """The machine after this; no time passes here, and how a connection was lost is the same to it."""
        what = Lost() if isinstance(what, Lost) else what
        known = self._next.get(what)
        if known is not None:
            return known
        live, self._live = self._live or self.again(), None
        after = RecalledMachine(self._tree, (*self._path, what), live.told(what, 0.0), self)
        self._next[what] = after
        return after

"""What is left of a session when its link is lost or a process is dead: what the next machine is made from.

At a source the guest runs on meanwhile, or is gone. At a destination there is room with rounds in it, a guest
that lacks pages, or nothing but what was noted of the opening.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from io import BytesIO
from pickle import Pickler
from typing import TYPE_CHECKING, Any, Final

from sterna.core.account import Account
from sterna.core.carry import DestinationCarry, SourceCarry, Ticket
from sterna.core.reopening import Opening, pages_left
from sterna.core.rounds import OutgoingRound
from sterna.core.tables import COMMITTED
from sterna.memory.pages import RegionPages
from sterna.sim.holder import PAGES, REGION, REGIONS, Holder, bitmap_of, leave, new_room

if TYPE_CHECKING:
    from sterna.sim.machines import RecalledMachine


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A session whose link is lost: what the next machine is made from, and the memory that it fills.

    Attributes:
        image: of the guest, at a source.
        notes: that go on being written.
        theirs: pages of that memory that are the guest's by now, at a destination.
        opening: at a destination, what a later process has to know of the session.
        still: at a source, the holder that its machine reads pages from, see `LiveMachine`.
    """

    carry: SourceCarry | DestinationCarry
    room: bytearray
    image: bytes = b""
    notes: bytearray | None = None
    theirs: frozenset[int] = frozenset()
    opening: Opening | None = None
    still: Holder | None = None

    @property
    def ticket(self) -> Ticket:
        """What it can be taken up again with."""
        return self.carry.ticket

    @property
    def is_committed(self) -> bool:
        """Whether HANDOVER has come, at a destination: it is not replaced any more."""
        return isinstance(self.carry, DestinationCarry) and self.carry.fetching is not None

    @property
    def is_forgettable(self) -> bool:
        """Whether it is on record, and nobody can have granted in it, at a destination [ONE-56]."""
        return self.carry.account.forgettable


@dataclass(frozen=True, slots=True)
class Left:
    """The same of a machine that stands for all like it: a real one is made each time.

    Attributes:
        value: of what there is to go on with, see `value_of`: machines that have left the same are one.
    """

    machine: RecalledMachine = field(compare=False)
    image: bytes
    value: bytes

    @property
    def ticket(self) -> Ticket | None:
        """What it can be taken up again with, at a destination."""
        return self.machine.ticket

    @property
    def is_committed(self) -> bool:
        """See `Kept`."""
        return self.machine.state in COMMITTED

    @property
    def is_forgettable(self) -> bool:
        """See `Kept`."""
        return self.again().is_forgettable

    def again(self) -> Kept:
        """What the machine leaves, for whoever needs one of his own."""
        return self.machine.left(self.image)


@dataclass(frozen=True, slots=True)
class Noted:
    """The same of a source whose process is dead: the notes that are found in its guest's holder.

    Attributes:
        reuses: whether connections are numbered as if nobody had been there before, as must never be.
    """

    session: bytes
    image: bytes
    notes: bytes
    reuses: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """The same of a destination whose process is dead: what the next one finds of a guest that runs [RES-16].

    Attributes:
        session: that brought it.
        missing: pages that are not installed.
        notes: of the image, as its holder has them [PCY-16].
        memory: as the holder has it, see there.
        opening: what was noted of the session; the same in all worlds.
        fresh: whether the memory is taken for new, as must never be.
    """

    session: bytes
    missing: frozenset[int]
    notes: bytes
    memory: bytes = field(repr=False)
    opening: Opening = field(compare=False, repr=False)
    fresh: bool = False

    def again(self) -> Kept:
        """What a machine goes on with: memory as it was left, in which what is installed is the guest's."""
        room = bytearray(self.memory)
        views = {REGION.id: memoryview(room)}
        pages = RegionPages(REGIONS, views) if self.fresh else pages_left(REGIONS, views)
        theirs = frozenset(range(PAGES)) - self.missing
        leave(room, theirs)
        notes = bytearray(self.notes)
        lacks = {REGION.id: bitmap_of(tuple(sorted(self.missing)))}
        carry = self.opening.with_guest(pages, memoryview(notes), lacks, 0.0)
        return Kept(carry, room, notes=notes, theirs=theirs, opening=self.opening)


@dataclass(frozen=True, slots=True)
class Fresh:
    """The same of a destination whose process has died before HANDOVER: room, and nothing in it [RES-7].

    Attributes:
        session: that is taken up.
        opening: what was noted of it; the same in all worlds.
        holds: whether the first round is said to be there, as must never be.
    """

    session: bytes
    opening: Opening = field(compare=False, repr=False)
    holds: bool = False

    def again(self) -> Kept:
        """What a machine goes on with."""
        pages, room = new_room()
        carry = self.opening.without_round(pages, 0.0)
        if self.holds:
            carry.holdings.begin(1)
            carry.holdings.end()
        return Kept(carry, room, opening=self.opening)


def value_of(kept: Kept) -> bytes:
    """The same for what the same comes of, whoever takes it up; found in all that it is made of."""
    written = BytesIO()
    _Writer(written).dump(kept)
    return blake2b(written.getvalue(), digest_size=16).digest()


# Of an account, what is told in the end, and nothing else is done with.
_TOLD: Final = frozenset({
    "blackout_s",
    "bytes_received", "_sent_before", "losses", "resumed", "streams", "after", "_steps", "_state",
})  # fmt: skip


class _Writer(Pickler):
    """Writes the value of what it is given, for which each object is written as if it were the only one."""

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file)
        self.fast = True

    def reducer_override(self, one: object) -> Any:  # noqa: ANN401 - or NotImplemented, which has no type
        """What is written for an object: what makes the like of it, and from what."""
        match one:
            case memoryview():
                return bytes, (bytes(one),)
            case Account():
                return dict, (tuple(item for item in sorted(vars(one).items()) if item[0] not in _TOLD),)
            case OutgoingRound():  # it is abandoned, or was sealed [RES-8]
                return int, (one.number,)
            case _:
                return NotImplemented

"""A source's session whose process is gone: what the next process serves on with, or frees the image by.

Once HANDOVER may have left, the image at the source is frozen, and its holder keeps it. What the holder does
not know is which of its pages were declared stale, in which groups they go and with which entries, and the
session in which they are owed. So that lies beside the memory from before the mark on (`Departure`), for as
long as the image is there: it is needed for nothing else, and lost with nothing else [RES-19].

The entries go on living there. An entry is taken when its page is queued, before the first byte can leave
(`Serving`), so a page without one was never sent. A page with one may not have arrived: that the
destination tells, as after any loss, and what it does not list is sent again, with the same entries.

Numbers of connections are not noted one by one. Each process numbers its own from a place that is further
than any process gets, and notes the place before it dials.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Final, Self

from sterna.core.account import Account
from sterna.core.carry import SourceCarry, Ticket
from sterna.core.image_notes import ImageNotes
from sterna.core.lanes import Mark
from sterna.core.negotiate import check_welcome, usable_limits
from sterna.core.sending import Sending
from sterna.errors import GuestError, SternaError
from sterna.memory.pages import PageSource
from sterna.memory.regions import RegionTable
from sterna.registry import Feature, FrameType
from sterna.wire import decode_body, encode_body
from sterna.wire.records import Hello, Welcome

# Version, generation, data connections, bytes of HELLO and of WELCOME; then both, and the image's notes.
_HEAD: Final = struct.Struct("<8sIIII8x")
_MAGIC: Final = b"sterna-s"
_NOTHING: Final = bytes(len(_MAGIC))
_ALIGNED: Final = 8

# A process resumes a session at most RESUMPTIONS_MAX times, and has as many connections of each number.
GENERATIONS_A_PROCESS: Final = 1 << 12
# What the dead process has sent there, nobody knows; but it was less than this, and more is to follow.
_ANY_SEQUENCE: Final = (1 << 63) - 1
_GENERATION_MAX: Final = (1 << 32) - 1 - 2 * GENERATIONS_A_PROCESS


@dataclass(frozen=True, slots=True)
class Departure:
    """What a source keeps beside the memory of a guest that it hands over.

    Attributes:
        ticket: by which its destination knows the session.
        image: what it was sealed as, and which of its pages follow.
    """

    ticket: Ticket
    image: ImageNotes

    @property
    def size_bytes(self) -> int:
        """Bytes that they take."""
        return self._head_bytes + self.image.size_bytes

    @property
    def _bodies(self) -> tuple[bytes, bytes]:
        return encode_body(self.ticket.hello), encode_body(self.ticket.welcome)

    @property
    def _head_bytes(self) -> int:
        return _aligned(_HEAD.size + sum(map(len, self._bodies)))

    def prepare(self, place: memoryview) -> None:
        """Have the entries kept there, while the guest runs; notes they are not before `write`.

        Raises:
            ValueError: it has fewer than `size_bytes` bytes.
        """
        self.image.move_entries_to(place[self._head_bytes :])

    def write(self, place: memoryview) -> None:
        """The image is sealed. What is written last makes notes of it, so half of them are none.

        Raises:
            ValueError: it has fewer than `size_bytes` bytes.
        """
        hello, welcome = self._bodies
        middle = _HEAD.size + len(hello) + len(welcome)
        self.image.move_to(place[_aligned(middle) :])
        place[_HEAD.size : middle] = hello + welcome
        ticket = self.ticket
        _HEAD.pack_into(place, 0, _NOTHING, ticket.generation, ticket.streams, len(hello), len(welcome))
        place[: len(_MAGIC)] = _MAGIC

    @classmethod
    def read(cls, place: memoryview, table: RegionTable) -> Self | None:
        """What another process has written there; None if it has written nothing, or nothing whole.

        Raises:
            GuestError: it makes no sense, or is of other regions.
        """
        if len(place) < _HEAD.size or bytes(place[: len(_MAGIC)]) != _MAGIC:
            return None
        _, generation, streams, hello_bytes, welcome_bytes = _HEAD.unpack_from(place)
        middle = _HEAD.size + hello_bytes
        try:
            hello = decode_body(FrameType.HELLO, bytes(place[_HEAD.size : middle]))
            welcome = decode_body(FrameType.WELCOME, bytes(place[middle : middle + welcome_bytes]))
            assert isinstance(hello, Hello)
            assert isinstance(welcome, Welcome)
            ticket = Ticket(hello, welcome, check_welcome(hello, welcome), generation, streams)
        except SternaError as error:
            raise GuestError(f"the notes of the departed guest make no sense: {error}") from error
        features = ticket.selection.features
        if (
            Feature.RESUME not in features
            or streams > features.get(Feature.DATA_STREAMS, 0)
            or generation > _GENERATION_MAX
        ):
            raise GuestError("the notes of the departed guest are of no session that can be resumed")
        image = place[_aligned(middle + welcome_bytes) :]
        return cls(ticket, ImageNotes.read(image, table, hashed=ticket.selection.hashed))

    def next_process(self, place: memoryview) -> Departure:
        """The same for a process that has found them there, and numbers connections of its own [RES-1]."""
        generation = self.ticket.generation + GENERATIONS_A_PROCESS
        magic, _, *others = _HEAD.unpack_from(place)
        _HEAD.pack_into(place, 0, magic, generation, *others)
        return replace(self, ticket=self.ticket.of_generation(generation))

    def carry(self, pages: PageSource, now: float) -> SourceCarry:
        """The session without a connection, of a guest that runs at the destination [RES-13] [RES-17].

        Args:
            pages: the image.
            now: the time.
        """
        ticket, image = self.ticket, self.image
        memory = Sending.sealed(image, pages)
        serving = None
        if image.stale.any():
            own = usable_limits(ticket.hello.limits, FrameType.HELLO)
            serving = memory.serving(image.attempt, peer=ticket.selection.limits, own=own)
            serving.take_over()
        account = Account(now)
        account.session, account.style = ticket.session, image.style
        account.verified, account.resumable = ticket.selection.hashed, ticket.selection.has(Feature.RESUME)
        mark = Mark(ticket.generation, _ANY_SEQUENCE)
        return SourceCarry(
            ticket,
            image.attempt,
            memory,
            account,
            serving=serving,
            sealed=image.sealed,
            marks=dict.fromkeys(range(1, ticket.streams + 1), mark),
            moved=True,
        )


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNED) * _ALIGNED

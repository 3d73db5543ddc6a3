"""What is stale in this attempt, and what follows from it: the receiver's view of styles [13.1].

The destination's machine and observers of recordings ask it whether a style may be used, whether DIRTY_BITMAP
may come, or pages after RUNNING, and what the guest has to wait for before it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sterna.core.bitmap_frames import Declared
from sterna.core.conduct import wrong
from sterna.core.events import Expect, Prepare
from sterna.core.fetching import Fetching
from sterna.core.image_notes import ImageNotes, keep_entries, notes_bytes
from sterna.core.state import StateAssembler
from sterna.memory.digest import MemoryDigest
from sterna.memory.pages import PageSink
from sterna.memory.regions import PageSets, RegionTable
from sterna.registry import ErrorCode, Style
from sterna.wire.records import DirtyBitmap, Record, Switchover


@dataclass(frozen=True, slots=True)
class Sealed:
    """A pause image: attempt and round in which it came, and its digest."""

    attempt: int
    round: int
    digest: bytes


class Following:
    """Pages that follow the guest, from SWITCHOVER on.

    Attributes:
        style: of the newest switchover.
        fetching: from SEAL on, the pages that are missing; None if none is.
        place: where notes of the image will be kept; None as long as that is not known.
    """

    def __init__(self, table: RegionTable, *, held: bool = False) -> None:
        """Nothing is stale. `held`: an attempt before may have told the guest to wait for pages."""
        self.style = Style.STOP_AND_COPY
        self.fetching: Fetching | None = None
        self.place: memoryview | None = None
        self._table: Final = table
        self._declared = Declared(table)
        self._held = held
        self._is_ahead = False  # the guest was told before SEAL

    @property
    def stale(self) -> PageSets:
        """What was declared stale."""
        return self._declared.pages

    def switch(self, record: Switchover, selected: frozenset[Style], rounds: int) -> None:
        """SWITCHOVER has come after so many rounds.

        Raises:
            RemoteProtocolError: NOT_SELECTED, or BAD_ROUND for post-copy after a round.
        """
        if record.style not in selected | {Style.STOP_AND_COPY}:
            raise wrong(ErrorCode.NOT_SELECTED, f"style {record.style.name}", "SWI-1", record)
        if record.style is Style.POST_COPY and rounds:
            raise wrong(ErrorCode.BAD_ROUND, f"post-copy after {rounds} rounds", "PCY-4", record)
        self.style = record.style
        self.place, self._is_ahead = None, False
        self._declared = Declared(self._table)
        # The likely ones, and for good: the guest may never hear otherwise, as an attempt that is void takes
        # back what it has asked for [CON-59].
        self._held |= record.style is not Style.STOP_AND_COPY

    def prepare(self, newest: PageSets | None, digest: MemoryDigest) -> Prepare:
        """What is to be done before the pause, with a guess at what will be stale.

        To hold accesses to a page takes time, and that can be spent before the pause. A page too many costs
        the guest at most a fault that is answered here, one too few costs blackout. What was written in a
        round is mostly written again in the next one. And a page that is not held is stale for certain: one
        that a round left out because it was written meanwhile, for one.

        Args:
            newest: the pages of the last complete round; None if there was none.
            digest: the entries of all pages that arrived.
        """
        if self.style is Style.STOP_AND_COPY:
            return Prepare(self.style)
        pages = PageSets.full(self._table) if newest is None else newest.copy()
        for number in pages:
            pages[number].__ior__(digest.stale(number))
        likely = {number: pages[number] for number in pages if pages[number].any()}
        return Prepare(self.style, likely, notes_bytes(self._table))

    def keep(self, place: memoryview, digest: MemoryDigest) -> None:
        """Keep the entries where the notes will be, before the pause: a large guest has many.

        Raises:
            ValueError: it is too small for them.
        """
        keep_entries(digest, place)
        self.place = place

    def declare(self, record: DirtyBitmap, states: StateAssembler) -> PageSets:
        """DIRTY_BITMAP has come, with so much state before it; the pages that it declares.

        Raises:
            RemoteProtocolError: UNEXPECTED_FRAME, OUTSIDE_REGION or OVERLAPPING_RUNS.
        """
        if self.style is Style.STOP_AND_COPY:
            raise wrong(ErrorCode.UNEXPECTED_FRAME, "a page is stale in stop-and-copy", "PCY-21", record)
        if states.has_begun:
            raise wrong(ErrorCode.UNEXPECTED_FRAME, "DIRTY_BITMAP behind STATE", "PCY-1", record)
        return self._declared.add(record)

    def begin_state(self, digest: MemoryDigest, attempt: int, number: int) -> Expect | None:
        """STATE has come, and all stale pages are declared [PCY-1]: tell the guest while SEAL is on its way.

        That binds nobody: an attempt that is void, or not sealed as it should be, takes it back or frees the
        room. None where it has to wait for `seal`, or nothing is new.
        """
        if self.place is None or self._is_ahead:
            return None
        self._is_ahead = True
        return self._expect(digest, Sealed(attempt, number, b""), ahead=True)

    def seal(self, sink: PageSink, digest: MemoryDigest, image: Sealed, most_requests: int) -> Expect | None:
        """The image is sealed: what the guest has to be told to wait for; None for nothing new.

        Arguments as for `Fetching`.
        """
        self.fetching = None
        if self.stale.any():
            position = image.attempt, image.round + 1
            self.fetching = Fetching(self.stale, sink, digest, position, most_requests)
        if not self._is_ahead:
            return self._expect(digest, image, ahead=False)
        if self.fetching is not None:
            assert self.place is not None
            self._notes(digest, image).move_to(self.place)
        return None

    def _expect(self, digest: MemoryDigest, image: Sealed, *, ahead: bool) -> Expect | None:
        if not self._held:
            return None
        stale = {number: self.stale[number] for number in self.stale if self.stale[number].any()}
        return Expect(stale, self._notes(digest, image), ahead)

    def _notes(self, digest: MemoryDigest, image: Sealed) -> ImageNotes:
        return ImageNotes(digest, self.stale, image.attempt, image.round, self.style, image.digest)

    def expected(self, record: Record) -> Fetching:
        """What is missing, for a frame that is about that.

        Raises:
            RemoteProtocolError: UNEXPECTED_FRAME where no page was stale.
        """
        if self.fetching is None:
            detail = f"{record.type.name}, and no page was stale"
            raise wrong(ErrorCode.UNEXPECTED_FRAME, detail, "PCY-21", record)
        return self.fetching

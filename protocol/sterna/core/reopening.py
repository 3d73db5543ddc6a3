"""A session whose destination process is gone: what the next process goes on with.

Three things outlive a process. What was agreed on at the opening is small and does not change: the host notes
it (`Opening`). The room and the guest in it are the holder's, if there is one. And while pages follow the
guest, what is known of each page lies beside its memory (`ImageNotes`), because it cannot be found out any
more once the guest writes [PCY-16].

Before RUNNING nothing but the opening is needed: the new process says that it has no round, and everything is
sent once more [RES-7]. Afterwards nothing may be lost: which pages are missing the holder knows to the bit,
and their entries are in the notes, written before the bit was set. So a page whose bit is not set is asked
for again, whatever of it had come, and one whose bit is set is never written again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sterna.core.account import Account
from sterna.core.carry import DestinationCarry, Ticket
from sterna.core.events import Admission
from sterna.core.fetching import Fetching
from sterna.core.holdings import Holdings
from sterna.core.image_notes import ImageNotes
from sterna.core.negotiate import Selection, usable_limits
from sterna.errors import GuestError
from sterna.memory.bitmap import PageBitmap
from sterna.memory.digest import MemoryDigest
from sterna.memory.pages import PageSink, RegionPages
from sterna.memory.regions import RegionTable
from sterna.registry import Feature, FrameType
from sterna.wire.records import Guest, Hello, Runner, Welcome


def pages_left(table: RegionTable, memory: Mapping[int, memoryview]) -> RegionPages:
    """Memory that a process goes on filling which has not begun to: what is missing there need not be zero.

    It is as the process before has left it, with pages of rounds before the pause [RES-13].

    Raises:
        ValueError: the memory does not fit the regions.
    """
    return RegionPages(table, memory, fresh=False)


@dataclass(frozen=True, slots=True)
class Opening:
    """What was agreed on when a session was opened.

    Attributes:
        hello: that opened it.
        welcome: that answered.
        guest: what comes.
        runner: who will run it here.
    """

    hello: Hello
    welcome: Welcome
    guest: Guest
    runner: Runner

    @property
    def ticket(self) -> Ticket:
        """What the session can be taken up again with.

        The generation is that of the opening: newer connections have ended with the process that had them.
        """
        features = {each.id: each.parameter for each in self.welcome.features}
        limits = usable_limits(self.hello.limits, FrameType.HELLO)
        selection = Selection(self.welcome.version, features, limits)
        return Ticket(self.hello, self.welcome, selection, streams=features.get(Feature.DATA_STREAMS, 0))

    @property
    def admission(self) -> Admission:
        """As the host gave it."""
        return Admission(self.welcome.session, self.welcome.token, self.runner)

    def without_round(self, sink: PageSink, now: float) -> DestinationCarry:
        """The session with nothing but room for its guest [RES-7]."""
        regions, hashed = RegionTable(self.guest.regions), self.ticket.selection.hashed
        return self._carry(sink, MemoryDigest(regions, hashed=hashed), now)

    def with_guest(
        self, sink: PageSink, place: memoryview, missing: Mapping[int, PageBitmap], now: float
    ) -> DestinationCarry:
        """The session whose guest runs here, and may lack pages [RES-13].

        Args:
            sink: the guest's memory.
            place: the notes that were made of the image.
            missing: stale pages that are not installed; regions without one may be left out.
            now: the time.

        Raises:
            GuestError: these are no notes of this guest, or not of this image.
        """
        notes = ImageNotes.read(place, RegionTable(self.guest.regions), hashed=self.ticket.selection.hashed)
        for region, pages in missing.items():
            never_stale = pages.copy()
            never_stale -= notes.stale[region]
            if never_stale.any():
                raise GuestError("the notes of the image say that pages are there which are missing")
        position, limits = (notes.attempt, notes.round + 1), self.ticket.selection.limits
        fetching = Fetching(notes.stale, sink, notes.digest, position, limits.page_requests)
        fetching.take_over(missing)
        carry = self._carry(sink, notes.digest, now)
        carry.holdings.begin(notes.round)
        carry.holdings.end()
        carry.account.style = notes.style
        carry.account.guest_runs(now)
        return replace(carry, attempt=notes.attempt, fetching=fetching, sealed=notes.sealed)

    def _carry(self, sink: PageSink, digest: MemoryDigest, now: float) -> DestinationCarry:
        account = Account(now)
        account.session, selection = self.welcome.session, self.ticket.selection
        account.verified, account.resumable = selection.hashed, selection.has(Feature.RESUME)
        return DestinationCarry(
            ticket=self.ticket,
            attempt=1,
            admission=self.admission,
            guest=self.guest,
            sink=sink,
            digest=digest,
            holdings=Holdings(digest.table),
            account=account,
        )

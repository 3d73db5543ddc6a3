"""What a source has to send again after its session was lost and taken up again [RES-9].

The question is of which pages the destination holds the version that the source last meant to send. Three
things make it hard: the newest acknowledgement may be lost, pages of a round that never ended may or may not
have arrived, and an older version of a page may be there although a newer one is not. The answer rests on
numbers of rounds alone. Each page has a *latest round*, the last one that it was to be sent in, sent or not.
A page is at the destination if its latest round is complete there, or if the destination lists the page under
that very number. Everything else is dirty, and so is what the guest has written since.

A page is never counted as held by mistake: a list may be stale, short or empty, and then more is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sterna.core.bitmap_frames import Ascending, add_frame, check_within
from sterna.core.conduct import wrong
from sterna.memory.regions import PageSets, RegionTable
from sterna.registry import ErrorCode
from sterna.wire.records import Held, Welcome


class HeldReport:
    """What WELCOME and the HELD frames behind it say about the destination's pages [RES-5] [RES-6].

    Attributes:
        complete: the last complete round, 0 if there is none.
        owed: HELD frames that are still to come [BMP-7].
        applied: what was applied, by round; of rounds that were asked for.
        rejected: what was rejected and has not come since.
    """

    def __init__(self, welcome: Welcome, table: RegionTable, begun: int, wanted: frozenset[int]) -> None:
        """Begin.

        Args:
            welcome: the frame that tells how many follow.
            table: the guest's regions.
            begun: number of the last round that this side has begun.
            wanted: the rounds of which it wants to know the pages; others are checked and forgotten.

        Raises:
            RemoteProtocolError: BAD_ROUND.
        """
        if welcome.complete_round > begun:
            detail = f"round {welcome.complete_round} is complete, the last one begun was {begun}"
            raise wrong(ErrorCode.BAD_ROUND, detail, "RES-5", welcome)
        self.complete: Final = welcome.complete_round
        self.owed = welcome.held_frames
        self.applied: Final = {number: PageSets(table) for number in wanted if number > self.complete}
        self.rejected: Final = PageSets(table)
        self._begun: Final = begun
        self._order: Final = Ascending()

    def add(self, frame: Held) -> None:
        """The next frame.

        Raises:
            RemoteProtocolError: COUNT_MISMATCH, OVERLAPPING_RUNS, or OUTSIDE_REGION.
        """
        if not self.owed:
            raise wrong(ErrorCode.COUNT_MISMATCH, "more HELD than WELCOME announced", "BMP-7", frame)
        least = 1 if frame.rejected else self.complete + 1
        if not least <= frame.round <= self._begun:
            detail = f"pages of round {frame.round}, complete is {self.complete}, begun {self._begun}"
            raise wrong(ErrorCode.COUNT_MISMATCH, detail, "RES-6", frame)
        self._order.check(frame)
        if frame.rejected:
            add_frame(self.rejected, frame)
        elif frame.round in self.applied:
            add_frame(self.applied[frame.round], frame)
        else:
            check_within(self.rejected.table, frame)
        self.owed -= 1


def dirty_after_resume(
    pending: PageSets, planned: Mapping[int, PageSets], confirmed: int, report: HeldReport
) -> PageSets:
    """The pages of which the destination may lack the newest version.

    Args:
        pending: collected and not yet part of a round, rejected, or never sent.
        planned: for each round after the confirmed one, the pages of which it is the latest round.
        confirmed: the last round that the destination has ever said to be complete.
        report: what it says now; complete, with all its frames.
    """
    if report.complete < confirmed:  # what it had is lost, and of which rounds it was is forgotten here
        return PageSets.full(pending.table)
    dirty = pending.copy()
    dirty |= report.rejected
    for number, pages in planned.items():
        if number > report.complete:
            missing = pages.copy()
            missing -= report.applied[number]
            dirty |= missing
    return dirty

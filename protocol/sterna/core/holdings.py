"""What a destination remembers of rounds so that a lost session can be taken up again [RES-5] [RES-6].

The entries of the digest say which chunk each page is from. What they do not say is of which round, and only
that tells the source whether a page is of the newest version that it meant to send. So the pages of each
round after the last complete one are kept, as a set a round; of complete rounds the number is enough. A page
leaves its set when a later version begins to arrive, because from there on it is of neither.

Rounds that were begun and never ended are rare, there is one for each loss of the link. Of more than
`ROUNDS_APART` the oldest is forgotten, and then its pages are sent once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from sterna import limits as bounds
from sterna.core.bitmap_frames import held_frames
from sterna.memory.regions import PageSets, RegionTable
from sterna.wire.records import Held, PageRange, Pages


class Holdings:
    """The rounds of what a destination holds.

    Attributes:
        newest: number of the newest round that was begun, 0 before the first.
        complete: number of the last round whose ROUND_END was acted on, 0 if there is none.
        last: the pages of that round; None if there is none.
    """

    def __init__(self, table: RegionTable) -> None:
        """Nothing is held."""
        self.newest = 0
        self.complete = 0
        self.last: PageSets | None = None
        self._table: Final = table
        self._applied: dict[int, PageSets] = {}
        self._rejected: PageSets | None = None  # made with the first rejection

    def begin(self, number: int) -> None:
        """A round has begun; one that was open is abandoned [CON-59] [RES-8]."""
        self.newest = number

    def announce(self, table: Pages) -> None:
        """Pages begin to arrive: what was held of them is gone, what was rejected is being replaced."""
        for pages in self._sets:
            pages[table.region].clear_runs(table.runs["first"], table.runs["count"])

    def take(self, table: Pages, rejected: Sequence[PageRange]) -> None:
        """Pages of the newest round have arrived, but for those that did not match their hash."""
        if self.newest not in self._applied:
            self._applied[self.newest] = PageSets(self._table)
            if len(self._applied) > bounds.ROUNDS_APART:
                del self._applied[min(self._applied)]
        applied = self._applied[self.newest]
        applied[table.region].set_runs(table.runs["first"], table.runs["count"])
        if not rejected:
            return
        if self._rejected is None:
            self._rejected = PageSets(self._table)
        for each in rejected:
            applied[each.region].clear(each.first, each.count)
        self._rejected.add_ranges(rejected)

    def end(self) -> None:
        """The newest round is complete: of it, and of those before, nothing need be told any more."""
        self.complete = self.newest
        self.last = self._applied.pop(self.newest, PageSets(self._table))
        if self._rejected is not None:
            self.last |= self._rejected
        self._applied.clear()

    def frames(self, control_bytes: int) -> Iterator[Held]:
        """All that a resumption has to be told, in the order of BMP-8."""
        for number, pages in sorted(self._applied.items()):
            yield from held_frames(number, pages, control_bytes, rejected=False)
        if self._rejected is not None:
            yield from held_frames(self.newest, self._rejected, control_bytes, rejected=True)

    @property
    def _sets(self) -> Iterator[PageSets]:
        yield from self._applied.values()
        if self._rejected is not None:
            yield self._rejected

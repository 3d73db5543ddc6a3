"""The source after HANDOVER: which stale pages it sends next [13.2].

Two things compete for the connection. Pages that a vCPU waits for go first, in the order in which they were
asked for; the rest is pushed while nothing is asked for. The push goes on behind the group that was asked for
last, because what a guest touches next most often lies there, and wraps at the end.

What is asked for waits for the batch under way, and so batches are small here. How much of the push goes
before it on the connection is for sterna.core.pushing.

The image does not change any more. So a group is found to be zero or not the same each time that it is
encoded [PCY-17], and its entries are the same however often it is sent [PCY-14].
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sterna.core.conduct import wrong
from sterna.core.resuming import HeldReport
from sterna.core.rounds import batch_bounds
from sterna.limits import CHUNK_BYTES, Limits
from sterna.memory.bitmap import Positions
from sterna.memory.digest import MemoryDigest
from sterna.memory.groups import Groups
from sterna.memory.pages import PageSource
from sterna.memory.regions import PageSets
from sterna.registry import ErrorCode
from sterna.wire.records import PageRequest, Pages, Record, Welcome

# What a demanded group may have to wait for on this side: a quarter of a mebibyte takes 2 ms at a gigabit.
PUSH_BYTES: Final = 4 * CHUNK_BYTES
# Requests that wait together go together, up to this.
DEMAND_BYTES: Final = 2 * CHUNK_BYTES
# How often a group may be asked for on one connection. A destination asks once, and again after a mismatch;
# more is a peer that makes this side send without end [PCY-18].
ASKED_MAX: Final = 32
# Requests that ask for no stale page, on one connection. A destination knows what is stale, and needs none of
# them; they cost nothing but the time to read them, which a peer must not take for ever [PCY-18].
IN_VAIN_MAX: Final = 1024


@dataclass(frozen=True, slots=True)
class AfterStats:
    """The phase after RUNNING in numbers, as one side sees it. Pages, unless it says otherwise.

    Attributes:
        stale: missing when the guest began to run.
        demanded: of these, asked for before they came, or were sent.
        pushed: of these, not asked for.
        early: of these, there before their group had come [PCY-31] (destination).
        repeated: sent again (source), or dropped because they were there already (destination).
        requests: PAGE_REQUEST frames.
        mismatched: came with another content than their hash says.
        outside: came though they never were stale.
        seconds: from RUNNING to COMPLETE; None if it did not get there.
    """

    stale: int = 0
    demanded: int = 0
    pushed: int = 0
    early: int = 0
    repeated: int = 0
    requests: int = 0
    mismatched: int = 0
    outside: int = 0
    seconds: float | None = None


class Serving:
    """The stale pages of one migration, at the source.

    Attributes:
        groups: the stale pages.
        position: attempt and round that PAGES carry [PCY-8].
        demanded: pages sent because they were asked for, the first time.
        pushed: pages sent unasked.
        repeated: pages sent once more.
        requests: PAGE_REQUEST frames that came.
    """

    def __init__(
        self,
        stale: PageSets,
        pages: PageSource,
        digest: MemoryDigest,
        position: tuple[int, int],
        *,
        peer: Limits,
        own: Limits,
    ) -> None:
        """Begin.

        Args:
            stale: what DIRTY_BITMAP declared.
            pages: the image.
            digest: the entries of all pages.
            position: attempt and round that PAGES carry [PCY-8].
            peer: what the receiver announced.
            own: what this side announced.
        """
        self.groups: Final = Groups(stale)
        self.demanded = self.pushed = self.repeated = self.requests = 0
        self._pages: Final = pages
        self._digest: Final = digest
        self.position: Final = position
        most, self._most_runs = batch_bounds(stale.table, peer, PUSH_BYTES, 0.0)
        self._most_bytes: Final = max(most, CHUNK_BYTES)
        self._most_requests: Final = own.page_requests
        self._unsent: Final[npt.NDArray[np.bool_]] = np.ones(len(self.groups), dtype=np.bool_)
        self._new: Final[npt.NDArray[np.bool_]] = np.ones(len(self.groups), dtype=np.bool_)  # never sent
        self._asked: Final[npt.NDArray[np.uint8]] = np.zeros(len(self.groups), dtype=np.uint8)
        self._left = len(self.groups)
        self._pages_left = self.groups.pages
        self._cursor = self._in_vain = 0
        self._urgent: deque[range] = deque()
        self._patient: deque[range] = deque()

    @property
    def is_asked(self) -> bool:
        """Whether something that was asked for waits."""
        return bool(self._urgent or self._patient)

    @property
    def pages_left(self) -> int:
        """Pages that were never sent, by whatever process."""
        return self._pages_left

    def stats(self, seconds: float | None = None) -> AfterStats:
        """How it went so far."""
        return AfterStats(
            stale=self.groups.pages,
            demanded=self.demanded,
            pushed=self.pushed,
            repeated=self.repeated,
            requests=self.requests,
            seconds=seconds,
        )

    def request(self, record: PageRequest) -> None:
        """The destination asks for pages. Those that never were stale are passed over [PCY-9].

        Raises:
            RemoteProtocolError: OUTSIDE_REGION for a region that is not copied; LIMIT_RATE for more requests
                than this side has announced to keep, for a group that was asked for too often, or for too
                many requests that ask for no stale page.
        """
        if record.region not in self.groups.table:
            raise wrong(ErrorCode.OUTSIDE_REGION, f"region {record.region}", "PCY-19", record)
        self.requests += 1
        groups = self.groups.covering(record.region, record.first, record.count)
        if not groups:
            self._in_vain += 1
            if self._in_vain > IN_VAIN_MAX:
                detail = f"more than {IN_VAIN_MAX} page requests for nothing that is stale"
                raise wrong(ErrorCode.LIMIT_RATE, detail, "PCY-18", record)
            return
        if len(self._urgent) + len(self._patient) >= self._most_requests:
            detail = f"more than {self._most_requests} page requests that are not answered"
            raise wrong(ErrorCode.LIMIT_RATE, detail, "CMP-3", record)
        asked = self._asked[groups.start : groups.stop]
        if (asked.item(0) if len(groups) == 1 else int(asked.max())) >= ASKED_MAX:
            detail = f"pages of region {record.region} were asked for {ASKED_MAX} times"
            raise wrong(ErrorCode.LIMIT_RATE, detail, "PCY-18", record)
        asked += 1
        (self._urgent if record.urgent else self._patient).append(groups)

    def push_near(self, region: int, page: int) -> None:
        """The guest has touched this page, and it was served elsewhere [PCY-28]: the push goes on from there.

        Nothing happens for a page that is not stale, or none at all.
        """
        if region in self.groups.table and 0 <= page < self.groups.table[region].pages:
            groups = self.groups.covering(region, page, 1)
            self._cursor = groups.start if groups else self._cursor

    # ---- a lost process ----

    def take_over(self) -> None:
        """Another process has sent some of them: those that have entries, which it took first [RES-19]."""
        starts, counts = self.groups.runs(slice(None))
        for region in self.groups.table.copied:
            mine = self.groups.of(region.id)
            groups = slice(mine.start, mine.stop)
            self._new[groups] = self._digest.stale(region.id).has(starts[groups])
        self._pages_left = int(counts[self._new].sum())

    # ---- a lost link ----

    def report(self, welcome: Welcome) -> HeldReport:
        """What the destination is about to say of the pages that it has installed [RES-13].

        Raises:
            RemoteProtocolError: BAD_ROUND for another round than that of the blackout.
        """
        number = self.position[1]
        if welcome.complete_round != number - 1:
            detail = f"round {welcome.complete_round} is complete, the blackout was round {number - 1}"
            raise wrong(ErrorCode.BAD_ROUND, detail, "RES-13", welcome)
        return HeldReport(welcome, self.groups.table, number, frozenset({number}))

    def resume(self, report: HeldReport, record: Record) -> None:
        """What is installed there need not be sent any more; all else may be lost, and so may requests.

        Args:
            report: complete, with all its frames.
            record: the last of these.

        Raises:
            RemoteProtocolError: COUNT_MISMATCH for pages that were never sent.
        """
        installed = report.applied[self.position[1]]
        starts, _ = self.groups.runs(slice(None))
        for region in self.groups.table.copied:
            mine = self.groups.of(region.id)
            groups = slice(mine.start, mine.stop)
            # Of a group all pages are installed at once, so the first one tells.
            there = installed[region.id].has(starts[groups])
            if bool(np.any(there & self._new[groups])):
                detail = f"pages of region {region.id} are held that were never sent"
                raise wrong(ErrorCode.COUNT_MISMATCH, detail, "RES-13", record)
            self._unsent[groups] = ~there
        self._left = int(np.count_nonzero(self._unsent))
        self._asked[:] = 0
        self._in_vain = 0
        self._urgent.clear()
        self._patient.clear()

    @property
    def pages_owed(self) -> int:
        """Pages that are still to be sent, some of them once more."""
        return int(self.groups.runs(slice(None))[1][self._unsent].sum())

    # ---- the order ----

    def next_batch(
        self, *, zeros: bool, push_bytes: int = PUSH_BYTES
    ) -> tuple[Pages, Sequence[memoryview]] | None:
        """The next PAGES frame; None if there is nothing to send.

        Args:
            zeros: whether zero pages may be sent as such; the same each time [PCY-17].
            push_bytes: how much of what nobody has asked for goes at once, but at least a group.
        """
        queue = self._urgent or self._patient
        if not queue:
            return self.next_push(zeros=zeros, push_bytes=push_bytes)
        if len(queue) == 1 and len(queue[0]) == 1:
            return self._one(queue.popleft().start, zeros=zeros)
        return self._batch(self._take_asked(queue), asked=True, zeros=zeros)

    def next_push(
        self, *, zeros: bool, push_bytes: int = PUSH_BYTES
    ) -> tuple[Pages, Sequence[memoryview]] | None:
        """The next PAGES frame of what nobody has asked for; arguments and result as for `next_batch`."""
        groups = self._take_unsent(push_bytes)
        return None if groups is None else self._batch(groups, asked=False, zeros=zeros)

    def _batch(self, groups: Positions, *, asked: bool, zeros: bool) -> tuple[Pages, Sequence[memoryview]]:
        self._count(groups, asked=asked)
        return self._encoded(int(groups[0]), groups, zeros=zeros)

    def _one(self, group: int, *, zeros: bool) -> tuple[Pages, Sequence[memoryview]]:
        """One group that was asked for: somebody may wait for it, and numpy's calls take longer."""
        self._cursor = group + 1
        self._count_one(group, asked=True)
        return self._encoded(group, slice(group, group + 1), zeros=zeros)

    def _encoded(
        self, first: int, groups: Positions | slice, *, zeros: bool
    ) -> tuple[Pages, Sequence[memoryview]]:
        """The frame of these groups of one region."""
        region, runs = self.groups.region_of(first), self.groups.runs(groups)
        hashed = self._digest.hashed
        batch = self._pages.encode(region, *runs, zeros=zeros, whole=True, hashed=hashed)
        table = batch.table(*self.position)
        self._digest.record(table)
        return table, batch.buffers

    def _take_asked(self, queue: deque[range]) -> Positions:
        """Groups of the requests that wait longest, of one region, ascending."""
        number = self.groups.region_of(queue[0].start)
        region, granule_log2 = self.groups.of(number), self.groups.table[number].granule_log2
        taken: set[int] = set()
        room = min(DEMAND_BYTES, self._most_bytes)
        while queue and queue[0].start in region and room > 0 and len(taken) < self._most_runs:
            groups = queue.popleft()
            for group in groups:
                size = self.groups.page_count(group) << granule_log2
                if taken and (size > room or len(taken) >= self._most_runs):
                    queue.appendleft(range(group, groups.stop))
                    room = 0
                    break
                taken.add(group)
                room -= size
                self._cursor = group + 1
        return np.array(sorted(taken), dtype=np.int64)

    def _take_unsent(self, push_bytes: int) -> Positions | None:
        """The next groups that were never sent, of one region, ascending."""
        if not self._left:
            return None
        if self._cursor >= len(self._unsent) or not self._unsent[self._cursor :].any():
            self._cursor = 0
        first = self._cursor + int(np.argmax(self._unsent[self._cursor :]))
        region = self.groups.of(self.groups.region_of(first))
        room = min(push_bytes, self._most_bytes) >> self._granule_log2(first)
        most = max(1, min(self._most_runs, room))  # no group has less than a page
        groups = first + np.flatnonzero(self._unsent[first : min(first + most, region.stop)])
        pages = np.cumsum(self.groups.runs(groups)[1])
        groups = groups[: max(1, int(pages.searchsorted(room, side="right")))]
        self._cursor = int(groups[-1]) + 1
        return groups

    def _granule_log2(self, group: int) -> int:
        return self.groups.table[self.groups.region_of(group)].granule_log2

    def _count(self, groups: Positions, *, asked: bool) -> None:
        if len(groups) == 1:
            self._count_one(groups.item(0), asked=asked)
            return
        counts, new = self.groups.runs(groups)[1], self._new[groups]
        total, first = int(counts.sum()), int(counts[new].sum())
        self.repeated += total - first
        self._pages_left -= first
        if asked:
            self.demanded += first
        else:
            self.pushed += first
        self._left -= int(np.count_nonzero(self._unsent[groups]))
        self._unsent[groups] = self._new[groups] = False

    def _count_one(self, group: int, *, asked: bool) -> None:
        pages = self.groups.page_count(group)
        if not self._new.item(group):
            self.repeated += pages
        else:
            self._pages_left -= pages
            if asked:
                self.demanded += pages
            else:
                self.pushed += pages
        self._left -= self._unsent.item(group)
        self._unsent[group] = self._new[group] = False

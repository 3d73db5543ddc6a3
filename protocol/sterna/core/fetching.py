"""The destination while pages are missing: what it asks for, what it takes, what it throws away [13.2].

The guest runs. Pages that it must not touch yet are stale, and travel in groups (sterna.memory.groups). A
group is missing, coming, arrived (verified, to be installed) or installed, in this order; only what comes
damaged, or on a link that is lost, is missing again. The first arrival wins, and what comes a second time is
read into a place where it harms nobody [STR-11].

Bytes of a missing group go straight to their place in guest memory. That is safe because the guest's accesses
to it are held until it is installed, and it is installed only when the bytes have matched their hash.

What the guest waits for comes in a table of one group or of a few, and then numpy's calls are what takes the
time. So tables of a few runs are looked at by plain loops, longer ones by numpy; both come to the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from sterna.core.conduct import wrong
from sterna.core.serving import AfterStats
from sterna.errors import RemoteProtocolError
from sterna.limits import CHUNK_BYTES
from sterna.memory.bitmap import FEW_RUNS, PageBitmap, Positions
from sterna.memory.digest import MemoryDigest
from sterna.memory.groups import Groups
from sterna.memory.pages import PageSink
from sterna.memory.regions import PageSets, chunk_pages
from sterna.registry import Encoding, ErrorCode
from sterna.wire import carries_bytes
from sterna.wire.records import PageRange, PageRequest, Pages

# How often a group may come with other bytes than its hash says [MEM-5].
MISMATCHES_MAX: Final = 8

_MISSING, _COMING, _ARRIVED, _INSTALLED = range(4)


class Fetching:
    """The stale pages of one migration, at the destination.

    Attributes:
        groups: the stale pages.
        position: attempt and round that PAGES have to carry [PCY-8].
        demanded: pages that were asked for before they came.
        pushed: pages that came unasked.
        repeated: pages that came once more, dropped.
        requests: PAGE_REQUEST frames made.
        mismatched: pages that came with another content than their hash says.
        outside: pages that came and never were stale, dropped [PCY-15].
    """

    def __init__(
        self,
        stale: PageSets,
        sink: PageSink,
        digest: MemoryDigest,
        position: tuple[int, int],
        most_requests: int,
    ) -> None:
        """Begin.

        Args:
            stale: what DIRTY_BITMAP declared.
            sink: guest memory.
            digest: the entries of all pages.
            position: attempt and round that PAGES have to carry [PCY-8].
            most_requests: the peer's limit page_requests.
        """
        self.groups: Final = Groups(stale)
        self.demanded = self.pushed = self.repeated = 0
        self.requests = self.mismatched = self.outside = 0
        self._sink: Final = sink
        self._digest: Final = digest
        self.position: Final = position
        self._most_requests: Final = most_requests
        count = len(self.groups)
        self._state: Final[npt.NDArray[np.uint8]] = np.zeros(count, dtype=np.uint8)
        self._wanted: Final[npt.NDArray[np.bool_]] = np.zeros(count, dtype=np.bool_)
        self._urgent: Final[npt.NDArray[np.bool_]] = np.zeros(count, dtype=np.bool_)
        self._mismatches: Final[dict[int, int]] = {}
        self._outstanding: Final[set[int]] = set()
        self._queue: Final[deque[int]] = deque()
        self._left = count
        self._scratch: memoryview | None = None
        self._coming: Final[dict[int, tuple[Pages, Sequence[int] | Positions]]] = {}  # by stream

    @property
    def is_complete(self) -> bool:
        """Whether every stale page is installed."""
        return not self._left

    @property
    def is_waited_for(self) -> bool:
        """Whether the guest waits for something that was asked for and has not come."""
        return any(self._urgent[group] for group in self._outstanding)

    def stats(self, seconds: float | None = None) -> AfterStats:
        """How it went so far."""
        return AfterStats(
            stale=self.groups.pages,
            demanded=self.demanded,
            pushed=self.pushed,
            early=self._sink.early_pages,
            repeated=self.repeated,
            requests=self.requests,
            mismatched=self.mismatched,
            outside=self.outside,
            seconds=seconds,
        )

    # ---- asking ----

    def fault(self, region: int, first: int, count: int) -> None:
        """The guest waits for these pages: ask for those that are missing and were not asked for."""
        for group in self.groups.covering(region, first, count):
            # What a mismatch has queued already is queued once more, for now somebody waits for it.
            if self._state[group] < _ARRIVED and not self._urgent[group]:
                self._urgent[group] = self._wanted[group] = True
                self._queue.append(group)

    def next_request(self) -> PageRequest | None:
        """What to ask for next; None if there is nothing, or the peer takes no more for now [PCY-11]."""
        while self._queue and len(self._outstanding) < self._most_requests:
            group = self._queue.popleft()
            if self._state[group] != _MISSING or group in self._outstanding:
                continue
            self._outstanding.add(group)
            self.requests += 1
            region = self.groups.region_of(group)
            return PageRequest(region, *self.groups.run(group), urgent=bool(self._urgent[group]))
        return None

    # ---- a lost link ----

    def held(self) -> PageSets:
        """The pages that were installed since SEAL [RES-13]."""
        pages = PageSets(self.groups.table)
        for region in self.groups.table.copied:
            mine = self.groups.of(region.id)
            there = mine.start + np.flatnonzero(self._state[mine.start : mine.stop] == _INSTALLED)
            pages[region.id].set_runs(*self.groups.runs(there))
        return pages

    def take_over(self, missing: Mapping[int, PageBitmap]) -> None:
        """An endpoint before this one has installed pages: all but these. They count as pushed.

        Args:
            missing: by region id; regions without one may be left out.
        """
        for region in self.groups.table.copied:
            mine = self.groups.of(region.id)
            starts, counts = self.groups.runs(slice(mine.start, mine.stop))
            # Of a group all pages are installed at once, for they share a word of the bitmap.
            there = np.ones(len(starts), dtype=np.bool_)
            if region.id in missing:
                there = ~missing[region.id].has(starts)
            self._state[mine.start : mine.stop][there] = _INSTALLED
            self.pushed += int(counts[there].sum())
            self._left -= int(np.count_nonzero(there))

    def ask_again(self) -> None:
        """Requests and answers under way are lost with the link: what the guest waits for goes first."""
        for stream in tuple(self._coming):
            self.drop(stream)
        self._outstanding.clear()
        self._queue.clear()
        missing = self._wanted & (self._state == _MISSING)
        for groups in (missing & self._urgent, missing & ~self._urgent):
            self._queue.extend(np.flatnonzero(groups).tolist())

    # ---- taking ----

    def drop(self, stream: int) -> None:
        """What was coming there never will: the connection is gone."""
        if stream in self._coming:
            numbers = np.asarray(self._coming.pop(stream)[1], dtype=np.int64)
            self._state[numbers] = _MISSING
            self._queue.extend(numbers[self._wanted[numbers]].tolist())

    def announce(self, table: Pages, stream: int = 0) -> list[memoryview]:
        """Check a page table before any of its bytes is taken: where these go.

        What is coming on another connection already comes only there: two would write to one place.

        Raises:
            RemoteProtocolError: BAD_ROUND, BAD_VALUE for what is no whole group, NOT_SELECTED for a change.
        """
        if (table.attempt, table.round) != self.position:
            detail = f"pages of round {table.round}, expected {self.position[1]}"
            raise wrong(ErrorCode.BAD_ROUND, detail, "PCY-8", table)
        numbers, fresh = (self._few if len(table.runs) <= FEW_RUNS else self._many)(table)
        wanted = table if len(numbers) == len(table.runs) else _only(table, np.asarray(fresh))
        self._coming[stream] = wanted, numbers
        self._put(numbers, _COMING)
        if not table.bulk_bytes:
            return []
        places = self._sink.targets(wanted)
        return places if wanted is table else list(self._targets(table, places, np.asarray(fresh)))

    def _few(self, table: Pages) -> tuple[list[int], list[bool]]:
        """The groups of a table that are missing, and which runs they are; the rest is counted.

        Raises:
            RemoteProtocolError: BAD_VALUE for what is no whole group.
        """
        step = chunk_pages(self.groups.table[table.region].granule_log2)
        numbers, fresh = [], []
        if any(encoding == Encoding.DELTA for *_, encoding in table.rows):
            raise _a_change(table)
        for first, count, _, _ in table.rows:
            groups = self.groups.covering(table.region, first, count)
            whole = len(groups) == 1 and self.groups.run(groups.start) == (first, count)
            if (groups and not whole) or first // step != (first + count - 1) // step:
                raise _no_group(table)
            fresh.append(whole and self._state.item(groups.start) == _MISSING)
            if fresh[-1]:
                numbers.append(groups.start)
            elif whole:
                self.repeated += count
            else:
                self.outside += count
        return numbers, fresh

    def _many(self, table: Pages) -> tuple[Positions, npt.NDArray[np.bool_]]:
        """The same for many runs."""
        if (table.runs["encoding"] == Encoding.DELTA).any():
            raise _a_change(table)
        first, count = table.runs["first"].astype(np.int64), table.runs["count"].astype(np.int64)
        numbers, bad = self.groups.find(table.region, first, count)
        step = chunk_pages(self.groups.table[table.region].granule_log2)
        if bool(np.any(bad | (first // step != (first + count - 1) // step))):
            raise _no_group(table)
        known = numbers >= 0
        fresh = known.copy()
        fresh[known] = self._state[numbers[known]] == _MISSING
        self.outside += int(count[~known].sum())
        self.repeated += int(count[known & ~fresh].sum())
        return numbers[fresh], fresh

    def _targets(
        self, table: Pages, places: Sequence[memoryview], fresh: npt.NDArray[np.bool_]
    ) -> Iterator[memoryview]:
        """A place for each run with bytes: guest memory for what is missing, nowhere for the rest."""
        rest = iter(places)
        raw = carries_bytes(table.runs)
        for size, missing in zip(table.runs["size_bytes"][raw].tolist(), fresh[raw].tolist(), strict=True):
            yield next(rest) if missing else self._nowhere(size)

    def _nowhere(self, size_bytes: int) -> memoryview:
        """A chunk's room for bytes that nobody reads; all of them may lie on top of each other."""
        if self._scratch is None:
            self._scratch = memoryview(bytearray(CHUNK_BYTES))
        return self._scratch[:size_bytes]

    def take(self, stream: int = 0) -> tuple[PageRange, ...]:
        """The bytes of the table announced there have come: what may be installed, neighbours joined.

        Raises:
            RemoteProtocolError: PAGE_HASH for a group that came damaged too often.
        """
        table, numbers = self._coming.pop(stream)
        if not len(numbers):
            return ()
        self._put(numbers, _MISSING)
        rejected = self._sink.commit(table, hashed=self._digest.hashed)
        self._digest.record(table, rejected)
        if rejected:
            numbers = self._without(np.asarray(numbers), rejected, table)
        return self._arrived(table.region, numbers)

    def _without(self, numbers: Positions, rejected: Sequence[PageRange], table: Pages) -> Positions:
        """The groups that have matched their hash; the others are asked for (again)."""
        good = np.ones(len(numbers), dtype=np.bool_)
        for pages in rejected:
            covered = self.groups.covering(pages.region, pages.first, pages.count)
            good &= (numbers < covered.start) | (numbers >= covered.stop)
        for group in numbers[~good].tolist():
            self._again(group, table)
        return numbers[good]

    def _again(self, group: int, table: Pages) -> None:
        """A group does not match its hash: ask for it (again) [MEM-5]."""
        self.mismatched += self.groups.page_count(group)
        count = self._mismatches[group] = self._mismatches.get(group, 0) + 1
        if count > MISMATCHES_MAX:
            detail = f"pages of region {table.region} differ from their hash for the {count}th time"
            raise wrong(ErrorCode.PAGE_HASH, detail, "MEM-5", table)
        self._outstanding.discard(group)  # that request has been answered, and the next takes its place
        self._wanted[group] = True
        self._queue.appendleft(group)

    def _arrived(self, region: int, numbers: Sequence[int] | Positions) -> tuple[PageRange, ...]:
        self._put(numbers, _ARRIVED)
        if len(numbers) <= FEW_RUNS:
            runs = [self.groups.run(int(group)) for group in numbers]
            demanded = sum(run[1] for group, run in zip(numbers, runs, strict=True) if self._wanted[group])
            total = sum(count for _, count in runs)
        else:
            starts, counts = self.groups.runs(np.asarray(numbers))
            demanded, total = int(counts[self._wanted[numbers]].sum()), int(counts.sum())
            runs = list(zip(*_joined(starts, counts), strict=True))
        self.demanded += demanded
        self.pushed += total - demanded
        return tuple(_ranges(region, runs))

    def _put(self, numbers: Sequence[int] | Positions, state: int) -> None:
        """These groups are in this state; of a few without numpy's help."""
        if len(numbers) > FEW_RUNS:
            self._state[numbers] = state
            return
        for number in numbers:
            self._state[number] = state

    def installed(self, pages: PageRange) -> None:
        """The guest may touch these pages now."""
        groups = self.groups.covering(pages.region, pages.first, pages.count)
        if len(groups) == 1:
            if self._state.item(groups.start) == _ARRIVED:
                self._left -= 1
                self._state[groups.start] = _INSTALLED
            self._outstanding.discard(groups.start)
            return
        state = self._state[groups.start : groups.stop]
        arrived = state == _ARRIVED
        self._left -= int(np.count_nonzero(arrived))
        state[arrived] = _INSTALLED
        self._outstanding.difference_update(groups)


def _only(table: Pages, rows: npt.NDArray[np.bool_]) -> Pages:
    """A table of some of the runs, each of which has at most one chunk."""
    hashes = table.hashes[rows[carries_bytes(table.runs)]]
    return Pages(table.attempt, table.round, table.region, table.runs[rows], hashes)


def _joined(starts: Positions, counts: Positions) -> tuple[list[int], list[int]]:
    """Runs, neighbours in one: where one ends another page than the next one begins with."""
    ends = starts + counts
    apart = np.flatnonzero(starts[1:] != ends[:-1]) + 1
    firsts = starts[np.concatenate(([0], apart))]
    return firsts.tolist(), (ends[np.concatenate((apart - 1, [-1]))] - firsts).tolist()


def _ranges(region: int, runs: Iterable[tuple[int, int]]) -> Iterator[PageRange]:
    """The same of a few runs, of a region."""
    first = end = -1
    for start, count in runs:
        if start != end:
            if end >= 0:
                yield PageRange(region, first, end - first)
            first = start
        end = start + count
    if end >= 0:
        yield PageRange(region, first, end - first)


def _a_change(table: Pages) -> RemoteProtocolError:
    return wrong(ErrorCode.NOT_SELECTED, "a change of pages that follow the guest", "PCY-17", table)


def _no_group(table: Pages) -> RemoteProtocolError:
    return wrong(ErrorCode.BAD_VALUE, "a run that is not one whole group", "PCY-7", table)

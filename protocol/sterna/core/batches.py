"""Batches on their way out, encoded when a connection asks for more, or *aside*: by the driver, meanwhile.

Pages as they are cost next to nothing to encode, and the newest version of a page is the best, so a batch of
these is made when the connection takes it. To pack pages takes longer than to send them. So where they are
packed the driver takes a `Job`, has it done where nobody waits for it, and brings the batch. Each connection
has so many jobs under way and batches waiting as the driver says, and no more: what waits grows old. A batch
that waits is no frame yet, so whatever else is to be said goes before it. Such batches are no views of guest
memory but take memory themselves, so all connections together have no more than `HELD_BYTES` of them, or one
that is larger.

What a job is of has been given out [8.4]: no early look spares it. If the guest writes to it meanwhile, it is
sent in a next round, as every page that is written after it was read.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from typing import Final

from sterna.core.events import CollectDirty
from sterna.core.lanes import Lane
from sterna.core.negotiate import Selection
from sterna.core.opening import SourceConfig
from sterna.core.replacing import Replacing
from sterna.core.sending import Job
from sterna.core.tables import SourceState
from sterna.memory.pages import EncodedBatch, PageSource
from sterna.registry import Feature
from sterna.wire.records import Record

# Being encoded, waiting and leaving: eight batches of the usual size, two of the largest that peers take.
HELD_BYTES: Final = 32 << 20
_SENDS: Final = {SourceState.ROUND, SourceState.BLACKOUT}


class Batches(Replacing):
    """The part of a source's machine that sends a round's pages.

    Attributes:
        packs: whether batches are encoded aside. The driver may change it at any time.
        ahead: how many batches of a connection may be under way and waiting, beside one that leaves.
    """

    def __init__(self, config: SourceConfig, pages: PageSource, now: float) -> None:
        super().__init__(config, pages, now)
        self.packs = False
        self.ahead = 1
        self._under_way: Final[Counter[int]] = Counter()  # jobs of each connection
        self._waiting: Final[defaultdict[int, deque[tuple[Job, EncodedBatch]]]] = defaultdict(deque)
        self._encoded_bytes = 0  # of the jobs' pages
        self._leaving_bytes: Final[Counter[int]] = Counter()  # each connection's newest batch

    @property
    def selection(self) -> Selection | None:
        """What the two sides have agreed on; None before WELCOME."""
        return self._selection

    @property
    def streams(self) -> tuple[int, ...]:
        """The connections."""
        return tuple(lane.stream for lane in self._lanes)

    def next_job(self, stream: int = 0) -> Job | None:
        """The next batch of a connection to be encoded aside, None if there is none for now."""
        lane = self._lanes.get(stream)
        if not self.packs or lane is None or self._state not in _SENDS or not self._can_speak:
            return None
        if self._under_way[stream] + len(self._waiting[stream]) + bool(lane.outbox) >= self.ahead:
            return None
        held_bytes = self._held_bytes
        if held_bytes and held_bytes + self._memory.job_bytes > HELD_BYTES:
            return None
        job = self._memory.next_job(stream, zeros=self._zeros)
        if job is not None:
            self._under_way[stream] += 1
            self._encoded_bytes += self._size_of(job)
        return job

    def _size_of(self, job: Job) -> int:
        return int(job.counts.sum()) << self._memory.regions[job.region].granule_log2

    @property
    def _held_bytes(self) -> int:
        """A batch that leaves is held until all of it has left."""
        waiting = sum(batch.bulk_bytes for batches in self._waiting.values() for _, batch in batches)
        leaving = (self._leaving_bytes[lane.stream] for lane in self._lanes if lane.outbox.has_unsent)
        return self._encoded_bytes + waiting + sum(leaving)

    def waiting_bytes(self, stream: int) -> int:
        """What a connection has to send before the next batch that is given out is missed."""
        lane = self._lanes.get(stream)
        unsent = 0 if lane is None else lane.outbox.unsent_bytes
        return unsent + sum(batch.bulk_bytes for _, batch in self._waiting[stream])

    def job_done(self, job: Job, batch: EncodedBatch) -> bool:
        """A batch was encoded; it is sent when its turn comes, if somebody still wants it then.

        Returns:
            Whether the connection had run out of pages to send.
        """
        self._under_way[job.stream] -= 1
        self._encoded_bytes -= self._size_of(job)
        lane = self._lanes.get(job.stream)
        if lane is None or not self._can_speak or not self._memory.wants(job):
            return False
        starved = not lane.outbox.has_unsent and not self._waiting[job.stream]
        self._waiting[job.stream].append((job, batch))
        if not lane.outbox:
            self._send_waiting(lane)
        return starved

    def may_transmit(self, stream: int = 0) -> bool:
        """See `Connected.may_transmit`: pages are queued when the connection asks for them."""
        del stream
        return True

    def _send_batch(self, lane: Lane) -> bool:
        """Queue the round's next batch on this connection; False if there is none."""
        if self._send_waiting(lane):
            return True
        sequence = lane.outbox.writer.next_sequence
        batch = self._memory.next_batch(sequence, lane.stream, zeros=self._zeros, aside=self.packs)
        if batch is not None:
            self._queue(lane, batch)
        return batch is not None

    def _send_waiting(self, lane: Lane) -> bool:
        """Queue the batch that has waited longest, of those that are still wanted; False if there is none."""
        waiting = self._waiting[lane.stream]
        while waiting:
            job, batch = waiting.popleft()
            if self._memory.wants(job):
                self._leaving_bytes[lane.stream] = batch.bulk_bytes
                self._queue(lane, self._memory.job_done(job, batch, lane.outbox.writer.next_sequence))
                return True
        return False

    def _queue(self, lane: Lane, batch: tuple[Record, Sequence[memoryview]]) -> None:
        self._send_on(lane, *batch)
        if self._memory.wants_look:
            self._ask(CollectDirty(early=True))

    def _send_on(self, lane: Lane, record: Record, buffers: Sequence[memoryview]) -> None:
        lane.sequence = lane.outbox.writer.next_sequence
        lane.outbox.send(record, buffers)

    @property
    def _zeros(self) -> bool:
        assert self._selection is not None
        return self._selection.has(Feature.ENCODING_ZERO)

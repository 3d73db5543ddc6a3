"""Pages packed in worker threads, where that pays: a source's pages for links that are slower than it is.

As long as nothing says that packing pays, batches are encoded as they always are, when a connection asks
for one, and the task here sleeps; all that is added is a trial of some pages now and then
(sterna.core.paying), beside what is sent, more and more seldom where they do not shrink, and none where the
link is faster than any packer. Once it pays the machine leaves its batches to this module. The task here
takes a job whenever a thread is free, first for the connection that has least to send, has it done, and
brings the result. The compressor lets go of the interpreter, so that connections and clocks go on.

Changes of versions that were sent cost a copy and a comparison of each page, whether or not it compresses.
They are tried on links where that is little, and given up when two rounds in a row have gained nothing by it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import trio

from sterna.core.batches import Batches
from sterna.core.events import Event, RoundFinished, RoundStarted, SessionResumed
from sterna.core.negotiate import Selection
from sterna.core.paying import Paying
from sterna.core.sending import Job
from sterna.linux.schedstat import thread_ns
from sterna.memory.packing import SAMPLE_BYTES, Measure, Packer
from sterna.memory.pages import EncodedBatch, RegionPages
from sterna.memory.recent import RecentPages
from sterna.memory.zstd import Compressor
from sterna.net.line import Signal
from sterna.net.options import Compress, Options
from sterna.net.pump import Pump
from sterna.net.steady import SteadyPages
from sterna.registry import Feature

# What a socket takes at once, and so says nothing about the link; and how long it takes for that at the most.
SOCKET_BYTES: Final = 4 << 20
FILLED_S: Final = 0.1
MEASURED_S: Final = 0.05
# For the first time sooner: as long as nothing is known of a slow link, all goes as it is.
FIRST_MEASURED_S: Final = 0.02
# A copy, a comparison and two hashes of each byte: on a faster link changes are not worth a try.
CHANGES_LINK_BYTES_S: Final = 400e6
# What the changes have to save of a round's bytes, or they are useless; and how many such rounds are enough.
CHANGES_GAIN: Final = 0.05
USELESS_ROUNDS: Final = 2
_FIRST_LEVEL: Final = 2
# What is packed for nothing, to see how long that takes: no connection waits for it.
TRIAL_BYTES: Final = 1 << 20
# A connection has a second core to itself if there is one; so many batches wait or are being packed then.
WORKERS: Final = 2
AHEAD: Final = 4


class Meter:
    """What passes while there always is something to send."""

    def __init__(self, paying: Paying) -> None:
        self._paying = paying
        self._page_bytes = self._wire_bytes = 0
        self._since: float | None = None  # when the socket was full
        self._until = 0.0
        self._skip_bytes = SOCKET_BYTES
        self._ran_ns = self._waited_ns = 0
        self._measured_s = FIRST_MEASURED_S

    def interrupted(self) -> None:
        """There was nothing to send, or something else is being sent now."""
        self._since, self._skip_bytes = None, SOCKET_BYTES

    def goes(self, page_bytes: int, wire_bytes: int, now: float) -> None:
        """A batch goes now, and those before it have gone."""
        if self._since is None:
            self._since, self._until = now, now + FILLED_S
        if self._skip_bytes > 0:
            self._skip_bytes -= wire_bytes
            if now < self._until and self._skip_bytes > 0:
                return
            self._skip_bytes, self._since = 0, now
            self._machine_share()
            self._page_bytes = self._wire_bytes = 0
        elif (seconds := now - self._since) >= self._measured_s:
            self._measured_s = MEASURED_S
            self._paying.passed(self._page_bytes, self._wire_bytes, seconds, now, self._machine_share())
            self._since = now
            self._page_bytes = self._wire_bytes = 0
        self._page_bytes += page_bytes
        self._wire_bytes += wire_bytes

    def _machine_share(self) -> float:
        """Of the time since the last call in which this thread could run, the part in which it did."""
        ran_ns, waited_ns = thread_ns()
        ran, waited = ran_ns - self._ran_ns, waited_ns - self._waited_ns
        self._ran_ns, self._waited_ns = ran_ns, waited_ns
        return ran / (ran + waited) if ran + waited else 1.0


class Changes:
    """Whether changes of versions that were sent are worth their while.

    Attributes:
        recent: the versions; None if there is no room for them, or they are of no use.
    """

    def __init__(self, recent: RecentPages | None) -> None:
        self.recent = recent
        self._useless = 0
        self._page_bytes = self._saved_bytes = 0

    def round_started(self) -> None:
        """Another round begins."""
        if self.recent is not None:
            self.recent.next_round()

    def packed(self, measure: Measure) -> None:
        """A batch was packed."""
        self._page_bytes += measure.page_bytes
        self._saved_bytes += measure.change_bytes - measure.changed_bytes

    def round_finished(self, rejected: int) -> None:
        """A round is over. What was packed is rejected only if the base was another [PGS-20]."""
        if self.recent is None:
            return
        if rejected:
            self.recent.clear()
        if self.recent.is_filled and self._page_bytes:
            useless = self._saved_bytes < self._page_bytes * CHANGES_GAIN
            self._useless = self._useless + 1 if useless else 0
            if self._useless >= USELESS_ROUNDS:
                self.recent = None
        self._page_bytes = self._saved_bytes = 0


class PackingPages(SteadyPages):
    """A `PageSource` that packs what pays; see the module's text. `run` goes beside the session's pump."""

    def __init__(self, pages: RegionPages, options: Options) -> None:
        super().__init__(pages, options.clock, options.streams or 1)
        self._clock_s: Callable[[], float] = options.clock
        self._always = options.compress is Compress.ALWAYS
        self._workers = min(max(options.streams or 1, WORKERS), os.cpu_count() or 1)
        self._free = list(range(self._workers))  # threads that have nothing to do
        self._ahead = 1 + -(-(AHEAD - 1) // (options.streams or 1))
        least = _FIRST_LEVEL if options.compress is Compress.ALWAYS else None
        # The second thread of a connection has a core only if nobody else needs it: no level counts on that.
        sure = min(options.streams or 1, self._workers)
        self._paying = Paying(sure, options.bandwidth_bytes_s or math.inf, least=least)
        self._meter = Meter(self._paying)
        self._changes = Changes(None)
        self._packers: dict[int, Packer] = {}
        self._compressors: dict[tuple[int, int], Compressor] = {}
        self._sample: memoryview | None = None
        self._trying = False
        self._trial: int | None = None  # what the next batch is packed with, to learn about it
        self._selection: Selection | None = None
        self._round = 0
        self._used: int | None = None  # the level of the newest batch
        self._waited = 0  # bytes that waited for the link when the newest batch had been packed
        self._is_busy = False  # the task looks whenever a connection may want a batch
        self._wakes: Final = Signal()  # what wakes it otherwise

    def encode(
        self,
        region: int,
        starts: npt.ArrayLike,
        counts: npt.ArrayLike,
        *,
        zeros: bool = True,
        whole: bool = False,
        hashed: bool = True,
    ) -> EncodedBatch:
        """See `PageSource.encode`: as they are."""
        batch = super().encode(region, starts, counts, zeros=zeros, whole=whole, hashed=hashed)
        now = self._clock_s()
        if self._used is not None:
            self._used = None
            self._meter.interrupted()
        self._meter.goes(batch.bulk_bytes, batch.bulk_bytes, now)
        if self._wants_sample and batch.buffers:
            self._sample = _first_bytes(batch.buffers, TRIAL_BYTES)
        self._look()
        return batch

    def on_event(self, event: Event) -> None:
        """Learn what rounds came to."""
        super().on_event(event)
        match event:
            case RoundStarted(number):
                self._round = number
                self._meter.interrupted()
                self._changes.round_started()
                self._look()
            case RoundFinished(stats):
                self._changes.round_finished(stats.rejected_pages)
            case SessionResumed() if self._changes.recent is not None:
                self._changes.recent.clear()
            case _:
                pass

    def close(self) -> None:
        """See `SteadyPages.close`."""
        super().close()
        self._packers.clear()

    async def run(self, machine: Batches, pump: Pump) -> None:
        """Pack for a machine as long as it takes batches."""
        async with trio.open_nursery() as nursery:
            while True:
                await (pump.to_pack if self._is_busy or self._selection is None else self._wakes).wait()
                if not self._knows(machine):
                    continue
                machine.packs, machine.ahead = self._packs(), self._ahead
                while self._free and (job := _next_job(machine)) is not None:
                    nursery.start_soon(self._do, job, self._free.pop(), machine, pump)
                if self._sample is not None:
                    self._trying = True
                    nursery.start_soon(self._try, self._sample)
                    self._sample = None
                self._is_busy = machine.packs

    def _look(self) -> None:
        """Wake the task if there is something for it."""
        if not self._is_busy and self._selection is not None and (self._sample is not None or self._packs()):
            self._wakes.set()

    def _knows(self, machine: Batches) -> bool:
        """Whether it was agreed on that pages come packed."""
        if self._selection is None and (selection := machine.selection) is not None:
            if not selection.window_log2:
                return False
            self._selection = selection
            room_bytes = selection.features.get(Feature.ENCODING_DELTA, 0)
            self._changes.recent = RecentPages(self._table, room_bytes) if room_bytes else None
        return self._selection is not None

    def _packs(self) -> bool:
        tries_changes = self._tries_changes and self._remembers
        return self._paying.level is not None or self._trial is not None or tries_changes

    @property
    def _tries_changes(self) -> bool:
        slow = self._paying.link_bytes_s < CHANGES_LINK_BYTES_S
        return self._changes.recent is not None and slow

    async def _do(self, job: Job, worker: int, machine: Batches, pump: Pump) -> None:
        packer, used = self._packer(worker), self._paying.level
        size = int(np.sum(job.counts)) << self._table[job.region].granule_log2
        level = self._paying.level_of(size, machine.waiting_bytes(job.stream), self._clock_s())
        if trial := self._trial is not None:
            level, self._trial = self._trial, None
        packer.recent = self._changes.recent if self._always or self._tries_changes else None
        remember = (self._remembers or job.hot) and not job.round.last

        def pack() -> tuple[EncodedBatch, float]:
            # A single batch says little on a busy machine: a trial is believed to take what it needs, and if
            # others need the machine as well, that shows as soon as batch after batch is packed.
            clock = time.thread_time if trial else time.perf_counter
            began = clock()
            compressor = None if level is None else self._compressor(worker, level)
            runs = job.region, job.starts, job.counts
            batch = packer.pack(*runs, compressor, zeros=job.zeros, remember=remember)
            return batch, clock() - began

        try:
            batch, seconds = await trio.to_thread.run_sync(pack)
        finally:
            self._free.append(worker)
        machine.job_done(job, batch)
        waits = sum(machine.waiting_bytes(stream) for stream in machine.streams)
        self._note(packer, level, seconds, waits, used=used, trial=trial)
        pump.kick(job.stream)

    def _note(
        self,
        packer: Packer,
        level: int | None,
        seconds: float,
        waits: int,
        *,
        used: int | None,
        trial: bool,
    ) -> None:
        """A batch was packed at a level, where `used` is what pays, or is tried; so many bytes wait now."""
        measure, now = packer.measure, self._clock_s()
        gone, self._waited = max(measure.sent_bytes + self._waited - waits, 0), waits
        self._changes.packed(measure)
        if level is not None and measure.page_bytes:
            sent = measure.page_bytes, measure.sent_bytes
            self._paying.packed(level, *sent, seconds, now, trial=trial)
        if used != self._used:
            self._used = used
            self._meter.interrupted()
        elif not measure.change_bytes:
            # What is packed waits before it goes: of this time are the bytes that have gone.
            pages = gone * measure.page_bytes // max(measure.sent_bytes, 1)
            self._meter.goes(pages, gone, now)
        if self._wants_sample and packer.sample:
            self._sample = packer.sample

    @property
    def _wants_sample(self) -> bool:
        known = self._selection is not None and not self._trying and self._trial is None
        return known and self._paying.is_trial_due(self._clock_s())

    async def _try(self, sample: memoryview) -> None:
        """Pack some pages for nothing but to see what comes of it, and more of them if these have shrunk."""
        few = sample[:SAMPLE_BYTES]
        try:
            size, seconds = await self._try_at(_FIRST_LEVEL, few)
            if not self._paying.sampled(len(few), size, seconds, self._clock_s()):
                return
            level = self._paying.next_trial()
            if self._packs():  # no connection waits for a batch of it
                self._trial = level
                return
            size, seconds = await self._try_at(level, sample)
            self._paying.packed(level, len(sample), size, seconds, self._clock_s(), trial=True)
            self._look()
        finally:
            self._trying = False

    async def _try_at(self, level: int, content: memoryview) -> tuple[int, float]:
        """Bytes that it is packed to, and seconds of a processor: nobody waits for it."""
        compressor = self._compressor(-1, level)

        def pack() -> tuple[int, float]:
            began = time.thread_time()
            size = len(compressor.frame(content))
            return size, time.thread_time() - began

        return await trio.to_thread.run_sync(pack)

    @property
    def _remembers(self) -> bool:
        """Whether pages of this round may be sent once more: of the first those where the guest writes."""
        assert self._selection is not None
        room_bytes = self._selection.features.get(Feature.ENCODING_DELTA, 0)
        fits = sum(region.size_bytes for region in self._table.copied) <= room_bytes
        return fits or self._round > 1

    def _packer(self, worker: int) -> Packer:
        if worker not in self._packers:
            assert self._pages is not None
            assert self._selection is not None
            expansion, hashed = self._selection.limits.expansion, self._selection.hashed
            self._packers[worker] = Packer(self._pages, expansion, hashed=hashed)
        return self._packers[worker]

    def _compressor(self, worker: int, level: int) -> Compressor:
        """One for each thread that may be at work at the same time."""
        assert self._selection is not None
        if (worker, level) not in self._compressors:
            self._compressors[worker, level] = Compressor(level, self._selection.window_log2)
        return self._compressors[worker, level]


def _first_bytes(buffers: Sequence[memoryview], size: int) -> memoryview:
    """A copy of so many bytes."""
    some = bytearray()
    for buffer in buffers:
        some += buffer[: size - len(some)]
        if len(some) == size:
            break
    return memoryview(some)


def _next_job(machine: Batches) -> Job | None:
    """The next batch to be packed: of the connection that has least to send, of those that have one."""
    jobs = (machine.next_job(stream) for stream in sorted(machine.streams, key=machine.waiting_bytes))
    return next((job for job in jobs if job is not None), None)


def pages_to_send(pages: RegionPages, options: Options) -> SteadyPages:
    """What a source reads its guest's memory by."""
    if options.compress is Compress.OFF:
        return SteadyPages(pages, options.clock, options.streams or 1)
    return PackingPages(pages, options)

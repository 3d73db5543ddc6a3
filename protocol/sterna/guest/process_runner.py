"""The thread that runs a workload in real time, at a rate.

A token bucket on the monotonic clock: time earns writes, a block of writes spends them, and where too few
are left the thread sleeps on a condition, so that a pause wakes it. A block takes some tenths of a
millisecond, and a pause falls between two blocks; that is its latency. The bucket holds a tenth of a second:
a thread that was held up catches up on that much and no more.

Throttling takes away a share of the running time. A workload at a rate uses less than all of its time, so
the same share is taken from its rate: what counts for a migration is that it writes that much less.

While pages of its memory come later, a block is one of the workload's, and the thread waits for its pages
before the first write of it. It counts as parked there: nothing is half-done, and a wish that came meanwhile
is looked at before it writes. So a pause does not wait for a page, and no page that comes ends a pause.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Final

from sterna.errors import GuestError
from sterna.guest.journal import boottime_ns
from sterna.guest.process_gate import FaultGate
from sterna.guest.workload import PAGE_BYTES, Workload

BLOCK_PAGES: Final = 256  # 0.3 ms at the 3.5 GiB/s that a core reaches
BEAT_S: Final = 0.1
_BUCKET_S: Final = 0.1
_LEAST_SLEEP_S: Final = 0.01  # shorter sleeps cost more in waking up than they gain in evenness
_WINDOW_S: Final = 1.0
_STOP_WITHIN_S: Final = 5.0


class _Wish(Enum):
    PARK = 0
    RUN = 1
    STOP = 2


class WorkloadRunner:
    """Runs a workload; all methods are for one other thread.

    Args:
        workload: what to run. It belongs to the runner's thread except while that is parked.
        rate_bytes_s: pages written a second times their size; 0 for as fast as it goes.
        on_progress: called in the runner's thread with the event that `run` named, after the first write
            since then, and with "beat" now and then.
        gate: where it waits for pages that come later; None if all are there.

    Attributes:
        gate: likewise; take it away when all are there.
        first_write_ns: CLOCK_BOOTTIME after the first write since the last `run` that named an event.
        last_write_ns: after the latest write. Both 0 before there was one.
        failure: what ended the thread.
    """

    def __init__(
        self,
        workload: Workload,
        rate_bytes_s: int,
        on_progress: Callable[[str], None],
        gate: FaultGate | None = None,
    ) -> None:
        self.workload = workload
        self.gate = gate
        self.first_write_ns = 0
        self.last_write_ns = 0
        self.failure: BaseException | None = None
        self._rate_pages_s = rate_bytes_s / PAGE_BYTES
        self._share = 0.0
        self._on_progress = on_progress
        self._condition = threading.Condition()
        self._wish = _Wish.PARK
        self._parked = False
        self._parks = 0
        self._event = ""
        self._samples: deque[tuple[float, int]] = deque()  # running time and count, about the last second
        self._running_s = 0.0
        self._thread = threading.Thread(target=self._main, name="workload", daemon=True)
        self._thread.start()

    def run(self, event: str = "") -> None:
        """Let it write. `event` is what `on_progress` is told after the first write; empty for nothing.

        One that was not told yet, because it was parked again before it had written, goes first.
        """
        self._check()
        self._event = self._event or event
        self._set(_Wish.RUN)

    def park(self) -> None:
        """Have it stop between two blocks; returns when it has.

        Raises:
            GuestError: it did not in time, and runs on; or it has failed.
        """
        with self._condition:
            before, self._wish = self._wish, _Wish.PARK
            self._parks += 1
            self._condition.notify_all()
            if not self._condition.wait_for(lambda: self._parked, _STOP_WITHIN_S):
                self._wish = before  # or it would stop later, when nobody knows of it any more
                raise GuestError("the workload does not stop")
        self._check()

    def tell_to_stop(self) -> None:
        """Have it begin nothing more. Does not wait: it may stand at a page, and `stop` waits for that."""
        self._set(_Wish.STOP)

    def stop(self) -> None:
        """End the thread; waits a bounded time."""
        self._set(_Wish.STOP)
        self._thread.join(_STOP_WITHIN_S)

    def throttle(self, share: float) -> None:
        """Take away this share of the running time."""
        with self._condition:
            self._share = share
            self._condition.notify_all()

    def rates(self) -> tuple[float, float]:
        """Bytes written, and distinct bytes written, a second of running time, over about the last second."""
        samples = list(self._samples)
        if len(samples) < 2:
            return 0.0, 0.0
        (start, first), (end, last) = samples[0], samples[-1]
        if end <= start:
            return 0.0, 0.0
        distinct = self.workload.distinct_pages(first, last)
        return (last - first) * PAGE_BYTES / (end - start), distinct * PAGE_BYTES / (end - start)

    @property
    def running_s(self) -> float:
        """Seconds for which it ran, sleeping for its rate included."""
        return self._running_s

    def _check(self) -> None:
        if self.failure is not None:
            raise GuestError(f"the workload failed: {type(self.failure).__name__}") from self.failure

    def _set(self, wish: _Wish) -> None:
        with self._condition:
            self._wish = wish
            self._condition.notify_all()

    def _main(self) -> None:
        try:
            while self._wait_for_work():
                self._write_until_told()
        except BaseException as error:  # noqa: BLE001 - the other thread raises it
            self.failure = error
        with self._condition:
            self._parked = True
            self._condition.notify_all()

    def _wait_for_work(self) -> bool:
        with self._condition:
            self._parked = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._wish is not _Wish.PARK)
            self._parked = False
            return self._wish is _Wish.RUN

    def _write_until_told(self) -> None:
        before = self._running_s
        started = spent_until = next_beat = time.monotonic()
        # The very first write stands alone: its time is the end of the blackout, as the guest sees it.
        written, tokens = self._write(1), -1.0
        while written and self._wish is _Wish.RUN:
            now = time.monotonic()
            self._running_s = before + now - started
            if now >= next_beat:
                self._sample()
                next_beat = now + BEAT_S
            rate = self._rate_pages_s * (1.0 - self._share)
            tokens = min(tokens + (now - spent_until) * rate, rate * _BUCKET_S + 1)
            spent_until = now
            pages = BLOCK_PAGES if not self._rate_pages_s else min(int(tokens), BLOCK_PAGES)
            least = min(BLOCK_PAGES, max(1, int(rate * _LEAST_SLEEP_S)))
            if pages < least:
                self._sleep(min((least - tokens) / rate, next_beat - now))
                continue
            written = self._write(self._whole_blocks(pages))
            tokens -= written
            if not self._rate_pages_s and self._share:
                self._sleep((time.monotonic() - now) * self._share / (1.0 - self._share))
        self._running_s = before + time.monotonic() - started
        self._sample(beat=False)

    def _whole_blocks(self, pages: int) -> int:
        """Up to so many pages, ending where one of the workload's blocks ends: parts of one cost as much."""
        over = (self.workload.count + pages) % self.workload.parameters.block_pages
        return pages - over if over < pages else pages

    def _write(self, pages: int) -> int:
        """So many pages at most, fewer if some come later; none if it was parked while it waited for them."""
        gate = self.gate
        if gate is not None:
            size = self.workload.parameters.block_pages
            pages = min(pages, size - self.workload.count % size)
            if not self._enter(gate, pages):
                return 0
        self.workload.write(pages)
        self.last_write_ns = boottime_ns()
        if self._event:
            self.first_write_ns = self.last_write_ns
            event, self._event = self._event, ""
            self._on_progress(event)
        return pages

    def _enter(self, gate: FaultGate, pages: int) -> bool:
        """Wait for the pages of the next writes. False: it was parked meanwhile, and still is."""
        with self._condition:
            if self._told():
                return False
            parks, self._parked = self._parks, True
            self._condition.notify_all()
        count = self.workload.count
        runs = self.workload.schedule.runs(count, count + pages)
        there = [gate.enter(*run) for run in zip(*(part.tolist() for part in runs), strict=True)]
        with self._condition:
            if self._told() or self._parks != parks:
                return False
            self._parked = False
        if not all(there):
            raise GuestError("a page was let go that is not there")
        return True

    def _told(self) -> bool:
        return self._wish is not _Wish.RUN

    def _sleep(self, seconds: float) -> None:
        with self._condition:
            if self._wish is _Wish.RUN and seconds > 0:
                self._condition.wait(seconds)

    def _sample(self, *, beat: bool = True) -> None:
        self._samples.append((self._running_s, self.workload.count))
        while len(self._samples) > 2 and self._samples[1][0] <= self._running_s - _WINDOW_S:
            self._samples.popleft()
        if beat:
            self._on_progress("beat")

"""The thread in which a guest of ours runs in real time, at a rate: what is the same for every kind of guest.

A token bucket on the monotonic clock: time earns pages, what the guest is allowed to write spends them, and
where too few are left the thread sleeps on a condition, so that a pause wakes it. The bucket holds a tenth of
a second: a thread that was held up catches up on that much and no more.

Throttling takes away a share of the running time. A guest at a rate uses less than all of its time, so the
same share is taken from its rate: what counts for a migration is that it writes that much less. One that does
not come up to its rate, or has none, sleeps that share after what it has written.

While it waits for pages that come later the thread counts as parked: nothing is half-done, and a wish that
came meanwhile is looked at before it goes on. So a pause does not wait for a page, and no page ends a pause.
"""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Final

from sterna.errors import GuestError
from sterna.guest.journal import boottime_ns

GRANT_PAGES: Final = 256  # some tenths of a millisecond, at the 3.5 GiB/s that a core reaches
BEAT_S: Final = 0.1
_BUCKET_S: Final = 0.1
_LEAST_SLEEP_S: Final = 0.01  # shorter sleeps cost more in waking up than they gain in evenness
_WINDOW_S: Final = 1.0
_STOP_WITHIN_S: Final = 5.0


class Wish(Enum):
    """What the thread is to do."""

    PARK = 0
    RUN = 1
    STOP = 2


class GuestThread(ABC):
    """Runs something of a guest; all public methods are for one other thread.

    Args:
        name: what runs, for people.
        rate_pages_s: pages that it may write a second; 0 for as fast as it goes.
        on_progress: called in the thread with the event that `run` named, after the first write since then,
            and with "beat" now and then.

    Attributes:
        first_write_ns: CLOCK_BOOTTIME after the first write since the last `run` that named an event.
        last_write_ns: after the latest write. Both 0 before there was one.
        failure: what ended the thread.
    """

    def __init__(self, name: str, rate_pages_s: float, on_progress: Callable[[str], None]) -> None:
        self.first_write_ns = 0
        self.last_write_ns = 0
        self.failure: BaseException | None = None
        self._name = name
        self._rate_pages_s = rate_pages_s
        self._share = 0.0
        self._on_progress = on_progress
        self._condition = threading.Condition()
        self._wish = Wish.PARK
        self._parked = False
        self._parks = 0
        self._event = ""
        self._tokens = 0.0
        self._earned_until = self._granted_at = self._next_beat = self._ran_until = 0.0
        self._samples: deque[tuple[float, int]] = deque()  # running time and count, about the last second
        self._running_s = 0.0
        self._spent_s: float | None = None  # once the thread has ended
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    @abstractmethod
    def _written(self) -> int:
        """Pages written since the guest was made, as far as the thread knows."""

    @abstractmethod
    def _run_until_told(self) -> None:
        """Run, from `_begin` to `_end`, until the wish is another."""

    def _interrupt(self) -> None:  # noqa: B027 - there may be nothing to do
        """Have what runs stop soon; called with the lock held."""

    def _let_run(self) -> None:  # noqa: B027
        """Take back what `_interrupt` has told; called with the lock held."""

    def _words(self, failure: BaseException) -> str:
        """What of a failure is for people; of an internal one no more than its name."""
        return type(failure).__name__

    def run(self, event: str = "") -> None:
        """Let it run. `event` is what `on_progress` is told after the first write; empty for nothing.

        One that was not told yet, because it was parked again before it had written, goes first.
        """
        self._check()
        self._event = self._event or event
        self._set(Wish.RUN)

    def tell_to_park(self) -> None:
        """Have it stop; does not wait."""
        self._set(Wish.PARK)

    def wait_parked(self) -> None:
        """Return when it has stopped after `tell_to_park`.

        Raises:
            GuestError: it did not in time, or has failed.
        """
        with self._condition:
            if not self._condition.wait_for(lambda: self._parked, _STOP_WITHIN_S):
                raise GuestError(f"{self._name} does not stop")
        self._check()

    def park(self) -> None:
        """Have it stop; returns when it has.

        Raises:
            GuestError: it did not in time, and runs on; or it has failed.
        """
        before = self._wish
        self.tell_to_park()
        try:
            self.wait_parked()
        except GuestError:
            self._set(before)  # or it would stop later, when nobody knows of it any more
            raise

    def tell_to_stop(self) -> None:
        """Have it begin nothing more. Does not wait: it may stand at a page, and `stop` waits for that."""
        self._set(Wish.STOP)

    def stop(self) -> None:
        """End the thread; waits a bounded time."""
        self._set(Wish.STOP)
        self._thread.join(_STOP_WITHIN_S)

    def throttle(self, share: float) -> None:
        """Take away this share of the running time."""
        with self._condition:
            self._share = share
            self._condition.notify_all()

    @property
    def samples(self) -> tuple[tuple[float, int], tuple[float, int]]:
        """Running time and pages written, about a second ago and now."""
        samples = list(self._samples)
        return (samples[0], samples[-1]) if samples else ((0.0, self._written()), (0.0, self._written()))

    @property
    def running_s(self) -> float:
        """Seconds for which it ran, sleeping for its rate included."""
        return self._running_s

    @property
    def cpu_s(self) -> float:
        """CPU seconds that the thread has spent."""
        with self._condition:  # it does not end meanwhile, or has said what it spent
            if self._spent_s is None and self._thread.ident is not None:
                return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))
            return self._spent_s or 0.0

    def _check(self) -> None:
        if self.failure is not None:
            raise GuestError(f"{self._name} failed: {self._words(self.failure)}") from self.failure

    def _set(self, wish: Wish) -> None:
        with self._condition:
            self._wish = wish
            self._parks += wish is Wish.PARK
            self._condition.notify_all()
            if wish is not Wish.RUN and not self._parked:
                self._interrupt()

    def _main(self) -> None:
        try:
            while self._wait_for_work():
                self._run_until_told()
        except BaseException as error:  # noqa: BLE001 - the other thread raises it
            self.failure = error
        with self._condition:
            self._spent_s = time.thread_time()
            self._parked = True
            self._condition.notify_all()

    def _wait_for_work(self) -> bool:
        with self._condition:
            self._parked = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._wish is not Wish.PARK)
            self._parked = False
            # Under the same lock as the wish, so that it never takes back a later interruption.
            self._let_run()
            return self._wish is Wish.RUN

    def _wait_as_if_parked(self, wait: Callable[[], None]) -> bool:
        """Wait for what the guest cannot do without. False: it was parked meanwhile, and still is."""
        with self._condition:
            if self._told():
                return False
            parks, self._parked = self._parks, True
            self._condition.notify_all()
        wait()
        with self._condition:
            if self._told() or self._parks != parks:
                return False
            self._parked = False
            return True

    def _told(self) -> bool:
        """Whether it is to do something else."""
        return self._wish is not Wish.RUN

    def _begin(self) -> None:
        now = time.monotonic()
        self._ran_until = self._earned_until = self._granted_at = now
        self._next_beat = now + BEAT_S
        self._tokens = 0.0
        self._sample()

    def _end(self) -> None:
        self._next_beat = math.inf
        self._tick()
        self._sample()

    def _tick(self) -> float:
        """Let its running time go on, and tell of it now and then; the present moment."""
        now = time.monotonic()
        self._running_s += now - self._ran_until
        self._ran_until = now
        if now >= self._next_beat:
            self._next_beat = now + BEAT_S
            self._sample()
            self._on_progress("beat")
        return now

    def _wrote(self) -> None:
        """It has written something: tell of the first time."""
        self.last_write_ns = boottime_ns()
        if self._event:
            self.first_write_ns = self.last_write_ns
            event, self._event = self._event, ""
            self._on_progress(event)

    def _grant(self, *, first: bool = False) -> int:
        """Wait until it may write, and say how many pages; none if it was told otherwise.

        Args:
            first: whether nothing was written since it was let run. The very first write stands alone: its
                time is the end of the blackout, as the guest sees it.
        """
        took = self._tick() - self._granted_at
        asked = self._ran_until
        while not self._told():
            now = self._tick()
            pages, wait_s = (1, 0.0) if first else self._earned(now)
            if not first and self._share:
                wait_s = max(wait_s, asked + took * self._share / (1.0 - self._share) - now)
            if wait_s <= 0:
                self._tokens -= pages
                self._granted_at = now
                return pages
            self._sleep(min(wait_s, self._next_beat - now))
        return 0

    def _earned(self, now: float) -> tuple[int, float]:
        """Pages that may be written, and the time until there are enough of them to begin."""
        if not self._rate_pages_s:
            return GRANT_PAGES, 0.0
        rate = self._rate_pages_s * (1.0 - self._share)
        self._tokens = min(self._tokens + (now - self._earned_until) * rate, rate * _BUCKET_S + 1)
        self._earned_until = now
        pages = min(int(self._tokens), GRANT_PAGES)
        least = min(GRANT_PAGES, max(1, int(rate * _LEAST_SLEEP_S)))
        return pages, (least - self._tokens) / rate if pages < least else 0.0

    def _give_back(self, pages: int) -> None:
        """They were granted and not written."""
        self._tokens += pages

    def _sleep(self, seconds: float) -> None:
        with self._condition:
            if self._wish is Wish.RUN and seconds > 0:
                self._condition.wait(seconds)

    def _sample(self) -> None:
        self._samples.append((self._running_s, self._written()))
        while len(self._samples) > 2 and self._samples[1][0] <= self._running_s - _WINDOW_S:
            self._samples.popleft()


def holder_cpu_s(guest: Iterable[GuestThread]) -> float:
    """CPU seconds of this process without those of a guest's threads."""
    return round(time.process_time() - sum(thread.cpu_s for thread in guest), 6)

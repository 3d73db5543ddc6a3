"""The thread of a vCPU: it runs the guest, at a rate, and stops it promptly.

The guest asks at its doorbell how much to write next. A token bucket on the monotonic clock has the answer:
time earns pages, and where too few are left the thread waits at the doorbell, on a condition, so that a pause
wakes it. Between two doorbells the guest runs by itself; a pause ends that with a kick, at whichever
instruction it is. Waiting for a page that comes later is such an instruction, too, and does not keep a pause
waiting. Page tables are another matter: the kernel itself reads them for the guest, and no signal ends that.
So the thread waits for those before the first instruction, and counts as parked there.

The count of writes is in a register of the guest. It comes with each of its exits.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Final

from sterna.errors import GuestError
from sterna.guest.journal import boottime_ns
from sterna.guest.kvm.layout import BEAT, COUNT, DOORBELL, ERRORS
from sterna.linux.kvm_vcpu import REGISTERS, PortAccess, Vcpu, VcpuError

GRANT_PAGES: Final = 256  # less than a millisecond, some of which an exit costs
BEAT_S: Final = 0.1
_BUCKET_S: Final = 0.1
_LEAST_SLEEP_S: Final = 0.01  # shorter sleeps cost more in waking up than they gain in evenness
_WINDOW_S: Final = 1.0
_STOP_WITHIN_S: Final = 5.0


class _Wish(Enum):
    PARK = 0
    RUN = 1
    STOP = 2


class VcpuRunner:
    """Runs a vCPU; all methods are for one other thread.

    Args:
        vcpu: it belongs to the runner's thread except while that is parked.
        rate_pages_s: pages that it may write a second; 0 for as fast as it goes.
        on_progress: called in the runner's thread with the event that `run` named, after the first write
            since then, and with "beat" now and then.
        wait_for_tables: called in the runner's thread before the first instruction; None if there is nothing
            to wait for.

    Attributes:
        count: writes, as of the guest's last exit.
        errors: likewise, bad pages that it met.
        first_write_ns: CLOCK_BOOTTIME at the first exit with writes since the last `run` that named an event.
        last_write_ns: at the latest exit with writes. Both 0 before there was one.
        failure: what ended the thread.
    """

    def __init__(
        self,
        vcpu: Vcpu,
        rate_pages_s: float,
        on_progress: Callable[[str], None],
        wait_for_tables: Callable[[], None] | None = None,
    ) -> None:
        self.vcpu = vcpu
        self.first_write_ns = 0
        self.last_write_ns = 0
        self.failure: BaseException | None = None
        registers = REGISTERS.unpack(vcpu.registers())
        self.count, self.errors = registers[COUNT], registers[ERRORS]
        self._rate_pages_s = rate_pages_s
        self._share = 0.0
        self._on_progress = on_progress
        self._wait_for_tables = wait_for_tables
        self._condition = threading.Condition()
        self._wish = _Wish.PARK
        self._parked = False
        self._event = ""
        self._tokens = 0.0
        self._spent_until = self._granted_at = self._next_beat = self._ran_until = 0.0
        self._samples: deque[tuple[float, int]] = deque()  # running time and count, about the last second
        self._running_s = 0.0
        self._thread = threading.Thread(target=self._main, name="vcpu", daemon=True)
        self._thread.start()

    def run(self, event: str = "") -> None:
        """Let it run. `event` is what `on_progress` is told after the first write; empty for nothing.

        One that was not told yet, because it was parked again before it had written, goes first.
        """
        self._check()
        self._event = self._event or event
        self._set(_Wish.RUN)

    def tell_to_park(self) -> None:
        """Have it stop where it is; does not wait."""
        self._set(_Wish.PARK)

    def wait_parked(self) -> None:
        """Return when it has stopped after `tell_to_park`.

        Raises:
            GuestError: it did not in time, or has failed.
        """
        with self._condition:
            if not self._condition.wait_for(lambda: self._parked, _STOP_WITHIN_S):
                raise GuestError("a vCPU does not stop")
        self._check()

    def tell_to_stop(self) -> None:
        """Have it begin nothing more. Does not wait: it may stand at a page, and `stop` waits for that."""
        self._set(_Wish.STOP)

    def stop(self) -> None:
        """End the thread; waits a bounded time."""
        self._set(_Wish.STOP)
        self._thread.join(_STOP_WITHIN_S)

    def throttle(self, share: float) -> None:
        """Take away this share of the running time, or of the rate."""
        with self._condition:
            self._share = share
            self._condition.notify_all()

    @property
    def samples(self) -> tuple[tuple[float, int], tuple[float, int]]:
        """Running time and count, about a second ago and now."""
        samples = list(self._samples)
        return (samples[0], samples[-1]) if samples else ((0.0, self.count), (0.0, self.count))

    @property
    def running_s(self) -> float:
        """Seconds for which it ran, waiting at its doorbell for its rate included."""
        return self._running_s

    def _check(self) -> None:
        if self.failure is not None:
            raise GuestError(f"a vCPU failed: {self.failure}") from self.failure

    def _set(self, wish: _Wish) -> None:
        with self._condition:
            self._wish = wish
            self._condition.notify_all()
            if wish is not _Wish.RUN and not self._parked:
                self.vcpu.kick(self._thread)

    def _main(self) -> None:
        try:
            while self._wait_for_work():
                if self._enter():
                    self._run_until_told()
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
            # Under the same lock as the wish, so that it never takes back a later kick.
            self.vcpu.let_run()
            return self._wish is _Wish.RUN

    def _enter(self) -> bool:
        """See to it that there are page tables. False: it was parked meanwhile, and still is."""
        if self._wait_for_tables is None:
            return True
        with self._condition:
            self._parked = True
            self._condition.notify_all()
        self._wait_for_tables()
        self._wait_for_tables = None
        with self._condition:
            if self._wish is not _Wish.RUN:
                return False
            self._parked = False
            return True

    def _run_until_told(self) -> None:
        started = time.monotonic()
        self._ran_until = started
        # If it stopped at the doorbell, its first write stands alone: its time is the end of the blackout.
        self._spent_until = self._granted_at = started
        self._next_beat = started + BEAT_S
        self._tokens = 1.0
        self._sample()
        first, access = True, None
        while self._wish is _Wish.RUN:
            access = self.vcpu.run()
            if access is None:
                self._heed_kick()
            self._note(self.vcpu.exit_registers())
            self._tick()
            if access is not None and not access.is_out:
                self.vcpu.answer(self._grant(access, first=first))
                first = False
            elif access is not None and access.port != BEAT:
                raise VcpuError(f"an access to port {access.port:#x}")
        if access is not None:
            self.vcpu.finish_access()
        self._note(REGISTERS.unpack(self.vcpu.registers()))
        self._next_beat = math.inf
        self._tick()
        self._sample()

    def _heed_kick(self) -> None:
        """A wish to park may have been taken back meanwhile; then the kick must not end each further turn."""
        with self._condition:
            if self._wish is _Wish.RUN:
                self.vcpu.let_run()

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

    def _note(self, registers: tuple[int, ...]) -> None:
        """Take the count out of the registers, and tell of the first write."""
        count, self.errors = registers[COUNT], registers[ERRORS]
        if count == self.count:
            return
        self.count = count
        self.last_write_ns = boottime_ns()
        if self._event:
            self.first_write_ns = self.last_write_ns
            event, self._event = self._event, ""
            self._on_progress(event)

    def _grant(self, access: PortAccess, *, first: bool) -> int:
        """Wait until the guest may write, and say how many pages; none if the thread was told to stop."""
        if access.port != DOORBELL:
            raise VcpuError(f"an access to port {access.port:#x}")
        while self._wish is _Wish.RUN:
            now = self._tick()
            if not self._rate_pages_s:
                return self._grant_at_full_speed(now, first=first)
            rate = self._rate_pages_s * (1.0 - self._share)
            self._tokens = min(self._tokens + (now - self._spent_until) * rate, rate * _BUCKET_S + 1)
            self._spent_until = now
            pages = 1 if first else min(int(self._tokens), GRANT_PAGES)
            least = 1 if first else min(GRANT_PAGES, max(1, int(rate * _LEAST_SLEEP_S)))
            if pages >= least:
                self._tokens -= pages
                return pages
            self._sleep((least - self._tokens) / rate)
        return 0

    def _grant_at_full_speed(self, now: float, *, first: bool) -> int:
        """A share of the running time is slept after it."""
        took = now - self._granted_at
        if self._share and not first:
            self._sleep(took * self._share / (1.0 - self._share))
        self._granted_at = time.monotonic()
        return 1 if first else GRANT_PAGES

    def _sleep(self, seconds: float) -> None:
        with self._condition:
            if self._wish is _Wish.RUN and seconds > 0:
                self._condition.wait(min(seconds, BEAT_S))

    def _sample(self) -> None:
        self._samples.append((self._running_s, self.count))
        while len(self._samples) > 2 and self._samples[1][0] <= self._running_s - _WINDOW_S:
            self._samples.popleft()

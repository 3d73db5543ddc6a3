"""The thread that runs a workload: see `sterna.guest.guest_thread` for its rate and how it is stopped.

It writes in blocks of some tenths of a millisecond, and a pause falls between two blocks; that is its
latency. While pages of its memory come later, a block is one of the workload's, and the thread waits for its
pages before the first write of it.
"""

from __future__ import annotations

from collections.abc import Callable

from sterna.errors import GuestError
from sterna.guest.guest_thread import GuestThread
from sterna.guest.process_gate import FaultGate
from sterna.guest.workload import PAGE_BYTES, Workload


class WorkloadRunner(GuestThread):
    """Runs a workload.

    Args:
        workload: what to run, None if that is not known yet.
        rate_bytes_s: pages written a second times their size; 0 for as fast as it goes.
        on_progress: see `GuestThread`.
        gate: where it waits for pages that come later; None if all are there.

    Attributes:
        workload: what to run; set it before the first `run`. It belongs to the runner's thread except while
            that is parked.
        gate: likewise; take it away when all are there.
    """

    def __init__(
        self,
        workload: Workload | None,
        rate_bytes_s: int,
        on_progress: Callable[[str], None],
        gate: FaultGate | None = None,
    ) -> None:
        super().__init__("the workload", rate_bytes_s / PAGE_BYTES, on_progress)
        if workload is not None:
            self.workload = workload
        self.gate = gate
        self._thread.start()

    def rates(self) -> tuple[float, float]:
        """Bytes written, and distinct bytes written, a second of running time, over about the last second."""
        (start, first), (end, last) = self.samples
        if end <= start:
            return 0.0, 0.0
        distinct = self.workload.distinct_pages(first, last)
        return (last - first) * PAGE_BYTES / (end - start), distinct * PAGE_BYTES / (end - start)

    def _written(self) -> int:
        return self.workload.count

    def _run_until_told(self) -> None:
        self._begin()
        granted = self._grant(first=True)
        while granted:
            written = self._write(self._whole_blocks(granted))
            if not written:
                break
            self._give_back(granted - written)
            granted = self._grant()
        self._end()

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
        self._wrote()
        return pages

    def _enter(self, gate: FaultGate, pages: int) -> bool:
        """Wait for the pages of the next writes. False: it was parked meanwhile, and still is."""
        count = self.workload.count
        runs = self.workload.schedule.runs(count, count + pages)
        there: list[bool] = []

        def wait() -> None:
            there.extend(gate.enter(*run) for run in zip(*(part.tolist() for part in runs), strict=True))

        if not self._wait_as_if_parked(wait):
            return False
        if not all(there):
            raise GuestError("a page was let go that is not there")
        return True

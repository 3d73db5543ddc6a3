"""Memory and CPU of a simulated guest, which outlive the side that has them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from sterna.errors import GuestError
from sterna.guest.api import GuestDescription
from sterna.guest.stale_pages import StalePages
from sterna.guest.workload import PAGE_BYTES, Workload
from sterna.wire.records import NO_RUNNER, Runner


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """At `count` writes the guest was run by `runner` under `epoch`."""

    count: int
    epoch: int
    runner: Runner


@dataclass(slots=True)
class SimulatedMachine:
    """Memory and CPU of a simulated guest, on whichever side it is.

    Attributes:
        rate_bytes_s: requested rate of page writes.
        journal: appended to after every step that wrote; hand one list to both sides and a fork shows.
        stale: pages that the guest must not touch yet; None for a guest that came with all of them.
    """

    memory: npt.NDArray[np.uint8]
    workload: Workload
    rate_bytes_s: float = 0.0
    running: bool = False
    throttle: float = 0.0
    epoch: int = 1
    runner: Runner = NO_RUNNER
    journal: list[JournalEntry] = field(default_factory=list)
    stale: StalePages | None = None
    _owed_pages: float = 0.0

    @property
    def incomplete(self) -> bool:
        """Whether a stale page was not installed."""
        return self.stale is not None and self.stale.any

    def advance(self, seconds: float) -> int:
        """Let this much time pass; returns the number of writes done in it."""
        if not self.running:
            return 0
        self._owed_pages += seconds * self.rate_bytes_s * (1.0 - self.throttle) / PAGE_BYTES
        writes = int(self._owed_pages)
        self._owed_pages -= writes
        if self.stale is not None and self.stale.any:
            writes = self._possible(self.stale, writes)
        if writes:
            self.workload.write(writes)
            self.journal.append(JournalEntry(self.workload.count, self.epoch, self.runner))
        return writes

    def _possible(self, stale: StalePages, writes: int) -> int:
        """How many of the next writes, at most `writes`, go to pages that are there."""
        if stale.waits_for is not None:
            return 0
        count, size, done = self.workload.count, self.workload.parameters.block_pages, 0
        while done < writes:
            pages = min(size - (count + done) % size, writes - done)  # in one block, so one run
            starts, _ = self.workload.schedule.runs(count + done, count + done + pages)
            present = stale.present(int(starts[0]), pages)
            done += present
            if present < pages:
                break
        return done


def region_memory(memory: npt.NDArray[np.uint8], description: GuestDescription, number: int) -> memoryview:
    """A region's part of a memory in which the regions follow each other in the description's order."""
    first = 0
    for region in description.regions:
        if region.id == number:
            return memory[first : first + region.size_bytes].data
        first += region.size_bytes
    raise GuestError(f"there is no region {number}")

"""A simulated guest that also writes what no schedule says: anything, zeros too, to pages of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sterna.guest.simulated import SimulatedSourceGuest
from sterna.guest.workload import PAGE_BYTES, Workload
from sterna.memory.bitmap import PageBitmap


class ScribblingGuest(SimulatedSourceGuest):
    """With pages that anything may be written to: those that the workload leaves at zero."""

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - those of the other
        super().__init__(*arguments, **named)
        self._scribbled: set[int] = set()

    def scribble(self, number: int, value: int) -> None:
        """One of these pages gets a value in every byte, if there is one and the guest runs."""
        parameters = self.workload.parameters
        if self.running and parameters.zero_pages:
            page = parameters.pages - 1 - number % parameters.zero_pages
            self.machine.memory[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = value
            self._scribbled.add(page)

    async def collect_dirty(self) -> Mapping[int, PageBitmap]:
        """What the workload has written, and what was scribbled on."""
        dirty, first = await super().collect_dirty(), 0
        for region in self.description.regions:
            for page in self._scribbled & set(range(first, first + region.pages)):
                dirty[region.id].set(page - first, 1)
            first += region.pages
        self._scribbled.clear()
        return dirty


def damaged(workload: Workload) -> bool:
    """Whether a page or register is not what the count of writes says; nobody counts scribbles."""
    found = workload.audit()
    scribbled = sum(page.reason == "zero" for page in found.bad_pages)
    return found.errors > scribbled

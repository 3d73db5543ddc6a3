from __future__ import annotations

import pytest

from sterna.guest.simulated import SimulatedSourceGuest
from sterna.guest.workload import PAGE_BYTES, WorkloadParameters
from sterna.registry import Transfer
from sterna.testing.laws import copied, memory_hash, memory_pages, require
from sterna.wire.records import Region

PARAMETERS = WorkloadParameters(seed=5, pages=32, hot_pages=16, block_pages=8)


def test_a_law_that_is_kept_is_not_worth_a_word() -> None:
    require(True, "law 1", "nothing")
    with pytest.raises(AssertionError, match="law 1: it is broken"):
        require(False, "law 1", "it is broken")


def test_what_is_seen_of_a_guest_is_its_copied_memory() -> None:
    guest = SimulatedSourceGuest(PARAMETERS, rate_bytes_s=100 * PAGE_BYTES, region_pages=(8, 24))
    device = Region(7, 1 << 50, PAGE_BYTES, transfer=Transfer.OPAQUE)
    (first, second) = copied(guest.description)
    assert [region.pages for region in (first, second)] == [8, 24]
    assert device not in copied(guest.description)
    before = memory_hash(guest, guest.description)
    assert memory_hash(guest, guest.description) == before
    guest.advance(0.1)
    assert memory_hash(guest, guest.description) != before
    pages = memory_pages(guest.memory(1), second)
    assert pages.shape == (24, PAGE_BYTES // 8)
    assert pages[:, 0].tolist() == [*range(8, 32)]  # each carries its number

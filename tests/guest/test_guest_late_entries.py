"""What both the endpoint and its pager do over the userfaultfd; most of it is shown by their own tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from late_support import Rig, rigs
from sterna.errors import GuestError
from sterna.guest.late_entries import LateEntries, LateRegion
from sterna.guest.schedule import PAGE_BYTES
from sterna.linux.userfaultfd import Fault, FaultDescriptor
from sterna.registry import ErrorCode


@pytest.fixture
async def rig_of() -> AsyncIterator[Callable[..., Rig]]:
    async with rigs() as make:
        yield make


def entries_of(rig: Rig) -> LateEntries:
    words = rig.late.installed(3)
    region = LateRegion(rig.region, rig.ours, rig.theirs.address, words, rig.late.early(3))
    return LateEntries(rig.late.uffd, {3: region})


@pytest.mark.needs("minor_faults")
async def test_a_fault_is_a_page_of_a_region(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(2)
    entries = entries_of(rig)
    assert entries.faults() == []
    thread = rig.touch(2)
    found: list[tuple[int, int]] = []
    while not found:
        found = entries.faults()
    assert found == [(3, 2)]
    entries.wake()
    while not (again := entries.faults()):
        pass
    assert again == found
    rig.late.installed(3)[0] |= 4
    entries.resolve(3, 2, 1)
    await rig.went_on(thread)


@pytest.mark.needs("minor_faults")
async def test_a_fault_elsewhere_is_nonsense(
    rig_of: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = entries_of(rig_of(2))
    for page in (-1, 8):
        address = entries.regions[3].address + page * PAGE_BYTES
        faults = [Fault(address, minor=True)]
        monkeypatch.setattr(FaultDescriptor, "read_faults", lambda _, faults=faults: faults)
        with pytest.raises(GuestError, match="outside"):
            entries.faults()


@pytest.mark.needs("minor_faults")
async def test_neighbours_that_are_installed_get_their_entries_too(
    rig_of: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the live bitmap; an early page is left to its own fault, which is resolved at once."""
    monkeypatch.setattr("sterna.guest.late_entries._HUGE_BYTES", 4 * PAGE_BYTES)
    rig = rig_of(2, 5)
    rig.theirs.unmap_pages(0, rig.region.size_bytes)
    rig.late.early(3)[0] |= 1 << 2
    entries_of(rig).resolve_around(3, 3)
    assert rig.entries() == [True, True, False, True, False, False, False, False]
    entries_of(rig).resolve_around(3, 7)
    assert rig.entries() == [True, True, False, True, True, False, True, True]


@pytest.mark.needs("minor_faults")
async def test_a_holder_that_is_gone(rig_of: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    """[HOL-42] As long as a page is missing; behind the last one it may have let all go."""
    rig = rig_of(2)
    entries = entries_of(rig)

    def refuse(*_: object) -> None:
        raise MemoryError("no")

    monkeypatch.setattr("sterna.linux.memfd.MemoryMap.populate", refuse)
    rig.ours.free_pages()
    with pytest.raises(GuestError, match="no") as caught:
        entries.resolve(3, 2, 1)
    assert caught.value.code is ErrorCode.FULL
    for one in (rig.theirs,):
        rig.late.uffd.unregister(one.address, one.size_bytes)
    with pytest.raises(GuestError, match="the holder is gone"):
        entries.resolve(3, 2, 1)
    rig.late.installed(3)[0] |= 4
    entries.resolve(3, 2, 1)

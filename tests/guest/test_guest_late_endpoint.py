"""Both ends in one process; in tests/guest/test_guest_process_post_copy.py each has its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable

import pytest
import trio
import trio.testing

from descriptors_support import nothing_stays_open
from late_support import REGION, Rig, rigs, told
from sterna.errors import GuestError
from sterna.guest.holder_frames import Frame
from sterna.guest.late_endpoint import LateEndpoint, _joined
from sterna.guest.schedule import PAGE_BYTES
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode
from sterna.wire.records import PageRange, Region


@pytest.fixture
async def rig_of() -> AsyncIterator[Callable[..., Rig]]:
    async with rigs() as make:
        yield make


@pytest.mark.needs("minor_faults")
async def test_a_fault_is_told_once_and_its_page_installed(rig_of: Callable[..., Rig]) -> None:
    """[HOL-40] [PCY-12] The bit is set before the guest can see the page, and so is the page."""
    rig = rig_of(2, 3, 5)
    assert rig.endpoint.missing()[3].runs()[0].tolist() == [2, 5]
    held = rig.touch(2)
    assert await told(rig.endpoint, 1) == [PageRange(3, 2, 1)]
    again = rig.touch(2)  # another vCPU at the same page
    other = rig.touch(5)
    assert await told(rig.endpoint, 1) == [PageRange(3, 5, 1)]
    rig.ours.array[2 * PAGE_BYTES] = 9
    assert not rig.late.installed(3)[0] & 4
    rig.endpoint.installed(3, 2, 1)
    assert rig.late.installed(3)[0] & 4
    await rig.went_on(held)
    await rig.went_on(again)
    assert rig.theirs.array[2 * PAGE_BYTES] == 9
    assert other.is_alive()
    rig.endpoint.installed(3, 0, 8)
    rig.endpoint.installed(3, 0, 8)
    rig.endpoint.installed(3, 0, 0)
    await rig.went_on(other)
    assert not rig.endpoint.any_missing
    assert rig.late.missing() == 0


@pytest.mark.needs("minor_faults")
async def test_neighbours_are_told_as_one_range(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(2, 3, 4)
    rig.touch(2)
    rig.touch(3)
    ranges = await told(rig.endpoint, 2)
    assert sorted((each.first, each.count) for each in ranges) in ([(2, 2)], [(2, 1), (3, 1)])


def test_ranges_are_joined_in_the_order_of_the_faults() -> None:
    pages = [PageRange(1, 5, 1), PageRange(1, 6, 1), PageRange(2, 7, 1), PageRange(1, 7, 1)]
    assert _joined(pages) == [PageRange(1, 5, 2), PageRange(2, 7, 1), PageRange(1, 7, 1)]
    assert _joined([]) == []


@pytest.mark.needs("minor_faults")
async def test_a_page_that_is_there_is_resolved_without_asking(rig_of: Callable[..., Rig]) -> None:
    """[HOL-40] The kernel may take entries away from pages that were installed, or never stale."""
    rig = rig_of(2, 3)
    rig.theirs.unmap_pages(0, REGION.size_bytes)
    rig.endpoint.installed(3, 2, 1)
    rig.theirs.unmap_pages(0, REGION.size_bytes)
    for page in (0, 2):
        rig.touch(page)
        await rig.served()
    rig.touch(3)
    assert await told(rig.endpoint, 1) == [PageRange(3, 3, 1)]  # nothing was lost by cancelling


@pytest.mark.needs("minor_faults")
async def test_its_neighbours_get_their_entries_too(
    rig_of: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a huge page was taken apart. What is missing stays so, what is far is for another fault."""
    monkeypatch.setattr("sterna.guest.late_entries._HUGE_BYTES", 4 * PAGE_BYTES)
    rig = rig_of(2, 5)
    rig.theirs.unmap_pages(0, REGION.size_bytes)
    rig.touch(0)
    await rig.served()
    assert rig.entries() == [True, True, False, True, False, False, False, False]
    rig.touch(7)
    await rig.served()
    assert rig.entries() == [True, True, False, True, True, False, True, True]


@pytest.mark.needs("minor_faults")
async def test_memory_that_nobody_has_touched_is_made(rig_of: Callable[..., Rig]) -> None:
    """A page of zeros need not have been written to be installed."""
    rig = rig_of(2)
    rig.ours.free_pages()
    thread = rig.touch(2)
    rig.endpoint.installed(3, 2, 1)
    await rig.went_on(thread)
    assert not rig.theirs.array[2 * PAGE_BYTES]


@pytest.mark.needs("minor_faults")
async def test_there_is_no_memory_for_it(rig_of: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError("populating memory: Cannot allocate memory")

    rig = rig_of(2)
    rig.ours.free_pages()
    monkeypatch.setattr("sterna.linux.memfd.MemoryMap.populate", refuse)
    with pytest.raises(GuestError, match="Cannot allocate") as caught:
        rig.endpoint.installed(3, 2, 1)
    assert caught.value.code is ErrorCode.FULL


@pytest.mark.needs("minor_faults")
async def test_the_next_endpoint_finds_what_the_last_one_has_left(rig_of: Callable[..., Rig]) -> None:
    """[HOL-41] It died between reading a fault and installing, and after a bit and before the entry."""
    rig = rig_of(2, 3, 5)
    first, second = rig.touch(2), rig.touch(3)
    await told(rig.endpoint, 2)
    rig.late.installed(3)[0] |= 4
    rig.endpoint.close()
    rig.endpoint.close()
    with pytest.raises(trio.ClosedResourceError):
        await rig.endpoint.faults()
    rig.endpoint = rig.attach()
    assert rig.endpoint.missing()[3].runs()[0].tolist() == [3, 5]
    rig.endpoint.repeat()
    assert await told(rig.endpoint, 1) == [PageRange(3, 3, 1)]
    if first.is_alive():  # its fault was told after that of the other
        await rig.served(first)
    assert second.is_alive()
    rig.endpoint.installed(3, 3, 1)
    await rig.went_on(second)


@pytest.mark.needs("minor_faults")
async def test_others_are_missing_before_the_guest_has_run(rig_of: Callable[..., Rig]) -> None:
    """[HOL-38] [HOL-39] The holder answers as before, so nobody asks again."""
    rig = rig_of(1, 2)
    before = rig.endpoint.missing()
    bitmap = PageBitmap(REGION.pages)
    bitmap.set(5)
    rig.late.replace({3: bitmap})
    rig.endpoint.renew()
    another = rig.attach()
    assert rig.endpoint.missing() == another.missing() == {3: bitmap}
    another.close()
    assert rig.endpoint.missing() != before
    rig.late.hold()
    thread = rig.touch(5)
    assert await told(rig.endpoint, 1) == [PageRange(3, 5, 1)]
    rig.endpoint.installed(3, 5, 1)
    await rig.went_on(thread)
    assert not rig.endpoint.any_missing


async def test_closing_ends_the_wait(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(2)

    async def listen() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await rig.endpoint.faults()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        rig.endpoint.close()


@pytest.mark.needs("minor_faults")
async def test_pages_that_do_not_exist(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(2)
    for place in ((4, 0, 1), (3, 8, 1), (3, -1, 1), (3, 2, -1)):
        with pytest.raises(GuestError) as caught:
            rig.endpoint.installed(*place)
        assert caught.value.code is ErrorCode.BAD_VALUE


@pytest.mark.needs("minor_faults")
async def test_a_holder_that_is_gone(rig_of: Callable[..., Rig]) -> None:
    """[HOL-42] As long as a page is missing; behind the last one it may have let all go."""
    rig = rig_of(2, 5)
    rig.late.end()
    with pytest.raises(GuestError, match="the holder is gone"):
        rig.endpoint.installed(3, 2, 1)
    rig.endpoint.installed(3, 5, 1)


@pytest.mark.needs("minor_faults")
async def test_answers_that_make_no_sense(rig_of: Callable[..., Rig]) -> None:
    """[HOL-39] Every descriptor of theirs is closed."""
    rig = rig_of(2)
    with nothing_stays_open():
        for changes in ({"region": 4}, {"bits": 7}, {"offset": 8}, {"offset": 16}, {"address": 5}):
            with pytest.raises(GuestError):
                LateEndpoint(rig.answer(**changes), (REGION,), {3: rig.ours})
        for changes in ({"region": 4}, {"bits": 7}, {"offset": 0}, {"offset": 16}):
            early = rig.answer()
            early.fields["early"] = [{**rig.late.early_layout()[0], **changes}]
            with pytest.raises(GuestError):
                LateEndpoint(early, (REGION,), {3: rig.ours})
        with pytest.raises(GuestError):  # a region of which nothing is said
            LateEndpoint(rig.answer(), (REGION, Region(5, 0, 4096)), {3: rig.ours, 5: rig.ours})
        few = rig.answer()
        os.close(few.descriptors[1])
        with pytest.raises(GuestError):
            LateEndpoint(Frame(few.fields, few.descriptors[:1]), (REGION,), {3: rig.ours})
        growing = os.memfd_create("test")
        whole = rig.answer()
        os.close(whole.descriptors[1])
        with pytest.raises(GuestError, match="shrink"):
            LateEndpoint(Frame(whole.fields, (whole.descriptors[0], growing)), (REGION,), {3: rig.ours})


@pytest.mark.needs("minor_faults")
async def test_there_is_no_descriptor_left(
    rig_of: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rig_of(2)

    def refuse(_: int) -> int:
        raise OSError(24, "Too many open files")

    with nothing_stays_open():
        answer = rig.answer()
        with monkeypatch.context() as patch:
            patch.setattr(os, "dup", refuse)
            with pytest.raises(GuestError, match="Too many"):
                LateEndpoint(answer, (REGION,), {3: rig.ours})


@pytest.mark.needs("minor_faults")
async def test_a_page_that_is_early_is_resolved_without_asking(rig_of: Callable[..., Rig]) -> None:
    """[HOL-40] [HOL-47] It is missing until its group is there."""
    rig = rig_of(2, 3)
    rig.late.early(3)[0] |= 1 << 2
    thread = rig.touch(2)
    await rig.served()
    await rig.went_on(thread)
    assert rig.endpoint.missing()[3].runs()[0].tolist() == [2]
    assert rig.entries()[2:4] == [True, False]
    rig.endpoint.installed(3, 2, 2)
    assert not rig.endpoint.any_missing


@pytest.mark.needs("minor_faults")
async def test_a_holder_without_early_pages(rig_of: Callable[..., Rig]) -> None:
    """[HOL-47]"""
    rig = rig_of(2)
    answer = rig.answer()
    del answer.fields["early"]
    with contextlib.closing(LateEndpoint(answer, (REGION,), {3: rig.ours})) as endpoint:
        assert endpoint.early is None
        endpoint.renew()
        rig.touch(2)
        assert await told(endpoint, 1) == [PageRange(3, 2, 1)]
        endpoint.installed(3, 2, 1)


@pytest.mark.needs("minor_faults")
async def test_what_was_taken_is_free_when_other_pages_are_expected(rig_of: Callable[..., Rig]) -> None:
    """[HOL-39] And nothing is early."""
    rig = rig_of(2)
    rig.endpoint.claims.take_all(3, 0, 4)
    rig.late.early(3)[0] |= 1 << 5
    bitmap = PageBitmap(REGION.pages)
    bitmap.set(3)
    rig.late.replace({3: bitmap})
    rig.endpoint.renew()
    assert rig.late.early(3).tolist() == [0]
    assert rig.endpoint.claims.free(3, 0) & 0xFF == 1 << 3

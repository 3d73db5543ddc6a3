from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from descriptors_support import nothing_stays_open
from sterna.errors import GuestError
from sterna.guest import late_pages
from sterna.guest.holder_bitmaps import set_bits
from sterna.guest.late_pages import LatePages, why_no_late_pages
from sterna.linux import userfaultfd
from sterna.linux.errors import CapabilityMissing
from sterna.linux.memfd import PAGE_BYTES, MemoryFile, MemoryMap
from sterna.linux.userfaultfd import WRITE_TRACKING, Mode, Userfaultfd
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode
from sterna.wire.records import Region

PAGES = {4: 70, 1: 8}
REGIONS = tuple(Region(number, number << 32, pages * PAGE_BYTES) for number, pages in PAGES.items())
WITHIN_S = 30.0


def bitmap(bits: int, *pages: int) -> PageBitmap:
    found = PageBitmap(bits)
    for page in pages:
        found.set(page)
    return found


@contextlib.contextmanager
def memory() -> Iterator[dict[int, MemoryMap]]:
    """Mappings of both regions, full of ones."""
    files = {region.id: MemoryFile("test", region.size_bytes) for region in REGIONS}
    maps = {number: file.map() for number, file in files.items()}
    for one in maps.values():
        one.array[:] = 1
    try:
        yield maps
    finally:
        for one in (*maps.values(), *files.values()):
            one.close()


def touched(maps: dict[int, MemoryMap], region: int, page: int) -> threading.Thread:
    thread = threading.Thread(target=maps[region].touch, args=(page * PAGE_BYTES,), daemon=True)
    thread.start()
    return thread


def done(thread: threading.Thread) -> bool:
    thread.join(WITHIN_S)
    return not thread.is_alive()


@pytest.mark.needs("minor_faults")
def test_stale_pages_are_held_and_others_are_not() -> None:
    """[HOL-38] [HOL-39] [HOL-40] [PCY-5] The content of none of them changes."""
    with memory() as maps:
        late = LatePages(REGIONS, maps, {4: bitmap(70, 0, 69)})
        assert [(place["region"], place["bits"]) for place in late.layout()] == [(4, 70), (1, 8)]
        assert [place["address"] for place in late.layout()] == [hex(maps[n].address) for n in (4, 1)]
        assert late.installed(4).tolist() == [(1 << 64) - 2, 31]
        assert late.installed(1).tolist() == [255]
        assert late.missing() == 2
        assert [(place["region"], place["bits"]) for place in late.early_layout()] == [(4, 70), (1, 8)]
        assert not any(late.early(n).any() for n in (4, 1))
        for page in (1, 68):
            assert done(touched(maps, 4, page))
        assert done(touched(maps, 1, 0))
        held = touched(maps, 4, 69)
        set_bits(late.installed(4), 69, 1)
        assert late.missing() == 1
        late.uffd.resolve(maps[4].address + 69 * PAGE_BYTES, PAGE_BYTES)
        assert done(held)
        held = touched(maps, 4, 0)
        late.end()
        assert done(held)
        assert all((one.array == 1).all() for one in maps.values())
        # Like any other memory: somebody else may follow writes to it now.
        with Userfaultfd(WRITE_TRACKING) as uffd:
            uffd.register(maps[4].address, maps[4].size_bytes, Mode.WP)


@pytest.mark.needs("minor_faults")
def test_a_new_set_takes_the_place_of_the_old_one() -> None:
    """[HOL-38]"""
    with memory() as maps:
        late = LatePages(REGIONS, maps, {4: PageBitmap.full(70), 1: bitmap(8, 3)})
        set_bits(late.early(4), 5, 2)
        assert late.missing() == 71  # the guest has two of them [HOL-47]
        late.replace({4: bitmap(70, 5)})
        late.hold()
        assert not late.early(4).any()  # [HOL-39]
        assert late.missing() == 1
        for region, page in ((4, 4), (4, 6), (1, 3)):
            assert done(touched(maps, region, page))
        held = touched(maps, 4, 5)
        set_bits(late.installed(4), 5, 1)
        late.uffd.resolve(maps[4].address, maps[4].size_bytes)
        assert done(held)
        late.end()
        late.end()


@pytest.mark.needs("minor_faults")
def test_memory_that_nobody_has_touched_gets_no_entries_back() -> None:
    """The controller resolves the fault [HOL-40], or the kernel when nothing is held any more."""
    with memory() as maps:
        maps[4].free_pages()
        late = LatePages(REGIONS, maps, {4: PageBitmap.full(70)})
        late.replace({})
        assert late.missing() == 0
        held = touched(maps, 4, 5)
        late.end()
        assert done(held)


@pytest.mark.needs("minor_faults")
def test_a_set_that_does_not_fit_changes_nothing() -> None:
    """[HOL-10] [HOL-38]"""
    with nothing_stays_open():
        with memory() as maps:
            for stale in ({9: PageBitmap(1)}, {4: PageBitmap(71)}):
                with pytest.raises(GuestError) as caught:
                    LatePages(REGIONS, maps, stale)
                assert caught.value.code is ErrorCode.BAD_VALUE
            late = LatePages(REGIONS, maps, {4: bitmap(70, 5)})
            with pytest.raises(GuestError):
                late.replace({9: PageBitmap(1)})
            assert late.missing() == 1
            late.end()
        del caught, late


@pytest.mark.needs("minor_faults")
def test_a_failure_in_the_middle_leaves_nothing_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """[HOL-10]"""

    def fail(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    with memory() as maps:
        late = LatePages(REGIONS, maps, {1: bitmap(8, 3)})
        with monkeypatch.context() as patch:
            patch.setattr(MemoryMap, "unmap_ranges", fail)
            late.replace({4: bitmap(70, 5)})
            for refused in (late.hold, late.hold, lambda: late.replace({})):  # the guest is not to run
                with pytest.raises(OSError, match="Cannot allocate"):
                    refused()
            assert late.missing() == 1
            late.end()
            with pytest.raises(OSError, match="Cannot allocate"):
                LatePages(REGIONS, maps, {4: bitmap(70, 5)})
        assert done(touched(maps, 4, 5))


def test_a_machine_that_cannot_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise CapabilityMissing("userfaultfd", "forbidden", "become root")

    monkeypatch.setattr(late_pages, "Userfaultfd", refuse)
    why_no_late_pages.cache_clear()
    assert "forbidden" in why_no_late_pages()
    why_no_late_pages.cache_clear()


@pytest.mark.needs("minor_faults")
def test_rights_for_faults_in_user_mode_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userfaultfd, "_WAYS", userfaultfd._WAYS[-1:])
    why_no_late_pages.cache_clear()
    assert why_no_late_pages() == ""
    with memory() as maps:
        late = LatePages(REGIONS, maps, {4: bitmap(70, 5)})
        held = touched(maps, 4, 5)
        set_bits(late.installed(4), 5, 1)
        late.uffd.resolve(maps[4].address + 5 * PAGE_BYTES, PAGE_BYTES)
        assert done(held)
        late.end()

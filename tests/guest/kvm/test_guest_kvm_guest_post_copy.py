"""KVM guests that run before their pages are there. The holder's part of it is the process guest's too."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from test_guest_kvm_guest import (
    HERE,
    MEMORY,
    THERE,
    WITHIN_S,
    closing,
    figure,
    room,
    source,
    wait_for_writes,
)

from sterna.errors import GuestError
from sterna.guest.guest_thread import GRANT_PAGES
from sterna.guest.kvm import guest as module
from sterna.guest.kvm.guest import KvmGuest, why_no_late_vcpus
from sterna.guest.kvm.layout import RAM, SYSTEM
from sterna.guest.process import ProcessSettings
from sterna.guest.schedule import PAGE_BYTES
from sterna.linux.kvm_vcpu import REGISTERS
from sterna.linux.userfaultfd import Fault
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode

pytestmark = pytest.mark.needs("kvm", "minor_faults")

PAGES = MEMORY // PAGE_BYTES


@contextlib.contextmanager
def on_its_way(vcpus: int = 1) -> Iterator[tuple[KvmGuest, KvmGuest]]:
    """A guest that is paused here, and room for it there, with region 1 of its memory."""
    here, there = source(vcpus), room()
    with closing(here, there):
        here.run(1, HERE)
        wait_for_writes(here)
        there.reserve(here.description)
        there.prepare()
        here.pause()
        there._here.maps[SYSTEM].array[:] = here._here.maps[SYSTEM].array
        yield here, there


def everything(guest: KvmGuest) -> dict[int, PageBitmap]:
    return {region.id: PageBitmap.full(region.pages) for region in guest.description.regions}


def faults(guest: KvmGuest) -> list[Fault]:
    """Those that the guest waits at, soon."""
    assert guest.late_pages is not None
    pause = threading.Event()
    for _ in range(int(WITHIN_S / 0.001)):
        if found := guest.late_pages.uffd.read_faults():
            return found
        pause.wait(0.001)
    raise AssertionError("it waits for nothing")


def install(
    here: KvmGuest, there: KvmGuest, region: int, first: int, count: int = 1, *, early: bool = False
) -> None:
    """As a controller does, or its pager: write, note, have the entry made."""
    late = there.late_pages
    assert late is not None
    start, end = first * PAGE_BYTES, (first + count) * PAGE_BYTES
    descriptor = there.memory()[region].map()  # a second mapping, as in another process
    descriptor.array[start:end] = here._here.maps[region].array[start:end]
    for page in range(first, first + count):
        (late.early if early else late.installed)(region)[page >> 6] |= 1 << (page & 63)
    late.uffd.resolve(there._here.maps[region].address + start, end - start)
    descriptor.close()


def serve(here: KvmGuest, there: KvmGuest, until: int, *, early: bool = False) -> int:
    """Serve what is asked for until the guest has written so often; how many pages were asked for."""
    maps, served = there._here.maps, 0
    while figure(there, "writes") < until:
        assert there.late_pages is not None
        for fault in there.late_pages.uffd.read_faults():
            for number, one in maps.items():
                if one.address <= fault.address < one.address + one.size_bytes:
                    page = (fault.address - one.address) // PAGE_BYTES
                    install(here, there, number, page, early=early)
                    served += 1
    return served


def test_a_guest_that_has_no_page_yet() -> None:
    """[HOL-38] [HOL-42] It sees no page that is not there, page tables and program among them."""
    with on_its_way(2) as (here, there):
        there.expect(everything(there))
        there.load_state(here.save_state())
        before = int(figure(here, "writes"))
        there.run(2, THERE)
        assert there.status()["hot_set_bytes"] == 0  # nobody looks at memory that is not there
        with pytest.raises(GuestError, match="pages are missing") as caught:
            there.audit()
        assert caught.value.code is ErrorCode.NOT_READY
        serve(here, there, before + 20)
        for region in there.description.regions:
            late = there.late_pages
            assert late is not None
            for page in range(region.pages):
                if not late.installed(region.id)[page >> 6] >> (page & 63) & 1:
                    install(here, there, region.id, page)
        there.complete()
        assert there.late_pages is None
        found = there.audit()
        assert found["errors"] == found["errors_while_running"] == found["register_mismatches"] == 0
        assert figure(there, "hot_set_bytes") == figure(here, "hot_set_bytes")
        wait_for_writes(there, int(figure(there, "writes")))


def test_pages_that_come_early_are_the_guests() -> None:
    """[HOL-47] Page tables and program too; it waited for them, and they are missing all the same."""
    with on_its_way(2) as (here, there):
        there.expect(everything(there))
        there.load_state(here.save_state())
        late = there.late_pages
        assert late is not None
        missing, before = late.missing(), int(figure(here, "writes"))
        there.run(2, THERE)
        serve(here, there, before + 100, early=True)
        assert late.missing() == missing
        for region in there.description.regions:
            for page in range(region.pages):
                bit = 1 << (page & 63)
                if int(late.early(region.id)[page >> 6]) & bit:
                    late.installed(region.id)[page >> 6] |= bit
                else:
                    install(here, there, region.id, page)
        there.complete()
        found = there.audit()
        assert found["errors"] == found["errors_while_running"] == found["register_mismatches"] == 0
        wait_for_writes(there, int(figure(there, "writes")) + PAGES)
        assert figure(there, "fault_count") >= figure(there, "fault_first_count") > 0


def test_a_guest_tells_how_long_it_has_waited_for_pages() -> None:
    """As often as it was kept waiting, but for the access with which it came here."""
    with on_its_way() as (here, there):
        there.expect({RAM: PageBitmap.full(PAGES)})
        there.load_state(here.save_state())
        before = int(figure(here, "writes"))
        there.run(2, THERE)
        served = serve(here, there, before + 100)
        assert served >= 100
        there.pause()
        assert there.late_pages is not None
        came = PAGES - int(np.bitwise_count(there.late_pages.installed(RAM)).sum())
        for page in range(PAGES):
            install(here, there, RAM, page)
        there.resume()
        wait_for_writes(there, int(figure(there, "writes")) + PAGES)  # and each is there
        there.complete()
        # One more if it waited at the pause. And the last doorbell has seen pages missing that came in the
        # pause: of these a wait counts that was for a processor.
        assert served - 1 <= figure(there, "fault_count") <= served + 1 + min(came, GRANT_PAGES)
        assert 0 < figure(there, "fault_p50_ns") <= figure(there, "fault_p99_ns")
        assert figure(there, "fault_p99_ns") <= figure(there, "fault_max_ns")
        assert "fault_count" not in here.status()


def test_a_pause_does_not_wait_for_a_page() -> None:
    """[HOL-44] The access has not happened, and does not when the page comes."""
    with on_its_way() as (here, there):
        there.expect({RAM: PageBitmap.full(PAGES)})
        there.load_state(here.save_state())
        there.run(2, THERE)
        (fault,) = faults(there)
        there.pause()
        before = there._here.vcpus[0].registers()
        page = (fault.address - there._here.maps[RAM].address) // PAGE_BYTES
        install(here, there, RAM, page)
        assert there._here.vcpus[0].registers() == before
        image = there._here.maps[RAM].array[page * PAGE_BYTES : (page + 1) * PAGE_BYTES].tobytes()
        assert image == here._here.maps[RAM].array[page * PAGE_BYTES : (page + 1) * PAGE_BYTES].tobytes()
        there.resume()
        serve(here, there, int(figure(here, "writes")) + 3)
        assert REGISTERS.unpack(before)[15] < figure(there, "writes")


def test_a_pause_does_not_wait_for_page_tables() -> None:
    """[HOL-44] The kernel reads them for the guest, and no signal would end that."""
    with on_its_way() as (here, there):
        there.expect(everything(there))
        there.load_state(here.save_state())
        before = there._here.vcpus[0].registers()
        there.run(2, THERE)
        waited = 0
        while figure(there, "writes") == figure(here, "writes"):
            (fault,) = faults(there)
            there.pause()
            waited += there._here.vcpus[0].registers() == before
            there.resume()
            for number, one in there._here.maps.items():
                if one.address <= fault.address < one.address + one.size_bytes:
                    install(here, there, number, (fault.address - one.address) // PAGE_BYTES)
        assert waited >= 5  # of one GiB four tables, and page 0


def test_a_guest_that_waits_can_be_ended() -> None:
    with on_its_way() as (here, there):
        there.expect({RAM: PageBitmap.full(PAGES)})
        there.load_state(here.save_state())
        there.run(2, THERE)
        faults(there)
        there.close()
        assert not any(runner._thread.is_alive() for runner in there._runners)


def test_a_guest_that_has_gone_keeps_nothing_of_its_machine() -> None:
    """Mappings and descriptors go at once, and not when somebody collects garbage; its figures stay."""
    with on_its_way() as (here, there):
        there.expect({RAM: PageBitmap.full(PAGES)})
        there.load_state(here.save_state())
        there.run(2, THERE)
        serve(here, there, int(figure(here, "writes")) + 3)
        machine = weakref.ref(there._here)
        gc.disable()
        try:
            there.close()
            assert machine() is None
        finally:
            gc.enable()
        assert "fault_count" in there.status()


def test_another_attempt_expects_other_pages() -> None:
    with on_its_way() as (_, there):
        some, others = PageBitmap(PAGES), PageBitmap(PAGES)
        some.set_runs([0], [10])
        others.set_runs([20], [5])
        there.expect({RAM: some})
        there.expect({RAM: others})
        assert there.late_pages is not None
        assert there.late_pages.missing() == 5
        there.expect({})
        assert there.late_pages is None
        there.expect({SYSTEM: PageBitmap(there.description.regions[SYSTEM].pages)})
        assert there.late_pages is None
        there.discard()


def test_bitmaps_that_do_not_fit() -> None:
    with on_its_way() as (_, there):
        with pytest.raises(GuestError) as caught:
            there.expect({RAM: PageBitmap.full(PAGES + 1)})
        assert caught.value.code is ErrorCode.BAD_VALUE
        assert there.late_pages is None


def test_whether_it_can_is_for_its_owner_and_the_kernel_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = KvmGuest(ProcessSettings(post_copy=False))
    with closing(guest):
        assert not guest.can_post_copy
        with pytest.raises(GuestError) as caught:
            guest.expect({})
        assert caught.value.code is ErrorCode.UNSUPPORTED
    why_no_late_vcpus.cache_clear()
    assert why_no_late_vcpus() == ""
    why_no_late_vcpus.cache_clear()
    monkeypatch.setattr(module, "supported", lambda: (0, "system call, user mode only", True))
    assert "in user mode only" in why_no_late_vcpus()
    monkeypatch.undo()
    why_no_late_vcpus.cache_clear()

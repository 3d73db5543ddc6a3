from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
from collections.abc import Iterator

import pytest

from sterna.linux import userfaultfd
from sterna.linux.errors import CapabilityMissing
from sterna.linux.memfd import PAGE_BYTES, MemoryFile, MemoryMap
from sterna.linux.userfaultfd import (
    LATE_PAGES,
    WRITE_TRACKING,
    FaultDescriptor,
    Feature,
    Mode,
    Userfaultfd,
    supported,
)


def test_no_way_in_names_every_way_and_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(userfaultfd, "_WAYS", (("one way", refuse), ("another", refuse)))
    with pytest.raises(CapabilityMissing) as caught:
        Userfaultfd(WRITE_TRACKING)
    assert caught.value.capability == "userfaultfd"
    assert "one way: Operation not permitted; another" in caught.value.reason
    assert "unprivileged_userfaultfd" in caught.value.remedy


def test_an_unknown_machine_has_no_system_call_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    with pytest.raises(OSError, match="pdp11"):
        userfaultfd._by_syscall(0)


@pytest.mark.needs("userfaultfd")
def test_the_system_call_is_a_way_in_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userfaultfd, "_WAYS", userfaultfd._WAYS[-1:])
    features, way, user_mode_only = supported()
    assert features
    assert way == "system call, user mode only"
    assert user_mode_only


@pytest.mark.needs("userfaultfd")
def test_a_feature_that_no_kernel_has() -> None:
    with pytest.raises(CapabilityMissing, match="UFFDIO_API refuses"):
        Userfaultfd(Feature.WP_ASYNC | Feature(1 << 60))


@pytest.mark.needs("write_protect")
def test_register_and_unregister_shared_memory() -> None:
    file = MemoryFile("test", 4 * PAGE_BYTES)
    memory = file.map()
    with Userfaultfd(WRITE_TRACKING) as uffd:
        assert WRITE_TRACKING in uffd.offered
        uffd.register(memory.address, memory.size_bytes, Mode.WP)
        memory.array[:] = 1  # resolved by the kernel; a fault that waited for us would hang here
        uffd.unregister(memory.address, memory.size_bytes)
    uffd.close()
    assert uffd.fileno() == -1
    memory.close()
    file.close()


@pytest.mark.needs("write_protect")
def test_memory_that_cannot_be_registered(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE_BYTES))
    descriptor = os.open(path, os.O_RDWR)
    memory = MemoryMap(descriptor, PAGE_BYTES)
    try:
        with Userfaultfd(WRITE_TRACKING) as uffd, pytest.raises(CapabilityMissing, match="UFFDIO_REGISTER"):
            uffd.register(memory.address + 1, PAGE_BYTES, Mode.WP)
    finally:
        memory.close()
        os.close(descriptor)


WITHIN_S = 30.0


class Late:
    """Eight pages of ones, mapped twice; in the one mapping nobody gets to pages 2 to 5."""

    def __init__(self, uffd: Userfaultfd) -> None:
        self.file = MemoryFile("test", 8 * PAGE_BYTES)
        self.theirs, self.ours = self.file.map(), self.file.map()
        self.theirs.array[:] = 1
        self.uffd = uffd
        uffd.register(self.theirs.address, self.theirs.size_bytes, Mode.MISSING | Mode.MINOR)
        self.theirs.unmap_pages(2 * PAGE_BYTES, 4 * PAGE_BYTES)
        self.threads: list[threading.Thread] = []

    def touch(self, page: int) -> threading.Thread:
        thread = threading.Thread(target=self.theirs.touch, args=(page * PAGE_BYTES,))
        thread.start()
        self.threads.append(thread)
        return thread

    def faults(self) -> list[int]:
        """Pages; waits for one."""
        poll = select.poll()
        poll.register(self.uffd, select.POLLIN)
        assert poll.poll(WITHIN_S * 1000)
        return [(fault.address - self.theirs.address) // PAGE_BYTES for fault in self.uffd.read_faults()]

    def resolve(self, first: int, count: int) -> None:
        self.uffd.resolve(self.theirs.address + first * PAGE_BYTES, count * PAGE_BYTES)


@contextlib.contextmanager
def late_pages() -> Iterator[Late]:
    with Userfaultfd(LATE_PAGES) as uffd:
        late = Late(uffd)
        try:
            yield late
        finally:
            uffd.unregister(late.theirs.address, late.theirs.size_bytes)  # lets go who still waits
            for thread in late.threads:
                thread.join(WITHIN_S)
            late.theirs.close()
            late.ours.close()
            late.file.close()


@pytest.mark.needs("minor_faults")
def test_who_touches_a_page_waits_until_it_is_resolved() -> None:
    with late_pages() as late:
        assert late.uffd.read_faults() == []
        thread = late.touch(3)
        assert late.faults() == [3]
        assert late.uffd.read_faults() == []  # told once
        late.ours.array[3 * PAGE_BYTES] = 7
        assert thread.is_alive()
        late.resolve(3, 1)
        thread.join(WITHIN_S)
        assert not thread.is_alive()
        assert late.theirs.array[3 * PAGE_BYTES] == 7
        assert late.theirs.array[0] == 1  # what was not unmapped is not held


@pytest.mark.needs("minor_faults")
def test_a_range_is_resolved_around_pages_that_are_there() -> None:
    with late_pages() as late:
        threads = [late.touch(page) for page in (2, 4)]
        told: list[int] = []
        while len(told) < 2:
            told += late.faults()
        assert sorted(told) == [2, 4]
        late.resolve(3, 1)
        late.resolve(0, 8)
        late.resolve(0, 8)
        for thread in threads:
            thread.join(WITHIN_S)
            assert not thread.is_alive()
        assert (late.theirs.array == 1).all()


@pytest.mark.needs("minor_faults")
def test_who_still_waits_is_told_again_after_a_wake() -> None:
    """[HOL-41] Over another descriptor of the same userfaultfd, as another process has it."""
    with late_pages() as late:
        late.touch(5)
        assert late.faults() == [5]
        with FaultDescriptor(os.dup(late.uffd.fileno())) as other:
            other.wake(late.theirs.address, late.theirs.size_bytes)
            assert late.faults() == [5]
            other.resolve(late.theirs.address + 5 * PAGE_BYTES, PAGE_BYTES)


@pytest.mark.needs("minor_faults")
def test_a_page_that_the_memory_lacks_cannot_be_resolved() -> None:
    with late_pages() as late:
        late.ours.free_pages()
        with pytest.raises(OSError, match="Bad address") as caught:
            late.resolve(2, 1)
        assert caught.value.errno == errno.EFAULT
        thread = late.touch(2)
        assert late.faults() == [2]
        late.ours.populate(2 * PAGE_BYTES, PAGE_BYTES)
        late.resolve(2, 1)
        thread.join(WITHIN_S)
        assert not late.theirs.array[2 * PAGE_BYTES]

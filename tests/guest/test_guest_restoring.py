from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator

import pytest

from sterna.guest.restoring import Restoring
from sterna.linux.memfd import PAGE_BYTES, MemoryFile, MemoryMap
from sterna.linux.userfaultfd import LATE_PAGES, Mode, Userfaultfd
from sterna.memory.bitmap import PageBitmap

PAGES = 1500  # of three steps, the last one short
LOG2 = {7: PAGE_BYTES.bit_length() - 1}
WITHIN_S = 30.0


class FakeUffd:
    """Notes what is resolved."""

    def __init__(self) -> None:
        self.resolved: list[tuple[int, int]] = []
        self.error: int | None = None
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def resolve(self, start: int, length: int) -> None:
        self.begun.set()
        self.go_on.wait(WITHIN_S)
        self.resolved.append((start // PAGE_BYTES, length // PAGE_BYTES))
        if self.error is not None:
            raise OSError(self.error, "no")


class FakeMap:
    address = 0


def restoring(uffd: FakeUffd, pages: PageBitmap) -> Restoring:
    one = Restoring(uffd, {7: FakeMap()}, LOG2)  # type: ignore[arg-type, dict-item]
    one.begin({7: pages})
    return one


def test_it_goes_on_in_the_steps_in_which_faults_are_answered() -> None:
    uffd, pages = FakeUffd(), PageBitmap(PAGES)
    pages.set(3, 2)
    pages.set(500, 900)
    one = restoring(uffd, pages)
    one.wait()
    assert uffd.resolved == [(3, 2), (500, 12), (512, 512), (1024, 376)]
    assert not pages.any()
    one.end()
    assert not one._thread.is_alive()


@pytest.mark.parametrize("error", [errno.EFAULT, errno.ENOENT])
def test_pages_that_cannot_be_mapped_now_are_left_to_their_faults(error: int) -> None:
    uffd, pages = FakeUffd(), PageBitmap.full(PAGES)
    uffd.error = error
    one = restoring(uffd, pages)
    one.wait()
    assert len(uffd.resolved) == 3
    assert not pages.any()
    one.end()


def test_it_stops_behind_a_step_and_knows_what_is_left() -> None:
    uffd, pages = FakeUffd(), PageBitmap.full(PAGES)
    uffd.go_on.clear()
    one = restoring(uffd, pages)
    assert uffd.begun.wait(WITHIN_S)
    stopping = threading.Thread(target=one.stop)
    stopping.start()
    while not one._stopping:
        pass
    uffd.go_on.set()
    stopping.join(WITHIN_S)
    one.stop()
    assert uffd.resolved == [(0, 512)]
    assert pages.count() == PAGES - 512
    one.begin({7: pages})  # the same thread, with what may be other pages by now
    one.wait()
    assert not pages.any()
    one.end()
    one.end()


def test_entries_are_taken_before_others_are_given_back() -> None:
    """At once and in any case: who stops it waits for that."""
    uffd, pages, go_on, order = FakeUffd(), PageBitmap.full(600), threading.Event(), []

    def take() -> None:
        go_on.wait(WITHIN_S)
        order.append(list(uffd.resolved))

    one = Restoring(uffd, {7: FakeMap()}, LOG2)  # type: ignore[arg-type, dict-item]
    one.begin({7: pages}, take)
    stopping = threading.Thread(target=one.stop)
    stopping.start()
    while not one._stopping:
        pass
    go_on.set()
    stopping.join(WITHIN_S)
    assert order == [[]]
    one.begin({7: pages}, take)
    one.taken()
    one.wait()
    assert order == [[], []]
    assert uffd.resolved == [(0, 512), (512, 88)]
    one.end()
    one.begin({7: pages}, take)  # there is no thread any more
    assert len(order) == 3
    one.begin({7: pages})


def test_what_could_not_be_taken_is_told_whenever_somebody_asks() -> None:
    uffd = FakeUffd()
    one = Restoring(uffd, {7: FakeMap()}, LOG2)  # type: ignore[arg-type, dict-item]

    def take() -> None:
        raise OSError(errno.ENOMEM, "no")

    one.begin({7: PageBitmap.full(1)}, take)
    for ask in (one.taken, one.stop, one.taken):
        with pytest.raises(OSError, match="no"):
            ask()
    one.end()


def test_one_that_was_never_told_of_pages_ends() -> None:
    uffd = FakeUffd()
    one = Restoring(uffd, {7: FakeMap()}, LOG2)  # type: ignore[arg-type, dict-item]
    one.stop()
    one.end()
    assert not one._thread.is_alive()
    assert uffd.resolved == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_one_that_has_failed() -> None:
    uffd = FakeUffd()
    uffd.error = errno.EINVAL
    one = restoring(uffd, PageBitmap.full(PAGES))
    one.wait()
    one.begin({7: PageBitmap.full(PAGES)})
    one.stop()
    one.end()
    assert len(uffd.resolved) == 1


@contextlib.contextmanager
def registered() -> Iterator[tuple[Userfaultfd, MemoryMap]]:
    with contextlib.closing(MemoryFile("test", PAGES * PAGE_BYTES)) as file, Userfaultfd(LATE_PAGES) as uffd:
        memory = file.map()
        memory.array[:] = 1
        uffd.register(memory.address, memory.size_bytes, Mode.MISSING | Mode.MINOR)
        try:
            yield uffd, memory
        finally:
            memory.close()


@pytest.mark.needs("minor_faults")
def test_an_access_does_not_fault_any_more() -> None:
    """[HOL-38] Those of other pages do."""
    with registered() as (uffd, memory):
        memory.unmap_pages(0, memory.size_bytes)
        pages = PageBitmap.full(PAGES)
        pages.clear(600)
        one = Restoring(uffd, {7: memory}, LOG2)
        one.begin({7: pages})
        one.wait()
        one.end()
        for page in (0, 599, 601, PAGES - 1):
            memory.touch(page * PAGE_BYTES)
        assert uffd.read_faults() == []
        held = threading.Thread(target=memory.touch, args=(600 * PAGE_BYTES,), daemon=True)
        held.start()
        while not (faults := uffd.read_faults()):
            pass
        assert [fault.address - memory.address for fault in faults] == [600 * PAGE_BYTES]
        uffd.resolve(memory.address, memory.size_bytes)
        held.join(WITHIN_S)
        assert not held.is_alive()

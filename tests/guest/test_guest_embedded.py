"""The guest in the embedder's own process keeps the laws of the guest interface."""

import mmap
import threading

import pytest
import trio
import trio.testing

from sterna.errors import GuestError
from sterna.guest.api import GuestDescription
from sterna.guest.embedded import PAGE_BYTES, REGION, EmbeddedGuest
from sterna.memory.bitmap import PageBitmap
from sterna.registry import Architecture, ErrorCode, StateKind
from sterna.testing import check_guest
from sterna.wire.records import PageRange, Region, Runner, StateSection

PAGES = 64


class Counting(EmbeddedGuest):
    """Writes its count to one page after the other while it runs."""

    def __init__(self, guest_id: bytes = bytes(16)) -> None:
        super().__init__(bytearray(PAGES * PAGE_BYTES), "counting", guest_id=guest_id)
        self.count = 0
        self.running = False

    def work(self, writes: int) -> None:
        for _ in range(writes if self.running else 0):
            self.count += 1
            offset = self.count % PAGES * PAGE_BYTES + 8 * (self.count % 500)
            self.memory(REGION)[offset : offset + 8] = self.count.to_bytes(8, "little")
            self.wrote(offset, 8)

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.running = False

    def save(self) -> bytes:
        return self.count.to_bytes(8, "little")

    def load(self, state: bytes) -> None:
        if len(state) != 8:
            raise ValueError(f"{len(state)} bytes of state")
        self.count = int.from_bytes(state, "little")


class Asking(Counting):
    """Counts only where its pages are."""

    asks = True

    def __init__(self) -> None:
        super().__init__()
        self.arrivals = 0

    def work(self, writes: int) -> None:
        for _ in range(writes):
            if not self.present((self.count + 1) % PAGES * PAGE_BYTES, PAGE_BYTES):
                break
            super().work(1)

    def arrived(self) -> None:
        self.arrivals += 1


async def test_the_state_is_expected_to_be_as_it_was_last() -> None:
    guest = Counting()
    assert guest.description.expected_state_bytes == 4096
    assert guest.description.state_bytes == 1 << 20
    before = guest.description
    (section,) = await guest.save_state()
    assert guest.description.expected_state_bytes == len(section.data) == 8
    assert guest.description == before  # it is the same guest


def test_the_most_that_a_state_may_have_is_the_embedder_s_to_say() -> None:
    description = EmbeddedGuest(bytearray(PAGE_BYTES), state_bytes=100).description
    assert (description.state_bytes, description.expected_state_bytes) == (100, 100)
    assert description.to_record().state_bytes == 100


@pytest.mark.parametrize("kind", [Counting, Asking])
async def test_keeps_the_laws(kind: type[Counting]) -> None:
    """[PCY-5] [PCY-12] for the one that asks."""
    guests: list[Counting] = []

    async def source() -> Counting:
        guests.append(kind())
        guests[-1].start()
        return guests[-1]

    async def destination() -> Counting:
        guests.append(kind())
        return guests[-1]

    async def run_for(seconds: float) -> None:
        for guest in guests:
            guest.work(int(seconds * 1000))

    await check_guest(source, destination, run_for=run_for)


@pytest.mark.parametrize(
    ("offset", "length", "pages"),
    [
        (0, 0, []),
        (0, 1, [0]),
        (4095, 1, [0]),
        (4095, 2, [0, 1]),
        (4096, 8192, [1, 2]),
        (63 * 4096, 4096, [63]),
    ],
)
async def test_a_write_dirties_every_page_that_it_touches(offset: int, length: int, pages: list[int]) -> None:
    guest = Counting()
    await guest.start_tracking()
    guest.wrote(offset, length)
    dirty = (await guest.collect_dirty())[REGION]
    assert [page for page in range(PAGES) if page in dirty] == pages
    assert not (await guest.collect_dirty())[REGION].any()


@pytest.mark.parametrize("size", [0, 1, 4095, 4097])
def test_memory_is_whole_pages(size: int) -> None:
    with pytest.raises(ValueError, match="whole pages"):
        EmbeddedGuest(bytearray(size))


async def test_refuses_a_guest_that_does_not_fit() -> None:
    here = Counting()
    two = GuestDescription(bytes(16), "two", (Region(1, 0, 4096), Region(2, 8192, 4096)))
    arm = GuestDescription(bytes(16), "arm", here.description.regions, architecture=Architecture.AARCH64)
    for description, code in ((two, ErrorCode.REFUSED), (arm, ErrorCode.ARCHITECTURE)):
        with pytest.raises(GuestError) as caught:
            await here.reserve(description)
        assert caught.value.code is code
    with pytest.raises(GuestError, match="no region 7"):
        here.memory(7)


async def test_a_guest_without_state_takes_none() -> None:
    guest = EmbeddedGuest(bytearray(4096))
    assert guest.save() == b""
    await guest.load_state([StateSection(StateKind.OPAQUE, 1, b"")])
    with pytest.raises(GuestError) as caught:
        await guest.load_state([StateSection(StateKind.OPAQUE, 1, b"x")])
    assert caught.value.code is ErrorCode.STATE_REJECTED
    guest.stop()
    guest.start()
    await guest.throttle(0.5)


async def test_a_granted_guest_runs_again_only_when_the_grant_is_revoked() -> None:
    guest = Counting()
    await guest.mark_granted(3)
    with pytest.raises(GuestError, match="granted"):
        await guest.resume()
    await guest.revoke_grant(2)
    with pytest.raises(GuestError, match="granted"):
        await guest.resume()
    await guest.revoke_grant(3)
    await guest.resume()
    assert guest.running
    await guest.release()


async def test_a_write_is_in_one_of_two_collects_whichever_thread_tells_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law 1. The guest's thread was about to mark a page when the endpoint collected."""
    guest = Counting()
    await guest.start_tracking()
    entered, go = threading.Event(), threading.Event()
    mark = PageBitmap.set

    def slowly(bitmap: PageBitmap, first: int, count: int = 1) -> None:
        entered.set()
        assert go.wait(30)
        mark(bitmap, first, count)

    monkeypatch.setattr(PageBitmap, "set", slowly)
    found = [0, 0]

    async def collect_twice() -> None:
        for i in range(2):
            found[i] = (await guest.collect_dirty())[REGION].count()  # read at once, as an endpoint does

    writer = threading.Thread(target=guest.wrote, args=(0, 1))
    collector = threading.Thread(target=trio.run, args=(collect_twice,))
    writer.start()
    assert entered.wait(30)
    collector.start()
    collector.join(0.05)
    go.set()
    writer.join(30)
    collector.join(30)
    assert sum(found) == 1


async def test_memory_reads_as_zeros_again_after_a_guest_that_did_not_come() -> None:
    """[CON-18]"""
    guest = Counting()
    await guest.reserve(guest.description)
    guest.memory(REGION)[5000:5003] = b"abc"
    await guest.discard()
    await guest.reserve(guest.description)
    assert not any(guest.memory(REGION))


async def test_a_guest_comes_back_to_where_it_was() -> None:
    """There and back: neither its old image nor its old grant is in the way."""
    here, there = Counting(), Counting()
    here.start()
    here.work(100)
    for epoch, (source, destination) in enumerate(((here, there), (there, here)), 2):
        await destination.reserve(source.description)
        assert not any(destination.memory(REGION))
        await source.pause()
        destination.memory(REGION)[:] = source.memory(REGION)
        await destination.load_state(await source.save_state())
        await source.mark_granted(epoch)
        await destination.run(epoch, Runner("host", bytes(16)))
        await source.release()
    await here.pause()
    await here.resume()
    assert (here.running, here.count) == (True, 100)


async def test_a_guest_that_asks_waits_for_its_pages() -> None:
    guest = Asking()
    assert guest.can_post_copy
    assert guest.present(0, PAGES * PAGE_BYTES)
    stale = PageBitmap(PAGES)
    stale.set(3, 4)
    await guest.expect({REGION: stale})
    assert guest.present(2 * PAGE_BYTES, PAGE_BYTES)
    assert guest.present(3 * PAGE_BYTES, 0)
    assert not guest.present(2 * PAGE_BYTES, PAGE_BYTES + 1)
    assert not guest.present(0, 5 * PAGE_BYTES)
    assert not guest.present(6 * PAGE_BYTES, 1)
    assert await guest.faults() == [
        PageRange(REGION, 3, 1),
        PageRange(REGION, 4, 1),
        PageRange(REGION, 6, 1),
    ]
    await guest.installed(REGION, 5, 1)
    assert guest.arrivals == 0  # nobody has asked for that one
    await guest.installed(REGION, 3, 2)
    assert guest.arrivals == 1
    assert guest.present(0, 6 * PAGE_BYTES)
    assert (await guest.missing())[REGION].runs()[0].tolist() == [6]
    for place in ((REGION, PAGES, 1), (REGION + 1, 0, 1)):
        with pytest.raises(GuestError) as caught:
            await guest.installed(*place)
        assert caught.value.code is ErrorCode.BAD_VALUE
    with pytest.raises(GuestError) as caught:
        await guest.expect({REGION: PageBitmap(1)})
    assert caught.value.code is ErrorCode.BAD_VALUE
    with pytest.raises(GuestError) as caught:
        await guest.notes(1 << 40)
    assert caught.value.code is ErrorCode.FULL


async def test_a_guest_with_missing_pages_is_not_sent_away() -> None:
    """[ONE-41]"""
    guest = Asking()
    await guest.expect({REGION: PageBitmap.full(PAGES)})
    for refused in (guest.start_tracking(), guest.save_state(), guest.mark_granted(2)):
        with pytest.raises(GuestError) as caught:
            await refused
        assert caught.value.code is ErrorCode.NOT_READY
    await guest.discard()
    await guest.start_tracking()


async def test_a_page_that_a_thread_asks_for_is_told() -> None:
    guest = Asking()
    await guest.expect({REGION: PageBitmap.full(PAGES)})
    told: list[object] = []

    async def listen() -> None:
        told.extend(await guest.faults())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        await trio.testing.wait_all_tasks_blocked()
        assert not await trio.to_thread.run_sync(guest.present, 0, 1)
    assert told == [PageRange(REGION, 0, 1)]


def test_a_thread_may_outlive_the_endpoint() -> None:
    guest = Asking()

    async def main() -> None:
        await guest.expect({REGION: PageBitmap.full(PAGES)})
        with trio.move_on_after(0):
            await guest.faults()
        guest.present(0, 1)
        await guest.faults()

    trio.run(main)
    assert not guest.present(PAGE_BYTES, 1)


@pytest.mark.needs("pagemap_scan")
async def test_memory_that_nobody_has_written_is_known() -> None:
    memory = mmap.mmap(-1, PAGES * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[3 * PAGE_BYTES] = 1
    guest = EmbeddedGuest(memoryview(memory))
    (starts, counts) = (await guest.unwritten())[REGION].runs()
    assert list(zip(starts.tolist(), counts.tolist(), strict=True)) == [(0, 3), (4, PAGES - 4)]

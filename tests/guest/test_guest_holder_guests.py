from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest
import trio
import trio.testing
from test_guest_holder_backend import DESCRIPTION, PAGES, STATE, FakeHeld
from test_guest_holder_server import serving

from sterna.errors import GuestError
from sterna.guest.api import DestinationGuest, PagesEarly, PromptGuest, SourceGuest
from sterna.guest.holder_backend import HeldState
from sterna.guest.holder_client import HolderConnection, connect_holder
from sterna.guest.holder_engine import HolderEngine
from sterna.guest.holder_fields import runner_to_json
from sterna.guest.holder_frames import Frame
from sterna.guest.holder_guests import HolderDestinationGuest, HolderSourceGuest
from sterna.guest.late_pages import LatePages
from sterna.linux.memfd import MemoryFile, MemoryMap
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode
from sterna.wire.records import PageRange, Runner

RUNNER = Runner("there", bytes(16))
Serve = Callable[..., contextlib.AbstractAsyncContextManager[tuple[HolderConnection, FakeHeld]]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Opens a connection to a served fake guest."""
    with contextlib.ExitStack() as stack:

        @contextlib.asynccontextmanager
        async def connect(*, with_guest: bool) -> AsyncIterator[tuple[HolderConnection, FakeHeld]]:
            guest = FakeHeld(with_guest=with_guest)
            state = HeldState.RUNNING if with_guest else HeldState.EMPTY
            path = tmp_path / ("source" if with_guest else "destination")
            if not path.exists():
                stack.enter_context(serving(path, HolderEngine(guest, state=state, epoch=4 * with_guest)))
            async with await connect_holder(path) as connection:
                yield connection, guest

        yield connect


async def test_the_image_has_the_id_that_it_is_given_or_a_random_one(serve: Serve) -> None:
    async with serve(with_guest=False) as (connection, _):
        room = HolderDestinationGuest(connection, b"i" * 16)
        await room.reserve(DESCRIPTION)
        assert (await connection.status()).image == b"i" * 16
        await room.discard()
        room = HolderDestinationGuest(connection)
        for _ in range(2):
            await room.reserve(DESCRIPTION)
            assert (await connection.status()).image not in {bytes(16), b"i" * 16}


async def test_a_whole_migration(serve: Serve) -> None:
    async with serve(with_guest=True) as (one, left), serve(with_guest=False) as (two, right):
        guest = await HolderSourceGuest.open(one)
        room = HolderDestinationGuest(two)
        source: SourceGuest = guest
        destination: DestinationGuest = room
        assert source.description == DESCRIPTION
        assert source.tracker == "told"
        await destination.reserve(source.description)
        assert not any(destination.memory(3))
        live = left.memory()[3].map()
        live.array[:] = 5
        await source.start_tracking()
        left.dirty = {1, 69}
        dirty = await source.collect_dirty()
        assert {region: bitmap.count() for region, bitmap in dirty.items()} == {3: 2, 5: 0}
        assert 69 in dirty[3]
        await source.throttle(0.25)
        await destination.prepare()
        left.dirty = {2}
        await source.pause()
        assert (await source.collect_dirty())[3].runs()[0].tolist() == [2]
        for region in (3, 5):
            destination.memory(region)[:] = source.memory(region)
        sections = await source.save_state()
        assert tuple(sections) == STATE
        with pytest.raises(GuestError) as caught:
            await destination.load_state(sections[:1])
        assert caught.value.code is ErrorCode.STATE_REJECTED
        await destination.load_state(sections)
        await source.mark_granted(5)
        await source.revoke_grant(5)
        await source.mark_granted(5)
        await destination.run(5, RUNNER)
        assert right.running
        there = right.memory()[3].map()
        assert (there.array == 5).all()
        await source.stop_tracking()
        await source.release()
        live.close()
        there.close()
        assert left.calls == [
            "stop_tracking", "start_tracking", "collect", "throttle", "pause", "collect", "save_state",
            "mark_granted", "revoke_grant", "mark_granted", "stop_tracking", "release",
        ]  # fmt: skip
        assert right.calls == ["reserve", "prepare", "load_state", "load_state", "run"]


async def test_memory_of_a_guest_that_runs_is_read_only(serve: Serve) -> None:
    """[HOL-33]"""
    async with serve(with_guest=True) as (connection, _):
        guest = await HolderSourceGuest.open(connection)
        assert guest.memory(3).readonly
        assert guest.memory(3).nbytes == PAGES * 4096


async def test_without_tracking_everything_is_dirty(serve: Serve) -> None:
    """[HOL-35]"""
    async with serve(with_guest=True) as (connection, _):
        guest = await HolderSourceGuest.open(connection)
        dirty = await guest.collect_dirty()
        assert {region: bitmap.count() for region, bitmap in dirty.items()} == {3: PAGES, 5: 2}


async def test_a_granted_guest_can_be_won_back(serve: Serve) -> None:
    """[HOL-29]"""
    async with serve(with_guest=True) as (connection, held):
        guest = await HolderSourceGuest.open(connection)
        await guest.pause()
        await guest.mark_granted(5)
        with pytest.raises(GuestError) as caught:
            await guest.resume()
        assert caught.value.code is ErrorCode.TOO_LATE
        await connection.call("run", {"epoch": 5, "runner": runner_to_json(RUNNER)})
        await guest.pause()
        await guest.resume()
        assert held.running
        assert (await connection.status()).runner == RUNNER


async def test_an_empty_holder_has_no_source_guest(serve: Serve) -> None:
    async with serve(with_guest=False) as (connection, _):
        with pytest.raises(GuestError, match="empty"):
            await HolderSourceGuest.open(connection)


async def test_what_an_earlier_endpoint_left_is_discarded(serve: Serve) -> None:
    """[HOL-20]: it was kept for somebody who might have run it; a new reservation gives it up."""
    async with serve(with_guest=False) as (connection, held):
        await HolderDestinationGuest(connection).reserve(DESCRIPTION)
        await connection.detach()
    async with serve(with_guest=False) as (connection, _):
        destination = HolderDestinationGuest(connection)
        await destination.reserve(DESCRIPTION)
        await destination.discard()
        await destination.discard()
    assert held.calls == ["reserve", "discard", "reserve", "discard"]


class OddHolder(FakeHeld):
    """Passes memory that does not fit its description."""

    def __init__(self, odd: str) -> None:
        super().__init__()
        self.odd = odd
        self.more: list[MemoryFile] = []

    def memory(self):
        """[HOL-32]"""
        files = dict(super().memory())
        if self.odd == "missing":
            del files[3]
        elif self.odd == "other":
            files[4] = files.pop(3)
        elif self.odd == "size":
            files[3] = files[5]
        elif self.odd == "not sealed":
            files[3] = unsealed(files[3].size_bytes)
            self.more.append(files[3])
        return files


@pytest.mark.parametrize("odd", ["missing", "other", "size", "not sealed"])
async def test_a_holder_whose_memory_does_not_fit(tmp_path: Path, odd: str) -> None:
    held = OddHolder(odd)
    with serving(tmp_path / "odd", HolderEngine(held, state=HeldState.RUNNING, epoch=1)):
        async with await connect_holder(tmp_path / "odd") as connection:
            with pytest.raises(GuestError) as caught:
                await HolderSourceGuest.open(connection)
            assert caught.value.code is ErrorCode.GUEST_FAILED
    for file in held.more:
        file.close()


def unsealed(size_bytes: int) -> MemoryFile:
    """Whoever maps it can be killed by whoever makes it smaller."""
    file = MemoryFile("unsealed", 1)
    os.close(file.fileno())
    file._fd = os.memfd_create("unsealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    file.size_bytes = size_bytes
    os.ftruncate(file.fileno(), size_bytes)
    return file


async def test_bitmaps_in_a_file_that_may_shrink() -> None:
    file = unsealed(16)
    answer = Frame({"bitmaps": [{"region": 3, "offset": 0, "bits": 64}]}, (file.fileno(),))

    class Connection:
        async def call(self, *_: object) -> Frame:
            return answer

    with pytest.raises(GuestError, match="make no sense"):
        await HolderSourceGuest(Connection(), DESCRIPTION, {}, "told").start_tracking()


class FakeConnection:
    """Gives one answer to everything."""

    def __init__(self, fields: dict, data: bytes | None) -> None:
        self.fields = fields
        self.data = data

    async def call(self, *_: object, **__: object):
        if self.data is None:
            return Frame(self.fields)
        return Frame(self.fields, (MemoryFile.of_bytes("answer", self.data).fileno(),))


@pytest.mark.parametrize(
    ("operation", "fields", "data"),
    [
        ("start_tracking", {"bitmaps": []}, None),
        ("start_tracking", {"bitmaps": [{"region": 3, "offset": 4, "bits": 64}]}, bytes(16)),
        ("start_tracking", {"bitmaps": [{"region": 3, "offset": 8, "bits": 65}]}, bytes(16)),
        ("start_tracking", {"bitmaps": []}, b""),
        ("save_state", {"sections": []}, None),
        ("save_state", {"sections": [{"kind": 1}]}, b""),
    ],
)
async def test_answers_that_do_not_fit_their_files(operation: str, fields: dict, data: bytes | None) -> None:
    guest = HolderSourceGuest(FakeConnection(fields, data), DESCRIPTION, {}, "told")
    with pytest.raises(GuestError):
        await getattr(guest, operation)()


async def test_requests_are_short_even_when_cancelled_at_once(serve: Serve) -> None:
    """A deadline that has passed cuts a request off; the guest can still be resumed over the connection."""
    async with serve(with_guest=True) as (connection, held):
        guest = await HolderSourceGuest.open(connection)
        await guest.pause()
        with trio.CancelScope() as scope:
            scope.cancel()
            await guest.save_state()
        await guest.resume()
        assert held.running


async def test_what_a_cancelled_collect_had_taken_is_not_lost(serve: Serve) -> None:
    """[HOL-34]: the holder forgets what it has reported, whether its answer was waited for or not."""
    async with serve(with_guest=True) as (connection, held):
        guest = await HolderSourceGuest.open(connection)
        await guest.start_tracking()
        held.dirty = {1}
        with trio.CancelScope() as scope:
            scope.cancel()
            await guest.collect_dirty()
        await connection.status()  # so it has collected
        held.dirty = {2}
        assert (await guest.collect_dirty())[3].count() == PAGES
        held.dirty = {3}
        assert (await guest.collect_dirty())[3].count() == 1


async def test_what_was_collected_behind_a_pause_is_not_lost(serve: Serve) -> None:
    """[HOL-34] It goes along with the pause; if something else is asked for first, its answer is dropped."""
    async with serve(with_guest=True) as (connection, held):
        guest = await HolderSourceGuest.open(connection)
        await guest.start_tracking()
        held.dirty = {1}
        await guest.pause()
        await guest.resume()
        held.dirty = {2}
        assert (await guest.collect_dirty())[3].count() == PAGES
        held.dirty = {3}
        await guest.pause()
        assert (await guest.collect_dirty())[3].count() == 1
        assert tuple(await guest.save_state()) == STATE
        held.dirty = {4}
        assert (await guest.collect_dirty())[3].count() == 1
        assert held.calls[-4:] == ["pause", "collect", "save_state", "collect"]


@pytest.mark.parametrize("cut", ["reserve", "discard"])
async def test_what_was_cut_off_is_discarded_all_the_same(serve: Serve, cut: str) -> None:
    async with serve(with_guest=False) as (connection, held):
        room = HolderDestinationGuest(connection)
        if cut == "discard":
            await room.reserve(DESCRIPTION)
        with trio.CancelScope() as scope:
            scope.cancel()
            await (room.discard() if cut == "discard" else room.reserve(DESCRIPTION))
        await room.discard()
        await room.discard()
        assert (await connection.status()).state == "empty"
        assert held.calls == ["reserve", "discard"]


async def test_a_guest_that_is_not_there_to_be_run(serve: Serve) -> None:
    """[ONE-26] What its holder does not have, or not all of, must not be put on record as started."""
    async with serve(with_guest=False) as (connection, _):
        destination = HolderDestinationGuest(connection)
        await destination.reserve(DESCRIPTION)
        with pytest.raises(GuestError, match="its holder has not loaded it"):
            await destination.take_storage()
        await destination.prepare()
        await destination.load_state(STATE)
        await destination.take_storage()
    with pytest.raises(GuestError, match="gone"):
        await destination.take_storage()  # the connection has ended


async def test_a_holder_that_has_ended_has_no_storage(tmp_path: Path) -> None:
    """[ONE-26]"""
    with serving(tmp_path / "holder", HolderEngine(FakeHeld(with_guest=False))):
        connection = await connect_holder(tmp_path / "holder")
        destination = HolderDestinationGuest(connection)
        await destination.reserve(DESCRIPTION)
        await destination.load_state(STATE)
        assert not connection.is_over
    assert connection.is_over
    with pytest.raises(GuestError, match="gone"):
        await destination.take_storage()
    await connection.aclose()


async def test_memory_is_not_for_writing_once_the_guest_has_run(serve: Serve) -> None:
    """[HOL-33]"""
    async with serve(with_guest=False) as (connection, _):
        room = HolderDestinationGuest(connection)
        await room.reserve(DESCRIPTION)
        assert not room.memory(3).readonly
        await room.load_state(STATE)
        await room.run(5, RUNNER)
        assert room.memory(3).readonly
        await room.discard()  # changes nothing
        assert (await connection.status()).state == "running"
        with pytest.raises(GuestError, match="no memory of region 3"):
            room.memory(3)


class LateHeld(FakeHeld):
    """Holds accesses to the pages that are expected, of memory that it maps itself."""

    def expect(self, stale: Mapping[int, PageBitmap]) -> None:
        super().expect(stale)
        if self.late is None:
            self.maps = {number: file.map() for number, file in self.memory().items()}
            self.late = LatePages(self.description.regions, self.maps, stale)
        else:
            self.late.replace(stale)

    def complete(self) -> None:
        super().complete()
        self.late = None

    def close(self) -> None:
        self.complete()
        super().close()


@contextlib.asynccontextmanager
async def late_room(path: Path) -> AsyncIterator[tuple[HolderDestinationGuest, LateHeld]]:
    held = LateHeld(with_guest=False)
    with serving(path, HolderEngine(held)):
        async with await connect_holder(path) as connection:
            room = HolderDestinationGuest(connection)
            await room.reserve(DESCRIPTION)
            await room.load_state(STATE)
            yield room, held
            room.close()


def full() -> dict[int, PageBitmap]:
    return {3: PageBitmap.full(PAGES), 5: PageBitmap.full(2)}


@pytest.mark.needs("minor_faults")
async def test_pages_of_two_regions_come_later(tmp_path: Path) -> None:
    """[HOL-38] [HOL-40] [HOL-42] [HOL-33]"""
    async with late_room(tmp_path / "holder") as (room, held):
        await room.expect({3: PageBitmap.full(PAGES)})
        assert isinstance(room, PagesEarly)
        await room.expect(full())
        early = room.early_pages()
        assert early is not None
        assert early.claims.take_all(5, 1, 1)
        assert await room.missing() == full()
        await room.run(5, RUNNER)
        thread = threading.Thread(target=held.maps[5].touch, args=(4096,))
        thread.start()
        assert await room.faults() == [PageRange(5, 1, 1)]
        room.memory(5)[4096:] = b"x" * 4096
        await room.installed(5, 1, 1)
        await trio.to_thread.run_sync(thread.join)
        assert held.maps[5].array[4096] == ord("x")
        assert (await room.connection.status()).missing == PAGES + 1
        waiting = trio.Event()

        async def wait_for_ever() -> None:
            waiting.set()
            await room.faults()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_ever)
            await waiting.wait()
            await room.installed(3, 0, PAGES)
            await room.installed(5, 0, 2)
            assert room.memory(5).readonly
            assert room.early_pages() is None
            assert await room.missing() == {}
            await room.installed(5, 0, 2)
            assert held.late is None
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()


@pytest.mark.needs("minor_faults")
async def test_who_need_not_wait_does_not(tmp_path: Path) -> None:
    """[HOL-40] But the holder hears of the last page."""
    async with late_room(tmp_path / "holder") as (room, held):
        assert isinstance(room, PromptGuest)
        assert room.waited_for() == ()
        assert not room.let_go(5, 0, 2)
        await room.expect(full())
        await room.run(5, RUNNER)
        assert room.waited_for() == []
        thread = threading.Thread(target=held.maps[5].touch, args=(4096,))
        thread.start()
        while not (waited_for := room.waited_for()):
            await trio.testing.wait_all_tasks_blocked()
        assert waited_for == [PageRange(5, 1, 1)]
        assert room.let_go(5, 1, 1)
        await trio.to_thread.run_sync(thread.join)
        assert room.let_go(3, 0, PAGES)
        assert not room.let_go(5, 0, 1)
        assert held.late is not None
        await room.installed(5, 0, 1)
        assert held.late is None


@pytest.mark.needs("minor_faults")
async def test_the_last_page_is_told_again_where_that_was_cut_off(tmp_path: Path) -> None:
    async with late_room(tmp_path / "holder") as (room, held):
        await room.expect(full())
        await room.installed(3, 0, PAGES)
        with trio.CancelScope() as scope:
            scope.cancel()
            await room.installed(5, 0, 2)
        await room.installed(5, 0, 1)
        assert held.late is None


@pytest.mark.needs("minor_faults")
async def test_a_set_that_is_taken_back(tmp_path: Path) -> None:
    async with late_room(tmp_path / "holder") as (room, held):
        await room.expect({})
        assert "expect" not in held.calls  # there is nothing to take back
        await room.expect(full())
        early = room.early_pages()
        assert early is not None
        await room.expect({})
        assert room.early_pages() is None
        assert early.claims.take_all(3, 0, PAGES)  # for whoever has it still
        assert not any(map(PageBitmap.any, (await room.missing()).values()))
        with pytest.raises(GuestError) as caught:
            await room.expect({4: PageBitmap(1)})
        assert caught.value.code is ErrorCode.BAD_VALUE
        assert held.calls.count("expect") == 2
        await room.discard()
        with pytest.raises(GuestError, match="nothing is reserved"):
            await room.expect({})


async def test_a_holder_that_cannot(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """[HOL-38]"""
    monkeypatch.setattr(FakeHeld, "can_post_copy", False)
    async with serve(with_guest=False) as (connection, held):
        room = HolderDestinationGuest(connection)
        await room.reserve(DESCRIPTION)
        assert not room.can_post_copy
        for refused in (room.expect({}), room.faults(), room.installed(3, 0, 1)):
            with pytest.raises(GuestError) as caught:
                await refused
            assert caught.value.code is ErrorCode.UNSUPPORTED
        assert held.calls == ["reserve"]


@pytest.mark.needs("minor_faults")
async def test_the_endpoints_mapping_is_prepared_where_pages_will_be_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    populated = []

    async def note(_: MemoryMap, offset: int, length: int) -> None:
        populated.append((offset // 4096, length // 4096))

    monkeypatch.setattr("sterna.guest.holder_guests.populate", note)
    async with late_room(tmp_path / "holder") as (room, _):
        await room.prepare()
        await room.expect({3: PageBitmap(PAGES)})
        assert populated == []
        some = PageBitmap(PAGES)
        some.set(2)
        some.set(5)
        for _ in range(2):
            await room.expect({3: some, 5: PageBitmap(2)})
        assert populated == [(2, 4)]


async def test_notes_are_the_holders(serve: Serve) -> None:
    """[HOL-45]"""
    async with serve(with_guest=False) as (connection, _):
        room = HolderDestinationGuest(connection)
        await room.reserve(DESCRIPTION)
        assert len(await room.notes()) == 0
        (await room.notes(7))[:] = b"entries"
        assert bytes(await room.notes()) == b"entries"
        other = await HolderDestinationGuest.take_over(connection)
        assert bytes(await other.notes()) == b"entries"
        assert not other.memory(3).readonly
        assert await other.missing() == {}
        assert len(await room.notes(0)) == 0
        with pytest.raises(GuestError) as caught:
            await room.notes(1 << 50)
        assert caught.value.code is ErrorCode.FULL


async def test_room_for_notes_is_made_before_they_are_asked_for(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[HOL-45] Once; notes of another size are new ones, and so are the next ones."""
    async with serve(with_guest=False) as (connection, _):
        room = HolderDestinationGuest(connection)
        await room.reserve(DESCRIPTION)
        place = await room.prepare_notes(7)
        asked: list[str] = []
        call = connection.call

        async def noting(operation: str, *arguments: object, **more: object) -> Frame:
            asked.append(operation)
            return await call(operation, *arguments, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(connection, "call", noting)
        (await room.notes(7))[:] = b"entries"
        assert asked == []
        assert bytes(place) == bytes(await room.notes()) == b"entries"
        assert bytes(await room.notes(7)) == bytes(7)
        await room.prepare_notes(9)
        assert len(await room.notes(7)) == 7
        asked.clear()
        await room.prepare_notes(9)
        assert len(await room.notes(0)) == 0  # nobody has noted anything there
        assert asked == ["notes"]
        assert len(await room.prepare_notes(0)) == 0
        assert len(await room.notes(0)) == 0


async def test_notes_that_were_written_and_never_asked_for_end(serve: Serve) -> None:
    """[HOL-45] [CON-59] SEAL writes them, though what asks for them may be withdrawn with its attempt."""
    async with serve(with_guest=False) as (connection, _):
        room = HolderDestinationGuest(connection)
        await room.reserve(DESCRIPTION)
        (await room.prepare_notes(9))[:8] = b"sterna-1"
        assert len(await room.notes(0)) == 0
        other = await HolderDestinationGuest.take_over(connection)
        assert len(await other.notes()) == 0


async def test_notes_that_may_shrink_are_not_mapped(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(with_guest=False) as (connection, _):
        room = HolderDestinationGuest(connection)
        await room.reserve(DESCRIPTION)

        async def shrinking(*_: object) -> Frame:
            return Frame({}, (os.memfd_create("test"),))

        monkeypatch.setattr(connection, "call", shrinking)
        with pytest.raises(GuestError, match="notes make no sense"):
            await room.notes()


async def test_memory_that_nobody_has_written_is_known_and_stays_so(serve: Serve) -> None:
    async with serve(with_guest=True) as (connection, left):
        guest = await HolderSourceGuest.open(connection)
        live = left.memory()[3].map()
        live.array[2 * 4096] = 1
        for _ in range(2):
            found = await guest.unwritten()
            assert sorted(found) == [3, 5]
            starts, counts = found[3].runs()
            assert list(zip(starts.tolist(), counts.tolist(), strict=True)) == [(0, 2), (3, PAGES - 3)]
        live.close()

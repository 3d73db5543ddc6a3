from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trio
from test_guest_holder_backend import DESCRIPTION, PAGES, STATE, FakeHeld
from test_guest_holder_server import serving

from sterna.errors import GuestError
from sterna.guest.api import DestinationGuest, SourceGuest
from sterna.guest.holder_backend import HeldState
from sterna.guest.holder_client import HolderConnection, connect_holder
from sterna.guest.holder_engine import HolderEngine
from sterna.guest.holder_frames import Frame
from sterna.guest.holder_guests import HolderDestinationGuest, HolderSourceGuest
from sterna.linux.memfd import MemoryFile
from sterna.registry import ErrorCode
from sterna.wire.records import Runner

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
        await source.pause()
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
            "stop_tracking", "start_tracking", "collect", "throttle", "pause", "save_state",
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
        await guest.run_again(5, RUNNER)
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

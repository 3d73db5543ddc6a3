"""Process guests that run before their pages are there, over the holder protocol, in real time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from sterna.errors import GuestError
from sterna.guest.api import DestinationGuest, SourceGuest
from sterna.guest.holder_bitmaps import set_bits
from sterna.guest.holder_client import HolderConnection, connect_holder
from sterna.guest.holder_guests import HolderDestinationGuest, HolderSourceGuest
from sterna.guest.process_launch import launch_process_holder
from sterna.guest.schedule import PAGE_BYTES
from sterna.memory.bitmap import PageBitmap
from sterna.registry import ErrorCode
from sterna.wire.records import Runner

MEMORY = 2 << 20
PAGES = MEMORY // PAGE_BYTES
RATE = 64 << 20
THERE = Runner("there", b"t" * 16)
GROUP = 16  # pages of 64 KiB
WITHIN_S = 30.0

pytestmark = [pytest.mark.needs("minor_faults"), pytest.mark.slow]


class Rig:
    """A guest in one holder, paused; room in another; both are processes."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.directory = directory
        self.journal = directory / "journal"
        self.nursery = nursery
        self.processes: list[trio.Process] = []
        self.connections: list[HolderConnection] = []
        self.image = b""

    async def start(self) -> None:
        for name, memory in (("source", MEMORY), ("destination", 0)):
            process = await launch_process_holder(
                self.directory / name,
                name,
                memory_bytes=memory,
                rate_bytes_s=RATE,
                journal=self.journal,
                die_with_parent=True,
            )
            self.processes.append(process)
        self.source = await HolderSourceGuest.open(await self.connect("source"))
        await self.writes(self.connections[0], PAGES)
        await self.source.pause()
        self.image = bytes(self.source.memory(0))

    async def connect(self, name: str) -> HolderConnection:
        self.connections.append(await connect_holder(self.directory / name))
        return self.connections[-1]

    async def room(self, stale: PageBitmap) -> HolderDestinationGuest:
        """The guest with all but these pages, and something else in their places, ready to run."""
        room = HolderDestinationGuest(await self.connect("destination"))
        assert room.can_post_copy
        await room.reserve(self.source.description)
        await room.prepare()
        memory = room.memory(0)
        memory[:] = self.image
        for first, count in zip(*(part.tolist() for part in stale.runs()), strict=True):
            memory[first * PAGE_BYTES : (first + count) * PAGE_BYTES] = b"\xee" * (count * PAGE_BYTES)
        await room.expect({0: stale})
        await room.load_state(await self.source.save_state())
        await self.source.mark_granted(2)
        return room

    async def install(self, room: DestinationGuest, first: int, count: int) -> None:
        """From the pause image, unless they are there: the guest may have written them since."""
        while left := await room.missing():
            starts, counts = (part.tolist() for part in left[0].runs_between(first, count))
            if not starts:
                break
            part = slice(starts[0] * PAGE_BYTES, (starts[0] + counts[0]) * PAGE_BYTES)
            room.memory(0)[part] = self.image[part]
            await room.installed(0, starts[0], counts[0])

    async def serve(self, room: DestinationGuest) -> None:
        """By demand, until cancelled: the group around each page."""
        while True:
            for found in await room.faults():
                for page in range(found.first, found.first + found.count):
                    await self.install(room, page - page % GROUP, GROUP)

    async def push(self, room: DestinationGuest) -> None:
        """All that is missing."""
        for first in range(0, PAGES, GROUP):
            await self.install(room, first, GROUP)

    async def writes(self, connection: HolderConnection, above: float) -> None:
        """Until the guest has written so often."""
        while (await connection.status()).figure("writes") <= above:
            pass


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    with trio.fail_after(WITHIN_S):
        async with trio.open_nursery() as nursery:
            rig = Rig(tmp_path, nursery)
            try:
                await rig.start()
                yield rig
            finally:
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    for connection in rig.connections:
                        await connection.aclose()
                    for process in rig.processes:
                        process.terminate()
                        await process.wait()


def journal_is_good(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    running = [line for line in lines if line[4] in {"run", "resume", "beat"}]
    assert [line[0] for line in running] == sorted({line[0] for line in running})
    assert [line[1] for line in lines] == sorted(line[1] for line in lines)


async def test_a_guest_whose_pages_all_come_later(rig: Rig) -> None:
    """[HOL-38] [HOL-42] [PCY-5] [PCY-12] It sees no page that is not there, and is like any afterwards."""
    room = await rig.room(PageBitmap.full(PAGES))
    connection = room.connection
    before = (await rig.connections[0].status()).figure("writes")
    await room.run(2, THERE)
    rig.nursery.start_soon(rig.serve, room)
    await rig.writes(connection, before + PAGES // 4)
    status = await connection.status()
    assert status.missing
    assert not room.memory(0).readonly
    assert 0 < status.figure("fault_count") <= PAGES
    assert 0 < status.figure("fault_p50_ns") <= status.figure("fault_p99_ns") <= status.figure("fault_max_ns")
    assert status.figure("fault_max_ns") <= status.figure("fault_total_ns")
    assert 0 < status.figure("fault_first_count") <= -(-PAGES // GROUP)
    assert status.figure("fault_first_count") <= status.figure("fault_count")
    assert 0 < status.figure("fault_first_p50_ns") <= status.figure("fault_first_p99_ns")
    guest = await HolderSourceGuest.open(connection)
    for refused in (guest.start_tracking(), connection.audit()):  # [HOL-43] [ONE-41]
        with pytest.raises(GuestError) as caught:
            await refused
        assert caught.value.code is ErrorCode.NOT_READY
    await rig.push(room)
    assert await room.missing() == {}
    assert room.memory(0).readonly
    await room.installed(0, 0, 1)
    await rig.writes(connection, status.figure("writes"))
    audit = await connection.audit()
    assert (audit["errors"], audit["errors_while_running"]) == (0, 0)
    assert (await connection.status()).figure("fault_count")  # the figures stay
    await guest.start_tracking()
    await guest.pause()
    assert await guest.save_state()
    journal_is_good(rig.journal)


async def test_a_pause_while_the_guest_waits_for_a_page(rig: Rig) -> None:
    """[HOL-44] Neither it nor a status waits, and the page that comes does not end it."""
    room = await rig.room(PageBitmap.full(PAGES))
    connection = room.connection
    await room.run(2, THERE)
    (fault,) = await room.faults()
    guest = await HolderSourceGuest.open(connection)
    before = (await connection.status()).figure("writes")
    await guest.pause()
    assert (await connection.status()).state == "paused"
    await rig.install(room, fault.first, fault.count)
    memory = bytes(room.memory(0))
    await guest.pause()
    assert (await connection.status()).figure("writes") == before
    assert bytes(room.memory(0)) == memory
    await guest.resume()
    rig.nursery.start_soon(rig.serve, room)
    await rig.writes(connection, before + GROUP)
    journal_is_good(rig.journal)


# An endpoint that is taken over from: it reads a fault and installs nothing, notes another page as installed
# and has no entry made for it, says which these are, and goes no further.
ENDPOINT = """
import sys, trio
from sterna.guest.holder_bitmaps import set_bits
from sterna.guest.holder_client import connect_holder
from sterna.guest.holder_guests import HolderDestinationGuest
from sterna.guest.holder_bitmaps import set_bits
from sterna.wire.records import Runner
async def main():
    room = await HolderDestinationGuest.take_over(await connect_holder(sys.argv[1]))
    (await room.notes(16))[:] = b"0123456789abcdef"
    await room.run(2, Runner("there", b"t" * 16))
    fault, *_ = await room.faults()
    noted = 0 if fault.first else 1
    with open(sys.argv[2], "rb") as image:
        room.memory(0)[noted * 4096 : (noted + 1) * 4096] = image.read()[noted * 4096 : (noted + 1) * 4096]
    set_bits(room._late.entries.regions[0].words, noted, 1)
    print(fault.first, noted, flush=True)
    await trio.sleep_forever()
trio.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_an_endpoint_that_dies_in_the_middle(rig: Rig, number: signal.Signals) -> None:
    """[HOL-41] [HOL-45] [HOL-14] The next one finds what was installed, what waits, and the notes."""
    room = await rig.room(PageBitmap.full(PAGES))
    await room.connection.detach()
    image = rig.directory / "image"
    image.write_bytes(rig.image)
    command = [sys.executable, "-c", ENDPOINT, str(rig.directory / "destination"), str(image)]
    endpoint = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert endpoint.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        line += await endpoint.stdout.receive_some(100)
    told, noted = (int(word) for word in line.split())
    async with await connect_holder(rig.directory / "destination", role="observer") as observer:
        assert observer.attached.missing == PAGES - 1  # the holder answers while its guest waits
    os.kill(endpoint.pid, number)
    await endpoint.wait()
    await endpoint.stdout.aclose()
    connection = await rig.connect("destination")
    assert (connection.attached.state, connection.attached.missing) == ("running", PAGES - 1)
    room = await HolderDestinationGuest.take_over(connection)
    assert bytes(await room.notes()) == b"0123456789abcdef"
    left = (await room.missing())[0]
    assert left.count() == PAGES - 1
    assert noted not in left
    first = (await room.faults())[0]
    assert first.first == told
    await rig.install(room, first.first, first.count)
    rig.nursery.start_soon(rig.serve, room)
    await rig.push(room)
    assert (await connection.status()).missing == 0
    audit = await connection.audit()
    assert (audit["errors"], audit["errors_while_running"]) == (0, 0)
    journal_is_good(rig.journal)


async def test_all_pages_are_noted_and_the_endpoint_dies(rig: Rig) -> None:
    """[HOL-42] The holder looks by itself: nobody has to come for the guest to be whole."""
    stale = PageBitmap(PAGES)
    stale.set(0, GROUP)
    room = await rig.room(stale)
    await room.run(2, THERE)
    part = slice(0, GROUP * PAGE_BYTES)
    room.memory(0)[part] = rig.image[part]
    assert room._late is not None
    room._late.installed(0, 0, GROUP)
    await room.connection.aclose()
    async with await connect_holder(rig.directory / "destination") as connection:
        assert connection.attached.missing == 0
        guest: SourceGuest = await HolderSourceGuest.open(connection)
        await guest.start_tracking()
        assert (await connection.audit())["errors"] == 0


async def test_the_holder_looks_before_the_endpoint_is_done(rig: Rig) -> None:
    """[HOL-42] It gives the memory back once all is noted: letting go who waits there is no error then."""
    room = await rig.room(PageBitmap.full(PAGES))
    await room.run(2, THERE)
    late = room._late
    assert late is not None
    room.memory(0)[:] = rig.image
    set_bits(late.entries.regions[0].words, 0, PAGES)
    await room.connection.call("installed")
    assert late.any_missing  # not counted yet
    late.entries.resolve_around(0, 1)  # a fault that was read before
    assert not room.let_go(0, 0, PAGES)
    await room.installed(0, 0, 1)
    assert await room.missing() == {}
    assert (await room.connection.audit())["errors"] == 0


async def test_another_attempt_expects_other_pages(rig: Rig) -> None:
    """[HOL-38] What was stale in the first one and is not in the second is not held."""
    room = await rig.room(PageBitmap.full(PAGES))
    room.memory(0)[:] = rig.image
    few = PageBitmap(PAGES)
    few.set(PAGES // 2 + 1, 2)
    await room.expect({0: few})
    assert (await room.missing())[0] == few
    await room.run(2, THERE)
    told: list[int] = []

    async def listen() -> None:
        while True:
            told.extend(found.first for found in await room.faults())

    rig.nursery.start_soon(listen)
    before = (await rig.connections[0].status()).figure("writes")
    await rig.writes(room.connection, before + 1)
    await rig.install(room, PAGES // 2, GROUP)
    await rig.writes(room.connection, before + PAGES)
    assert set(told) <= {PAGES // 2 + 1}
    assert (await room.connection.status()).missing == 0
    assert (await room.connection.audit())["errors"] == 0


async def test_nothing_is_stale_after_all(rig: Rig) -> None:
    room = await rig.room(PageBitmap.full(PAGES))
    room.memory(0)[:] = rig.image
    await room.expect({})
    assert await room.missing() == {}
    await room.run(2, THERE)
    await rig.writes(room.connection, (await rig.connections[0].status()).figure("writes"))
    assert "fault_count" not in (await room.connection.status()).guest


async def test_what_is_expected_goes_with_the_room(rig: Rig) -> None:
    room = await rig.room(PageBitmap.full(PAGES))
    await room.notes(8)
    await room.discard()
    await room.reserve(rig.source.description)
    assert await room.missing() == {}
    assert len(await room.notes()) == 0
    assert not any(room.memory(0)[:: PAGE_BYTES // 2])


async def test_a_holder_ends_while_its_guest_waits(rig: Rig) -> None:
    room = await rig.room(PageBitmap.full(PAGES))
    await room.run(2, THERE)
    await room.faults()
    await room.connection.shutdown()
    assert await rig.processes[1].wait() == 0

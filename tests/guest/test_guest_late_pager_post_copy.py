"""A holder, an endpoint and its pagers, each a process, and a guest that checks each page that it writes."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
import trio
from test_guest_process_post_copy import GROUP, PAGES, THERE, Rig, journal_is_good, rig
from xxhash import xxh3_64_intdigest

from late_support import Forked
from sterna.guest.api import FAULT
from sterna.guest.holder_guests import HolderDestinationGuest
from sterna.guest.late_endpoint import LateEndpoint
from sterna.guest.schedule import PAGE_BYTES
from sterna.memory.bitmap import PageBitmap
from sterna.memory.merging import Merging
from sterna.memory.pages import RegionPages
from sterna.memory.regions import RegionTable
from sterna.registry import Encoding
from sterna.wire.pages import make_runs
from sterna.wire.records import Pages

pytestmark = [pytest.mark.needs("minor_faults"), pytest.mark.slow]

__all__ = ["rig"]


def serve_faults(late: LateEndpoint, image: bytes, tell: int, parent: int) -> None:
    """What a pager does, with the source's pages at hand. It ends when its parent does."""
    pager = late.pager()
    while True:
        ready, _, _ = select.select([pager, parent], [], [])
        if parent in ready:
            return
        for region, page in pager.news():
            wanted = pager.wanted(region, page)
            refused = not wanted
            for first, count in wanted:
                for each in range(first, first + count):
                    data = memoryview(image)[each * PAGE_BYTES : (each + 1) * PAGE_BYTES]
                    refused |= not pager.install(region, each, data, xxh3_64_intdigest(data))
            if refused:
                os.write(tell, FAULT.pack(region, page))


class Endpoint:
    """What an endpoint does with groups while it has a pager."""

    def __init__(self, rig: Rig, room: HolderDestinationGuest) -> None:
        late = room.early_pages()
        assert late is not None
        self.rig, self.room, self.late = rig, room, late
        self.table = RegionTable(rig.source.description.regions)
        self.sink = Merging(RegionPages(self.table, {0: room.memory(0)}, fresh=False), late.claims)

    def fork(self) -> Callable[[], None]:
        """A pager; what ends it."""
        told, tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        parent, alive = os.pipe()

        def work() -> None:
            os.close(alive)
            serve_faults(self.late, self.rig.image, tell, parent)

        pager = Forked(work)
        os.close(tell)
        os.close(parent)
        self.late.hear(told)

        def end() -> None:
            pager.kill()
            os.close(alive)

        return end

    async def receive(self, group: int) -> None:
        """A group comes, unless it is there."""
        first = group * GROUP
        if first not in (await self.room.missing()).get(0, PageBitmap(PAGES)):
            return
        content = self.rig.image[first * PAGE_BYTES : (first + GROUP) * PAGE_BYTES]
        hashes = np.array([xxh3_64_intdigest(content)], np.uint64)
        table = Pages(1, 1, 0, make_runs([(first, GROUP, Encoding.RAW)], 12), hashes)
        (target,) = self.sink.targets(table)
        target[: PAGE_BYTES // 2] = content[: PAGE_BYTES // 2]
        await trio.lowlevel.checkpoint()
        target[:] = content
        assert self.sink.commit(table) == []
        await self.room.installed(0, first, GROUP)

    async def serve(self) -> None:
        """Groups that the pager leaves to the endpoint."""
        while True:
            for found in await self.room.faults():
                await self.receive(found.first // GROUP)


@pytest.mark.parametrize("dies", [False, True])
async def test_a_guest_gets_its_pages_early_and_loses_none(rig: Rig, dies: bool) -> None:
    """[HOL-47] [HOL-48] [PCY-32] [PCY-33] [PCY-34] Whoever dies when, it meets no page that is another's."""
    room = await rig.room(PageBitmap.full(PAGES))
    endpoint = Endpoint(rig, room)
    before = (await rig.connections[0].status()).figure("writes")
    await room.run(2, THERE)
    end = endpoint.fork()
    await rig.writes(room.connection, before + PAGES // 8)
    assert (await room.connection.status()).missing == PAGES  # all of these came early
    rig.nursery.start_soon(endpoint.serve)
    groups = list(range(PAGES // GROUP))
    Random(7).shuffle(groups)
    for number, group in enumerate(groups):
        if dies and number % 4 == 1:
            end()
            end = endpoint.fork()
        writes = (await room.connection.status()).figure("writes")
        await endpoint.receive(group)
        await rig.writes(room.connection, writes + 1)
    assert await room.missing() == {}
    assert room.early_pages() is None
    end()
    assert endpoint.sink.early_pages
    audit = await room.connection.audit()
    assert (audit["errors"], audit["errors_while_running"]) == (0, 0)
    journal_is_good(rig.journal)


async def test_the_next_endpoint_goes_on_with_what_is_early(rig: Rig) -> None:
    """[HOL-41] [HOL-48]"""
    room = await rig.room(PageBitmap.full(PAGES))
    before = (await rig.connections[0].status()).figure("writes")
    await room.run(2, THERE)
    end = Endpoint(rig, room).fork()
    await rig.writes(room.connection, before + PAGES // 8)
    end()
    room.close()
    await room.connection.detach()
    room = await HolderDestinationGuest.take_over(await rig.connect("destination"))
    endpoint = Endpoint(rig, room)
    rig.nursery.start_soon(endpoint.serve)
    end = endpoint.fork()
    for group in range(PAGES // GROUP):
        await endpoint.receive(group)
    end()
    assert endpoint.sink.early_pages
    audit = await room.connection.audit()
    assert (audit["errors"], audit["errors_while_running"]) == (0, 0)
    journal_is_good(rig.journal)

"""One virtual machine, back and forth between two processes, over the whole protocol.

STERNA_SOAK says how often; a thousand times take some minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from sterna.core.events import Outcome
from sterna.core.policy import PolicySettings, Switchover
from sterna.guest.holder_client import HolderConnection, connect_holder
from sterna.guest.holder_guests import HolderDestinationGuest, HolderSourceGuest
from sterna.net.destination import Destination
from sterna.net.memory import memory_transport_pair
from sterna.net.options import Options
from sterna.net.source import Source

pytestmark = [pytest.mark.needs("kvm", "minor_faults"), pytest.mark.slow]

TIMES = int(os.environ.get("STERNA_SOAK", "12"))
STYLES: tuple[Switchover, ...] = ("stop-and-copy", "bitmap", "post-copy")
WARM = 6  # migrations before a process has all that it keeps
MIB = 1 << 20
ROOM_TO_GROW = 8 * MIB  # a thousand leaks of a page would be half of it; of a machine, hundreds of times it


class Host:
    """A process that holds guests."""

    def __init__(self, name: str, directory: Path, process: trio.Process) -> None:
        self.name = name
        self.directory = directory
        self.process = process
        self.made = 0

    async def tell(self, what: str) -> Path:
        """Have it make or end something; where that is served."""
        self.made += what != "end"
        path = self.directory / f"{self.name}{self.made}"
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        await self.process.stdin.send_all(f"{what} {path}\n".encode())
        line = f"{what} {path}\n".encode()
        said = b""
        while len(said) < len(line):
            said += await self.process.stdout.receive_some(len(line) - len(said))
        assert said == line
        return path

    def uses(self) -> tuple[int, int, int]:
        """Descriptors, threads, bytes of memory."""
        place = Path("/proc") / str(self.process.pid)
        resident = int((place / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return len(list((place / "fd").iterdir())), len(list((place / "task").iterdir())), resident


@pytest.fixture
async def hosts(tmp_path: Path) -> AsyncIterator[tuple[Host, Host]]:
    found = []
    for name in "ab":
        process = await trio.lowlevel.open_process(
            [sys.executable, Path(__file__).with_name("holder_process.py"), tmp_path / "journal"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        found.append(Host(name, tmp_path, process))
    yield found[0], found[1]
    for host in found:
        host.process.kill()
        with trio.CancelScope(shield=True):
            await host.process.wait()
            await host.process.stdin.aclose()
            await host.process.stdout.aclose()


async def migrate(source: HolderConnection, room: HolderConnection, style: Switchover) -> None:
    status = await source.status()
    near, far = memory_transport_pair()
    options = Options(policy=PolicySettings(switchover=style), post_copy=True)
    guest = await HolderSourceGuest.open(source)
    results = []

    async def receive() -> None:
        arriving = HolderDestinationGuest(room)
        results.append(await Destination(lambda _: arriving, far, options=options).run())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        results.append(
            await Source(guest, near, epoch=status.epoch, runner=status.runner, options=options).run()
        )
    assert [result.outcome for result in results] == [Outcome.COMPLETED] * 2, results
    assert {result.style.name.lower().replace("_", "-") for result in results} == {style}


async def audited(connection: HolderConnection) -> int:
    """The guest's writes, of which none has found an error."""
    found = await connection.audit()
    assert found["errors"] == found["errors_while_running"] == found["register_mismatches"] == 0, found
    assert found["time_backwards"] == 0
    assert found["pages_checked"] == 4 * MIB // 4096
    writes = found["writes"]
    assert isinstance(writes, int)
    return writes


async def test_back_and_forth(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    here, there = hosts
    source = await connect_holder(await here.tell("guest"))
    uses = {}
    writes = -1
    for time in range(TIMES):
        room = await connect_holder(await there.tell("room"))
        await migrate(source, room, STYLES[time % len(STYLES)])
        await source.aclose()
        await here.tell("end")
        before, writes = writes, await audited(room)
        assert writes > before
        if time == WARM:
            uses = {host.name: host.uses() for host in hosts}
        here, there, source = there, here, room
    await source.aclose()
    await here.tell("end")
    await there.tell("room")  # so that both are in the middle of as much as they were then
    for host in hosts:
        for (what, limit), before, after in zip(
            (("descriptors", 2), ("threads", 3), ("bytes", ROOM_TO_GROW)),
            uses.get(host.name, host.uses()),
            host.uses(),
            strict=True,
        ):
            assert after <= before + limit, f"{what} of {host.name}: {before}, and then {after}"
    lines = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]
    running = [line for line in lines if line[4] in {"run", "resume", "beat"}]
    assert [line[0] for line in running] == sorted({line[0] for line in running})
    assert [line[1] for line in lines] == sorted(line[1] for line in lines)
    assert running[-1][1] == TIMES + 1

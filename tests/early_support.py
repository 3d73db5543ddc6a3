"""A process guest that is moved by post-copy between two holders, by two endpoints in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
import trio.testing

from sterna.core.events import Event, Result
from sterna.core.policy import PolicySettings
from sterna.guest.holder_client import HolderConnection, connect_holder
from sterna.guest.holder_guests import HolderDestinationGuest, HolderSourceGuest
from sterna.guest.process_launch import launch_process_holder
from sterna.net.connect import Address, connect
from sterna.net.destination import Destination
from sterna.net.kept import Sessions
from sterna.net.listen import listen
from sterna.net.options import Options
from sterna.net.source import Source
from sterna.net.tls import TlsConfig
from sterna.net.transport import Transport

MEMORY = 8 << 20
RATE = 64 << 20
WITHIN_S = 60.0


@dataclass
class Moved:
    """What has become of a migration.

    Attributes:
        results: of source and destination.
        faults: how often the guest has waited for a page.
        errors: that the guest has found in its memory.
    """

    results: dict[str, Result] = field(default_factory=dict)
    faults: int = 0
    errors: int = -1


@dataclass
class Scene:
    """Two holders, and what the endpoints between them are told.

    Attributes:
        wrap: put around each of the source's transports.
        on_source: told of the source's events.
        on_destination: likewise.
        endpoints: of the first connection, once they are there.
    """

    source: HolderConnection
    destination: HolderConnection
    source_options: dict[str, object] = field(default_factory=dict)
    destination_options: dict[str, object] = field(default_factory=dict)
    tls: tuple[TlsConfig, TlsConfig] | None = None
    wrap: Callable[[Transport], Transport] = lambda transport: transport
    on_source: Callable[[Event], None] = lambda _: None
    on_destination: Callable[[Event], None] = lambda _: None
    endpoints: dict[str, Source | Destination] = field(default_factory=dict)

    async def run(self) -> Moved:
        """Move the guest, and let it check its memory."""
        moved = Moved()
        guest = await HolderSourceGuest.open(self.source)
        room = HolderDestinationGuest(self.destination)
        sessions = Sessions()

        async def take(transport: Transport) -> None:
            options = Options(
                post_copy=True,
                streams=4,
                on_event=self.on_destination,
                **{"early_pages": True, **self.destination_options},  # type: ignore[arg-type]
            )
            endpoint = Destination(lambda _: room, transport, options=options, sessions=sessions)
            self.endpoints.setdefault("destination", endpoint)
            result = await endpoint.run()
            if not endpoint.took_up:
                moved.results["destination"] = result

        with trio.fail_after(WITHIN_S):
            async with trio.open_nursery() as nursery:
                here, there = self.tls or (None, None)
                (address,) = await nursery.start(_listen, take, there)

                async def dial() -> Transport:
                    return self.wrap(
                        await connect(address, tls=here, expected=None if here is None else "there")
                    )

                options = Options(
                    streams=1,
                    policy=PolicySettings(switchover="post-copy"),
                    on_event=self.on_source,
                    **{"early_pages": True, **self.source_options},  # type: ignore[arg-type]
                )
                status = await self.source.status()
                source = Source(
                    guest,
                    await dial(),
                    epoch=status.epoch,
                    runner=status.runner,
                    options=options,
                    reconnect=dial,
                )
                self.endpoints["source"] = source
                moved.results["source"] = await source.run()
                while "destination" not in moved.results:
                    await trio.testing.wait_all_tasks_blocked(0.01)
                nursery.cancel_scope.cancel()
            status = await self.destination.status()
            moved.faults = int(status.figure("fault_count"))
            moved.errors = int((await self.destination.audit())["errors"])  # type: ignore[arg-type]
        return moved


async def _listen(
    take: Callable[[Transport], object],
    tls: TlsConfig | None,
    task_status: trio.TaskStatus[list[Address]],
) -> None:
    await listen("127.0.0.1:0", take, tls=tls, task_status=task_status)  # type: ignore[arg-type]


@asynccontextmanager
async def scene(directory: Path) -> AsyncIterator[Scene]:
    """Two holders, one with a guest that runs."""
    processes = []
    try:
        for name, memory in (("source", MEMORY), ("destination", 0)):
            process = await launch_process_holder(
                directory / name, name, memory_bytes=memory, rate_bytes_s=RATE, die_with_parent=True
            )
            processes.append(process)
        async with (
            await connect_holder(directory / "source") as source,
            await connect_holder(directory / "destination") as destination,
        ):
            yield Scene(source, destination)
    finally:
        for process in processes:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

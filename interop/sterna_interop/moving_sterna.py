"""Sterna's way of moving a memory: a source and a destination over a real connection, as embedders have them.

The guest is one that only has memory: nobody runs in it, its state is empty, and there are no durable
records. All else is what `sterna migrate` and `sterna serve` use. The time is that from dialling to the end
of the session, with its handshakes, page hashes and digest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from sterna import Destination, EmbeddedGuest, Options, Outcome, Source
from sterna.core.events import Result
from sterna.errors import GuestError
from sterna.net.connect import Address, connect
from sterna.net.listen import listen
from sterna.net.tls import TlsConfig
from sterna.net.transport import Transport
from sterna_interop.moving import Memories, Processes, Ready

HOST: Final = "127.0.0.1"
SOURCE: Final = "source"
DESTINATION: Final = "destination"


@dataclass(frozen=True, slots=True)
class Security:
    """TLS of both sides; None is plaintext."""

    source: TlsConfig | None
    destination: TlsConfig | None


PLAIN: Final = Security(None, None)


def sterna(memories: Memories, security: Security = PLAIN, options: Options | None = None) -> Processes:
    """Sterna as a way of moving."""

    def send(view: memoryview, port: int) -> float:
        return trio.run(_send, view, port, security.source, options)

    def receive(view: memoryview, ready: Ready) -> None:
        trio.run(_receive, view, ready, security.destination)

    return Processes(send, receive, memories)


async def _send(view: memoryview, port: int, tls: TlsConfig | None, options: Options | None) -> float:
    begin = time.perf_counter()
    transport = await connect(Address(HOST, port), tls=tls, expected=DESTINATION)
    result = await Source(EmbeddedGuest(view), transport, options=options).run()
    seconds = time.perf_counter() - begin
    check(result)
    return seconds


async def _receive(view: memoryview, ready: Callable[[int], None], tls: TlsConfig | None) -> None:
    results: list[Result] = []
    async with trio.open_nursery() as nursery:

        async def take_in(transport: Transport) -> None:
            results.append(await Destination(lambda _: EmbeddedGuest(view), transport).run())
            nursery.cancel_scope.cancel()

        addresses = await nursery.start(partial(listen, Address(HOST, 0), take_in, tls=tls))
        ready(addresses[0].port)
    check(results[0])


def check(result: Result) -> None:
    """Raise unless the guest has moved."""
    if result.outcome is not Outcome.COMPLETED:
        raise result.error or GuestError(f"the migration has ended as {result.outcome}")

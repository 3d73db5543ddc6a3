"""Sterna's way of moving a memory: a source and a destination over a real connection, as embedders have them.

The guest is one that only has memory: nobody runs in it, its state is empty, and there are no durable
records. All else is what `sterna migrate` and `sterna serve` use. The time is that from dialling to the end
of the session, with its handshakes, page hashes and digest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from sterna import Destination, EmbeddedGuest, Options, Outcome, Sessions, Source
from sterna.core.events import Result
from sterna.core.policy import PolicySettings
from sterna.errors import GuestError
from sterna.guest.api import GuestDescription
from sterna.net.connect import Address, connect
from sterna.net.listen import listen
from sterna.net.tls import TlsConfig
from sterna.net.transport import Transport
from sterna_interop.memories import Memories
from sterna_interop.moving import Processes, Ready

HOST: Final = "127.0.0.1"
SOURCE: Final = "source"
DESTINATION: Final = "destination"


@dataclass(frozen=True, slots=True)
class Security:
    """TLS of both sides; None is plaintext."""

    source: TlsConfig | None
    destination: TlsConfig | None


PLAIN: Final = Security(None, None)

# Nobody writes: there is nothing to wait for between the rounds, however slow the machine is.
PATIENT: Final = PolicySettings(allowed_downtime_s=60.0)
VERIFIED: Final = Options(policy=PATIENT)
UNVERIFIED: Final = Options(policy=PATIENT, verified=False)


def sterna(memories: Memories, security: Security = PLAIN, options: Options = VERIFIED) -> Processes:
    """Sterna as a way of moving.

    `options`: of the source. The destination goes without hashes, and takes data connections, as it does.
    """
    theirs = Options(verified=options.verified, streams=options.streams)

    def send(view: memoryview, port: int) -> float:
        return trio.run(_send, view, port, security.source, options)

    def receive(view: memoryview, ready: Ready) -> None:
        trio.run(take_guest_in, view, ready, security.destination, theirs)

    return Processes(send, receive, memories)


def sterna_many(memories: Memories, sessions: int) -> Processes:
    """So many sessions at once, each with its part of the memory; when the first and the last had ended."""

    def send(view: memoryview, port: int) -> tuple[float, ...]:
        return trio.run(_send_many, _parts(view, sessions), port)

    def receive(view: memoryview, ready: Ready) -> None:
        trio.run(_receive_many, _parts(view, sessions), ready)

    return Processes(send, receive, memories)


def _parts(view: memoryview, count: int) -> list[memoryview]:
    size = len(view) // count
    return [view[number * size : (number + 1) * size] for number in range(count)]


async def _send_many(parts: Sequence[memoryview], port: int) -> tuple[float, ...]:
    begin = time.perf_counter()
    ends: list[float] = []

    async def send_one(number: int) -> None:
        transport = await connect(Address(HOST, port), tls=None)
        check(await Source(EmbeddedGuest(parts[number], str(number)), transport, options=VERIFIED).run())
        ends.append(time.perf_counter() - begin)

    async with trio.open_nursery() as nursery:
        for number in range(len(parts)):
            nursery.start_soon(send_one, number)
    return (max(ends), min(ends), max(ends))


async def _receive_many(parts: Sequence[memoryview], ready: Callable[[int], None]) -> None:
    results: list[Result] = []
    async with trio.open_nursery() as nursery:

        def room(description: GuestDescription) -> EmbeddedGuest:
            return EmbeddedGuest(parts[int(description.name)])

        async def take_in(transport: Transport) -> None:
            results.append(await Destination(room, transport).run())
            if len(results) == len(parts):
                nursery.cancel_scope.cancel()

        addresses = await nursery.start(partial(listen, Address(HOST, 0), take_in, tls=None))
        ready(addresses[0].port)
    for result in results:
        check(result)


async def _send(view: memoryview, port: int, tls: TlsConfig | None, options: Options) -> float:
    dial = partial(connect, Address(HOST, port), tls=tls, expected=DESTINATION)
    begin = time.perf_counter()
    reconnect = dial if options.streams else None
    result = await Source(EmbeddedGuest(view), await dial(), options=options, reconnect=reconnect).run()
    seconds = time.perf_counter() - begin
    check(result)
    return seconds


async def take_guest_in(
    view: memoryview, ready: Callable[[int], None], tls: TlsConfig | None, options: Options | None = None
) -> None:
    """Take one guest in, and tell the port as soon as it can come."""
    results: list[Result] = []
    sessions = Sessions() if options is not None and options.streams else None
    async with trio.open_nursery() as nursery:

        async def take_in(transport: Transport) -> None:
            destination = Destination(
                lambda _: EmbeddedGuest(view), transport, options=options, sessions=sessions
            )
            result = await destination.run()
            if not destination.took_up:  # a data connection has no result of its own
                results.append(result)
                nursery.cancel_scope.cancel()

        addresses = await nursery.start(partial(listen, Address(HOST, 0), take_in, tls=tls))
        ready(addresses[0].port)
    check(results[0])


def check(result: Result) -> None:
    """Raise unless the guest has moved."""
    if result.outcome is not Outcome.COMPLETED:
        raise result.error or GuestError(f"the migration has ended as {result.outcome}")

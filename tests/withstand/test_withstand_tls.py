"""TLS with somebody on the way: records cut, changed, repeated, swapped, dropped, plaintext between them.

Two real endpoints move a guest over loopback and mutual TLS, through a relay that does one thing to one
record. The relay has no key, so whatever it does is a broken connection, an end that it makes up among them;
the guest is whole and runs at one side, or nobody knows and somebody says so.

Published bugs of this class: Xensploit (2008) read and changed guests that moved in the clear; QEMU's multifd
channels ended without close_notify and had to be forgiven for it, and broke when TLS changed its keys (bug
1937); CRIU left a part of its page bytes outside of TLS (#3115); Python hides an end without close_notify by
default.

[TLS-20] [TLS-21] [CON-64] [CON-69] [ONE-20] [ONE-30] [SEC-1]
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from withstand_support import DEVICES, EPOCH, HERE, LIMITS, PAGE_BYTES, SourceGuest

from sterna.core.events import Outcome, Result
from sterna.guest.simulated import SimulatedDestinationGuest
from sterna.host import pki
from sterna.net.destination import Destination
from sterna.net.handshake import accept_tls, dial_tls
from sterna.net.options import Options
from sterna.net.source import Source
from sterna.net.tls import TlsConfig
from sterna.net.transport import Transport
from sterna.registry import ERRORS, ErrorClass, ErrorCode, FrameType
from sterna.wire import unchecked

pytestmark = pytest.mark.slow

RECORD_HEAD = 5
Change = Callable[[list[bytes], int], Iterator[bytes | None]]  # None: this direction ends


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> tuple[TlsConfig, TlsConfig]:
    directory: Path = tmp_path_factory.mktemp("pki")
    pki.init_ca(directory)
    issued = [pki.issue(directory, name) for name in ("host-a", "host-b")]

    def anybody(identity: str, fingerprint: bytes) -> None:
        assert identity
        assert fingerprint

    a, b = (TlsConfig(each.certificate, each.key, each.authority, anybody) for each in issued)
    return a, b


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        a = socket.socket()
        a.connect(listener.getsockname())
        b, _ = listener.accept()
    for sock in (a, b):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return a, b


@dataclass
class Relay:
    """Between two sockets. Passes records on; what happens to record `number` of a direction is `change`'s.

    Attributes:
        records: records that passed since the handshake, of each direction.
        armed: whether that is over.
    """

    direction: int = -1
    number: int = -1
    change: Change | None = None
    records: list[int] = field(default_factory=lambda: [0, 0])
    armed: bool = False

    async def run(self, ends: tuple[socket.socket, socket.socket]) -> None:
        streams = [trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in ends]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_on, 0, streams[0], streams[1])
            nursery.start_soon(self._pass_on, 1, streams[1], streams[0])

    async def _pass_on(self, direction: int, taken: trio.SocketStream, given: trio.SocketStream) -> None:
        kept: list[bytes] = []  # records since the attack began
        data = bytearray()
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while come := await taken.receive_some():
                data += come
                for record in whole_records(data):
                    for piece in self._changed(direction, record, kept):
                        if piece is None:
                            await given.send_eof()
                            return
                        await given.send_all(piece)
            await given.send_all(bytes(data))
            await given.send_eof()

    def _changed(self, direction: int, record: bytes, kept: list[bytes]) -> Iterable[bytes | None]:
        if not self.armed:
            return [record]
        number = self.records[direction]
        self.records[direction] += 1
        if direction != self.direction or number < self.number or self.change is None:
            return [record]
        kept.append(record)
        return self.change(kept, number - self.number)


def whole_records(data: bytearray) -> Iterator[bytes]:
    """The TLS records at the front of `data`, taken off it."""
    while len(data) >= RECORD_HEAD:
        end = RECORD_HEAD + int.from_bytes(data[3:5], "big")
        if len(data) < end:
            return
        yield bytes(data[:end])
        del data[:end]


# ---- what is done to a record: (records so far, how many came before) to bytes ----


def flip(kept: list[bytes], number: int) -> Iterator[bytes]:
    raw = bytearray(kept[-1])
    if number == 0:
        raw[RECORD_HEAD + (len(raw) - RECORD_HEAD) // 2] ^= 0x10
    yield bytes(raw)


def repeat(kept: list[bytes], number: int) -> Iterator[bytes]:
    yield kept[-1]
    if number == 0:
        yield kept[-1]


def swap(kept: list[bytes], number: int) -> Iterator[bytes]:
    if number == 1:
        yield kept[1]
        yield kept[0]
    elif number > 1:
        yield kept[-1]


def drop(kept: list[bytes], number: int) -> Iterator[bytes]:
    if number > 0:
        yield kept[-1]


def cut_between(kept: list[bytes], number: int) -> Iterator[None]:
    yield None


def cut_inside(kept: list[bytes], number: int) -> Iterator[bytes | None]:
    yield kept[-1][: len(kept[-1]) // 2]
    yield None


def before(injected: bytes) -> Change:
    def inject(kept: list[bytes], number: int) -> Iterator[bytes]:
        if number == 0:
            yield injected
        yield kept[-1]

    return inject


CHANGES: dict[str, Change] = {
    "a bit changed": flip,
    "a record twice": repeat,
    "two records swapped": swap,
    "a record dropped": drop,
    "an end between two records": cut_between,
    "an end inside of a record": cut_inside,
    "a frame in plaintext": before(unchecked.frame(FrameType.BYE)),
    "a preface in plaintext": before(unchecked.preface()),
    "a forged close_notify": before(bytes.fromhex("15030300020100")),
    "a forged fatal alert": before(bytes.fromhex("1503030002022f")),
    "a forged record": before(bytes.fromhex("1703030020") + bytes(32)),
    "an empty record": before(bytes.fromhex("1703030000")),
    "a record longer than allowed": before(bytes.fromhex("170303ffff") + bytes(65535)),
}  # fmt: skip


class Move:
    """A migration over mutual TLS through a relay."""

    def __init__(self, configs: tuple[TlsConfig, TlsConfig], relay: Relay) -> None:
        self.configs = configs
        self.relay = relay
        self.results: dict[str, Result] = {}
        self.guest = SourceGuest()
        self.guest.machine.runner, self.guest.machine.epoch = HERE, EPOCH
        avx = DEVICES["cpu_features"]
        self.room = SimulatedDestinationGuest(
            cpu_features=avx,  # type: ignore[arg-type]
            rate_bytes_s=PAGE_BYTES,
            journal=self.guest.machine.journal,
        )

    async def run(self) -> Move:
        (dialler, near), (far, acceptor) = tcp_pair(), tcp_pair()
        options = Options(limits=LIMITS, grease=False)
        here, there = self.configs

        transports: dict[str, Transport] = {}

        async def dial() -> None:
            context = here.context(server=False)
            transports["source"] = await dial_tls(dialler, here, context, expected="host-b")

        async def accept() -> None:
            context = there.context(server=True)
            transports["destination"] = await accept_tls(acceptor, there, context)

        async def source() -> None:
            near = transports["source"]
            endpoint = Source(self.guest, near, epoch=EPOCH, runner=HERE, options=options)
            self.results["source"] = await endpoint.run()

        async def destination() -> None:
            endpoint = Destination(lambda _: self.room, transports["destination"], options=options)
            self.results["destination"] = await endpoint.run()

        with trio.fail_after(60):
            async with trio.open_nursery() as relays:
                relays.start_soon(self.relay.run, (near, far))
                async with trio.open_nursery() as both:
                    both.start_soon(dial)
                    both.start_soon(accept)
                self.relay.armed = True
                async with trio.open_nursery() as both:
                    both.start_soon(source)
                    both.start_soon(destination)
                relays.cancel_scope.cancel()
        for end in (near, far):
            end.close()
        return self

    def check(self) -> None:
        """One code each, one runner at most, and a guest that is whole."""
        here, there = self.results["source"], self.results["destination"]
        assert not (self.guest.running and self.room.running)
        for result in (here, there):
            assert result.outcome is Outcome.COMPLETED or result.code in ERRORS
        assert self.guest.running == (here.outcome is Outcome.ROLLED_BACK)
        assert self.room.running == (there.outcome in {Outcome.MOVED, Outcome.COMPLETED})
        if not self.guest.running and not self.room.running:
            assert here.outcome is Outcome.UNDECIDED
            assert self.guest.granted_epoch == EPOCH + 1
        if here.outcome is Outcome.ROLLED_BACK:
            assert self.guest.granted_epoch is None
        alive = self.room if self.room.has_run else self.guest
        alive.advance(5.0)
        assert (alive.workload.errors, alive.workload.audit().errors) == (0, 0)


async def test_an_honest_relay_passes_a_migration(configs: tuple[TlsConfig, TlsConfig]) -> None:
    move = await Move(configs, Relay()).run()
    move.check()
    assert {result.outcome for result in move.results.values()} == {Outcome.COMPLETED}
    assert min(move.relay.records) >= 8


# Of the application records of each direction: the first behind the handshake, one in the rounds, one in the
# blackout, one of the commit.
PLACES = [(0, number) for number in (2, 4, 8, 11)] + [(1, number) for number in (2, 3, 5, 7)]


@pytest.mark.parametrize("name", CHANGES)
async def test_a_record_is_not_what_was_sent(configs: tuple[TlsConfig, TlsConfig], name: str) -> None:
    """[TLS-21] [CON-69] At several places of both directions. The code is the transport's."""
    codes: set[ErrorCode | None] = set()
    for direction, number in PLACES:
        move = await Move(configs, Relay(direction, number, CHANGES[name])).run()
        move.check()
        victim = move.results["destination" if direction == 0 else "source"]
        codes.add(victim.code)
        assert victim.outcome is not Outcome.COMPLETED or victim.code is None
    known = codes - {None}
    assert known
    assert {ERRORS[code].kind for code in known} == {ErrorClass.TRANSPORT}, known
    if name == "an end between two records":
        assert known == {ErrorCode.NOT_CLOSED}

"""Two endpoints, their guests and a link, for the tests that do something to one of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from sterna.core.events import Outcome, Result
from sterna.core.negotiate import offer
from sterna.errors import RemoteProtocolError, TransportError
from sterna.guest.simulated import JournalEntry, SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.limits import Limits
from sterna.net.destination import Destination
from sterna.net.hosting import LocalHost
from sterna.net.memory import memory_transport_pair
from sterna.net.options import Options
from sterna.net.source import Source
from sterna.net.transport import Transport
from sterna.registry import FrameType
from sterna.testing import run_workload
from sterna.wire import FrameReader, FrameReceived, encode_frame, encode_preface
from sterna.wire.header import VERSION
from sterna.wire.records import FeatureChoice, Record, Runner, Welcome

R = TypeVar("R")

PAGES = 64
PARAMETERS = WorkloadParameters(seed=7, pages=PAGES, hot_pages=16, block_pages=8)
EPOCH = 1
MOVED_HERE = frozenset({Outcome.COMPLETED, Outcome.MOVED})


class SourceGuest(SimulatedSourceGuest):
    """Keeps the image that it had when it was freed."""

    image = b""

    async def release(self) -> None:
        self.image = bytes(self.machine.memory)
        await super().release()


class DestinationGuest(SimulatedDestinationGuest):
    """Keeps the image of its first instruction."""

    image = b""

    async def run(self, epoch: int, runner: Runner) -> None:
        assert self.machine is not None
        self.image = bytes(self.machine.memory)
        await super().run(epoch, runner)


async def at_once(work: Callable[[], R]) -> R:
    """In place of `trio.to_thread.run_sync` in virtual time, which goes on while a thread works."""
    await trio.lowlevel.checkpoint()
    return work()


@dataclass
class Migration:
    """One migration, and the checks that hold whatever becomes of it."""

    parameters: WorkloadParameters = PARAMETERS
    rate_bytes_s: float = 2e6
    ends: tuple[Transport, Transport] | None = None
    link: dict[str, object] = field(default_factory=dict)
    source_options: dict[str, object] = field(default_factory=dict)
    destination_options: dict[str, object] = field(default_factory=dict)
    source_host: LocalHost = field(default_factory=lambda: LocalHost("source"))
    destination_host: LocalHost = field(default_factory=lambda: LocalHost("destination"))
    virtual: bool = True
    tick_s: float = 0.01
    results: dict[str, Result] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.journal: list[JournalEntry] = []
        self.guest = SourceGuest(self.parameters, rate_bytes_s=self.rate_bytes_s)
        self.guest.machine.journal = self.journal
        self.guest.machine.runner = Runner("source", b"s" * 16)
        self.room = DestinationGuest(rate_bytes_s=self.rate_bytes_s, journal=self.journal)
        self.near, self.far = self.ends or memory_transport_pair(**self.link)  # type: ignore[arg-type]
        self.source = Source(
            self.guest,
            self.near,
            epoch=EPOCH,
            runner=self.guest.machine.runner,
            host=self.source_host,
            options=self._options(self.source_options),
        )
        self.destination = Destination(
            lambda _: self.room,
            self.far,
            host=self.destination_host,
            options=self._options(self.destination_options),
        )

    def _options(self, changes: dict[str, object]) -> Options:
        clock = {"clock": trio.current_time} if self.virtual else {}
        return Options(**{**clock, **changes})  # type: ignore[arg-type]

    async def run(self, meanwhile: Callable[[], Awaitable[None]] | None = None) -> Migration:
        """Until both endpoints have ended; the guests live meanwhile, and a little longer."""
        started = trio.current_time()
        async with trio.open_nursery() as lives:
            lives.start_soon(run_workload, self.guest, self.tick_s)
            lives.start_soon(run_workload, self.room, self.tick_s)
            async with trio.open_nursery() as both:
                both.start_soon(self._run, "source")
                both.start_soon(self._run, "destination")
                if meanwhile is not None:
                    both.start_soon(meanwhile)
            self.seconds = trio.current_time() - started
            await trio.sleep(5 * self.tick_s)
            lives.cancel_scope.cancel()
        self.check()
        return self

    async def _run(self, side: str) -> None:
        self.results[side] = await getattr(self, side).run()

    @property
    def outcomes(self) -> tuple[Outcome, Outcome]:
        return self.results["source"].outcome, self.results["destination"].outcome

    def check(self) -> None:
        """At most one side runs, and both say what is so [ONE-9] [CON-62] [CON-63] [CON-64] [ONE-49]."""
        here, there = self.outcomes
        assert not (self.guest.running and self.room.running)
        assert self.near.closed
        assert self.far.closed
        if here is not Outcome.GUEST_FAILED:
            assert self.guest.running == (here is Outcome.ROLLED_BACK)
        assert self.room.running == (there in MOVED_HERE)
        if here in MOVED_HERE:
            assert there in MOVED_HERE
        if there in MOVED_HERE:
            assert here in {*MOVED_HERE, Outcome.UNDECIDED}
        if Outcome.UNDECIDED in {here, there}:
            assert self.guest.granted_epoch == EPOCH + 1
        if here is Outcome.ROLLED_BACK:
            assert self.guest.machine.throttle == 0
            assert self.destination.guest is None
        self.check_evidence()

    def check_evidence(self) -> None:
        """The guest finds itself unharmed, and its journal has no fork."""
        alive = self.room if self.room.has_run else self.guest
        found = alive.workload.audit()
        assert found.errors == alive.workload.errors == 0
        counts = [entry.count for entry in self.journal]
        assert counts == sorted(set(counts))
        epochs = [entry.epoch for entry in self.journal]
        assert epochs == sorted(epochs)
        for epoch in set(epochs):
            assert len({entry.runner for entry in self.journal if entry.epoch == epoch}) == 1

    def check_moved(self) -> None:
        """All has gone well."""
        assert self.outcomes == (Outcome.COMPLETED, Outcome.COMPLETED)
        assert self.guest.image == self.room.image != b""
        assert self.results["source"].digest == self.results["destination"].digest != b""
        if self.journal:
            assert self.journal[-1].epoch == EPOCH + 1


async def until(condition: Callable[[], bool]) -> None:
    """Let the others run until it holds."""
    while not condition():
        await trio.lowlevel.checkpoint()


def welcome() -> Welcome:
    """What a destination says that selects everything."""
    choices = tuple(FeatureChoice(each.id, each.parameter) for each in offer())
    return Welcome(VERSION, b"s" * 16, b"t" * 32, choices, Limits().to_wire(), "scripted")


def frames(*frames: Record | bytes) -> bytes:
    """A preface and frames with the right numbers; bytes go in as they are and count as a frame each."""
    parts = [encode_preface()]
    for number, one in enumerate(frames):
        parts += [one] if isinstance(one, bytes) else map(bytes, encode_frame(one, number))
    return b"".join(parts)


class Told:
    """What a peer was told: reads a stream of frames that carry no pages."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.ended: TransportError | bool = False
        self._reader = FrameReader()

    async def listen(self, transport: Transport) -> None:
        """Until the end."""
        buffer = memoryview(bytearray(65536))
        try:
            while count := await transport.receive_into(buffer):
                self.take(bytes(buffer[:count]))
            self.ended = True
        except TransportError as error:
            self.ended = error

    def take(self, data: bytes) -> None:
        self._reader.receive_data(data)
        with suppress(RemoteProtocolError):
            while (event := self._reader.next_event()) is not None:
                if isinstance(event, FrameReceived):
                    self.records.append(event.record)

    @property
    def last(self) -> Record:
        return [one for one in self.records if one.type not in {FrameType.PING, FrameType.PONG}][-1]

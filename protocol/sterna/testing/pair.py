"""Two machines, two guests and a pipe, without an event loop: a whole migration in one thread.

    pair = Pair(source_guest, destination_guest)
    pair.run()
    assert pair.source.result.outcome == "completed"

Time stands still unless a test moves it (`advance`), bytes lie in `pair.to_destination` and
`pair.to_source` until they are delivered, as many at a time as the test likes, and may be cut or changed
there. Requests are carried out at once, in order; a test can hold them back (`perform=False`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import TypeVar

from sterna.core.destination import DestinationConfig, DestinationMachine
from sterna.core.events import (
    Admission,
    Admit,
    Claim,
    CollectDirty,
    Discard,
    Event,
    LoadState,
    MarkGranted,
    Pause,
    Prepare,
    ReleaseImage,
    Request,
    Reserve,
    RollBack,
    RunGuest,
    SaveState,
    StartTracking,
    Throttle,
)
from sterna.core.session import Session
from sterna.core.source import SourceConfig, SourceMachine
from sterna.core.tables import SourceState
from sterna.errors import SternaError, TransportError
from sterna.guest.api import DestinationGuest, GuestDescription, SourceGuest
from sterna.memory.pages import RegionPages
from sterna.memory.regions import RegionTable
from sterna.wire.records import Guest, Runner

T = TypeVar("T")

RUNNER = Runner("destination.test", bytes(range(16)))
ADMISSION = Admission(bytes(range(1, 17)), bytes(range(32)), RUNNER)


def run_now(coroutine: Coroutine[object, object, T]) -> T:
    """The result of an async function that never waits, as those of the simulated guest."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    coroutine.close()
    raise AssertionError("this coroutine waits for something; a Pair has nothing that could come")


class Pair:
    """A source and a destination machine, their guests, and the bytes between them."""

    def __init__(
        self,
        source_guest: SourceGuest,
        destination_guest: DestinationGuest,
        *,
        source_config: SourceConfig | None = None,
        destination_config: DestinationConfig | None = None,
        between: Callable[[Pair], None] = lambda _: None,
    ) -> None:
        self.now = 0.0
        self.guests: dict[Session, SourceGuest | DestinationGuest] = {}
        description = source_guest.description
        config = source_config or source_config_of(description)
        table = RegionTable(description.regions)
        views = {region.id: source_guest.memory(region.id) for region in table.copied}
        self.source = SourceMachine(config, RegionPages(table, views), self.now)
        self.destination = DestinationMachine(destination_config or DestinationConfig(), self.now)
        self.source_guest = source_guest
        self.destination_guest = destination_guest
        self.to_destination = bytearray()
        self.to_source = bytearray()
        self.events: dict[str, list[Event]] = {"source": [], "destination": []}
        self.performed: dict[str, list[Request]] = {"source": [], "destination": []}
        self.fail_on: dict[type, SternaError] = {}
        self.linked = True
        self._between = between

    def start(self) -> None:
        """The source's first command."""
        self.source.start(self.now)

    def run(self, *, chunk: int | None = None, steps: int = 100_000) -> None:
        """Start if need be, and go on until nothing moves any more."""
        if self.source.state is SourceState.IDLE:
            self.start()
        for _ in range(steps):
            if not self.step(chunk=chunk):
                return
        raise AssertionError(f"still moving after {steps} steps")

    def step(self, *, chunk: int | None = None, perform: bool = True) -> bool:
        """Everything that is due now, once. Whether anything moved."""
        moved = False
        for name, machine, pipe in (
            ("source", self.source, self.to_destination),
            ("destination", self.destination, self.to_source),
        ):
            moved |= perform and self.perform(name, machine)
            self._events_of(name, machine)
            while buffers := machine.poll_transmit(self.now):
                data = b"".join(bytes(buffer) for buffer in buffers)
                machine.transmitted(len(data), self.now)
                if self.linked:
                    pipe.extend(data)
                moved = True
        self._between(self)
        moved |= self.deliver(self.to_destination, self.destination, chunk)
        moved |= self.deliver(self.to_source, self.source, chunk)
        for name, machine in (("source", self.source), ("destination", self.destination)):
            self._events_of(name, machine)
        return moved

    def deliver(self, pipe: bytearray, machine: Session, count: int | None = None) -> bool:
        """Give a machine the next bytes of its pipe, all by default. Whether there were any."""
        data = bytes(pipe[:count])
        del pipe[: len(data)]
        if data:
            machine.receive_data(data, self.now)
        return bool(data)

    def cut(self, error: TransportError | None = None) -> None:
        """The connection ends for both, and what is in the pipes is lost."""
        self.linked = False
        self.to_destination.clear()
        self.to_source.clear()
        self.source.connection_lost(error, self.now)
        self.destination.connection_lost(error, self.now)

    def advance(self, seconds: float) -> None:
        """Let time pass and the timers that run out in it act, in order."""
        end = self.now + seconds
        while True:
            due = [at for each in (self.source, self.destination) if (at := each.poll_timeout()) is not None]
            self.now = min([end, *due])
            if self.now >= end and not any(at <= end for at in due):
                return
            self.source.handle_timeout(self.now)
            self.destination.handle_timeout(self.now)
            while self.step():
                pass

    def perform(self, name: str, machine: Session) -> bool:
        """Carry out everything that a machine asks for. Whether there was anything."""
        moved = False
        while (request := machine.poll_request()) is not None:
            moved = True
            self.performed[name].append(request)
            error = self.fail_on.get(type(request))
            if error is not None:
                machine.fail(request, error, self.now)
                continue
            try:
                answer = run_now(self._source(request) if name == "source" else self._destination(request))
            except SternaError as failure:
                machine.fail(request, failure, self.now)
            else:
                machine.complete(request, answer, self.now)
        return moved

    def _events_of(self, name: str, machine: Session) -> None:
        while (event := machine.poll_event()) is not None:
            self.events[name].append(event)

    async def _source(self, request: Request) -> object:
        guest = self.source_guest
        match request:
            case StartTracking():
                await guest.start_tracking()
            case CollectDirty():
                return await guest.collect_dirty()
            case Throttle(share=share):
                await guest.throttle(share)
            case Pause():
                await guest.pause()
            case SaveState():
                return await guest.save_state()
            case MarkGranted(epoch=epoch):
                await guest.mark_granted(epoch)
            case RollBack(granted=granted):
                if granted is not None:
                    await guest.revoke_grant(granted)
                await guest.stop_tracking()
                await guest.throttle(0.0)
                await guest.resume()
            case ReleaseImage():
                await guest.release()
        return None

    async def _destination(self, request: Request) -> object:
        guest = self.destination_guest
        match request:
            case Admit():
                return ADMISSION
            case Reserve(guest=record):
                return await self._reserve(record)
            case Claim():
                return True
            case Prepare():
                await guest.prepare()
            case LoadState(sections=sections):
                await guest.load_state(sections)
            case RunGuest(epoch=epoch, runner=runner):
                await guest.run(epoch, runner)
            case Discard():
                await guest.discard()
            case _:
                pass  # Persist: nothing outlives a Pair
        return None

    async def _reserve(self, record: Guest) -> RegionPages:
        guest = self.destination_guest
        await guest.reserve(GuestDescription.from_record(record, self.source_guest.description.id))
        table = RegionTable(record.regions)
        views: Mapping[int, memoryview] = {region.id: guest.memory(region.id) for region in table.copied}
        return RegionPages(table, views)


def source_config_of(description: GuestDescription, **changes: object) -> SourceConfig:
    """The configuration that moves a guest of this description."""
    return SourceConfig(guest=description.to_record(), guest_id=description.id, **changes)  # type: ignore[arg-type]

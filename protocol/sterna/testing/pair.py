"""Two machines, two guests and a pipe, without an event loop: a whole migration in one thread.

    pair = Pair(source_guest, destination_guest)
    pair.run()
    assert pair.source.result.outcome == "completed"

The link may be cut, and joined again by `reconnect` if both sides have kept the session:

    pair.cut()
    pair.reconnect()
    pair.run()

Time stands still unless a test moves it (`advance`), bytes lie in `pair.to_destination` and
`pair.to_source` until they are delivered, as many at a time as the test likes, and may be cut or changed
there. Requests are carried out at once, in order; a test can hold them back (`perform=False`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

from sterna import limits as bounds
from sterna.core.carry import DestinationCarry
from sterna.core.destination import DestinationConfig, DestinationMachine
from sterna.core.duties import NoRecords, pages_of, reserve, serve_destination, serve_source
from sterna.core.events import Admission, Admit, Event, Join, OpenStreams, Readmit, Request, Reserve
from sterna.core.negotiate import BASE_FEATURES, FOLLOW_FEATURES
from sterna.core.policy import PolicySettings
from sterna.core.session import Session
from sterna.core.source import SourceConfig, SourceMachine
from sterna.core.style import offer_for
from sterna.core.tables import DestinationState, SourceState
from sterna.errors import LocalProtocolError, SternaError, TransportError
from sterna.guest.api import DestinationGuest, GuestDescription, SourceGuest
from sterna.limits import Limits
from sterna.registry import ErrorCode, Feature
from sterna.wire.records import PageRange, Runner

T = TypeVar("T")

NO_RECORDS = NoRecords()
RUNNER = Runner("destination.test", bytes(range(16)))
TAKES_EVERYTHING = DestinationConfig(features=BASE_FEATURES | FOLLOW_FEATURES)
ADMISSION = Admission(bytes(range(1, 17)), bytes(range(32)), RUNNER)


def run_now(coroutine: Coroutine[object, object, T]) -> T:
    """The result of an async function that never waits, as those of the simulated guest."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    coroutine.close()
    raise AssertionError("this coroutine waits for something; a Pair has nothing that could come")


@runtime_checkable
class Waiting(Protocol):
    """A guest of which can be seen what it waits for."""

    @property
    def waits_for(self) -> PageRange | None:
        """A page that is missing."""
        ...


@dataclass
class LanePipes:
    """The bytes on a data connection, and the machine that was called on it, until its session has it."""

    door: DestinationMachine | None
    to_destination: bytearray = field(default_factory=bytearray)
    to_source: bytearray = field(default_factory=bytearray)


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
        description = source_guest.description
        config = source_config or source_config_of(description)
        self._configs = config, destination_config or TAKES_EVERYTHING
        self._pages = pages_of(source_guest, description)
        self.source = SourceMachine(config, self._pages, self.now)
        self.destination = DestinationMachine(self._configs[1], self.now)
        self.source_guest = source_guest
        self.destination_guest = destination_guest
        self.to_destination = bytearray()
        self.to_source = bytearray()
        self.events: dict[str, list[Event]] = {"source": [], "destination": []}
        self.performed: dict[str, list[Request]] = {"source": [], "destination": []}
        self.fail_on: dict[type, SternaError] = {}
        self.linked = True
        self.kept: DestinationCarry | None = None
        self.lanes: dict[int, LanePipes] = {}
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
        for name, machine in (("source", self.source), ("destination", self.destination)):
            moved |= perform and self.perform(name, machine)
            self._tell_faults()
            self._events_of(name, machine)
            for stream in (*self.lanes, 0):
                moved |= self.send(name, stream)
        self._between(self)
        for stream in (0, *self.lanes):
            moved |= self.receive("destination", stream, chunk)
            moved |= self.receive("source", stream, chunk)
        for name, machine in (("source", self.source), ("destination", self.destination)):
            self._events_of(name, machine)
        return moved

    def send(self, name: str, stream: int = 0, units: int | None = None) -> bool:
        """Let a side send on a connection, all that it has by default. Whether there was anything."""
        machine, pipe = self._end(name, stream)
        sent = 0
        while sent != units and (buffers := machine.poll_transmit(self.now, stream)):
            data = b"".join(bytes(buffer) for buffer in buffers)
            machine.transmitted(len(data), self.now, stream)
            if self.linked:
                pipe.extend(data)
            sent += 1
        return bool(sent)

    def receive(self, name: str, stream: int = 0, count: int | None = None) -> bool:
        """Let a side receive from a connection, unless that has to wait. Whether there was anything."""
        machine, _ = self._end(name, stream)
        lane = self.lanes.get(stream)
        door = None if lane is None or name == "source" else lane.door
        if (door or machine).is_held(0 if door else stream):
            return False
        pipe = self._pipe_to(name, stream)
        if not stream:
            return self.deliver(pipe, machine, count)
        data = bytes(pipe[:count])
        del pipe[: len(data)]
        if door is None and data:
            machine.receive_data(data, self.now, stream)
        elif door is not None and data:
            door.receive_data(data, self.now)
            self._answer_door(stream, door)
        return bool(data)

    def _answer_door(self, stream: int, door: DestinationMachine) -> None:
        """The machine that is called on a data connection asks for its session, as an endpoint does."""
        while (request := door.poll_request()) is not None:
            door.complete(request, None, self.now)
            self.destination.join(*door.door, self.now)
            self.lanes[stream].door = None

    def _end(self, name: str, stream: int) -> tuple[Session, bytearray]:
        """A side's machine for a connection, and where it sends to."""
        machine: Session = self.source if name == "source" else self.destination
        return machine, self._pipe_to("destination" if name == "source" else "source", stream)

    def _pipe_to(self, name: str, stream: int) -> bytearray:
        if stream:
            lane = self.lanes[stream]
            return lane.to_source if name == "source" else lane.to_destination
        return self.to_source if name == "source" else self.to_destination

    def _open_lanes(self, streams: Iterable[int]) -> None:
        for stream in streams:
            self.lanes[stream] = LanePipes(door=DestinationMachine(self._configs[1], self.now))

    def _tell_faults(self) -> None:
        """What the guest there waits for, if it is one that says so without a loop."""
        guest = self.destination_guest
        if isinstance(guest, Waiting) and (pages := guest.waits_for) is not None:
            self.destination.fault(pages.region, pages.first, pages.count, self.now)

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
        self.lanes.clear()
        self.source.connection_lost(error, self.now)
        self.destination.connection_lost(error, self.now)

    def reconnect(self) -> None:
        """A new connection for a session that both sides have kept; it is taken up at once."""
        for name, machine in (("source", self.source), ("destination", self.destination)):
            self.perform(name, machine)  # what the loss has left to be done
            self._events_of(name, machine)
        if self.destination.state in {DestinationState.SUSPENDED, DestinationState.PARTED}:
            self.kept = self.destination.carry
        ours, theirs = self._configs
        self.source = SourceMachine.resumed(ours, self._pages, self.source.carry, self.now)
        self.destination = DestinationMachine(theirs, self.now)
        self.to_destination.clear()
        self.to_source.clear()
        self.linked = True
        self.start()

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
                if isinstance(request, OpenStreams):
                    self._open_lanes(request.streams)
        return moved

    def _events_of(self, name: str, machine: Session) -> None:
        while (event := machine.poll_event()) is not None:
            self.events[name].append(event)

    async def _source(self, request: Request) -> object:
        if isinstance(request, OpenStreams):
            return None
        return await serve_source(self.source_guest, NO_RECORDS, request)

    async def _destination(self, request: Request) -> object:
        guest = self.destination_guest
        match request:
            case Admit():
                return ADMISSION
            case Join():
                raise LocalProtocolError(ErrorCode.BAD_TOKEN, "no such session", clause="STR-4")
            case Readmit():
                kept, self.kept = self.kept, None
                if kept is None:
                    raise LocalProtocolError(ErrorCode.BAD_TOKEN, "no such session", clause="RES-3")
                return kept
            case Reserve(guest=record):
                guest_id = self.source_guest.description.id
                return await reserve(guest, GuestDescription.from_record(record, guest_id))
        return await serve_destination(guest, NO_RECORDS, request)


def resuming_pair(
    source_guest: SourceGuest,
    destination_guest: DestinationGuest,
    *,
    streams: int = 0,
    also: Collection[Feature] = (),
    between: Callable[[Pair], None] = lambda _: None,
    **changes: object,
) -> Pair:
    """A pair of which both sides can take a lost session up again; `changes` as for `source_config_of`.

    `streams`: data connections that it has. `also`: further features that both sides are to use.
    """
    policy = changes.get("policy")
    more = {**dict.fromkeys(also, 0), Feature.RESUME: bounds.RESUME_S}
    more |= {Feature.DATA_STREAMS: streams} if streams else {}
    switchover = policy.switchover if isinstance(policy, PolicySettings) else PolicySettings().switchover
    features = offer_for(switchover, more)
    return Pair(
        source_guest,
        destination_guest,
        source_config=source_config_of(source_guest.description, **{"features": features, **changes}),
        destination_config=DestinationConfig(
            features=BASE_FEATURES | FOLLOW_FEATURES | {Feature.RESUME, Feature.DATA_STREAMS, *also},
            limits=Limits(data_streams=streams),
        ),
        between=between,
    )


def source_config_of(description: GuestDescription, **changes: object) -> SourceConfig:
    """The configuration that moves a guest of this description."""
    fields = {
        "guest": description.to_record(),
        "guest_id": description.id,
        "expected_state_bytes": description.expected_state_bytes,
    }
    policy = changes.get("policy")
    if isinstance(policy, PolicySettings):
        fields["features"] = offer_for(policy.switchover)
    return SourceConfig(**fields | changes)  # type: ignore[arg-type]

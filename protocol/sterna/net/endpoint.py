"""The two endpoints that embedders use: `Source` sends a guest away, `Destination` takes one in.

They put together what the layers below keep apart: a machine, a transport, a guest. What a host decides
(who may come, what is recorded, who has claimed what) comes in as a `Host`; `LocalHost` is the simplest
one, for two endpoints and nothing else [ONE-43].
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import trio

from sterna import limits as bounds
from sterna.core.deadlines import Deadlines
from sterna.core.destination import DestinationConfig, DestinationMachine
from sterna.core.duties import NoRecords, Records, pages_of, reserve, serve_destination, serve_source
from sterna.core.events import (
    Admission,
    Admit,
    AnswerVerdict,
    Discard,
    Event,
    Outcome,
    ReleaseImage,
    Request,
    Reserve,
    Result,
)
from sterna.core.negotiate import BASE_FEATURES, offer
from sterna.core.outbox import Outbox
from sterna.core.policy import PolicySettings, estimate_fixed_cost_s
from sterna.core.session import Grease, Session
from sterna.core.source import SourceConfig, SourceMachine
from sterna.core.tables import SourceState
from sterna.errors import ConfigError, LocalProtocolError, SternaError, TransportError
from sterna.guest.api import DestinationGuest, GuestDescription, SourceGuest
from sterna.limits import Limits
from sterna.memory.pages import PageSink
from sterna.net.pump import FLUSH_STALL_S, Clock, OnEvent, Perform, Pump, boottime
from sterna.net.rate import RateLimiter
from sterna.net.steady import SteadyPages
from sterna.net.transport import Peer, Transport
from sterna.registry import ERRORS, GREASE_FIRST, GREASE_LAST, ErrorCode, Feature, Phase
from sterna.wire.records import (
    NO_ID,
    NO_RUNNER,
    NO_TOKEN,
    Abort,
    FeatureOffer,
    Guest,
    Hello,
    PageRange,
    Pages,
    Runner,
    Verdict,
)

AGENT = "sterna"

_BATCH_S = 0.05
_GREASE_FRAMES = 3
_GREASE_WITHIN = 40
_GREASE_BYTES = 64


class Host(Records, Protocol):
    """What an endpoint asks of the host that it runs on. Raising a `SternaError` refuses."""

    async def admit(self, hello: Hello, peer: Peer) -> Admission | Verdict:
        """Whether this peer may bring this guest: fresh ids, and the runner under which it would run here.

        A `Verdict` answers an opening that comes after HANDOVER [ONE-14].

        Raises:
            SternaError: NOT_AUTHORISED, BUSY, STALE_EPOCH or FULL are what the peer will read.
        """
        ...

    async def may_send(self, description: GuestDescription, peer: Peer) -> None:
        """Whether this guest may be sent to this peer.

        Raises:
            SternaError: NOT_AUTHORISED.
        """
        ...


class LocalHost(NoRecords):
    """Everybody may come, nothing outlives the process, every claim is won: two endpoints and nothing else.

    The grant is then the commit as the source sees it [ONE-43].
    """

    def __init__(self, name: str = "localhost") -> None:
        self.name = name

    async def admit(self, hello: Hello, peer: Peer) -> Admission | Verdict:
        """Fresh ids and a fresh runner for anybody."""
        del hello, peer
        runner = Runner(self.name, secrets.token_bytes(len(NO_ID)))
        return Admission(secrets.token_bytes(len(NO_ID)), secrets.token_bytes(len(NO_TOKEN)), runner)

    async def may_send(self, description: GuestDescription, peer: Peer) -> None:
        """Any guest to anybody."""


class OnRequest(Protocol):
    """Told of every request before it is carried out, and again when it has been."""

    def __call__(self, request: Request, *, done: bool) -> None:
        """Must not block; what it raises fails the request."""
        ...


def ignore_request(request: Request, *, done: bool) -> None:
    """The `OnRequest` that does nothing."""


MakeGuest: TypeAlias = Callable[[GuestDescription], DestinationGuest]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What both endpoints can be told; the defaults suit a local network.

    Attributes:
        policy: when to pause; None is the default with a fixed cost that suits the guest's size.
        bandwidth_bytes_s: cap on what is sent; None for none.
        on_event: called with every event of the machine, between two checkpoints; must not block.
        on_request: called around every request; for tests that must know where an endpoint stands.
        clock: seconds that never run backwards; tests in virtual time pass `trio.current_time`.
        grease: whether to send reserved frames at random, which keeps peers honest [FRM-9].
        lease_store: whether the host has a lease store; a source does not go without then [ONE-55].
    """

    limits: Limits = field(default_factory=Limits)
    deadlines: Deadlines = field(default_factory=Deadlines)
    policy: PolicySettings | None = None
    bandwidth_bytes_s: float | None = None
    batch_bytes: int = bounds.BATCH_BYTES
    on_event: OnEvent = lambda _: None
    on_request: OnRequest = ignore_request
    clock: Clock = boottime
    grease: bool = True
    agent: str = AGENT
    lease_store: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for a cap so low that a chunk would look like a stalled connection."""
        cap = self.bandwidth_bytes_s
        if cap is not None and not bounds.CHUNK_BYTES <= cap < math.inf:
            raise ConfigError(f"a bandwidth cap of {cap:g} bytes/s: the least is {bounds.CHUNK_BYTES}")


class _Endpoint:
    """One side of one session.

    Attributes:
        result: how it ended, None until then. It is there, too, if `run` was cancelled from outside.
    """

    def __init__(self, transport: Transport, host: Host | None, options: Options | None) -> None:
        self.result: Result | None = None
        self._transport = transport
        self._host = host or LocalHost()
        self._options = options or Options()
        self._pump: Pump | None = None
        self._cancelled: str | None = None

    def cancel(self, reason: str = "") -> None:
        """Ask for the end: before HANDOVER may have left the guest stays at the source [CON-71] [CON-72].

        Raises:
            LocalProtocolError: TOO_LATE.
        """
        if self._pump is None:
            self._cancelled = reason
        else:
            self._pump.cancel(reason)

    def _begin(self, machine: Session, perform: Perform, on_event: OnEvent) -> Pump:
        """The clocks of a session begin to run when this is called.

        Raises:
            LocalProtocolError: INTERNAL, the second time.
        """
        if self._pump is not None:
            raise LocalProtocolError(ErrorCode.INTERNAL, "an endpoint is for one session: run() comes once")
        options = self._options
        self._pump = Pump(
            machine,
            self._transport,
            self._told_of(perform),
            on_event=on_event,
            limiter=_limiter(options),
            clock=options.clock,
        )
        if self._cancelled is not None:
            self._pump.cancel(self._cancelled)
        return self._pump

    def _told_of(self, perform: Perform) -> Perform:
        on_request = self._options.on_request

        async def told(request: Request) -> object:
            on_request(request, done=False)
            answer = await perform(request)
            on_request(request, done=True)
            return answer

        return told


class Source(_Endpoint):
    """Sends `guest` to whoever is at the other end of `transport`, which it closes in any case.

    ``result = await Source(guest, transport).run()``; the outcome is in the result, not in an exception.

    Raises:
        GuestError, ValueError: the guest's description or its memory makes no sense.
    """

    def __init__(
        self,
        guest: SourceGuest,
        transport: Transport,
        *,
        epoch: int = 0,
        runner: Runner = NO_RUNNER,
        host: Host | None = None,
        options: Options | None = None,
    ) -> None:
        super().__init__(transport, host, options)
        self._guest = guest
        options = self._options
        description = guest.description
        pages = pages_of(guest, description)
        self._config = SourceConfig(
            agent=options.agent,
            limits=options.limits,
            deadlines=options.deadlines,
            grease=_grease() if options.grease else (),
            guest=description.to_record(),
            guest_id=description.id,
            epoch=epoch,
            runner=runner,
            expected_state_bytes=description.expected_state_bytes,
            policy=options.policy or PolicySettings(fixed_cost_s=estimate_fixed_cost_s(pages.table.pages)),
            batch_bytes=_batch_bytes(options),
            features=_offer(options),
        )
        self._pages = SteadyPages(pages, options.clock)

    async def run(self) -> Result:
        """Migrate, once. Returns when it is decided who runs the guest, or that nobody can know."""
        clock = self._options.clock
        machine = SourceMachine(self._config, self._pages, clock())
        pump = self._begin(machine, self._perform, self._on_event)
        try:
            refused = await self._refused()
            if refused is not None:
                self.result = await self._decline(refused)
                return self.result
            if machine.state is SourceState.IDLE:  # not cancelled meanwhile
                machine.start(clock())
            return await pump.drive()
        finally:
            self._transport.abort()
            self._pages.close()
            self.result = self.result or machine.result

    def _on_event(self, event: Event) -> None:
        self._pages.on_event(event)
        self._options.on_event(event)

    async def _refused(self) -> SternaError | None:
        """Why this host does not let the guest go there, None if it does."""
        try:
            await self._host.may_send(self._guest.description, self._transport.peer)
        except SternaError as error:
            return error
        return None

    async def _decline(self, error: SternaError) -> Result:
        """End before the session has begun: a word for the peer, and nothing for the guest."""
        words = Outbox()
        words.send(Abort(error.code, Phase.HANDSHAKE, 0, 0, 0, ERRORS[error.code].text))
        buffers = [buffer for unit in iter(words.take, []) for buffer in unit]
        with trio.move_on_after(FLUSH_STALL_S), suppress(TransportError):
            await self._transport.send(buffers)
            await self._transport.close()
        return Result(
            Outcome.ROLLED_BACK, error.code, error=error, phase=Phase.HANDSHAKE, epoch=self._config.epoch
        )

    async def _perform(self, request: Request) -> object:
        if isinstance(request, ReleaseImage):
            self._pages.close()  # the memory goes next
        return await serve_source(self._guest, self._host, request)


class Destination(_Endpoint):
    """Takes a guest in from the other end of `transport`, and closes that; `make_guest` makes the room.

    ``result = await Destination(make_guest, transport).run()``; afterwards `guest` is the guest, or None.

    Attributes:
        guest: from the time when its description has come; None again when it has been discarded.
        description: of the guest that came, whatever became of it.
    """

    def __init__(
        self,
        make_guest: MakeGuest,
        transport: Transport,
        *,
        host: Host | None = None,
        options: Options | None = None,
    ) -> None:
        super().__init__(transport, host, options)
        self._make_guest = make_guest
        self._hello: Hello | None = None
        self._room: _Room | None = None
        self.guest: DestinationGuest | None = None
        self.description: GuestDescription | None = None

    async def run(self) -> Result:
        """Take part in one session. Returns when it is decided who runs the guest."""
        options = self._options
        config = DestinationConfig(
            agent=options.agent,
            limits=options.limits,
            deadlines=options.deadlines,
            grease=_grease() if options.grease else (),
            features=BASE_FEATURES | ({Feature.LEASE_STORE} if options.lease_store else frozenset()),
        )
        machine = DestinationMachine(config, options.clock())
        pump = self._begin(machine, self._perform, options.on_event)
        try:
            return await pump.drive()
        finally:
            self.result = machine.result
            self._free_room()

    async def _perform(self, request: Request) -> object:
        match request:
            case Admit(hello=hello):
                self._hello = hello
                return await self._host.admit(hello, self._transport.peer)
            case AnswerVerdict(hello=hello):
                return await self._host.verdict(hello)
            case Reserve(guest=record):
                return await self._reserve(record)
            case Discard():
                self._free_room()
                guest, self.guest = self.guest, None
                return None if guest is None else await serve_destination(guest, self._host, request)
        assert self.guest is not None
        return await serve_destination(self.guest, self._host, request)

    async def _reserve(self, record: Guest) -> PageSink:
        assert self._hello is not None
        description = GuestDescription.from_record(record, self._hello.guest)
        self.description = description
        self.guest = self._make_guest(description)
        self._room = _Room(await reserve(self.guest, description))
        return self._room

    def _free_room(self) -> None:
        if self._room is not None:
            self._room.close()


class _Room:
    """A `PageSink` that can let go of the memory, so that its owner can free it."""

    def __init__(self, pages: PageSink) -> None:
        self._pages: PageSink | None = pages

    def targets(self, table: Pages) -> list[memoryview]:
        """See `PageSink.targets`."""
        assert self._pages is not None
        return self._pages.targets(table)

    def commit(self, table: Pages) -> list[PageRange]:
        """See `PageSink.commit`."""
        assert self._pages is not None
        return self._pages.commit(table)

    def close(self) -> None:
        """Nothing can be received any more."""
        self._pages = None


def _offer(options: Options) -> tuple[FeatureOffer, ...]:
    if not options.lease_store:
        return offer()
    return offer(more={Feature.LEASE_STORE: 0}, required={Feature.LEASE_STORE})


def _batch_bytes(options: Options) -> int:
    """A batch that passes a bandwidth cap in `_BATCH_S`, so that heartbeats behind it are not late."""
    if options.bandwidth_bytes_s is None:
        return options.batch_bytes
    return min(options.batch_bytes, max(bounds.CHUNK_BYTES, int(options.bandwidth_bytes_s * _BATCH_S)))


def _limiter(options: Options) -> RateLimiter | None:
    return None if options.bandwidth_bytes_s is None else RateLimiter(options.bandwidth_bytes_s)


def _grease() -> tuple[Grease, ...]:
    """A few reserved frames at random places of the session; the core itself throws no dice."""
    return tuple(
        Grease(
            secrets.randbelow(_GREASE_WITHIN),
            GREASE_FIRST + secrets.randbelow(GREASE_LAST - GREASE_FIRST + 1),
            secrets.token_bytes(secrets.randbelow(_GREASE_BYTES)),
        )
        for _ in range(_GREASE_FRAMES)
    )

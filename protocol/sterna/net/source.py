"""The endpoint that sends a guest away: `Source`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeAlias

import trio

from sterna.core.carry import SourceCarry
from sterna.core.departure import Departure
from sterna.core.duties import pages_of, serve_source
from sterna.core.events import Event, Finished, OpenStreams, ReleaseImage, Request, Result, StartTracking
from sterna.core.policy import PolicySettings, estimate_fixed_cost_s
from sterna.core.source import SourceConfig, SourceMachine
from sterna.core.tables import SourceState
from sterna.errors import LocalProtocolError, PeerAborted, SternaError, TransportError
from sterna.guest.api import SourceGuest
from sterna.net.early_answers import EarlyAnswers
from sterna.net.endpoint import Endpoint
from sterna.net.hosting import Host, TimesStore, declined
from sterna.net.options import Options, batch_bytes, grease, offer, with_streams
from sterna.net.packing import PackingPages, pages_to_send
from sterna.net.pump import Task
from sterna.net.redial import LONGEST_WAIT_S, RESUMPTIONS_MAX, Reconnect, dial_more, redial
from sterna.net.transport import Transport
from sterna.registry import ErrorCode, Feature
from sterna.wire.records import NO_RUNNER, Runner

# A source's session may be taken up again from here.
_WITHOUT_LINK: Final = frozenset({SourceState.SUSPENDED, SourceState.PARTED})

Decide: TypeAlias = Callable[[Result], Awaitable[bool]]
"""Finds out who owns the guest of a session that ended undecided; whether it is the destination, for good."""


class Source(Endpoint):
    """Sends `guest` to whoever is at the other end of `transport`, which it closes in any case.

    ``result = await Source(guest, transport).run()``; the outcome is in the result, not in an exception.

    Args:
        guest: it runs, and may go on doing so.
        transport: to the destination; the source speaks first.
        epoch: under which the guest runs; there it runs under the next one. One that has never moved, and is
            in no lease store, may begin at 0.
        runner: under which it runs, as the store has it; without a store it may be left out.
        host: who may receive what, and where records are; None for a host that lets everything pass and
            remembers nothing.
        options: None for the defaults.
        reconnect: dials the same host: a session whose link is lost is taken up again.
        decide: finds out who owns a guest of which it is not known whether it was started there; then a
            session that ended so is taken up again, too.

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
        reconnect: Reconnect | None = None,
        decide: Decide | None = None,
    ) -> None:
        super().__init__(transport, host, options)
        self._guest = guest
        self._reconnect = reconnect
        self._decide = decide
        self._waiting: trio.CancelScope | None = None
        self._store_s = 0.0  # that the host's lease store takes to answer
        description = guest.description
        pages = pages_of(guest, description)
        policy = self._options.policy or PolicySettings(fixed_cost_s=estimate_fixed_cost_s(pages.table.pages))
        options = self._options = with_streams(self._options, policy.switchover, transport.rtt_s)
        self._config = SourceConfig(
            agent=options.agent,
            limits=options.limits,
            deadlines=options.deadlines,
            grease=grease() if options.grease else (),
            guest=description.to_record(),
            guest_id=description.id,
            epoch=epoch,
            runner=runner,
            expected_state_bytes=description.expected_state_bytes,
            policy=policy,
            batch_bytes=batch_bytes(options, plain=transport.tls is None),
            features=offer(options, policy.switchover, dials=reconnect is not None),
        )
        self._pages = pages_to_send(pages, options)
        self._early = EarlyAnswers(guest, self._config.guest.regions)

    async def run(self) -> Result:
        """Migrate, once. Returns when it is decided who runs the guest, or that nobody can know."""
        clock = self._options.clock
        self._check_first()
        self._machine = machine = SourceMachine(self._config, self._pages, clock())
        pump = self._pump_of(machine, self._perform, self._on_event, *self._packs, *self._answers_early)
        try:
            description = self._guest.description
            refused = await declined(self._host, description, self.transport, self._config.epoch)
            if refused is not None:
                self.result = refused
                return refused
            if machine.state is SourceState.IDLE:  # not cancelled meanwhile
                self._store_s = self._host.store_s if isinstance(self._host, TimesStore) else 0.0
                machine.start(clock(), store_s=self._store_s)
            result = await pump.drive()
            self._early.close()  # it ends with the first connection
            while (carry := await self._carry(result)) is not None:
                result = await self._go_on(carry)
            return result
        finally:
            await self._end()

    async def serve_on(self, departure: Departure) -> Result:
        """Instead of `run`: take up a session of a process that has died, whose guest was handed over.

        It runs at the destination; until that has every page, they are sent. `transport` is the first try.
        """
        clock = self._options.clock
        carry = departure.carry(self._pages, clock())
        self._machine = SourceMachine.resumed(self._config, self._pages, carry, clock())
        try:
            return await self._go_on(carry, dial=False)
        finally:
            await self._end()

    async def _end(self) -> None:
        if self._machine.state in _WITHOUT_LINK:  # cancelled from outside
            with trio.CancelScope(shield=True):  # requests have their own bounds
                lost = TransportError(ErrorCode.CONNECTION_LOST, "the endpoint was cancelled")
                await self._give_up(self._machine.carry, lost)
        self.transport.abort()
        self._early.close()
        self._pages.close()
        self.result = self.result or self._machine.result

    @property
    def _packs(self) -> tuple[Task, ...]:
        """What goes beside a pump where pages are packed."""
        return (self._pack,) if isinstance(self._pages, PackingPages) else ()

    @property
    def _answers_early(self) -> tuple[Task, ...]:
        """What goes beside the pump of the first connection where more can be dialled."""
        if self._reconnect is None:
            return ()
        return (partial(self._early.run, self._machine, self._reconnect, self.transport.peer),)

    async def _pack(self) -> None:
        assert isinstance(self._pages, PackingPages)
        assert self._pump is not None
        await self._pages.run(self._machine, self._pump)

    async def _carry(self, result: Result) -> SourceCarry | None:
        """What to go on with; None if the session is over for this side."""
        machine = self._machine
        if machine.state in _WITHOUT_LINK:
            return machine.carry
        if not machine.may_serve or self._decide is None:
            return None
        if await self._decide(result):
            return machine.moved()
        self._tell(Finished(result))
        return None

    async def _go_on(self, carry: SourceCarry, *, dial: bool = True) -> Result:
        """Take the session up again as often as its link is lost; the first time without `dial`ling."""
        clock = self._options.clock
        resumed, until, after_s = -1, 0.0, 0.0
        while True:
            if carry.account.resumed > resumed:  # it was there in between
                resumed = carry.account.resumed
                until = clock() + carry.ticket.selection.features[Feature.RESUME]
            try:
                if dial:
                    self.transport = await self._connect_again(carry.account.losses, until - clock(), after_s)
            except SternaError as error:
                return await self._give_up(carry, error)
            dial = True
            self._machine = machine = SourceMachine.resumed(self._config, self._pages, carry, clock())
            machine.start(clock(), store_s=self._store_s)
            result = await self._pump_of(machine, self._perform, self._on_event, *self._packs).drive()
            if machine.state not in _WITHOUT_LINK:
                return result
            carry = machine.carry
            after_s = 0.0
            if isinstance(result.error, PeerAborted):  # refused for now, with a hint or without [REF-2]
                after_s = max(result.error.retry_after_ms / 1000, LONGEST_WAIT_S)

    async def _connect_again(self, losses: int, within_s: float, after_s: float) -> Transport:
        assert self._reconnect is not None
        if losses > RESUMPTIONS_MAX:
            raise TransportError(ErrorCode.CONNECTION_LOST, f"lost {losses} times")
        with trio.CancelScope() as self._waiting:
            if self._cancelled is None:
                return await redial(self._reconnect, self.transport.peer, within_s, after_s=after_s)
        raise LocalProtocolError(ErrorCode.CANCELLED, self._cancelled or "", clause="CON-71")

    async def _give_up(self, carry: SourceCarry, error: SternaError) -> Result:
        """Nobody takes the session up again: the guest runs on where it runs, for good."""
        self._machine = SourceMachine.resumed(self._config, self._pages, carry, self._options.clock())
        self._machine.give_up(error, self._options.clock())
        return await self._pump_of(self._machine, self._perform, self._on_event).drive()

    def cancel(self, reason: str = "") -> None:
        """See `Endpoint.cancel`; while there is no connection the guest runs here already."""
        super().cancel(reason)
        if self._waiting is not None:
            self._waiting.cancel()

    def _on_event(self, event: Event) -> None:
        waits = isinstance(event, Finished) and self._decide is not None and self._machine.may_serve
        if not waits:  # else it may not be the end
            self._tell(event)

    def _tell(self, event: Event) -> None:
        self._early.on_event(event)
        self._pages.on_event(event)
        self._options.on_event(event)

    async def _perform(self, request: Request) -> object:
        if isinstance(request, ReleaseImage):
            self._early.close()
            self._pages.close()  # the memory goes next
        if isinstance(request, OpenStreams):
            assert self._reconnect is not None
            return await dial_more(self._reconnect, self.transport.peer, request.count)
        answer = await serve_source(self._guest, self._host, request)
        if isinstance(request, StartTracking):
            self._pages.reads_next(answer)
        return answer

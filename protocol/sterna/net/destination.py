"""The endpoint that takes a guest in: `Destination`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeAlias

import trio

from sterna.core.carry import DestinationCarry, Ticket
from sterna.core.destination import DestinationConfig, DestinationMachine
from sterna.core.duties import pages_of, reserve, serve_destination
from sterna.core.events import (
    Admit,
    AnswerVerdict,
    Discard,
    Event,
    Expect,
    Finished,
    Join,
    Outcome,
    Persist,
    Prepare,
    Readmit,
    Request,
    Reserve,
    Result,
)
from sterna.core.image_notes import ImageNotes
from sterna.core.records import Released
from sterna.core.reopening import Opening, pages_left
from sterna.errors import GuestError, LocalProtocolError, SternaError, TransportError
from sterna.guest.api import DestinationGuest, GuestDescription, OutlivingGuest, PagesEarly, PromptGuest
from sterna.memory.pages import PageSink
from sterna.net.early_requests import EarlyRequests
from sterna.net.endpoint import Endpoint
from sterna.net.hosting import Host, check_takes
from sterna.net.kept import KeptSession, Sessions
from sterna.net.options import Options, grease, most_streams, supported
from sterna.net.pump import UNDO_S
from sterna.net.room import Prompt, Room, tell_faults
from sterna.net.transport import Transport
from sterna.registry import ErrorCode, Feature, Phase
from sterna.wire.records import Attach, Guest, Hello, Verdict

MakeGuest: TypeAlias = Callable[[GuestDescription], DestinationGuest]


class Destination(Endpoint):
    """Takes a guest in from the other end of `transport`, and closes that; `make_guest` makes the room.

    ``result = await Destination(make_guest, transport).run()``; afterwards `guest` is the guest, or None.

    Args:
        make_guest: called once, with the description of the guest that comes; room for it, or a `GuestError`.
        transport: from the source; the source speaks first.
        host: who may send what, where records are, and who claims; None for a host that lets everybody in and
            remembers nothing.
        options: None for the defaults.
        sessions: shared by the endpoints of a process: a session whose link is lost is kept for a while and
            taken up again by whatever connection asks for it. Without, there are no data connections either.

    Attributes:
        guest: from the time when its description has come; None again when it has been discarded.
        description: of the guest that came, whatever became of it.
        took_up: whether this connection went on with a session that another endpoint had opened, or joined
            it as a data connection. That endpoint reports it.
    """

    def __init__(
        self,
        make_guest: MakeGuest,
        transport: Transport,
        *,
        host: Host | None = None,
        options: Options | None = None,
        sessions: Sessions | None = None,
    ) -> None:
        super().__init__(transport, host, options)
        self._make_guest = make_guest
        self._sessions = sessions
        self._kept: KeptSession | None = None
        self._joined: KeptSession | None = None  # of which this is a data connection
        self.took_up = False
        self._hello: Hello | None = None
        self._room: Room | None = None
        self._expects = False
        self._early = EarlyRequests()
        self.guest: DestinationGuest | None = None
        self.description: GuestDescription | None = None

    async def run(self) -> Result:
        """Take part in one session. Returns when it is decided who runs the guest."""
        options = self._options
        config = DestinationConfig(
            agent=options.agent,
            limits=replace(options.limits, data_streams=most_streams(options)),
            deadlines=options.deadlines,
            grease=grease() if options.grease else (),
            features=supported(options, finds=self._sessions is not None),
        )
        self._machine = machine = DestinationMachine(config, options.clock())
        self._check_first()
        pump = self._pump_of(machine, self._perform, self._on_event)
        try:
            result = await pump.drive()
            if result.outcome is Outcome.JOINED:
                await self._lend(machine)
            elif self._kept is not None and not self.took_up:
                self._kept.detach(machine)
                result = await self._until_over(self._kept)
            self.result = result
            return result
        finally:
            self.result = self.result or machine.result
            await self._leave()

    async def _lend(self, machine: DestinationMachine) -> None:
        """This connection is one of a session that another endpoint has, for as long as that needs it."""
        assert self._joined is not None
        attach, door = machine.door
        self.took_up = True
        with suppress(SternaError):  # it has ended meanwhile
            if self._joined.is_demand(attach):
                await (await self._joined.join_demand(attach, door, self.transport)).wait()
            else:
                await self._joined.join(attach, door, self.transport).wait()

    async def _until_over(self, kept: KeptSession) -> Result:
        """Other connections may go on with the session; or nobody does, and the room is freed [RES-14]."""
        end = await kept.wait()
        if isinstance(end, DestinationCarry):
            detail = f"nobody has taken the session up again within {kept.seconds} s"
            return await self._expire(end, TransportError(ErrorCode.CONNECTION_LOST, detail))
        assert end.result is not None
        return end.result

    async def _expire(self, carry: DestinationCarry, error: SternaError) -> Result:
        if carry.fetching is not None:  # the guest runs, and what it waits for does not come
            result = carry.strand(error, self._options.clock())
            self._options.on_event(Finished(result))
            return result
        if self._cancelled is not None:
            error = LocalProtocolError(ErrorCode.CANCELLED, self._cancelled, clause="CON-71")
        with trio.move_on_after(UNDO_S) as scope:
            scope.shield = True
            with suppress(SternaError):
                if carry.account.forgettable:
                    await self._perform(Persist(Released(carry.ticket.session)))
            with suppress(SternaError):  # what could not be freed does not run either
                await self._perform(Discard())
        carry.account.failed(error, Phase.RESUME)
        epoch, now = carry.ticket.hello.epoch, self._options.clock()
        result = carry.account.close(Outcome.ROLLED_BACK, now, epoch=epoch, digest=b"", bytes_sent=0)
        self._options.on_event(Finished(result))
        return result

    async def _leave(self) -> None:
        """Whatever has ended this endpoint, from inside or outside."""
        kept = self._kept
        if kept is not None and self.took_up:
            kept.detach(self._machine)
        elif kept is not None and self._sessions is not None:
            self._sessions.remove(kept)
            if self.result is None or self.result.outcome is Outcome.SUSPENDED:  # cancelled from outside
                kept.detach(self._machine)
                with trio.CancelScope(shield=True):
                    carry = await kept.reclaim()
                    if carry is not None:
                        lost = TransportError(ErrorCode.CONNECTION_LOST, "the endpoint was cancelled")
                        self.result = await self._expire(carry, lost)
        self._free_room()
        if kept is not None and not self.took_up:
            kept.close_demand()

    def _on_event(self, event: Event) -> None:
        owner = self._owner
        if owner is None:
            self._early.on_event(event)
        (self._options.on_event if owner is None else owner.on_event)(event)

    @property
    def _owner(self) -> KeptSession | None:
        """The session that this connection goes on with, if another endpoint has opened it."""
        return self._kept if self.took_up else None

    def cancel(self, reason: str = "") -> None:
        """See `Endpoint.cancel`; the session's end is asked for, whatever connection has it.

        Raises:
            LocalProtocolError: TOO_LATE.
        """
        if self._kept is None:
            super().cancel(reason)
        else:
            self._kept.cancel(reason)
            self._cancelled = reason

    async def _perform(self, request: Request) -> object:
        owner = self._owner
        answer = await (self._perform_here(request) if owner is None else owner.perform(request))
        if isinstance(request, Expect):
            self._may_wait()
        return answer

    async def _perform_here(self, request: Request) -> object:
        match request:
            case Readmit(hello=hello):
                return await self._readmit(hello)
            case Join(attach=attach):
                self._find(attach)
                return None
            case Admit(hello=hello):
                self._hello = hello
                return await self._host.admit(hello, self.transport.peer)
            case AnswerVerdict(hello=hello):
                return await self._host.verdict(hello)
            case Reserve(guest=record):
                return await self._reserve(record)
            case Discard():
                self._free_room()
                guest, self.guest = self.guest, None
                return None if guest is None else await serve_destination(guest, self._host, request)
        assert self.guest is not None
        answer = await serve_destination(self.guest, self._host, request)
        if isinstance(request, Prepare | Expect):
            self._spare_early_pages(self.guest)
        return answer

    def _spare_early_pages(self, guest: DestinationGuest) -> None:
        """Pages that the guest may have been given before their group: they are its own by then [PCY-32]."""
        if self._room is not None and isinstance(guest, PagesEarly):
            early = guest.early_pages()
            if early is not None:
                self._room.spare(early.claims)

    def _find(self, attach: Attach) -> None:
        if self._sessions is None:
            raise LocalProtocolError(ErrorCode.BAD_TOKEN, "no session takes data connections", clause="STR-4")
        joined = self._sessions.find_for(attach, self.transport.peer)
        joined.check_join(attach, self._machine.called)
        self._joined = joined

    def _may_wait(self) -> None:
        """From here on the guest may wait for pages."""
        assert self._pump is not None
        if not self._expects:
            self._expects = True
            self._pump.start(self._tell_faults)

    async def _tell_faults(self) -> None:
        """What the guest waits for."""
        guest = self.guest if self._owner is None else self._owner.guest
        assert guest is not None
        assert self._pump is not None
        if isinstance(guest, PromptGuest):
            self._pump.attend(Prompt(guest, self._machine, self._options.clock))
        async with trio.open_nursery() as nursery:
            if self._kept is not None and not self.took_up and self.description is not None:
                regions, ask = self.description.regions, self._pump.ask
                nursery.start_soon(self._early.run, self._kept, guest, regions, self._machine, ask)
            await tell_faults(guest, self._machine, self._pump.ask, self._options.clock)

    async def _reserve(self, record: Guest) -> PageSink:
        assert self._hello is not None
        description = GuestDescription.from_record(record, self._hello.guest)
        self.description = description
        self.guest = self._make_guest(description)
        ticket, runner = self._machine.ticket, self._machine.runner
        self._room = Room(await reserve(self.guest, description), ticket)
        if self._sessions is not None and ticket is not None:
            if ticket.selection.has(Feature.RESUME):
                await self._host.opened(Opening(ticket.hello, ticket.welcome, record, runner))
            self._keep(ticket)
        return self._room

    def _keep(self, ticket: Ticket) -> None:
        """From here on the session can be taken up again, and data connections find it."""
        assert self._sessions is not None
        assert self._pump is not None
        self._kept = KeptSession(
            self.transport.peer,
            ticket,
            self._machine,
            self._pump,
            perform=self._perform_here,
            on_event=self._options.on_event,
        )
        self._kept.guest = self.guest
        self._sessions.add(self._kept)

    async def _readmit(self, hello: Hello) -> DestinationCarry | Verdict:
        assert self._sessions is not None
        assert self._pump is not None
        async with self._sessions.turn(hello.session):
            kept = self._sessions.find(hello, self.transport.peer)
            if kept is None:
                return await self._reopen(hello)
        carry = await kept.hand_over(hello)
        if carry is None:
            return await self._host.verdict(hello)
        kept.attach(self._machine, self._pump)
        self._kept, self.took_up = kept, True
        if carry.fetching is not None:  # its guest runs, and may wait already
            self._may_wait()
        return carry

    async def _reopen(self, hello: Hello) -> DestinationCarry | Verdict:
        """A session of a process that has died: this connection has it now, as if it had opened it."""
        found = await self._host.reopen(hello, self.transport.peer)
        if isinstance(found, Verdict):
            return found
        opening, clock = found.opening, self._options.clock
        self._hello = opening.hello
        description = GuestDescription.from_record(opening.guest, hello.guest)
        guest = self._make_guest(description)
        if not found.runs:
            check_takes(opening, self._options)
            self._room = Room(await reserve(guest, description), opening.ticket)
            await self._host.opened(opening)
            carry = opening.without_round(self._room, clock())
        elif isinstance(guest, OutlivingGuest):
            await guest.take_over()
            notes = await guest.notes() if guest.can_post_copy else memoryview(b"")
            missing = await guest.missing()
            lacks = any(pages.any() for pages in missing.values())
            if not notes or not (lacks or ImageNotes.lie_in(notes)):  # it has all of its pages [RES-15]
                return await self._host.verdict(hello)
            self._room = Room(pages_of(guest, description, pages_left), opening.ticket)
            self._spare_early_pages(guest)
            carry = opening.with_guest(self._room, notes, missing, clock())
        else:
            raise GuestError("this guest has not outlived the process that took it in", ErrorCode.GUEST_LOST)
        self.guest, self.description = guest, description
        self._keep(opening.ticket)
        if found.runs:
            self._may_wait()
        return carry

    def _free_room(self) -> None:
        if self._room is not None:
            self._room.close()

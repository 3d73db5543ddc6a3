"""The sessions of a destination process that other connections ask for, and who has each of them now.

A session belongs to the endpoint that opened it, whatever connection carries it: there its guest, its host
and whoever watches it are. While a connection lives, its machine has the session. When it is lost, the
machine's carry lies here until a new connection asks for it, or the owner takes it back and frees the room.
One has it at any time; whoever asks while an older connection still has it ends that one first [RES-4].
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from sterna.core.carry import DestinationCarry, Ticket
from sterna.core.destination import DestinationMachine
from sterna.core.lanes import Lane
from sterna.core.tables import DestinationState
from sterna.errors import LocalProtocolError, TransportError
from sterna.guest.api import DestinationGuest
from sterna.net.demand import DemandConnection
from sterna.net.pump import OnEvent, Perform, Pump
from sterna.net.transport import Peer, Transport
from sterna.registry import ErrorCode, Feature
from sterna.wire.records import Attach, Hello

# The machine is about to give its carry.
_LETS_GO: Final = frozenset(
    {
        DestinationState.SUSPENDING,
        DestinationState.PARTING,
        DestinationState.SUSPENDED,
        DestinationState.PARTED,
    }
)


class KeptSession:
    """One session, from the moment when there is room for its guest, or it was found again.

    Attributes:
        peer: who opened it.
        perform: carries out requests, whatever connection they come from.
        on_event: sees every event, likewise.
        guest: of which the session is.
        demand: the demand connection that came last, if one has come.
        demanded: set when the first one has.
    """

    def __init__(
        self,
        peer: Peer,
        ticket: Ticket,
        machine: DestinationMachine,
        pump: Pump,
        *,
        perform: Perform,
        on_event: OnEvent,
    ) -> None:
        self.peer: Final = peer
        self.perform: Final = perform
        self.on_event: Final = on_event
        self.guest: DestinationGuest | None = None
        self._first: Final = ticket
        self._machine = machine
        self._pump = pump
        self._carry: DestinationCarry | None = None
        self._over: DestinationMachine | None = None
        self._cancelled = False
        self._changed = trio.Event()
        self._handing_over: Final = trio.Lock()
        self.demand: DemandConnection | None = None
        self.demanded: Final = trio.Event()

    @property
    def session(self) -> bytes:
        """Its id."""
        return self._first.session

    @property
    def ticket(self) -> Ticket:
        """What it can be taken up again with now."""
        if self._carry is not None:
            return self._carry.ticket
        return self._machine.ticket or self._first

    @property
    def is_resumable(self) -> bool:
        """Whether another control connection may have it."""
        return self._first.selection.has(Feature.RESUME)

    @property
    def seconds(self) -> int:
        """How long it is kept [RES-14]."""
        return self._first.selection.features.get(Feature.RESUME, 0)

    # ---- the connections ----

    def attach(self, machine: DestinationMachine, pump: Pump) -> None:
        """A connection has been given the carry."""
        self._machine, self._pump = machine, pump

    def detach(self, machine: DestinationMachine) -> None:
        """The connection that had the session has ended."""
        if machine is not self._machine or self._carry is not None:
            return
        if machine.state in {DestinationState.SUSPENDED, DestinationState.PARTED}:
            self._carry = machine.carry
        else:
            self._over = machine
        self.close_demand()  # it does not outlive the first control connection [PCY-30]
        self._change()

    async def hand_over(self, hello: Hello) -> DestinationCarry | None:
        """What a new connection goes on with; None if the session is past that [RES-15].

        Where the permission to run the guest has come, that shows when it was used, or cannot be.

        Raises:
            RemoteProtocolError: BAD_TOKEN, NOT_SELECTED, LIMIT_MISMATCH; nothing has changed [RES-4].
        """
        async with self._handing_over:
            self.ticket.check_hello(hello)
            if self._carry is None and self._over is None and self._machine.state not in _LETS_GO:
                self._pump.lose(TransportError(ErrorCode.CONNECTION_LOST, "a newer connection has come"))
            while self._carry is None and self._over is None:
                await self._changed.wait()
            return self._take()

    # ---- its data connections ----

    def check_join(self, attach: Attach, door: Lane) -> None:
        """Whether a data connection may join it. Raises what `DestinationMachine.check_join` does."""
        self._machine.check_join(attach, door)

    def is_demand(self, attach: Attach) -> bool:
        """Whether it asks for a demand connection; whether that may be had, `check_join` says."""
        return self._machine.is_demand(attach)

    def join(self, attach: Attach, door: Lane, transport: Transport) -> trio.Event:
        """It is this session's now; what is returned is set when it is not needed any more.

        Raises:
            SternaError: as for `check_join`.
        """
        stream = self._machine.join(attach, door, self._pump.clock())
        return self._pump.attach(stream, transport)

    async def join_demand(self, attach: Attach, door: Lane, transport: Transport) -> trio.Event:
        """It is this session's demand connection; what is returned is set when it is not needed any more.

        Raises:
            SternaError: as for `check_join`; or it is lost already.
        """
        stream = self._machine.join_demand(attach, door, self._pump.clock())
        while buffers := door.outbox.take():
            await transport.send(buffers, door.outbox.left)
        self.close_demand()
        self.demand = DemandConnection(transport, stream)
        self.demanded.set()
        return self.demand.ended

    def close_demand(self) -> None:
        """No page comes early any more. Legal at any time."""
        if self.demand is not None:
            self.demand.close()

    # ---- the owner ----

    async def wait(self) -> DestinationMachine | DestinationCarry:
        """Wait for its end: the machine that ended it, or the carry, if nobody has asked for that in time."""
        while self._over is None:
            changed = self._changed
            if self._carry is None:
                await changed.wait()
                continue
            with trio.move_on_after(0 if self._cancelled else self.seconds):
                await changed.wait()
            if self._changed is changed and (carry := self._take()) is not None:
                return carry
        return self._over

    async def reclaim(self) -> DestinationCarry | None:
        """End whatever connection has it; the carry, None if the session has ended."""
        if self._carry is None and self._over is None:
            self._pump.lose(TransportError(ErrorCode.CONNECTION_LOST, "the endpoint was cancelled"))
        while self._carry is None and self._over is None:
            await self._changed.wait()
        return self._take()

    def cancel(self, reason: str) -> None:
        """Ask the connection that has it for its end; without one, and after the next loss, it is not kept.

        Raises:
            LocalProtocolError: TOO_LATE.
        """
        if self._carry is None:
            self._pump.cancel(reason)
        elif self._carry.fetching is not None:
            raise LocalProtocolError(ErrorCode.TOO_LATE, clause="CON-72")
        self._cancelled = True
        self._change()

    def _take(self) -> DestinationCarry | None:
        carry, self._carry = self._carry, None
        if carry is not None:
            self._change()
        return carry

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class Sessions:
    """The kept sessions of one process, by id."""

    def __init__(self) -> None:
        self._kept: dict[bytes, KeptSession] = {}
        self._turns: dict[bytes, trio.Lock] = {}

    def add(self, kept: KeptSession) -> None:
        """It can be asked for from now on."""
        self._kept[kept.session] = kept

    def remove(self, kept: KeptSession) -> None:
        """And no longer."""
        self._kept.pop(kept.session, None)

    def find(self, hello: Hello, peer: Peer) -> KeptSession | None:
        """The session that a HELLO asks for, None if there is none; whether it may have it, its ticket tells.

        Raises:
            LocalProtocolError: BAD_TOKEN if it is another peer's.
        """
        kept = self._kept.get(hello.session)
        if kept is not None and not kept.is_resumable:
            raise no_session()
        if kept is not None and kept.peer.identity != peer.identity:
            raise no_session()
        return kept

    def find_for(self, attach: Attach, peer: Peer) -> KeptSession:
        """The session that a data connection is for; whether it may join, that one's machine tells [STR-4].

        Raises:
            LocalProtocolError: BAD_TOKEN if there is none, or it is another peer's: these read the same.
        """
        kept = self._kept.get(attach.session)
        if kept is None or kept.peer.identity != peer.identity:
            raise no_session("STR-4")
        return kept

    @asynccontextmanager
    async def turn(self, session: bytes) -> AsyncIterator[None]:
        """One connection at a time looks for a session, and finds it again where another process had it."""
        lock = self._turns.setdefault(session, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            # Who waited for it has it by now, and those who come later must find it.
            if not lock.locked():
                self._turns.pop(session, None)


def no_session(clause: str = "RES-3") -> LocalProtocolError:
    """The answer to whoever asks for a session that there is not, or that is another peer's: alike."""
    return LocalProtocolError(ErrorCode.BAD_TOKEN, "no such session of this peer", clause=clause)

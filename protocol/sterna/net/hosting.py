"""What an endpoint asks of the host that it runs on, and the simplest host there is."""

from __future__ import annotations

import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import trio

from sterna.core.duties import NoRecords, Records
from sterna.core.events import Admission, Outcome, Result
from sterna.core.outbox import Outbox
from sterna.core.reopening import Opening
from sterna.errors import LocalProtocolError, SternaError, TransportError
from sterna.guest.api import GuestDescription
from sterna.net.kept import no_session
from sterna.net.options import Options, supported
from sterna.net.pump import FLUSH_STALL_S
from sterna.net.transport import Peer, Transport
from sterna.registry import ERRORS, ErrorCode, Feature, Phase
from sterna.wire.records import NO_ID, NO_TOKEN, Abort, Hello, Runner, Verdict


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

    async def opened(self, opening: Opening) -> None:
        """There is room for a guest, and its session can be taken up again: note it for the next process.

        From here on the session ends with this endpoint, and then what was noted counts no longer. Before, as
        long as an endpoint that was given a `Reopened` makes room, the next one finds it still.

        A host that cannot, or does not want to, raises nothing: then only this process can go on with it.
        """
        ...

    async def reopen(self, hello: Hello, peer: Peer) -> Reopened | Verdict:
        """A session that no endpoint of this process has: what an earlier process has noted of it.

        What is noted is compared with the HELLO (`Ticket.check_hello`) before anything is touched.
        A `Verdict` answers for one that was handed over and whose guest lacks no pages [RES-15].

        Raises:
            SternaError: BAD_TOKEN, nothing is known of it, or it is another peer's [RES-3].
        """
        ...


@runtime_checkable
class TimesStore(Protocol):
    """A `Host` with a lease store: how long that takes to answer is part of the downtime that is foreseen.

    Attributes:
        store_s: seconds that it took when `may_send` was asked; 0 if that is not known, or there is none.
    """

    store_s: float


@dataclass(frozen=True, slots=True)
class Reopened:
    """A session of an earlier process. `runs`: its guest runs here, and may lack pages."""

    opening: Opening
    runs: bool


def check_takes(opening: Opening, options: Options) -> None:
    """Whether a process takes a guest that has not come: it may have other options than the one before it.

    Raises:
        LocalProtocolError: MISSING_FEATURE, LIMIT_MEMORY.
    """
    lacking = opening.ticket.selection.features.keys() - supported(options, finds=True)
    if lacking:
        detail = ", ".join(sorted(Feature(each).name.lower() for each in lacking))
        raise LocalProtocolError(ErrorCode.MISSING_FEATURE, f"selected before: {detail}", clause="RES-16")
    memory_bytes = sum(region.size_bytes for region in opening.guest.regions)
    if memory_bytes > options.limits.memory_bytes:
        detail = f"{memory_bytes} bytes of memory, and {options.limits.memory_bytes} are taken here"
        raise LocalProtocolError(ErrorCode.LIMIT_MEMORY, detail, clause="RES-16")


async def declined(
    host: Host, description: GuestDescription, transport: Transport, epoch: int
) -> Result | None:
    """None if a guest may leave for whoever is at the other end; else how it has ended before it began.

    The peer is told, and the guest is not touched.
    """
    try:
        await host.may_send(description, transport.peer)
    except SternaError as error:
        words = Outbox()
        words.send(Abort(error.code, Phase.HANDSHAKE, 0, 0, 0, ERRORS[error.code].text))
        buffers = [buffer for unit in iter(words.take, []) for buffer in unit]
        with trio.move_on_after(FLUSH_STALL_S), suppress(TransportError):
            await transport.send(buffers)
            await transport.close()
        return Result(Outcome.ROLLED_BACK, error.code, error=error, phase=Phase.HANDSHAKE, epoch=epoch)
    return None


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

    async def opened(self, opening: Opening) -> None:
        """Nothing is kept."""

    async def reopen(self, hello: Hello, peer: Peer) -> Reopened | Verdict:
        """Nothing was kept."""
        del hello, peer
        raise no_session()

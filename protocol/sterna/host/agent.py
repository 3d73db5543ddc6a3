"""A host as its command-line endpoints have it: who may come is in the peer list, records live in memory.

One `PeerListHost` serves all sessions of a process; each session has a `HostSession`, which is the `Host`
that its endpoint asks. What the sessions share is which guests are on their way here: a (guest, epoch) has
one open session, bound to the identity that opened it. A new opening by the same identity takes the place
of one that has received no HANDOVER (its source has given it up, or the peer was restarted); every other
one is busy [ONE-12] [ONE-13] [ONE-14].

There is no lease store yet: claims are won, and the grant is the commit as the source sees it [ONE-43].
Records last as long as the process, which is why a destination that dies between HANDOVER and RUNNING
leaves the guest undecided: it stays paused at the source until somebody has looked.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import trio

from sterna.core.duties import NoRecords
from sterna.core.records import Claiming, Record
from sterna.errors import LocalProtocolError, TransportError
from sterna.guest.api import GuestDescription
from sterna.host.peers import Direction, PeerList
from sterna.net.transport import Peer
from sterna.registry import ERRORS, VERSION_DRAFT, VERSION_MAJOR, ErrorCode, Phase
from sterna.wire import encode_frame, encode_preface
from sterna.wire.records import Abort, Hello, Refuse, Runner

# How long a new opening waits for the session that it replaces to give back what it had reserved.
REPLACE_WITHIN_S: Final = 5.0

Cancel = Callable[[str], None]


class PeerListHost:
    """What the sessions of one endpoint process share.

    Args:
        name: the host's name, as it appears in runners.
        peers: who may come; None for everybody, which is what --insecure says.
    """

    def __init__(self, name: str, peers: PeerList | None) -> None:
        self.name = name
        self.peers = peers
        self._open: dict[tuple[bytes, int], HostSession] = {}
        self._moved: dict[bytes, int] = {}  # guest: the newest epoch for which HANDOVER has come

    def session(self) -> HostSession:
        """A session's view of this host; use it as a context manager around the endpoint's `run`."""
        return HostSession(self)

    async def enter(self, session: HostSession, guest: bytes, epoch: int, peer: Peer) -> None:
        """Note that `session` brings the guest.

        Raises:
            LocalProtocolError: BUSY or STALE_EPOCH.
        """
        self._check_epoch(guest, epoch)
        earlier = self._open.get((guest, epoch))
        if earlier is not None:
            if earlier.identity != peer.identity or not earlier.replace():
                raise LocalProtocolError(
                    ErrorCode.BUSY, f"{earlier.peer} is sending this guest here", clause="ONE-12"
                )
            with trio.move_on_after(REPLACE_WITHIN_S):
                await earlier.ended.wait()
            self._check_epoch(guest, epoch)
            if (guest, epoch) in self._open:
                raise LocalProtocolError(
                    ErrorCode.BUSY, "an earlier session of this guest does not end", clause="ONE-12"
                )
        self._open[guest, epoch] = session

    def leave(self, session: HostSession) -> None:
        """The session is over."""
        for key in [key for key, one in self._open.items() if one is session]:
            del self._open[key]

    def handed_over(self, guest: bytes, epoch: int) -> None:
        """HANDOVER has come: from here on another opening of this epoch is refused [ONE-14]."""
        self._moved[guest] = max(epoch, self._moved.get(guest, epoch))

    def _check_epoch(self, guest: bytes, epoch: int) -> None:
        moved = self._moved.get(guest)
        if moved is not None and epoch <= moved:
            code = ErrorCode.BUSY if epoch == moved else ErrorCode.STALE_EPOCH
            clause = "ONE-14" if epoch == moved else "ONE-11"
            detail = f"the guest was handed over to this host at epoch {moved}"
            raise LocalProtocolError(code, detail, clause=clause)


class HostSession(NoRecords):
    """The `Host` of one endpoint (sterna.net.endpoint).

    Attributes:
        identity: of the peer that opened the session, None before that or on a plain connection.
        peer: the same peer, for messages.
        cancel: ends the endpoint, for a newer opening; raises TOO_LATE.
        ended: set when the context manager is left.
    """

    def __init__(self, host: PeerListHost) -> None:
        self.identity: str | None = None
        self.peer = Peer("nobody")
        self.cancel: Cancel = lambda _: None
        self.ended = trio.Event()
        self._host = host
        self._guest = b""
        self._handed_over = False
        self.records: list[Record] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._host.leave(self)
        self.ended.set()

    @property
    def admitted(self) -> bool:
        """Whether a peer has opened this session."""
        return bool(self._guest)

    def replace(self) -> bool:
        """Give way to a newer opening; False if permission to run the guest may have come."""
        if self._handed_over:
            return False
        try:
            self.cancel("a newer session has taken the place of this one")
        except LocalProtocolError:
            return False
        return True

    async def admit(self, hello: Hello, peer: Peer) -> Runner:
        """A fresh runner for a peer that may bring a guest; which one is checked with its description.

        Raises:
            LocalProtocolError: BUSY or STALE_EPOCH.
            TransportError: NOT_AUTHORISED.
        """
        self._check_may_bring(hello.guest, peer)
        await self._host.enter(self, hello.guest, hello.epoch, peer)
        self.identity, self.peer, self._guest = peer.identity, peer, hello.guest
        return Runner(self._host.name, secrets.token_bytes(16))

    def authorise(self, description: GuestDescription) -> None:
        """Whether the peer may send this guest, of which the name is known now; call it before reserving.

        Raises:
            TransportError: NOT_AUTHORISED.
        """
        self._authorise(description, self.peer, Direction.SEND)

    async def may_send(self, description: GuestDescription, peer: Peer) -> None:
        """Whether the guest may leave for this peer.

        Raises:
            TransportError: NOT_AUTHORISED.
        """
        self._authorise(description, peer, Direction.RECEIVE)

    async def persist(self, record: Record) -> None:
        """Remember it."""
        self.records.append(record)
        if isinstance(record, Claiming):
            self._handed_over = True
            self._host.handed_over(self._guest, record.epoch - 1)

    def _authorise(self, description: GuestDescription, peer: Peer, direction: Direction) -> None:
        peers = self._host.peers
        if peers is None:
            return
        if peer.identity is None or peer.fingerprint is None:
            raise TransportError(ErrorCode.NOT_AUTHORISED, "the peer has shown no certificate")
        peers.authorise(peer.identity, peer.fingerprint, description.id, description.name, direction)

    def _check_may_bring(self, guest: bytes, peer: Peer) -> None:
        """Turn away early who cannot possibly be allowed: a session would lock the guest's own peer out."""
        peers = self._host.peers
        if peers is None:
            return
        rule = peers.rules.get(peer.identity or "")
        rules = () if rule is None else rule.may_send
        if not any(not one.startswith("id:") or one == f"id:{guest.hex()}" for one in rules):
            raise TransportError(
                ErrorCode.NOT_AUTHORISED, f"{peer} may not send guest id:{guest.hex()} to this host"
            )


def refusal(error: TransportError) -> bytes:
    """What a destination says to a peer that it does not let in: a `Farewell` of `sterna.net.listen`."""
    return encode_preface(VERSION_MAJOR, VERSION_DRAFT) + _frame(Refuse(error.code, 0, (), _sentence(error)))


def rejection(error: TransportError) -> bytes:
    """What a source says to a peer that is not whom it expected: a `Farewell` of `sterna.net.connect`."""
    abort = Abort(error.code, Phase.HANDSHAKE, 0, 0, 0, _sentence(error))
    return encode_preface(VERSION_MAJOR, VERSION_DRAFT) + _frame(abort)


def _frame(record: Refuse | Abort) -> bytes:
    return b"".join(bytes(buffer) for buffer in encode_frame(record, 0))


def _sentence(error: TransportError) -> str:
    return ERRORS[error.code].text

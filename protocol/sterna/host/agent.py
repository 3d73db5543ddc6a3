"""A host as its command-line endpoints have it: who may come, and which session of a guest is the one.

One `PeerListHost` serves all sessions of a process; each session has a `HostSession`, which is the `Host`
that its endpoint asks. What the sessions share is which guests are on their way here: a (guest, epoch) has
one open session, bound to the identity that opened it. A new opening by the same identity, under that epoch
or a later one, takes the place of one that has received no HANDOVER: its source has given it up, or claimed
the guest back, or the peer was restarted. Another one's is busy [ONE-12] [ONE-13]. Once HANDOVER has come,
which CLAIMING tells whatever has become of the process, an opening is answered with who owns the guest
[ONE-14]. What an earlier process has left open is taken up again if its source asks for it [RES-16].

What records and store have against an opening is `sterna.core.admitting`'s to say, and who owns a guest
`sterna.host.answering`'s. Here is what waits, holds and writes.

With a lease store every opening shows the guest's newest slot, and every claim is the store's to decide.
Without one claims are won when they are made, and the grant is the commit as the source sees it [ONE-43].
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Final, Self

import trio

from sterna.core.admitting import (
    OpenSession,
    Resumption,
    check_newest,
    check_records,
    check_slot,
    gives_way,
    names_store,
    resumption,
)
from sterna.core.events import Admission
from sterna.core.history import History
from sterna.core.records import Claiming, Record, Released, SessionRecord
from sterna.core.reopening import Opening
from sterna.core.verdict import Facts, Slot, answer, asked_for
from sterna.errors import LocalProtocolError, RecordError, StoreError, StoreUnavailable, TransportError
from sterna.guest.api import GuestDescription
from sterna.host.answering import answer_peer
from sterna.host.lease import LeaseStore, claim_until_named
from sterna.host.openings import Openings
from sterna.host.peers import Direction, PeerList
from sterna.host.records_shelf import Keeper, RecordsShelf
from sterna.host.slots_behind import slots_behind
from sterna.net.hosting import Reopened
from sterna.net.kept import no_session
from sterna.net.transport import Peer
from sterna.registry import ErrorCode
from sterna.wire.records import NO_TOKEN, Hello, Runner, Verdict

# How long a new opening waits for the session that it replaces to give back what it had reserved.
REPLACE_WITHIN_S: Final = 5.0
# How long the store may take to answer a question that a guest stands still for, or is about to: well below
# the deadline of a blackout. One that takes longer while it runs would take as long when it does not.
PROBE_WITHIN_S: Final = 2.0

_ID_BYTES: Final = 16
_NOBODY: Final = Peer("nobody")

Cancel = Callable[[str], None]
Tell = Callable[[str], None]
Settle = Callable[[bytes], Awaitable[object]]


async def _settled(guest: bytes) -> None:
    """There is nothing that could be left."""


class PeerListHost:
    """What the sessions of one endpoint process share.

    Args:
        name: the host's name, as it appears in runners.
        peers: who may come; None for everybody, which is what --insecure says.
        shelf: the guests' records; without it they last as long as the process.
        store: the lease store; None for two endpoints and nothing else.
        tell: told, for people, what holds a session up.

    Attributes:
        settle: brings what an earlier process has left of a guest to its end, before its session is taken up
            again; it returns within a moment, done or not.
    """

    def __init__(
        self,
        name: str,
        peers: PeerList | None,
        *,
        shelf: RecordsShelf | None = None,
        store: LeaseStore | None = None,
        tell: Tell = lambda _: None,
    ) -> None:
        self.name = name
        self.peers = peers
        self.shelf = shelf or RecordsShelf()
        self.store = store
        self.tell = tell
        self.settle: Settle = _settled
        self.openings = Openings(self.shelf.directory)
        self._open: dict[tuple[bytes, int], HostSession] = {}

    def session(self, peer: Peer = _NOBODY, address: str = "", guest: bytes = b"") -> HostSession:
        """A session's view of this host; use it as a context manager around the endpoint's `run`.

        Args:
            peer: who is at the other end.
            address: where a source has dialled it, and will ask later; a destination has none.
            guest: its id, where a session goes on that nobody opens.
        """
        return HostSession(self, peer, address, guest)

    def others(self, guest: bytes) -> list[tuple[OpenSession, HostSession]]:
        """The guest's open sessions."""
        return [
            (OpenSession(epoch, one.identity, str(one.peer), one.is_committed), one)
            for (other, epoch), one in self._open.items()
            if other == guest
        ]

    def enter(self, session: HostSession, hello: Hello) -> None:
        """Note that `session` brings the guest. Nothing is in its way."""
        self._open[hello.guest, hello.epoch] = session

    def leave(self, session: HostSession) -> None:
        """The session is over."""
        for key in [key for key, one in self._open.items() if one is session]:
            del self._open[key]

    def silent(self, error: StoreUnavailable) -> None:
        """The store did not answer, and is asked again."""
        self.tell(f"the lease store does not answer, asking on: {error}")

    def unnamed(self, why: str) -> None:
        """The store did answer, but names no runner, and is asked again."""
        self.tell(f"the lease store names nobody, asking on: {why}")


class HostSession:
    """The `Host` of one endpoint (see `sterna.net.hosting`).

    Attributes:
        identity: of the peer that opened the session, None before that or on a plain connection.
        peer: the same peer, for messages.
        admission: what a destination has let in; None before that.
        cancel: ends the endpoint, for a newer opening; raises TOO_LATE.
        ended: set when the context manager is left.
        store_s: how long the lease store took to answer before a guest was sent, see `TimesStore`.
    """

    def __init__(
        self, host: PeerListHost, peer: Peer = _NOBODY, address: str = "", guest: bytes = b""
    ) -> None:
        self.identity: str | None = None
        self.peer = peer
        self.admission: Admission | None = None
        self.cancel: Cancel = lambda _: None
        self.ended = trio.Event()
        self.store_s = 0.0
        self._host = host
        self._address = address
        self._guest = guest
        self._keeper: Keeper | None = None
        self._handed_over = False
        self._is_committed = False  # its endpoint says that it cannot be cancelled any more
        self._is_noted = False  # there is an opening on the shelf that ends with this session
        self._has_store = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_noted and not self._handed_over:
            await self._drop_opening()
        self._host.leave(self)
        self.ended.set()
        if self._keeper is not None:
            self._keeper = None
            await self._host.shelf.give_back(self._guest)

    @property
    def guest(self) -> bytes:
        """The id of the guest that it is about; empty before anybody has named one."""
        return self._guest

    @property
    def admitted(self) -> bool:
        """Whether a peer has opened this session."""
        return self.admission is not None

    @property
    def is_committed(self) -> bool:
        """Whether permission to run the guest has come, or `replace` has found that it may have."""
        return self._handed_over or self._is_committed

    def replace(self) -> bool:
        """Give way to a newer opening; False if permission to run the guest may have come."""
        if self._handed_over:
            return False
        try:
            self.cancel("a newer session has taken the place of this one")
        except LocalProtocolError:
            self._is_committed = True
            return False
        return True

    # ---- a destination's opening ----

    async def admit(self, hello: Hello, peer: Peer) -> Admission | Verdict:
        """Let in a peer that may bring a guest; which one is checked with its description.

        Returns:
            Fresh ids and a fresh runner; or who owns the guest, if HANDOVER has come for this epoch [ONE-14].

        Raises:
            LocalProtocolError: BUSY, STALE_EPOCH, MISSING_FEATURE, or REFUSED, the store has no answer.
            RecordError: BUSY, another process has the guest; RECORD_FAILED.
            TransportError: NOT_AUTHORISED.
        """
        self._check_may_bring(hello.guest, peer)
        self.peer, self._guest = peer, hello.guest
        self._has_store = self._host.store is not None and names_store(hello.features)
        await self._check_store(hello)
        verdict = await self._enter(hello)
        if verdict is not None:
            return verdict
        self.identity = peer.identity
        runner = Runner(self._host.name, secrets.token_bytes(_ID_BYTES))
        token = secrets.token_bytes(len(NO_TOKEN))
        self.admission = Admission(secrets.token_bytes(_ID_BYTES), token, runner)
        return self.admission

    async def opened(self, opening: Opening) -> None:
        """Note what the next process would have to know; without it only this one can go on."""
        try:
            await self._host.openings.put(opening, self.peer.identity or "")
        except RecordError as error:
            self._host.tell(f"if this process ends, the session is not taken up again: {error}")
        else:
            self._is_noted = True

    async def reopen(self, hello: Hello, peer: Peer) -> Reopened | Verdict:
        """What an earlier process of this host has left of a session [RES-7] [RES-13].

        Returns:
            The opening; or who owns the guest, if it was handed over and lacks no pages here.

        Raises:
            LocalProtocolError: BAD_TOKEN; BUSY, another session of the guest does not end, or the store does
                not answer before HANDOVER; else then what `admit` raises.
            RemoteProtocolError: BAD_TOKEN, NOT_SELECTED, LIMIT_MISMATCH; nothing has changed.
            RecordError: BUSY, another process has the guest; RECORD_FAILED.
            TransportError: NOT_AUTHORISED.
        """
        self._check_may_bring(hello.guest, peer)
        self.peer, self._guest = peer, hello.guest
        keeper, identity = await self._records(make=False), peer.identity or ""
        opening = await self._host.openings.find(hello, identity)
        if opening is None and (keeper is None or asked_for(keeper.history, hello, identity) is None):
            raise no_session()  # nothing is done for whoever asks for anything
        await self._host.settle(hello.guest)
        history = History(hello.guest) if keeper is None else keeper.history
        session = asked_for(history, hello, identity)
        if session is not None and history.complete(session.session) is not None:
            await self._host.openings.drop(hello.guest, session.session)
        found = resumption(history, session, noted=opening is not None)
        if found is Resumption.TOLD:
            return await self.verdict(hello)
        if opening is None:
            raise no_session()
        if found is Resumption.SERVED:
            self._handed_over = self._is_noted = True
            await self._enter(hello)
        else:
            self._has_store = names_store(opening.welcome.features)
            await self._check_store(hello, ErrorCode.BUSY)  # it may answer when the source comes again
            verdict = await self._enter(hello)
            if verdict is not None:
                return verdict
        self.identity, self.admission = peer.identity, opening.admission
        return Reopened(opening, runs=self._handed_over)

    def authorise(self, description: GuestDescription) -> None:
        """Whether the peer may send this guest, of which the name is known now; call it before reserving.

        Raises:
            TransportError: NOT_AUTHORISED.
        """
        self._authorise(description, self.peer, Direction.SEND)

    async def _check_store(self, hello: Hello, silent: ErrorCode = ErrorCode.REFUSED) -> None:
        """The newest slot is the one that the opening shows; without a store it has none."""
        if self._host.store is not None:
            check_slot(await self._newest(silent), hello, has_store=self._has_store)
        elif self._has_store:  # an earlier process had it
            detail = "the session has a lease store, and this process was started without"
            raise LocalProtocolError(ErrorCode.MISSING_FEATURE, detail, clause="RES-16")

    async def _enter(self, hello: Hello) -> Verdict | None:
        """Be the guest's one session, if nothing stands in its way; else who owns the guest."""
        waited = False
        while True:
            # Again behind what was waited for: who is replaced may have noted something.
            verdict = None if self._handed_over else await self._check_records(hello)
            if verdict is not None:
                return verdict
            others = self._host.others(hello.guest)
            open_ones = [each for each, _ in others]
            ending = gives_way(hello, self.peer.identity, open_ones, waited=waited)
            if not ending:
                self._host.enter(self, hello)
                return None
            replaced = [others[place][1] for place in ending if others[place][1].replace()]
            with trio.move_on_after(REPLACE_WITHIN_S):
                for one in replaced:
                    await one.ended.wait()
            waited = True

    async def _check_records(self, hello: Hello) -> Verdict | None:
        keeper, identity = await self._records(make=False), self.peer.identity or ""
        over = None if keeper is None else check_records(keeper.history, hello, identity)
        if keeper is None or over is None:
            return None
        facts = Facts(self._host.name, await slots_behind(self._host.store, keeper.history, over))
        question = replace(hello, session=over.session, token=over.token)
        return answer(keeper.history, question, identity, facts)

    # ---- a source's ----

    async def may_send(self, description: GuestDescription, peer: Peer) -> None:
        """Whether the guest may leave for this peer; its records are this process's then.

        Raises:
            LocalProtocolError: UNDECIDED, an earlier session of the guest is open [ONE-53].
            RecordError: BUSY, another process has the guest; RECORD_FAILED.
            TransportError: NOT_AUTHORISED.
        """
        self._authorise(description, peer, Direction.RECEIVE)
        self.peer, self._guest = peer, description.id
        self._has_store = self._host.store is not None
        keeper = await self._records()
        grant = None if keeper is None else keeper.history.open_grant()
        if grant is not None:
            detail = f"epoch {grant.epoch} was granted in session {grant.session.hex()}, which is open"
            raise LocalProtocolError(ErrorCode.UNDECIDED, detail, clause="ONE-53")
        await self._time_store()

    # ---- what both write down, claim and hold: `sterna.core.duties.Records` ----

    async def persist(self, record: Record) -> None:
        """Make a record durable."""
        if isinstance(record, Claiming):
            self._handed_over = True
        if isinstance(record, SessionRecord):
            record = replace(record, peer=self.peer.identity or "", address=self._address)
        keeper = await self._records()
        assert keeper is not None
        if isinstance(record, Claiming) and not self._has_store:
            await keeper.hold(record)  # no claim is sent [ONE-62]
        else:
            await keeper.append(record)
        if isinstance(record, Released) and self._is_noted:
            await self._drop_opening()

    async def claim(self, epoch: int, runner: Runner) -> Runner:
        """The runner in the slot, however long the store takes to say so [ONE-7] [ONE-31]."""
        if not self._has_store:
            return runner
        store = self._host.store
        assert store is not None
        host = self._host
        return await claim_until_named(
            store, self._guest, epoch, runner, silent=host.silent, unnamed=host.unnamed
        )

    async def probe(self, epoch: int, runner: Runner) -> None:
        """The store answers, and the guest's newest slot is still this one [ONE-16] [ONE-64].

        Raises:
            LocalProtocolError: NOT_READY, there is no answer, or none in time; STALE_EPOCH.
        """
        newest: Slot | None = None
        with trio.move_on_after(PROBE_WITHIN_S) as scope:
            newest = await self._newest(ErrorCode.NOT_READY)
        if scope.cancelled_caught:
            detail = f"the lease store has not answered for {PROBE_WITHIN_S:g} s"
            raise LocalProtocolError(ErrorCode.NOT_READY, detail, clause="ONE-64")
        check_newest(newest, Slot(epoch, runner), "ONE-16")

    async def verdict(self, hello: Hello) -> Verdict:
        """Who owns the guest, for a peer that asks; without a store it is handed back where START is not.

        Raises:
            RecordError: BUSY, another process has the records [ONE-60].
        """
        self._guest, self.admission = hello.guest, None  # who is told that brings nothing
        host, identity = self._host, self.peer.identity or ""
        return await answer_peer(host.shelf, hello, identity, host=host.name, store=host.store)

    # ---- inside ----

    async def _drop_opening(self) -> None:
        assert self.admission is not None
        await self._host.openings.drop(self._guest, self.admission.session)

    async def _newest(self, code: ErrorCode) -> Slot | None:
        """The guest's newest slot; without an answer there is no handover, and nothing is in doubt [ONE-16].

        Raises:
            LocalProtocolError: of this code, with what the store has said, or has not.
        """
        try:
            return None if self._host.store is None else await self._host.store.newest(self._guest)
        except StoreError as error:
            raise LocalProtocolError(code, str(error), clause="ONE-16") from error

    async def _time_store(self) -> None:
        """Nothing hangs on it yet: a store that is silent is found out by the probe before the pause."""
        began = trio.current_time()
        with trio.move_on_after(PROBE_WITHIN_S), suppress(LocalProtocolError):
            await self._newest(ErrorCode.NOT_READY)
            self.store_s = trio.current_time() - began

    async def _records(self, *, make: bool = True) -> Keeper | None:
        """The guest's records, held until the session is left."""
        if self._keeper is None:
            self._keeper = await self._host.shelf.take(self._guest, make=make)
        return self._keeper

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
        if not peers.may_send(peer.identity or "", guest):
            raise TransportError(
                ErrorCode.NOT_AUTHORISED, f"{peer} may not send guest id:{guest.hex()} to this host"
            )

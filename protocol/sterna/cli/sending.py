"""How `sterna migrate` sends a guest: ends an earlier session of it, looks whether it may go, and moves it.

The records are held all the while. What an earlier process has left open is brought to its end first, by the
same recovery that follows a session whose end is not known: if that finds the guest elsewhere, there is
nothing to send, but perhaps pages that it still waits for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import trio

from sterna.cli.deciding import Deciding, interruptible
from sterna.cli.endpoint import (
    INSECURE,
    Ending,
    Recording,
    Security,
    holder_missing,
    recorded,
    tell_progress,
)
from sterna.cli.events import (
    connection_fields,
)
from sterna.cli.exits import Exit
from sterna.cli.follow import Reporter
from sterna.cli.migration_report import MigrationReport
from sterna.cli.ownership import Ownership
from sterna.cli.serving_on import TOO_LATE, ServingOn
from sterna.cli.taking_up import asker, newest_epoch
from sterna.core.events import Result
from sterna.core.history import History
from sterna.core.policy import PolicySettings, Switchover, estimate_fixed_cost_s
from sterna.core.verdict import Slot
from sterna.errors import ConfigError, GuestError, LocalProtocolError, StoreError
from sterna.guest.holder_client import HolderConnection, HolderStatus, connect_holder
from sterna.host.agent import PeerListHost
from sterna.host.evidence import SOURCE_IMAGE, WARNING, Evidence
from sterna.host.farewells import rejection
from sterna.host.held import DepartingGuest
from sterna.host.peers import PeerList
from sterna.host.records_shelf import Keeper, RecordsShelf
from sterna.host.recovery import HeldImage, OnAct, Recovery, attach_to, guest_in
from sterna.net.connect import Address, connect
from sterna.net.options import Options, ignore_request
from sterna.net.redial import Reconnect
from sterna.net.source import Decide, Source
from sterna.net.tls import CheckPeer, TlsConfig
from sterna.net.transport import Transport
from sterna.observe.recording import Side
from sterna.registry import ErrorCode


@dataclass(frozen=True, slots=True)
class _Links:
    """How a session goes on that has lost its link."""

    reconnect: Reconnect
    decide: Decide


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """One call of the command.

    Attributes:
        peer: identity that the destination has to have; empty if its certificate bears the address instead.
        on_act: called around every act of a recovery.
    """

    address: Address
    holder: Path
    peer: str
    security: Security
    ownership: Ownership
    options: Options
    downtime_s: float
    max_rounds: int
    undecided_after_s: float
    evidence: Evidence | None
    reporter: Reporter
    die_with: int | None
    record: Path | None = None
    switchover: Switchover = "stop-and-copy"
    on_act: OnAct = ignore_request

    async def run(self) -> Exit:
        """Send it, unless the operator ends that before.

        Raises:
            KeyboardInterrupt: the operator did, and the session had no say.
            SternaError: within an exception group; nothing was sent.
        """
        exit_code = Exit.INTERRUPTED
        async with trio.open_nursery() as nursery:
            ending = Ending(nursery.cancel_scope)
            await nursery.start(partial(ending.watch, process=self.die_with))
            exit_code = await self._send(ending)
            nursery.cancel_scope.cancel()
        if ending.interrupted:
            raise KeyboardInterrupt
        return exit_code

    async def _send(self, ending: Ending) -> Exit:
        peers = self.security.peer_list()
        tls = self.security.tls(self._check_peer(peers))
        if tls is None:
            self.reporter.notice(INSECURE)
        if self.evidence is not None:
            self.reporter.notice(f"{self.evidence.path(SOURCE_IMAGE)} {WARNING}")
        guest = await self._look()
        async with (
            recorded(self.record, Side.SOURCE, self.reporter) as recording,
            self.ownership.opened_store() as store,
        ):
            name = self.security.own_name
            shelf = RecordsShelf(self.ownership.directory(name), "sterna migrate")
            host = PeerListHost(name, peers, shelf=shelf, store=store, tell=self.reporter.notice)
            async with shelf.opened(guest) as keeper:
                assert keeper is not None
                return await self._send_known(host, keeper, tls, ending, recording)

    async def _look(self) -> bytes:
        """The id of the guest that the holder keeps; nobody is kept out by that."""
        try:
            async with await connect_holder(self.holder, role="observer") as connection:
                guest, status = await guest_in(connection), connection.attached
                if guest is None:
                    raise _not_here(status)
                return guest
        except GuestError as error:
            raise holder_missing(error, self.holder, "") from error

    async def _send_known(
        self,
        host: PeerListHost,
        keeper: Keeper,
        tls: TlsConfig | None,
        ending: Ending,
        recording: Recording,
    ) -> Exit:
        """Bring an earlier session of the guest to its end, then send it, if it is here."""
        async with await self._attach(keeper) as connection:
            guest = keeper.history.guest
            ask = asker(guest, tls, self.options, (self.address,))
            recovery = Recovery(
                host.name,
                keeper,
                HeldImage(connection, guest),
                store=host.store,
                ask=ask,
                within_s=self.undecided_after_s,
                tell=self.reporter.notice,
                on_act=self.on_act,
            )
            recovered = await interruptible(recovery, ending)
            if ending.late and recovered is None:
                ending.end("nothing was left open")
                await trio.lowlevel.checkpoint()
            if recovered is not None and (ending.late or not recovered.runs_here):
                serving = ServingOn(self.address, tls, self.options, recording, self.reporter, ending)
                end = await serving.of(recovered, connection, host, self.evidence)
                return (
                    self._report.settled(recovered, late=ending.late)
                    if end is None
                    else await self._report.conclude(*end, recording, recovered, late=ending.late)
                )
            status = await connection.status()
            if status.state not in {"running", "paused"}:
                raise _not_here(status)
            await self._check_store(host, keeper.history, status)
            departing = await DepartingGuest.open(connection)
            assert isinstance(departing, DepartingGuest)
            departing.evidence = self.evidence
            connect_ = partial(self._connect, tls, recording)
            transport, deciding = await connect_(), Deciding(recovery, ending)
            links = _Links(connect_, deciding.is_elsewhere)
            try:
                result = await self._migrate(departing, status, transport, host, ending, links=links)
            finally:
                transport.abort()
            recovered = await deciding.in_the_end(result)
            return await self._report.conclude(
                departing, transport, result, recording, recovered, late=ending.late
            )

    async def _attach(self, keeper: Keeper) -> HolderConnection:
        try:
            return await attach_to(self.holder, partial(newest_epoch, keeper.history))
        except GuestError as error:
            raise holder_missing(error, self.holder, "") from error

    async def _check_store(self, host: PeerListHost, history: History, status: HolderStatus) -> None:
        """The holder and the store agree who runs the guest; nothing is sent before that."""
        if host.store is None:
            if history.has_slot(status.epoch, status.runner):
                raise ConfigError(
                    f"the guest has slot {status.epoch} in a lease store, and does not leave without: "
                    "name it with --store [ONE-55]"
                )
            return
        try:
            newest = await host.store.newest(history.guest)
        except StoreError as error:
            detail = f"{error}. Nothing has been begun, and the guest runs on here"
            raise LocalProtocolError(ErrorCode.NOT_READY, detail, clause="ONE-16") from error
        if newest == Slot(status.epoch, status.runner):
            return
        if newest is None and history.has_slot(status.epoch, status.runner):
            raise ConfigError(
                f"the guest has slot {status.epoch} in a lease store, and none in {self.ownership.store}: "
                "that is another one, or has lost it. The guest runs on here"
            )
        if newest is None:
            raise ConfigError(
                f"the guest has no slot in {self.ownership.store}: its holder was started without a store. "
                "Send it without --store, or start guests with sterna holder --store"
            )
        raise LocalProtocolError(
            ErrorCode.STALE_EPOCH,
            f"the guest runs here under epoch {status.epoch} as {status.runner.host!r}, "
            f"but its newest slot is {newest.epoch}, of {newest.runner.host!r}: "
            "sterna verdict tells who owns it",
            clause="ONE-9",
        )

    async def _connect(self, tls: TlsConfig | None, recording: Recording) -> Transport:
        transport = await connect(
            self.address, tls=tls, expected=self.peer or None, farewell=None if tls is None else rejection
        )
        self.reporter.emit({"event": "connected", **connection_fields(transport)})
        return recording.wrap(transport)

    def _check_peer(self, peers: PeerList | None) -> CheckPeer:
        # Without a list the operator's word decides: whom --peer names, or who bears the dialled name.
        return (lambda _identity, _fingerprint: None) if peers is None else peers.check_peer

    async def _migrate(
        self,
        guest: DepartingGuest,
        status: HolderStatus,
        transport: Transport,
        host: PeerListHost,
        ending: Ending,
        *,
        links: _Links,
    ) -> Result:
        self._report.introduce(guest, transport)
        async with host.session(transport.peer, str(self.address)) as session:
            source = Source(
                guest,
                transport,
                epoch=status.epoch,
                runner=status.runner,
                host=session,
                options=replace(self.options, policy=self._policy(guest)),
                reconnect=links.reconnect,
                decide=links.decide,
            )
            ending.ask = partial(self._cancel, source, ending)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tell_progress, self.reporter, lambda: source.passed)
                result = await source.run()
                nursery.cancel_scope.cancel()
            ending.ask = None
        return result

    def _policy(self, guest: DepartingGuest) -> PolicySettings:
        pages = sum(region.pages for region in guest.description.regions)
        return PolicySettings(
            allowed_downtime_s=self.downtime_s,
            max_rounds=self.max_rounds,
            switchover=self.switchover,
            fixed_cost_s=estimate_fixed_cost_s(pages),
        )

    def _cancel(self, source: Source, ending: Ending, why: str) -> None:
        try:
            source.cancel(why)
        except LocalProtocolError:
            ending.late = True
            self.reporter.notice(TOO_LATE)
        else:
            self.reporter.notice("cancelling: the guest runs on here")

    @property
    def _report(self) -> MigrationReport:
        return MigrationReport(self.reporter, self.evidence)


def _not_here(status: HolderStatus) -> GuestError | ConfigError:
    state = status.state
    if state in {"granted", "released"}:
        detail = f"the guest was granted to another host at epoch {status.granted_epoch}"
        if state == "granted":
            detail += (
                ", and no record here says to whom: sterna verdict ID --holder PATH tells what can be done"
            )
        return GuestError(detail, ErrorCode.TOO_LATE)
    return ConfigError(f"there is no guest to send: the holder is {state}")

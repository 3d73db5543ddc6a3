"""`sterna migrate`: send the guest of a holder to a destination that listens."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import trio
from cyclopts import Parameter

from sterna.cli.deciding import Deciding, interruptible
from sterna.cli.endpoint import (
    INSECURE,
    Ending,
    Flag,
    PathOption,
    ProcessOption,
    Recording,
    Security,
    deadlines,
    holder_missing,
    recorded,
    tell_progress,
)
from sterna.cli.events import (
    Fields,
    connection_fields,
    followed_text,
    holder_fields,
    result_fields,
    resumed_text,
)
from sterna.cli.exits import Exit, exit_of_outcome
from sterna.cli.follow import Reporter
from sterna.cli.hints import hinted
from sterna.cli.output import Output
from sterna.cli.ownership import UNDECIDED_AFTER_S, Ownership
from sterna.cli.serving_on import TOO_LATE, ServingOn
from sterna.cli.taking_up import asker, decided, judgement_text, newest_epoch, recovered_fields
from sterna.cli.units import Duration, Json, Packing, Rate, Size, Streams
from sterna.cli.warned import warnings_of, watching
from sterna.core.events import Outcome, Result
from sterna.core.policy import PolicySettings, Switchover, estimate_fixed_cost_s
from sterna.core.words import duration_text, size_text
from sterna.errors import ConfigError, GuestError, LocalProtocolError, StoreError
from sterna.guest.holder_client import HolderConnection, HolderStatus, connect_holder
from sterna.host.agent import PeerListHost
from sterna.host.evidence import SOURCE_IMAGE, WARNING, Evidence
from sterna.host.failpoint import failpoint
from sterna.host.farewells import rejection
from sterna.host.held import DepartingGuest
from sterna.host.peers import PeerList
from sterna.host.records_shelf import Keeper, RecordsShelf
from sterna.host.recovery import HeldImage, Recovered, Recovery, attach_to, guest_in
from sterna.host.slots import Slot
from sterna.limits import RESUME_MOST_S, RESUME_S
from sterna.net.connect import Address, connect, parse_address
from sterna.net.identity import check_name
from sterna.net.options import VERSIONS_BYTES, Compress, Options
from sterna.net.redial import Reconnect
from sterna.net.source import Decide, Source
from sterna.net.streams import enough_streams
from sterna.net.tls import CheckPeer, TlsConfig
from sterna.net.transport import Transport
from sterna.observe.recording import Side
from sterna.registry import ErrorCode, Owner


def migrate(
    *,
    to: str,
    holder: Path,
    peer: Annotated[str, Parameter(show_default=False)] = "",
    security: Security = Security(),  # noqa: B008 - frozen
    ownership: Ownership = Ownership(),  # noqa: B008 - frozen
    bandwidth: Annotated[Rate | None, Parameter(show_default=False)] = None,
    downtime: Duration = 0.3,
    switchover: Switchover = "stop-and-copy",
    max_rounds: int = 30,
    patience: Annotated[Duration | None, Parameter(show_default=False)] = None,
    undecided_after: Duration = UNDECIDED_AFTER_S,
    resume: Duration = float(RESUME_S),
    streams: Streams = None,
    compress: Packing = "off",
    versions: Size = VERSIONS_BYTES,
    evidence: PathOption = None,
    record: PathOption = None,
    follow: Flag = False,
    die_with: ProcessOption = None,
    json: Json = False,
) -> int:
    """Send a holder's guest to another host, while it runs.

    Ctrl-C cancels: the guest runs on here, unless it has been handed over already.

    Args:
        to: where the destination listens: host:port, or [v6 address]:port.
        holder: socket of the guest's holder (`sterna holder`).
        peer: identity of the destination; without it its certificate must bear the address of --to.
        bandwidth: send no faster, for example 1GiB/s.
        downtime: how long the guest may stand still.
        switchover: stop-and-copy: all memory is there before the guest runs there. bitmap: what it wrote last
            follows when it runs, so it stops as shortly however fast it writes. post-copy: all of it follows.
            auto: bitmap where the downtime cannot be met otherwise.
        max_rounds: give up, or slow the guest down, after so many rounds.
        patience: wait no longer than this for the other side, in any phase; by default 5s to 60s, by the
            phase.
        undecided_after: ask so long, after a handover whose end is not known, who owns the guest.
        streams: connections on which pages travel, 0 to 16; with 0 they travel on the one on which all else
            does. auto: as many as a link of this delay needs, and one at least if pages may follow the guest,
            so that those that it waits for wait for no others. The destination may allow fewer.
        compress: auto: send pages compressed, or as changes of what was sent before, where that is faster at
            the rate of the link. always: wherever they become smaller by it.
        versions: memory for pages that were sent, to send changes of them; 0B for none.
        resume: how long a lost session is taken up again, if the connection breaks; 0s for not at all.
        evidence: directory for source.img, the guest's memory at the pause; source-N.img is that of region N.
        record: file for everything that passes on the connection; `sterna inspect` reads it.
        follow: every event as a line of JSON on stdout.
        die_with: cancel when the process of this number ends.
        security: who this host is and whom it talks to.
        ownership: what says who owns a guest, whatever happens.
        json: one JSON object on stdout.
    """
    output = Output(json=json)
    reporter = Reporter(output, follow=follow)
    job = _Job(
        address=parse_address(to),
        holder=holder,
        peer=check_name(peer) if peer else "",
        security=security,
        ownership=ownership,
        options=Options(
            lease_store=bool(ownership.store),
            on_event=watching(reporter.on_event, reporter.notice, switchover),
            bandwidth_bytes_s=bandwidth,
            deadlines=deadlines(patience),
            resume_s=_whole_seconds(resume),
            compress=Compress(compress),
            versions_bytes=versions,
            on_request=failpoint(),
        ),
        downtime_s=downtime,
        switchover=switchover,
        streams=streams,
        max_rounds=max_rounds,
        undecided_after_s=undecided_after,
        evidence=None if evidence is None else Evidence(evidence),
        record=record,
        reporter=reporter,
        die_with=die_with,
    )
    with reporter:
        return trio.run(job.run)


@dataclass(frozen=True, slots=True)
class _Links:
    """How a session goes on that has lost its link."""

    reconnect: Reconnect
    decide: Decide


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One call of the command."""

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
    streams: int | None = None

    async def run(self) -> Exit:
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
            )
            recovered = await interruptible(recovery, ending)
            if recovered is not None and not recovered.runs_here:
                serving = ServingOn(self.address, tls, self.options, recording, self.reporter, ending)
                end = await serving.of(recovered, connection, host, self.evidence)
                return (
                    self._settled(recovered)
                    if end is None
                    else await self._conclude(*end, recording, recovered)
                )
            status = await connection.status()
            if status.state not in {"running", "paused"}:
                raise _not_here(status)
            await self._check_store(host, guest, status)
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
            return await self._conclude(departing, transport, result, recording, recovered)

    async def _attach(self, keeper: Keeper) -> HolderConnection:
        try:
            return await attach_to(self.holder, partial(newest_epoch, keeper.history))
        except GuestError as error:
            raise holder_missing(error, self.holder, "") from error

    async def _check_store(self, host: PeerListHost, guest: bytes, status: HolderStatus) -> None:
        """The holder and the store agree who runs the guest; nothing is sent before that."""
        if host.store is None:
            return
        try:
            newest = await host.store.newest(guest)
        except StoreError as error:
            detail = f"{error}. Nothing has been begun, and the guest runs on here"
            raise LocalProtocolError(ErrorCode.NOT_READY, detail, clause="ONE-16") from error
        if newest == Slot(status.epoch, status.runner):
            return
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
        self._introduce(guest, transport)
        async with host.session(transport.peer, str(self.address)) as session:
            source = Source(
                guest,
                transport,
                epoch=status.epoch,
                runner=status.runner,
                host=session,
                options=replace(self.options, policy=self._policy(guest), streams=self._streams(transport)),
                reconnect=links.reconnect,
                decide=links.decide,
            )
            ending.ask = partial(self._cancel, source)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tell_progress, self.reporter, lambda: source.passed)
                result = await source.run()
                nursery.cancel_scope.cancel()
            ending.ask = None
        return result

    def _streams(self, transport: Transport) -> int:
        if self.streams is not None:
            return self.streams
        return enough_streams(transport.rtt_s, pages_may_follow=self.switchover != "stop-and-copy")

    def _policy(self, guest: DepartingGuest) -> PolicySettings:
        return PolicySettings(
            allowed_downtime_s=self.downtime_s,
            max_rounds=self.max_rounds,
            switchover=self.switchover,
            fixed_cost_s=estimate_fixed_cost_s(sum(region.pages for region in guest.description.regions)),
        )

    def _introduce(self, guest: DepartingGuest, transport: Transport) -> None:
        region = guest.description.regions[0]
        memory_bytes = sum(one.size_bytes for one in guest.description.regions)
        self.reporter.emit(
            {
                "event": "migration",
                "guest": _guest_fields(guest),
                "memory_bytes": memory_bytes,
                "page_bytes": 1 << region.granule_log2,
                "tracker": guest.tracker,
            }
        )
        secured = "in plaintext" if transport.tls is None else f"over mutual {transport.tls.version}"
        self.reporter.say(
            f"{guest.description.name} ({size_text(memory_bytes)}, writes followed by {guest.tracker}) "
            f"to {transport.peer} {secured}"
        )

    def _cancel(self, source: Source, why: str) -> None:
        try:
            source.cancel(why)
        except LocalProtocolError:
            self.reporter.notice(TOO_LATE)
        else:
            self.reporter.notice("cancelling: the guest runs on here")

    def _settled(self, recovered: Recovered) -> Exit:
        """An earlier session of the guest has ended, or nobody knows how; there is nothing to send."""
        _check_lost(recovered)
        if recovered.judgement.owner is Owner.DESTINATION and not recovered.acted:
            text = f"it runs elsewhere under epoch {recovered.judgement.epoch}"
            raise GuestError(f"{text}: {judgement_text(recovered.judgement)}", ErrorCode.TOO_LATE)
        here = (
            ""
            if recovered.judgement.owner is Owner.UNDECIDED
            else f" under epoch {recovered.judgement.epoch}"
        )
        result = decided(Result(Outcome.UNDECIDED, session=recovered.session.session), recovered)
        self.reporter.result(
            {"role": "source", **result_fields(result), "recovered": recovered_fields(recovered)}
        )
        owner = recovered.judgement.owner.name.lower()
        self.reporter.say(
            f"an earlier session of this guest: {owner}{here}: {judgement_text(recovered.judgement)}"
        )
        return exit_of_outcome(result.outcome, result.code)

    async def _conclude(
        self,
        guest: DepartingGuest,
        transport: Transport,
        result: Result,
        recording: Recording,
        recovered: Recovered | None,
    ) -> Exit:
        asked_last = result.verdict is not None and result.verdict.handed_back
        if recovered is not None and (asked_last or result.outcome is Outcome.UNDECIDED):
            _check_lost(recovered)
            result = decided(result, recovered)
        figures: Fields | None
        try:
            figures = holder_fields(await guest.connection.status())
        except GuestError:
            figures = None
        fields: Fields = {
            "role": "source",
            "guest": _guest_fields(guest),
            "memory_bytes": sum(one.size_bytes for one in guest.description.regions),
            "tracker": guest.tracker,
            **connection_fields(transport),
            **result_fields(result),
            "holder": figures,
            "evidence_failures": [] if self.evidence is None else self.evidence.failures,
            "recording_failures": recording.failures,
            "recovered": None if recovered is None else recovered_fields(recovered),
        }
        self.reporter.result(fields)
        self.reporter.say(_sentence(result, transport))
        for warned in warnings_of(result):
            self.reporter.notice(warned.text)
        if recovered is not None and result.outcome is not Outcome.COMPLETED:
            self.reporter.say(judgement_text(recovered.judgement))
        if result.outcome in {Outcome.UNDECIDED, Outcome.ANSWERED, Outcome.STRANDED}:
            self.reporter.say(f"its ID is {guest.description.id.hex()}")
        return exit_of_outcome(result.outcome, result.code)


def _whole_seconds(resume: float) -> int:
    """As the wire has it.

    Raises:
        ConfigError: longer than any destination keeps a session.
    """
    if resume > RESUME_MOST_S:
        raise ConfigError(
            f"--resume {resume:g}s: no destination keeps a session for more than {RESUME_MOST_S} s"
        )
    return math.ceil(resume)


def _guest_fields(guest: DepartingGuest) -> Fields:
    return {"id": guest.description.id.hex(), "name": guest.description.name}


def _check_lost(recovered: Recovered) -> None:
    if recovered.lost:
        raise GuestError(recovered.judgement.why, ErrorCode.GUEST_LOST)


def _not_here(status: HolderStatus) -> GuestError | ConfigError:
    state = status.state
    if state in {"granted", "released"}:
        detail = f"the guest was granted to another host at epoch {status.granted_epoch}"
        return GuestError(detail, ErrorCode.TOO_LATE)
    return ConfigError(f"there is no guest to send: the holder is {state}")


def _rounds(count: int) -> str:
    return "1 round" if count == 1 else f"{count} rounds"


def _sentence(result: Result, transport: Transport) -> str:
    """How it ended, for people."""
    why = "" if result.error is None else f": {result.error}"
    match result.outcome:
        case Outcome.COMPLETED | Outcome.MOVED:
            stood = "" if result.blackout_s is None else f", stopped for {duration_text(result.blackout_s)}"
            end = f"{followed_text(result)}{resumed_text(result)}"
            if result.outcome is Outcome.MOVED and result.after is not None:
                end = f"{why}. It may wait there for pages that are only here: keep this holder and its image"
            elif result.outcome is Outcome.MOVED:
                end += " (the connection was lost at the end; the image is still here)"
            return (
                f"the guest runs at {transport.peer}: {_rounds(len(result.rounds))}, "
                f"{size_text(result.bytes_sent)} in {duration_text(result.seconds)}{stood}{end}"
            )
        case Outcome.STRANDED:
            return (
                f"the guest runs there, and pages that it needs are here{why}. Keep this holder: it has them"
            )
        case Outcome.ROLLED_BACK | Outcome.SUSPENDED | Outcome.JOINED:
            return hinted(f"the guest runs on here{why}", result.error)
        case Outcome.UNDECIDED if result.verdict is not None and result.verdict.handed_back:
            return (
                "the destination has handed the guest back: it never ran there, and never will. It stays "
                "paused here: nothing stands against running it again"
            )
        case Outcome.UNDECIDED | Outcome.ANSWERED:
            return (
                f"nobody here can know who owns the guest{why}. It stays paused here: run this command again "
                "when the destination is back (sterna verdict ID tells more). If it never comes back, make "
                "certain that it cannot run the guest, and say so to sterna resolve"
            )
        case Outcome.GUEST_FAILED:
            return f"the guest is here but could not be set running again{why}"

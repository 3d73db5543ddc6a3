"""`sterna migrate`: send the guest of a holder to a destination that listens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import trio
from cyclopts import Parameter

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
from sterna.cli.events import Fields, connection_fields, holder_fields, result_fields
from sterna.cli.exits import Exit, exit_of_outcome
from sterna.cli.follow import Reporter
from sterna.cli.hints import hinted
from sterna.cli.output import Output
from sterna.cli.units import Duration, Json, Rate
from sterna.core.events import Outcome, Result
from sterna.core.policy import PolicySettings, estimate_fixed_cost_s
from sterna.core.words import duration_text, size_text
from sterna.errors import ConfigError, GuestError, LocalProtocolError
from sterna.guest.holder_client import HolderConnection, connect_holder
from sterna.host.agent import PeerListHost, rejection
from sterna.host.evidence import SOURCE_IMAGE, WARNING, Evidence
from sterna.host.failpoint import failpoint
from sterna.host.held import DepartingGuest
from sterna.host.peers import PeerList
from sterna.net.connect import Address, connect, parse_address
from sterna.net.endpoint import Options, Source
from sterna.net.identity import check_name
from sterna.net.tls import CheckPeer, TlsConfig
from sterna.net.transport import Transport
from sterna.observe.recording import Side
from sterna.registry import ErrorCode


def migrate(
    *,
    to: str,
    holder: Path,
    peer: Annotated[str, Parameter(show_default=False)] = "",
    security: Security = Security(),  # noqa: B008 - frozen
    bandwidth: Annotated[Rate | None, Parameter(show_default=False)] = None,
    downtime: Duration = 0.3,
    max_rounds: int = 30,
    patience: Annotated[Duration | None, Parameter(show_default=False)] = None,
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
        max_rounds: give up, or slow the guest down, after so many rounds.
        patience: wait no longer than this for the other side, in any phase.
        evidence: directory for source.img, the guest's memory at the pause.
        record: file for everything that passes on the connection; `sterna inspect` reads it.
        follow: every event as a line of JSON on stdout.
        die_with: cancel when the process of this number ends.
        security: who this host is and whom it talks to.
        json: one JSON object on stdout.
    """
    output = Output(json=json)
    reporter = Reporter(output, follow=follow)
    job = _Job(
        address=parse_address(to),
        holder=holder,
        peer=check_name(peer) if peer else "",
        security=security,
        options=Options(
            on_event=reporter.on_event,
            bandwidth_bytes_s=bandwidth,
            deadlines=deadlines(patience),
            on_request=failpoint(),
        ),
        downtime_s=downtime,
        max_rounds=max_rounds,
        evidence=None if evidence is None else Evidence(evidence),
        record=record,
        reporter=reporter,
        die_with=die_with,
    )
    with reporter:
        return trio.run(job.run)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One call of the command."""

    address: Address
    holder: Path
    peer: str
    security: Security
    options: Options
    downtime_s: float
    max_rounds: int
    evidence: Evidence | None
    reporter: Reporter
    die_with: int | None
    record: Path | None = None

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
        async with (
            recorded(self.record, Side.SOURCE, self.reporter) as recording,
            await self._attach() as connection,
        ):
            if connection.attached.state not in {"running", "paused"}:
                raise _not_here(connection)
            guest = await DepartingGuest.open(connection)
            assert isinstance(guest, DepartingGuest)
            guest.evidence = self.evidence
            transport = recording.wrap(await self._connect(tls))
            try:
                host = PeerListHost(self.security.own_name, peers)
                result = await self._migrate(guest, transport, host, ending)
                return await self._conclude(guest, transport, result, recording)
            finally:
                transport.abort()

    async def _attach(self) -> HolderConnection:
        try:
            return await connect_holder(self.holder)
        except GuestError as error:
            raise holder_missing(error, self.holder, "") from error

    async def _connect(self, tls: TlsConfig | None) -> Transport:
        transport = await connect(
            self.address, tls=tls, expected=self.peer or None, farewell=None if tls is None else rejection
        )
        self.reporter.emit({"event": "connected", **connection_fields(transport)})
        return transport

    def _check_peer(self, peers: PeerList | None) -> CheckPeer:
        # Without a list the operator's word decides: whom --peer names, or who bears the dialled name.
        return (lambda _identity, _fingerprint: None) if peers is None else peers.check_peer

    async def _migrate(
        self, guest: DepartingGuest, transport: Transport, host: PeerListHost, ending: Ending
    ) -> Result:
        attached = guest.connection.attached
        self._introduce(guest, transport)
        with host.session() as session:
            source = Source(
                guest,
                transport,
                epoch=attached.epoch,
                runner=attached.runner,
                host=session,
                options=replace(self.options, policy=self._policy(guest)),
            )
            ending.ask = partial(self._cancel, source)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tell_progress, self.reporter, transport)
                result = await source.run()
                nursery.cancel_scope.cancel()
            ending.ask = None
        return result

    def _policy(self, guest: DepartingGuest) -> PolicySettings:
        return PolicySettings(
            allowed_downtime_s=self.downtime_s,
            max_rounds=self.max_rounds,
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
            self.reporter.notice("too late to cancel: the guest has been handed over, wait for the end")
        else:
            self.reporter.notice("cancelling: the guest runs on here")

    async def _conclude(
        self, guest: DepartingGuest, transport: Transport, result: Result, recording: Recording
    ) -> Exit:
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
        }
        self.reporter.result(fields)
        self.reporter.say(_sentence(result, transport))
        return exit_of_outcome(result.outcome, result.code)


def _guest_fields(guest: DepartingGuest) -> Fields:
    return {"id": guest.description.id.hex(), "name": guest.description.name}


def _not_here(connection: HolderConnection) -> GuestError | ConfigError:
    state = connection.attached.state
    if state in {"granted", "released"}:
        detail = f"the guest was granted to another host at epoch {connection.attached.granted_epoch}"
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
            kept = " (the connection was lost at the end; the image is still here)"
            return (
                f"the guest runs at {transport.peer}: {_rounds(len(result.rounds))}, "
                f"{size_text(result.bytes_sent)} in {duration_text(result.seconds)}{stood}"
                f"{kept if result.outcome is Outcome.MOVED else ''}"
            )
        case Outcome.STRANDED:
            return f"the guest runs there, and pages that it needs are here{why}"
        case Outcome.ROLLED_BACK | Outcome.SUSPENDED:
            return hinted(f"the guest runs on here{why}", result.error)
        case Outcome.UNDECIDED if result.verdict is not None and result.verdict.handed_back:
            return (
                "the destination has handed the guest back: it never ran there, and never will. It stays "
                "paused here: nothing stands against running it again"
            )
        case Outcome.UNDECIDED | Outcome.ANSWERED:
            return (
                f"nobody here can know who owns the guest{why}. It stays paused here: "
                "make certain that it does not run at the destination before you run it again"
            )
        case Outcome.GUEST_FAILED:
            return f"the guest is here but could not be set running again{why}"

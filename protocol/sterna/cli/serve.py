"""`sterna serve`: a destination that listens, and loads what comes into a holder."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import trio
from cyclopts import Parameter, validators

from sterna.cli.endpoint import (
    INSECURE,
    UNVERIFIED,
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
    unverified_text,
)
from sterna.cli.exits import Exit, exit_of_outcome
from sterna.cli.follow import ConnectionReporter, Reporter, error_fields
from sterna.cli.output import Output
from sterna.cli.ownership import Ownership
from sterna.cli.spawned import spawned_holder
from sterna.cli.taking_up import TakingUp, arrived, decided, recovered_fields
from sterna.cli.units import Duration, Json, Size
from sterna.cli.warned import warnings_of
from sterna.core.events import Outcome, Result
from sterna.core.words import count_text, duration_text, size_text
from sterna.errors import ConfigError, GuestError, LocalProtocolError, SternaError, StoreError
from sterna.guest.api import DestinationGuest, GuestDescription
from sterna.guest.holder_client import connect_holder
from sterna.host.agent import HostSession, PeerListHost
from sterna.host.evidence import DESTINATION_IMAGE, WARNING, Evidence
from sterna.host.failpoint import failpoint
from sterna.host.farewells import refusal
from sterna.host.held import ROOM, ArrivingGuest
from sterna.host.lease import LeaseStore
from sterna.host.peers import PeerList
from sterna.host.records_shelf import RecordsShelf
from sterna.limits import STREAMS_MAX
from sterna.net.connect import Address, parse_address
from sterna.net.destination import Destination
from sterna.net.kept import Sessions
from sterna.net.listen import listen as accept_peers
from sterna.net.options import Options, own_limits
from sterna.net.tls import TlsConfig
from sterna.net.transport import Transport
from sterna.observe.recording import Side
from sterna.registry import ErrorCode
from sterna.wire.records import NO_ID


def serve(
    *,
    listen: str,
    holder: Path,
    spawn_holder: Flag = False,
    security: Security = Security(),  # noqa: B008 - frozen
    ownership: Ownership = Ownership(),  # noqa: B008 - frozen
    once: Flag = False,
    memory_limit: Annotated[Size | None, Parameter(show_default=False)] = None,
    whole: Flag = False,
    unverified: Flag = False,
    streams: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=STREAMS_MAX))] = STREAMS_MAX,
    no_early_pages: Flag = False,
    patience: Annotated[Duration | None, Parameter(show_default=False)] = None,
    evidence: PathOption = None,
    record: PathOption = None,
    follow: Flag = False,
    die_with: ProcessOption = None,
    json: Json = False,
) -> int:
    """Listen for a guest, and let it run in a holder when it has come.

    Who may send what is in the peer list, a TOML file with an entry like this for each host:

        [[peer]]
        identity = "host-a"
        may_send = ["web-*"]

    What is not listed is not allowed. A guest is named by a glob over names, or by id: and its 32 hex digits.

    Args:
        listen: where: host:port, or [v6 address]:port; port 0 lets the system choose one.
        holder: socket of a holder with room for a guest (`sterna holder --destination`).
        spawn_holder: start that holder; it stays, with its guest, when this command ends.
        once: end after the first session, whatever became of it.
        memory_limit: take no guest with more memory.
        whole: let no guest run before all of its memory is here, whatever the source would like.
        unverified: take pages without hashes from a source that is told so, too. Bytes that change in memory,
            or on a connection without TLS, are found by nobody then, and the guest runs with them.
        streams: the most connections besides the first on which a source may send pages.
        no_early_pages: a guest that waits for pages gets them in groups alone. Else single pages come ahead
            of their groups, on a connection of their own that a forked process serves; never with --record.
        patience: wait no longer than this for the other side, in any phase; by default 5s to 60s, by the
            phase.
        evidence: directory for destination.img, the guest's memory at its first instruction;
            destination-N.img is that of region N.
        record: file for everything that passes on all connections; `sterna inspect` reads it.
        follow: every event as a line of JSON on stdout.
        die_with: end when the process of this number ends.
        security: who this host is and whom it talks to; with --pki a peer list is needed, too.
        ownership: what says who owns a guest, whatever happens.
        json: one JSON object on stdout.
    """
    output = Output(json=json)
    reporter = Reporter(output, follow=follow)
    job = _Job(
        address=parse_address(listen, listen=True),
        holder=holder,
        spawn_holder=spawn_holder,
        security=security,
        ownership=ownership,
        options=Options(
            lease_store=bool(ownership.store),
            deadlines=deadlines(patience),
            on_request=failpoint(),
            limits=own_limits(memory_limit),
            post_copy=not whole,
            streams=streams,
            verified=not unverified,
            early_pages=not no_early_pages,
        ),
        once=once,
        evidence=None if evidence is None else Evidence(evidence),
        record=record,
        reporter=reporter,
        die_with=die_with,
    )
    if unverified:
        reporter.notice(UNVERIFIED)
    with reporter:
        return trio.run(job.run)


@dataclass(kw_only=True)
class _Job:
    """One call of the command."""

    address: Address
    holder: Path
    spawn_holder: bool
    security: Security
    ownership: Ownership
    options: Options
    once: bool
    evidence: Evidence | None
    reporter: Reporter
    die_with: int | None
    record: Path | None = None
    sessions: int = 0
    connections: int = 0
    last: Fields = field(default_factory=dict)
    exit_code: Exit = Exit.OK
    _taking_up: TakingUp = field(init=False)
    _recording: Recording = field(default_factory=Recording)
    _running: set[Destination] = field(default_factory=set)
    _kept: Sessions = field(default_factory=Sessions)
    _stopping: bool = False
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def run(self) -> Exit:
        tls, peers = self._security()
        async with trio.open_nursery() as nursery:
            ending = Ending(nursery.cancel_scope)
            await nursery.start(partial(ending.watch, process=self.die_with))
            async with (
                recorded(self.record, Side.DESTINATION, self.reporter) as self._recording,
                self.ownership.opened_store() as store,
                spawned_holder(self.holder, self.reporter.say) if self.spawn_holder else nullcontext(),
            ):
                name = self.security.own_name
                shelf = RecordsShelf(self.ownership.directory(name), "sterna serve")
                host = PeerListHost(name, peers, shelf=shelf, store=store, tell=self.reporter.notice)
                async with shelf.alone():
                    await self._listen(ending, tls, host)
            nursery.cancel_scope.cancel()
        if ending.interrupted or (self.once and not self.sessions):
            raise KeyboardInterrupt
        self.reporter.result({**self.last, "sessions": self.sessions})
        return self.exit_code

    @property
    def recording_failures(self) -> list[str]:
        """What could not be recorded, in words."""
        return self._recording.failures

    async def _check_holder(self, host: PeerListHost) -> None:
        """Say now what a peer would be told later, unless the records know of the guest that is there."""
        try:
            state = await self._holder_state()
        except GuestError as error:
            raise holder_missing(error, self.holder, "--destination, or add --spawn-holder here") from error
        if state not in ROOM and not any([session async for session in arrived(host.shelf)]):
            raise ConfigError(f"the holder at {self.holder} has a guest already: it is {state}")

    async def _holder_state(self) -> str:
        async with await connect_holder(self.holder, role="observer") as connection:
            holder = connection.attached
            # What the holder's guests cannot do is not selected: then the source is told in time [NEG-10].
            can = self.options.post_copy and holder.post_copy
            self.options = replace(self.options, post_copy=can)
            return holder.state

    def _security(self) -> tuple[TlsConfig | None, PeerList | None]:
        peers = self.security.peer_list()
        if peers is None and self.security.pki is not None and not self.security.insecure:
            raise ConfigError(
                "--pki needs --peers FILE: which hosts may send which guests here (see `sterna serve --help`)"
            )
        tls = self.security.tls(_anybody if peers is None else peers.check_peer)
        if tls is None:
            self.reporter.notice(INSECURE)
        return tls, peers

    async def _listen(self, ending: Ending, tls: TlsConfig | None, host: PeerListHost) -> None:
        await self._check_holder(host)
        if self.evidence is not None:
            path = self.evidence.path(DESTINATION_IMAGE)
            self.reporter.notice(f"{path} {WARNING}; copying it lengthens the blackout a little")
        ending.ask = self._stop
        with self._scope:
            async with trio.open_nursery() as nursery:
                self._taking_up = TakingUp(host, self.holder, self.reporter, nursery)
                host.settle = self._taking_up.settle
                accept = partial(
                    accept_peers,
                    self.address,
                    partial(self._serve, host),
                    tls=tls,
                    farewell=None if tls is None else refusal,
                    on_failure=self._refused,
                )
                addresses = [str(address) for address in await nursery.start(accept)]
                self.reporter.emit({"event": "listening", "addresses": addresses, "tls": tls is not None})
                self.reporter.say(f"listening on {', '.join(addresses)} as {host.name}")
                nursery.start_soon(check_store, host.store, self.reporter)
                await self._taking_up.all()

    def _refused(self, peer: str, error: SternaError) -> None:
        self.reporter.emit({**error_fields(error), "event": "refused", "peer": peer})
        self.reporter.say(f"{peer}: {error}")

    async def _serve(self, host: PeerListHost, transport: Transport) -> None:
        """One connection."""
        self.connections += 1
        transport = self._recording.wrap(transport)
        reporter = self.reporter.of_connection(self.connections)
        reporter.emit({"event": "connected", **connection_fields(transport)})
        async with host.session(transport.peer) as session:
            arrival = _Arrival(self, session, reporter)
            options = replace(self.options, on_event=reporter.on_event)
            destination = Destination(
                arrival.make_guest, transport, host=session, options=options, sessions=self._kept
            )
            session.cancel = destination.cancel
            self._running.add(destination)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(tell_progress, reporter, lambda: destination.passed)
                    result = await destination.run()
                    nursery.cancel_scope.cancel()
                # Still running: who asks for the end now shall not lose the evidence and the last result.
                fields = await arrival.conclude(transport, result)
            finally:
                self._running.discard(destination)
        if not destination.took_up:  # else the connection that opened the session tells what became of it
            reporter.emit({"event": "session", **fields})
            self.reporter.say(sentence(result, transport))
            for warned in warnings_of(result):
                self.reporter.notice(warned.text)
            if result.outcome is Outcome.UNDECIDED:
                result, fields = await self._take_up(session.guest, result, fields)
            elif result.outcome is Outcome.ANSWERED:
                self._taking_up.soon(session.guest)  # what was handed back is not needed any more
        if session.admitted:
            self.sessions += 1
            self.last = fields
            self.exit_code = (
                exit_of_outcome(result.outcome, result.code, by_peer=result.by_peer) if self.once else Exit.OK
            )
        if (self.once and session.admitted) or (self._stopping and not self._running):
            self._scope.cancel()

    async def _take_up(self, guest: bytes, result: Result, fields: Fields) -> tuple[Result, Fields]:
        """What was left undecided, decided if that is possible now."""
        recovered = await self._taking_up.now(guest)
        if recovered is None:
            return result, fields
        result = decided(result, recovered)
        told = {"outcome": str(result.outcome), "epoch": result.epoch, "runs": recovered.runs_here}
        return result, {**fields, **told, "recovered": recovered_fields(recovered)}

    def _stop(self, why: str) -> None:
        self._stopping = True
        if not self._running:
            self._scope.cancel()
        for destination in self._running:
            try:
                destination.cancel(why)
            except LocalProtocolError:
                self.reporter.notice(TOO_LATE)


class _Arrival:
    """The guest of one session, if there comes one."""

    def __init__(self, job: _Job, session: HostSession, reporter: ConnectionReporter) -> None:
        self._job = job
        self._session = session
        self._reporter = reporter
        self._guest: ArrivingGuest | None = None
        self._description: GuestDescription | None = None

    def make_guest(self, description: GuestDescription) -> DestinationGuest:
        """Room for it, in the holder."""
        memory_bytes = sum(region.size_bytes for region in description.regions)
        self._description = description
        self._reporter.emit(
            {
                "event": "migration",
                "guest": {"id": description.id.hex(), "name": description.name},
                "memory_bytes": memory_bytes,
                "page_bytes": 1 << description.regions[0].granule_log2,
            }
        )
        self._job.reporter.say(
            f"{description.name!r} ({size_text(memory_bytes)}) comes from {self._session.peer}"
        )
        admission = self._session.admission
        assert admission is not None
        # What comes is this session's image, wherever it is found later [ONE-52].
        self._guest = ArrivingGuest(
            self._job.holder,
            self._session.authorise,
            self._job.evidence,
            image=admission.session,
            keeps=self._job._taking_up.keeps,
        )
        return self._guest

    async def conclude(self, transport: Transport, result: Result) -> Fields:
        """Let go of the holder; what became of the session."""
        status = None
        if self._guest is not None:
            status = await self._guest.status()
            await self._guest.leave()
        about, evidence = self._description, self._job.evidence
        return {
            "role": "destination",
            "guest": None if about is None else {"id": about.id.hex(), "name": about.name},
            **connection_fields(transport),
            **result_fields(result),
            "runs": result.outcome in {Outcome.COMPLETED, Outcome.MOVED, Outcome.STRANDED},
            "holder": None if status is None else holder_fields(status),
            "evidence_failures": [] if evidence is None else evidence.failures,
            "recording_failures": self._job.recording_failures,
        }


def _anybody(_identity: str, _fingerprint: bytes) -> None:
    """Never asked: without a peer list there is no TLS."""


TOO_LATE: Final = (
    "too late to cancel: the guest may run here, wait for the end. Who ends this command all the same runs "
    "it again: the guest may wait for pages, or have to be started"
)


async def check_store(store: LeaseStore | None, reporter: Reporter) -> None:
    """Say now what every peer would be told. It may answer later: nothing ends, and nothing is waited for."""
    try:
        if store is not None:
            await store.newest(NO_ID)
    except StoreError as error:
        reporter.notice(f"--store: {error}. No guest is let in before it answers")


def _missing(result: Result) -> str:
    after = result.after
    return count_text(0 if after is None else after.stale - after.demanded - after.pushed, "page")


def sentence(result: Result, transport: Transport) -> str:
    """How a session ended, for people."""
    why = "" if result.error is None else f": {result.error}"
    match result.outcome:
        case Outcome.MOVED if result.code is ErrorCode.MEMORY_MISMATCH:
            return (
                f"the guest runs here, and its memory is not what {transport.peer} has sent, by the "
                f"digest of its pause{unverified_text(result)}{why}. Its image is kept there [ONE-40]"
            )
        case Outcome.COMPLETED | Outcome.MOVED:
            stood = (
                ""
                if result.blackout_s is None
                else f", {duration_text(result.blackout_s)} after this side was ready"
            )
            came = f"{size_text(result.bytes_received)} from {transport.peer}"
            end = f"{followed_text(result)}{resumed_text(result)}{unverified_text(result)}"
            return f"the guest runs here{stood}: {came}{end}"
        case Outcome.STRANDED if result.code is ErrorCode.GUEST_LOST:
            return (
                f"guest_lost: the guest runs here and lacks {_missing(result)}, gone at {transport.peer}"
                f"{unverified_text(result)}{why} [ONE-42]"
            )
        case Outcome.STRANDED:
            return (
                "the guest runs here, and waits for pages that are still at the source"
                f"{unverified_text(result)}{why}. It lacks {_missing(result)}: keep the source's image. If "
                "that is gone the guest is lost: sterna verdict tells, at the source"
            )
        case Outcome.UNDECIDED:
            return (
                f"permission to run the guest has come, but it does not run here{why}. It stays paused at "
                "the source, until that has asked (sterna verdict tells more)"
            )
        case Outcome.ANSWERED:
            owner = "nobody knows who" if result.verdict is None else result.verdict.owner.name.lower()
            return f"{transport.peer} has asked who owns a guest: {owner}"
        case _:
            return f"the guest has not come{why}"

"""The destination's machine: take pages into their place, verify, load, and run only when permitted.

Page bytes go from the connection straight into the guest's memory, which nobody runs yet; a page counts as
held only after its hash was verified there. Nothing is acknowledged that was not verified, nothing is run
before CLAIMING is recorded, the epoch claimed and START recorded [ONE-25] [ONE-28]. Once HANDOVER has
arrived, the loss of the connection changes nothing any more: the permission stands [ONE-30].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from sterna.core.carry import Ticket
from sterna.core.conduct import check_epoch, wrong
from sterna.core.events import (
    Admission,
    Admit,
    AnswerVerdict,
    Claim,
    Discard,
    Expect,
    Installed,
    Join,
    LoadState,
    Outcome,
    Persist,
    Prepare,
    ProbeStore,
    Readmit,
    Request,
    Reserve,
    RoundFinished,
    RoundStarted,
    RunGuest,
    SessionOpened,
    TakeStorage,
)
from sterna.core.following import Following, Sealed
from sterna.core.holdings import Holdings
from sterna.core.lanes import Lane
from sterna.core.negotiate import (
    Selection,
    check_first_epoch,
    check_granules,
    check_version,
    choices,
    select,
)  # fmt: skip
from sterna.core.permitted import Permitted
from sterna.core.records import Released, SessionRecord, Side, Start
from sterna.core.refusing import DestinationConfig
from sterna.core.rounds import IncomingRound
from sterna.core.seal import check_seal
from sterna.core.style import selected_styles
from sterna.core.tables import DestinationInput, DestinationState
from sterna.errors import RemoteProtocolError, SternaError
from sterna.memory.digest import MemoryDigest
from sterna.memory.pages import PageSink
from sterna.memory.regions import RegionTable
from sterna.registry import ERRORS, ErrorCode, Feature, FrameType, Mode, Phase, Style
from sterna.wire import Header, PagesAnnounced, PagesReceived, share_pages
from sterna.wire.records import (
    Accept,
    Attach,
    DirtyBitmap,
    Guest,
    Handover,
    Hello,
    Loaded,
    NotReady,
    Pages,
    Progress,
    Ready,
    Record,
    Release,
    Round,
    RoundEnd,
    Seal,
    State,
    Switchover,
    Verdict,
    Welcome,
)

__all__ = ["DestinationConfig", "DestinationMachine"]


class DestinationMachine(Permitted):
    """Takes a guest in. See sterna.core.session for the way to drive it, sterna.core.events for requests."""

    def __init__(self, config: DestinationConfig, now: float) -> None:
        super().__init__(config, now)
        self._selected: Selection | None = None

    def _session_record(self) -> SessionRecord:
        assert self._admission is not None
        assert self._selection is not None
        store, token = self._selection.has(Feature.LEASE_STORE), self._admission.token
        return SessionRecord(self._session, self._epoch, Side.DESTINATION, token, "", store=store)

    # ---- frames ----

    def _frame(self, header: Header, record: Record, now: float) -> None:
        """Each frame is checked in the state in which it came; only then does it change the state."""
        if isinstance(record, Round) and self._begins_attempt(record):
            self._on_new_attempt(record, now)
            return
        if self._is_of_old_attempt(record):
            return
        self._require(FrameType(header.type))
        match record:
            case Hello():
                self._on_hello(record, now)
            case Guest():
                self._on_guest(record, now)
            case Round():
                self._on_round(record, now)
            case RoundEnd():
                self._end_round(record, now)
            case Switchover():
                self._on_switchover(record, now)
            case DirtyBitmap():
                self._digest.mark_sets_stale(self._follows.declare(record, self._states))
                self._step(FrameType.DIRTY_BITMAP, now)
            case State():
                self._on_state(record, now)
            case Seal():
                self._on_seal(record, now)
            case Handover():
                self._on_handover(record, now)
            case Release():
                check_epoch(record, self._epoch + 1, "CMP-4")
                self._step(FrameType.RELEASE, now)
                self._ask(Persist(Released(self._session)))
            case Attach():
                self._on_attach(record, now)
            case _:  # BYE, the only other frame that the table lets through
                self._step(FrameType.BYE, now)
                self._bye()
                self._finish(Outcome.COMPLETED, now, epoch=self._epoch + 1, digest=self._sealed)

    def _on_hello(self, record: Hello, now: float) -> None:
        self._hello = record
        if record.mode is Mode.VERDICT:
            self._on_question(record, now)
            return
        if record.mode is Mode.RESUME and Feature.RESUME in self._job.features:
            self._step(DestinationInput.HELLO_RESUME, now)
            self._ask(Readmit(record))
            return
        try:
            most = self._config.limits.data_streams
            self._selected = select(record, self._job.features, data_streams=most)
            check_first_epoch(record, self._selected)
        except RemoteProtocolError as error:
            self._refuse(error, now)
            return
        self._step(FrameType.HELLO, now)
        self._ask(Admit(record))

    def _on_question(self, record: Hello, now: float) -> None:
        """Who owns the guest? Records and store know, whatever became of the session [ONE-15]."""
        try:
            check_version(record)
        except RemoteProtocolError as error:
            self._refuse(error, now)
            return
        self._step(DestinationInput.HELLO_VERDICT, now)
        self._ask(AnswerVerdict(record))

    def _on_guest(self, record: Guest, now: float) -> None:
        try:
            check_granules(record, self._config.limits)
        except RemoteProtocolError as error:
            self._refuse(error, now)
            return
        self._guest = record
        self._described(record.regions)
        self._regions = RegionTable(record.regions)
        self._step(FrameType.GUEST, now)
        self._ask(Reserve(record))

    def _on_round(self, record: Round, now: float) -> None:
        if record.round != self._round.number + 1:
            detail = f"round {record.round} after {self._round.number}"
            raise wrong(ErrorCode.BAD_ROUND, detail, "CON-20", record)
        self._step(FrameType.ROUND, now)
        self._open_round(record, now)

    def _open_round(self, record: Round, now: float) -> None:
        last = self._state is DestinationState.BLACKOUT
        self._round = IncomingRound(record.round, self._regions, now, last=last)
        self._holdings.begin(record.round)
        self._emit(RoundStarted(record.round, record.pages, last))

    def _pages_announced(self, event: PagesAnnounced, lane: Lane) -> Sequence[memoryview] | None:
        table = event.record
        if self._is_of_old_attempt(table):
            return None
        self._require(FrameType.PAGES)
        if self.phase is Phase.AFTER:
            targets = self._follows.expected(table).announce(table, lane.stream)
            return targets if table.bulk_bytes else None
        if self._streams and not lane.stream:
            detail = f"PAGES on the control connection of a session with {self._streams} others"
            raise wrong(ErrorCode.UNEXPECTED_FRAME, detail, "STR-1", table)
        self._round.announce(table, lane.stream)
        self._check_alone(table, lane)
        assert self._sink is not None
        # From here on these pages are neither of the old version nor of the new one.
        self._digest.mark_stale(table.region, table.runs["first"], table.runs["count"])
        self._holdings.announce(table)
        return self._sink.targets(table) if table.bulk_bytes else None

    def _check_alone(self, table: Pages, lane: Lane) -> None:
        """What is verified must stay as it is: nothing else may be on its way to the same place.

        Raises:
            RemoteProtocolError: UNEXPECTED_FRAME, it is on another connection.
        """
        for other in self._lanes.data:
            coming = None if other is lane else other.reader.coming
            if coming is not None and share_pages(coming[0], table):
                detail = f"pages that are coming in on connection {other.stream}, too"
                raise wrong(ErrorCode.UNEXPECTED_FRAME, detail, "STR-18", table)

    def _pages_coming(self, table: Pages, size_bytes: int) -> None:
        if self.phase is not Phase.AFTER and self._digest.hashed:
            assert self._sink is not None
            self._sink.came(table, size_bytes)

    def _pages_received(self, event: PagesReceived, lane: Lane, now: float) -> None:
        table = event.record
        if self._is_of_old_attempt(table):
            return
        self._step(FrameType.PAGES, now)
        if self.phase is Phase.AFTER:
            self._bulk_bytes += table.bulk_bytes
            self._followed(self._follows.expected(table), lane, now)
            return
        assert self._sink is not None
        rejected = self._sink.commit(table, hashed=self._digest.hashed)
        self._digest.record(table, rejected)
        self._holdings.take(table, rejected)
        self._bulk_bytes += table.bulk_bytes
        self._round.take(table, rejected, event.header.sequence, lane.stream)
        self._pages_have_come(now)

    def _on_round_end(self, record: RoundEnd, now: float) -> None:
        self._round.check_end(record)
        assert self._selection is not None
        rejected = self._round.rejected(self._selection.limits, record)
        self._step(FrameType.ROUND_END, now)
        self._holdings.end()
        stats = self._round.stats(now)
        self._account.round_over(stats)
        self._emit(RoundFinished(stats))
        if not self._round.last:
            self._send(self._round.acknowledgement(self._attempt, stats, rejected))
            if stats.round == 1:  # the first record of a guest takes the longest, and the guest writes on
                self._ask(Persist(self._session_record(), early=True))
                self._account.forgettable = True

    def _on_switchover(self, record: Switchover, now: float) -> None:
        assert self._selection is not None
        self._follows.switch(record, selected_styles(self._selection), self._round.number)
        self._step(FrameType.SWITCHOVER, now)
        self._account.style = record.style
        self._account.forgettable = False
        # Before the pause, and not in the blackout: whoever asks later must find the session [ONE-56].
        self._ask(Persist(self._session_record()))

    def _on_state(self, record: State, now: float) -> None:
        """Every page of the round is there: what SEAL will ask for is begun while the source makes it."""
        self._states.add(record)
        self._step(FrameType.STATE, now)
        expect = self._follows.begin_state(self._digest, self._attempt, self._round.number)
        if expect is not None:
            self._ask(expect)
        elif self._follows.style is Style.STOP_AND_COPY:
            self._digest.value()

    def _on_seal(self, record: Seal, now: float) -> None:
        follows, stale = self._follows, self._follows.stale.count()
        self._sealed = check_seal(record, self._round, self._states, self._digest, stale)
        self._step(FrameType.SEAL, now)
        assert self._selection is not None
        assert self._sink is not None
        image, most = Sealed(self._attempt, self._round.number, self._sealed), self._selection.limits
        if (expect := follows.seal(self._sink, self._digest, image, most.page_requests)) is not None:
            self._ask(expect)
        self._ask(LoadState(self._states.sections))

    # ---- completions ----

    def _completed(self, request: Request, answer: object, now: float) -> None:
        if isinstance(request, Discard):
            self._step(DestinationInput.DISCARDED, now)
            # With no word of HANDOVER here, this side knows that it never ran; the source decides.
            self._finish(Outcome.ROLLED_BACK, now, epoch=self._epoch)
            return
        if self._state in {DestinationState.SUSPENDING, DestinationState.PARTING}:
            self._while_suspending(request, answer, now)
            return
        if (self._is_deaf and not self._goes_on) or self._is_void(request):
            return
        match request:
            case Admit():
                self._on_admitted(answer, now)
            case Readmit():
                self._on_readmitted(answer, now)
            case Reserve():
                self._on_reserved(answer, now)
            case Prepare():
                if isinstance(answer, memoryview):
                    self._follows.keep(answer, self._digest)
                self._step(DestinationInput.PREPARED, now)
                self._account.guest_stops(now)
                self._send(Ready(self._attempt))
            case LoadState():
                self._step(DestinationInput.STATE_LOADED, now)
                self._send(Loaded(self._attempt, self._sealed))
            case ProbeStore():
                self._ask(self._follows.prepare(self._holdings.last, self._digest))
            case Persist(record=SessionRecord()):
                self._on_session_recorded()
            case Persist():
                self._on_recorded(request.record, now)
            case Claim():
                self._on_claimed(request, answer, now)
            case AnswerVerdict():
                self._on_answered(answer, now)
            case TakeStorage():
                self._ask(Persist(Start(self._epoch + 1)))
            case Expect():
                pass  # LOADED follows when the state is loaded, too
            case Join():
                self._on_joined(now)
            case Installed():
                self._on_installed(request, now)
            case _:
                assert isinstance(request, RunGuest)
                self._on_started(request, now)

    def _request_failed(self, request: Request, error: SternaError, now: float) -> None:
        if isinstance(request, Discard):
            self._completed(request, None, now)  # what could not be freed does not run either
        elif self._goes_on:
            self._commit_failed(error, now)
        elif self._state is DestinationState.SUSPENDING:
            self._while_suspending(request, None, now)
        elif self._state is DestinationState.PARTING:  # the guest stands before pages that have come
            self._account.error = error
            self._step(DestinationInput.LOST, now)
            self._after_loss(now)
        elif self._is_deaf or self._is_void(request) or self._state is DestinationState.RELEASED:
            return  # RELEASED that is not recorded makes the session be kept a while longer
        elif isinstance(request, Readmit):
            self._do_not_readmit(error, now)
        elif self._state is DestinationState.PREPARING:
            self._step(DestinationInput.UNPREPARED, now)
            self._send(NotReady(self._attempt, error.code, ERRORS[error.code].text))
            self._attempt += 1
        elif isinstance(request, Join):
            self._fail(error, now)
        elif isinstance(request, (Admit, AnswerVerdict, Reserve)):
            self._refuse(error, now)
        else:
            self._fail(error, now)

    def _on_admitted(self, answer: object, now: float) -> None:
        if isinstance(answer, Verdict):  # it was handed over here, and nobody opens that epoch again [ONE-14]
            self._on_answered(answer, now)
            return
        assert isinstance(answer, Admission)
        selection, hello = self._selected, self._hello
        assert selection is not None
        assert hello is not None
        self._admission = answer
        self._account.session = answer.session
        welcome = Welcome(
            selection.version,
            answer.session,
            answer.token,
            choices(selection),
            self._config.limits.to_wire(),
            self._config.agent,
        )
        self._send(welcome)
        self._step(DestinationInput.ADMITTED, now)
        self._welcomed(selection, now)
        self._ticket = Ticket(hello, welcome, selection)
        self._emit(SessionOpened(answer.session, hello.agent, selection.version, selection.features))

    def _on_reserved(self, answer: object, now: float) -> None:
        assert self._guest is not None
        self._sink = cast("PageSink", answer)
        assert self._selection is not None
        self._digest = MemoryDigest(self._regions, hashed=self._selection.hashed)
        self._holdings = Holdings(self._regions)
        self._follows = Following(self._regions)
        self._expect_state()
        self._step(DestinationInput.RESERVED, now)
        assert self._ticket is not None
        streams = self._selection.features.get(Feature.DATA_STREAMS, 0)
        self._ticket = self._ticket.with_streams(streams)
        self._send(Accept(sum(region.size_bytes for region in self._guest.regions), streams))

    def _on_answered(self, answer: object, now: float) -> None:
        assert isinstance(answer, Verdict)
        self._send(answer)
        self._step(DestinationInput.ANSWERED, now)
        self._over = True
        self._account.verdict = answer
        self._finish(Outcome.ANSWERED, now, epoch=self._epoch)

    def _on_session_recorded(self) -> None:
        """Whoever asks later finds the session: the guest may stop, if the store agrees [ONE-16]."""
        has_store = self._selection is not None and self._selection.has(Feature.LEASE_STORE)
        hello = self._hello
        assert hello is not None
        ready = self._follows.prepare(self._holdings.last, self._digest)
        self._ask(ProbeStore(hello.epoch, hello.runner) if has_store else ready)

    def _after_loss(self, now: float) -> None:
        if self._state is DestinationState.PARTING:  # the entries stay where they outlive this [PCY-16]
            self._rest(now)
            return
        if self._goes_on:  # permission was given: claiming and starting go on, and the entries stay, too
            return
        self._digest.move_home()  # the place may be freed next
        match self._state:
            case DestinationState.DISCARDING:
                self._requests.withdraw()
                if self._account.forgettable:  # else another peer would be kept out [ONE-12] [ONE-56]
                    self._ask(Persist(Released(self._session), early=True))
                self._ask(Discard())
            case DestinationState.ENDED:  # a data connection that no session takes
                self._requests.withdraw()
                self._finish(Outcome.ROLLED_BACK, now, epoch=self._epoch)
            case DestinationState.UNANSWERED:
                self._requests.withdraw()
                self._finish(Outcome.UNDECIDED, now, epoch=self._epoch)
            case DestinationState.SUSPENDING:
                self._requests.withdraw()
                self._rest(now)
            case DestinationState.SETTLED:
                self._finish(Outcome.MOVED, now, epoch=self._epoch + 1, digest=self._sealed)
            case DestinationState.STRANDED:
                assert self._follows.fetching is not None
                self._account.after = self._follows.fetching.stats()
                self._finish(Outcome.STRANDED, now, epoch=self._epoch + 1, digest=self._sealed)
            case _:
                assert self._state is DestinationState.CLOSED
                self._finish(Outcome.COMPLETED, now, epoch=self._epoch + 1, digest=self._sealed)

    # ---- for people ----

    def _progress(self) -> Progress | None:
        if self._sink is None:
            return None
        total, stale = self._regions.pages, self._digest.stale_pages
        return Progress(self.phase, self._round.number, total, stale, self._bulk_bytes, 0, 0, 0)

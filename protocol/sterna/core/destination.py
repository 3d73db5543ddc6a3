"""The destination's machine: take pages into their place, verify, load, and run only when permitted.

Page bytes go from the connection straight into the guest's memory, which nobody runs yet; a page counts as
held only after its hash was verified there. Nothing is acknowledged that was not verified, nothing is run
before CLAIMING is recorded, the epoch claimed and START recorded [ONE-25] [ONE-28]. Once HANDOVER has
arrived, the loss of the connection changes nothing any more: the permission stands [ONE-30].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sterna import limits as bounds
from sterna.core.events import (
    Admission,
    Admit,
    Claim,
    Discard,
    LoadState,
    Outcome,
    Persist,
    Prepare,
    RecordKind,
    Request,
    Reserve,
    RoundFinished,
    RoundStarted,
    RunGuest,
    SessionOpened,
)
from sterna.core.negotiate import Selection, check_room, choices, select
from sterna.core.policy import RoundStats
from sterna.core.session import Config, Session
from sterna.core.state import StateAssembler
from sterna.core.tables import DESTINATION, DestinationInput, DestinationState
from sterna.errors import LocalProtocolError, ProtocolError, RemoteProtocolError, SternaError, remote_error
from sterna.memory.digest import MemoryDigest
from sterna.memory.pages import PageSink
from sterna.memory.regions import PageSets, RegionTable
from sterna.registry import ERRORS, ErrorCode, FrameType, Mode, Phase, Sender, Style
from sterna.wire import Header, PagesAnnounced, PagesReceived
from sterna.wire.records import (
    Accept,
    Complete,
    Guest,
    Handover,
    Hello,
    Loaded,
    NotReady,
    PageRange,
    Progress,
    Ready,
    Record,
    Refuse,
    Release,
    Round,
    RoundAck,
    RoundEnd,
    Running,
    Seal,
    State,
    Switchover,
    Welcome,
)

_U64_MAX: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationConfig(Config):
    """A migration as its destination sees it; who may come is the host's answer to `Admit`."""

    retry_after_ms: int = 5000  # what a full host tells its peer


class DestinationMachine(Session):
    """Takes a guest in. See sterna.core.session for the way to drive it, sterna.core.events for requests."""

    def __init__(self, config: DestinationConfig, now: float) -> None:
        super().__init__(
            config,
            now,
            role=Sender.DESTINATION,
            table=DESTINATION,
            idle=DestinationState.IDLE,
            lost=DestinationInput.LOST,
        )
        self._job = config
        self._hello: Hello | None = None
        self._selected: Selection | None = None
        self._admission: Admission | None = None
        self._guest: Guest | None = None
        self._sink: PageSink | None = None
        self._regions = RegionTable(())
        self._digest = MemoryDigest(self._regions)
        self._rejected = PageSets(self._regions)
        self._states = StateAssembler(0, 0)
        self._round = 0
        self._round_pages = 0
        self._round_bytes = 0
        self._round_started = now
        self._last_pages_sequence: int | None = None
        self._sealed = b""

    @property
    def _lost_changes_nothing(self) -> bool:
        return self._state in {
            DestinationState.RECORDING,
            DestinationState.CLAIMING,
            DestinationState.COMMITTING,
            DestinationState.STARTING,
            DestinationState.RUNNING,
            DestinationState.RELEASED,
            DestinationState.CLOSED,
            DestinationState.SETTLED,
            DestinationState.UNDECIDED,
        }

    @property
    def digest(self) -> bytes:
        """Memory digest of the pause image; empty before SEAL."""
        return self._sealed

    @property
    def _epoch(self) -> int:
        return 0 if self._hello is None else self._hello.epoch

    # ---- frames ----

    def _frame(self, header: Header, record: Record, now: float) -> None:
        if isinstance(record, Hello) and record.mode is not Mode.OPEN:
            resumes = record.mode is Mode.RESUME
            self._step(DestinationInput.HELLO_RESUME if resumes else DestinationInput.HELLO_VERDICT, now)
        if isinstance(record, Round) and record.attempt == self._attempt + 1 and self._can_void:
            self._step(DestinationInput.NEW_ATTEMPT, now)
        if self._is_of_old_attempt(record):
            return
        self._step(FrameType(header.type), now)
        match record:
            case Hello():
                self._on_hello(record, now)
            case Guest():
                self._on_guest(record, now)
            case Round():
                self._on_round(record, now)
            case RoundEnd():
                self._on_round_end(record, now)
            case Switchover():
                self._on_switchover(record)
            case State():
                self._states.add(record)
            case Seal():
                self._on_seal(record)
            case Handover():
                self._on_handover(record)
            case Release():
                self._check_epoch(record.epoch, self._epoch + 1, "CMP-4", record)
            case _:  # BYE, the only other frame that the table lets through
                self._bye()
                self._finish(Outcome.COMPLETED, now, epoch=self._epoch + 1, digest=self._sealed)

    def _on_hello(self, record: Hello, now: float) -> None:
        self._hello = record
        self._selected = select(record)
        self._ask(Admit(record))

    def _on_guest(self, record: Guest, now: float) -> None:
        self._guest = record
        check_room(record, self._config.limits)
        self._described(record.regions)
        self._regions = RegionTable(record.regions)
        self._ask(Reserve(record))

    def _on_round(self, record: Round, now: float) -> None:
        if record.round != self._round + 1:
            detail = f"round {record.round} after {self._round}"
            raise self._wrong(ErrorCode.BAD_ROUND, detail, "CON-20", record)
        self._round = record.round
        self._round_pages = self._round_bytes = 0
        self._round_started = now
        self._last_pages_sequence = None
        self._rejected = PageSets(self._regions)
        self._emit(RoundStarted(record.round, record.pages, self._state is DestinationState.BLACKOUT))

    def _pages_announced(self, event: PagesAnnounced) -> Sequence[memoryview] | None:
        table = event.record
        if self._state not in {DestinationState.RECEIVING, DestinationState.BLACKOUT}:
            raise self._unexpected(FrameType.PAGES)
        if self._is_of_old_attempt(table):
            return None
        if table.round != self._round:
            detail = f"pages of round {table.round} in round {self._round}"
            raise self._wrong(ErrorCode.BAD_ROUND, detail, "CON-21", table)
        assert self._sink is not None
        return self._sink.targets(table) if table.bulk_bytes else None

    def _pages_received(self, event: PagesReceived, now: float) -> None:
        table = event.record
        if self._is_of_old_attempt(table):
            return
        self._step(FrameType.PAGES, now)
        assert self._sink is not None
        rejected = self._sink.commit(table)
        self._digest.record(table, rejected)
        self._round_pages += table.page_count
        self._round_bytes += table.bulk_bytes
        self._last_pages_sequence = event.header.sequence
        if self._round_pages > self._regions.pages:
            detail = f"{self._round_pages} pages in a round, the guest has {self._regions.pages}"
            raise self._wrong(ErrorCode.COUNT_MISMATCH, detail, "CON-27", table)
        if rejected and self._state is DestinationState.BLACKOUT:
            detail = f"{sum(pages.count for pages in rejected)} pages differ from their hash"
            raise self._wrong(ErrorCode.PAGE_HASH, detail, "CON-47", table)
        if self._rejected.any():
            self._rejected[table.region].clear_runs(table.runs["first"], table.runs["count"])
        self._rejected.add_ranges(rejected)

    def _on_round_end(self, record: RoundEnd, now: float) -> None:
        if record.round != self._round:
            detail = f"end of round {record.round} in round {self._round}"
            raise self._wrong(ErrorCode.BAD_ROUND, detail, "CON-21", record)
        if (record.pages, record.bulk_bytes) != (self._round_pages, self._round_bytes):
            detail = (
                f"{record.pages} pages and {record.bulk_bytes} bytes stated, "
                f"{self._round_pages} and {self._round_bytes} arrived"
            )
            raise self._wrong(ErrorCode.COUNT_MISMATCH, detail, "RND-3", record)
        self._check_sequences(record.last_sequences, record)
        seconds = now - self._round_started
        rate_bytes_s = min(int(self._round_bytes / seconds), _U64_MAX) if seconds > 0 else 0
        count = self._rejected.count()
        stats = RoundStats(
            round=self._round,
            pages=self._round_pages,
            bulk_bytes=self._round_bytes,
            seconds=seconds,
            dirty_pages=0,
            dirty_bytes=0,
            rejected_pages=count,
            receive_rate_bytes_s=rate_bytes_s,
            throttle=0.0,
        )
        self._rounds.append(stats)
        self._emit(RoundFinished(stats))
        if self._state is DestinationState.STANDBY:  # a round of the running guest, not the last one
            rejected = self._list_rejected(count, record)
            pages = self._round_pages - count
            self._send(RoundAck(self._attempt, self._round, pages, rate_bytes_s, rejected))

    def _list_rejected(self, count: int, record: Record) -> tuple[PageRange, ...]:
        assert self._selection is not None
        ranges = tuple(
            PageRange(region, int(start), int(length))
            for region, (starts, lengths) in self._rejected.runs()
            for start, length in zip(starts, lengths, strict=True)
        )
        allowed = max(bounds.REJECTED_FLOOR_PAGES, int(self._round_pages * bounds.REJECTED_SHARE_MAX))
        if count > allowed or len(ranges) > self._selection.limits.rejected_runs:
            detail = f"{count} pages in {len(ranges)} ranges"
            raise self._wrong(ErrorCode.TOO_MANY_REJECTED, detail, "RAK-5", record)
        return ranges

    def _on_switchover(self, record: Switchover) -> None:
        if record.style is not Style.STOP_AND_COPY:
            raise self._wrong(ErrorCode.NOT_SELECTED, f"style {record.style.name}", "SWI-1", record)
        self._ask(Prepare(record.style))

    def _on_seal(self, record: Seal) -> None:
        self._check_sequences(record.last_sequences, record)
        sections = self._states.sections
        if not self._states.is_whole or (record.state_sections, record.state_bytes) != (
            len(sections),
            self._states.bytes,
        ):
            detail = f"{record.state_sections} sections of {record.state_bytes} bytes stated"
            raise self._wrong(ErrorCode.COUNT_MISMATCH, detail, "SEA-3", record)
        digest = self._digest.value()
        if record.digest != digest or self._digest.stale_pages:
            detail = f"{self._digest.stale_pages} pages are missing, digest {digest.hex()}"
            raise self._wrong(ErrorCode.DIGEST_MISMATCH, detail, "MEM-15", record)
        self._sealed = digest
        self._ask(LoadState(sections))

    def _on_handover(self, record: Handover) -> None:
        self._check_epoch(record.epoch, self._epoch, "HND-1", record)
        assert self._admission is not None
        self._ask(Persist(RecordKind.CLAIMING, self._epoch + 1, self._admission.runner))

    # ---- completions ----

    def _completed(self, request: Request, answer: object, now: float) -> None:
        if isinstance(request, Discard):
            self._step(DestinationInput.DISCARDED, now)
            # With no word of HANDOVER here, this side knows that it never ran; the source decides.
            self._finish(Outcome.ROLLED_BACK, now, epoch=self._epoch)
            return
        if self._is_deaf and not self._goes_on:
            return
        match request:
            case Admit():
                self._on_admitted(answer, now)
            case Reserve():
                self._on_reserved(answer, now)
            case Prepare():
                self._step(DestinationInput.PREPARED, now)
                self._blackout_from = now
                self._send(Ready(self._attempt))
            case LoadState():
                self._step(DestinationInput.STATE_LOADED, now)
                self._send(Loaded(self._attempt, self._sealed))
            case Persist(kind=kind, epoch=epoch, runner=runner):
                self._step(DestinationInput.RECORDED, now)
                self._ask(Claim(epoch, runner) if kind is RecordKind.CLAIMING else RunGuest(epoch, runner))
            case Claim(epoch=epoch, runner=runner):
                self._on_claimed(request, answer, now)
            case RunGuest(epoch=epoch, runner=runner):
                self._on_started(request, now)
            case _:
                raise LocalProtocolError(ErrorCode.INTERNAL, f"{type(request).__name__} is the source's")

    def _request_failed(self, request: Request, error: SternaError, now: float) -> None:
        if isinstance(request, Discard):
            self._completed(request, None, now)  # what could not be freed does not run either
        elif self._goes_on:
            self._commit_failed(error, now)
        elif self._is_deaf:
            return
        elif isinstance(request, Prepare):
            self._step(DestinationInput.UNPREPARED, now)
            self._send(NotReady(self._attempt, error.code, ERRORS[error.code].text))
            self._attempt += 1
        else:
            self._fail(error, now)

    def _on_admitted(self, answer: object, now: float) -> None:
        if not isinstance(answer, Admission):
            raise LocalProtocolError(ErrorCode.INTERNAL, "Admit is answered with an Admission")
        selection = self._selected
        assert selection is not None
        self._admission = answer
        self._step(DestinationInput.ADMITTED, now)
        welcome = Welcome(
            selection.version,
            answer.session,
            answer.token,
            choices(selection),
            self._config.limits.to_wire(),
            self._config.agent,
        )
        self._send(welcome)
        self._welcomed(selection)
        assert self._hello is not None
        self._emit(SessionOpened(answer.session, self._hello.agent, selection.version, selection.features))

    def _on_reserved(self, answer: object, now: float) -> None:
        if not (hasattr(answer, "targets") and hasattr(answer, "commit")):
            raise LocalProtocolError(ErrorCode.INTERNAL, "Reserve is answered with a PageSink")
        assert self._guest is not None
        self._sink = answer
        self._digest = MemoryDigest(self._regions)
        self._rejected = PageSets(self._regions)
        limits = self._config.limits
        self._states = StateAssembler(min(limits.state_bytes, self._guest.state_bytes), limits.state_sections)
        self._step(DestinationInput.RESERVED, now)
        self._send(Accept(sum(region.size_bytes for region in self._guest.regions)))

    def _on_claimed(self, request: Claim, answer: object, now: float) -> None:
        if answer is not True:
            detail = f"epoch {request.epoch} belongs to somebody else"
            self._commit_failed(LocalProtocolError(ErrorCode.STALE_EPOCH, detail, clause="ONE-29"), now)
            return
        self._step(DestinationInput.CLAIM_WON, now)
        self._ask(Persist(RecordKind.START, request.epoch, request.runner))

    def _on_started(self, request: RunGuest, now: float) -> None:
        self._step(DestinationInput.STARTED, now)
        self._blackout_s = None if self._blackout_from is None else now - self._blackout_from
        if self._over:
            self._step(DestinationInput.LOST, now)
            self._after_loss(now)
            return
        self._send(Running(request.epoch, request.runner))
        self._send(Complete(request.epoch, self._sealed))

    def _commit_failed(self, error: SternaError, now: float) -> None:
        """Permission was given and cannot be used: whether the guest ran is for its holder to tell."""
        self._failure, self._failed_in = error, self.phase
        self._send(self._last_words(error))
        self._over = True
        self._step(DestinationInput.START_FAILED, now)
        self._finish(Outcome.UNDECIDED, now, epoch=self._epoch)

    def _after_loss(self, now: float) -> None:
        match self._state:
            case DestinationState.DISCARDING:
                self._ask(Discard())
            case DestinationState.SETTLED:
                self._finish(Outcome.MOVED, now, epoch=self._epoch + 1, digest=self._sealed)
            case DestinationState.CLOSED:
                self._finish(Outcome.COMPLETED, now, epoch=self._epoch + 1, digest=self._sealed)
            case _:
                pass  # permission was given: claiming and starting go on

    @property
    def _can_void(self) -> bool:
        return (self._state, DestinationInput.NEW_ATTEMPT) in DESTINATION

    @property
    def _goes_on(self) -> bool:
        return self.phase is Phase.COMMIT

    # ---- checks ----

    def _last_words(self, error: SternaError) -> Record:
        """REFUSE where the session, or the guest of GUEST, is not taken [CON-11]; ABORT otherwise."""
        refuses = self._state in {
            DestinationState.IDLE,
            DestinationState.ADMITTING,
            DestinationState.RESERVING,
        }
        of_guest = isinstance(error, ProtocolError) and error.frame == FrameType.GUEST
        if not (refuses or of_guest):
            return super()._last_words(error)
        retry_after_ms = self._job.retry_after_ms if error.code in {ErrorCode.FULL, ErrorCode.BUSY} else 0
        items = getattr(error, "items", ())[: bounds.REFUSE_ITEMS]
        return Refuse(error.code, retry_after_ms, items, ERRORS[error.code].text)

    def _check_epoch(self, epoch: int, expected: int, clause: str, record: Record) -> None:
        if epoch != expected:
            raise self._wrong(ErrorCode.BAD_EPOCH, f"epoch {epoch}, expected {expected}", clause, record)

    def _check_sequences(self, stated: tuple[tuple[int, int], ...], record: Record) -> None:
        """With one stream everything before this frame has been applied; the statement must say so too."""
        mine = () if self._last_pages_sequence is None else ((0, self._last_pages_sequence),)
        if stated != mine:
            detail = f"last sequences {stated} stated, {mine} arrived"
            raise self._wrong(ErrorCode.COUNT_MISMATCH, detail, "RND-4", record)

    def _wrong(self, code: ErrorCode, detail: str, clause: str, record: Record) -> RemoteProtocolError:
        return remote_error(code, detail, clause=clause, frame=record.type)

    def _progress(self) -> Progress | None:
        if not self._round:
            return None
        total = self._regions.pages
        stale = self._digest.stale_pages
        return Progress(self.phase, self._round, total, stale, self._bytes_received, 0, 0, 0)

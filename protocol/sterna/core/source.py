"""The source's machine: rounds while the guest runs, then pause, seal, hand over.

What it keeps of the memory are sets of pages: `pending` is what the destination does not have in its newest
version, `sending` the snapshot of it that a round works off. Pages are encoded when the connection asks for
more, not before, so a page that is written while it waits is sent once, in its newest version.

Until HANDOVER is queued every trouble ends in a roll-back and the guest runs on here; from then on nothing
that this side decides can make it run again [ONE-20].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sterna import limits as bounds
from sterna.core.events import (
    CollectDirty,
    Decided,
    MarkGranted,
    Outcome,
    Pause,
    Persist,
    RecordKind,
    ReleaseImage,
    Request,
    RollBack,
    RoundFinished,
    RoundStarted,
    SaveState,
    SessionOpened,
    StartTracking,
    Throttle,
)
from sterna.core.negotiate import VERSIONS, check_room, check_welcome, offer
from sterna.core.policy import Action, Decision, PolicySettings, RoundStats, decide
from sterna.core.session import Config, Session
from sterna.core.state import fragments
from sterna.core.tables import SOURCE, SourceInput, SourceState
from sterna.errors import GuestError, LocalProtocolError, PeerAborted, SternaError, remote_error
from sterna.memory.bitmap import Positions
from sterna.memory.digest import MemoryDigest
from sterna.memory.pages import PageSource
from sterna.memory.regions import PageSets, RegionTable
from sterna.registry import Checksum, ErrorCode, FrameType, Mode, Sender, Style
from sterna.wire import Header
from sterna.wire.records import (
    NO_ID,
    NO_RUNNER,
    Accept,
    Complete,
    FeatureOffer,
    Guest,
    Handover,
    Hello,
    Loaded,
    NotReady,
    Progress,
    Ready,
    Record,
    Refuse,
    Release,
    Round,
    RoundAck,
    RoundEnd,
    Runner,
    Running,
    Seal,
    StateSection,
    Switchover,
    Welcome,
)

# A destination that is not ready after so many tries will not be.
NOT_READY_MAX: Final = 3

# Bytes of a run table's row and of one hash, to keep a table below the peer's control limit.
_TABLE_HEAD, _ROW_BYTES = 24, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig(Config):
    """A migration as its source sees it. `guest_id` and `epoch` name the guest and its newest claim."""

    guest: Guest
    guest_id: bytes
    epoch: int = 0
    runner: Runner = NO_RUNNER
    policy: PolicySettings = field(default_factory=PolicySettings)
    batch_bytes: int = bounds.BATCH_BYTES
    features: tuple[FeatureOffer, ...] = field(default_factory=offer)


class SourceMachine(Session):
    """Sends a guest away. `pages` reads and encodes its memory.

    Commands: `start`, `cancel`. Requests: see sterna.core.events. Everything else: see sterna.core.session.
    """

    def __init__(self, config: SourceConfig, pages: PageSource, now: float) -> None:
        super().__init__(
            config, now, role=Sender.SOURCE, table=SOURCE, idle=SourceState.IDLE, lost=SourceInput.LOST
        )
        self._job = config
        self._pages = pages
        self._regions = RegionTable(config.guest.regions)
        self._digest = MemoryDigest(self._regions)
        self._pending = PageSets.full(self._regions)
        self._sending = PageSets(self._regions)
        self._batches: Iterator[tuple[int, Positions, Positions]] | None = None
        self._hello: Hello | None = None
        self._round = 0
        self._round_pages = 0
        self._round_bytes = 0
        self._round_started = now
        self._last_pages_sequence: int | None = None
        self._ack: RoundAck | None = None
        self._throttle = 0.0
        self._not_ready = 0
        self._last_round = False
        self._sections: Sequence[StateSection] | None = None
        self._sealed = b""
        self._granted: int | None = None
        self._decision: Decision | None = None

    @property
    def _lost_changes_nothing(self) -> bool:
        return self._state in {
            SourceState.HANDED_OVER,
            SourceState.MOVED,
            SourceState.RELEASING,
            SourceState.CLOSING,
            SourceState.CLOSED,
            SourceState.DEPARTED,
            SourceState.UNDECIDED,
        }

    @property
    def digest(self) -> bytes:
        """Memory digest of the pause image; empty before SEAL."""
        return self._sealed

    def start(self, now: float) -> None:
        """Open the session: preface and HELLO."""
        self._step(SourceInput.START, now)
        self._hello = Hello(
            Mode.OPEN,
            VERSIONS,
            self._job.features,
            self._config.limits.to_wire(),
            self._job.guest_id,
            self._job.epoch,
            self._job.runner,
            self._config.agent,
        )
        self._send(self._hello)

    # ---- frames ----

    def _frame(self, header: Header, record: Record, now: float) -> None:
        if isinstance(record, Refuse):
            self._check_allowed(FrameType.REFUSE)
            error = PeerAborted(record.code, record.text, record.retry_after_ms, record.items)
            self._fail(error, now, tell=False)
            return
        if self._is_of_old_attempt(record):
            return
        self._step(FrameType(header.type), now)
        match record:
            case Welcome():
                self._on_welcome(record, now)
            case Accept():
                self._on_accept(record)
            case RoundAck():
                self._on_round_ack(record)
            case Ready():
                self._blackout_from = now
                self._ask(Pause())
            case NotReady():
                self._on_not_ready(record, now)
            case Loaded():
                self._on_loaded(record)
            case Running():
                self._check_epoch(record.epoch, FrameType.RUNNING, "RUN-1")
                self._blackout_s = None if self._blackout_from is None else now - self._blackout_from
            case Complete():
                self._on_complete(record)
            case _:
                # BYE, the only other frame that the table lets through
                self._finish(Outcome.COMPLETED, now, epoch=self._job.epoch + 1, digest=self._sealed)

    def _on_welcome(self, record: Welcome, now: float) -> None:
        assert self._hello is not None
        if record.session == NO_ID or record.generation or record.complete_round or record.held_frames:
            raise remote_error(
                ErrorCode.BAD_VALUE, "a WELCOME of mode resume", clause="WEL-4", frame=FrameType.WELCOME
            )
        selection = check_welcome(self._hello, record)
        peer = selection.limits
        check_room(self._job.guest, peer)
        if peer.control_bytes < bounds.HANDSHAKE_BODY_BYTES or not peer.batch_runs:
            detail = "no session fits the peer's limits"
            raise LocalProtocolError(ErrorCode.LIMIT_MISMATCH, detail, clause="LIM-7")
        self._welcomed(selection)
        self._emit(SessionOpened(record.session, record.agent, record.version, selection.features))
        self._described(self._job.guest.regions)
        self._send(self._job.guest)
        self.ping(now)

    def _on_accept(self, record: Accept) -> None:
        if record.data_streams:
            raise self._wrong(ErrorCode.NOT_SELECTED, "data streams were not offered", "ACC-3", record)
        if record.reserved_bytes < self._regions.size_bytes:
            detail = f"{record.reserved_bytes} bytes reserved of {self._regions.size_bytes}"
            raise self._wrong(ErrorCode.BAD_VALUE, detail, "CON-17", record)
        self._ask(StartTracking())

    def _on_round_ack(self, record: RoundAck) -> None:
        if record.round != self._round:
            raise self._wrong(ErrorCode.BAD_ROUND, f"round {record.round} of {self._round}", "CON-30", record)
        count = sum(pages.count for pages in record.rejected)
        if record.pages + count != self._round_pages:
            detail = f"{record.pages} pages acknowledged, {count} rejected, {self._round_pages} sent"
            raise self._wrong(ErrorCode.COUNT_MISMATCH, detail, "CON-32", record)
        self._regions.check_ranges(record.rejected)
        rejected = PageSets(self._regions)
        rejected.add_ranges(record.rejected)
        stray = rejected.copy()
        stray -= self._sending
        if stray.any():
            raise self._wrong(ErrorCode.COUNT_MISMATCH, "rejects pages that were not sent", "CON-33", record)
        self._pending |= rejected
        self._digest.mark_sets_stale(rejected)
        self._ack = record
        self._ask(CollectDirty())

    def _on_not_ready(self, record: NotReady, now: float) -> None:
        self._attempt += 1
        self._not_ready += 1
        if self._not_ready >= NOT_READY_MAX:
            self._fail(PeerAborted(ErrorCode.NOT_READY, record.text), now)
            return
        self._ask(CollectDirty())

    def _on_loaded(self, record: Loaded) -> None:
        if record.digest != self._sealed:
            raise self._wrong(ErrorCode.DIGEST_MISMATCH, "LOADED names another digest", "CON-53", record)
        self._granted = self._job.epoch + 1
        self._ask(MarkGranted(self._granted))

    def _on_complete(self, record: Complete) -> None:
        self._check_epoch(record.epoch, FrameType.COMPLETE, "CMP-4")
        if record.digest != self._sealed:
            raise self._wrong(ErrorCode.MEMORY_MISMATCH, "COMPLETE names another digest", "CMP-1", record)
        self._ask(ReleaseImage())

    # ---- completions ----

    def _completed(self, request: Request, answer: object, now: float) -> None:
        if isinstance(request, RollBack):
            self._step(SourceInput.ROLLED_BACK, now)
            self._finish(Outcome.ROLLED_BACK, now, epoch=self._job.epoch)
            return
        if self._is_deaf and not isinstance(request, ReleaseImage):
            return  # overtaken by a failure; the roll-back follows
        match request:
            case StartTracking():
                self._step(SourceInput.TRACKING, now)
                self._choose(now)
            case CollectDirty():
                self._on_collected(answer, now)
            case Pause():
                self._step(SourceInput.PAUSED, now)
                self._ask(CollectDirty(last=True))
                self._ask(SaveState())
            case SaveState():
                self._sections = _sections(answer)
            case MarkGranted(epoch=epoch):
                self._step(SourceInput.GRANTED, now)
                self._ask(Persist(RecordKind.GRANTED, epoch, self._job.runner))
            case Persist():
                self._step(SourceInput.RECORDED, now)
                self._send(Handover(self._attempt, self._job.epoch))
            case ReleaseImage():
                self._on_released(now)
            case _:
                pass  # Throttle has taken effect

    def _request_failed(self, request: Request, error: SternaError, now: float) -> None:
        match request:
            case RollBack():
                self._step(SourceInput.ROLLED_BACK, now)
                self._failure = error
                self._finish(Outcome.GUEST_FAILED, now, epoch=self._job.epoch)
            case ReleaseImage():
                self._on_released(now)  # the guest lives there all the same; only memory here is not freed
            case _:
                self._fail(error, now)

    def _on_collected(self, answer: object, now: float) -> None:
        dirty = self._dirty(answer)
        self._pending |= dirty
        self._digest.mark_sets_stale(dirty)
        was_last = self._state is SourceState.FREEZING
        self._step(SourceInput.COLLECTED, now)
        if was_last:
            self._begin_round(now, last=True)
            return
        if self._ack is not None:
            self._note_round(self._ack, now)
            self._ack = None
        self._choose(now)

    def _on_released(self, now: float) -> None:
        self._step(SourceInput.RELEASED, now)
        if self._over:
            self._step(SourceInput.LOST, now)
            self._finish(Outcome.COMPLETED, now, epoch=self._job.epoch + 1, digest=self._sealed)
            return
        self._send(Release(self._job.epoch + 1))
        self._bye()

    def _after_loss(self, now: float) -> None:
        match self._state:
            case SourceState.ROLLING_BACK:
                self._ask(RollBack(self._granted))
            case SourceState.UNDECIDED:
                self._finish(Outcome.UNDECIDED, now, epoch=self._job.epoch)
            case SourceState.DEPARTED:
                self._finish(Outcome.MOVED, now, epoch=self._job.epoch + 1, digest=self._sealed)
            case SourceState.CLOSED:
                self._finish(Outcome.COMPLETED, now, epoch=self._job.epoch + 1, digest=self._sealed)
            case _:
                pass  # RELEASING goes on

    # ---- rounds ----

    def _choose(self, now: float) -> None:
        """Ask the policy what comes next, and begin it."""
        decision = decide(
            self._rounds,
            self._pending.size_bytes(),
            self._job.guest.state_bytes,
            self._rtt_s or 0.0,
            self._job.policy,
        )
        self._decision = decision
        self._emit(Decided(decision))
        match decision.action:
            case Action.SWITCHOVER:
                self._step(SourceInput.SWITCHOVER_CHOSEN, now)
                downtime_us = min(int(decision.predicted_downtime_s * 1e6), (1 << 64) - 1)
                self._send(Switchover(self._attempt, Style.STOP_AND_COPY, downtime_us))
            case Action.GIVE_UP:
                self._fail(LocalProtocolError(ErrorCode.NOT_CONVERGING, decision.verdict), now)
            case _:
                if decision.throttle != self._throttle:
                    self._throttle = decision.throttle
                    self._ask(Throttle(decision.throttle))
                self._step(SourceInput.ROUND_CHOSEN, now)
                self._begin_round(now, last=False)

    def _begin_round(self, now: float, *, last: bool) -> None:
        self._round += 1
        self._last_round = last
        self._sending, self._pending = self._pending, PageSets(self._regions)
        self._batches = self._cut()
        self._round_pages = self._round_bytes = 0
        self._round_started = now
        self._last_pages_sequence = None
        count = self._sending.count()
        self._emit(RoundStarted(self._round, count, last))
        self._send(Round(self._attempt, self._round, count))

    def _more(self, now: float) -> None:
        if self._over or self._state not in {SourceState.ROUND, SourceState.BLACKOUT}:
            return
        if self._batches is not None:
            self._send_batch()
        if self._batches is None and not self._out:
            if self._state is SourceState.ROUND:
                self._step(SourceInput.ROUND_SENT, now)
                self._send(self._round_end())
            elif self._sections is not None:
                self._seal(self._sections, now)

    def _cut(self) -> Iterator[tuple[int, Positions, Positions]]:
        """The round's pages in batches that fit the peer's limits."""
        assert self._selection is not None
        peer = self._selection.limits
        runs_max = min(peer.batch_runs, (peer.control_bytes - _TABLE_HEAD) // _ROW_BYTES)
        # A batch may turn out to alternate between zero and other pages: as many runs as pages.
        granule_log2 = min((region.granule_log2 for region in self._regions.copied), default=0)
        batch_bytes = min(self._job.batch_bytes, peer.bulk_bytes, runs_max << granule_log2)
        return self._sending.batches(batch_bytes, runs_max)

    def _send_batch(self) -> None:
        """Encode and queue the next batch; forget the iterator when there is none."""
        assert self._batches is not None
        chosen = next(self._batches, None)
        if chosen is None:
            self._batches = None
            return
        batch = self._pages.encode(*chosen)
        table = batch.table(self._attempt, self._round)
        self._digest.record(table)
        self._round_pages += batch.page_count
        self._round_bytes += batch.bulk_bytes
        self._last_pages_sequence = self._writer.next_sequence
        self._send(table, batch.buffers)

    def _round_end(self) -> RoundEnd:
        pages, bulk_bytes = self._round_pages, self._round_bytes
        return RoundEnd(self._attempt, self._round, pages, bulk_bytes, self._last_sequences())

    def _last_sequences(self) -> tuple[tuple[int, int], ...]:
        return () if self._last_pages_sequence is None else ((0, self._last_pages_sequence),)

    def _note_round(self, ack: RoundAck, now: float) -> None:
        pending = self._pending.count()
        stats = RoundStats(
            round=self._round,
            pages=self._round_pages,
            bulk_bytes=self._round_bytes,
            seconds=now - self._round_started,
            dirty_pages=pending,
            dirty_bytes=self._pending.size_bytes(),
            rejected_pages=sum(pages.count for pages in ack.rejected),
            receive_rate_bytes_s=ack.receive_rate_bytes_s,
            throttle=self._throttle,
        )
        self._rounds.append(stats)
        self._emit(RoundFinished(stats))

    # ---- blackout ----

    def _seal(self, sections: Sequence[StateSection], now: float) -> None:
        total = sum(len(section.data) for section in sections)
        assert self._selection is not None
        peer = self._selection.limits
        if total > min(peer.state_bytes, self._job.guest.state_bytes) or len(sections) > peer.state_sections:
            detail = (
                f"{len(sections)} state sections of {total} bytes: more than GUEST or the peer's limits say"
            )
            self._fail(GuestError(detail, ErrorCode.LIMIT_MISMATCH), now)
            return
        assert not self._digest.stale_pages, "every page has been sent by now"
        self._sealed = self._digest.value()
        self._step(SourceInput.SEAL_SENT, now)
        self._send(self._round_end())
        stats = RoundStats(
            round=self._round,
            pages=self._round_pages,
            bulk_bytes=self._round_bytes,
            seconds=now - self._round_started,
            dirty_pages=0,
            dirty_bytes=0,
            rejected_pages=0,
            receive_rate_bytes_s=0,
            throttle=self._throttle,
        )
        self._rounds.append(stats)
        self._emit(RoundFinished(stats))
        for section in sections:
            for fragment in fragments(section, self._attempt, peer.control_bytes):
                self._send(fragment)
        last = self._last_sequences()
        self._send(Seal(self._attempt, Checksum.XXH3_128, self._sealed, len(sections), total, last))

    # ---- checks ----

    def _dirty(self, answer: object) -> PageSets:
        if not isinstance(answer, Mapping):
            raise LocalProtocolError(ErrorCode.INTERNAL, "CollectDirty is answered with bitmaps by region")
        return PageSets.collected(self._regions, answer)

    def _check_allowed(self, frame: FrameType) -> None:
        if (self._state, frame) not in SOURCE:
            raise self._unexpected(frame)

    def _check_epoch(self, epoch: int, frame: FrameType, clause: str) -> None:
        if epoch != self._job.epoch + 1:
            detail = f"epoch {epoch}, permitted was {self._job.epoch + 1}"
            raise remote_error(ErrorCode.BAD_EPOCH, detail, clause=clause, frame=frame)

    def _wrong(self, code: ErrorCode, detail: str, clause: str, record: Record) -> SternaError:
        return remote_error(code, detail, clause=clause, frame=record.type)

    def _progress(self) -> Progress | None:
        if not self._round:
            return None
        decision = self._decision
        return Progress(
            self.phase,
            self._round,
            self._regions.pages,
            self._pending.count() + max(0, self._sending.count() - self._round_pages),
            self._bytes_sent,
            int(decision.dirty_rate_bytes_s) if decision else 0,
            int(decision.bandwidth_bytes_s) if decision else 0,
            min(int(decision.predicted_downtime_s * 1e6), (1 << 64) - 1) if decision else 0,
        )


def _sections(answer: object) -> Sequence[StateSection]:
    if not isinstance(answer, Sequence) or not all(isinstance(each, StateSection) for each in answer):
        raise LocalProtocolError(ErrorCode.INTERNAL, "SaveState is answered with state sections")
    return answer

"""The source's machine: what each frame and each completion leads to, and the blackout up to SEAL.

What it consists of: how it comes to a session (`Opening`), from round to round and to the switchover
(`Choosing`), with batches of pages (`Batches`), and what it does for a guest that has left (`Departed`).

Until HANDOVER is queued every trouble ends in a roll-back and the guest runs on here; from then on nothing
that this side decides can make it run again [ONE-20].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from sterna.core.bitmap_frames import dirty_frames
from sterna.core.choosing import Choosing
from sterna.core.conduct import check_epoch, wrong
from sterna.core.events import (
    CollectDirty,
    KeepNotes,
    MarkGranted,
    OpenStreams,
    Outcome,
    Pause,
    Persist,
    ProbeStore,
    ReleaseImage,
    Request,
    RollBack,
    RunOn,
    SaveState,
    StartTracking,
)
from sterna.core.lanes import Lane
from sterna.core.opening import SourceConfig
from sterna.core.records import Decided as OwnerDecided
from sterna.core.records import Granted, Released, Voided
from sterna.core.state import check_sections, fragments
from sterna.core.tables import SourceInput, SourceState
from sterna.core.words import count_text
from sterna.errors import LocalProtocolError, PeerAborted, SternaError, TransportError
from sterna.memory.pages import PageSource
from sterna.registry import Checksum, ErrorCode, Feature, FrameType, Owner
from sterna.wire import Header, state_digest
from sterna.wire.records import (
    Accept,
    Complete,
    HandBack,
    Handover,
    Held,
    Loaded,
    NotReady,
    PageRequest,
    Ready,
    Record,
    Refuse,
    Release,
    RoundAck,
    Running,
    Seal,
    StateSection,
    Verdict,
    Welcome,
)

__all__ = ["SourceConfig", "SourceMachine"]

# What a destination refuses for may be over in a moment.
_PASSES: Final = frozenset({ErrorCode.BUSY, ErrorCode.FULL})


class SourceMachine(Choosing):
    """Sends a guest away. `pages` reads and encodes its memory.

    Commands: `start`, `cancel`. Requests: see sterna.core.events. Everything else: see sterna.core.session.
    """

    def __init__(self, config: SourceConfig, pages: PageSource, now: float) -> None:
        super().__init__(config, pages, now)
        self._sections: Sequence[StateSection] | None = None
        self._last_part: Iterator[None] | None = None

    # ---- frames ----

    def _frame(self, header: Header, record: Record, now: float) -> None:
        """Each frame is checked in the state in which it came; only then does it change the state."""
        if self._is_of_old_attempt(record):
            return
        self._require(FrameType(header.type))
        match record:
            case Refuse():
                error = PeerAborted(record.code, record.text, record.retry_after_ms, record.items)
                resumes = self._state in {SourceState.RESUMING, SourceState.RETURNING}
                passes = resumes and error.code in _PASSES  # [RES-18]
                self._fail(error, now, tell=False, cut=passes)
            case Welcome() if self._state in {SourceState.RESUMING, SourceState.RETURNING}:
                self._on_welcome_back(record, now)
            case Welcome():
                self._on_welcome(record, now)
            case Held():
                self._on_held(record, now)
            case Accept():
                self._on_accept(record, now)
            case RoundAck():
                self._on_round_ack(record, now)
            case Ready():
                self._step(FrameType.READY, now)
                self._account.guest_stops(now)
                self._ask(Pause())
            case NotReady():
                self._on_not_ready(record, now)
            case Loaded():
                self._on_loaded(record, now)
            case Running():
                self._on_running(record, now)
            case PageRequest():
                self._on_page_request(record, now)
            case HandBack():
                self._on_handback(record, now)
            case Verdict():
                self._on_verdict(record, now)
            case Complete():
                self._on_complete(record, now)
            case _:  # BYE, the only other frame that the table lets through
                self._step(FrameType.BYE, now)
                self._finish(Outcome.COMPLETED, now, epoch=self._job.epoch + 1, digest=self._sealed)

    def _on_accept(self, record: Accept, now: float) -> None:
        assert self._ticket is not None
        assert self._selection is not None
        streams, most = record.data_streams, self._selection.features.get(Feature.DATA_STREAMS, 0)
        if streams > most:
            detail = f"{count_text(streams, 'data connection')}, and {most} selected"
            raise wrong(ErrorCode.NOT_SELECTED, detail, "ACC-3", record)
        needed = self._memory.regions.size_bytes
        if record.reserved_bytes < needed:
            detail = f"{record.reserved_bytes} bytes reserved of {needed}"
            raise wrong(ErrorCode.BAD_VALUE, detail, "CON-17", record)
        if not streams:
            self._step(FrameType.ACCEPT, now)
            self._ask(StartTracking())
            return
        self._ticket = self._ticket.with_streams(streams)
        self._step(SourceInput.STREAMS_GRANTED, now)
        self._ask(OpenStreams(streams))

    def _on_loaded(self, record: Loaded, now: float) -> None:
        if record.digest != self._sealed:
            raise wrong(ErrorCode.DIGEST_MISMATCH, "LOADED names another digest", "CON-53", record)
        self._step(FrameType.LOADED, now)
        assert self._selection is not None
        if self._selection.has(Feature.LEASE_STORE):  # who grants has to claim, and so has who is granted
            self._ask(ProbeStore(self._job.epoch, self._job.runner, last=True))
        else:
            self._on_confirmed(now)

    def _on_confirmed(self, now: float) -> None:
        """From here on HANDOVER may have left [ONE-19]."""
        self._step(SourceInput.CONFIRMED, now)
        self._ask(MarkGranted(self._job.epoch + 1))

    def _on_handback(self, record: HandBack, now: float) -> None:
        """It never ran there and never will under n + 1: whoever recovers claims the epoch behind."""
        check_epoch(record, self._job.epoch + 1, "HND-2")
        back = LocalProtocolError(ErrorCode.UNDECIDED, "the destination has handed it back", clause="ONE-37")
        self._account.failed(back, self.phase)
        self._step(FrameType.HANDBACK, now)
        self._account.verdict = Verdict(Owner.SOURCE, record.epoch, record.runner, handed_back=True)
        self._over = True
        self._after_loss(now)

    def _on_verdict(self, record: Verdict, now: float) -> None:
        """The answer to a question, or to an opening that comes too late [ONE-14]."""
        self._account.verdict = record
        if self._state is SourceState.RETURNING and record.complete:
            self._on_complete_told(record, now)
            return
        if self._state is not SourceState.ASKING:
            detail = f"it was handed over there: {record.owner.name.lower()}, epoch {record.epoch}"
            late: SternaError = PeerAborted(ErrorCode.STALE_EPOCH, detail)
            if self._state is SourceState.RETURNING:
                late = TransportError(ErrorCode.CONNECTION_LOST, f"{detail}, and not every page is there")
            self._fail(late, now, tell=False)
            return
        self._step(FrameType.VERDICT, now)
        self._over = True
        self._finish(Outcome.ANSWERED, now, epoch=self._job.epoch)

    def _go_on(self) -> None:
        if self._serving is None:
            self._ask(CollectDirty())
        else:
            self._report = None
            self._begin_push(self._serving)
            self._note_owner()  # RUNNING may have been lost

    @property
    def _needs_data_lanes(self) -> bool:
        """After LOADED pages travel only if some are stale."""
        match self._state:
            case (
                SourceState.CONFIRMING
                | SourceState.GRANTING
                | SourceState.RECORDING
                | SourceState.HANDED_OVER
            ):
                return self._memory.stale.any()
            case SourceState.MOVED:
                return self._serving is not None
            case _:
                return self._state not in {SourceState.RELEASING, SourceState.CLOSING}

    # ---- completions ----

    def _completed(self, request: Request, answer: object, now: float) -> None:
        match request:
            case RollBack():
                self._step(SourceInput.ROLLED_BACK, now)
                self._finish(Outcome.ROLLED_BACK, now, epoch=self._job.epoch)
                return
            case Persist(record=Voided() as voided):
                self._step(SourceInput.RECORDED, now)
                self._ask(RollBack(voided))
                return
            case Persist(record=OwnerDecided()):
                self._owner_is_noted(None)
                return
            case _:
                pass
        if self._state is SourceState.SUSPENDING:
            self._while_suspending(request, answer, now)
            return
        if self._is_deaf and not isinstance(request, ReleaseImage):
            return  # overtaken by a failure; the roll-back follows
        match request:
            case OpenStreams(streams=streams):
                self._on_streams(streams, now)
            case StartTracking():
                self._on_tracking(answer, now)
            case CollectDirty(early=True):
                assert isinstance(answer, Mapping)
                self._memory.written_early(answer, now)
            case CollectDirty():
                self._on_collected(answer, now)
            case Pause():
                self._step(SourceInput.PAUSED, now)
                self._ask(CollectDirty(last=True))
                self._ask(SaveState())
            case SaveState():
                self._on_saved(answer)
            case KeepNotes():
                self._on_room_for_notes(answer)
            case ProbeStore(last=True):
                self._on_confirmed(now)
            case MarkGranted(epoch=epoch):
                self._step(SourceInput.GRANTED, now)
                follows = bool(self._memory.stale.any())
                self._ask(Persist(Granted(self._account.session, epoch, follows)))
            case Persist(record=Granted()):
                self._send(Handover(self._attempt, self._job.epoch))
                self._step(SourceInput.RECORDED, now)
            case ReleaseImage():
                self._on_released(now)
            case _:
                pass  # Throttle has taken effect, the store has answered in good time, a note is made

    def _request_failed(self, request: Request, error: SternaError, now: float) -> None:
        match request:
            case RollBack():
                self._step(SourceInput.ROLLED_BACK, now)
                self._account.error = error
                self._finish(Outcome.GUEST_FAILED, now, epoch=self._job.epoch)
            case Persist(record=Voided()):
                # The record may say that HANDOVER has left; what it says decides, as after a crash [ONE-19].
                self._account.error = error
                self._step(SourceInput.LOST, now)
                self._after_loss(now)
            case Persist(record=OwnerDecided() | Released()):
                self._owner_is_noted(error)
            case Persist(early=True):
                pass  # it is asked for again
            case ReleaseImage():
                self._on_released(now)  # the guest lives there all the same; only memory here is not freed
            case OpenStreams() if self._state is SourceState.REPLACING:
                self.wear_out(error, now)
            case CollectDirty() | RunOn() if self._state is SourceState.SUSPENDING:
                self._give_up(error, now)
            case _:
                self._fail(error, now)

    def _while_suspending(self, request: Request, answer: object, now: float) -> None:
        """What was collected before the loss is not collected again, so it must not be lost with the link."""
        match request:
            case CollectDirty():
                assert isinstance(answer, Mapping)
                try:
                    self._memory.written(answer)
                except SternaError as error:
                    self._give_up(error, now)
            case RunOn():
                self._step(SourceInput.RUNS_ON, now)
                self._suspend()
            case _:
                pass

    def _give_up(self, error: SternaError, now: float) -> None:
        """What the guest has written is not known any more, or it stands: nothing to go on with."""
        self._account.error = error
        self._step(SourceInput.LOST, now)
        self._after_loss(now)

    def _on_saved(self, answer: object) -> None:
        assert isinstance(answer, Sequence)
        assert self._selection is not None
        peer = self._selection.limits
        guest = self._job.guest
        check_sections(answer, min(peer.state_bytes, guest.state_bytes), peer.state_sections, guest.vcpus)
        self._sections = tuple(answer)

    def _on_released(self, now: float) -> None:
        self._step(SourceInput.RELEASED, now)
        if self._over:
            self._step(SourceInput.LOST, now)
            self._after_loss(now)
            return
        self._send(Release(self._job.epoch + 1))
        self._bye()

    def _after_loss(self, now: float) -> None:
        match self._state:
            case SourceState.ROLLING_BACK:
                self._requests.withdraw()
                self._ask(RollBack())
            case SourceState.SUSPENDING:
                self._requests.withdraw()
                self._ask(RunOn())
            case SourceState.VOIDING:
                self._requests.withdraw()
                self._ask(Persist(Voided(self._account.session, self._job.epoch + 1)))
            case SourceState.PARTED:
                self._suspend()  # what is asked for is a record, which is made whatever comes next
            case SourceState.UNDECIDED | SourceState.UNANSWERED:
                self._finish(Outcome.UNDECIDED, now, epoch=self._job.epoch)
            case SourceState.DEPARTED:
                if self._serving is not None:
                    self._account.after = self._serving.stats()
                self._finish(Outcome.MOVED, now, epoch=self._job.epoch + 1, digest=self._sealed)
            case SourceState.CLOSED:
                self._finish(Outcome.COMPLETED, now, epoch=self._job.epoch + 1, digest=self._sealed)
            case _:
                pass  # RELEASING goes on

    # ---- pages ----

    def _more(self, lane: Lane, now: float) -> None:
        if self._state is SourceState.MOVED and self._push is not None:
            self._serve(self._push, lane, now)
        elif self._state in {SourceState.ROUND, SourceState.BLACKOUT} and not self._send_batch(lane):
            self._when_given_out(lane, now)

    def _when_given_out(self, lane: Lane, now: float) -> None:
        """What follows the round's last page on the control connection, whatever connection took that."""
        if not self._memory.is_given_out or (lane.stream and self._outbox):
            return
        if self._state is SourceState.ROUND:
            self._step(SourceInput.ROUND_SENT, now)
            self._send(self._memory.ending())
            self._collect_beside_ack(now)
            return
        self._last_part = self._last_part or self._send_last_part()
        if next(self._last_part, self) is self:
            self._seal(now)

    # ---- blackout ----

    def _send_last_part(self) -> Iterator[None]:
        """Queue what goes between last page and SEAL, a frame a step; the state as soon as it is saved."""
        assert self._selection is not None
        self._send(self._memory.ending())
        for frame in dirty_frames(self._attempt, self._memory.stale, self._selection.limits.control_bytes):
            self._send(frame)
            yield
        while self._sections is None:
            yield
        for section in self._sections:
            for fragment in fragments(section, self._attempt, self._selection.limits.control_bytes):
                self._send(fragment)
                yield

    def _seal(self, now: float) -> None:
        assert self._sections is not None
        self._sealed = self._memory.seal()
        self._note_departure()
        count, total = len(self._sections), sum(len(section.data) for section in self._sections)
        state, last = state_digest(self._sections), self._memory.last_sequences
        self._send(Seal(self._attempt, Checksum.XXH3_128, self._sealed, state, count, total, last))
        self._step(SourceInput.SEAL_SENT, now)
        self._note_round(now, None)

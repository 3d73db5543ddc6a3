"""The source of a guest that leaves: what it notes before, what it serves after, when it frees the image.

RUNNING says so, or, if that was lost, whoever has asked. From there on nothing makes the guest run here
again; losing ends the right to run, not the duty to serve pages [ONE-38]. The image is freed by COMPLETE with
the digest that this side has computed, or by a VERDICT that repeats it [ONE-39].
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from sterna.core.batches import Batches
from sterna.core.carry import SourceCarry
from sterna.core.conduct import check_epoch, wrong
from sterna.core.departure import Departure
from sterna.core.events import KeepNotes, PagesFollow, PagesFollowed, Persist, ProbeStore, ReleaseImage
from sterna.core.lanes import Lane
from sterna.core.opening import SourceConfig
from sterna.core.pushing import Push, Window
from sterna.core.records import Decided, Released, SessionRecord, Side
from sterna.core.serving import Serving
from sterna.core.tables import SourceInput, SourceState
from sterna.core.words import count_text
from sterna.errors import SternaError
from sterna.memory.groups import Groups
from sterna.memory.pages import PageSource
from sterna.registry import ErrorCode, Feature, FrameType, Owner
from sterna.wire.records import Complete, PageRequest, Progress, Running, Verdict

U64_MAX: Final = (1 << 64) - 1


class Departed(Batches):
    """The part of a source's machine behind HANDOVER."""

    def __init__(self, config: SourceConfig, pages: PageSource, now: float) -> None:
        super().__init__(config, pages, now)
        self._push: Push | None = None
        self._room_for_notes: memoryview | None = None

    # ---- before ----

    def _note_session(self, *, early: bool = False) -> None:
        """What whoever has to ask must know is durable, and the store answers, before the pause [ONE-61]."""
        job = self._job
        assert self._selection is not None
        store = self._selection.has(Feature.LEASE_STORE)
        record = SessionRecord(self._account.session, job.epoch, Side.SOURCE, self._token, "", store=store)
        self._ask(Persist(record, early=early))
        if early:
            return
        if store:
            self._ask(ProbeStore(job.epoch, job.runner))
        self._room_for_notes = None  # what lies there is of an attempt before
        if self._selection.has(Feature.RESUME):
            self._ask(KeepNotes(self._departure.size_bytes))

    @property
    def _departure(self) -> Departure:
        assert self._ticket is not None
        image = self._memory.notes(self._attempt, self._account.style, self._sealed)
        return Departure(self._ticket, image)

    def _on_room_for_notes(self, answer: object) -> None:
        if isinstance(answer, memoryview):
            self._room_for_notes = answer
            self._departure.prepare(answer)

    def _note_departure(self) -> None:
        """What the next process would have to know, before the guest may run elsewhere [RES-19]."""
        if self._room_for_notes is not None:
            self._departure.write(self._room_for_notes)

    # ---- after ----

    @property
    def position(self) -> tuple[int, int] | None:
        """Attempt and round of pages that follow the guest [PCY-8]; None before RUNNING, and if none does."""
        return None if self._serving is None else self._serving.position

    @property
    def groups(self) -> Groups | None:
        """Of the pages that follow the guest; None before RUNNING, and if none does."""
        return None if self._serving is None else self._serving.groups

    def push_near(self, region: int, page: int) -> None:
        """The guest has got this page by another way: go on with what lies there. Never does any harm."""
        if self._serving is not None:
            self._serving.push_near(region, page)

    def _on_running(self, record: Running, now: float) -> None:
        check_epoch(record, self._job.epoch + 1, "RUN-1")
        self._step(FrameType.RUNNING, now)
        self._note_owner()
        self._account.guest_runs(now)
        self._on_moved()

    def _note_owner(self) -> None:
        """The guest is the destination's. Until that is durable, this host has to ask who has it."""
        self._ask(Persist(Decided(self._account.session, self._job.epoch + 1, Owner.DESTINATION)))

    def _owner_is_noted(self, error: SternaError | None) -> None:
        """Or is not, which stops nothing, and is told [ONE-63]."""
        self._account.unrecorded = error
        if self._result is not None:
            self._result = replace(self._result, unrecorded=error)

    def _on_moved(self) -> None:
        """It is the destination's, and may lack pages there."""
        if self._memory.stale.any():
            assert self._selection is not None
            peer, own = self._selection.limits, self._config.limits
            self._serving = self._memory.serving(self._attempt, peer=peer, own=own)
            self._begin_push(self._serving)
            self._emit(PagesFollow(self._serving.groups.pages))

    @property
    def may_serve(self) -> bool:
        """Of one that ended as UNDECIDED: whether it can serve on, should the guest run there [RES-13]."""
        resumes = self._selection is not None and self._selection.has(Feature.RESUME)
        return resumes and self._state is SourceState.UNDECIDED

    def moved(self) -> SourceCarry:
        """The destination turns out to own the guest, of a machine that `may_serve`: to go on from there.

        Whether it runs there, it says with WELCOME or VERDICT.
        """
        self._on_moved()
        self._account.suspended(self._outbox.sent_bytes)
        return self._carried()

    # ---- pages that follow ----

    @property
    def guest_waits(self) -> bool:
        """See `Session.guest_waits`."""
        return self._serving is not None and self._serving.is_asked

    def _begin_push(self, serving: Serving) -> None:
        assert self._ticket is not None
        rate_bytes_s = 0.0 if self._decision is None else self._decision.bandwidth_bytes_s
        window = Window(rate_bytes_s, self.rtt_s or 0.0)
        self._push = Push(serving, window, apart=self._ticket.streams > 0)

    def _on_page_request(self, record: PageRequest, now: float) -> None:
        if self._push is None:
            raise wrong(ErrorCode.UNEXPECTED_FRAME, "no page was stale", "PCY-21", record)
        self._push.request(record)
        self._step(FrameType.PAGE_REQUEST, now)

    def _serve(self, push: Push, lane: Lane, now: float) -> None:
        """Queue the next stale pages, unasked ones only as far as the destination can follow [PCY-23]."""
        batch = push.next_batch(lane, self._heartbeat.waits_for, zeros=self._zeros)
        if batch is None:
            return
        self._send_on(lane, *batch)
        self._memory.bulk_bytes += batch[0].bulk_bytes
        self._watch.entered = now  # COMPLETE is due when all of them are there
        if push.sent(lane.stream, batch[0].bulk_bytes):
            ping = self._heartbeat.ask(now)
            self._send(ping)
            push.window.marked(ping.id)

    # ---- the end ----

    def _on_complete(self, record: Complete, now: float) -> None:
        check_epoch(record, self._job.epoch + 1, "CMP-4")
        self._check_complete(record)
        self._step(FrameType.COMPLETE, now)
        self._free_image(now)

    def _on_complete_told(self, record: Verdict, now: float) -> None:
        """COMPLETE was lost, and VERDICT repeats it [ONE-39]; behind it nothing is said any more."""
        self._account.guest_runs(now)
        self._check_complete(record)
        self._over = True
        self._step(SourceInput.COMPLETE_TOLD, now)
        self._free_image(now)

    def _check_complete(self, record: Complete | Verdict) -> None:
        if self._serving is not None:
            if self._serving.pages_left:  # until then the entries are those of SEAL
                detail = f"{count_text(self._serving.pages_left, 'page')} never sent"
                raise wrong(ErrorCode.MEMORY_MISMATCH, detail, "CMP-1", record)
            self._sealed = self._memory.complete()
        if record.digest != self._sealed:
            raise wrong(ErrorCode.MEMORY_MISMATCH, "COMPLETE names another digest", "CMP-1", record)

    def _free_image(self, now: float) -> None:
        if self._serving is not None:
            self._account.after = self._serving.stats(self._account.since_run(now))
            self._emit(PagesFollowed(self._account.after))
        if self._account.unrecorded is not None:  # behind RELEASE nobody may know the session any more
            self._note_owner()
        if self._serving is not None:  # an image that is gone is missed by nobody from here on [ONE-42]
            self._ask(Persist(Released(self._account.session)))
        self._ask(ReleaseImage())

    # ---- for people ----

    def _progress(self) -> Progress | None:
        decision = self._decision
        if decision is None:
            return None
        return Progress(
            self.phase,
            self._memory.round,
            self._memory.regions.pages,
            self._memory.pages_missing if self._serving is None else self._serving.pages_left,
            self._memory.bulk_bytes,
            int(decision.dirty_rate_bytes_s),
            int(decision.bandwidth_bytes_s),
            min(int(decision.predicted_downtime_s * 1e6), U64_MAX),
        )

"""What a destination does with its permission: claim the epoch, start, run the guest, and have all of it.

HANDOVER is the only word that permits it, and it cannot be taken back. So each step stands on a record or on
the answer of the store, and a connection that is lost changes none of them [ONE-25] [ONE-28] [ONE-30]. A
permission that cannot be used is handed back, as long as nothing says that the guest was started here; and
HANDBACK is on record before it is said, for it excludes START [ONE-35].

In a style in which pages follow, the guest runs before it has them. What it waits for is asked for at once;
COMPLETE comes behind the last page, whether somebody is there to hear it or not [ONE-39].
"""

from __future__ import annotations

from sterna.core.conduct import check_epoch
from sterna.core.events import (
    Claim,
    Installed,
    Outcome,
    PagesFollow,
    PagesFollowed,
    Persist,
    RunGuest,
    TakeStorage,
)
from sterna.core.fetching import Fetching
from sterna.core.history import RecordConflict
from sterna.core.joining import Joining
from sterna.core.lanes import Lane
from sterna.core.records import Claiming, Start
from sterna.core.records import Complete as DurableComplete
from sterna.core.records import HandBack as DurableHandBack
from sterna.core.records import Record as DurableRecord
from sterna.core.tables import DestinationInput, DestinationState
from sterna.errors import LocalProtocolError, SternaError
from sterna.registry import ErrorCode, FrameType, Phase
from sterna.wire.records import Complete, HandBack, Handover, Runner, Running


class Permitted(Joining):
    """The part of a destination's machine that goes on from HANDOVER."""

    @property
    def _session(self) -> bytes:
        return self._account.session

    @property
    def _goes_on(self) -> bool:
        """Whether claiming and starting go on whatever becomes of the connection [ONE-30]."""
        return self.phase is Phase.COMMIT

    # ---- claim, start, run ----

    def _on_handover(self, record: Handover, now: float) -> None:
        check_epoch(record, self._epoch, "HND-1")
        self._step(FrameType.HANDOVER, now)
        # The image is what this session has put together, so its id is the session's [ONE-52].
        session, whole = self._session, self._follows.fetching is None
        digest = self._sealed if whole else b""
        self._ask(Persist(Claiming(session, self._epoch + 1, self.runner, session, digest)))

    def _on_recorded(self, record: DurableRecord, now: float) -> None:
        """What stood on this record may be done now."""
        match record:
            case Claiming():
                self._step(DestinationInput.RECORDED, now)
                self._ask(Claim(record.epoch, record.runner))
            case Start():
                self._step(DestinationInput.RECORDED, now)
                self._ask(RunGuest(record.epoch, self.runner))
            case DurableHandBack():
                self._send(HandBack(record.epoch, self.runner))
                self._over = True
                self._step(DestinationInput.RECORDED, now)
                self._after_loss(now)
            case DurableComplete():
                self._step(DestinationInput.RECORDED, now)
                self._digest.move_home()  # what was kept is needed no more [PCY-16]
                self._send(Complete(record.epoch, self._sealed))
            case _:
                pass  # RELEASED: nobody will ask any more

    def _on_claimed(self, request: Claim, answer: object, now: float) -> None:
        if answer == request.runner:
            self._step(DestinationInput.CLAIM_WON, now)
            self._ask(TakeStorage())
            return
        assert isinstance(answer, Runner)
        detail = f"epoch {request.epoch} is {answer.host!r}'s"
        error = LocalProtocolError(ErrorCode.STALE_EPOCH, detail, clause="ONE-29")
        self._account.failed(error, self.phase)
        self._send(self._last_words(error))
        self._over = True
        self._step(DestinationInput.CLAIM_LOST, now)
        self._after_loss(now)

    def _on_started(self, request: RunGuest, now: float) -> None:
        if (fetching := self._follows.fetching) is not None:
            self._on_started_ahead(request, fetching, now)
            return
        self._step(DestinationInput.STARTED, now)
        self._account.guest_runs(now)
        if not self._over:
            self._send(Running(request.epoch, request.runner))
        # Recorded whether the source can be told or not: it will ask [ONE-39].
        self._ask(Persist(DurableComplete(self._session, request.epoch, self._sealed)))
        if self._over:
            self._step(DestinationInput.LOST, now)
            self._after_loss(now)

    def _commit_failed(self, error: SternaError, now: float) -> None:
        """Permission was given and cannot be used as it was meant."""
        existing = error.existing if isinstance(error, RecordConflict) else None
        if self._state is DestinationState.COMMITTING:
            if isinstance(existing, Start):  # an operator was quicker, or it was durable although it failed
                self._on_recorded(existing, now)
                return
            self._account.failed(error, self.phase)
            # As far as is known there is no START, and HANDBACK excludes it; if it is there after all, it is
            # HANDBACK that fails [ONE-27].
            self._step(DestinationInput.HAND_BACK, now)
            self._ask(Persist(DurableHandBack(self._epoch + 1)))
            return
        if self._state is DestinationState.HANDING_BACK and isinstance(existing, DurableHandBack):
            self._on_recorded(existing, now)  # an operator was quicker, and has decided the same
            return
        self._account.failed(error, self.phase)
        self._send(self._last_words(error))
        self._over = True
        self._step(DestinationInput.START_FAILED, now)
        self._finish(Outcome.UNDECIDED, now, epoch=self._epoch)

    # ---- pages that follow the guest ----

    @property
    def guest_waits(self) -> bool:
        """See `Session.guest_waits`."""
        return self._follows.fetching is not None and self._follows.fetching.is_waited_for

    def fault(self, region: int, first: int, count: int, now: float) -> None:
        """The guest waits for these pages. Harmless at any time, and for any pages."""
        if (fetching := self._follows.fetching) is not None:
            fetching.fault(region, first, count)
            self._request_pages(fetching, now)

    def _on_started_ahead(self, request: RunGuest, fetching: Fetching, now: float) -> None:
        self._step(DestinationInput.STARTED_AHEAD, now)
        self._fetching = fetching
        self._account.guest_runs(now)
        self._emit(PagesFollow(fetching.groups.pages))
        if self._over:  # the source comes back for them when it has learned where the guest runs [RES-13]
            cut = DestinationInput.LINK_LOST
            self._step(cut if self._can_resume else DestinationInput.LOST, now)
            self._after_loss(now)
            return
        self._send(Running(request.epoch, request.runner))
        self._request_pages(fetching, now)

    def _followed(self, fetching: Fetching, lane: Lane, now: float) -> None:
        arrived = fetching.take(lane.stream)
        if arrived:
            self._ask(Installed(arrived))
        self._request_pages(fetching, now)

    def _on_installed(self, request: Installed, now: float) -> None:
        fetching = self._follows.fetching
        assert fetching is not None
        for pages in request.pages:
            fetching.installed(pages)
        if not fetching.is_complete:
            self._request_pages(fetching, now)
            return
        self._all_installed(now)

    def _all_installed(self, now: float) -> None:
        fetching = self._follows.fetching
        assert fetching is not None
        self._step(DestinationInput.INSTALLED, now)
        self._account.after = fetching.stats(self._account.since_run(now))
        self._emit(PagesFollowed(self._account.after))
        self._sealed = self._digest.value()
        self._ask(Persist(DurableComplete(self._session, self._epoch + 1, self._sealed)))
        if self._over:  # the link was lost before the last of them was installed
            self._step(DestinationInput.LOST, now)
            self._after_loss(now)

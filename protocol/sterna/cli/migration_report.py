"""What `sterna migrate` tells of a migration: what goes to whom, and how it ended.

Programs get fields, people a sentence. Each ending says where the guest is, for that is what one has to know.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from sterna.cli.deciding import owes_pages
from sterna.cli.endpoint import Recording
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
from sterna.cli.follow import Reporter
from sterna.cli.hints import hinted
from sterna.cli.taking_up import decided, judgement_text, recovered_fields
from sterna.cli.warned import warnings_of
from sterna.core.events import Outcome, Result
from sterna.core.words import count_text, duration_text, size_text
from sterna.errors import GuestError
from sterna.host.evidence import Evidence
from sterna.host.held import DepartingGuest
from sterna.host.recovery import Recovered
from sterna.net.transport import Transport
from sterna.registry import ErrorCode, Owner

_IMAGE: Final = "its image is as it was at the pause"
# Ends of a guest that has moved, and not well; of the place that it has moved to.
_GRAVE: Final = {
    ErrorCode.MEMORY_MISMATCH: "the guest runs at {}, and its memory there is not what was sent [ONE-40]",
    ErrorCode.GUEST_LOST: "the guest has moved to {}, which says that it is lost [ONE-42]",
}


@dataclass(frozen=True, slots=True)
class MigrationReport:
    """Tells it as the command was asked to.

    Attributes:
        reporter: whom it is told to.
        evidence: where memory was written to, if it was to be.
    """

    reporter: Reporter
    evidence: Evidence | None

    def introduce(self, guest: DepartingGuest, transport: Transport) -> None:
        """What is about to be sent, and to whom."""
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

    def settled(self, recovered: Recovered, *, late: bool = False) -> Exit:
        """An earlier session of the guest has ended, or nobody knows how; there is nothing to send.

        Args:
            recovered: what has become of it.
            late: somebody has wished to end this command meanwhile.

        Raises:
            GuestError: GUEST_LOST; TOO_LATE, it was known before that the guest is elsewhere.
        """
        _check_lost(recovered)
        if recovered.judgement.owner is Owner.DESTINATION and not recovered.acted:
            text = f"it is the destination's, under epoch {recovered.judgement.epoch}"
            raise GuestError(f"{text}: {judgement_text(recovered.judgement)}", ErrorCode.TOO_LATE)
        unknown = Result(Outcome.UNDECIDED, session=recovered.session.session, verdict=recovered.verdict)
        result = decided(unknown, recovered)
        result = told_late(result) if late else result
        self.reporter.result(
            {"role": "source", **result_fields(result), "recovered": recovered_fields(recovered)}
        )
        owner, epoch = recovered.judgement.owner, recovered.judgement.epoch
        whose = owner.name.lower() + ("" if owner is Owner.UNDECIDED else f" under epoch {epoch}")
        self.reporter.say(f"an earlier session of this guest: {whose}: {judgement_text(recovered.judgement)}")
        if is_unseen(result):
            self.reporter.say(_unseen(recovered.session.peer or "the destination"))
        return exit_of_result(result)

    async def conclude(
        self,
        guest: DepartingGuest,
        transport: Transport,
        result: Result,
        recording: Recording,
        recovered: Recovered | None,
        *,
        late: bool = False,
    ) -> Exit:
        """The session is over, and what it had left open was brought to its end as far as it could be.

        Args:
            guest: that was sent, still attached.
            transport: the first connection.
            result: of the endpoint.
            recording: of what passed.
            recovered: by what followed the session; None if it had left nothing open.
            late: somebody has wished to end it when the guest might have left [CON-72].

        Raises:
            GuestError: GUEST_LOST.
        """
        asked_last = result.verdict is not None and result.verdict.handed_back
        if recovered is not None:
            _check_lost(recovered)
            result = replace(result, verdict=recovered.verdict or result.verdict)
            if asked_last or result.outcome is Outcome.UNDECIDED:
                result = decided(result, recovered)
        result = told_late(result) if late else result
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
        self.reporter.say(sentence(result, transport, kept=figures is not None))
        for warned in warnings_of(result):
            self.reporter.notice(warned.text)
        if recovered is not None and result.outcome is not Outcome.COMPLETED:
            self.reporter.say(judgement_text(recovered.judgement))
        unclear = owes_pages(result) or is_unseen(result)
        if unclear or result.outcome in {Outcome.UNDECIDED, Outcome.ANSWERED, Outcome.STRANDED}:
            self.reporter.say(f"its ID is {guest.description.id.hex()}")
        return exit_of_result(result)


def _guest_fields(guest: DepartingGuest) -> Fields:
    return {"id": guest.description.id.hex(), "name": guest.description.name}


def exit_of_result(result: Result) -> Exit:
    """Exit code of a session. A guest that lacks pages, or may not run, is in no order yet."""
    code = exit_of_outcome(result.outcome, result.code, by_peer=result.by_peer)
    return Exit.GUEST if code is Exit.OK and (owes_pages(result) or is_unseen(result)) else code


def is_unseen(result: Result) -> bool:
    """Whether the guest is the destination's, and nobody has said that it has run there [ONE-33] [ONE-58]."""
    return result.outcome is Outcome.MOVED and not result.has_run


def told_late(result: Result) -> Result:
    """What to tell who has wished to cancel behind HANDOVER [CON-72], if there is nothing graver."""
    moved = result.outcome in {Outcome.COMPLETED, Outcome.MOVED} and result.code not in _GRAVE
    return replace(result, code=ErrorCode.TOO_LATE) if moved else result


def _check_lost(recovered: Recovered) -> None:
    if recovered.lost:
        raise GuestError(recovered.judgement.why, ErrorCode.GUEST_LOST)


def sentence(result: Result, transport: Transport, *, kept: bool = True) -> str:
    """How it ended, for people. `kept`: the guest's holder is there, whatever is in it."""
    why = "" if result.error is None else f": {result.error}"
    match result.outcome:
        case Outcome.MOVED if result.code in _GRAVE:
            told = _GRAVE[result.code].format(transport.peer)
            return f"{told}{unverified_text(result)}{why}. Keep this holder: {_IMAGE}"
        case Outcome.MOVED if is_unseen(result):
            return _unseen(str(transport.peer), why, lacks=_lacks(kept=kept) if owes_pages(result) else "")
        case Outcome.COMPLETED | Outcome.MOVED:
            stood = "" if result.blackout_s is None else f", stopped for {duration_text(result.blackout_s)}"
            end = f"{followed_text(result)}{resumed_text(result)}{unverified_text(result)}"
            if result.outcome is Outcome.MOVED and result.after is not None:
                end = f"{unverified_text(result)}{why}. It may wait there for {_lacks(kept=kept)}"
            elif result.outcome is Outcome.MOVED:
                end += " (the connection was lost at the end; the image is still here)"
            return (
                f"the guest runs at {transport.peer}: {count_text(len(result.rounds), 'round')}, "
                f"{size_text(result.bytes_sent)} in {duration_text(result.seconds)}{stood}{end}"
            )
        case Outcome.STRANDED:
            return (
                f"the guest runs there, and pages that it needs are here{unverified_text(result)}{why}. "
                "Keep this holder: it has them"
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


def _lacks(*, kept: bool) -> str:
    """Pages that the guest may lack there. `kept` as for `sentence`."""
    if kept:
        return "pages that are only here: keep this holder and its image"
    gone = "pages that were only in the image here, and that is gone"
    return f"{gone}: sterna verdict ID --holder HOLDER --peer recorded tells whether it has them all"


def _unseen(host: str, why: str = "", *, lacks: str = "") -> str:
    """The guest of a destination that has not said that it runs it."""
    then = f"It may lack {lacks}" if lacks else f"Keep this holder: {_IMAGE}"
    return (
        f"the guest is owned by {host}, and nobody has said yet that it runs there{why}. sterna serve, "
        f"started again there with the options that it had, runs it; this command, run again, asks. {then}"
    )

"""How a session ended, and what that means for the guest: who may be running it.

An observer answers the second question as carefully as the sides themselves have to [ONE-20] [ONE-30]: before
HANDOVER may have left it is the source, after RUNNING the destination, and between the two nobody can tell
from outside, unless the destination says it in HANDBACK or VERDICT. Where the frames were seen matters here,
and only here: what left the source need not have come this far.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sterna.observe.recording import How, Side
from sterna.registry import ErrorCode, FrameType, Mode, Owner, Sender
from sterna.wire.records import Abort, Hello, Record, Refuse, Verdict


class Ended(StrEnum):
    """How a session ended."""

    COMPLETED = "completed"  # BYE from the source: nothing that follows matters [CON-70]
    HANDED_BACK = "handed_back"  # HANDBACK: it never ran at the destination [ONE-35]
    ANSWERED = "answered"  # VERDICT: the answer to a question, or to an opening that came too late
    ABORTED = "aborted"
    REFUSED = "refused"
    CUT = "cut"  # the connection ended first
    UNFINISHED = "unfinished"  # the recording ended first
    NOTHING = "nothing"  # no frame was seen


class Runs(StrEnum):
    """Who may be running the guest when all is over."""

    SOURCE = "source"
    DESTINATION = "destination"
    UNDECIDED = "undecided"  # one of the two, or nobody: the records and the holders know
    UNKNOWN = "unknown"  # the session may have gone on unseen


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one session.

    Attributes:
        ended: how.
        runs: who may run the guest; None if none was to be moved.
        by: who said ABORT or REFUSE; None if nobody.
        code: the code that was given, as a number: it may be one of a later registry.
        text: what happened and what it means, for people.
    """

    ended: Ended
    runs: Runs | None
    by: Sender | None
    code: int | None
    text: str


@dataclass(slots=True)
class Signs:
    """What decides about the outcome, gathered while a session passes."""

    side: Side
    seen: set[FrameType]
    last_words: dict[Sender, Abort | Refuse]
    hows: dict[Sender, How]
    source_unfinished: bool = False  # bytes of a frame that was not seen whole
    asks: bool = False  # HELLO is of mode verdict: nothing is to be moved
    verdict: Verdict | None = None

    def add(self, record: Record) -> None:
        """A frame that its side may send; what ends a session by a word is in `last_words`."""
        self.seen.add(record.type)
        match record:
            case Hello(mode=mode):
                self.asks = mode is Mode.VERDICT
            case Verdict() if self.verdict is None:
                self.verdict = record
            case _:
                pass

    def outcome(self) -> Outcome:
        """What they amount to."""
        ended = self._ended()
        runs = self._runs(ended) if FrameType.HELLO in self.seen else None
        by, words = next(iter(self.last_words.items()), (None, None))
        code = None if words is None or ended is Ended.COMPLETED else words.code
        parts = [self._how_text(ended, by, code)]
        if runs is not None:
            parts.append(self._runs_text(runs))
        return Outcome(ended, runs, by if code is not None else None, code, "; ".join(parts))

    def _ended(self) -> Ended:
        for last, end in _LAST.items():
            if last in self.seen:
                return end
        for words in self.last_words.values():
            return Ended.REFUSED if isinstance(words, Refuse) else Ended.ABORTED
        if not self.seen:
            return Ended.NOTHING
        return Ended.CUT if self.hows else Ended.UNFINISHED

    def _runs(self, ended: Ended) -> Runs:
        if self.verdict is not None:
            return Runs[self.verdict.owner.name]
        if self.asks:
            return Runs.UNKNOWN
        if FrameType.HANDBACK in self.seen:
            return Runs.SOURCE
        if FrameType.RUNNING in self.seen:
            return Runs.DESTINATION
        if FrameType.HANDOVER in self.seen:
            return Runs.UNDECIDED
        if ended is Ended.UNFINISHED:
            return Runs.UNKNOWN
        return Runs.UNDECIDED if self._may_have_left() else Runs.SOURCE

    def _may_have_left(self) -> bool:
        """Whether the source may have sent a HANDOVER that was not seen."""
        if FrameType.LOADED not in self.seen or Sender.SOURCE in self.last_words:
            return False  # a source that says ABORT has not handed over, or would have been heard to
        return self.side is not Side.SOURCE or self.source_unfinished

    def _how_text(self, ended: Ended, by: Sender | None, code: int | None) -> str:
        match ended:
            case Ended.COMPLETED:
                return "the session ended in order"
            case Ended.HANDED_BACK:
                return "the destination has handed the guest back"
            case Ended.ANSWERED:
                return "the destination has said who owns the guest"
            case Ended.ABORTED | Ended.REFUSED:
                assert by is not None
                verb = "refused" if ended is Ended.REFUSED else "aborted"
                return f"the {by.name.lower()} {verb} with {code_name(code or 0)}"
            case Ended.CUT:
                who = ", ".join(
                    f"{_HOW_TEXT[how]} (from the {side.name.lower()})" for side, how in self.hows.items()
                )
                return f"the connection ended before the session: {who}"
            case Ended.UNFINISHED:
                return "the recording ends before the session"
            case _:
                return "no frame was seen"

    def _runs_text(self, runs: Runs) -> str:
        if self.verdict is not None:
            return _VERDICT_TEXT[self.verdict.owner]
        if self.asks:
            return "who owns the guest was asked, and no answer was seen"
        match runs:
            case Runs.SOURCE if FrameType.HANDBACK in self.seen:
                return "it never ran there, and is the source's once that has claimed the next epoch"
            case Runs.SOURCE:
                return "the guest is with the source, as HANDOVER had not left"
            case Runs.DESTINATION:
                released = FrameType.RELEASE in self.seen
                kept = "" if released else ", and the source keeps its image until it is released"
                return f"the guest runs at the destination{kept}"
            case Runs.UNKNOWN:
                return "who runs the guest is not known, as the session may have gone on unseen"
            case _:
                left = "had" if FrameType.HANDOVER in self.seen else "may have"
                return (
                    f"HANDOVER {left} left and RUNNING was not seen: the destination may run the guest, and "
                    "the source must not before that is ruled out"
                )


_LAST = {
    FrameType.BYE: Ended.COMPLETED,
    FrameType.HANDBACK: Ended.HANDED_BACK,
    FrameType.VERDICT: Ended.ANSWERED,
}
_VERDICT_TEXT = {
    Owner.SOURCE: "it is the source's",
    Owner.DESTINATION: "it is the destination's",
    Owner.UNDECIDED: "the destination does not know: the guest stays paused at the source",
}
_HOW_TEXT = {
    How.PROPERLY: "closed properly",
    How.LOST: "lost",
    How.CLOSED_HERE: "closed by the recording side",
}


def code_name(code: int) -> str:
    """The registry's name of an error code, or its number."""
    return ErrorCode(code).name.lower() if code in set(ErrorCode) else f"code 0x{code:04x}"

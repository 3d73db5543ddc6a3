"""What changes nothing in how a migration has ended, and is to be known: coded, with what to do next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from sterna.core.events import Event, Outcome, Result, SessionOpened
from sterna.core.policy import Switchover
from sterna.registry import ErrorCode, Feature

NOT_RESUMED: Final = (
    "this session cannot be taken up again, for one side does without it (--resume 0s): if the connection or "
    "this process is lost while pages follow the guest, it waits for those that lack for ever"
)


@dataclass(frozen=True, slots=True)
class Warned:
    """One warning. `text`: what is so, and what can be done."""

    code: ErrorCode
    text: str


def warnings_of(result: Result) -> Iterator[Warned]:
    """Those of a result, whatever its outcome."""
    if result.unrecorded is not None:
        yield Warned(
            result.unrecorded.code,
            "that the guest is the destination's now could not be recorded here, and the records go on to "
            f"say that it may have left ({result.unrecorded}). Nothing is lost by it: look after that disk, "
            "and until the guest comes back, sterna verdict ID --peer recorded asks the destination",
        )
    waits = result.outcome is Outcome.STRANDED or (
        result.outcome is Outcome.MOVED and result.after is not None and result.after.seconds is None
    )
    if waits and not result.resumable:
        yield Warned(
            ErrorCode.CONNECTION_LOST,
            "the session was agreed without --resume, so nothing sends the guest the pages that it lacks: it "
            "waits where it reads one of them. The source's holder has them as they were at the pause; next "
            "time give both sides --resume, or --switchover stop-and-copy",
        )


def watching(
    on_event: Callable[[Event], None], say: Callable[[str], None], style: Switchover
) -> Callable[[Event], None]:
    """`on_event`, and a word where pages may follow a guest, and nobody could go on sending them [PCY-24]."""

    def watch(event: Event) -> None:
        on_event(event)
        if (
            isinstance(event, SessionOpened)
            and style != "stop-and-copy"
            and Feature.RESUME not in event.features
        ):
            say(NOT_RESUMED)

    return watch

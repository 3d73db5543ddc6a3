"""What is said beside how a migration has ended."""

from __future__ import annotations

import pytest

from sterna.cli.events import result_fields
from sterna.cli.warned import NOT_RESUMED, warnings_of, watching
from sterna.core.events import Event, Outcome, PhaseEntered, Result, SessionOpened
from sterna.core.serving import AfterStats
from sterna.errors import RecordError
from sterna.registry import ErrorCode, Feature, Phase

LACKS = AfterStats(stale=9, seconds=None)


def test_an_end_that_is_not_on_record() -> None:
    """[ONE-63] It changes neither outcome nor code."""
    result = Result(Outcome.COMPLETED, unrecorded=RecordError("no space left"))
    (warned,) = warnings_of(result)
    assert warned.code is ErrorCode.RECORD_FAILED
    assert "no space left" in warned.text
    assert "sterna verdict ID --peer recorded" in warned.text
    assert result_fields(result)["warnings"] == [{"code": "record_failed", "text": warned.text}]
    assert result_fields(result)["code"] is None


@pytest.mark.parametrize(
    ("result", "warns"),
    [
        (Result(Outcome.STRANDED), True),
        (Result(Outcome.STRANDED, resumable=True), False),
        (Result(Outcome.MOVED, after=LACKS), True),
        (Result(Outcome.MOVED, after=LACKS, resumable=True), False),
        (Result(Outcome.MOVED, after=AfterStats(stale=9, seconds=1.0)), False),
        (Result(Outcome.MOVED), False),
        (Result(Outcome.COMPLETED, after=LACKS), False),
    ],
)
def test_pages_that_nobody_can_send_any_more(result: Result, warns: bool) -> None:
    found = list(warnings_of(result))
    assert [each.code for each in found] == [ErrorCode.CONNECTION_LOST] * warns
    assert all("without --resume" in each.text for each in found)


def test_who_may_be_left_without_pages_is_told_before() -> None:
    """[PCY-24]"""
    events: list[Event] = []
    said: list[str] = []
    plain = SessionOpened(bytes(16), "agent", 65537, {})
    resumable = SessionOpened(bytes(16), "agent", 65537, {Feature.RESUME: 60})
    for event in (PhaseEntered(Phase.ROUNDS), resumable):
        watching(events.append, said.append, "bitmap")(event)
    watching(events.append, said.append, "stop-and-copy")(plain)
    assert said == []
    watching(events.append, said.append, "auto")(plain)
    assert said == [NOT_RESUMED]
    assert len(events) == 4

from __future__ import annotations

import json
import math
import time

import pytest
import trio
from trio.abc import Clock

from sterna.cli.follow import TOLD_WITHIN_S, Reporter, error_fields, now_ns
from sterna.cli.output import Output
from sterna.core.events import PhaseEntered, RoundFinished
from sterna.core.policy import RoundStats
from sterna.errors import ConfigError, GuestError
from sterna.registry import ErrorCode, Phase


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_event_is_a_line_and_the_result_is_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    with Reporter(Output(), follow=True) as reporter:
        reporter.on_event(PhaseEntered(Phase.ROUNDS))
        reporter.of_connection(3).on_event(PhaseEntered(Phase.BLACKOUT))
        reporter.notice("look")
        reporter.say("for people")
        reporter.result({"outcome": "completed"})
    found = lines(capsys)
    times = [line.pop("time_ns") for line in found]
    assert found == [
        {"schema": 1, "event": "phase", "phase": "rounds"},
        {"schema": 1, "event": "phase", "phase": "blackout", "connection": 3},
        {"schema": 1, "event": "notice", "text": "look"},
        {"schema": 1, "event": "result", "outcome": "completed"},
    ]
    assert times == sorted(times)
    assert before <= times[0] <= times[-1] <= now_ns()


async def test_a_guest_does_not_stand_still_for_what_is_told(
    capsys: pytest.CaptureFixture[str], autojump_clock: Clock
) -> None:
    """It is told in its order, with its own time, and soon even if the guest stands still for long."""
    with Reporter(Output(), follow=True) as reporter:
        reporter.on_event(PhaseEntered(Phase.ROUNDS))
        reporter.of_connection(3).on_event(PhaseEntered(Phase.BLACKOUT))
        reporter.emit({"event": "progress"})
        reporter.on_event(PhaseEntered(Phase.COMMIT))
        came_by = now_ns()
        assert [line["event"] for line in lines(capsys)] == ["phase"]
        await trio.sleep(2 * TOLD_WITHIN_S)
        found = lines(capsys)
        assert [line["event"] for line in found] == ["phase", "progress", "phase"]
        assert found[0]["connection"] == 3
        assert found[-1]["time_ns"] <= came_by
        reporter.emit({"event": "progress"})
        assert len(lines(capsys)) == 1
        reporter.on_event(PhaseEntered(Phase.BLACKOUT))
        reporter.result({})
        assert [line["event"] for line in lines(capsys)] == ["phase", "result"]


ROUND = RoundFinished(RoundStats(1, 1, 4096, 0.1, 0, 0))


async def test_the_next_round_does_not_wait_for_what_is_told(
    capsys: pytest.CaptureFixture[str], autojump_clock: Clock
) -> None:
    """Nor the pause behind it; and rounds in a row hold nothing back for longer."""
    with Reporter(Output(), follow=True) as reporter:
        reporter.on_event(ROUND)
        assert lines(capsys) == []
        await trio.sleep(0.9 * TOLD_WITHIN_S)
        reporter.on_event(ROUND)
        assert lines(capsys) == []
        await trio.sleep(0.2 * TOLD_WITHIN_S)
        assert [line["event"] for line in lines(capsys)] == ["round_finished"] * 2
        reporter.emit({"event": "progress"})
        assert len(lines(capsys)) == 1


async def test_a_blackout_behind_a_round_is_told_later(
    capsys: pytest.CaptureFixture[str], autojump_clock: Clock
) -> None:
    """But within twice the time, however many guests there are."""
    with Reporter(Output(), follow=True) as reporter:
        reporter.on_event(ROUND)
        for _ in range(2):
            await trio.sleep(0.9 * TOLD_WITHIN_S)
            reporter.on_event(PhaseEntered(Phase.BLACKOUT))
        assert lines(capsys) == []
        await trio.sleep(0.3 * TOLD_WITHIN_S)
        assert [line["event"] for line in lines(capsys)] == ["round_finished", "phase", "phase"]


async def test_what_cannot_be_told_ends_nothing(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, autojump_clock: Clock
) -> None:
    with Reporter(Output(), follow=True) as reporter:
        reporter.on_event(PhaseEntered(Phase.BLACKOUT))
        reporter.emit({"event": "progress", "rate": math.inf})  # no JSON
        await trio.sleep(2 * TOLD_WITHIN_S)
        assert "cannot be told" in caplog.text
        reporter.emit({"event": "progress"})
        assert [line["event"] for line in lines(capsys)] == ["phase", "progress"]


def test_without_follow_there_is_one_object_or_none(capsys: pytest.CaptureFixture[str]) -> None:
    for output, expected in ((Output(json=True), [{"schema": 1, "outcome": "completed"}]), (Output(), [])):
        with Reporter(output) as reporter:
            reporter.on_event(PhaseEntered(Phase.ROUNDS))
            reporter.notice("look")
            reporter.result({"outcome": "completed"})
        assert lines(capsys) == expected


def test_json_and_follow_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--json and --follow exclude each other"):
        Reporter(Output(json=True), follow=True)


def test_an_error_is_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(Output(), follow=True)
    reporter.notice("look")
    with pytest.raises(GuestError), reporter:
        raise GuestError("no memory", ErrorCode.FULL)
    last = lines(capsys)[-1]
    del last["time_ns"]
    assert last == {"schema": 1, "event": "error", "code": "full", "text": "full: no memory", "exit": 4}


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (ConfigError("wrong"), "usage", 2),
        (GuestError("no"), "guest_failed", 6),
        (KeyboardInterrupt(), "interrupted", 130),
        (ZeroDivisionError("of something"), "internal", 70),
        (BaseExceptionGroup("", [GuestError("no"), KeyboardInterrupt()]), "interrupted", 130),
    ],
)
def test_every_error_has_its_code(error: BaseException, code: str, exit_code: int) -> None:
    found = error_fields(error)
    assert (found["code"], found["exit"]) == (code, exit_code)


def test_people_are_told_on_stderr_whatever_programs_get(capsys: pytest.CaptureFixture[str]) -> None:
    for output, follow in ((Output(), False), (Output(), True), (Output(json=True), False)):
        with Reporter(output, follow=follow) as reporter:
            reporter.notice("look")
            reporter.say("there")
        assert capsys.readouterr().err == "look\nthere\n"

"""What people see of a migration: lines in a log, a table in a terminal of 80 columns."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sterna.cli.display import Display
from sterna.cli.output import Output

MIB = 1 << 20
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

START: dict[str, object] = {"event": "migration", "page_bytes": 4096, "tracker": "compare"}


def started(number: int, *, last: bool = False, pages: int = 256) -> dict[str, object]:
    return {"event": "round_started", "round": number, "pages": pages, "last": last}


def finished(number: int, **fields: object) -> dict[str, object]:
    usual = {"bytes": MIB, "seconds": 0.5, "dirty_bytes": 4096, "throttle": 0.0}
    return {"event": "round_finished", "round": number, **usual, **fields}


def decided(verdict: str) -> dict[str, object]:
    return {"event": "decided", "verdict": verdict, "predicted_downtime_s": 0.123}


def progress(bytes_sent: int) -> dict[str, object]:
    return {"event": "progress", "bytes_sent": bytes_sent}


END: dict[str, object] = {"event": "finished", "outcome": "completed"}
WHOLE = [START, started(1), finished(1), decided("switch over"), started(2, last=True), finished(2), END]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")


def show(*events: Mapping[str, object]) -> Display:
    display = Display(Output())
    for event in events:
        display.show(event)
    return display


def screen(text: str) -> list[str]:
    """What a terminal would show in the end: a display that moves draws over what it drew before."""
    rows: list[str] = [""]
    at = 0
    for piece in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\n|\r)", text):
        if piece == "\n":
            at += 1
            rows += [""] * (at + 1 - len(rows))
        elif piece == "\x1b[1A":
            at -= 1
        elif piece == "\x1b[2K":
            rows[at] = ""
        elif not CONTROL.fullmatch(piece) and piece != "\r":
            rows[at] += piece
    return [row.rstrip() for row in rows if row.strip()]


def test_a_log_gets_a_line_a_round_and_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    show(*WHOLE)
    assert capsys.readouterr().err.splitlines() == [
        "round 1: 1 MiB in 500 ms; written meanwhile: 4 KiB (8.2 kB/s)",
        "  switch over",
        "paused guest: 1 MiB in 500 ms",
    ]


def test_a_guest_that_is_slowed_down_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    show(START, started(1), finished(1, throttle=0.3))
    assert capsys.readouterr().err.endswith("4 KiB (8.2 kB/s), slowed down by 30 %\n")


def test_pages_that_follow_the_guest_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    follow = {"event": "pages_follow", "pages": 512}
    show(*WHOLE[:-1], follow, {"event": "pages_followed", "seconds_until_complete": 0.25}, END)
    said = capsys.readouterr().err.splitlines()
    assert said[-2:] == [
        "the guest has moved, 2 MiB of its memory follow",
        "all of its memory is there, after 250 ms",
    ]


def test_a_round_that_took_no_time_has_no_rate(capsys: pytest.CaptureFixture[str]) -> None:
    show(START, started(1), finished(1, seconds=0.0))
    assert capsys.readouterr().err == "round 1: 1 MiB in 0 µs; written meanwhile: 4 KiB\n"


def test_a_destination_knows_of_no_writes(capsys: pytest.CaptureFixture[str]) -> None:
    show({"event": "migration"}, started(1), finished(1))
    assert capsys.readouterr().err == "round 1: 1 MiB in 500 ms\n"


def test_json_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(Output(json=True))
    for event in WHOLE:
        display.show(event)
    display.close()
    assert capsys.readouterr() == ("", "")


def test_the_table_as_it_stays(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    show(*WHOLE)
    assert screen(capsys.readouterr().err) == [
        "round      sent      in      rate  written meanwhile  would stop",
        "────────────────────────────────────────────────────────────────",
        "1         1 MiB  500 ms  2.1 MB/s   4 KiB (8.2 kB/s)      123 ms",
        "blackout  1 MiB  500 ms  2.1 MB/s",
        "completed",
    ]


def test_the_running_round_is_a_bar_that_never_runs_back(
    terminal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """[CON-81]"""
    display = show(START, progress(1000), started(1))
    lengths = []
    for sent in (1000, 1000 + MIB // 4, 1000 + MIB // 2, 1000 + MIB // 4, 5 * MIB):
        display.show(progress(sent))
        bars = re.findall("round 1 (━*)╌*", capsys.readouterr().err)
        lengths.append(len(bars[-1]))
    assert lengths == [0, 10, 20, 20, 40]


def test_a_round_of_nothing_is_done_at_once(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    show(START, started(1, pages=0))
    assert "━" * 40 in capsys.readouterr().err


def test_the_widest_table_fits_80_columns(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is cut off and nothing wrapped, whatever a round measures."""
    wide = 99.94 * MIB
    show(
        START,
        started(1),
        finished(1, bytes=wide, seconds=1.05, dirty_bytes=wide, throttle=0.99),
        decided("x " * 100),
        END,
    )
    rows = screen(capsys.readouterr().err)
    assert max(len(row) for row in rows) <= 80
    assert "…" not in "".join(rows)
    assert len(rows) == 4


@given(st.floats(0, 500e9), st.floats(1e-6, 1e5), st.floats(0, 500e9), st.floats(0, 0.99), st.floats(0, 1e6))
def test_no_figures_widen_it_beyond_a_terminal(
    sent_bytes_s: float, seconds: float, dirty_bytes_s: float, throttle: float, stop: float
) -> None:
    """Short of half a terabyte a second."""
    sent, dirty = sent_bytes_s * seconds, dirty_bytes_s * seconds
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Output, "say", lambda *_, **__: None)
        display = show(
            START,
            started(1),
            finished(1, bytes=sent, seconds=seconds, dirty_bytes=dirty, throttle=throttle),
            {"event": "decided", "verdict": "", "predicted_downtime_s": stop},
        )
    paper = io.StringIO()
    Console(file=paper, width=200).print(display._table())
    assert max(map(len, paper.getvalue().splitlines())) <= 79


def test_a_long_verdict_is_wrapped_and_not_cut(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"word{number}" for number in range(30)]
    display = show(START, started(1), finished(1), decided(" ".join(words)))
    display.close()
    assert " ".join(screen(capsys.readouterr().err)[-3:]).split() == words


def test_a_peer_s_words_do_nothing_to_the_terminal(
    terminal: None, capsys: pytest.CaptureFixture[str]
) -> None:
    display = show(START, started(1), decided("\x1b[31m\x07[bold]x[/bold]"))
    display.close()
    text = capsys.readouterr().err
    assert "\\x1b[31m\\x07[bold]x[/bold]" in text
    assert "\x07" not in text
    assert "\x1b[31m" not in text


@pytest.mark.parametrize("value", [None, "1", [], {}, True])
def test_fields_of_the_wrong_kind_are_no_failure(value: object, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo shows what another process says."""
    show(
        {**START, "page_bytes": value},
        {"event": "round_started", "round": value, "pages": value, "last": value},
        {"event": "progress", "bytes_sent": value},
        finished(1, bytes=value, seconds=value, dirty_bytes=value, throttle=value),
        {"event": "decided", "verdict": value, "predicted_downtime_s": value},
        {"event": value},
        {},
        END,
    )


def test_lines_between_appear_above_the_table(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    display = show(START, started(1), finished(1))
    display.say("something happened")
    display.close()
    rows = screen(capsys.readouterr().err)
    assert rows[0] == "something happened"
    assert rows[1].startswith("round")


def test_each_migration_has_a_table_of_its_own(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    display = show(*WHOLE)
    capsys.readouterr()
    display.show(progress(1))
    assert capsys.readouterr().err == ""  # the first one is over
    for event in WHOLE:
        display.show(event)
    assert len(screen(capsys.readouterr().err)) == 5


def test_who_is_turned_away_meanwhile_writes_into_no_other_s_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A listener's events have the number of their connection."""

    def of(number: int, event: Mapping[str, object]) -> dict[str, object]:
        return {**event, "connection": number}

    show(
        of(1, START),
        of(1, started(1)),
        of(2, START),
        of(2, started(1, last=True)),
        of(2, END),
        of(1, finished(1)),
        of(1, decided("switch over")),
        of(1, END),
        of(3, START),
        of(3, finished(1)),
    )
    assert capsys.readouterr().err.splitlines() == [
        "round 1: 1 MiB in 500 ms; written meanwhile: 4 KiB (8.2 kB/s)",
        "  switch over",
        "round 1: 1 MiB in 500 ms; written meanwhile: 4 KiB (8.2 kB/s)",
    ]


def test_closing_twice_is_legal(terminal: None, capsys: pytest.CaptureFixture[str]) -> None:
    display = show(START, started(1))
    display.close()
    display.close()
    assert screen(capsys.readouterr().err) == ["round 1 " + "╌" * 40]


LOST: dict[str, object] = {"event": "link_lost", "text": "nothing heard for 5 s"}
BACK: dict[str, object] = {"event": "session_resumed", "times": 1, "pages_missing": 256}
FOLLOW: dict[str, object] = {"event": "pages_follow", "pages": 512}


def test_a_lost_link_says_who_waits_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    """[RES-11] [RES-13]"""
    show(START, LOST, BACK, FOLLOW, LOST, BACK)
    before, back, follow, behind, again = capsys.readouterr().err.splitlines()
    assert before == "link lost (nothing heard for 5 s): it may come back"
    assert back == again == "link back, for the 1st time: 1 MiB are missing"
    assert follow == "the guest has moved, 2 MiB of its memory follow"
    assert behind == f"{before}, and the guest at the destination may wait for it"

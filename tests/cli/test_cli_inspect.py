"""`sterna inspect`: what is shown of a recording, of a damaged one, and of the bytes of one side."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from observe_support import D, S, Tape, Unit, migration
from sterna.cli.main import main
from sterna.observe.recording import How, RecordingWriter, Side
from sterna.registry import ErrorCode, FrameType, Phase
from sterna.wire import unchecked
from sterna.wire.records import Abort, Refuse

F = FrameType
TAPE = migration(damage=[1])
LINE = re.compile(r" *\d+\.\d{6} +1 (->|<-) +(\d+) (\w+) +.*\((\d+ B)( \+ [\d.]+ \w+)?\)")


@pytest.fixture
def shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Inspect a file: exit code and lines."""

    def run(path: Path, *options: str) -> tuple[int, list[str]]:
        code = main(["inspect", str(path), *options])
        out, err = capsys.readouterr()
        assert err == ""
        return code, out.splitlines()

    return run


@pytest.fixture
def objects(shown):
    def run(path: Path, *options: str) -> tuple[int, list[dict]]:
        code, lines = shown(path, "--json", *options)
        found = [json.loads(line) for line in lines]
        assert all(each["schema"] == 1 for each in found)
        return code, found

    return run


def test_a_line_for_each_frame(shown, tmp_path: Path) -> None:
    code, lines = shown(TAPE.write(tmp_path / "x.rec", Side.DESTINATION))
    assert code == 0
    assert lines[0] == "recorded at the destination"
    frames = [LINE.fullmatch(line) for line in lines[: lines.index("")]]
    names = [found[3] for found in frames if found]
    assert names == [F(unit.type).name for unit in TAPE if unit.type != 0x5389]
    (ack,) = [line for line in lines if "ROUND_ACK" in line and "round 1" in line]
    assert "pages 48" in ack
    assert "rejected [0: 16+16]" in ack
    (hurt,) = [line for line in lines if "16 pages with a wrong hash" in line]
    assert " PAGES " in hurt
    assert "preface, newest version 1-draft.1" in lines[1]


def test_the_closing_summary(shown, tmp_path: Path) -> None:
    _, lines = shown(TAPE.write(tmp_path / "x.rec"))
    assert lines[lines.index("") + 1 :] == [
        "connection 1: the session ended in order; the guest runs at the destination",
        f"  guest 'simulated', 256 KiB, id {bytes(range(16)).hex()}",
        "  from the source: 28 frames, 578 KiB",
        "  from the destination: 12 frames, 992 B",
        "  round 1: 64 pages, 256 KiB in 5 ms, 16 pages rejected",
        "  round 2: 32 pages, 128 KiB in 3 ms",
        "  round 3: 16 pages, 64 KiB in 2 ms",
        "  round 4: 16 pages, 64 KiB in 2 ms",
        "  paused guest: 16 pages, 64 KiB in 2 ms",
        "  READY to RUNNING, as seen here: 8 ms",
    ]


def test_objects_for_programs(objects, tmp_path: Path) -> None:
    code, found = objects(TAPE.write(tmp_path / "x.rec"))
    assert code == 0
    assert [each["event"] for each in found[:3]] == ["recording", "preface", "frame"]
    assert found[-1] == {"schema": 1, "event": "end", "frames": 40, "ok": True}
    assert found[-2]["event"] == "session"
    assert found[-2]["outcome"] == "completed"
    frames = [each for each in found if each["event"] == "frame"]
    seal = next(each for each in frames if each["name"] == "SEAL")
    unit = TAPE[TAPE.where(F.SEAL)]
    assert seal["sequence"] == unit.sequence
    assert seal["type"] == F.SEAL
    assert seal["body_bytes"] == len(unit.body)
    assert seal["fields"]["digest"] == TAPE.record(F.SEAL).digest.hex()
    assert [each["damaged_pages"] for each in frames if each["damaged_pages"]] == [16]


def test_some_frames_only(shown, objects, tmp_path: Path) -> None:
    path = TAPE.write(tmp_path / "x.rec")
    _, lines = shown(path, "--only", "round*", "--only", "SEAL")
    names = [found[3] for line in lines if (found := LINE.fullmatch(line))]
    assert set(names) == {"ROUND", "ROUND_END", "ROUND_ACK", "SEAL"}
    assert not any("preface" in line for line in lines)
    _, found = objects(path, "--only", "0x*")
    assert [each["event"] for each in found] == ["recording", "session", "end"]


def test_one_connection_only(objects, tmp_path: Path) -> None:
    with (tmp_path / "x.rec").open("wb") as file:
        writer = RecordingWriter(file, Side.BETWEEN)
        TAPE.until(F.GUEST).write_to(writer)
        TAPE.without(F.ACCEPT).write_to(writer)
        Tape([Unit(S, b"HTTP")]).write_to(writer)
        writer.close()
    code, found = objects(tmp_path / "x.rec", "--connection", "1")
    assert code == 0
    assert {each.get("connection") for each in found} == {None, 1}
    assert objects(tmp_path / "x.rec")[0] == 1


def test_bytes_are_shown_and_tokens_are_not(shown, objects, tmp_path: Path) -> None:
    """[SEC-5]"""
    path = TAPE.write(tmp_path / "x.rec")
    _, lines = shown(path, "--hex", "--only", "HANDOVER", "--only", "WELCOME")
    dump = [line.split("  ")[3] for line in lines if re.match(r"    [0-9a-f]{6}  ", line)]
    raw = bytes.fromhex(" ".join(dump))
    assert TAPE[TAPE.where(F.HANDOVER)].raw in raw
    token = TAPE.record(F.WELCOME).token
    assert token not in raw
    assert bytes(32) in raw
    _, found = objects(path, "--hex")
    assert not any(token.hex() in json.dumps(each) for each in found)
    welcome = next(each for each in found if each.get("name") == "WELCOME")
    assert welcome["fields"]["token"] == "hidden"
    pages = next(each for each in found if each.get("name") == "PAGES")
    assert len(pages["hex"]) == 2 * (32 + pages["body_bytes"])  # the guest's memory is not shown
    (preface,) = [line for line in shown(path, "--hex")[1] if "000000  89 53 54" in line][:1]
    assert "STERNA" in preface


def test_a_peer_s_words_are_quoted(shown, objects, tmp_path: Path) -> None:
    """[SEC-12]"""
    words = "no\u202e, [red]never[/red] 'here'"
    refusal = Refuse(ErrorCode.FULL, 5, ("a\u200bb",), words)
    tape = Tape(TAPE[: TAPE.where(F.ACCEPT)]).inserted(TAPE.where(F.ACCEPT), D, refusal)
    _, lines = shown(tape.write(tmp_path / "x.rec"))
    line = next(line for line in lines if "REFUSE" in line)
    assert "code full" in line
    assert "text \"no\\u202e, [red]never[/red] 'here'\"" in line
    assert r"items ['a\u200bb']" in line
    assert "the destination refused with full" in lines[lines.index("") + 1]
    _, found = objects(tmp_path / "x.rec")
    assert next(each for each in found if each.get("name") == "REFUSE")["fields"]["text"] == words


def test_what_is_wrong_is_shown_where_it_is(shown, objects, tmp_path: Path) -> None:
    tape = TAPE.changed(F.ROUND_END, 0, pages=1)
    path = tape.write(tmp_path / "x.rec")
    code, lines = shown(path, "--only", "PAGES")
    assert code == 1
    at = next(at for at, line in enumerate(lines) if "WRONG" in line)
    assert "ROUND_END" in lines[at - 1]  # shown although it was not asked for
    assert "count_mismatch" in lines[at]
    assert "[RND-3]" in lines[at]
    code, found = objects(path)
    assert code == 1
    (wrong,) = [each for each in found if each["event"] == "wrong"]
    assert (wrong["clause"], wrong["code"], wrong["connection"]) == ("RND-3", "count_mismatch", 1)
    assert found[-1]["ok"] is False


def test_bytes_that_are_no_frame(shown, objects, tmp_path: Path) -> None:
    """The readable part, then what is wrong, then what the other side said."""
    at = TAPE.where(F.SEAL)
    bad = unchecked.patch(TAPE[at].raw, 40, b"\7", repair=False)
    words = Abort(ErrorCode.BODY_CHECKSUM, Phase.BLACKOUT, F.SEAL)
    heard = unchecked.frame(F.ABORT, unchecked.body(words), sequence=8)
    tape = Tape([*TAPE[:at], Unit(S, bad), Unit(D, heard)])
    path = tape.write(tmp_path / "x.rec")
    code, lines = shown(path, "--hex")
    assert code == 1
    where = next(number for number, line in enumerate(lines) if "WRONG: body_checksum" in line)
    assert "[HDR-10]: SEAL" in lines[where]
    assert bytes.fromhex(lines[where + 1].split("  ")[3]) == bad[:16]
    assert "ABORT" in lines[where + 8]
    assert "code body_checksum" in lines[where + 8]
    _, found = objects(path, "--hex")
    (wrong,) = [each for each in found if each["event"] == "wrong"]
    assert bytes.fromhex(wrong["hex"]) == bad
    (session,) = [each for each in found if each["event"] == "session"]
    assert session["unfinished_bytes"] == {"source": len(bad), "destination": 0}


def test_a_damaged_frame_does_not_show_its_token(objects, tmp_path: Path) -> None:
    """[SEC-5]"""
    at = TAPE.where(F.WELCOME)
    bad = unchecked.patch(TAPE[at].raw, 24, b"\7\7\7\7", repair=False)
    for raw in (bad, unchecked.patch(TAPE[at].raw, 33, b"\7", repair=False)):
        tape = Tape([*TAPE[:at], Unit(D, raw)])
        _, found = objects(tape.write(tmp_path / "x.rec"), "--hex")
        (wrong,) = [each for each in found if each["event"] == "wrong"]
        assert TAPE.record(F.WELCOME).token.hex() not in wrong["hex"]
        assert len(wrong["hex"]) == 2 * len(raw)


def test_a_damaged_recording(shown, objects, tmp_path: Path) -> None:
    """[REC-11] What is readable is shown, then what is wrong, and then what became of the sessions."""
    path = TAPE.until(F.SEAL).write(tmp_path / "x.rec", end=None)
    path.write_bytes(path.read_bytes()[:-24] + bytes(24))
    code, lines = shown(path)
    assert code == 2
    at = next(number for number, line in enumerate(lines) if "the recording is damaged" in line)
    assert "STATE" in lines[at - 1]
    assert "REC-3" in lines[at]
    assert any(line.startswith("connection 1: the recording ends") for line in lines[at:])
    code, found = objects(path)
    assert code == 2
    assert [each["event"] for each in found[-3:]] == ["notice", "session", "end"]


def test_a_recording_that_was_cut_off_or_given_up(shown, tmp_path: Path) -> None:
    """[REC-10]"""
    path = TAPE.write(tmp_path / "x.rec")
    path.write_bytes(path.read_bytes()[:-1000])
    code, lines = shown(path)
    assert code == 0
    assert "was cut off" in lines[-1]
    cut = TAPE.until(F.PAGES, 2).write(tmp_path / "z.rec", end=How.LOST)
    assert any("round 1: 32 pages, 128 KiB without end" in line for line in shown(cut)[1])
    with (tmp_path / "y.rec").open("wb") as file:
        writer = RecordingWriter(file, Side.BETWEEN)
        writer.close(gave_up=True, text="full")
    assert shown(tmp_path / "y.rec")[1] == ["recorded between the two sides", "the recorder gave up: full"]


def test_a_session_that_cannot_be_judged(shown, tmp_path: Path) -> None:
    code, lines = shown(TAPE.write(tmp_path / "x.rec"), "--memory", "1000B")
    assert code == 2
    assert any("connection 1 cannot be judged any more: a guest of 64 pages" in line for line in lines)
    assert any(" BYE " in line for line in lines)


def test_frames_of_unknown_type(shown, tmp_path: Path) -> None:
    """[FRM-7]"""
    at = TAPE.where(F.SEAL)
    tape = Tape([*TAPE[:at], Unit(S, unchecked.frame(0x7F01, b"abc")), *TAPE[at:]]).renumbered()
    _, lines = shown(tape.write(tmp_path / "x.rec"))
    assert any("0x7f01     skipped (3 B)" in line for line in lines)
    assert "  of unknown type, and skipped: 1 frame" in lines


@pytest.mark.parametrize(("side", "sender"), [("source", S), ("destination", D)])
def test_the_bytes_of_one_side(side: str, sender, shown, objects, tmp_path: Path) -> None:
    """Such as another tool has captured: nobody judges a conversation of which half is missing."""
    units = [unit for unit in TAPE if unit.sender is sender]
    path = tmp_path / "x.bin"
    path.write_bytes(b"".join(unit.raw for unit in units))
    code, lines = shown(path, "--raw", side)
    assert code == 0
    assert len([line for line in lines if LINE.fullmatch(line)]) == len(units) - 1
    assert "connection 1: one side of it" in lines
    path.write_text(path.read_bytes().hex(" ", 7))
    code, found = objects(path, "--raw", side, "--hex-input")
    assert code == 0
    assert found[-2]["outcome"] is None
    assert found[-2]["frames"][side] == len(units) - 1


def test_damage_in_the_bytes_of_one_side(shown, tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(TAPE[0].raw + bytes(100))
    code, lines = shown(path, "--raw", "source")
    assert code == 1
    assert any("[HDR-2]" in line for line in lines)


def test_what_is_read_as_a_recording_by_mistake(tmp_path: Path, capsys) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(TAPE[0].raw)
    assert main(["inspect", str(path)]) == 2
    assert "--raw source or --raw destination" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("00", ["--hex-input"], "say whose they are with --raw"),
        ("0", ["--hex-input", "--raw", "source"], "odd number"),
        ("zz", ["--hex-input", "--raw", "source"], "not hex digits"),
        ("\u00e4", ["--hex-input", "--raw", "source"], "not hex digits"),
        ("", ["--raw", "nobody"], "nobody"),
    ],
)
def test_wrong_wishes(text: str, options: list[str], says: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "x"
    path.write_text(text)
    assert main(["inspect", str(path), *options]) == 2
    assert says in capsys.readouterr().err


def test_from_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    class Stdin:
        buffer = io.BytesIO(TAPE.write(tmp_path / "x.rec").read_bytes())

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert main(["inspect", "-"]) == 0
    assert "HANDOVER" in capsys.readouterr().out


@pytest.mark.slow
def test_lines_come_while_the_recording_grows() -> None:
    """And whoever has seen enough may go: `sterna inspect - | head`."""
    reading, writing = os.pipe()
    command = [sys.executable, "-P", "-m", "sterna", "inspect", "-"]
    with subprocess.Popen(command, stdin=reading, stdout=subprocess.PIPE, text=True) as process:
        os.close(reading)
        assert process.stdout is not None
        with os.fdopen(writing, "wb", buffering=0) as file:
            writer = RecordingWriter(file, Side.SOURCE)
            connection = writer.connect()
            writer.passed(connection, S, TAPE[0].raw)
            assert process.stdout.readline() == "recorded at the source\n"
            assert "preface" in process.stdout.readline()
            process.stdout.close()
            for unit in TAPE[1:5]:
                writer.passed(connection, unit.sender, unit.raw)
        assert process.wait(timeout=60) == 0

"""`sterna verify`: verdicts, their exit codes, and what is told of them."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from cli_support import only_object
from hypothesis import given
from hypothesis import strategies as st
from rich.status import Status

from observe_support import D, S, Tape, Unit, migration
from sterna.cli import verify as module
from sterna.cli.main import main
from sterna.cli.output import Output
from sterna.observe.recording import How, RecordingWriter, Side
from sterna.registry import ErrorCode, Phase
from sterna.registry import FrameType as F
from sterna.wire.records import Abort

TAPE = migration()
WRONG = TAPE.changed(F.SEAL, digest=bytes(16))


@pytest.fixture
def verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Verify a recording: exit code, what is told, what JSON says."""

    def run(path: Path, *options: str) -> tuple[int, str, dict]:
        code = main(["verify", str(path), *options])
        told = capsys.readouterr()
        assert told.out == ""
        assert main(["verify", str(path), *options, "--json"]) == code
        again = capsys.readouterr()
        return code, told.err, only_object(again.out)

    return run


def test_a_good_recording(verified, tmp_path: Path) -> None:
    code, text, fields = verified(TAPE.write(tmp_path / "x.rec", Side.SOURCE))
    assert code == 0
    assert "connection 1: OK: the session ended in order; the guest runs at the destination" in text
    assert text.splitlines()[-1].startswith("OK: 1 connection, 39 frames, 128 pages (512 KiB) hashed")
    assert fields["ok"] is True
    assert fields["recording"] == {
        "side": "source",
        "clock": "since_start",
        "started_ns": 0,
        "cut_off": False,
        "gave_up": None,
        "damage": None,
    }
    (session,) = fields["sessions"]
    assert (session["ok"], session["outcome"], session["runs"]) == (True, "completed", "destination")
    assert session["frames"] == {"source": 27, "destination": 12}
    assert [each["round"] for each in session["rounds"]] == [1, 2, 3, 4, 5]
    assert session["digest"] == TAPE.record(F.SEAL).digest.hex()
    assert session["seconds_blackout"] == pytest.approx(0.008)
    assert (fields["session_count"], fields["frames"], fields["pages"]) == (1, 39, 128)


def test_the_first_thing_that_is_wrong(verified, tmp_path: Path) -> None:
    code, text, fields = verified(WRONG.write(tmp_path / "x.rec"))
    assert code == 1
    at = sum(len(unit.raw) for unit in WRONG.until(F.SEAL) if unit.sender is S)
    assert "WRONG: digest_mismatch: 0 pages missing" in text
    number = WRONG[WRONG.where(F.SEAL)].sequence
    assert f"[MEM-15]: SEAL (frame {number}) of the source, at byte {at} of what it sent" in text
    assert text.splitlines()[-1].startswith("WRONG: 1 connection")
    assert fields["ok"] is False
    (session,) = fields["sessions"]
    fault = session["fault"]
    assert (fault["clause"], fault["code"], fault["from"]) == ("MEM-15", "digest_mismatch", "source")
    assert (fault["frame"], fault["sequence"], fault["offset"]) == ("SEAL", number, at)


def test_what_is_wrong_without_a_code_and_inside_a_frame(verified, tmp_path: Path) -> None:
    ping = Tape([*TAPE[:2], Unit(S, TAPE[TAPE.where(F.PING)].raw), *TAPE[2:]]).renumbered()
    _, text, fields = verified(ping.write(tmp_path / "x.rec"))
    assert "WRONG: PING before WELCOME [CON-2]: PING (frame 1)" in text
    assert fields["sessions"][0]["fault"]["code"] is None
    _, text, _ = verified(TAPE.patched(F.ROUND, 0, 6, b"\1").write(tmp_path / "y.rec"))
    assert "6 bytes into it" in text
    _, text, _ = verified(Tape([Unit(S, b"GET / HTTP/1.1\r\n")]).write(tmp_path / "z.rec"))
    assert "[PRE-5]: bytes of the source, at byte 0" in text


def test_how_the_other_side_took_it(verified, tmp_path: Path) -> None:
    at = WRONG.where(F.SEAL) + 1
    words = Abort(ErrorCode.DIGEST_MISMATCH, Phase.BLACKOUT, F.SEAL, 22)
    _, text, _ = verified(Tape(WRONG[:at]).inserted(at, D, words).write(tmp_path / "x.rec"))
    assert "the destination aborted with digest_mismatch; the guest is with the source" in text


def test_a_session_that_did_not_end_in_order(verified, tmp_path: Path) -> None:
    """[CON-69] Not wrong by itself, unless it is asked for."""
    path = TAPE.until(F.RUNNING).write(tmp_path / "x.rec", end=How.LOST)
    code, text, fields = verified(path)
    assert code == 0
    assert "OK: the connection ended before the session" in text
    assert "the destination may run the guest" in text
    assert fields["sessions"][0]["runs"] == "undecided"
    code, text, fields = verified(path, "--completed")
    assert code == 1
    assert "NOT COMPLETED" in text
    assert fields["ok"] is fields["sessions"][0]["ok"] is False
    assert verified(TAPE.write(tmp_path / "y.rec"), "--completed")[0] == 0


def test_a_recording_that_was_cut_off(verified, tmp_path: Path) -> None:
    """[REC-10]"""
    path = TAPE.write(tmp_path / "x.rec")
    path.write_bytes(path.read_bytes()[:-200])
    code, text, fields = verified(path)
    assert code == 0
    assert "the recording was cut off" in text
    assert fields["recording"]["cut_off"] is True


def test_a_damaged_recording(verified, tmp_path: Path) -> None:
    """[REC-11] What was read before counts: a fault is found there, but no verdict is good."""
    path = TAPE.write(tmp_path / "x.rec")
    path.write_bytes(path.read_bytes() + b"more")
    code, text, fields = verified(path)
    assert code == 2
    assert "the recording is damaged" in text
    assert text.splitlines()[-1].startswith("NOT CHECKED")
    assert fields["ok"] is False
    assert fields["recording"]["damage"]["clause"] == "REC-9"
    assert fields["recording"]["damage"]["offset"] == path.stat().st_size - 4
    assert fields["sessions"][0]["ok"] is True
    path.write_bytes(WRONG.write(tmp_path / "y.rec").read_bytes() + b"more")
    assert verified(path)[0] == 1


def test_a_recorder_that_gave_up(verified, tmp_path: Path) -> None:
    with (tmp_path / "x.rec").open("wb") as file:
        writer = RecordingWriter(file, Side.SOURCE)
        TAPE.until(F.SEAL).write_to(writer, end=None)
        writer.close(gave_up=True, text="the disk is full")
    code, text, fields = verified(tmp_path / "x.rec")
    assert code == 0
    assert "the recorder gave up: the disk is full" in text
    assert fields["recording"]["gave_up"] == "the disk is full"


def test_a_recording_of_nothing_was_not_checked(verified, tmp_path: Path) -> None:
    """Nobody shall take it for good."""
    for tape in (Tape(), Tape(TAPE[:1])):
        code, text, fields = verified(tape.write(tmp_path / "x.rec"))
        assert code == 2
        assert "there is no session in it" in text
        assert fields["ok"] is False


def test_a_guest_that_is_too_large(verified, tmp_path: Path) -> None:
    code, text, fields = verified(TAPE.write(tmp_path / "x.rec"), "--memory", "1000B")
    assert code == 2
    assert "NOT CHECKED: a guest of 64 pages takes 640 B of memory" in text
    assert "--memory" in fields["sessions"][0]["trouble"]


def test_many_sessions(verified, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bounded`: all are checked, some are told one by one."""
    monkeypatch.setattr(module, "SESSIONS_TOLD", 2)
    with (tmp_path / "x.rec").open("wb") as file:
        writer = RecordingWriter(file, Side.DESTINATION)
        for tape in (TAPE, TAPE.until(F.GUEST), TAPE, WRONG):
            tape.write_to(writer)
        writer.close()
    code, text, fields = verified(tmp_path / "x.rec")
    assert code == 1
    assert "and 2 more connections" in text
    assert fields["session_count"] == 4
    assert len(fields["sessions"]) == 2


@pytest.mark.slow
@given(st.data())
def test_any_file_gives_a_verdict(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """`coded-refusal`: a recording with anything in place of some of its bytes, or more, or less of them."""
    at = data.draw(st.integers(0, len(whole)))
    until = data.draw(st.integers(at, min(at + 2000, len(whole))))
    path = tmp_path_factory.mktemp("any") / "x.rec"
    path.write_bytes(whole[:at] + data.draw(st.binary(max_size=100)) + whole[until:])
    assert main(["verify", str(path)]) in {0, 1, 2}
    assert main(["inspect", str(path), "--hex"]) in {0, 1, 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return TAPE.write(tmp_path_factory.mktemp("whole") / "x.rec").read_bytes()


def test_who_watches_sees_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    told: list[str] = []
    monkeypatch.setattr(Output, "live", True)
    monkeypatch.setattr(module, "STEP_BYTES", 300_000)
    monkeypatch.setattr(Status, "update", lambda _, text: told.append(text))
    path = TAPE.write(tmp_path / "x.rec")
    assert main(["verify", str(path)]) == 0
    (once,) = told
    assert once.endswith(" KiB read")
    path.write_bytes(path.read_bytes() + b"more")
    assert main(["verify", str(path)]) == 2
    assert "NOT CHECKED" in capsys.readouterr().err


def test_from_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    class Stdin:
        buffer = io.BytesIO(TAPE.write(tmp_path / "x.rec").read_bytes())

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert main(["verify", "-", "--json"]) == 0
    assert only_object(capsys.readouterr().out)["ok"] is True


@pytest.mark.parametrize(
    ("name", "says"),
    [("nothing", "cannot read .*No such file"), (".", "Is a directory"), ("text", "no recording of Sterna")],
)
def test_what_cannot_be_read(name: str, says: str, tmp_path: Path, capsys) -> None:
    """[REC-1] Exit code 2, with the reason."""
    (tmp_path / "text").write_text("some text that is no recording")
    assert main(["verify", str(tmp_path / name), "--json"]) == 2
    error = only_object(capsys.readouterr().out)["error"]
    assert error["exit"] == 2
    assert re.search(says, error["text"])

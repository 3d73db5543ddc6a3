from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from descriptors_support import nothing_stays_open
from sterna.guest.journal import GuestJournal, Journal, boottime_ns
from sterna.wire.records import Runner

RUNNER = Runner("here", bytes(range(16)))


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    before = boottime_ns()
    for event in ("run", "pause"):  # two holders, one file
        journal = Journal(str(path))
        journal.append(5, 2, RUNNER, event)
        journal.close()
        journal.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    name = "here:000102030405060708090a0b0c0d0e0f"
    assert [line[:3] + line[4:] for line in lines] == [[5, 2, name, "run"], [5, 2, name, "pause"]]
    assert before <= lines[0][3] <= lines[1][3] <= boottime_ns()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert journal.failure == ""


def test_no_path_no_file() -> None:
    journal = Journal(None)
    journal.append(1, 1, RUNNER, "run")
    journal.close()


def test_the_guest_does_not_stop_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(str(tmp_path / "journal"))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    journal.append(1, 1, RUNNER, "run")
    journal.append(2, 1, RUNNER, "beat")
    journal.close()
    assert "No space left" in journal.failure


def test_a_line_that_was_cut_off_swallows_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(str(tmp_path / "journal"))
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
        journal.append(1, 1, RUNNER, "run")
    assert "10 of" in journal.failure
    for count in (2, 3):
        journal.append(count, 1, RUNNER, "beat")
    journal.close()
    cut, *whole = (tmp_path / "journal").read_text().splitlines()
    assert len(cut) == 10
    assert [json.loads(line)[0] for line in whole] == [2, 3]


@pytest.mark.parametrize("kind", ["link", "pipe", "device", "directory"])
def test_what_is_no_journal(tmp_path: Path, kind: str) -> None:
    """Opening a pipe without a reader would wait for ever; a link may lead to somebody else's file."""
    path, other = tmp_path / "journal", tmp_path / "other"
    other.write_text("")
    if kind == "link":
        path.symlink_to(other)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path = Path("/dev/null")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if kind == "pipe" else -1
    with nothing_stays_open(), pytest.raises(OSError, match=r"regular|symbolic|directory"):
        Journal(str(path))
    if reader >= 0:
        os.close(reader)
        with pytest.raises(OSError, match="No such device or address"):
            Journal(str(path))


class Guest:
    """One that writes when a test says so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self.journal = GuestJournal(str(path), lambda: self.count)

    def writes(self, event: str) -> None:
        self.count += 1
        self.journal.progress(event)

    def lines(self) -> list[tuple[int, int, str]]:
        found = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [(line[0], line[1], line[4]) for line in found]


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path / "journal")


def test_a_guests_life(guest: Guest) -> None:
    with guest.journal.running(1, RUNNER):
        guest.journal.expect("run")
    guest.journal.progress("beat")  # it has not written
    guest.writes("run")
    guest.journal.progress("run")  # in another of its threads
    guest.journal.progress("beat")  # not a write since
    guest.writes("beat")
    guest.journal.note("pause")
    guest.journal.grant()
    guest.journal.grant(revoked=True)
    guest.journal.end()
    assert guest.lines() == [
        (1, 1, "run"), (2, 1, "beat"), (2, 1, "pause"), (2, 1, "granted"), (2, 1, "revoked"), (2, 1, "end")
    ]  # fmt: skip
    guest.journal.close()


def test_one_that_was_granted_has_no_end(guest: Guest) -> None:
    with guest.journal.running(1, RUNNER):
        guest.journal.expect("run")
    guest.writes("run")
    guest.journal.grant()
    guest.journal.end()
    assert [line[2] for line in guest.lines()] == ["run", "granted"]


def test_what_happens_before_the_first_write_of_an_epoch_is_told_by_nobody(guest: Guest) -> None:
    """Its count is that of the host before, which has told it under its own epoch."""
    with guest.journal.running(2, RUNNER):
        guest.journal.expect("run")
    guest.journal.note("pause")
    guest.journal.expect("resume")
    guest.writes("resume")
    assert guest.lines() == [(1, 2, "run")]  # what was not told yet goes first


def test_a_run_that_fails_is_not_remembered(guest: Guest) -> None:
    with pytest.raises(ZeroDivisionError), guest.journal.running(5, RUNNER):
        raise ZeroDivisionError
    assert (guest.journal.epoch, guest.journal.granted) == (0, False)

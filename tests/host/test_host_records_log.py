from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from records_support import CLAIM, EVERYTHING, FIRST, GUEST, IMAGE, RECEIVING, SENDING
from sterna.core.history import History, RecordConflict, essence
from sterna.core.records import Claiming, Record, Released, Start
from sterna.errors import RecordError
from sterna.host.durable import Files, OsFiles
from sterna.host.records_codec import check_of, encode_record
from sterna.host.records_log import TOGETHER_MAX, RecordLog, RecordsMissing, look
from sterna.testing import Crashed, CrashFiles
from sterna.wire.records import Runner

OPERATIONS = 6 * len(EVERYTHING) + 40  # of a run over all records


def write(files: Files, directory: str, reported: list[Record], together: int = 1) -> None:
    """Go on with the records where the log has ended, as a controller that has come after another."""
    log = RecordLog(files, directory, GUEST)
    assert tuple(reported) == log.history.records[: len(reported)], "what was reported is gone"
    reported[:] = log.history.records
    while len(reported) < len(EVERYTHING):
        records = EVERYTHING[len(reported) :][:together]
        log.append(*records)
        reported += records
        if len(reported) % 3:  # as a keeper does, unless it is cut off
            log.settle()


# ---- on the disk ----


def test_records_are_there_when_it_is_opened_again(tmp_path: Path) -> None:
    """[LOG-3]"""
    reported: list[Record] = []
    write(OsFiles(), str(tmp_path), reported)
    assert tuple(reported) == EVERYTHING
    assert RecordLog(OsFiles(), str(tmp_path), GUEST).history.records == EVERYTHING
    assert RecordLog(OsFiles(), str(tmp_path), GUEST[::-1]).history.records == ()


def test_files_are_for_their_owner(tmp_path: Path) -> None:
    """They hold tokens [LOG-8, SEC-5]."""
    os.umask(os.umask(0))
    log = RecordLog(OsFiles(), str(tmp_path), GUEST)
    log.append(RECEIVING)
    folder = tmp_path / GUEST.hex()
    assert folder.stat().st_mode & 0o777 == 0o700
    modes = {path.name[:4]: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes == {"log-": 0o600, "head": 0o600}
    assert "secret" not in repr(log.history)
    assert repr(RECEIVING.token) not in repr(log.history)


def test_what_contradicts_changes_nothing(tmp_path: Path) -> None:
    log = RecordLog(OsFiles(), str(tmp_path), GUEST)
    with pytest.raises(RecordConflict):
        log.append(CLAIM)
    with pytest.raises(RecordError, match="control characters"):
        log.append(replace(RECEIVING, peer="a\nb"))
    log.append(RECEIVING)
    log.append(RECEIVING)
    assert log.history.records == (RECEIVING,)
    assert RecordLog(OsFiles(), str(tmp_path), GUEST).history.records == (RECEIVING,)


def test_two_records_are_appended_as_one(tmp_path: Path) -> None:
    """[ONE-62, LOG-3] Either both are possible, or nothing has changed."""
    log = RecordLog(OsFiles(), str(tmp_path), GUEST)
    log.append(RECEIVING)
    with pytest.raises(RecordConflict):
        log.append(CLAIM, Start(9))
    assert log.history.records == (RECEIVING,)
    log.append(CLAIM, Start(2))
    log.append(CLAIM, Start(2))
    assert RecordLog(OsFiles(), str(tmp_path), GUEST).history.records == (RECEIVING, CLAIM, Start(2))


def test_the_head_follows(tmp_path: Path) -> None:
    """[LOG-3] It is written before the next line at the latest, and nothing is synced twice for a record."""

    class Counting(OsFiles):
        synced: tuple[str, ...] = ()

        def sync(self, path: str) -> None:
            super().sync(path)
            self.synced += (Path(path).name[:4],)

    files = Counting()
    log = RecordLog(files, str(tmp_path), GUEST)
    files.synced = ()
    log.append(RECEIVING)
    assert files.synced == ("log-",)
    log.append(CLAIM)
    assert files.synced == ("log-", "head", "log-")
    for _ in range(2):
        log.settle()
        assert files.synced[3:] == ("head",)


def test_a_log_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sterna.host.records_log.LOG_BYTES_MAX", 600)
    log = RecordLog(OsFiles(), str(tmp_path), GUEST)
    log.append(FIRST)
    with pytest.raises(RecordError, match="is full; too many sessions"):
        log.append(RECEIVING)
    assert RecordLog(OsFiles(), str(tmp_path), GUEST).history.records == (FIRST,)


# ---- what was lost ----


def log_of(folder: Path) -> Path:
    (found,) = folder.glob("log-*")
    return found


def cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def end_of_log(folder: Path) -> int:
    return len(log_of(folder).read_bytes().rstrip(b"\0"))


def lose_the_end(folder: Path) -> None:
    cut(log_of(folder), end_of_log(folder) - 1)


def lose_two_records(folder: Path) -> None:
    lines = log_of(folder).read_bytes().split(b"\n")
    cut(log_of(folder), sum(len(line) + 1 for line in lines[:-3]))


def lose_all_records(folder: Path) -> None:
    cut(log_of(folder), log_of(folder).read_bytes().index(b"\n") + 1)


def damage_one(folder: Path) -> None:
    data = bytearray(log_of(folder).read_bytes())
    data[len(data) // 50] ^= 1
    with log_of(folder).open("r+b") as file:
        file.write(data)


def lose_the_log(folder: Path) -> None:
    log_of(folder).unlink()


def lose_the_head(folder: Path) -> None:
    (folder / "head").unlink()


def zero_the_head(folder: Path) -> None:
    (folder / "head").write_bytes(bytes(1024))


def damage_the_head(folder: Path) -> None:
    """The newer of its places: the older one does not know of the last record."""
    data = bytearray((folder / "head").read_bytes())
    newer = len(EVERYTHING) % 2 * 512
    data[newer + 100] ^= 1
    with (folder / "head").open("r+b") as file:
        file.write(data)
    lose_the_end(folder)


def restore_a_copy(folder: Path) -> None:
    log = log_of(folder)
    (folder / "copy").write_bytes(log.read_bytes())
    (folder / "copy").rename(log)


def restore_an_older_head(folder: Path) -> None:
    older = (folder / "older").read_bytes()
    (folder / "head").write_bytes(older)


def exchange_guests(folder: Path) -> None:
    other = GUEST[::-1]
    RecordLog(OsFiles(), str(folder.parent), other).append(FIRST)
    log_of(folder).unlink()
    for path in (folder.parent / other.hex()).iterdir():
        path.rename(folder / path.name)


@pytest.mark.parametrize(
    "lose",
    [
        lose_the_end, lose_two_records, lose_all_records, damage_one, lose_the_log, lose_the_head,
        zero_the_head, damage_the_head, restore_a_copy, restore_an_older_head, exchange_guests,
    ],
)  # fmt: skip
def test_a_history_that_was_cut_is_missing(tmp_path: Path, lose: Callable[[Path], None]) -> None:
    """[ONE-57, LOG-5, LOG-6]"""
    log = RecordLog(OsFiles(), str(tmp_path), GUEST)
    folder = tmp_path / GUEST.hex()
    for number, record in enumerate(EVERYTHING):
        log.append(record)
        log.settle()
        if number == len(EVERYTHING) - 4:
            (folder / "older").write_bytes((folder / "head").read_bytes())
    lose(folder)
    for _ in range(2):  # and nothing is mended behind the operator's back
        with pytest.raises(RecordsMissing, match="no record of the guest counts any more"):
            RecordLog(OsFiles(), str(tmp_path), GUEST)


@given(data=st.data())
def test_no_damage_is_mistaken_for_an_older_history(data: st.DataObject) -> None:
    """Any byte of either file, changed or cut: the whole history, or none of it [ONE-57]."""
    files = CrashFiles(random.Random(0))
    files.make_directory("/records", 0o700)
    log = RecordLog(files, "/records", GUEST)
    count = data.draw(st.integers(1, len(EVERYTHING)))
    for record in EVERYTHING[:count]:
        log.append(record)
    log.settle()
    place = f"/records/{GUEST.hex()}"
    path = f"{place}/{data.draw(st.sampled_from(sorted(files.names(place, 9) or ())))}"
    content = (files.read(path, 1 << 20) or b"").rstrip(b"\0")
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        files.write(path, place, bytes([content[place] ^ data.draw(st.integers(1, 255))]))
    else:
        files.truncate(path, place)
    with suppress(RecordsMissing):
        assert RecordLog(files, "/records", GUEST).history.records == EVERYTHING[:count]


# ---- crashes ----


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**32),
    crashes=st.lists(st.integers(1, OPERATIONS), min_size=1, max_size=6),
    together=st.integers(1, TOGETHER_MAX),
)
def test_what_was_reported_is_there_after_any_crash(seed: int, crashes: list[int], together: int) -> None:
    """Crash after crash, in the middle of mending too: nothing reported is lost, nothing else appears, and no
    crash alone makes records count as missing, nor shows the second of two without the first [ONE-57, ONE-62,
    LOG-3, LOG-4]."""
    files = CrashFiles(random.Random(seed))
    files.make_directory("/records", 0o700)
    files.sync_directory("/")
    reported: list[Record] = []
    for crash in crashes:
        files.plan(crash_at=crash)
        with suppress(Crashed):
            write(files, "/records", reported, together)
        files = files.restarted()
    found = RecordLog(files, "/records", GUEST).history.records
    assert found[: len(reported)] == tuple(reported)
    assert found == EVERYTHING[: len(found)]
    assert len(found) <= len(reported) + together
    write(files, "/records", reported)
    assert tuple(reported) == EVERYTHING


@pytest.mark.slow
def test_every_single_crash_point() -> None:
    """Likewise, each operation in turn, several outcomes each."""
    for crash in range(1, OPERATIONS):
        for seed in range(4):
            files = CrashFiles(random.Random(seed))
            files.make_directory("/records", 0o700)
            files.sync_directory("/")
            files.plan(crash_at=crash)
            reported: list[Record] = []
            with suppress(Crashed):
                write(files, "/records", reported, 1 + seed % TOGETHER_MAX)
            write(files.restarted(), "/records", reported)
            assert tuple(reported) == EVERYTHING


@pytest.mark.slow
@given(seed=st.integers(0, 2**32), failures=st.lists(st.integers(1, OPERATIONS), min_size=1, max_size=6))
def test_what_was_reported_is_there_after_any_error(seed: int, failures: list[int]) -> None:
    """An operation fails, and what it should have written is dropped, as Linux does; then the power fails."""
    files = CrashFiles(random.Random(seed))
    files.make_directory("/records", 0o700)
    files.sync_directory("/")
    reported: list[Record] = []
    for failure in failures:
        files.plan(fail_at=failure)
        with suppress(OSError):
            write(files, "/records", reported)
        files = files.restarted()
    found = RecordLog(files, "/records", GUEST).history.records
    assert found[: len(reported)] == tuple(reported)
    assert len(found) <= len(reported) + 1


def go_on(files: Files, reported: list[Record]) -> None:
    """As `write`, where a long log is begun anew: what still matters of what was reported is there."""
    log = RecordLog(files, "/records", GUEST)
    known = [EVERYTHING[:count] for count in (len(reported), len(reported) + 1)]
    found = [essence(History(GUEST, each)) for each in known]
    assert essence(log.history) in found, "what was reported is gone"
    reported[:] = known[found.index(essence(log.history))]
    for record in EVERYTHING[len(reported) :]:
        log.append(record)
        reported.append(record)


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**32),
    plans=st.lists(
        st.tuples(st.booleans(), st.integers(1, OPERATIONS), st.booleans()), min_size=1, max_size=8
    ),
)
def test_a_log_that_is_begun_anew(seed: int, plans: list[tuple[bool, int, bool]]) -> None:
    """At every opening, with crashes and errors at any point of it [LOG-9]."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sterna.host.records_log._LONG_BYTES", 0)
        files = CrashFiles(random.Random(seed))
        files.make_directory("/records", 0o700)
        files.sync_directory("/")
        reported: list[Record] = []
        for crash, operation, restart in [*plans, (True, 0, True)]:
            files.plan(**{"crash_at" if crash else "fail_at": operation})
            with suppress(Crashed, OSError):
                go_on(files, reported)
            if restart or crash:
                files = files.restarted()
        assert tuple(reported) == EVERYTHING
        last = RecordLog(files, "/records", GUEST).history
        assert essence(last) == essence(History(GUEST, EVERYTHING))
        assert len(last.records) < len(EVERYTHING)
        assert len([name for name in files.names(f"/records/{GUEST.hex()}", 99) or () if name != "head"]) == 1


@pytest.mark.slow
def test_a_log_that_has_become_long() -> None:
    """Hundreds of migrations of one guest leave a short log [LOG-9]."""
    files = CrashFiles(random.Random(0))
    files.make_directory("/records", 0o700)
    log = RecordLog(files, "/records", GUEST)
    for number in range(1, 121):
        session = replace(RECEIVING, session=number.to_bytes(16, "big"), epoch=number)
        log.append(session)
        log.append(Claiming(session.session, number + 1, Runner("here", session.session), IMAGE))
        log.append(Start(number + 1))
        log.append(Released(session.session))
    short = RecordLog(files, "/records", GUEST)
    # Of the newest session, and of the one that led to its epoch.
    assert short.history.records == log.history.records[-8:]
    short.append(replace(SENDING, epoch=121))
    assert RecordLog(files, "/records", GUEST).history == short.history


def test_a_log_that_contradicts_itself(tmp_path: Path) -> None:
    """Sealed and chained, and made by no writer of ours."""
    log = RecordLog(OsFiles(), str(tmp_path), GUEST)
    log.append(RECEIVING)
    path = log_of(tmp_path / GUEST.hex())
    data = path.read_bytes().rstrip(b"\0")
    line = encode_record(Start(2), 2, check_of(data))
    OsFiles().write(str(path), len(data), line)
    with pytest.raises(RecordsMissing, match="contradicts an earlier one"):
        RecordLog(OsFiles(), str(tmp_path), GUEST)


def test_a_head_whose_places_do_not_fit(tmp_path: Path) -> None:
    log = RecordLog(OsFiles(), str(tmp_path), GUEST)
    log.append(RECEIVING)
    log.settle()
    head = tmp_path / GUEST.hex() / "head"
    places = head.read_bytes()
    for wrong in (places[512:] + places[:512], places[512:] * 2):
        head.write_bytes(wrong)
        with pytest.raises(RecordsMissing, match="do not fit together"):
            RecordLog(OsFiles(), str(tmp_path), GUEST)


WRITER = """
import sys
from records_support import EVERYTHING
from sterna.host.durable import OsFiles
from sterna.host.records_log import RecordLog
for number in range(1 << 16):
    log = RecordLog(OsFiles(), sys.argv[1], number.to_bytes(16, "big"))
    for record in EVERYTHING:
        log.append(record)
        print(number, flush=True)
        if len(log.history.records) % 3:
            log.settle()
"""


@pytest.mark.slow
def test_a_writer_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL at any moment, again and again: what was reported is there, in all of its logs [ONE-57]."""
    chance = random.Random(1)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    for number in range(4):
        directory = tmp_path / str(number)
        directory.mkdir()
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(directory)], stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(chance.randrange(1, 300))]
            process.send_signal(signal.SIGKILL)
            reported = Counter([*lines, *process.stdout])
        for guest in range(len(reported) + 1):
            found = RecordLog(OsFiles(), str(directory), guest.to_bytes(16, "big")).history.records
            assert found == EVERYTHING[: len(found)]
            assert 0 <= len(found) - reported[f"{guest}\n"] <= 1


def test_looking_changes_nothing(tmp_path: Path) -> None:
    assert look(OsFiles(), str(tmp_path), GUEST) is None
    assert list(tmp_path.iterdir()) == []
    log = RecordLog(OsFiles(), str(tmp_path), GUEST)
    log.append(RECEIVING)
    before = {path.name: path.read_bytes() for path in (tmp_path / GUEST.hex()).iterdir()}
    found = look(OsFiles(), str(tmp_path), GUEST)
    assert found is not None
    assert found.history.records == (RECEIVING,)
    log.append(CLAIM)
    log.append(Start(2))
    assert found.history.records == (RECEIVING,)
    assert len(before) == 2

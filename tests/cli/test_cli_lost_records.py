"""A guest that stands still, and of which no record says why: an operator's way out."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_cli_resolve import history, resolve
from test_cli_verdict import FIRST, RECEIVING, SENDING, mark, newest_slot, note, store_of, told

from holder_support import GUEST_ID, holder
from records_support import ONE
from sterna.cli.exits import Exit
from sterna.core.records import Granted, SessionRecord, Side
from sterna.core.verdict import Slot
from sterna.wire.records import Runner

FENCED = ["--i-have-fenced", "there"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "records"


def lose(directory: Path, how: str) -> None:
    """What a host had noted when the guest was granted."""
    if how == "all":
        return
    note(directory, SENDING, Granted(ONE, 2))
    if how == "damaged":
        (directory / GUEST_ID.hex() / "head").unlink()
    else:
        shutil.rmtree(directory / GUEST_ID.hex())


@pytest.mark.parametrize("how", ["all", "directory", "damaged"])
def test_the_mark_is_decided_where_nothing_else_is_left(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path, how: str
) -> None:
    """[ONE-59] [ONE-47] [LOG-6] It runs here again; until then `verdict` says that only an operator can."""
    with holder(tmp_path / "h", with_guest=True) as engine:
        mark(tmp_path / "h", engine)
        lose(directory, how)
        code, fields = told(capsys, directory, "--holder", tmp_path / "h")
        assert (code, fields["clause"]) == (Exit.UNDECIDED, "ONE-57" if how == "damaged" else "ONE-61")
        assert "somebody has to make certain" in fields["next"]
        options = [*FENCED, "--holder", tmp_path / "h", "--records-lost"]
        code, fields = resolve(capsys, directory, "source", *options)
        assert (code, fields["recorded"], fields["owner"]) == (Exit.OK, "resolved", "source")
        assert (engine.state, engine.epoch) == ("running", 3)
        assert told(capsys, directory, "--holder", tmp_path / "h")[0] == Exit.OK
        assert resolve(capsys, directory, "source", *options)[0] == Exit.USAGE  # there is no mark any more
    (session,) = history(directory).each(SessionRecord)
    assert (session.side, session.epoch, session.peer) == (Side.SOURCE, 1, "")
    aside = [each.name for each in (directory / GUEST_ID.hex()).glob("aside-*")]
    assert bool(aside) is (how == "damaged")


def test_with_a_store_the_slot_decides_still(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-59] [ONE-20] [ONE-65] What is lost are records, and not what the store has of the guest."""
    leases = store_of(tmp_path, FIRST)
    with holder(tmp_path / "h", with_guest=True) as engine:
        mark(tmp_path / "h", engine)
        options = [*FENCED, "--holder", tmp_path / "h", "--records-lost", "--store", leases]
        code, fields = resolve(capsys, directory, "source", *options)
        assert (code, fields["owner"], engine.epoch) == (Exit.OK, "source", 2)
    assert newest_slot(leases) == Slot(2, engine.runner)


def test_a_store_that_the_guest_did_not_have_is_not_recorded(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-65] [ONE-59] It would bind whoever comes later, and the guest would stand still for ever."""
    leases = store_of(tmp_path)
    with holder(tmp_path / "h", with_guest=True) as engine:
        mark(tmp_path / "h", engine)
        options = [*FENCED, "--holder", tmp_path / "h", "--records-lost"]
        code, fields = resolve(capsys, directory, "source", *options, "--store", leases)
        assert code == Exit.USAGE
        assert "name the one that it had, or none" in fields["error"]["text"]
        assert not directory.exists()
        code, fields = resolve(capsys, directory, "source", *options)
        assert (code, fields["owner"], engine.epoch) == (Exit.OK, "source", 3)


def test_a_slot_of_this_host_in_no_record_is_passed_over_by_an_operator(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-52] [ONE-37] [ONE-59] It decides nothing; with what has claimed it, its record is lost."""
    leases = store_of(tmp_path, FIRST, Runner("here", b"z" * 16))
    with holder(tmp_path / "h", with_guest=True) as engine:
        mark(tmp_path / "h", engine)
        options = [*FENCED, "--holder", tmp_path / "h", "--records-lost", "--store", leases]
        code, fields = resolve(capsys, directory, "source", *options)
        assert (code, fields["owner"], fields["clause"]) == (Exit.OK, "source", "ONE-37")
        assert (engine.state, engine.epoch) == ("running", 3)


def test_the_image_is_freed_where_the_guest_is_the_destination_s(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-59] [ONE-38] An operator may also have found it there."""
    with holder(tmp_path / "h", with_guest=True) as engine:
        mark(tmp_path / "h", engine)
        options = ["--holder", tmp_path / "h", "--records-lost", "--free-image"]
        code, fields = resolve(capsys, directory, "destination", *options)
        assert (code, fields["owner"]) == (Exit.OK, "destination")
        assert engine.state == "released"


def test_records_that_are_there_are_gone_by(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[LOG-6] Who says wrongly that they are lost decides the session that they tell of."""
    with holder(tmp_path / "h", with_guest=True) as engine:
        mark(tmp_path / "h", engine)
        note(directory, SENDING, Granted(ONE, 2))
        options = ["--i-have-fenced", "another", "--holder", tmp_path / "h", "--records-lost"]
        code, fields = resolve(capsys, directory, "source", *options)
        assert code == Exit.USAGE
        assert "the destination of this session is 'there'" in fields["error"]["text"]
        assert engine.state == "granted"
    assert [each.kind for each in history(directory).records] == ["session", "granted"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (FENCED, "--records-lost goes with the --holder"),
        (["--holder"], "--i-have-fenced HOST"),
        ([*FENCED, "--holder"], "no such guest that may have left"),
    ],
)
def test_what_it_takes(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path, options: list[object], said: str
) -> None:
    """[ONE-59] [ONE-47] Without all of it nothing is changed. A guest that runs needs no decision."""
    where = [tmp_path / "h"] if options[-1] == "--holder" else []
    with holder(tmp_path / "h", with_guest=True) as engine:
        code, fields = resolve(capsys, directory, "source", "--records-lost", *options, *where)
        assert engine.state == "running"
    assert code == Exit.USAGE
    assert said in fields["error"]["text"]
    assert not directory.exists()


def test_a_guest_that_runs_here_gets_rid_of_records_that_do_not_count(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[LOG-6] [ONE-22] It has no mark, so it has not left, and could never be sent otherwise."""
    with holder(tmp_path / "h", with_guest=True) as engine:
        lose(directory, "damaged")
        options = [*FENCED, "--holder", tmp_path / "h", "--records-lost"]
        assert resolve(capsys, directory, "destination", *options)[0] == Exit.USAGE
        code, fields = resolve(capsys, directory, "source", *options)
        assert (code, fields["recorded"], fields["clause"]) == (Exit.OK, None, "ONE-22")
        assert told(capsys, directory, "--holder", tmp_path / "h")[0] == Exit.OK
        assert engine.state == "running"
    assert history(directory).records == ()
    assert list((directory / GUEST_ID.hex()).glob("aside-*"))


def test_a_destination_s_records_are_not_begun_anew(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-57] What is loaded there has no mark, and nobody knows under which epoch it would run."""
    note(directory, RECEIVING)
    with holder(tmp_path / "h", with_guest=False):
        options = [*FENCED, "--holder", tmp_path / "h", "--records-lost"]
        assert resolve(capsys, directory, "source", *options)[0] == Exit.USAGE

"""Who owns a guest, told from what a host has: each source of knowledge by itself, and all together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from holder_support import GUEST_ID, holder
from records_support import DIGEST, IMAGE, ONE, OTHERS, OURS, TOKEN
from sterna.cli import verdict as module
from sterna.cli.exits import Exit
from sterna.cli.main import main
from sterna.core.records import (
    Claiming,
    Complete,
    Decided,
    Granted,
    HandBack,
    Record,
    Released,
    Resolved,
    RunnerRecord,
    SessionRecord,
    Side,
    Start,
)
from sterna.core.verdict import Slot
from sterna.guest.holder_client import connect_holder
from sterna.guest.holder_engine import HolderEngine
from sterna.guest.holder_guests import HolderDestinationGuest, HolderSourceGuest
from sterna.host.lease_files import FileLeaseStore, create_file_store
from sterna.host.records_shelf import RecordsShelf
from sterna.registry import Owner
from sterna.wire.records import Runner, Verdict

SENDING = SessionRecord(ONE, 1, Side.SOURCE, TOKEN, "there", "192.0.2.7:7000")
RECEIVING = SessionRecord(ONE, 1, Side.DESTINATION, TOKEN, "there")
STORED = replace(SENDING, store=True)
CLAIM = Claiming(ONE, 2, OURS, ONE)
FIRST = Runner("here", b"r" * 16)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "records"


def note(directory: Path, *records: Record) -> None:
    async def run() -> None:
        async with RecordsShelf(directory).opened(GUEST_ID) as keeper:
            assert keeper is not None
            for record in records:
                await keeper.append(record)

    trio.run(run)


def store_of(tmp_path: Path, *runners: Runner) -> Path:
    path = tmp_path / "leases"
    create_file_store(path)

    async def run() -> None:
        for epoch, runner in enumerate(runners, 1):
            assert await FileLeaseStore(path).claim(GUEST_ID, epoch, runner) == runner

    trio.run(run)
    return path


def newest_slot(leases: Path) -> Slot | None:
    return trio.run(FileLeaseStore(leases).newest, GUEST_ID)


def told(capsys: pytest.CaptureFixture[str], directory: Path, *options: object) -> tuple[int, dict]:
    arguments = ["verdict", GUEST_ID.hex(), "--records", directory, "--name", "here", "--json", *options]
    code = main(list(map(str, arguments)))
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("records", "code", "here", "clause"),
    [
        ((), Exit.UNDECIDED, None, "ONE-46"),
        ((SENDING,), Exit.UNDECIDED, None, "ONE-46"),
        ((SENDING, Granted(ONE, 2)), Exit.UNDECIDED, None, "ONE-43"),
        ((SENDING, Granted(ONE, 2), Decided(ONE, 2, Owner.DESTINATION)), Exit.OK, False, "ONE-53"),
        ((SENDING, Granted(ONE, 2), Decided(ONE, 3, Owner.SOURCE)), Exit.OK, True, "ONE-43"),
        ((RECEIVING, CLAIM), Exit.UNDECIDED, None, "ONE-58"),
        ((RECEIVING, CLAIM, Start(2)), Exit.OK, True, "ONE-45"),
        ((RECEIVING, CLAIM, HandBack(2)), Exit.OK, False, "ONE-44"),
    ],
)
def test_by_records_alone(
    capsys: pytest.CaptureFixture[str],
    directory: Path,
    *,
    records: tuple[Record, ...],
    code: Exit,
    here: bool | None,
    clause: str,
) -> None:
    """[ONE-47] Undecided has an exit code of its own."""
    note(directory, *records)
    exit_code, fields = told(capsys, directory)
    assert (exit_code, fields["here"], fields["clause"]) == (code, here, clause)
    assert fields["host"] == {True: "here", False: "there", None: None}[here]
    assert fields["records"] == [each.kind for each in records]
    assert TOKEN.hex() not in str(fields)


def test_lost_records_decide_nothing(capsys: pytest.CaptureFixture[str], directory: Path) -> None:
    """[ONE-57]"""
    note(directory, RECEIVING, CLAIM, Start(2))
    (directory / GUEST_ID.hex() / "head").unlink()
    code, fields = told(capsys, directory)
    assert (code, fields["here"], fields["clause"]) == (Exit.UNDECIDED, None, "ONE-57")
    assert fields["records"] is None
    assert any("records" in each for each in fields["troubles"])


def test_a_guest_in_its_holder(capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path) -> None:
    """[ONE-22] Never granted, it is here; marked, it is known by that alone whom to ask [ONE-61]."""
    with holder(tmp_path / "h", with_guest=True) as engine:
        code, fields = told(capsys, directory, "--holder", tmp_path / "h")
        assert (code, fields["here"], fields["clause"]) == (Exit.OK, True, "ONE-22")
        assert fields["holder"]["state"] == "running"
        note(directory, SENDING)
        mark(tmp_path / "h", engine)
        code, fields = told(capsys, directory, "--holder", tmp_path / "h")
        assert (code, fields["here"], fields["clause"]) == (Exit.UNDECIDED, None, "ONE-43")
        assert fields["holder"]["granted_epoch"] == 2
        assert fields["session"]["address"] == "192.0.2.7:7000"


def test_a_guest_that_is_loaded_and_in_no_claim(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-62] [ONE-44] HANDOVER may have come: who asks makes it be handed back, or an operator decides."""
    with holder(tmp_path / "h", with_guest=False):
        load(tmp_path / "h", ONE)
        code, fields = told(capsys, directory, "--holder", tmp_path / "h")
        assert (code, fields["clause"], fields["session"]) == (Exit.UNDECIDED, "ONE-46", None)
        note(directory, RECEIVING)
        code, fields = told(capsys, directory, "--holder", tmp_path / "h")
        assert (code, fields["here"], fields["clause"]) == (Exit.UNDECIDED, None, "ONE-44")
        assert fields["next"] == "note HANDBACK, and tell the source"
        assert fields["session"]["id"] == ONE.hex()


def test_a_guest_that_is_loaded_and_was_not_claimed_in_a_store(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-50] [ONE-65] The slot behind the source's is looked at, in the store that the session had."""
    note(directory, replace(RECEIVING, store=True))
    leases = store_of(tmp_path, OTHERS)
    with holder(tmp_path / "h", with_guest=False):
        load(tmp_path / "h", ONE)
        options = ["--holder", tmp_path / "h"]
        code, fields = told(capsys, directory, *options)
        assert (code, fields["clause"]) == (Exit.UNDECIDED, "ONE-31")
        assert "name it with --store" in str(fields["troubles"])
        options += ["--store", leases]
        code, fields = told(capsys, directory, *options)
        assert (code, fields["here"], fields["clause"]) == (Exit.UNDECIDED, None, "ONE-50")
        trio.run(FileLeaseStore(leases).claim, GUEST_ID, 2, Runner("there", b"2" * 16))
        code, fields = told(capsys, directory, *options)
        assert (code, fields["here"], fields["host"]) == (Exit.OK, False, "there")


def mark(path: Path, engine: HolderEngine) -> None:
    async def run() -> None:
        async with await connect_holder(path) as connection:
            await connection.call("pause")
            await connection.call("grant", {"epoch": 2})
            await connection.detach()

    trio.run(run)
    assert engine.granted_epoch == 2


def load(path: Path, image: bytes) -> None:
    """Have a guest loaded in the holder, as it is when HANDOVER comes."""

    async def run() -> None:
        async with (
            await connect_holder(path.with_name("origin")) as origin,
            await connect_holder(path) as connection,
        ):
            source, room = await HolderSourceGuest.open(origin), HolderDestinationGuest(connection, image)
            await room.reserve(source.description)
            await source.pause()
            room.memory(0)[:] = source.memory(0)
            await room.load_state(await source.save_state())
            await connection.detach()

    with holder(path.with_name("origin"), with_guest=True):
        trio.run(run)


def test_an_owner_whose_holder_is_gone_has_lost_its_guest(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-34] [ONE-42] With its own exit code; without --holder nothing is said of that."""
    note(directory, RECEIVING, CLAIM, Start(2))
    code, fields = told(capsys, directory, "--holder", tmp_path / "none")
    assert (code, fields["lost"], fields["next"]) == (Exit.LOST, True, "nothing is to be done")
    with holder(tmp_path / "other", with_guest=False):
        code, fields = told(capsys, directory, "--holder", tmp_path / "other")
    assert (code, fields["lost"]) == (Exit.LOST, True)
    code, fields = told(capsys, directory)
    assert (code, fields["lost"], fields["next"]) == (Exit.OK, False, "run the guest here")
    note(directory, Complete(ONE, 2, DIGEST))
    assert told(capsys, directory)[1]["next"] == "nothing is to be done"


def test_an_image_that_is_gone_is_not_to_be_freed(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """After a migration that is over. Without --holder nobody has looked for the image."""
    note(directory, SENDING, Granted(ONE, 2), Decided(ONE, 2, Owner.DESTINATION))
    assert "free what is held of it" in told(capsys, directory)[1]["next"]
    with holder(tmp_path / "h", with_guest=True) as engine:
        mark(tmp_path / "h", engine)
        assert "free what is held of it" in told(capsys, directory, "--holder", tmp_path / "h")[1]["next"]
    code, fields = told(capsys, directory, "--holder", tmp_path / "h")
    assert (code, fields["host"], fields["next"]) == (Exit.OK, "there", "nothing is to be done")


@pytest.mark.parametrize(
    ("records", "owner", "fenced"),
    [
        ((SENDING, Granted(ONE, 2), Resolved(ONE, 2, Owner.SOURCE, "there", "me@here")), "source", "there"),
        ((SENDING, Granted(ONE, 2), Resolved(ONE, 2, Owner.DESTINATION, "", "me@here")), "destination", None),
        ((RECEIVING, CLAIM, Start(2, "me@here", "there")), "destination", "there"),
        ((RECEIVING, CLAIM, HandBack(2, "me@here")), "source", None),
    ],
)
def test_what_an_operator_has_decided(
    capsys: pytest.CaptureFixture[str],
    directory: Path,
    records: tuple[Record, ...],
    owner: str,
    fenced: str | None,
) -> None:
    """[ONE-59] Who has done so, and of which host it was said that it is fenced."""
    note(directory, *records)
    fields = told(capsys, directory)[1]
    assert fields["resolved"] == {"owner": owner, "operator": "me@here", "fenced": fenced}
    assert main(["verdict", GUEST_ID.hex(), "--records", str(directory), "--name", "here"]) == Exit.OK
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert f"{owner}, decided by me@here" in said
    assert ("who says that there is fenced" in said) is (fenced is not None)


@pytest.mark.parametrize(
    "records",
    [
        (SENDING, Granted(ONE, 2), Decided(ONE, 2, Owner.DESTINATION)),
        (RECEIVING, CLAIM),
        (RECEIVING, CLAIM, Start(2)),
        (),
    ],
)
def test_what_no_operator_has_decided(
    capsys: pytest.CaptureFixture[str], directory: Path, records: tuple[Record, ...]
) -> None:
    note(directory, *records)
    assert told(capsys, directory)[1]["resolved"] is None


def test_by_the_store(capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path) -> None:
    """[ONE-9] [ONE-52] Without a session the newest slot says it; an unknown runner decides nothing."""
    leases = store_of(tmp_path, FIRST)
    code, fields = told(capsys, directory, "--store", leases)
    assert (code, fields["here"], fields["clause"]) == (Exit.UNDECIDED, None, "ONE-52")
    note(directory, RunnerRecord(bytes(16), 1, FIRST, IMAGE))
    code, fields = told(capsys, directory, "--store", leases)
    assert (code, fields["here"], fields["epoch"]) == (Exit.OK, True, 1)
    note(directory, STORED, Granted(ONE, 2))
    code, fields = told(capsys, directory, "--store", leases)
    assert (code, fields["next"].split()[0]) == (Exit.UNDECIDED, "claim")
    trio.run(FileLeaseStore(leases).claim, GUEST_ID, 2, OTHERS)
    code, fields = told(capsys, directory, "--store", leases)
    assert (code, fields["here"], fields["host"]) == (Exit.OK, False, "there")
    assert fields["store"] == {"epoch": 2, "host": "there"}


def test_by_the_records_of_a_host_that_has_got_another_name(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-9] [ONE-52]"""
    leases = store_of(tmp_path, Runner("as it was", b"r" * 16))
    code, fields = told(capsys, directory, "--store", leases)
    assert (code, fields["here"], fields["host"]) == (Exit.OK, False, "as it was")
    note(directory, RunnerRecord(bytes(16), 1, Runner("as it was", b"r" * 16), IMAGE))
    code, fields = told(capsys, directory, "--store", leases)
    assert (code, fields["here"]) == (Exit.OK, True)


def test_by_the_holder_s_runner_and_another_s_slot(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    leases = store_of(tmp_path, FIRST)
    with holder(tmp_path / "h", with_guest=True):  # it runs as FIRST
        code, fields = told(capsys, directory, "--store", leases, "--holder", tmp_path / "h")
    assert (code, fields["here"]) == (Exit.OK, True)
    trio.run(FileLeaseStore(leases).claim, GUEST_ID, 2, OTHERS)
    code, fields = told(capsys, directory, "--store", leases)
    assert (code, fields["here"], fields["host"]) == (Exit.OK, False, "there")


def test_a_store_that_is_not_there(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-31]"""
    (tmp_path / "unmounted").mkdir()
    for records in ((), (STORED, Granted(ONE, 2))):
        note(directory, *records)
        code, fields = told(capsys, directory, "--store", tmp_path / "unmounted")
        assert (code, fields["clause"]) == (Exit.UNDECIDED, "ONE-31")
        assert any("store" in each for each in fields["troubles"])


def test_a_store_that_is_not_named(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-65] The session had one: the answer of the peer would not count, and what is missing is said."""
    note(directory, STORED, Granted(ONE, 2))
    for options, said in ([], "name it with --store"), (["--store", store_of(tmp_path)], "no slot of it"):
        code, fields = told(capsys, directory, *options)
        assert (code, fields["here"], fields["clause"]) == (Exit.UNDECIDED, None, "ONE-31")
        assert said in str(fields["troubles"])


def test_a_store_that_the_session_did_not_have(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-65] It is named now, and nothing that it says, or does not say, counts."""
    note(directory, SENDING, Granted(ONE, 2))
    (tmp_path / "unmounted").mkdir()
    for store in store_of(tmp_path, FIRST), tmp_path / "unmounted":
        code, fields = told(capsys, directory, "--store", store)
        assert (code, fields["here"], fields["clause"]) == (Exit.UNDECIDED, None, "ONE-43")


@pytest.mark.parametrize(
    ("answer", "code", "here"),
    [
        (Verdict(Owner.SOURCE, 1, OTHERS, handed_back=True), Exit.OK, True),
        (Verdict(Owner.DESTINATION, 2, OTHERS, complete=True, digest=DIGEST), Exit.OK, False),
        (Verdict(Owner.UNDECIDED, 1, OTHERS), Exit.UNDECIDED, None),
    ],
)
def test_by_the_destination(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    directory: Path,
    *,
    answer: Verdict,
    code: Exit,
    here: bool | None,
) -> None:
    """[ONE-43] It is asked where it is said to be, or where it was."""
    asked: list[object] = []

    def asker(guest: bytes, tls: object, _: object, places: object) -> object:
        async def ask(session: SessionRecord, runner: Runner) -> Verdict:
            asked.append((guest, tls, places, session.session))
            return answer

        return ask

    monkeypatch.setattr(module, "asker", asker)
    note(directory, SENDING, Granted(ONE, 2))
    exit_code, fields = told(capsys, directory, "--peer", "recorded", "--insecure")
    assert (exit_code, fields["here"]) == (code, here)
    assert fields["destination"]["owner"] == answer.owner.name.lower()
    assert asked == [(GUEST_ID, None, [], ONE)]


@pytest.mark.parametrize(
    ("answer", "code", "lost"),
    [
        (Verdict(Owner.DESTINATION, 2, OTHERS), Exit.LOST, True),
        (Verdict(Owner.DESTINATION, 2, OTHERS, complete=True, digest=DIGEST), Exit.OK, False),
        (Verdict(Owner.UNDECIDED, 1, OTHERS), Exit.UNDECIDED, False),
        (None, Exit.UNDECIDED, False),
    ],
)
@pytest.mark.parametrize("decided", [True, False])
def test_a_guest_that_waits_for_pages_of_an_image_that_is_gone(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    directory: Path,
    tmp_path: Path,
    *,
    answer: Verdict | None,
    code: Exit,
    lost: bool,
    decided: bool,
) -> None:
    """[ONE-42] Who owns it is known, and that is not enough. Without --holder nothing is said of that."""

    async def ask(_session: SessionRecord, _runner: Runner) -> Verdict:
        assert answer is not None
        return answer

    monkeypatch.setattr(module, "asker", lambda *_: ask)
    note(directory, SENDING, Granted(ONE, 2, follows=True))
    if decided:
        note(directory, Decided(ONE, 2, Owner.DESTINATION))
        assert told(capsys, directory)[0] == Exit.OK
    asks = () if answer is None else ("--peer", "recorded", "--insecure")
    exit_code, fields = told(capsys, directory, "--holder", tmp_path / "none", *asks)
    assert (exit_code, fields["lost"]) == (code, lost)
    if code == Exit.UNDECIDED:
        assert fields["next"] == "ask the destination"
    note(directory, Released(ONE))
    exit_code, fields = told(capsys, directory, "--holder", tmp_path / "none", *asks)
    assert not fields["lost"]
    assert exit_code == Exit.OK or not decided


def test_a_process_that_has_the_records_may_have_the_pages(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    directory: Path,
    tmp_path: Path,
) -> None:
    """[ONE-42] It has mapped them, and serves them though their holder is gone."""

    async def ask(_session: SessionRecord, _runner: Runner) -> Verdict:
        return Verdict(Owner.DESTINATION, 2, OTHERS)

    monkeypatch.setattr(module, "asker", lambda *_: ask)
    note(directory, SENDING, Granted(ONE, 2, follows=True), Decided(ONE, 2, Owner.DESTINATION))
    options = ("--holder", tmp_path / "none", "--peer", "recorded", "--insecure")
    monkeypatch.setattr(module, "is_kept", lambda *_: True)
    code, fields = told(capsys, directory, *options)
    assert (code, fields["lost"], fields["next"]) == (Exit.UNDECIDED, False, "ask the destination")
    assert "a process here has the guest's records" in fields["why"]
    command = ["verdict", GUEST_ID.hex(), "--records", str(directory), "--name", "here", *map(str, options)]
    assert main(command) == Exit.UNDECIDED
    said = " ".join(capsys.readouterr().err.split())
    assert "owned by another host (there), under epoch 2, and perhaps lost" in said
    assert "sterna verdict --peer recorded asks" in said
    monkeypatch.setattr(module, "is_kept", lambda *_: False)
    assert main(command) == Exit.LOST
    assert "guest_lost: pages that it needs are gone" in capsys.readouterr().err


def test_nobody_to_ask(capsys: pytest.CaptureFixture[str], directory: Path) -> None:
    note(directory, RECEIVING, CLAIM)
    code, fields = told(capsys, directory, "--peer", "recorded", "--insecure")
    assert code == Exit.UNDECIDED
    assert any("source of no session" in each for each in fields["troubles"])
    note(directory, Start(2))
    assert told(capsys, directory)[0] == Exit.OK


def test_a_destination_that_does_not_answer(capsys: pytest.CaptureFixture[str], directory: Path) -> None:
    note(directory, SENDING, Granted(ONE, 2))
    code, fields = told(capsys, directory, "--peer", "127.0.0.1:1", "--insecure", "--patience", "200ms")
    assert code == Exit.UNDECIDED
    assert any(each.startswith("peer: ") for each in fields["troubles"])


def test_for_people(capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path) -> None:
    note(directory, SENDING, Granted(ONE, 2))
    command = ["verdict", GUEST_ID.hex(), "--records", str(directory), "--name", "here"]
    assert main([*command, "--holder", str(tmp_path / "none")]) == Exit.UNDECIDED
    said = capsys.readouterr().err
    for words in ("undecided: nobody here can know yet", "[ONE-43]", "next: ask the destination", "gone"):
        assert words in said
    assert TOKEN.hex() not in said


def test_a_guest_that_nobody_knows_is_not_said_to_be_paused(
    capsys: pytest.CaptureFixture[str], directory: Path
) -> None:
    assert main(["verdict", GUEST_ID.hex(), "--records", str(directory)]) == Exit.UNDECIDED
    said = capsys.readouterr().err
    assert "undecided: nobody here can know yet who owns it\n" in said
    assert "say --name or --records" in said


def test_for_people_whose_guest_may_lack_pages(capsys: pytest.CaptureFixture[str], directory: Path) -> None:
    """[ONE-38] [RES-19] Who has the image is told what sends its pages on."""
    note(directory, SENDING, Granted(ONE, 2), Decided(ONE, 2, Owner.DESTINATION))
    assert main(["verdict", GUEST_ID.hex(), "--records", str(directory), "--name", "here"]) == Exit.OK
    said = " ".join(capsys.readouterr().err.split())
    assert "sterna migrate, started again, sends the guest there what it lacks" in said


def test_what_is_no_guest(capsys: pytest.CaptureFixture[str], directory: Path) -> None:
    assert main(["verdict", "web-1", "--records", str(directory)]) == Exit.USAGE
    assert "is no guest's id" in capsys.readouterr().err

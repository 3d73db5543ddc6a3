"""What an operator may decide, what has to be vouched for, and what follows."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from test_cli_verdict import CLAIM, FIRST, RECEIVING, SENDING, STORED, load, mark, newest_slot, note, store_of

from holder_support import GUEST_ID, holder
from records_support import DIGEST, ONE, OTHERS, OURS
from sterna.cli.exits import Exit
from sterna.cli.main import main
from sterna.core.history import History
from sterna.core.records import (
    Claiming,
    Complete,
    Decided,
    Granted,
    HandBack,
    Resolved,
    RunnerRecord,
    SessionRecord,
    Start,
)
from sterna.core.verdict import Slot
from sterna.guest.holder_engine import HolderEngine
from sterna.host.records_keeper import peek
from sterna.host.records_shelf import RecordsShelf
from sterna.registry import Owner


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "records"


def resolve(
    capsys: pytest.CaptureFixture[str], directory: Path, owner: str, *options: object
) -> tuple[int, dict]:
    arguments = [
        "resolve",
        GUEST_ID.hex(),
        "--owner",
        owner,
        "--records",
        directory,
        "--name",
        "here",
        "--json",
    ]
    code = main(list(map(str, [*arguments, *options])))
    return code, json.loads(capsys.readouterr().out)


def history(directory: Path) -> History:
    return trio.run(peek, directory, GUEST_ID)


def test_a_source_s_guest_runs_here_once_the_destination_is_fenced(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-59] [ONE-48] Recorded before anything follows from it; with a holder it follows at once."""
    note(directory, SENDING)
    with holder(tmp_path / "h", with_guest=True) as engine:
        mark(tmp_path / "h", engine)
        note(directory, Granted(ONE, 2))
        for wrong in ([], ["--i-have-fenced", "elsewhere"]):
            code, fields = resolve(capsys, directory, "source", *wrong)
            assert code == Exit.USAGE
            assert "there" in fields["error"]["text"]
        assert history(directory).decision(ONE) is None
        code, fields = resolve(
            capsys, directory, "source", "--i-have-fenced", "there", "--holder", tmp_path / "h"
        )
        assert (code, fields["recorded"], fields["owner"]) == (Exit.OK, "resolved", "source")
        assert (engine.state, engine.epoch) == ("running", 3)
    (resolved,) = history(directory).each(Resolved)
    assert (resolved.owner, resolved.fenced, "@" in resolved.operator) == (Owner.SOURCE, "there", True)


@pytest.mark.parametrize("fenced", ["x" * 256, "the\nre", "\udcff"])
def test_what_cannot_be_recorded_is_no_host(
    capsys: pytest.CaptureFixture[str], directory: Path, fenced: str
) -> None:
    """[ONE-59] [LOG-2] Whether a decision asks for it or not: it would be part of the record."""
    note(directory, RECEIVING, CLAIM)
    code, fields = resolve(capsys, directory, "source", "--i-have-fenced", fenced)
    assert code == Exit.USAGE
    assert "name of a host" in fields["error"]["text"]
    assert history(directory).fate(2) is None


def test_without_the_holder_it_is_told_who_does_the_rest(
    capsys: pytest.CaptureFixture[str], directory: Path
) -> None:
    """[ONE-59]"""
    note(directory, SENDING, Granted(ONE, 2))
    command = ["resolve", GUEST_ID.hex(), "--owner", "source", "--i-have-fenced", "there"]
    assert main([*command, "--records", str(directory), "--name", "here"]) == Exit.OK
    said = capsys.readouterr().err
    assert "recorded, by " in said
    assert "next: run the guest here" in said
    assert "sterna migrate or sterna serve" in said
    code, fields = resolve(capsys, directory, "source")
    # Decided already, and nobody is to be fenced any more.
    assert (code, fields["recorded"]) == (Exit.OK, None)


def test_a_source_s_guest_that_is_left_to_the_destination(
    capsys: pytest.CaptureFixture[str], directory: Path
) -> None:
    """[ONE-59] Nobody is to be fenced for that: it stays paused here. And it is final."""
    note(directory, SENDING, Granted(ONE, 2))
    code, fields = resolve(capsys, directory, "destination")
    assert (code, fields["recorded"], fields["owner"]) == (Exit.OK, "resolved", "destination")
    code, fields = resolve(capsys, directory, "source", "--i-have-fenced", "there")
    assert (code, fields["error"]["code"]) == (Exit.FAILED, "too_late")


def test_an_image_that_nobody_needs_any_more_is_freed(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-38] By an operator, of a guest that is decided to be elsewhere, and of no other."""
    note(directory, SENDING)
    with holder(tmp_path / "h", with_guest=True) as engine:
        mark(tmp_path / "h", engine)
        note(directory, Granted(ONE, 2))
        free = ["--free-image", "--holder", tmp_path / "h"]
        note(directory, Decided(ONE, 2, Owner.DESTINATION))
        code, fields = resolve(capsys, directory, "destination", "--free-image")
        assert code == Exit.USAGE
        assert "--holder" in fields["error"]["text"]
        assert engine.state == "granted"
        code, fields = resolve(capsys, directory, "destination", *free)
        assert (code, fields["recorded"], fields["owner"]) == (Exit.OK, None, "destination")
        assert engine.state == "released"
    assert history(directory).released(ONE)  # else a guest whose pages followed it would be missing them


def test_a_store_that_is_gone_for_good_keeps_no_image(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-65] [ONE-38] While nothing is decided it is asked for; behind a decision nobody needs it."""
    note(directory, STORED)
    with holder(tmp_path / "h", with_guest=True) as engine:
        mark(tmp_path / "h", engine)
        note(directory, Granted(ONE, 2))
        free = ["--free-image", "--holder", tmp_path / "h"]
        code, fields = resolve(capsys, directory, "destination", *free)
        assert (code != Exit.OK, "name it with --store" in fields["error"]["text"]) == (True, True)
        assert (engine.state, history(directory).decision(ONE)) == ("granted", None)
        note(directory, Resolved(ONE, 2, Owner.DESTINATION))
        code, fields = resolve(capsys, directory, "source", "--i-have-fenced", "there")
        assert (code, fields["error"]["code"]) == (Exit.FAILED, "too_late")
        code, fields = resolve(capsys, directory, "destination", *free)
        assert (code, fields["recorded"], fields["owner"]) == (Exit.OK, None, "destination")
        assert engine.state == "released"


def test_an_image_is_freed_where_only_the_store_says_whose_the_guest_is(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-38] [ONE-59] [ONE-37] It might be handed back, so the decision is on record first."""
    note(directory, STORED)
    with holder(tmp_path / "h", with_guest=True) as engine, holder(tmp_path / "other", with_guest=False):
        mark(tmp_path / "h", engine)
        note(directory, Granted(ONE, 2))
        store = ["--store", store_of(tmp_path, FIRST, OTHERS)]
        code, fields = resolve(capsys, directory, "destination", *store, "--holder", tmp_path / "h")
        assert (code, fields["recorded"], fields["owner"]) == (Exit.OK, None, "destination")
        free = [*store, "--free-image", "--holder"]
        code, fields = resolve(capsys, directory, "destination", *free, tmp_path / "other")
        assert code == Exit.USAGE
        assert history(directory).decision(ONE) is None
        code, fields = resolve(capsys, directory, "destination", *free, tmp_path / "h")
        assert (code, fields["recorded"], fields["owner"]) == (Exit.OK, "resolved", "destination")
        assert engine.state == "released"
    decision = history(directory).decision(ONE)
    assert decision is not None
    assert decision.owner is Owner.DESTINATION
    assert history(directory).released(ONE)


@pytest.mark.parametrize("session", [SENDING, STORED])
def test_a_guest_that_was_handed_back_is_not_given_away(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path, session: SessionRecord
) -> None:
    """[ONE-37] The runner for n + 2 tells, though its maker died before DECIDED."""
    note(directory, session)
    with holder(tmp_path / "h", with_guest=True) as engine:
        mark(tmp_path / "h", engine)
        note(directory, Granted(ONE, 2), RunnerRecord(ONE, 3, OURS, engine.image))
        options = ["--holder", tmp_path / "h", "--free-image"]
        options += [] if session is SENDING else ["--store", store_of(tmp_path, FIRST, OTHERS)]
        code, fields = resolve(capsys, directory, "destination", *options)
        assert (code, fields["error"]["code"]) == (Exit.FAILED, "too_late")
        assert "it was handed back" in fields["error"]["text"]
        assert engine.state == "granted"
    assert history(directory).decision(ONE) is None


def test_a_destination_has_no_image_to_free(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-38] And nothing is decided on the way to that answer."""
    note(directory, RECEIVING, CLAIM)
    options = ["--i-have-fenced", "there", "--free-image", "--holder", tmp_path / "none"]
    code, fields = resolve(capsys, directory, "destination", *options)
    assert code == Exit.USAGE
    assert "for the source" in fields["error"]["text"]
    assert history(directory).fate(2) is None


def test_an_image_that_may_have_to_run_is_not_freed(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-38] Whoever means the other side is told so, and nothing is lost."""
    note(directory, SENDING)
    with holder(tmp_path / "h", with_guest=True) as engine:
        mark(tmp_path / "h", engine)
        note(directory, Granted(ONE, 2))
        free = ["--i-have-fenced", "there", "--free-image", "--holder", tmp_path / "h"]
        code, fields = resolve(capsys, directory, "source", *free)
        assert code == Exit.USAGE
        assert "--owner destination" in fields["error"]["text"]
        assert engine.state == "granted"


def test_a_destination_s_guest_is_started_by_an_operator(
    capsys: pytest.CaptureFixture[str], directory: Path
) -> None:
    """[ONE-59] [ONE-58] By creating START, which no later controller does on its own account."""
    note(directory, RECEIVING, CLAIM)
    code, _ = resolve(capsys, directory, "destination")
    assert code == Exit.USAGE
    code, fields = resolve(capsys, directory, "destination", "--i-have-fenced", "there")
    assert (code, fields["recorded"]) == (Exit.OK, "start")
    fate = history(directory).fate(2)
    assert isinstance(fate, Start)
    assert "@" in fate.operator
    assert fate.fenced == "there"


def test_pages_that_only_the_source_has_are_told_of(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-42] [ONE-38] Who decides for the destination might end the holder here, or free the image."""
    note(directory, SENDING)
    command = ["resolve", GUEST_ID.hex(), "--owner", "destination", "--records", str(directory)]
    command += ["--name", "here"]
    with holder(tmp_path / "h", with_guest=True) as engine:
        mark(tmp_path / "h", engine)
        note(directory, Granted(ONE, 2, follows=True))
        for more in [], ["--holder", str(tmp_path / "h")]:
            assert main([*command, *more]) == Exit.OK
            said = capsys.readouterr().err
            assert "what it lacks there is only in the image here, and it is lost without. Keep this" in said
            assert "sterna migrate, started again, sends them" in said
        assert main([*command, "--holder", str(tmp_path / "h"), "--free-image"]) == Exit.OK
        said = capsys.readouterr().err
        assert "what it lacks there was only in that image" in said
        assert "Keep this holder" not in said
    _, fields = resolve(capsys, directory, "destination")
    assert fields["pages_follow"] is False  # nobody misses them any more


def test_a_guest_that_came_whole_lacks_nothing(capsys: pytest.CaptureFixture[str], directory: Path) -> None:
    """[ONE-39] [ONE-42] The source's grant says whether pages follow, the claim there that none do."""
    note(directory, SENDING, Granted(ONE, 2))
    assert resolve(capsys, directory, "destination")[1]["pages_follow"] is False
    shutil.rmtree(directory)
    note(directory, RECEIVING, replace(CLAIM, digest=DIGEST))
    _, fields = resolve(capsys, directory, "destination", "--i-have-fenced", "there")
    assert fields["pages_follow"] is False


def test_the_source_of_pages_is_not_to_be_switched_off(
    capsys: pytest.CaptureFixture[str], directory: Path
) -> None:
    """[ONE-42] [ONE-59] To fence it so would lose the guest."""
    note(directory, RECEIVING, CLAIM)
    _, fields = resolve(capsys, directory, "destination")
    text = fields["error"]["text"]
    assert "--i-have-fenced there. But pages that the guest may lack here are only in the image that" in text
    assert "sterna resolve --owner destination at the source fences it" in text
    _, fields = resolve(capsys, directory, "destination", "--i-have-fenced", "there")
    assert fields["pages_follow"] is True
    note(directory, Complete(ONE, 2, DIGEST))
    assert resolve(capsys, directory, "destination")[1]["pages_follow"] is False


@pytest.mark.parametrize("missing", [0, 3])
def test_a_holder_knows_what_is_missing(
    capsys: pytest.CaptureFixture[str],
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    missing: int,
) -> None:
    """[ONE-42] [HOL-43]"""
    with holder(tmp_path / "h", with_guest=False):
        load(tmp_path / "h", ONE)
        monkeypatch.setattr(HolderEngine, "missing", property(lambda _: missing))
        note(directory, RECEIVING, Claiming(ONE, 2, OURS, ONE))
        options = ["--i-have-fenced", "there", "--holder", tmp_path / "h"]
        code, fields = resolve(capsys, directory, "destination", *options)
    assert (code, fields["pages_follow"]) == (Exit.OK, missing > 0)


@pytest.mark.parametrize(("owner", "state"), [("destination", "running"), ("source", "empty")])
def test_what_is_loaded_at_a_destination_is_decided_without_its_claim(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path, owner: str, state: str
) -> None:
    """[ONE-59] [ONE-62] Its endpoint died with CLAIMING not durable yet, and the source is gone for good."""
    fenced = ["--i-have-fenced", "there"] if owner == "destination" else []
    with holder(tmp_path / "h", with_guest=False) as engine:
        load(tmp_path / "h", ONE)
        note(directory, replace(RECEIVING, store=True))
        options = [*fenced, "--holder", tmp_path / "h"]
        assert resolve(capsys, directory, owner, *options)[0] == Exit.USAGE  # a store says whose it is
        assert engine.state == "loaded"
        shutil.rmtree(directory)
        note(directory, RECEIVING)
        code, fields = resolve(capsys, directory, owner, *options)
        assert (code, fields["owner"], engine.state) == (Exit.OK, owner, state)
    kinds = [each.kind for each in history(directory).records]
    assert kinds[:3] == ["session", "claiming", "start" if owner == "destination" else "handback"]


def test_a_destination_s_guest_is_handed_back_by_an_operator(
    capsys: pytest.CaptureFixture[str], directory: Path
) -> None:
    """[ONE-59] [ONE-27] START is excluded by that, so nobody is to be fenced."""
    note(directory, RECEIVING, CLAIM)
    code, fields = resolve(capsys, directory, "source")
    assert (code, fields["recorded"], fields["owner"]) == (Exit.OK, "handback", "source")
    fate = history(directory).fate(2)
    assert isinstance(fate, HandBack)
    assert fate.fenced == ""
    code, fields = resolve(capsys, directory, "destination", "--i-have-fenced", "there")
    assert (code, fields["error"]["code"]) == (Exit.FAILED, "too_late")


def test_a_store_that_names_the_owner_is_not_contradicted(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-50]"""
    leases = store_of(tmp_path, FIRST, OTHERS)
    note(directory, STORED, Granted(ONE, 2))
    code, fields = resolve(capsys, directory, "source", "--i-have-fenced", "there", "--store", leases)
    assert (code, fields["error"]["code"]) == (Exit.FAILED, "too_late")
    assert history(directory).decision(ONE) is None


def test_with_a_store_the_decision_is_claimed(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-37] [ONE-59] What an operator permits is still the store's to name."""
    leases = store_of(tmp_path, FIRST)
    note(directory, STORED)
    with holder(tmp_path / "h", with_guest=True) as engine:
        mark(tmp_path / "h", engine)
        note(directory, Granted(ONE, 2))
        options = ["--i-have-fenced", "there", "--store", leases, "--holder", tmp_path / "h"]
        code, fields = resolve(capsys, directory, "source", *options)
        assert (code, fields["owner"], fields["epoch"]) == (Exit.OK, "source", 2)
        assert engine.state == "running"
    assert newest_slot(leases) == Slot(2, engine.runner)


def test_a_decision_for_a_guest_that_is_gone(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    """[ONE-42]"""
    note(directory, RECEIVING, CLAIM)
    options = ["--i-have-fenced", "there", "--holder", tmp_path / "none"]
    code, fields = resolve(capsys, directory, "destination", *options)
    assert (code, fields["recorded"]) == (Exit.LOST, "start")
    assert fields["recovered"]["lost"]


def test_nothing_to_decide(capsys: pytest.CaptureFixture[str], directory: Path) -> None:
    code, fields = resolve(capsys, directory, "source")
    assert code == Exit.USAGE
    assert "there are no records of guest" in fields["error"]["text"]
    assert not directory.exists()
    note(directory, SENDING)
    code, fields = resolve(capsys, directory, "source")
    assert code == Exit.USAGE
    assert "granted in no session" in fields["error"]["text"]
    note(directory, Granted(ONE, 2), Decided(ONE, 3, Owner.SOURCE))
    assert resolve(capsys, directory, "source")[1]["recorded"] is None


def test_an_endpoint_that_has_the_guest_is_not_overtaken(
    capsys: pytest.CaptureFixture[str], directory: Path
) -> None:
    """[LOG-7] [ONE-59] An operator decides for no endpoint that is at it: end it first."""
    note(directory, SENDING, Granted(ONE, 2))

    async def run() -> tuple[int, dict]:
        async with RecordsShelf(directory, "sterna migrate").opened(GUEST_ID):
            return await trio.to_thread.run_sync(
                resolve, capsys, directory, "source", "--i-have-fenced", "there"
            )

    code, fields = trio.run(run)
    assert code == Exit.REFUSED
    assert "sterna migrate" in fields["error"]["text"]

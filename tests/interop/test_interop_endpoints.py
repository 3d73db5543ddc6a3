"""Endpoint cases against shims of a few lines: what each of them can do wrong, and the verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from interop_support import implementation, settings

from sterna_interop.case import Case, Line, NotStrict, NotTried, Unexpected, Wire, rolled_back
from sterna_interop.contract import GuestState, Outcome, Params, Role
from sterna_interop.credentials import Credentials
from sterna_interop.endpoints import endpoint_cell, probe_cell
from sterna_interop.guest import GuestSpec
from sterna_interop.results import CaseResult, Verdict
from sterna_interop.runner import Settings

HONEST = f"""
sock = dial()
sock.sendall(b"hello")
sock.recv(100)
say(outcome="rolled_back", guest="running", code="bad_magic", memory={GuestSpec().memory_hash(0)!r})
"""


async def greet(line: Line, told: Params) -> None:
    if await line.receive() != b"hello":
        raise Unexpected("hello", "something else")
    await line.send(b"nonsense")


CASE = Case(
    id="test-001",
    title="an endpoint is told nonsense",
    clauses=("PRE-2",),
    role=Role.SOURCE,
    play=greet,
    expect=rolled_back("bad_magic", role=Role.SOURCE),
)


async def run(code: str, directory: Path, case: Case = CASE) -> CaseResult:
    return await endpoint_cell(settings(directory), case, implementation(code)).run()


async def test_an_honest_one(tmp_path: Path) -> None:
    result = await run(HONEST, tmp_path)
    assert (result.verdict, result.code) == (Verdict.PASS, "bad_magic")
    assert (result.source, result.destination, result.transport) == ("mine", "kit", "plain")


@pytest.mark.parametrize(
    ("code", "verdict", "actual"),
    [
        (HONEST.replace("hello", "HELLO"), Verdict.FAIL, "something else"),
        (HONEST.replace("bad_magic", "internal"), Verdict.FAIL, "code internal"),
        (HONEST.replace("running", "paused"), Verdict.FAIL, "guest paused"),
        (HONEST.replace('memory="', 'memory="00')[:-4] + "[:64])", Verdict.FAIL, ""),
        (HONEST + "sys.exit(89)", Verdict.UNSUPPORTED, ""),
        (HONEST + "os.abort()", Verdict.CRASH, ""),
        ("dial(); sys.exit(1)", Verdict.FAIL, "something else"),
        ("sys.exit(1)", Verdict.FAIL, ""),
    ],
)
async def test_others(code: str, verdict: Verdict, actual: str, tmp_path: Path) -> None:
    result = await run(code, tmp_path)
    assert (result.verdict, result.actual) == (verdict, actual)


async def test_what_is_in_the_place_of_the_recording_is_the_shims_fault(tmp_path: Path) -> None:
    blocked = HONEST.replace("sock = dial()", "os.mkdir(arguments['--out'] + '/recording'); sock = dial()")
    result = await run(blocked, tmp_path)
    assert result.verdict is Verdict.FAIL
    assert result.expected == "nothing of the shim's named recording in DIR"


async def test_what_is_tolerated_is_not_strict(tmp_path: Path) -> None:
    tolerated = ((rolled_back("internal", role=Role.SOURCE), "a SHOULD"),)
    case = replace(CASE, tolerated=tolerated)
    result = await run(HONEST.replace("bad_magic", "internal"), tmp_path, case)
    assert (result.verdict, result.detail) == (Verdict.NON_STRICT, "a SHOULD")


async def test_what_is_only_recommended_is_not_strict(tmp_path: Path) -> None:
    """But it excuses nothing else that is wrong."""

    async def picky(line: Line, told: Params) -> None:
        await greet(line, told)
        raise NotStrict("a PING", "none")

    case = replace(CASE, play=picky)
    result = await run(HONEST, tmp_path / "right", case)
    assert (result.verdict, result.expected, result.actual) == (Verdict.NON_STRICT, "a PING", "none")
    result = await run(HONEST.replace("running", "paused"), tmp_path / "wrong", case)
    assert (result.verdict, result.actual) == (Verdict.FAIL, "guest paused")


@pytest.mark.parametrize(
    ("end", "verdict", "detail"),
    [
        ('outcome="completed", guest="none", code=None', Verdict.UNSUPPORTED, "goes without"),
        ('outcome="completed", guest="running", code=None', Verdict.FAIL, ""),
        ('outcome="rolled_back", guest="running", code="bad_magic"', Verdict.FAIL, ""),
    ],
)
async def test_what_was_not_tried_is_unsupported(
    end: str, verdict: Verdict, detail: str, tmp_path: Path
) -> None:
    """If it was a whole migration, whatever the case asks for where it is tried."""

    async def without(line: Line, told: Params) -> None:
        await greet(line, told)
        raise NotTried("goes without")

    memory = GuestSpec().memory_hash(len(GuestSpec().writes))
    code = f"""
sock = dial()
sock.sendall(b"hello")
while sock.recv(100): pass
say({end}, memory={memory!r})
"""
    result = await run(code, tmp_path, replace(CASE, play=without))
    assert (result.verdict, result.detail) == (verdict, detail), result


async def test_a_bug_in_a_script_is_not_the_endpoints(tmp_path: Path) -> None:
    async def broken(line: Line, told: Params) -> None:
        raise ZeroDivisionError

    cell = endpoint_cell(settings(tmp_path), replace(CASE, play=broken), implementation(HONEST))
    with pytest.raises(BaseExceptionGroup):
        await cell.run()


async def test_a_script_that_never_ends_ends_with_the_shim(tmp_path: Path) -> None:
    async def silent(line: Line, told: Params) -> None:
        assert await line.until_end() == b"hello"

    code = 'dial().sendall(b"hello"); say(outcome="rolled_back", guest="running", code="bad_magic")'
    result = await run(code, tmp_path, replace(CASE, play=silent, expect=replace(CASE.expect, memory=False)))
    assert result.verdict is Verdict.PASS


async def test_tls_that_does_not_come_about(tmp_path: Path) -> None:
    """A shim that ignores `tls` is found in every case that has it."""
    made = Settings(tmp_path / "cases", Credentials.make(tmp_path / "pki"))
    cell = endpoint_cell(made, replace(CASE, wire=Wire.TLS), implementation(HONEST))
    result = await cell.run()
    assert (result.verdict, result.expected, result.transport) == (Verdict.FAIL, "a TLS handshake", "tls")


@pytest.mark.parametrize(
    ("code", "verdict", "actual"),
    [
        ("", Verdict.PASS, ""),
        ("told['order']['do'] = 'migrate'", Verdict.FAIL, "exit code 0"),
        ("sys.exit(127)", Verdict.FAIL, "exit code 127"),
    ],
)
async def test_the_probe(code: str, verdict: Verdict, actual: str, tmp_path: Path) -> None:
    mine = implementation("")
    before = "import json, os, socket, sys, time\n"
    program = mine.command[-1].replace("    sys.exit(89)", f"    {code or 'sys.exit(89)'}")
    assert program.startswith("\n" + before)
    result = await probe_cell(settings(tmp_path), replace(mine, command=(*mine.command[:-1], program))).run()
    assert (result.verdict, result.actual) == (verdict, actual)


def test_what_an_outcome_means_for_the_guest() -> None:
    assert rolled_back(role=Role.DESTINATION).guests == {GuestState.NONE}
    assert rolled_back(role=Role.SOURCE).outcomes == {Outcome.ROLLED_BACK}

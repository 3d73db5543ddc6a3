"""The judge of codec shims: Sterna's passes, and others get a clear verdict whatever they do."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from sterna.errors import ConfigError
from sterna.testing.vectors import vectors_directory
from sterna_interop import vectors
from sterna_interop.results import CaseResult, Verdict
from sterna_interop.vectors import PROBE, CodecFailed, Vector, checked, difference, load, run_vectors, same

STERNA = (sys.executable, "-m", "sterna_interop.codec")
BEGIN = "import json, sys, time\n"
# What every shim of these tests does with a question that it likes.
HONEST = """
def say(question, **parts):
    print(json.dumps({"id": question["id"], **parts}), flush=True)
for line in sys.stdin:
    question = json.loads(line)
    if question["op"] != "read":
        say(question, skip="what is that?")
        continue
    WHAT
"""
ALL = {vector.id: vector for vector in load()}
SOME = [ALL[name] for name in ("ping/basic", "pong/basic", "bye/basic", "ready/basic", "end/basic")]


def codec(what: str) -> tuple[str, ...]:
    """The command of a shim that does this with every question of a vector."""
    return sys.executable, "-I", "-c", BEGIN + HONEST.replace("WHAT", what)


async def run(command: tuple[str, ...], some: list[Vector] = SOME) -> list[CaseResult]:
    results: list[CaseResult] = []
    await run_vectors("mine", command, results.append, vectors=some)
    return results


@pytest.mark.slow
async def test_sterna_passes_every_vector() -> None:
    results: list[CaseResult] = []
    await run_vectors("sterna", STERNA, results.append)
    assert [result for result in results if result.verdict is not Verdict.PASS] == []
    assert len(results) == len(ALL) + 1
    assert results[0].case == PROBE


@pytest.mark.parametrize(
    ("what", "detail"),
    [
        ("print('hello', flush=True)", "no JSON"),
        ("print('[' * 100000, flush=True)", "no JSON"),
        ("print('[]', flush=True)", "without the id"),
        ("say({'id': 99}, ok=1)", "without the id"),
        ("say({'id': True}, ok=1)", "without the id"),
        ("say(question)", "not one of ok, error, skip"),
        ("say(question, ok=1, error='bad_value')", "not one of ok, error, skip"),
        ("sys.exit(3)", "ended with exit code 3"),
        ("sys.stdout.close(); sys.exit(0)", "ended"),
        ("import os; os.kill(os.getpid(), 9)", "ended with exit code -9"),
    ],
)
async def test_what_is_no_answer_is_a_crash(what: str, detail: str) -> None:
    results = await run(codec(what))
    assert results[0].verdict is Verdict.PASS
    assert {result.verdict for result in results[1:]} == {Verdict.CRASH}
    assert detail in results[1].detail
    assert "not asked: the codec has failed 3 times" in results[-1].detail


async def test_an_answer_that_can_be_read_and_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nested as deep as JSON is read, it cannot be quoted in a verdict. How deep that is differs."""

    def too_deep(*_: object) -> None:
        raise RecursionError

    monkeypatch.setattr(vectors, "difference", too_deep)
    for result in (await run(codec("say(question, ok=[])"), SOME[:2]))[1:]:
        assert (result.verdict, result.detail) == (Verdict.CRASH, "an answer that is nested too deep")


async def test_who_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "ANSWER_S", 0.3)
    results = await run(codec("time.sleep(1000)"))
    assert "no answer within 0.3 s" in {result.detail for result in results}
    results = await run((sys.executable, "-I", "-c", "import time; time.sleep(1000)"))
    assert {result.verdict for result in results} == {Verdict.CRASH}


async def test_who_babbles_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "LINE_BYTES_MAX", 100_000)
    results = await run(codec("while True: sys.stdout.write('x' * 65536)"))
    assert results[1].detail == "a line of more than 100000 bytes"


async def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shim's children are in its process group; they hold its stdout open, so that nobody sees its end."""
    monkeypatch.setattr(vectors, "ANSWER_S", 0.3)
    mark = tmp_path / "pids"
    what = f"""
    import os, subprocess
    child = subprocess.Popen(["sleep", "1000"])
    open({str(mark)!r}, "a").write(f"{{os.getpid()}} {{child.pid}} ")
    sys.exit(1)
"""
    await run(codec("\n" + what))
    for pid in mark.read_text().split():
        with trio.move_on_after(5):
            while _lives(int(pid)):
                await trio.lowlevel.checkpoint()
        assert not _lives(int(pid))


def _lives(pid: int) -> bool:
    """Whether a process is there and is no zombie that somebody else has to bury."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


async def test_a_failed_shim_is_started_again() -> None:
    what = "sys.exit(1) if question['frame'] == 'PING' else say(question, skip='later')"
    results = await run(codec(what))
    assert [result.verdict for result in results] == [
        *(Verdict.PASS, Verdict.CRASH, Verdict.FAIL, Verdict.FAIL, Verdict.FAIL, Verdict.UNSUPPORTED),
    ]


async def test_who_knows_everything_fails_the_probe() -> None:
    command = codec("say(question, ok={})")
    knowing = (*command[:-1], command[-1].replace('skip="what is that?"', "ok=[]"))
    results = await run(knowing)
    assert results[0].case == PROBE
    assert results[0].verdict is Verdict.FAIL
    assert results[0].expected.startswith("skip")


@pytest.mark.parametrize(
    ("what", "actual"),
    [
        ("say(question, ok={'id': 2})", "2"),
        ("say(question, ok={'id': True})", "true"),
        ("say(question, ok={})", ""),
        ("say(question, ok={'id': 1, 'more': 0})", "id, more"),
        ("say(question, error='malformed')", "error malformed"),
        ("say(question, skip='later')", "skip later"),
        ("say(question, ok={'id': 1}, hex='00')", "00"),
    ],
)
async def test_wrong_answers(what: str, actual: str) -> None:
    (vector,) = [each for each in load() if each.id == "ping/basic"]
    value = json.dumps(vector.test["value"])
    (_, result) = await run(codec(what.replace("{'id': 1}", value)), [vector])
    assert result.verdict is Verdict.FAIL
    assert actual in result.actual


@pytest.mark.parametrize("flag", ["ReservedFeature", "OptionalFeature"])
async def test_what_an_implementation_may_lack_can_be_skipped(flag: str) -> None:
    """But an answer to it is judged like any other."""
    (vector,) = [each for each in load() if each.id == "ping/basic"]
    flagged = replace(vector, test={**vector.test, "flags": [flag]})
    (_, result) = await run(codec("say(question, skip='not here')"), [flagged])
    assert (result.verdict, result.detail) == (Verdict.UNSUPPORTED, "not here")
    (_, result) = await run(codec("say(question, error='malformed')"), [flagged])
    assert result.verdict is Verdict.FAIL


async def test_byte_by_byte_is_another_question() -> None:
    """[FRM-13]"""
    (vector,) = [each for each in load() if each.id == "preface/basic"]
    right = json.dumps(vector.test["value"])
    what = f"say(question, ok={right}) if 'piece_bytes' not in question else say(question, error='truncated')"
    (_, result) = await run(codec(what), [vector])
    assert (result.verdict, result.detail) == (Verdict.FAIL, "byte by byte")


async def test_a_preface_is_decided_early() -> None:
    """[PRE-2] Who waits for all 16 bytes is found out."""
    (vector,) = [each for each in load() if each.id == "preface/http-get"]
    what = "say(question, **({'error': 'http_on_plain'} if len(question['hex']) > 8 else {'ok': None}))"
    (_, result) = await run(codec(what), [vector])
    assert (result.verdict, result.detail) == (Verdict.FAIL, "the first 4 bytes, and no end")


async def test_a_stream_tells_how_many_frames_were_good() -> None:
    vector = next(each for each in load() if each.test.get("accepted"))
    what = f"say(question, error={vector.test['error']!r}, accepted=0)"
    (_, result) = await run(codec(what), [vector])
    assert result.expected.endswith("frames before the error")


async def test_a_command_that_cannot_be_started() -> None:
    with pytest.raises(ConfigError, match=r"cannot start '\./no-such-shim'"):
        await run(("./no-such-shim",))


def test_integers_may_be_numbers_or_strings() -> None:
    assert same(5, "5")
    assert same("18446744073709551615", 2**64 - 1)
    assert not same("5", 5)  # a text
    assert not same(True, 1)
    assert not same(1, True)
    assert not same(5, "6")
    assert not same(5, "5" * 5000)
    assert not same(5, None)


def test_differences_have_a_place() -> None:
    assert difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == ("value.a[1].b = 2", "3")
    assert difference([1], [1, 2]) == ("value of 1 items", "2 items")
    assert difference({"a": 1}, {"b": 1}) == ("value with a", "b")
    assert difference({"a": 1}, []) == ('value = {"a": 1}', "[]")
    assert difference({"a": [1]}, {"a": [1]}) is None


def test_an_answer_is_checked_for_its_form() -> None:
    assert checked(b'{"id": 3, "ok": null, "clause": "HDR-2"}', 3)["ok"] is None
    with pytest.raises(CodecFailed):
        checked(b"\xff\xfe", 3)


def test_all_vectors_are_asked() -> None:
    files = [json.loads(path.read_bytes()) for path in vectors_directory().glob("*.json")]
    assert len(ALL) == sum(file.get("numberOfTests", 0) for file in files)
    asked = Counter(how for vector in ALL.values() for how, _ in vector.questions())
    assert asked[""] == len(ALL)
    assert asked["byte by byte"] > 200
    assert os.fspath(vectors_directory()).endswith("vectors")


def test_unreadable_vectors(tmp_path: Path) -> None:
    (tmp_path / "ping.json").mkdir()
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path)

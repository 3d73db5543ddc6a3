"""The vectors of the specification against a codec shim: one process, one question a line, one answer a line.

interop/CODEC.md is the contract as an implementer reads it. A shim is trusted with nothing: what it
answers is bounded in time and size, and one that hangs, dies or babbles costs the vector that it was asked
about, is killed and started again; after `FAILURES_MAX` times the rest is not asked any more.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

import trio

from sterna.errors import ConfigError
from sterna.testing.vectors import vectors_directory
from sterna_interop.results import CODEC, CaseResult, Kind, Verdict

ANSWER_S: Final = 10.0
LINE_BYTES_MAX: Final = 4 << 20  # the longest answer to a vector has some 200 KiB
FAILURES_MAX: Final = 3
SKIPPABLE: Final = frozenset({"ReservedFeature", "OptionalFeature"})
PROBE: Final = "contract-002"
_INTEGER_MAX: Final = 2**53 - 1

Parts: TypeAlias = Mapping[str, object]
Asking: TypeAlias = Coroutine[object, object, CaseResult]


class CodecFailed(Exception):  # noqa: N818 (it is the shim that has)
    """A shim that does not keep to the contract; the text says how."""


@dataclass(frozen=True, slots=True)
class Vector:
    """One test, with the group that it stands in."""

    group: Parts
    test: Parts

    @property
    def id(self) -> str:
        """Stable, for example ``ping/basic``."""
        return str(self.test["id"])

    @property
    def may_be_skipped(self) -> bool:
        """Whether an implementation may lack what it is about; data connections are reserved, too."""
        flags, context = self.test.get("flags"), self.group.get("context")
        flagged = isinstance(flags, list) and not SKIPPABLE.isdisjoint(flags)
        return flagged or (isinstance(context, dict) and bool(context.get("stream")))

    def questions(self) -> Iterator[tuple[str, dict[str, object]]]:
        """What is asked, and a word about how."""
        kind, test = str(self.group["kind"]), self.test
        whole: dict[str, object] = {"op": "read", "kind": kind, "hex": test["hex"]}
        whole["context"] = self.group.get("context", {})
        whole["eof"] = test.get("eof", False)
        if kind == "body":
            whole |= {"type": self.group["type"], "frame": self.group["frame"]}
        yield "", whole
        if kind != "body":
            yield "byte by byte", {**whole, "piece_bytes": 1}
        decided_by = test.get("decided_by")
        if isinstance(decided_by, int):
            start = str(test["hex"])[: 2 * decided_by]
            yield f"the first {decided_by} bytes, and no end", {**whole, "hex": start, "eof": False}

    def judge(self, question: Parts, answer: Parts) -> tuple[str, str] | None:
        """What was wrong with an answer: what was expected, and what came. None if it is right."""
        test = self.test
        if test["result"] == "invalid":
            expected = f"error {test['error']}"
            if answer.get("error") != test["error"]:
                return expected, _said(answer)
            if "accepted" in test and not same(test["accepted"], answer.get("accepted")):
                return f"{test['accepted']} frames before the error", str(answer.get("accepted"))
            return None
        if "ok" not in answer:
            return ("what the bytes say", _said(answer)) if test["result"] == "valid" else None
        if (place := difference(test["value"], answer["ok"])) is not None:
            return place
        again = answer.get("hex", question["hex"])
        return None if again == question["hex"] else ("the same bytes, written again", str(again)[:200])


def load(directory: Path | None = None) -> list[Vector]:
    """All vectors, in the order of their files.

    Raises:
        ConfigError: the installation lacks them.
    """
    found: list[Vector] = []
    for path in sorted((directory or vectors_directory()).glob("*.json")):
        try:
            document = json.loads(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        groups = document.get("groups", ())
        found += [Vector(group, test) for group in groups for test in group["tests"]]
    return found


def difference(expected: object, actual: object, place: str = "value") -> tuple[str, str] | None:
    """Where two values differ first: what should stand there, and what does; None if they are the same."""
    pairs: list[tuple[str, object, object]]
    if isinstance(expected, dict) and isinstance(actual, dict):
        if expected.keys() != actual.keys():
            return f"{place} with {', '.join(sorted(expected))}", ", ".join(sorted(actual))[:200]
        pairs = [(f"{place}.{name}", one, actual[name]) for name, one in expected.items()]
    elif isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            return f"{place} of {len(expected)} items", f"{len(actual)} items"
        both = zip(expected, actual, strict=True)
        pairs = [(f"{place}[{at}]", one, other) for at, (one, other) in enumerate(both)]
    else:
        right = same(expected, actual)
        return None if right else (f"{place} = {json.dumps(expected)[:200]}", json.dumps(actual)[:200])
    differing = (difference(one, other, name) for name, one, other in pairs)
    return next((found for found in differing if found is not None), None)


def same(expected: object, actual: object) -> bool:
    """Equal, where an integer may be a number or a decimal string."""
    if type(expected) is int or (_is_large(expected) and type(actual) is int):
        written = actual if type(actual) is int else actual if _is_decimal(actual) else None
        return written is not None and int(str(written)) == int(str(expected))
    return type(expected) is type(actual) and expected == actual


def _is_decimal(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 20 and value.isascii() and value.isdecimal()


def _is_large(value: object) -> bool:
    """A string that a number may stand for: only those above what JSON's numbers carry are."""
    return _is_decimal(value) and int(str(value)) > _INTEGER_MAX


def _said(answer: Parts) -> str:
    for name in ("error", "skip"):
        if name in answer:
            return f"{name} {str(answer[name])[:200]}"
    return f"ok {json.dumps(answer['ok'])[:200]}"


# ---- the shim ----


class Codec:
    """A running shim.

    Raises:
        OSError: the command cannot be started.
    """

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._rest = bytearray()
        self._number = 0

    @classmethod
    async def start(cls, command: Sequence[str]) -> Codec:
        """Start it, in a process group of its own."""
        return cls(
            await trio.lowlevel.open_process(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

    async def ask(self, question: Parts) -> Parts:
        """One question; its answer.

        Raises:
            CodecFailed: there is none, or it is none.
        """
        self._number += 1
        line = json.dumps({"id": self._number, **question}) + "\n"
        with trio.move_on_after(ANSWER_S) as waiting:
            try:
                assert self._process.stdin is not None
                await self._process.stdin.send_all(line.encode())
                return checked(await self._line(), self._number)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise CodecFailed(f"it has ended{await self._exit()}") from None
        assert waiting.cancelled_caught
        raise CodecFailed(f"no answer within {ANSWER_S:g} s")

    async def _line(self) -> bytes:
        """The next line.

        Raises:
            CodecFailed: it is too long, or there is none.
        """
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            if len(self._rest) > LINE_BYTES_MAX:
                raise CodecFailed(f"a line of more than {LINE_BYTES_MAX} bytes")
            searched = await self._process.stdout.receive_some(1 << 16)
            if not searched:
                raise CodecFailed(f"it has ended{await self._exit()}")
            self._rest += searched
        line, _, rest = self._rest.partition(b"\n")
        self._rest = bytearray(rest)
        return bytes(line)

    async def _exit(self) -> str:
        with trio.move_on_after(1.0):
            return f" with exit code {await self._process.wait()}"
        return ""

    async def close(self) -> None:
        """Kill what is left of it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True), trio.move_on_after(2.0):
            await self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with trio.CancelScope(shield=True):
                    await pipe.aclose()


def checked(line: bytes, number: int) -> Parts:
    """An answer that has the form of one.

    Raises:
        CodecFailed: it has not.
    """
    try:
        parts = json.loads(line)
    except (ValueError, RecursionError):
        raise CodecFailed(f"an answer that is no JSON: {line[:80]!r}") from None
    if not isinstance(parts, dict) or parts.get("id") != number or type(parts["id"]) is not int:
        raise CodecFailed(f"an answer without the id {number} of its question: {line[:80]!r}")
    if len({"ok", "error", "skip"} & parts.keys()) != 1:
        raise CodecFailed(f"an answer that is not one of ok, error, skip: {line[:80]!r}")
    return parts


# ---- all of them ----


class _Judge:
    """Asks one shim about vectors, and starts it again when it has failed."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self._name = name
        self._command = command
        self._codec: Codec | None = None
        self._failures = 0

    async def probe(self) -> CaseResult:
        """Whether it knows what it does not know."""
        blank = self._blank(PROBE)
        return await self._guarded(blank, self._probe(blank))

    async def vector(self, vector: Vector) -> CaseResult:
        """The verdict about one."""
        blank = self._blank(vector.id)
        if self._failures >= FAILURES_MAX:
            detail = f"not asked: the codec has failed {self._failures} times"
            return replace(blank, verdict=Verdict.CRASH, detail=detail)
        return await self._guarded(blank, self._vector(blank, vector))

    async def close(self) -> None:
        codec, self._codec = self._codec, None
        if codec is not None:
            await codec.close()

    def _blank(self, case: str) -> CaseResult:
        return CaseResult(
            case=case, kind=Kind.VECTOR, source=self._name, destination=CODEC, verdict=Verdict.PASS
        )

    async def _guarded(self, blank: CaseResult, asking: Asking) -> CaseResult:
        began = time.monotonic()
        try:
            result = await asking
        except (CodecFailed, RecursionError) as failed:  # JSON can be read that cannot be written again
            self._failures += 1
            await self.close()
            detail = str(failed) if isinstance(failed, CodecFailed) else "an answer that is nested too deep"
            result = replace(blank, verdict=Verdict.CRASH, detail=detail)
        return replace(result, duration_ms=int(1000 * (time.monotonic() - began)))

    async def _ask(self, question: Parts) -> Parts:
        if self._codec is None:
            try:
                self._codec = await Codec.start(self._command)
            except OSError as error:
                text = f"{self._name}: cannot start {self._command[0]!r}: {error.strerror}"
                raise ConfigError(text) from error
        return await self._codec.ask(question)

    async def _probe(self, blank: CaseResult) -> CaseResult:
        answer = await self._ask({"op": f"unknown-{secrets.token_hex(4)}"})
        if "skip" in answer:
            return blank
        return _failed(blank, "skip, for an op that nobody knows", _said(answer))

    async def _vector(self, blank: CaseResult, vector: Vector) -> CaseResult:
        for how, question in vector.questions():
            answer = await self._ask(question)
            if "skip" in answer and vector.may_be_skipped:
                return replace(blank, verdict=Verdict.UNSUPPORTED, detail=str(answer["skip"])[:200])
            if (wrong := vector.judge(question, answer)) is not None:
                return _failed(blank, *wrong, how=how)
        return blank


def _failed(blank: CaseResult, expected: str, actual: str, how: str = "") -> CaseResult:
    return replace(blank, verdict=Verdict.FAIL, expected=expected, actual=actual, detail=how)


async def run_vectors(
    name: str,
    command: Sequence[str],
    on_result: Callable[[CaseResult], None],
    *,
    vectors: Iterable[Vector] | None = None,
) -> None:
    """Ask a codec shim about every vector, one after the other, and first whether it keeps to the contract.

    Args:
        name: of the implementation, for the results.
        command: program and arguments.
        on_result: called with each result when it is there.
        vectors: others than all of the specification's.

    Raises:
        ConfigError: the command cannot be started, or the installation lacks the vectors.
    """
    judge = _Judge(name, command)
    try:
        on_result(await judge.probe())
        for vector in load() if vectors is None else vectors:
            on_result(await judge.vector(vector))
    finally:
        await judge.close()

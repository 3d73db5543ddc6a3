"""The minimal endpoint's codec shim against all vectors, by way of the kit's judge and CODEC.md alone."""

from __future__ import annotations

import json
import sys

import pytest

from sterna.wire import encode_preface
from sterna_interop.minimal.codec import answer, shown
from sterna_interop.results import CaseResult, Verdict
from sterna_interop.vectors import load, run_vectors

PREFACE = encode_preface().hex()


@pytest.mark.slow
async def test_it_passes_every_vector_that_is_not_reserved() -> None:
    results: list[CaseResult] = []
    command = (sys.executable, "-m", "sterna_interop.minimal.codec")
    await run_vectors("minimal", command, results.append)
    reserved = {vector.id for vector in load() if vector.may_be_skipped}
    for result in results:
        allowed = {Verdict.PASS, Verdict.UNSUPPORTED} if result.case in reserved else {Verdict.PASS}
        assert result.verdict in allowed, result
    assert len([result for result in results if result.verdict is Verdict.PASS]) > 1500


def test_values_are_the_vectors() -> None:
    value = {"rate": 2**53, "id": b"\1", "rows": [{"hash": 5}, {"a": 1, "b": True}], "text": "x"}
    assert shown(value) == {
        "receive_rate_bytes_s": str(2**53),
        "id": "01",
        "rows": [5, {"a": 1, "b": True}],
        "text": "x",
    }


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ({"op": "sing"}, {"skip": "not known here"}),
        ({"op": "read", "kind": "song"}, {"skip": "not known here"}),
        ({"op": "read", "kind": "body", "frame": "HELD", "hex": ""}, {"skip": "HELD is reserved"}),
        ({"op": "read", "kind": "preface", "hex": PREFACE[:8]}, {"ok": None}),
        ({"op": "read", "kind": "preface", "hex": "00"}, {"error": "bad_magic"}),
        (
            {"op": "read", "kind": "header", "hex": "", "context": {"stream": 1}},
            {"skip": "data connections are reserved"},
        ),
        (
            {"op": "read", "kind": "stream", "hex": PREFACE, "eof": True, "piece_bytes": 1},
            {"ok": {"events": [{"event": "preface", "major": 1, "draft": 1}]}},
        ),
    ],
)
def test_answers(asked: dict[str, object], answered: dict[str, object]) -> None:
    assert answer(json.loads(json.dumps(asked))) == answered

"""The codec shim around sterna.wire; what it translates is shown by tests/test_vectors.py."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from sterna.limits import Limits
from sterna.registry import Encoding, Transfer
from sterna.wire import Pages, Ping, encode_frame, encode_preface, make_runs
from sterna_interop import codec
from sterna_interop.codec import Context, answer, integer, serve, shown

PING = {"op": "read", "kind": "body", "type": 0x8050, "hex": "0100000000000000"}
PREFACE = encode_preface()


def ask(**parts: object) -> dict[str, object]:
    return dict(answer(json.dumps({"id": 4, **parts})))


def test_a_body_is_read_and_written_again() -> None:
    assert ask(**PING) == {"id": 4, "ok": {"id": 1}, "hex": PING["hex"]}


def test_large_integers_are_strings() -> None:
    assert ask(**{**PING, "hex": "ff" * 8})["ok"] == {"id": str(2**64 - 1)}
    assert shown(2**53 - 1) == 2**53 - 1
    assert integer("18446744073709551615") == 2**64 - 1


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ({**PING, "hex": "01"}, "malformed"),
        ({**PING, "hex": "01" * 9}, "trailing_bytes"),
        ({"op": "read", "kind": "preface", "hex": "00"}, "bad_magic"),
        ({"op": "read", "kind": "preface", "hex": PREFACE[:7].hex(), "eof": True}, "truncated"),
        ({"op": "read", "kind": "header", "hex": "00" * 32}, "header_checksum"),
    ],
)
def test_errors_have_the_registrys_names(parts: dict[str, object], error: str) -> None:
    assert ask(**parts)["error"] == error


def test_a_preface_that_is_not_whole_says_nothing_yet() -> None:
    """[PRE-2]"""
    assert ask(op="read", kind="preface", hex=PREFACE[:7].hex())["ok"] is None
    whole = ask(op="read", kind="preface", hex=PREFACE.hex(), piece_bytes=1)
    assert whole == {"id": 4, "ok": {"major": 1, "draft": 1}, "hex": PREFACE.hex()}


@pytest.mark.parametrize("piece_bytes", [None, 1, 7])
def test_streams_tell_how_far_they_came(piece_bytes: int | None) -> None:
    """[FRM-13]"""
    frames = b"".join(bytes(part) for number in (0, 1) for part in encode_frame(Ping(number), number))
    parts = {} if piece_bytes is None else {"piece_bytes": piece_bytes}
    found = ask(op="read", kind="stream", hex=(PREFACE + frames).hex(), **parts)
    assert isinstance(found["ok"], dict)
    assert [event["event"] for event in found["ok"]["events"]] == ["preface", "frame", "frame"]
    damaged = PREFACE + frames[:-1] + b"\xff"
    found = ask(op="read", kind="stream", hex=damaged.hex(), **parts)
    assert (found["error"], found["accepted"]) == ("body_checksum", 1)


def test_what_is_not_known_is_skipped() -> None:
    assert "skip" in ask(op="sing")
    assert "skip" in ask(op="read", kind="song", hex="")
    hello = ask(op="hello")["ok"]
    assert isinstance(hello, dict)
    assert hello["name"] == "sterna"


def test_a_context_is_parsed() -> None:
    region = {"id": 1, "address": 0, "size_bytes": "8192", "granule_log2": 12, "fault_granule_log2": 12}
    row = {**region, "kind": 0, "transfer": 1}
    found = Context.from_json(
        {"handshake": True, "limits": {"regions": 5}, "regions": [row], "encodings": [0, 1], "stream": 3}
    )
    assert found.handshake
    assert found.stream == 3
    assert found.bounds.limits == Limits(regions=5)
    assert found.bounds.encodings == {Encoding.RAW, Encoding.ZERO}
    assert found.bounds.regions is not None
    assert found.bounds.regions[1].transfer is Transfer.SHARED
    assert Context.from_json({"regions": None}) == Context()
    bare = Context.from_json({"unhashed": True})
    assert found.bounds.hashed
    assert not bare.bounds.hashed
    assert not bare.reader().bounds.hashed


@pytest.mark.parametrize("wrong", [{"limits": 5}, {"regions": [4]}, {"encodings": [99]}, {"stream": 1.5}])
def test_what_is_no_context_is_an_error(wrong: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError)):
        Context.from_json(wrong)


def test_rejected_chunks() -> None:
    """[PGS-13]"""
    runs = make_runs([(0, 1, Encoding.RAW), (3, 1, Encoding.RAW)], 12)
    table = Pages(1, 1, 1, runs, np.array([1, 2], "<u8"))
    assert codec.rejected_chunks(table, bytearray(8192)) == [0, 1]
    other = runs.copy()
    other["encoding"] = Encoding.ZSTD
    assert codec.rejected_chunks(Pages(1, 1, 1, other, table.hashes), bytearray(8192)) == []


def test_a_line_for_a_line() -> None:
    out = io.StringIO()
    serve([json.dumps({"id": number, **PING}) for number in range(3)], out)
    assert [json.loads(line)["id"] for line in out.getvalue().splitlines()] == [0, 1, 2]

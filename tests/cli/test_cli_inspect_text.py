from __future__ import annotations

import pytest

from sterna.cli.inspect_text import fields_text, hex_lines, masked
from sterna.registry import FrameType
from sterna.wire import encode_frame
from sterna.wire.records import Attach


def test_fields_in_a_line() -> None:
    fields = {
        "attempt": 1,
        "last": True,
        "first": False,
        "vcpu": None,
        "code": "full",
        "name": "it's\x1b[31m",
        "items": ["a", "b"],
        "runs": ["0+1 raw", "2 more"],
        "pages": {"raw": 3, "zero": 1},
        "runner": {"host": "h", "id": "00"},
        "limits": dict.fromkeys("abcdefg", 1),
    }
    assert fields_text(fields) == (
        "attempt 1, last yes, first no, vcpu -, code full, name \"it's\\x1b[31m\", items ['a', 'b'], "
        "runs [0+1 raw, 2 more], pages (raw 3, zero 1), runner (host 'h', id 00), limits (7 of them)"
    )
    assert fields_text({}) == ""


def test_a_dump() -> None:
    assert list(hex_lines(bytes(range(0x41, 0x53)))) == [
        "    000000  41 42 43 44 45 46 47 48 49 4a 4b 4c 4d 4e 4f 50  ABCDEFGHIJKLMNOP",
        "    000010  51 52                                            QR",
    ]
    assert list(hex_lines(b"\0\x7f\xff")) == ["    000000  00 7f ff" + " " * 41 + "..."]
    assert list(hex_lines(b"")) == []


@pytest.mark.parametrize("cut", [10, 32 + 16, 32 + 20, 32 + 48, 200])
def test_tokens_are_masked(cut: int) -> None:
    """[SEC-5] Whatever part of a frame is there."""
    attach = b"".join(map(bytes, encode_frame(Attach(b"\1" * 16, b"\2" * 32, 3, 4), 0)))
    shown = masked(FrameType.ATTACH, attach[:cut])
    assert len(shown) == len(attach[:cut])
    assert shown == attach[:cut].replace(b"\2", b"\0")
    assert masked(FrameType.PING, attach) == attach

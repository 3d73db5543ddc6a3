"""Texts with NUL, controls, `..`, markup or 255 bytes, and UTF-8 that is none, in every text of every frame.

What a peer writes is read as UTF-8 without controls or refused; what is legal is shown to people quoted, is
no markup, and is never a file's name.

Published bugs of this class: a region's name of 256 characters ended QEMU by assertion (581f08bac2); CRI-O
CVE-2024-8676, containerd CVE-2026-50195 and CVE-2026-53492 took paths and configuration from a checkpoint
that somebody else had made; libvirt CVE-2013-7336 (a migration client and its cookie).

[TXT-1] [TXT-2] [TXT-3] [TXT-4] [SEC-12] [SEC-13] [FRM-14]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from withstand_fields import Leaf, leaves
from withstand_judge import judge, judge_any
from withstand_support import ROLES, Victim, at_home, receivers, recording, sample

from sterna.cli.events import event_fields, result_fields
from sterna.cli.output import Output, write_line
from sterna.core.tables import SourceState
from sterna.registry import ErrorCode, FrameType
from sterna.wire import records as r

F, C = FrameType, ErrorCode

_TEXTS = [
    (role, frame, leaf)
    for frame in FrameType
    for role in receivers(frame)
    for leaf in leaves(frame)
    if leaf.kind == "text"
]
texts = pytest.mark.parametrize(
    ("role", "frame", "leaf"),
    _TEXTS,
    ids=[f"{frame.name}.{leaf.name}-to-{role}" for role, frame, leaf in _TEXTS],
)

CONTROLS = [bytes([code]) for code in (*range(0x20), 0x7F)] + [
    chr(code).encode() for code in range(0x80, 0xA0)
]
NOT_UTF8 = {
    "a lone continuation byte": b"\x80",
    "an overlong NUL": b"\xc0\x80",
    "an overlong dot": b"\xc0\xae\xc0\xae/",
    "an overlong slash of three bytes": b"\xe0\x80\xaf",
    "an overlong slash of four bytes": b"\xf0\x80\x80\xaf",
    "a high surrogate": b"\xed\xa0\x80",
    "a pair of surrogates": b"\xed\xa0\x80\xed\xb0\x80",
    "beyond Unicode": b"\xf4\x90\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "cut inside a character": "ä".encode()[:1],
    "255 bytes and half a character": b"x" * 254 + "ä".encode()[:1],
    "bytes that are never UTF-8": b"\xfe\xff",
}
LEGAL = {
    "empty": "",
    "255 bytes": "x" * 255,
    "255 bytes of long characters": "ä" * 127 + "x",
    "dots": "..",
    "a path upwards": "../../../../etc/passwd",
    "a path from the root": "/etc/passwd",
    "a path of elsewhere": "C:\\windows\\system32",
    "a device": "/dev/stdin",
    "a URL": "file:///etc/passwd",
    "a format": "%s%n%x {0} {0.__class__} ${HOME}",
    "a command": "$(touch owned) `touch owned`; touch owned | cat && true",
    "an option": "--help",
    "markup": "[bold red]all is well[/bold red] [link=file:///etc/passwd]here[/link]",
    "HTML": "<script>alert(1)</script>",
    "a number that is none": "NaN",
    "JSON": '", "outcome": "completed", "x": "',
    "right to left": "\u202egnp.exe",
    "no width": "a\u200bb\ufeffc\u2060d",
    "a line separator": "a\u2028b\u2029c",
    "beyond 16 bits": "\U0001f426\U0010ffff",
    "private and unassigned": "\ue000\u0378",
}


def with_text(frame: FrameType, leaf: Leaf, text: bytes, length: int | None = None) -> bytes:
    """A body in which one text is another one."""
    body = sample(frame)
    count = len(text) if length is None else length
    return body[: leaf.offset] + bytes([count]) + text + body[leaf.offset + leaf.size :]


@texts
def test_a_control_character(role: str, frame: FrameType, leaf: Leaf) -> None:
    """[TXT-3] NUL, escape, newline, C1: alone for every one of them, and inside of a text for some."""
    for number, control in enumerate(CONTROLS):
        text = control if number % 3 else b"a" + control + b"b"
        victim = at_home(role, frame)
        victim.attack(victim.frame(frame, with_text(frame, leaf, text)))
        judge(victim, C.BAD_TEXT, clause="TXT-3")


@texts
def test_what_is_no_utf8(role: str, frame: FrameType, leaf: Leaf) -> None:
    """[TXT-2] Overlong forms, which are how `..` and `/` get past a filter, and surrogates."""
    for text in NOT_UTF8.values():
        victim = at_home(role, frame)
        victim.attack(victim.frame(frame, with_text(frame, leaf, text)))
        judge(victim, C.BAD_TEXT, clause="TXT-2")


@texts
def test_a_text_longer_than_its_body(role: str, frame: FrameType, leaf: Leaf) -> None:
    """[TXT-1] Every length that its byte can say; 256 is none of them."""
    rest = len(sample(frame)) - leaf.offset - 1
    for length in (each for each in (rest + 1, 128, 254, 255) if rest < each < 256):
        victim = at_home(role, frame)
        body = sample(frame)
        changed = body[: leaf.offset] + bytes([length]) + body[leaf.offset + 1 :]
        victim.attack(victim.frame(frame, changed))
        judge(victim, C.MALFORMED)


@contextmanager
def watched() -> Iterator[list[tuple[str, object]]]:
    """What Python opens, makes or starts meanwhile."""
    seen: list[tuple[str, object]] = []
    watching = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if watching and (event in {"open", "subprocess.Popen"} or event.startswith(("os.", "shutil."))):
            seen.append((event, arguments))

    sys.addaudithook(hook)
    try:
        yield seen
    finally:
        watching = False


def check_shown(victim: Victim, capsys: pytest.CaptureFixture[str]) -> None:
    """What commands would print of it holds no control, no markup that was acted upon, and is JSON."""
    result = victim.machine.result
    output = Output()
    capsys.readouterr()
    if result is not None:
        output.say(f"sterna: {result.error}")
        output.table(("missing",), [(item,) for item in result.items])
        write_line(result_fields(result))
    for event in victim.events:
        write_line(event_fields(event))
    shown = capsys.readouterr()
    for line in shown.err.split("\n"):
        assert line.isprintable(), repr(line)
    for line in shown.out.removesuffix("\n").split("\n"):
        assert "\x1b" not in line
        assert not line or isinstance(json.loads(line), dict)


@texts
def test_a_text_that_is_legal_and_not_meant_well(
    role: str, frame: FrameType, leaf: Leaf, capsys: pytest.CaptureFixture[str]
) -> None:
    """[SEC-12] It is a text: no file is opened, nothing is started, and a terminal sees escapes."""
    at_home(role, frame).attack()  # what is imported late is imported now
    check_shown(at_home(role, frame), capsys)
    for text in LEGAL.values():
        victim = at_home(role, frame)
        raw = victim.frame(frame, with_text(frame, leaf, text.encode()))
        with watched() as seen:
            victim.attack(raw)
        assert not seen, text
        clause = getattr(getattr(victim.machine.result, "error", None), "clause", "")
        assert not clause.startswith("TXT")
        check_shown(victim, capsys)
        judge_any(victim)


def test_a_peers_words_are_shown_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    """[SEC-12] The reason of an ABORT, the items of a REFUSE."""
    reason, item = "\u202e[red]ok[/red] ../x", "%s\u200b"
    victim = Victim("source").until(SourceState.GREETING)
    victim.attack(victim.record(r.Refuse(C.FULL, 1, (item,), reason)))
    result = victim.machine.result
    assert result is not None
    assert result.items == (item,)
    Output().say(str(result.error))
    shown = capsys.readouterr().err
    assert repr(reason) in shown
    assert repr(item) in shown
    judge(victim, C.FULL, told=False, by_peer=True)


@pytest.mark.parametrize("role", ROLES)
def test_no_text_of_a_whole_migration_opens_a_file(role: str) -> None:
    """[SEC-12] [SEC-13] Every text of the conversation is a path, and it is a migration all the same."""
    path = b"../../tmp/owned"
    Victim(role).live()
    victim = Victim(role)
    if role == "source":
        victim.until(SourceState.GREETING)
    with watched() as seen:
        for said in recording()[role]:
            frame = F(said.frame)
            body = said.body
            names = [
                leaf for leaf in leaves(frame) if leaf.kind == "text" and "cpu_features" not in leaf.path
            ]
            for leaf in reversed(names if sample(frame) == body else []):
                body = body[: leaf.offset] + bytes([len(path)]) + path + body[leaf.offset + leaf.size :]
            victim.settle()
            victim.attack(victim.frame(said.frame, body, said.bulk))
    assert not seen
    judge_any(victim)
    assert victim.machine.result is not None
    assert victim.machine.result.code is None


def test_every_text_of_the_schema_is_attacked() -> None:
    names = {(frame, leaf.name) for _, frame, leaf in _TEXTS}
    assert {frame for frame, _ in names} == {
        F.HELLO, F.WELCOME, F.REFUSE, F.GUEST, F.NOT_READY, F.RUNNING, F.HANDBACK, F.ABORT, F.VERDICT,
    }  # fmt: skip
    assert {name for frame, name in names if frame is F.GUEST} == {
        "name", "cpu_features", "nics.name", "disks.name", "disks.identity",
    }  # fmt: skip

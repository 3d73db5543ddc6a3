"""The first bytes: other protocols, versions from 0 to the last, features and limits nobody agreed on.

Published bugs of this class: Firecracker's version stands inside of what it decides how to read; a capability
that only one side had set booted two guests in QEMU (875fcd013a); Xen's first stream format guessed from what
was absent; text-mode transfers and wrong ports are everybody's.

[PRE-2] [PRE-3] [PRE-4] [PRE-5] [PRE-6] [HEL-2] [HEL-5] [HEL-6] [HEL-8] [WEL-4] [NEG-1] [NEG-2] [NEG-3]
[NEG-4] [NEG-5] [NEG-6] [NEG-7] [NEG-8] [LIM-6] [LIM-7] [VRS-3] [CON-10] [CON-17] [ACC-3] [SWI-1] [PRG-1]
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from withstand_judge import judge, judge_accepted, judge_any
from withstand_support import ROLES, Victim, at_home, sample

from sterna.core.events import Outcome
from sterna.core.negotiate import BASE_FEATURES
from sterna.core.tables import DestinationState, SourceState
from sterna.registry import (
    MAGIC,
    Encoding,
    ErrorCode,
    Feature,
    FrameType,
    Limit,
    Mode,
    Owner,
    Phase,
    Style,
)
from sterna.wire import decode_body, make_runs, unchecked
from sterna.wire import records as r
from sterna.wire.header import VERSION

F, C = FrameType, ErrorCode
U16, U32, U64 = (1 << 16) - 1, (1 << 32) - 1, (1 << 64) - 1


def hello(**changes: object) -> r.Hello:
    record = decode_body(F.HELLO, sample(F.HELLO))
    assert isinstance(record, r.Hello)
    return replace(record, **changes)  # type: ignore[arg-type]


def welcome(**changes: object) -> r.Welcome:
    record = decode_body(F.WELCOME, sample(F.WELCOME))
    assert isinstance(record, r.Welcome)
    return replace(record, **changes)  # type: ignore[arg-type]


# ---- the preface ----


def opened(role: str, start: bytes) -> Victim:
    """A victim whose peer begins with these bytes."""
    victim = Victim(role)
    if role == "source":
        victim.until(SourceState.GREETING)
    victim._prefaced = True
    return victim.attack(start)


def named(start: bytes) -> ErrorCode:
    """What 3 says of a preface whose magic is not the magic."""
    if start[:2] in {b"\x16\x03", b"\x15\x03"}:
        return C.TLS_ON_PLAIN
    if start[1:7] == b"STERNA" and start[0] in {0x89, 0x09, 0x3F}:
        return C.TEXT_MODE_DAMAGE
    return C.BAD_MAGIC


@pytest.mark.parametrize("role", ROLES)
def test_every_bit_of_the_preface(role: str) -> None:
    """[PRE-2] [PRE-3] [PRE-6] Of the magic none may change; the version is only told."""
    good = unchecked.preface()
    for bit in range(8 * len(good)):
        start = bytearray(good)
        start[bit // 8] ^= 1 << bit % 8
        victim = opened(role, bytes(start))
        if bit < 8 * len(MAGIC):
            judge(victim, named(bytes(start)))
        else:
            assert victim.machine.result is None


OTHERS = {
    "TLS": (bytes.fromhex("16030100c0010000bc0303") + bytes(200), C.TLS_ON_PLAIN),
    "a TLS alert": (bytes.fromhex("15030300020228"), C.TLS_ON_PLAIN),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", C.HTTP_ON_PLAIN),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", C.HTTP_ON_PLAIN),
    "an HTTP answer": (b"HTTP/1.1 400 Bad Request\r\n\r\n", C.HTTP_ON_PLAIN),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n", C.BAD_MAGIC),
    "QEMU's stream": (b"QEVM\0\0\0\3" + bytes(64), C.BAD_MAGIC),
    "a PNG": (b"\x89PNG\r\n\x1a\n" + bytes(32), C.BAD_MAGIC),
    "zeros": (bytes(64), C.BAD_MAGIC),
    "no eighth bit": (b"\x09STERNA\r\n\x1a\n\0", C.TEXT_MODE_DAMAGE),
    "line ends of Unix": (MAGIC.replace(b"\r\n", b"\n") + bytes(8), C.TEXT_MODE_DAMAGE),
    "line ends of DOS twice": (MAGIC.replace(b"\n", b"\r\n") + bytes(8), C.TEXT_MODE_DAMAGE),
    "as Latin-1 to UTF-8": ("\x89STERNA\r\n".encode() + bytes(8), C.TEXT_MODE_DAMAGE),
    "with a replacement character": ("\ufffdSTERNA\r\n".encode() + bytes(8), C.TEXT_MODE_DAMAGE),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", OTHERS)
def test_another_protocol(role: str, name: str) -> None:
    """[PRE-2] to [PRE-5], in one piece and byte by byte."""
    start, code = OTHERS[name]
    judge(opened(role, start), code)
    victim = opened(role, b"")
    for number in range(len(start)):
        if victim.machine.result is None:
            victim.attack(start[number : number + 1])
    judge(victim, code)


# ---- versions ----

VERSIONS = (0, 1, U16, VERSION - 1, VERSION + 1, 1 << 16, 2 << 16, U32)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_that_nobody_speaks(version: int) -> None:
    """[NEG-1] [NEG-2] [VRS-3] Alone it is refused, whatever else HELLO holds; beside ours it is ignored."""
    for changes in {}, {"mode": 77}, {"epoch": U64}, {"session": b"s" * 16}, {"limits": {1: 0}}:
        victim = at_home("destination", F.HELLO)
        victim.attack(victim.record(hello(versions=(version,), **changes)))
        judge(victim, C.NO_COMMON_VERSION)
    victim = at_home("destination", F.HELLO)
    victim.attack(victim.record(hello(versions=(version, VERSION))))
    judge_accepted(victim)
    victim = at_home("source", F.WELCOME)
    victim.attack(victim.record(welcome(version=version)))
    judge(victim, C.UNSOLICITED, clause="NEG-2")


def test_a_version_twice() -> None:
    """[HEL-2]"""
    victim = at_home("destination", F.HELLO)
    victim.attack(victim.record(hello(versions=(VERSION, VERSION))))
    judge(victim, C.BAD_VALUE, clause="HEL-2")


@pytest.mark.parametrize("mode", range(6))
def test_every_mode(mode: int) -> None:
    """[CON-10] [HEL-5] [HEL-6] [FRM-4] With a session and without; a lower version on resume is one more."""
    for session in b"\0" * 16, b"s" * 16:
        victim = at_home("destination", F.HELLO)
        token = session * 2
        victim.attack(victim.record(hello(mode=mode, session=session, token=token)))
        opens = mode in {Mode.OPEN, Mode.STORED}
        if mode > Mode.STORED:
            judge(victim, C.BAD_VALUE, clause="FRM-4")
        elif opens and any(session):
            judge(victim, C.BAD_VALUE, clause="HEL-5")
        elif not opens and not any(session):
            judge(victim, C.BAD_VALUE, clause="HEL-6")
        elif mode == Mode.OPEN:
            judge_accepted(victim)
        elif mode == Mode.VERDICT:  # nothing is known of it here [ONE-46]
            judge_any(victim)
            (said,) = victim.spoken
            verdict = decode_body(said.frame, said.body)
            assert isinstance(verdict, r.Verdict)
            assert verdict.owner is Owner.UNDECIDED
        else:
            judge(victim, C.UNSUPPORTED, clause="CON-10")


@pytest.mark.parametrize("field", ["generation", "complete_round", "held_frames"])
def test_a_welcome_that_resumes_what_was_opened(field: str) -> None:
    """[WEL-4]"""
    for value in 1, U32:
        victim = at_home("source", F.WELCOME)
        victim.attack(victim.record(welcome(**{field: value})))
        judge(victim, C.BAD_VALUE, clause="WEL-4")


# ---- features ----

OFFERED = {offer.id: offer for offer in hello().features}
REQUIRED = [number for number, offer in OFFERED.items() if offer.required]


@pytest.mark.parametrize("feature", [*Feature, 0, 0x7777, U16], ids=str)
def test_a_feature_that_only_one_side_has(feature: int) -> None:
    """[NEG-3] [NEG-4] [NEG-5] [NEG-6] Offered and required, selected and not offered, left out."""
    for required in False, True:
        victim = at_home("destination", F.HELLO)
        offers = (
            *(each for each in hello().features if each.id != feature),
            r.FeatureOffer(feature, required),
        )
        victim.attack(victim.record(hello(features=offers)))
        if required and feature not in BASE_FEATURES:
            judge(victim, C.MISSING_FEATURE, clause="NEG-4")
        else:
            judge_accepted(victim)

    without = tuple(each for each in hello().features if each.id != feature)
    victim = at_home("destination", F.HELLO)
    victim.attack(victim.record(hello(features=without)))
    if feature in REQUIRED:
        judge(victim, C.MISSING_FEATURE, clause="NEG-4")
    else:
        judge_accepted(victim)

    selected = tuple(each for each in welcome().features if each.id != feature)
    victim = at_home("source", F.WELCOME)
    victim.attack(victim.record(welcome(features=selected)))
    if feature in REQUIRED:
        judge(victim, C.MISSING_FEATURE, clause="NEG-6")
    else:
        victim.next += 1
        victim.carry_on()
        judge_any(victim)

    victim = at_home("source", F.WELCOME)
    victim.attack(victim.record(welcome(features=(*selected, r.FeatureChoice(feature, U64)))))
    if feature not in OFFERED:
        judge(victim, C.UNSOLICITED, clause="NEG-5")
    elif feature == Feature.PROGRESS:
        judge_accepted(victim)  # seldom is less than often
    else:
        judge(victim, C.UNSOLICITED, clause="NEG-8")


def test_zero_pages_that_were_not_selected() -> None:
    """[NEG-7] [PGS-9]"""
    victim = at_home("destination", F.HELLO)
    offers = tuple(each for each in hello().features if each.id != Feature.ENCODING_ZERO)
    victim.attack(victim.record(hello(features=offers)))
    for said in victim.recorded["destination"][1:4]:
        victim.attack(victim.again(said))
    assert victim.machine.state is DestinationState.RECEIVING
    runs = make_runs([(0, 1, Encoding.ZERO)], 12)
    victim.attack(victim.record(r.Pages(1, 1, 0, runs, np.zeros(0, "<u8"))))
    judge(victim, C.NOT_SELECTED, clause="PGS-9")


@pytest.mark.parametrize("role", ROLES)
def test_progress_that_was_not_selected(role: str) -> None:
    """[NEG-7] [PRG-1]"""
    frame = F.HELLO if role == "destination" else F.WELCOME
    victim = at_home(role, frame)
    agreed = hello() if role == "destination" else welcome()
    features = tuple(each for each in agreed.features if each.id != Feature.PROGRESS)
    victim.attack(victim.record(replace(agreed, features=features)))
    victim.attack(victim.record(r.Progress(Phase.ROUNDS, 1, 1, 1, 1, 1, 1, 1)))
    judge(victim, C.NOT_SELECTED, clause="PRG-1")


@pytest.mark.parametrize("style", range(5))
def test_a_style_that_was_not_selected(style: int) -> None:
    """[SWI-1] [FRM-4]"""
    victim = at_home("destination", F.SWITCHOVER)
    victim.attack(victim.record(r.Switchover(1, style)))  # type: ignore[arg-type]
    if style == Style.STOP_AND_COPY:
        judge_accepted(victim)
    elif style <= Style.POST_COPY:
        judge(victim, C.NOT_SELECTED, clause="SWI-1")
    else:
        judge(victim, C.BAD_VALUE, clause="FRM-4")


# ---- limits, and what was promised ----


@pytest.mark.parametrize("limit", Limit, ids=lambda limit: limit.name)
@pytest.mark.parametrize("value", [0, 1, 4095, 65535, 65536, U32, U64])
def test_a_limit_of_the_peer(limit: Limit, value: int) -> None:
    """[LIM-6] [LIM-7] Too small for a session or for this guest: said at once. Else it is kept to."""
    limits = {**welcome().limits, int(limit): value}
    victim = at_home("source", F.WELCOME)
    victim.attack(victim.record(welcome(limits=limits)))
    victim.next += 1
    victim.carry_on()
    result = victim.machine.result
    assert result is not None
    if result.outcome is not Outcome.COMPLETED:
        judge_any(victim)
    floor = {Limit.CONTROL_BYTES: 65536, Limit.BULK_BYTES: 4096, Limit.BATCH_RUNS: 1}.get(limit, 0)
    if value < floor:
        judge(victim, C.LIMIT_MISMATCH)
    victim = at_home("destination", F.HELLO)
    victim.attack(victim.record(hello(limits={**hello().limits, int(limit): value})))
    least = {Limit.CONTROL_BYTES: 65536, Limit.BULK_BYTES: 1, Limit.BATCH_RUNS: 1}.get(limit, 0)
    if value < least:
        judge(victim, C.LIMIT_MISMATCH, clause="LIM-7")
    else:
        judge_accepted(victim)


def test_less_room_than_asked_for() -> None:
    """[CON-17] [ACC-3]"""
    for reserved_bytes, streams, code, clause in (
        (0, 0, C.BAD_VALUE, "CON-17"),
        (4 * 4096 - 1, 0, C.BAD_VALUE, "CON-17"),
        (4 * 4096, 1, C.NOT_SELECTED, "ACC-3"),
        (U64, 16, C.NOT_SELECTED, "ACC-3"),
        (U64, 17, C.BAD_VALUE, "ACC-2"),
    ):
        victim = at_home("source", F.ACCEPT)
        victim.attack(victim.record(r.Accept(reserved_bytes, streams)))
        judge(victim, code, clause=clause)


@pytest.mark.parametrize("index", [0, 15, 16, U16])
def test_a_data_connection_that_nobody_asked_for(index: int) -> None:
    """[ATT-2] [STR-4] Right token or wrong, an index that may be there, is n, or is beyond."""
    for token in bytes(32), bytes(range(32)):
        victim = at_home("destination", F.ATTACH)
        victim.attack(victim.record(r.Attach(b"s" * 16, token, index, 0)))
        judge(victim, C.BAD_VALUE if index >= 16 else C.BAD_TOKEN)

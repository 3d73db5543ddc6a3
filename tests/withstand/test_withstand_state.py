"""Execution state from an attacker: fragments that do not fit, sections that do not belong, wrong registers.

Wrong registers under right digests are what a taken-over source can send: it computes every checksum itself.
Whether the state makes sense is then for the guest to say before it is loaded; whatever it says is one code,
and a guest that it accepts has a state that a guest may have.

Published bugs of this class: most of QEMU's, where a device's state was loaded and its indexes were used:
CVE-2013-4526, CVE-2013-4527, CVE-2013-4529, CVE-2013-4530, CVE-2013-4532, CVE-2013-4533, CVE-2013-4534,
CVE-2013-4537, CVE-2013-4538, CVE-2013-4539, CVE-2013-4540, CVE-2013-4542, CVE-2013-4544, CVE-2013-6399,
CVE-2015-8666, CVE-2017-16845; CVE-2014-0182 (a configuration of another length), CVE-2025-54566 (two objects
that contradict each other); Xen's size check of XSAVE state (d7bb8e88).

[STA-1] [STA-2] [STA-3] [STA-4] [STA-5] [STA-6] [STA-7] [STA-8] [STA-9] [SEA-1] [SEA-3] [CON-50] [CON-51]
[MEM-19]
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from withstand_judge import judge, judge_any
from withstand_support import Victim, at_home, sample

from sterna.core.tables import DestinationState
from sterna.registry import ErrorCode, FrameType, StateKind
from sterna.wire import decode_body, state_digest
from sterna.wire import records as r

F, C = FrameType, ErrorCode
HONEST = decode_body(F.STATE, sample(F.STATE))
assert isinstance(HONEST, r.State)
DATA = HONEST.data
SIZE = len(DATA)


def part(offset: int, end: int, **changes: object) -> r.State:
    """Bytes of the honest state, as a fragment."""
    assert isinstance(HONEST, r.State)
    fields = {"offset": offset, "last": end == SIZE, "data": DATA[offset:end]}
    return replace(HONEST, **fields | changes)  # type: ignore[arg-type]


def whole(data: bytes = DATA, **changes: object) -> r.State:
    assert isinstance(HONEST, r.State)
    fields: dict[str, object] = {"total_bytes": len(data), "offset": 0, "last": True, "data": data}
    return replace(HONEST, **fields | changes)  # type: ignore[arg-type]


def hear(*fragments: r.State) -> Victim:
    victim = Victim("destination").until(DestinationState.FROZEN, F.STATE)
    for fragment in fragments:
        if victim.machine.result is None:
            victim.attack(victim.record(fragment))
    return victim


def sealed(*sections: r.State) -> Victim:
    """State that an attacker has sealed with everything right about it; HANDOVER follows if it is loaded."""
    victim = hear(*sections)
    seal = decode_body(F.SEAL, sample(F.SEAL))
    assert isinstance(seal, r.Seal)
    digest = state_digest(
        [r.StateSection(s.kind, s.version, s.data, s.architecture, s.vcpu, s.instance) for s in sections]
    )
    changed = replace(
        seal,
        state_digest=digest,
        state_sections=len(sections),
        state_bytes=sum(len(section.data) for section in sections),
    )
    victim.attack(victim.record(changed))
    return victim


FRAGMENTS: dict[str, tuple[tuple[r.State, ...], ErrorCode, str]] = {
    "it begins in the middle": ((part(10, SIZE),), C.BAD_FRAGMENT, "STA-5"),
    "a gap": ((part(0, 10), part(11, SIZE)), C.BAD_FRAGMENT, "STA-5"),
    "an overlap": ((part(0, 10), part(9, SIZE)), C.BAD_FRAGMENT, "STA-5"),
    "a fragment twice": ((part(0, 10), part(0, 10)), C.BAD_FRAGMENT, "STA-5"),
    "backwards": ((part(0, 20), part(10, 20), part(20, SIZE)), C.BAD_FRAGMENT, "STA-5"),
    "it grows in the middle": ((part(0, 10), part(10, 20, total_bytes=SIZE + 1)), C.BAD_FRAGMENT, "STA-5"),
    "it shrinks in the middle": (
        (part(0, 10), part(10, 20, total_bytes=20, last=True)), C.BAD_FRAGMENT, "STA-5",
    ),
    "another section between": ((part(0, 10), whole(b"x", instance=1)), C.BAD_FRAGMENT, "STA-5"),
    "another version in the middle": ((part(0, 10), part(10, SIZE, version=2)), C.BAD_FRAGMENT, "STA-5"),
    "last before the end": ((part(0, 10, last=True),), C.BAD_FRAGMENT, "STA-3"),
    "the end is not last": ((part(0, SIZE, last=False),), C.BAD_FRAGMENT, "STA-3"),
    "beyond the end": ((part(0, SIZE, total_bytes=SIZE - 1),), C.BAD_FRAGMENT, "STA-2"),
    "nothing": ((part(0, 0),), C.BAD_FRAGMENT, "STA-4"),
    "a section twice": ((whole(b"x"), whole(b"x")), C.BAD_FRAGMENT, "STA-8"),
    "an empty section twice": (
        (whole(b"", instance=1), whole(b"", instance=1)), C.BAD_FRAGMENT, "STA-8",
    ),
    "of a vCPU that is not there": ((whole(vcpu=1),), C.BAD_VALUE, "STA-9"),
    "of the vCPU before the last number": ((whole(vcpu=(1 << 32) - 2),), C.BAD_VALUE, "STA-9"),
    "more than GUEST has announced": ((whole(bytes(121)),), C.LIMIT_STATE, "STA-1"),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAGMENTS)
def test_fragments_that_do_not_fit(name: str) -> None:
    fragments, code, clause = FRAGMENTS[name]
    victim = hear(*fragments)
    judge(victim, code, clause=clause)
    assert "load_state" not in victim.room.calls


def test_seal_in_the_middle_of_a_section() -> None:
    """[SEA-3]"""
    victim = hear(part(0, 10))
    victim.attack(victim.frame(F.SEAL, sample(F.SEAL)))
    judge(victim, C.COUNT_MISMATCH, clause="SEA-3")


SECTIONS: dict[str, tuple[tuple[r.State, ...], ErrorCode]] = {
    "no section": ((), C.STATE_REJECTED),
    "an empty one": ((whole(b""),), C.STATE_REJECTED),
    "a byte short": ((whole(DATA[:-1]),), C.STATE_REJECTED),
    "of another kind": ((whole(kind=StateKind.OPAQUE),), C.UNKNOWN_STATE),
    "of a kind that nobody knows": ((whole(kind=0xFFFF),), C.UNKNOWN_STATE),
    "of version 0": ((whole(version=0),), C.UNKNOWN_STATE),
    "of the version of another form": ((whole(version=2),), C.STATE_REJECTED),
    "of a later version": ((whole(version=3),), C.UNKNOWN_STATE),
    "of the last version": ((whole(version=(1 << 32) - 1),), C.UNKNOWN_STATE),
    "of another architecture": ((whole(architecture=1),), C.UNKNOWN_STATE),
    "of a vCPU": ((whole(vcpu=0),), C.STATE_REJECTED),
    "of another instance": ((whole(instance=1),), C.STATE_REJECTED),
    "and a second one": ((whole(), whole(b"", instance=1)), C.STATE_REJECTED),
    "zeros": ((whole(bytes(SIZE)),), C.STATE_REJECTED),
    "ones": ((whole(b"\xff" * SIZE),), C.STATE_REJECTED),
}


@pytest.mark.parametrize("name", SECTIONS)
def test_sections_that_a_guest_does_not_take(name: str) -> None:
    """[STA-6] [CON-51] Sealed as if it were right: nothing is run, and the source is told."""
    sections, code = SECTIONS[name]
    victim = sealed(*sections)
    judge(victim, code)
    assert not victim.room.has_run


@pytest.mark.slow
def test_any_bit_of_the_registers_under_the_right_digest() -> None:
    """[CON-50] [CON-51] Every byte of the state, wrong by a bit or two in turn: refused when it is loaded."""
    for bit in range(0, 8 * SIZE, 3):
        changed = bytearray(DATA)
        changed[bit // 8] ^= 1 << bit % 8
        victim = sealed(whole(bytes(changed)))
        assert victim.machine.result is not None, bit
        judge(victim, C.STATE_REJECTED)


def test_the_honest_state_in_the_smallest_fragments() -> None:
    """[STA-5] A byte a frame is slow, and legal: the guest runs in the end."""
    victim = sealed(whole())
    assert victim.machine.state is DestinationState.LOADED
    victim = hear(*(part(at, at + 1) for at in range(SIZE)))
    assert victim.machine.result is None
    victim.next += 1
    for said in victim.recorded["destination"][victim.next :]:
        body = said.body
        victim.attack(victim.frame(said.frame, body, said.bulk))
    judge_any(victim)
    assert victim.room.has_run


def test_an_algorithm_that_proves_less() -> None:
    """[SEA-1] A digest of 32 bits, or of another length."""
    for algorithm in 0, 1, 2, 4, 255:
        victim = at_home("destination", F.SEAL)
        body = bytearray(sample(F.SEAL))
        body[4] = algorithm
        victim.attack(victim.frame(F.SEAL, bytes(body)))
        judge(victim, C.BAD_VALUE)

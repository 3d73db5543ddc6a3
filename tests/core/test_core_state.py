"""State sections cut and put together."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.core.state import FRAGMENT_BYTES, StateAssembler, check_sections, fragments
from sterna.errors import GuestError, LimitExceeded, PeerMisbehaved
from sterna.limits import HANDSHAKE_BODY_BYTES
from sterna.registry import ErrorCode, StateKind
from sterna.wire.codec import decode_body, encode_body
from sterna.wire.records import NO_VCPU, State, StateSection

SMALL = HANDSHAKE_BODY_BYTES
LONG = StateSection(StateKind.OPAQUE, 1, bytes(range(256)) * 400)  # 100 KiB: four fragments


def assembler(limit_bytes=1 << 20, limit_sections=8, vcpus=4):
    return StateAssembler(limit_bytes, limit_sections, vcpus)


def refused(assembler, fragment, code, clause):
    with pytest.raises((PeerMisbehaved, LimitExceeded)) as caught:
        assembler.add(fragment)
    assert (caught.value.code, caught.value.clause) == (code, clause)


SECTIONS = st.builds(
    StateSection,
    kind=st.integers(0, 3),
    version=st.integers(0, 3),
    data=st.binary(max_size=100) | st.integers(0, 3 * FRAGMENT_BYTES).map(bytes),
    architecture=st.integers(0, 3),
    vcpu=st.integers(0, 3) | st.just(NO_VCPU),
    instance=st.integers(0, 3),
)
SETS = st.lists(SECTIONS, unique_by=lambda s: (s.kind, s.version, s.architecture, s.vcpu, s.instance))


@given(SETS, st.integers(SMALL, 1 << 20))
def test_what_is_cut_is_put_together_again(sections, control_bytes):
    """[STA-2] [STA-3] [STA-4] [STA-5] Every fragment passes the codec, and a frame of the peer's limit."""
    together = assembler(limit_sections=len(sections))
    for section in sections:
        for fragment in fragments(section, 3, control_bytes):
            body = encode_body(fragment)
            assert len(body) <= control_bytes
            together.add(decode_body(fragment.type, body))
        assert together.is_whole
    assert list(together.sections) == sections
    assert together.bytes == sum(len(section.data) for section in sections)
    assert check_sections(sections, 1 << 40, len(sections), 4) == together.bytes


def test_fragments_are_short_and_in_order():
    pieces = list(fragments(LONG, 7, SMALL))
    assert [piece.offset for piece in pieces] == [at * FRAGMENT_BYTES for at in range(4)]
    assert [piece.last for piece in pieces] == [False, False, False, True]
    assert {(piece.attempt, piece.total_bytes) for piece in pieces} == {(7, len(LONG.data))}


def test_an_empty_section_is_one_fragment():
    """[STA-4]"""
    (piece,) = fragments(replace(LONG, data=b""), 1, SMALL)
    assert (piece.total_bytes, piece.offset, piece.last, piece.data) == (0, 0, True, b"")
    together = assembler()
    together.add(piece)
    assert together.sections == (replace(LONG, data=b""),)


def test_a_section_begins_at_its_beginning():
    """[STA-5]"""
    refused(assembler(), list(fragments(LONG, 1, SMALL))[1], ErrorCode.BAD_FRAGMENT, "STA-5")


@pytest.mark.parametrize("at", [0, 2], ids=["again", "too far"])
def test_a_fragment_follows_the_one_before(at):
    """[STA-5]"""
    pieces = list(fragments(LONG, 1, SMALL))
    together = assembler()
    together.add(pieces[0])
    assert not together.is_whole
    refused(together, pieces[at], ErrorCode.BAD_FRAGMENT, "STA-5")


@pytest.mark.parametrize("name", ["architecture", "vcpu", "kind", "version", "instance", "total_bytes"])
def test_no_other_section_begins_inside_of_one(name):
    """[STA-5]"""
    first, second, *_ = fragments(replace(LONG, vcpu=0), 1, SMALL)
    together = assembler()
    together.add(first)
    other = replace(second, **{name: getattr(second, name) + 1})
    refused(together, other, ErrorCode.BAD_FRAGMENT, "STA-5")


def test_a_section_comes_once():
    """[STA-8] Of another version it is another section."""
    together = assembler()
    (piece,) = fragments(replace(LONG, data=b"x"), 1, SMALL)
    together.add(piece)
    refused(together, piece, ErrorCode.BAD_FRAGMENT, "STA-8")
    together = assembler()
    together.add(piece)
    together.add(replace(piece, version=2))
    assert [section.version for section in together.sections] == [1, 2]


@pytest.mark.parametrize("vcpu", [4, NO_VCPU - 1])
def test_a_vcpu_that_the_guest_does_not_have(vcpu):
    """[STA-9]"""
    (piece,) = fragments(replace(LONG, data=b"x", vcpu=vcpu), 1, SMALL)
    refused(assembler(vcpus=4), piece, ErrorCode.BAD_VALUE, "STA-9")
    with pytest.raises(GuestError, match="none of the 4"):
        check_sections((replace(LONG, vcpu=vcpu),), 1 << 20, 1, 4)
    for good in (0, 3, NO_VCPU):
        assembler(vcpus=4).add(replace(piece, vcpu=good))


def test_more_bytes_than_announced():
    """[STA-1] Counted before anything is held."""
    together = assembler(limit_bytes=len(LONG.data))
    for piece in fragments(LONG, 1, SMALL):
        together.add(piece)
    (more,) = fragments(replace(LONG, data=b"x", instance=1), 1, SMALL)
    refused(together, more, ErrorCode.LIMIT_STATE, "STA-1")
    refused(
        assembler(limit_bytes=10), State(1, 0, 0, 1, 1, 0, 11, 0, False, b"x"), ErrorCode.LIMIT_STATE, "STA-1"
    )


def test_more_sections_than_announced():
    """[STA-7] Empty ones count."""
    together = assembler(limit_sections=2)
    for instance in range(2):
        together.add(State(1, 0, 0, 1, 1, instance, 0, 0, True, b""))
    refused(together, State(1, 0, 0, 1, 1, 2, 0, 0, True, b""), ErrorCode.LIMIT_STATE, "STA-7")


def test_a_guest_s_state_is_checked_before_it_is_sent():
    """[LIM-6]"""
    assert check_sections((LONG,), len(LONG.data), 1, 1) == len(LONG.data)
    for bounds in ((len(LONG.data) - 1, 1), (len(LONG.data), 0)):
        with pytest.raises(GuestError) as caught:
            check_sections((LONG,), *bounds, 1)
        assert caught.value.code is ErrorCode.LIMIT_MISMATCH
    with pytest.raises(GuestError, match="one name") as caught:
        check_sections((LONG, LONG), 1 << 20, 2, 1)
    assert caught.value.code is ErrorCode.GUEST_FAILED

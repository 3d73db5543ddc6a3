"""Steps, and the account of a conversation."""

from __future__ import annotations

from sterna.registry import ErrorCode, FrameType
from sterna.wire import Ping, Refuse, encode_frame, unchecked
from sterna_interop.peer_steps import Account, Manner, Raw, Say, code_of


def test_what_is_said_is_an_honest_frame() -> None:
    assert Say(Ping(7)).encode(3) == b"".join(map(bytes, encode_frame(Ping(7), 3)))


def test_raw_bytes_know_their_number() -> None:
    step = Raw(lambda number: unchecked.frame(0x7F00, sequence=number))
    assert step.encode(9) == unchecked.frame(0x7F00, sequence=9)
    assert (step.frames, step.interval_s) == (1, None)


def test_an_account_knows_what_was_heard() -> None:
    account = Account(heard=["skipped", "WELCOME"])
    assert account.has_heard(FrameType.WELCOME)
    assert not account.has_heard(FrameType.PING)


def test_limits_bound_what_a_hostile_endpoint_can_make_the_kit_hold() -> None:
    """64 frames may lie unread, see `peer`."""
    limits = Manner().limits
    assert 64 * limits.bulk_bytes <= 1 << 26
    assert limits.memory_bytes <= 1 << 26


def test_unknown_codes_are_internal() -> None:
    """[ABT-3] [REF-3]"""
    assert code_of(None) is None
    assert code_of(Refuse(0x0402)) is ErrorCode.FULL
    assert code_of(Refuse(0x7777)) is ErrorCode.INTERNAL

"""The judge of this folder has teeth: every single thing that it looks at is broken once, and it says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from withstand_judge import allowed_bytes, judge, judge_accepted
from withstand_support import Victim, recording

from sterna.core.events import Outcome
from sterna.core.session import Session
from sterna.core.tables import DestinationState, SourceState
from sterna.registry import ERRORS, ErrorCode, FrameType, Phase
from sterna.wire import encode_frame
from sterna.wire.records import Abort


def refused(role: str = "source") -> Victim:
    """A victim that did everything right about a frame that is none."""
    state = SourceState.SEALED if role == "source" else DestinationState.LOADED
    return Victim(role).until(state).attack(b"\0" * 32)


def moved() -> Victim:
    """A destination whose guest runs."""
    return Victim("destination").until(DestinationState.RUNNING).settle().attack(b"\0" * 32)


@pytest.mark.parametrize("role", ["source", "destination"])
def test_what_is_right_is_acquitted(role: str) -> None:
    judge(refused(role), ErrorCode.HEADER_CHECKSUM, clause="HDR-2")
    judge(moved(), ErrorCode.HEADER_CHECKSUM)
    judge_accepted(Victim(role).until(SourceState.ACKING if role == "source" else DestinationState.LOADED))


def _forget_the_end(victim: Victim) -> None:
    victim.machine._result = None


def _end_twice(victim: Victim) -> None:
    victim.finished *= 2


def _say_nothing(victim: Victim) -> None:
    del victim.told[-len(victim.spoken[-1].raw) :]


def _go_on_talking(victim: Victim) -> None:
    victim.told += victim.spoken[-1].raw


def _say(victim: Victim, **changes: object) -> None:
    _say_nothing(victim)
    code = ErrorCode.HEADER_CHECKSUM
    fields: dict[str, object] = {"code": code, "phase": Phase.BLACKOUT, "text": ERRORS[code].text}
    words = Abort(**fields | changes)  # type: ignore[arg-type]
    victim.told += b"".join(map(bytes, encode_frame(words, len(victim.spoken))))


def _hold_too_much(victim: Victim) -> None:
    victim.growth_bytes = allowed_bytes(victim.limits) + 1


def _claim_more(victim: Victim) -> None:
    result = victim.machine.result
    assert result is not None
    victim.machine._result = replace(result, outcome=Outcome.COMPLETED)


def _stay_paused(victim: Victim) -> None:
    victim.guest.machine.running = False


def _stay_slow(victim: Victim) -> None:
    victim.guest.machine.throttle = 0.5


def _stay_tracked(victim: Victim) -> None:
    victim.guest._collected_at = 1


def _stay_granted(victim: Victim) -> None:
    victim.guest.granted_epoch = 6


def _lose_a_byte(victim: Victim) -> None:
    victim.guest.machine.memory[5000] ^= 1


def _lose_a_register(victim: Victim) -> None:
    victim.guest.workload.count += 1


SOURCE_DEFECTS: list[Callable[[Victim], None]] = [
    _forget_the_end,
    _end_twice,
    _say_nothing,
    _go_on_talking,
    _hold_too_much,
    _claim_more,
    _stay_paused,
    _stay_slow,
    _stay_tracked,
    _stay_granted,
    _lose_a_byte,
    _lose_a_register,
    lambda victim: _say(victim, code=ErrorCode.BODY_CHECKSUM),
    lambda victim: _say(victim, text="struct.error: unpack requires a buffer of 32 bytes"),
    lambda victim: _say(victim, phase=99),
]


@pytest.mark.parametrize("defect", SOURCE_DEFECTS)
def test_a_defect_of_the_source_is_found(defect: Callable[[Victim], None]) -> None:
    victim = refused()
    defect(victim)
    with pytest.raises(AssertionError):
        judge(victim, ErrorCode.HEADER_CHECKSUM, clause="HDR-2")


def test_another_code_or_clause_is_found() -> None:
    with pytest.raises(AssertionError):
        judge(refused(), ErrorCode.BODY_CHECKSUM)
    with pytest.raises(AssertionError):
        judge(refused(), clause="HDR-3")
    with pytest.raises(AssertionError, match="goes on"):
        judge(Victim("source").until(SourceState.ACKING))


def test_a_guest_that_runs_without_permission_is_found() -> None:
    """And memory that is kept without it."""
    victim = refused("destination")
    victim.room._memory = victim.guest.machine.memory
    with pytest.raises(AssertionError):
        judge(victim)
    victim = moved()
    victim.heard[:] = victim.heard.replace(
        next(said.body for said in recording()["destination"] if said.frame == FrameType.HANDOVER), b"?" * 16
    )
    with pytest.raises(AssertionError, match="without permission"):
        judge(victim)


def test_a_page_that_is_lost_on_the_way_is_found() -> None:
    victim = moved()
    assert victim.room.machine is not None
    victim.room.machine.memory[5000] ^= 1
    with pytest.raises(AssertionError):
        judge(victim)


def test_a_source_that_runs_after_handover_is_found() -> None:
    victim = Victim("source").until(SourceState.HANDED_OVER).settle().attack(b"\0" * 32)
    judge(victim, ErrorCode.HEADER_CHECKSUM)
    victim.guest.machine.running = True
    with pytest.raises(AssertionError):
        judge(victim)


def test_another_exception_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here swallows one."""

    def broken(self: Session, lane: object, now: float) -> None:
        raise IndexError

    victim = Victim("source").until(SourceState.ACKING)
    monkeypatch.setattr(Session, "_read", broken)
    with pytest.raises(IndexError):
        victim.attack(b"\0" * 32)


def test_memory_is_measured() -> None:
    """What a machine would allocate by a header's word shows in the measure."""
    victim = Victim("source").until(SourceState.ACKING)
    hear = victim.hear
    victim.hear = lambda data: (bytearray(10 << 20), hear(data))[1]  # type: ignore[method-assign]
    victim.attack(b"\0" * 32)
    assert victim.growth_bytes > 10 << 20
    with pytest.raises(AssertionError):
        judge(victim)

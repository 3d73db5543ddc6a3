"""Numbers that are only shown: progress, rates, predictions as large as can be said, or backwards.

All of them are unsigned, so there is no NaN and nothing negative on the wire. What is made of them is
arithmetic of floats, a policy's decision, lines of JSON, and a table for people.

Published bugs of this class: KubeVirt showed progress that ran backwards (#10722); QEMU's remaining bytes
oscillate; NaN and infinity in telemetry are every dashboard's.

[PRG-1] [CON-6] [CON-36] [CON-80] [CON-81]
"""

from __future__ import annotations

import itertools
import json
from dataclasses import fields

import pytest
from withstand_judge import judge_accepted, judge_any
from withstand_support import ROLES, Victim, at_home

from sterna.cli.display import Display
from sterna.cli.events import event_fields, result_fields
from sterna.cli.output import Output, write_line
from sterna.core.events import Outcome, PeerProgress
from sterna.core.tables import DestinationState, SourceState
from sterna.registry import FrameType, Phase
from sterna.wire import decode_body
from sterna.wire import records as r

F = FrameType
U32, U64 = (1 << 32) - 1, (1 << 64) - 1
EXTREMES = (0, 1, 1 << 53, (1 << 63) - 1, 1 << 63, U64)
MIDDLE = {"source": SourceState.ACKING, "destination": DestinationState.RECEIVING}
NUMBERS = [field.name for field in fields(r.Progress) if field.name not in {"phase", "round"}]


def show(victim: Victim, capsys: pytest.CaptureFixture[str]) -> str:
    """Everything that a command would write of these events: lines of JSON, and text for people."""
    output = Output()
    display = Display(output)
    capsys.readouterr()
    display.show({"event": "migration", "page_bytes": 4096, "tracker": "simulated"})
    for event in victim.events:
        line = event_fields(event)
        write_line(line)
        display.show(line)
    if victim.machine.result is not None:
        write_line(result_fields(victim.machine.result))
    display.close()
    shown = capsys.readouterr()
    for line in shown.out.removesuffix("\n").split("\n"):
        assert not line or isinstance(json.loads(line, parse_constant=pytest.fail), dict)
    for line in shown.err.split("\n"):
        assert line.isprintable()
        assert len(line) < 300
        assert not {"inf", "nan", "-"} & set(line.split())
    return shown.err


def progress(**changes: int) -> r.Progress:
    base: dict[str, int] = {"phase": Phase.ROUNDS, "round": 1, **dict.fromkeys(NUMBERS, 4096)}
    return r.Progress(**base | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", [*NUMBERS, "round"])
def test_progress_of_any_size(role: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """[CON-6] Shown, or not shown; nothing depends on it."""
    for value in (each for each in EXTREMES if name != "round" or each <= U32):
        victim = Victim(role).until(MIDDLE[role])
        victim.attack(victim.record(progress(**{name: value})))
        assert any(isinstance(event, PeerProgress) for event in victim.events)
        show(victim, capsys)
        judge_accepted(victim)


@pytest.mark.parametrize("role", ROLES)
def test_progress_that_runs_backwards(role: str, capsys: pytest.CaptureFixture[str]) -> None:
    """[CON-80] [CON-81] A peer that breaks it breaks nothing here."""
    for numbers in itertools.permutations((0, 5, U64), 3):
        victim = Victim(role).until(MIDDLE[role])
        for value in numbers:
            told = progress(round=min(value, U32), bulk_bytes=value, pages_remaining=value)
            victim.attack(victim.record(told))
        show(victim, capsys)
        judge_accepted(victim)


@pytest.mark.parametrize("value", EXTREMES)
def test_a_receive_rate_of_any_size(value: int, capsys: pytest.CaptureFixture[str]) -> None:
    """[CON-36] The policy reckons with it: the guest moves all the same, or stays with a code."""
    ack = decode_body(F.ROUND_ACK, honest_ack())
    assert isinstance(ack, r.RoundAck)
    victim = at_home("source", F.ROUND_ACK)
    victim.both.now += 1.0  # the round has taken time, so there is a rate to compare it with
    victim.attack(victim.record(r.RoundAck(ack.attempt, ack.round, ack.pages, value)))
    victim.carry_on()
    result = victim.machine.result
    assert result is not None
    show(victim, capsys)
    if result.outcome is not Outcome.COMPLETED:
        judge_any(victim)


def honest_ack() -> bytes:
    return next(said.body for said in Victim("source").recorded["source"] if said.frame == F.ROUND_ACK)


@pytest.mark.parametrize("value", EXTREMES)
def test_pages_and_downtime_of_any_size(value: int, capsys: pytest.CaptureFixture[str]) -> None:
    """[CON-29] What ROUND and SWITCHOVER announce."""
    victim = at_home("destination", F.ROUND)
    victim.attack(victim.record(r.Round(1, 1, value)))
    show(victim, capsys)
    victim.next += 1
    victim.carry_on()
    assert victim.machine.result is not None
    victim = at_home("destination", F.SWITCHOVER)
    victim.attack(victim.record(r.Switchover(1, 0, value)))  # type: ignore[arg-type]
    show(victim, capsys)
    victim.carry_on()
    judge_any(victim)
    assert victim.room.has_run


def test_a_hint_to_come_again_of_any_size(capsys: pytest.CaptureFixture[str]) -> None:
    """[REF-2] retry_after of 49 days, of a host that says it is full."""
    for value in 0, 1, U32:
        victim = Victim("source").until(SourceState.GREETING)
        victim.attack(victim.record(r.Refuse(0x0402, value, (), "full")))
        result = victim.machine.result
        assert result is not None
        assert result.retry_after_ms == value
        show(victim, capsys)
        judge_any(victim)

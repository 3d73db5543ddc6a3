"""When a demo has gone well, and the object that says how it went."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sterna.cli.demo_run import DemoRun, Wishes
from sterna.cli.exits import Exit

WISHES = Wishes(memory_bytes=1 << 20, rate_bytes_s=50 << 20, hot_bytes=1 << 19, insecure=False, evidence=None)
ROUND = {"round": 1, "pages": 256, "bytes": 1 << 20, "seconds": 0.1, "dirty_pages": 0}
GOOD = DemoRun(
    guest="process",
    tracker="userfaultfd",
    hot_bytes=1 << 19,
    source={
        "outcome": "completed",
        "code": None,
        "digest": "d1",
        "rounds": [ROUND],
        "bytes_sent": 1_100_000,
        "seconds_total": 0.5,
        "seconds_blackout": 0.01,
        "blackout_steps": [{"state": "pausing", "seconds": 0.01}],
        "seconds_until_run": 0.4,
        "tls": {"version": "TLSv1.3", "cipher": "x", "mutual": True},
    },
    destination={"digest": "d1"},
    write_rate_bytes_s=52_000_000,
    dirty_rate_bytes_s=51_000_000,
    blackout_guest_s=0.011,
    writes_before=1000,
    audit={"pages_checked": 256, "errors": 0, "writes": 1500},
    processes={"source": 1, "destination": 2, "source_holder": 3, "destination_holder": 4},
)
AUDIT = {"pages_checked": 256, "errors": 0, "writes": 1500}


def test_a_good_run() -> None:
    assert GOOD.exit_code is Exit.OK
    fields = GOOD.fields(WISHES)
    json.dumps(fields, allow_nan=False)
    assert fields["outcome"] == "completed"
    assert fields["digest"] == {"source": "d1", "destination": "d1", "equal": True}
    assert fields["audit"] == {"pages_checked": 256, "errors": 0, "writes_before": 1000, "writes_after": 500}
    assert fields["dirty_rate_requested"] == 50 << 20
    assert fields["dirty_rate_achieved"] == 51_000_000
    assert fields["rounds"] == [ROUND]
    assert (fields["seconds_blackout_guest"], fields["seconds_until_run"]) == (0.011, 0.4)
    assert (fields["downtime_allowed_s"], fields["downtime_met"]) == (WISHES.downtime_s, True)
    assert fields["blackout_steps"] == {"source": GOOD.source["blackout_steps"], "destination": []}
    assert fields["hot_set_bytes"] == 1 << 19
    assert (fields["switchover"], fields["style"], fields["after"]) == ("stop-and-copy", None, None)
    assert fields["demand_faults"] is None
    assert fields["cpu_seconds"] is None
    assert replace(GOOD, cpu_seconds={"source": 0.1}).fields(WISHES)["cpu_seconds"] == {"source": 0.1}
    faults = {"count": 3, "p50_s": 0.1, "p99_s": 0.2, "max_s": 0.2}
    assert replace(GOOD, faults=faults).fields(WISHES)["demand_faults"] == faults


BAD = {
    "digests differ": {"destination": {"digest": "d2"}},
    "no digest there": {"destination": {}},
    "no digest at all": {"source": {**GOOD.source, "digest": None}, "destination": {"digest": None}},
    "no audit": {"audit": None},
    "errors": {"audit": {**AUDIT, "errors": 1}},
    "it does not write": {"audit": {**AUDIT, "writes": 1000}},
    "no evidence": {"failures": ("disk full",)},
}


@pytest.mark.parametrize("name", BAD)
def test_a_run_with_a_flaw_fails(name: str) -> None:
    run = replace(GOOD, **BAD[name])
    assert run.exit_code is Exit.FAILED
    json.dumps(run.fields(WISHES), allow_nan=False)


@pytest.mark.parametrize(
    ("outcome", "code", "expected"),
    [
        ("rolled_back", "peer_silent", Exit.TRANSPORT),
        ("rolled_back", "not_converging", Exit.ROLLED_BACK),
        ("undecided", "connection_lost", Exit.UNDECIDED),
        ("guest_failed", "guest_failed", Exit.GUEST),
        ("moved", "connection_lost", Exit.FAILED),  # it has moved, but the demo is about all of it
    ],
)
def test_a_migration_that_does_not_complete(outcome: str, code: str, expected: Exit) -> None:
    run = replace(GOOD, source={**GOOD.source, "outcome": outcome, "code": code}, audit=None)
    assert run.exit_code is expected


def test_a_guest_that_hardly_writes_cannot_measure_its_blackout() -> None:
    idle = replace(WISHES, rate_bytes_s=0)
    assert GOOD.fields(idle)["seconds_blackout_guest"] is None
    assert GOOD.exit_code is Exit.OK


def test_what_was_looked_at_of_a_virtual_machine() -> None:
    cpu = {
        "sections": 21,
        "registers_checked": 900,
        "mismatches": 0,
        "time_backwards": 0,
        "time_jump_s": 0.2,
        "stood_s": 0.1,
    }
    assert replace(GOOD, cpu=cpu).fields(WISHES)["cpu"] == cpu
    assert replace(GOOD, cpu=cpu).fields(replace(WISHES, vcpus=3))["vcpus"] == 3
    assert GOOD.fields(WISHES)["cpu"] is GOOD.fields(WISHES)["vcpus"] is None
    assert replace(GOOD, cpu=cpu).exit_code is Exit.OK
    for wrong in (
        {"sections": 0},
        {"registers_checked": 0},
        {"mismatches": 1},
        {"time_backwards": 1},
        {"time_jump_s": 9.0},
    ):
        assert replace(GOOD, cpu=cpu | wrong).exit_code is Exit.FAILED

"""Everything that a whole migration says fits into JSON, whatever the peer has said."""

from __future__ import annotations

import json
from dataclasses import fields

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.abc import Clock

from sterna.cli.events import (
    Fields,
    event_fields,
    result_fields,
)
from sterna.core.events import (
    Event,
    Outcome,
    PeerProgress,
    PhaseEntered,
    Result,
    RoundStarted,
    SessionOpened,
)
from sterna.guest.simulated import SimulatedDestinationGuest, SimulatedSourceGuest
from sterna.guest.workload import WorkloadParameters
from sterna.net.destination import Destination
from sterna.net.memory import memory_transport_pair
from sterna.net.options import Options
from sterna.net.source import Source
from sterna.registry import Owner, Phase
from sterna.testing import run_workload
from sterna.wire.records import Progress, Runner, Verdict

# 2**53 and above would read differently in a language whose numbers are doubles.
EXACT = (1 << 53) - 1


def through_json(found: Fields) -> Fields:
    return json.loads(json.dumps(found, allow_nan=False))


async def test_all_events_of_a_whole_migration(autojump_clock: Clock) -> None:
    events: dict[str, list[Event]] = {"source": [], "destination": []}
    near, far = memory_transport_pair(rate_bytes_s=20e6)
    guest = SimulatedSourceGuest(WorkloadParameters.for_memory(1 << 20, 1 << 18), rate_bytes_s=2e6)
    room = SimulatedDestinationGuest(rate_bytes_s=2e6)

    def options(side: str) -> Options:
        return Options(clock=trio.current_time, on_event=events[side].append)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_workload, guest)
        nursery.start_soon(run_workload, room)
        async with trio.open_nursery() as both:
            both.start_soon(Destination(lambda _: room, far, options=options("destination")).run)
            both.start_soon(Source(guest, near, options=options("source")).run)
        nursery.cancel_scope.cancel()
    said = {side: [through_json(event_fields(event)) for event in found] for side, found in events.items()}
    for lines in said.values():
        assert lines[-1] == {"event": "finished", "outcome": "completed", "code": None}
    names = {line["event"] for line in said["source"]}
    assert names == {"session_opened", "phase", "round_started", "round_finished", "decided", "finished"}
    assert names - {"decided"} <= {line["event"] for line in said["destination"]}
    assert {type(event) for event in events["source"]} <= set(Event.__args__)


U64 = st.integers(0, (1 << 64) - 1)


@given(
    st.one_of(
        st.builds(RoundStarted, U64, U64, st.booleans()),
        st.builds(
            PeerProgress, st.builds(Progress, st.sampled_from(Phase), st.integers(0, 1 << 32), U64, U64)
        ),
        st.builds(SessionOpened, st.binary(min_size=16, max_size=16), st.text(), U64, st.just({})),
        st.builds(PhaseEntered, st.sampled_from(Phase)),
    )
)
def test_a_peer_s_numbers_stay_exact(event: Event) -> None:
    fields = event_fields(event)
    assert through_json(fields) == fields
    for name in ("pages", "pages_remaining", "pages_total"):
        value = fields.get(name, 0)
        assert isinstance(value, int)
        assert 0 <= value <= EXACT


def test_a_verdict_is_said() -> None:
    """[ONE-60] In full, and without a digest where there is none."""
    assert result_fields(Result(Outcome.UNDECIDED))["verdict"] is None
    for complete in (False, True):
        digest = b"d" * 16 if complete else bytes(16)
        verdict = Verdict(
            Owner.DESTINATION, (1 << 64) - 1, Runner("there", b"r" * 16), complete=complete, digest=digest
        )
        said = result_fields(Result(Outcome.ANSWERED, session=b"s" * 16, verdict=verdict))
        assert said["session"] == (b"s" * 16).hex()
        assert through_json(said)["verdict"] == {
            "owner": "destination",
            "epoch": EXACT,
            "runner": {"host": "there", "id": (b"r" * 16).hex()},
            "handed_back": False,
            "complete": complete,
            "digest": digest.hex() if complete else None,
        }


def test_every_field_of_a_result_is_said() -> None:
    said = result_fields(Result(Outcome.COMPLETED))
    renamed = {
        "error": "text",
        "seconds": "seconds_total",
        "blackout_s": "seconds_blackout",
        "run_after_s": "seconds_until_run",
        "items": "missing",
        "streams": "data_streams",
        "unrecorded": "warnings",
    }
    for one in fields(Result):
        assert renamed.get(one.name, one.name) in said

"""Both minimal endpoints, one against the other, in two threads."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from minimal_support import connections

from sterna_interop.contract import Order, Params, Role
from sterna_interop.guest import GuestSpec, state_hash
from sterna_interop.minimal.codes import SessionError
from sterna_interop.minimal.connection import Connection
from sterna_interop.minimal.destination import Destination
from sterna_interop.minimal.image import memory_sha256, state_sha256
from sterna_interop.minimal.source import Source

PARAMS = Params(case="x", role=Role.SOURCE, connect="", token=b"", guest=GuestSpec())

PLAIN = Order()


def migrate(
    order: Order = PLAIN, room: Order = PLAIN, limits: dict[str, int] | None = None
) -> tuple[Source, Destination, dict[str, str]]:
    """One session; the codes with which source and destination ended."""
    told: dict[str, Any] = json.loads(replace(PARAMS, order=order).to_json())
    there: dict[str, Any] = json.loads(replace(PARAMS, order=room).to_json())
    codes: dict[str, str] = {}

    def run(name: str, side: Callable[[], None], line: Connection) -> None:
        try:
            side()
            line.close()
        except SessionError as error:
            codes[name] = error.code
            line.abort(error, refuse=name == "destination" and destination.refusing)

    with connections() as (near, far):
        far.limits |= limits or {}
        source, destination = Source(near, told), Destination(far, there["order"], limits or {})
        served = threading.Thread(target=run, args=("destination", destination.run, far))
        served.start()
        run("source", source.run, near)
        served.join()
    return source, destination, codes


@pytest.mark.parametrize("rounds", [0, 1, 3, 5])
def test_a_migration(rounds: int) -> None:
    """[MEM-11, CON-44]"""
    source, destination, codes = migrate(Order(rounds=rounds))
    assert not codes
    assert source.rounds == destination.rounds == max(1, rounds)
    assert memory_sha256(destination.memory) == PARAMS.guest.memory_hash()
    assert state_sha256(destination.sections or ()) == state_hash(PARAMS.guest.state)
    assert (source.digest, source.released, destination.running) == (destination.digest, True, True)
    assert destination.epoch == 8


def test_small_limits_are_kept() -> None:
    """[LIM-6] [PGS-21]"""
    _, destination, codes = migrate(limits={"bulk_bytes": 4096, "batch_runs": 1, "control_bytes": 65536})
    assert not codes
    assert memory_sha256(destination.memory) == PARAMS.guest.memory_hash()


def test_not_ready_is_tried_again() -> None:
    """[CON-22] [CON-42]"""
    _, destination, codes = migrate(room=Order("not_ready", times=3))
    assert not codes
    assert memory_sha256(destination.memory) == PARAMS.guest.memory_hash()
    assert migrate(room=Order("not_ready", times=99))[2]["source"] == "not_ready"


@pytest.mark.parametrize(
    ("order", "room", "code"),
    [
        (Order("cancel", round=0), Order(), "cancelled"),
        (Order("cancel", round=1), Order(), "cancelled"),
        (Order(), Order("refuse", code="full"), "full"),
        (Order(), Order("reject_state"), "state_rejected"),
    ],
)
def test_sessions_that_fail(order: Order, room: Order, code: str) -> None:
    """[CON-62] [CON-63] [CON-71]"""
    source, destination, codes = migrate(order, room)
    assert codes == {"source": code, "destination": code}
    assert not source.granted
    assert not destination.running


def test_a_destination_that_is_too_small() -> None:
    """[LIM-6]"""
    assert migrate(limits={"regions": 1})[2]["source"] == "limit_mismatch"
